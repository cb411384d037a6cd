use std::ops::Range;

use packet::checksum::{Sum, pseudo_header};
use packet::{FiveTuple, Headers, Packet, TcpFlags, Transport};

use super::{SegmentKind, Segmentation};

/// What one packet on the TUN may hold (RFC 791), headers included.
const MAX_LEN: usize = 65_535;
/// As many parts as one writev of the pump takes.
pub const MAX_PARTS: usize = 64;

/// Puts packets of one flow that follow each other without a gap together, so that the kernel takes them as one. By construction:
///
/// - Packets of a flow never change places: one that cannot be joined starts a bundle of its own, behind its predecessor's, and closes that.
/// - Only headers that are the same in every bit join, but for what numbers the segments: length, identification (where DF says that it means
///   nothing), sequence, checksum. So no two of different DSCP, ECN, TTL, window, acknowledgment or options ever do.
/// - Only right checksums join, IPv4's header's too, since the joined packet is given new ones.
/// - IPv4 options and IPv6 extension headers travel alone, as in the kernel's own receive offload.
/// - PSH closes a bundle; SYN, FIN, RST, URG, ECE and CWR travel alone.
#[derive(Default)]
pub struct Coalescer {
    bundles: Vec<Bundle>,
    parts: Vec<Part>,
}

/// Packets that are written as one, in order; all but the last have payloads of the same size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The packet whose headers stand for all.
    pub first: usize,
    /// Its headers.
    pub headers: Headers,
    pub count: usize,
    /// Of all payloads together, in bytes.
    pub payload: usize,
    pub pushed: bool,
    /// Its first and its last part.
    part: usize,
    last: usize,
    tuple: Option<FiveTuple>,
    size: usize,
    next_sequence: u32,
    open: bool,
}

struct Part {
    slot: usize,
    /// The bundle's next part.
    next: Option<usize>,
}

impl Coalescer {
    /// Forgets all packets.
    pub fn clear(&mut self) {
        self.bundles.clear();
        self.parts.clear();
    }

    /// Takes the packet in `slot`. `bytes_of` gives the packet in any slot taken before.
    pub fn add<'a>(&mut self, slot: usize, packet: &Packet<'a>, bytes_of: impl Fn(usize) -> &'a [u8]) {
        let headers = packet.headers();
        let payload = packet.payload().len();
        let tuple = packet.five_tuple();
        let joins = joinable(packet);
        let before = self.bundles.iter().rposition(|bundle| bundle.tuple == tuple && tuple.is_some());
        if let Some(place) = before
            && let Some(bundle) = self.bundles.get_mut(place)
        {
            let fits = bundle.open
                && joins
                && bundle.count < MAX_PARTS
                && payload <= bundle.size
                && usize::from(headers.payload_at) + bundle.payload + payload <= MAX_LEN
                && sequence(headers).is_none_or(|sequence| sequence == bundle.next_sequence)
                && same_headers(bytes_of(bundle.first), packet.bytes(), headers);
            if fits {
                bundle.count += 1;
                bundle.payload += payload;
                bundle.next_sequence = bundle.next_sequence.wrapping_add(payload as u32);
                bundle.pushed = has(headers, TcpFlags::PSH);
                bundle.open = payload == bundle.size && !bundle.pushed;
                let last = std::mem::replace(&mut bundle.last, self.parts.len());
                if let Some(last) = self.parts.get_mut(last) {
                    last.next = Some(bundle.last);
                }
                self.parts.push(Part { slot, next: None });
                return;
            }
            bundle.open = false;
        }
        let pushed = has(headers, TcpFlags::PSH);
        let part = self.parts.len();
        self.parts.push(Part { slot, next: None });
        self.bundles.push(Bundle {
            first: slot,
            part,
            last: part,
            headers: *headers,
            count: 1,
            payload,
            pushed,
            tuple,
            size: payload,
            next_sequence: sequence(headers).unwrap_or(0).wrapping_add(payload as u32),
            open: joins && !pushed,
        });
    }

    /// In the order of their first packets.
    pub fn bundles(&self) -> &[Bundle] {
        &self.bundles
    }

    /// The slots of a bundle's packets, in order.
    pub fn slots(&self, bundle: &Bundle) -> impl Iterator<Item = usize> {
        std::iter::successors(self.parts.get(bundle.part), |part| self.parts.get(part.next?))
            .map(|part| part.slot)
    }
}

impl Bundle {
    pub fn kind(&self) -> SegmentKind {
        match self.headers.transport {
            Transport::Tcp { .. } => SegmentKind::Tcp,
            _ => SegmentKind::Udp,
        }
    }

