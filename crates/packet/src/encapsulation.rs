//! What a tunnel's outer header says of the packet inside, and what that packet is told of it where it comes out.

use std::str::FromStr;

use crate::{Checksum, Dscp, PacketMut, Tos};

/// Explicit congestion notification, the lower two bits of a [`Tos`] (RFC 3168 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ecn {
    /// The sender does not know it: only loss tells it of congestion.
    NotEct = 0,
    Ect1 = 1,
    Ect0 = 2,
    /// Congestion was met.
    Ce = 3,
}

/// The DSCP of a tunnel's own packets (RFC 2983 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OuterDscp {
    /// That of the packet inside; 0 where there is none.
    Copy,
    Fixed(Dscp),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no outer DSCP: give \"zero\", \"copy\", a name (ef, af11 to af43, cs0 to cs7, va, le) or a number from 0 to 63"
)]
pub struct ParseOuterDscpError(String);

impl Ecn {
    /// What a packet says when it leaves the tunnel, itself saying `self` and the outer header `outer`. `None`: it has to be dropped, since it
    /// met congestion and cannot say so (RFC 6040 §4.2, figure 4).
    pub const fn decapsulated(self, outer: Self) -> Option<Self> {
        match (self, outer) {
            (Self::NotEct, Self::Ce) => None,
            (Self::NotEct, _) => Some(Self::NotEct),
            (Self::Ce, _) | (_, Self::Ce) => Some(Self::Ce),
            (Self::Ect0, Self::Ect1) => Some(Self::Ect1),
            (inner, _) => Some(inner),
        }
    }
}

impl Tos {
    /// That of an IP packet; `None` if it is none or shorter than two bytes.
    pub const fn of(packet: &[u8]) -> Option<Self> {
        match *packet {
            [0x40..=0x4f, tos, ..] => Some(Self(tos)),
            // RFC 8200 §3: behind the version's four bits.
            [first @ 0x60..=0x6f, second, ..] => Some(Self(first << 4 | second >> 4)),
            _ => None,
        }
    }

    pub const fn ecn(self) -> Ecn {
        match self.0 & 3 {
            0 => Ecn::NotEct,
            1 => Ecn::Ect1,
            2 => Ecn::Ect0,
            _ => Ecn::Ce,
        }
    }

    pub const fn with_ecn(self, ecn: Ecn) -> Self {
        Self(self.0 & !3 | ecn as u8)
    }
}

impl OuterDscp {
    pub const ZERO: Self = Self::Fixed(Dscp::DEFAULT);

    /// The outer header's, around a packet that says `inner`, or around none (handshakes, keepalives).
    pub const fn encapsulated(self, inner: Option<Tos>) -> Tos {
        // RFC 6040 §4.1, normal mode: ECN is copied.
        let inner = match inner {
            Some(inner) => inner,
            None => Tos(0),
        };
        match self {
            Self::Copy => inner,
            Self::Fixed(dscp) => inner.with_dscp(dscp),
        }
    }
}

/// Tells a packet that leaves a tunnel what its outer header, which said `outer`, was told of congestion; checksums stay right. `false`: it has to
/// be dropped. What is no IP packet is left alone.
#[must_use]
pub fn decapsulate(packet: &mut [u8], outer: Tos) -> bool {
    let Some(inner) = Tos::of(packet).map(Tos::ecn) else { return true };
    match inner.decapsulated(outer.ecn()) {
        None => false,
        Some(ecn) if ecn == inner => true,
        Some(ecn) => {
            if let Ok(mut packet) = PacketMut::parse(packet, Checksum::Complete) {
                packet.set_ecn(ecn);
            }
            true
        }
    }
}

impl Default for OuterDscp {
    fn default() -> Self {
        Self::ZERO
    }
}

/// `zero`, `copy`, or what [`Dscp`] is parsed from.
impl FromStr for OuterDscp {
    type Err = ParseOuterDscpError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "zero" => Ok(Self::ZERO),
            "copy" => Ok(Self::Copy),
            _ => text.parse().map(Self::Fixed).map_err(|_| ParseOuterDscpError(text.to_owned())),
        }
    }
}
