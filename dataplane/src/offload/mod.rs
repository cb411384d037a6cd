//! Super-packets: what the kernel hands over in one read is taken apart where it lies, what arrives in pieces is handed to the kernel in one
//! write. No I/O.

mod coalesce;
mod split;

pub use coalesce::{Bundle, Coalescer, MAX_PARTS};
pub use split::{Segment, Segments};

/// IPv4 and TCP with all options: 60 bytes each. IPv6 with extension headers beyond that is not taken apart.
pub const MAX_HEADERS: usize = 120;

/// How a super-packet is to be segmented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    pub kind: SegmentKind,
    /// Payload bytes in each segment but the last, which may have fewer; never 0.
    pub size: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    Tcp,
    Udp,
}

#[cfg(test)]
mod tests;
