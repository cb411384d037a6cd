use packet::checksum::{Sum, pseudo_header};
use packet::{Headers, TcpFlags, Transport, protocol};

use super::{MAX_HEADERS, SegmentKind, Segmentation};

/// A TCP or UDP super-packet taken apart where it lies: each segment's headers are written directly in front of its payload, over the end
/// of the payload before, which by then has been sent. Nothing but headers is copied.
pub struct Segments<'a> {
    buffer: &'a mut [u8],
    headers: Headers,
    /// IP and transport header of the whole.
    template: [u8; MAX_HEADERS],
    header_len: usize,
    end: usize,
    size: usize,
    /// Where the next segment's payload starts.
    next: usize,
    index: u32,
    /// What stands behind the segment given out last, which its user may overwrite with padding.
    behind: [u8; PADDING],
}

/// One segment at the start of `room`; up to 15 bytes behind it may be overwritten.
pub struct Segment<'s> {
    pub room: &'s mut [u8],
    pub length: usize,
}

const PADDING: usize = 15;
/// What IPv4's length field can state (RFC 791), headers included.
const MAX_LEN: usize = 65_535;

impl<'a> Segments<'a> {
    /// `headers` are those of the packet that `buffer` begins with. `None` if it is no whole packet of the kind that is to be segmented, has
    /// no payload, too long headers, or segments of more than 65535 bytes, which they could not state.
    pub fn new(buffer: &'a mut [u8], headers: &Headers, segmentation: Segmentation) -> Option<Self> {
        let header_len = usize::from(headers.payload_at);
        let end = headers.len as usize;
        let splits = matches!(
            (headers.transport, segmentation.kind),
            (Transport::Tcp { .. }, SegmentKind::Tcp) | (Transport::Udp { .. }, SegmentKind::Udp)
        );
        if !splits
            || headers.fragment.is_some()
            || segmentation.size == 0
            || header_len >= end
            || end > buffer.len()
            || header_len + usize::from(segmentation.size).min(end - header_len) > MAX_LEN
        {
            return None;
        }
        let mut template = [0; MAX_HEADERS];
        template.get_mut(..header_len)?.copy_from_slice(buffer.get(..header_len)?);
        Some(Self {
            buffer,
            headers: *headers,
            template,
            header_len,
            end,
            size: usize::from(segmentation.size),
            next: header_len,
            index: 0,
            behind: [0; PADDING],
        })
    }

    /// The next segment, with its headers and checksums complete; `None` behind the last.
    #[expect(
        clippy::should_implement_trait,
        reason = "a segment borrows the buffer that the next one is written into"
    )]
    pub fn next(&mut self) -> Option<Segment<'_>> {
        let payload_at = self.next;
        if payload_at >= self.end {
            return None;
        }
        let payload_end = self.end.min(payload_at + self.size);
        if self.index > 0 {
            restore(self.buffer, payload_at, &self.behind);
        }
        save(self.buffer, payload_end, &mut self.behind);
        let start = payload_at - self.header_len;
        let header = self.template.get(..self.header_len)?;
        self.buffer.get_mut(start..payload_at)?.copy_from_slice(header);

        let length = payload_end - start;
        let last = payload_end == self.end;
        let segment = self.buffer.get_mut(start..payload_end)?;
        finish(segment, &self.headers, self.index, self.size as u32, last)?;
        self.next = payload_end;
        self.index += 1;
        Some(Segment { room: self.buffer.get_mut(start..)?, length })
    }
}

fn save(buffer: &[u8], at: usize, behind: &mut [u8; PADDING]) {
    behind.iter_mut().zip(buffer.get(at..).unwrap_or_default()).for_each(|(to, from)| *to = *from);
}

fn restore(buffer: &mut [u8], at: usize, behind: &[u8; PADDING]) {
    buffer.get_mut(at..).unwrap_or_default().iter_mut().zip(behind).for_each(|(to, from)| *to = *from);
}

/// Makes the headers of segment `index` say what is true of it.
fn finish(segment: &mut [u8], headers: &Headers, index: u32, size: u32, last: bool) -> Option<()> {
    let transport_at = usize::from(headers.transport_at);
    let total = u16::try_from(segment.len()).ok()?;
    let (ip, transport) = segment.split_at_mut_checked(transport_at)?;
    if headers.source.is_ipv4() {
        put(ip, 2, total.to_be_bytes())?;
        // RFC 6864 §4.1 lets atomic datagrams repeat it; those that may be fragmented need one each.
        let id = u16::from_be_bytes(get(ip, 4)?).wrapping_add(index as u16);
        put(ip, 4, id.to_be_bytes())?;
        put(ip, 10, [0, 0])?;
        let checksum = Sum::default().add_bytes(ip).checksum();
        put(ip, 10, checksum.to_be_bytes())?;
    } else {
        put(ip, 4, (total - 40).to_be_bytes())?;
    }

    let len = transport.len() as u16;
    let checksum_at = match headers.transport {
        Transport::Tcp { sequence, flags, .. } => {
            put(transport, 4, sequence.wrapping_add(index * size).to_be_bytes())?;
            put(transport, 13, [tcp_flags(flags, index == 0, last)])?;
            16
        }
        _ => {
            put(transport, 4, len.to_be_bytes())?;
            6
        }
    };
    put(transport, checksum_at, [0, 0])?;
    let sum = pseudo_header(headers.source, headers.destination, headers.protocol, u32::from(len))
        .add_bytes(transport);
    let checksum = if headers.protocol == protocol::UDP { sum.udp_checksum() } else { sum.checksum() };
    put(transport, checksum_at, checksum.to_be_bytes())
}

/// FIN and PSH belong to the last byte; CWR (RFC 3168 §6.1.2) is said once.
fn tcp_flags(flags: TcpFlags, first: bool, last: bool) -> u8 {
    const CWR: u8 = 0x80;
    let mut flags = flags.0;
    if !last {
        flags &= !(TcpFlags::FIN | TcpFlags::PSH);
    }
    if !first {
        flags &= !CWR;
    }
    flags
}

fn get<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, field: [u8; N]) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut()? = field;
    Some(())
}
