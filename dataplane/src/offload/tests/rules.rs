//! What may be joined, said again in the plainest way, and held against packets with anything in their headers.

use super::*;

/// A header bit to turn, and whether the checksums are made right again.
type Damage = Option<(usize, u8, bool)>;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn only_what_the_rules_allow_is_joined(
        (v6, tcp, options) in (any::<bool>(), any::<bool>(), 0_usize..=12),
        script in proptest::collection::vec(
            (1_usize..4, proptest::option::weighted(0.15, (0_usize..60, 0_u8..8, any::<bool>()))),
            2..40,
        ),
    ) {
        let packets = stream(v6, tcp, options, &script);
        let mut coalescer = Coalescer::default();
        for (slot, bytes) in packets.iter().enumerate() {
            coalescer.add(slot, &Packet::parse(bytes).unwrap(), |slot| &packets[slot]);
        }
        let mut seen = vec![false; packets.len()];
        for bundle in coalescer.bundles() {
            let slots: Vec<usize> = coalescer.slots(bundle).collect();
            prop_assert!(slots.len() == bundle.count && bundle.count <= MAX_PARTS);
            for pair in slots.windows(2) {
                let [before, after] = [&packets[pair[0]], &packets[pair[1]]];
                prop_assert!(may_follow(before, after, slots[0] == pair[0], &packets[slots[0]]), "{before:x?} {after:x?}");
            }
            for slot in slots {
                prop_assert!(!std::mem::replace(&mut seen[slot], true), "written twice");
            }
        }
        prop_assert!(seen.into_iter().all(|seen| seen), "not written");
    }
}

#[test]
fn what_joins_undamaged_does_not_with_a_wrong_ip_checksum() {
    let segments = split(&super_packet(false, true, 0, TcpFlags::ACK, &[7; 300]), 100);
    assert_eq!(coalesce(&segments).len(), 1);
    for place in 0..segments.len() {
        let mut segments = segments.clone();
        segments[place][10] ^= 1;
        let joined = coalesce(&segments);
        assert!(joined.iter().any(|(bytes, size)| size.is_none() && *bytes == segments[place]));
    }
}

/// The kernel's own receive offload leaves such packets alone too.
#[test]
fn packets_with_ip_options_or_extension_headers_stay_apart() {
    for v6 in [false, true] {
        let plain = split(&super_packet(v6, false, 0, 0, &[7; 300]), 100);
        assert_eq!(coalesce(&plain).len(), 1);
        let odd: Vec<Vec<u8>> = plain.iter().map(|bytes| with_empty_option(bytes)).collect();
        assert_eq!(coalesce(&odd), odd.iter().map(|bytes| (bytes.clone(), None)).collect::<Vec<_>>());
    }
}

#[test]
fn there_may_be_more_segments_than_one_bundle_takes() {
    let whole = super_packet(false, true, 0, TcpFlags::ACK | TcpFlags::PSH, &[7; 1300]);
    let segments = split(&whole, 10);
    assert_eq!(segments.len(), 130);
    let joined = coalesce(&segments);
    let again: Vec<Vec<u8>> = joined.iter().flat_map(|(bytes, size)| split(bytes, size.unwrap())).collect();
    assert_eq!((joined.len(), again), (3, segments));
}

/// One flow's packets, in order but for what the damage makes of them.
fn stream(v6: bool, tcp: bool, options: usize, script: &[(usize, Damage)]) -> Vec<Vec<u8>> {
    let mut sequence = 0xffff_ff00_u32;
    let mut packets = Vec::new();
    for &(hundreds, damage) in script {
        let payload = vec![packets.len() as u8; if hundreds == 3 { 60 } else { 100 }];
        let flags = TcpFlags::ACK | if hundreds == 2 { TcpFlags::PSH } else { 0 };
        let mut bytes = super_packet(v6, tcp, options, flags, &payload);
        let transport = if v6 { 40 } else { 20 };
        if tcp {
            bytes[transport + 4..transport + 8].copy_from_slice(&sequence.to_be_bytes());
        }
        sequence = sequence.wrapping_add(payload.len() as u32);
        let mut bytes = complete(&bytes);
        let whole = bytes.clone();
        if let Some((at, bit, mended)) = damage {
            bytes[at] ^= 1 << bit;
            if mended {
                mend(&mut bytes);
            }
        }
        packets.push(if Packet::parse(&bytes).is_ok() { bytes } else { whole });
    }
    packets
}

