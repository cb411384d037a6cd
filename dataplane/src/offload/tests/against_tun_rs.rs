//! The crate `tun-rs` does the same by other means: it copies each segment, and each payload that it joins.

use tun_rs::{VIRTIO_NET_HDR_LEN, VirtioNetHdr, gso_split, handle_gro};

use super::*;

proptest! {
    #[test]
    fn it_takes_super_packets_apart_into_the_same_segments(
        (v6, tcp, options, flags) in (any::<bool>(), any::<bool>(), 0_usize..=40, any::<u8>()),
        payload in prop_oneof![
            9 => proptest::collection::vec(any::<u8>(), 1..9_000),
            1 => proptest::collection::vec(any::<u8>(), 60_000..65_400),
        ],
        size in prop_oneof![1_u16..64, 500_u16..1500, 1500_u16..=u16::MAX],
    ) {
        let whole = super_packet(v6, tcp, options, flags, &payload);
        prop_assert_eq!(split(&whole, size), split_by_tun_rs(&whole, size));
    }

    /// In order and with nothing odd about them; odd ones are held against the rules in `rules`.
    #[test]
    fn it_joins_the_same_packets_into_the_same_bytes(
        (v6, tcp, options) in (any::<bool>(), any::<bool>(), 0_usize..=40),
        sends in proptest::collection::vec((0_u16..4, 1_usize..6_000, 100_u16..1_400), 1..12),
    ) {
        let packets = streams(v6, tcp, options, &sends);
        let ours = coalesce(&packets);
        prop_assert_eq!(&ours, &coalesce_by_tun_rs(&packets));

        let mut apart: Vec<Vec<u8>> = Vec::new();
        for (bytes, size) in &ours {
            apart.extend(size.map_or_else(|| vec![bytes.clone()], |size| split(bytes, size)));
        }
        let by_flow = |packets: &[Vec<u8>]| {
            let mut packets = packets.to_vec();
            packets.sort_by_key(|bytes| source_port(bytes));
            packets
        };
        prop_assert_eq!(by_flow(&apart), by_flow(&packets), "every bit, in each flow's order");
    }
}

/// What senders of several flows hand over in turn, cut into packets. Each flow counts its identifications and sequence numbers on.
fn streams(v6: bool, tcp: bool, options: usize, sends: &[(u16, usize, u16)]) -> Vec<Vec<u8>> {
    let mut sent = [(0_u16, 0xffff_f000_u32); 4];
    let mut packets = Vec::new();
    for &(flow, len, size) in sends {
        let payload: Vec<u8> = (0..len).map(|at| (at * 7 + len) as u8).collect();
        let mut whole = super_packet(v6, tcp, options, TcpFlags::ACK | TcpFlags::PSH, &payload);
        let transport = if v6 { 40 } else { 20 };
        let (id, sequence) = &mut sent[usize::from(flow)];
        whole[transport..transport + 2].copy_from_slice(&(1000 + flow).to_be_bytes());
        if !v6 {
            whole[4..6].copy_from_slice(&id.to_be_bytes());
        }
        if tcp {
            whole[transport + 4..transport + 8].copy_from_slice(&sequence.to_be_bytes());
        }
        let segments = split(&whole, size);
        *id += segments.len() as u16;
        *sequence = sequence.wrapping_add(len as u32);
        packets.extend(segments);
    }
    packets
}

fn source_port(packet: &[u8]) -> u16 {
    Packet::parse(packet).unwrap().five_tuple().unwrap().source.port()
}

fn split_by_tun_rs(packet: &[u8], size: u16) -> Vec<Vec<u8>> {
    let headers = *Packet::parse(packet).unwrap().headers();
    let is_tcp = matches!(headers.transport, Transport::Tcp { .. });
    let hdr = VirtioNetHdr {
        flags: 1,
        gso_type: match (is_tcp, headers.source.is_ipv4()) {
            (true, true) => 1,
            (true, false) => 4,
            (false, _) => 5,
        },
        hdr_len: headers.payload_at,
        gso_size: size,
        csum_start: headers.transport_at,
        csum_offset: if is_tcp { 16 } else { 6 },
    };
    let payload = packet.len() - usize::from(headers.payload_at);
    let count = payload.div_ceil(size.into());
    let mut out = vec![vec![0; usize::from(headers.payload_at) + payload.min(size.into())]; count];
    let mut sizes = vec![0; count];
    let v6 = headers.source.is_ipv6();
    assert_eq!(gso_split(&mut packet.to_vec(), hdr, &mut out, &mut sizes, 0, v6).unwrap(), count);
    out.iter_mut().zip(sizes).for_each(|(bytes, size)| bytes.truncate(size));
    out
}

fn coalesce_by_tun_rs(packets: &[Vec<u8>]) -> Vec<(Vec<u8>, Option<u16>)> {
    let mut records: Vec<Vec<u8>> = packets
        .iter()
        .map(|packet| {
            // It joins as much as the first packet's buffer has room for.
            let mut record = Vec::with_capacity(VIRTIO_NET_HDR_LEN + 65_535);
            record.extend([0; VIRTIO_NET_HDR_LEN]);
            record.extend(packet);
            record
        })
        .collect();
    let mut written = Vec::new();
    handle_gro(
        &mut records,
        VIRTIO_NET_HDR_LEN,
        &mut Default::default(),
        &mut Default::default(),
        true,
        &mut written,
    )
    .unwrap();
    let mut joined = Vec::new();
    for place in written {
        let (header, bytes) = records[place].split_at(VIRTIO_NET_HDR_LEN);
        let header = VirtioNetHdr::decode(header).unwrap();
        joined.push((bytes.to_vec(), (header.gso_type != 0).then_some(header.gso_size)));
    }
    joined
}