    /// Makes the first packet's headers (`packet` may be those alone) say what is true of the whole bundle; the transport checksum is left partial.
    /// `None` for a bundle of one, which is left as it is.
    pub fn finish(&self, packet: &mut [u8]) -> Option<Segmentation> {
        if self.count < 2 {
            return None;
        }
        let total = usize::from(self.headers.payload_at) + self.payload;
        let (ip, transport) = packet.split_at_mut_checked(usize::from(self.headers.transport_at))?;
        if self.headers.source.is_ipv4() {
            put(ip, 2, u16::try_from(total).ok()?.to_be_bytes())?;
            put(ip, 10, [0, 0])?;
            let checksum = Sum::default().add_bytes(ip).checksum();
            put(ip, 10, checksum.to_be_bytes())?;
        } else {
            put(ip, 4, u16::try_from(total - 40).ok()?.to_be_bytes())?;
        }
        let len = (total - usize::from(self.headers.transport_at)) as u16;
        let pseudo = pseudo_header(
            self.headers.source,
            self.headers.destination,
            self.headers.protocol,
            u32::from(len),
        )
        .fold();
        match self.headers.transport {
            Transport::Tcp { flags, .. } => {
                let push = if self.pushed { TcpFlags::PSH } else { 0 };
                put(transport, 13, [flags.0 | push])?;
                put(transport, 16, pseudo.to_be_bytes())?;
            }
            _ => {
                put(transport, 4, len.to_be_bytes())?;
                put(transport, 6, pseudo.to_be_bytes())?;
            }
        }
        Some(Segmentation { kind: self.kind(), size: u16::try_from(self.size).ok()? })
    }
}

/// Whether a packet may stand beside others at all.
fn joinable(packet: &Packet<'_>) -> bool {
    let headers = packet.headers();
    if packet.payload().is_empty() || headers.fragment.is_some() {
        return false;
    }
    let plain_ip = match packet.bytes() {
        // RFC 6864 §4.1: with DF the identification means nothing, so it may be lost.
        [0x45, _, _, _, _, _, flags, ..] if flags & 0x40 != 0 => has_right_ip_checksum(packet),
        [0x60..=0x6f, ..] => headers.transport_at == 40,
        _ => false,
    };
    let kind = match headers.transport {
        Transport::Tcp { flags, .. } => flags.0 & !TcpFlags::PSH == TcpFlags::ACK,
        Transport::Udp { checksum, .. } => checksum != 0,
        Transport::Icmp(_) | Transport::Opaque => false,
    };
    plain_ip && kind && has_right_checksum(packet)
}

fn has_right_ip_checksum(packet: &Packet<'_>) -> bool {
    let header = packet.bytes().get(..usize::from(packet.headers().transport_at)).unwrap_or_default();
    Sum::default().add_bytes(header).fold() == 0xffff
}

fn has_right_checksum(packet: &Packet<'_>) -> bool {
    let headers = packet.headers();
    let Some(transport) = packet.bytes().get(usize::from(headers.transport_at)..) else { return false };
    let pseudo = pseudo_header(headers.source, headers.destination, headers.protocol, transport.len() as u32);
    pseudo.add_bytes(transport).fold() == 0xffff
}

/// Whether the two agree in all but length, identification, sequence, PSH and checksum.
fn same_headers(first: &[u8], second: &[u8], headers: &Headers) -> bool {
    let transport = usize::from(headers.transport_at);
    let same = |stretch: Range<usize>| first.get(stretch.clone()) == second.get(stretch);
    let same_ip = match headers.source.is_ipv4() {
        true => same(0..2) && same(6..10) && same(12..transport),
        false => same(0..4) && same(6..transport),
    };
    let without_push = |packet: &[u8]| packet.get(transport + 13).map(|flags| flags & !TcpFlags::PSH);
    same_ip
        && match headers.transport {
            Transport::Tcp { .. } => {
                same(transport..transport + 4)
                    && same(transport + 8..transport + 13)
                    && without_push(first) == without_push(second)
                    && same(transport + 14..transport + 16)
                    && same(transport + 18..usize::from(headers.payload_at))
            }
            _ => same(transport..transport + 4),
        }
}

fn sequence(headers: &Headers) -> Option<u32> {
    match headers.transport {
        Transport::Tcp { sequence, .. } => Some(sequence),
        _ => None,
    }
}

fn has(headers: &Headers, flag: u8) -> bool {
    matches!(headers.transport, Transport::Tcp { flags, .. } if flags.has(flag))
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, field: [u8; N]) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut()? = field;
    Some(())
}