/// Makes both checksums right, where they are at all.
fn mend(bytes: &mut [u8]) {
    let Ok(packet) = Packet::parse(bytes) else { return };
    let headers = *packet.headers();
    let transport_at = usize::from(headers.transport_at);
    let at = match headers.transport {
        Transport::Tcp { .. } => transport_at + 16,
        Transport::Udp { .. } => transport_at + 6,
        _ => return,
    };
    let end = headers.len as usize;
    bytes[at..at + 2].fill(0);
    let len = (end - transport_at) as u32;
    let sum = pseudo_header(headers.source, headers.destination, headers.protocol, len)
        .add_bytes(&bytes[transport_at..end]);
    bytes[at..at + 2].copy_from_slice(&sum.udp_checksum().to_be_bytes());
    if headers.source.is_ipv4() {
        bytes[10..12].fill(0);
        let checksum = Sum::default().add_bytes(&bytes[..transport_at]).checksum();
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
}

fn may_follow(before: &[u8], after: &[u8], is_first: bool, first: &[u8]) -> bool {
    let [a, b, first] = [before, after, first].map(|bytes| Packet::parse(bytes).unwrap());
    let payload = |packet: &Packet<'_>| packet.payload().len();
    let sizes = payload(&a) == payload(&first) && payload(&b) <= payload(&first) && payload(&b) > 0;
    let in_sequence = match (a.headers().transport, b.headers().transport) {
        (Transport::Tcp { sequence: of_a, flags, .. }, Transport::Tcp { sequence: of_b, .. }) => {
            flags == TcpFlags(TcpFlags::ACK) && of_b == of_a.wrapping_add(payload(&a) as u32)
        }
        (Transport::Udp { .. }, Transport::Udp { .. }) => true,
        _ => false,
    };
    let right =
        [&a, &b].into_iter().all(|packet| has_right_checksum(packet) && has_right_ip_checksum(packet));
    sizes && in_sequence && right && telling(&a) == telling(&b) && (!is_first || a.bytes() == first.bytes())
}

fn has_right_ip_checksum(packet: &Packet<'_>) -> bool {
    let header = &packet.bytes()[..usize::from(packet.headers().transport_at)];
    header[0] >> 4 == 6 || Sum::default().add_bytes(header).fold() == 0xffff
}

/// The headers without what only says which part of the stream this is.
fn telling(packet: &Packet<'_>) -> Vec<u8> {
    let mut headers = packet.bytes()[..usize::from(packet.headers().payload_at)].to_vec();
    let transport = usize::from(packet.headers().transport_at);
    if packet.headers().source.is_ipv4() {
        headers[2..4].fill(0);
        if headers[6] & 0x40 != 0 {
            headers[4..6].fill(0);
        }
        headers[10..12].fill(0);
    } else {
        headers[4..6].fill(0);
    }
    match packet.headers().transport {
        Transport::Tcp { .. } => {
            headers[transport + 4..transport + 8].fill(0);
            headers[transport + 13] &= !TcpFlags::PSH;
            headers[transport + 16..transport + 18].fill(0);
        }
        _ => headers[transport + 4..transport + 8].fill(0),
    }
    headers
}

/// The same packet with four bytes of no-operation, or an empty destination options header.
fn with_empty_option(bytes: &[u8]) -> Vec<u8> {
    let mut odd = bytes.to_vec();
    if bytes[0] >> 4 == 4 {
        odd[0] += 1;
        odd.splice(20..20, [1; 4]);
        let len = odd.len() as u16;
        odd[2..4].copy_from_slice(&len.to_be_bytes());
    } else {
        let next = std::mem::replace(&mut odd[6], 60);
        odd.splice(40..40, [next, 0, 1, 4, 0, 0, 0, 0]);
        let len = odd.len() as u16 - 40;
        odd[4..6].copy_from_slice(&len.to_be_bytes());
    }
    mend(&mut odd);
    odd
}
