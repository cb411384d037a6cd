//! Taken apart and put together again, a super-packet is the same in every bit.

use packet::checksum::{Sum, pseudo_header};
use packet::{Checksum, Packet, PacketMut, TcpFlags, Transport};
use proptest::prelude::*;

use super::*;

mod against_tun_rs;
mod edges;
mod rules;

/// A super-packet of one flow with partial checksum, as the TUN gives it.
fn super_packet(v6: bool, tcp: bool, options: usize, flags: u8, payload: &[u8]) -> Vec<u8> {
    let options = if tcp { options / 4 * 4 } else { 0 };
    let transport_len = if tcp { 20 + options } else { 8 } + payload.len();
    let mut bytes = if v6 {
        let mut ip = vec![0x60, 0, 0, 0];
        ip.extend((transport_len as u16).to_be_bytes());
        ip.extend([if tcp { 6 } else { 17 }, 64]);
        ip.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        ip.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        ip
    } else {
        let mut ip = vec![0x45, 0x02];
        ip.extend((20 + transport_len as u16).to_be_bytes());
        ip.extend([0x12, 0x34, 0x40, 0, 64, if tcp { 6 } else { 17 }, 0, 0, 10, 99, 0, 1, 203, 0, 113, 10]);
        let checksum = Sum::default().add_bytes(&ip).checksum();
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        ip
    };
    let transport_at = bytes.len();
    bytes.extend([0x13, 0x88, 0x01, 0xbb]);
    if tcp {
        bytes.extend(0xffff_ff00_u32.to_be_bytes());
        bytes.extend([0, 0, 0, 9, ((5 + options / 4) << 4) as u8, flags, 1, 0, 0, 0, 0, 0]);
        bytes.extend(std::iter::repeat_n(1, options));
    } else {
        bytes.extend((transport_len as u16).to_be_bytes());
        bytes.extend([0, 0]);
    }
    bytes.extend(payload);
    let (source, destination) = {
        let packet = Packet::parse(&bytes).unwrap();
        (packet.headers().source, packet.headers().destination)
    };
    let pseudo = pseudo_header(source, destination, if tcp { 6 } else { 17 }, transport_len as u32).fold();
    let at = transport_at + if tcp { 16 } else { 6 };
    bytes[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
    bytes
}

fn split(packet: &[u8], size: u16) -> Vec<Vec<u8>> {
    let mut buffer = packet.to_vec();
    buffer.extend([0xaa; 15]);
    let headers = *Packet::parse(packet).unwrap().headers();
    let kind = match headers.transport {
        Transport::Tcp { .. } => SegmentKind::Tcp,
        _ => SegmentKind::Udp,
    };
    let mut segments = Segments::new(&mut buffer, &headers, Segmentation { kind, size }).unwrap();
    let mut out = Vec::new();
    while let Some(segment) = segments.next() {
        out.push(segment.room[..segment.length].to_vec());
        segment.room[segment.length..segment.length + 15].fill(0);
    }
    out
}

fn coalesce(packets: &[Vec<u8>]) -> Vec<(Vec<u8>, Option<u16>)> {
    let mut coalescer = Coalescer::default();
    for (slot, bytes) in packets.iter().enumerate() {
        coalescer.add(slot, &Packet::parse(bytes).unwrap(), |slot| &packets[slot]);
    }
    let bundles = coalescer.bundles().iter();
    bundles
        .map(|bundle| {
            let mut joined = packets[bundle.first].clone();
            let size = bundle.finish(&mut joined).map(|segmentation| segmentation.size);
            for slot in coalescer.slots(bundle).skip(1) {
                joined.extend(Packet::parse(&packets[slot]).unwrap().payload());
            }
            (joined, size)
        })
        .collect()
}

/// The packet but for IPv4's identification, and the checksum that covers it.
fn without_id(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[4..6].fill(0);
    bytes[10..12].fill(0);
    bytes
}

fn has_right_checksum(packet: &Packet<'_>) -> bool {
    let headers = packet.headers();
    let transport = &packet.bytes()[usize::from(headers.transport_at)..];
    let pseudo = pseudo_header(headers.source, headers.destination, headers.protocol, transport.len() as u32);
    pseudo.add_bytes(transport).fold() == 0xffff
}

fn complete(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    assert!(PacketMut::parse(&mut bytes, Checksum::Partial).unwrap().complete_checksum());
    bytes
}

proptest! {
    #[test]
    fn what_is_split_and_joined_is_the_same_in_every_bit(
        (v6, tcp, options, push) in (any::<bool>(), any::<bool>(), 0_usize..=40, any::<bool>()),
        payload in proptest::collection::vec(any::<u8>(), 1..20_000),
        size in 400_u16..1500,
    ) {
        let flags = TcpFlags::ACK | if push { TcpFlags::PSH } else { 0 };
        let whole = super_packet(v6, tcp, options, flags, &payload);
        let segments = split(&whole, size);
        prop_assert_eq!(segments.len(), payload.len().div_ceil(usize::from(size)));
        for segment in &segments {
            prop_assert!(has_right_checksum(&Packet::parse(segment).unwrap()));
        }
        let joined = coalesce(&segments);
        prop_assert_eq!(joined.len(), 1);
        let (bytes, joined_size) = &joined[0];
        if segments.len() == 1 {
            prop_assert_eq!(bytes, &complete(&whole));
        } else {
            prop_assert_eq!(bytes, &whole);
            prop_assert_eq!(*joined_size, Some(size));
        }
    }

    #[test]
    fn whatever_comes_nothing_is_lost_and_no_flow_is_reordered(
        script in proptest::collection::vec((0_u16..3, 0_u8..6, 1_usize..5), 1..60),
    ) {
        let mut sequences = [1_u32; 3];
        let mut packets = Vec::new();
        for (flow, kind, len) in script {
            let payload: Vec<u8> = (0..len * 100).map(|at| (packets.len() + at) as u8).collect();
            let flags = TcpFlags::ACK | if kind == 1 { TcpFlags::PSH } else if kind == 2 { TcpFlags::FIN } else { 0 };
            let mut bytes = super_packet(false, true, 0, flags, &payload);
            bytes[20..22].copy_from_slice(&(1000 + flow).to_be_bytes());
            let sequence = &mut sequences[usize::from(flow)];
            if kind == 3 {
                *sequence += 7;
            }
            bytes[24..28].copy_from_slice(&sequence.to_be_bytes());
            *sequence += payload.len() as u32;
            if kind == 4 {
                bytes[1] ^= 0xb8;
                bytes[10..12].fill(0);
                let checksum = Sum::default().add_bytes(&bytes[..20]).checksum();
                bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            let mut bytes = complete(&bytes);
            if kind == 5 {
                bytes[45] ^= 1;
            }
            packets.push(bytes);
        }
        let joined = coalesce(&packets);
        let streams = |packets: &mut dyn Iterator<Item = &[u8]>| {
            let mut streams: [Vec<u8>; 3] = Default::default();
            for bytes in packets {
                let packet = Packet::parse(bytes).unwrap();
                let flow = packet.five_tuple().unwrap().source.port() - 1000;
                streams[usize::from(flow)].extend(packet.payload());
            }
            streams
        };
        let before = streams(&mut packets.iter().map(Vec::as_slice));
        let after = streams(&mut joined.iter().map(|(bytes, _)| bytes.as_slice()));
        prop_assert_eq!(before, after);
        for (bytes, size) in &joined {
            let packet = Packet::parse(bytes).unwrap();
            if let Some(size) = size {
                for segment in split(bytes, *size) {
                    let came = packets.iter().any(|packet| without_id(packet) == without_id(&segment));
                    prop_assert!(came, "a joined packet is made of those that came");
                }
            } else {
                prop_assert!(packets.iter().any(|original| original == packet.bytes()));
            }
        }
    }
}
