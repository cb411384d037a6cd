//! Super-packets as no kernel should make them.

use super::*;

#[test]
fn what_is_no_super_packet_of_that_kind_is_refused() {
    let tcp = super_packet(false, true, 0, TcpFlags::ACK, &[7; 300]);
    let udp = super_packet(true, false, 0, 0, &[7; 300]);
    for (packet, kind, size, taken) in [
        (&tcp, SegmentKind::Tcp, 100, true),
        (&tcp, SegmentKind::Tcp, 0, false),
        (&tcp, SegmentKind::Udp, 100, false),
        (&udp, SegmentKind::Tcp, 100, false),
        (&super_packet(false, true, 0, TcpFlags::ACK, &[]), SegmentKind::Tcp, 100, false),
    ] {
        let headers = *Packet::parse(packet).unwrap().headers();
        let mut buffer = packet.clone();
        assert_eq!(Segments::new(&mut buffer, &headers, Segmentation { kind, size }).is_some(), taken);
        let short = buffer.len() - 1;
        let cut = Segments::new(&mut buffer[..short], &headers, Segmentation { kind, size });
        assert!(cut.is_none(), "the buffer ends before the packet does");
    }
}

/// A segment has to fit its own length fields, or it would be lost behind those before it.
#[test]
fn a_segment_that_no_length_field_can_state_is_refused() {
    let udp = super_packet(true, false, 0, 0, &vec![7; 65_520]);
    let headers = *Packet::parse(&udp).unwrap().headers();
    for (size, taken) in [(65_487, true), (65_488, false), (u16::MAX, false)] {
        let mut buffer = udp.clone();
        let segmentation = Segmentation { kind: SegmentKind::Udp, size };
        assert_eq!(Segments::new(&mut buffer, &headers, segmentation).is_some(), taken, "{size}");
    }
}

#[test]
fn a_size_beyond_the_payload_leaves_one_packet_as_it_is() {
    for v6 in [false, true] {
        for tcp in [false, true] {
            let whole = super_packet(v6, tcp, 12, TcpFlags::ACK | TcpFlags::FIN, &[7; 300]);
            for size in [300, 301, u16::MAX] {
                assert_eq!(split(&whole, size), [complete(&whole)]);
            }
        }
    }
}

/// RFC 768: 0 would say that there is none.
#[test]
fn a_udp_checksum_that_comes_out_as_0_is_written_as_all_ones() {
    for v6 in [false, true] {
        let mut payload = vec![0; 200];
        let first = split(&super_packet(v6, false, 0, 0, &payload), 100).remove(0);
        let at = first.len() - 102;
        payload[..2].copy_from_slice(&first[at..at + 2]);
        let segments = split(&super_packet(v6, false, 0, 0, &payload), 100);
        assert_eq!(segments[0][at..at + 2], [0xff, 0xff]);
        assert!(has_right_checksum(&Packet::parse(&segments[0]).unwrap()));
        let joined = coalesce(&segments);
        assert_eq!(joined.len(), 1);
        assert_eq!(split(&joined[0].0, 100), segments);
    }
}

/// RFC 3168 §6.1.2 for CWR; ECE is repeated until it is answered.
#[test]
fn each_flag_is_in_the_segments_that_it_belongs_to() {
    const ECE: u8 = 0x40;
    const CWR: u8 = 0x80;
    let flags = TcpFlags::ACK | TcpFlags::PSH | TcpFlags::FIN | ECE | CWR;
    let segments = split(&super_packet(false, true, 20, flags, &[7; 300]), 100);
    let said: Vec<u8> = segments.iter().map(|bytes| bytes[33]).collect();
    assert_eq!(
        said,
        [TcpFlags::ACK | ECE | CWR, TcpFlags::ACK | ECE, TcpFlags::ACK | ECE | TcpFlags::PSH | TcpFlags::FIN]
    );
    assert_eq!(coalesce(&segments).len(), 3, "none of them joins");
}

#[test]
fn extension_headers_are_repeated_and_counted() {
    let mut whole = super_packet(true, false, 0, 0, &[7; 250]);
    let next = std::mem::replace(&mut whole[6], 60);
    whole.splice(40..40, [next, 0, 1, 4, 0, 0, 0, 0]);
    let len = whole.len() as u16 - 40;
    whole[4..6].copy_from_slice(&len.to_be_bytes());
    for (segment, payload) in split(&whole, 100).iter().zip([100, 100, 50]) {
        let packet = Packet::parse(segment).unwrap();
        assert_eq!((packet.headers().transport_at, packet.payload().len()), (48, payload));
        assert!(has_right_checksum(&packet));
    }
}

proptest! {
    /// Sealing pads a segment where it lies, over what comes behind it.
    #[test]
    fn padding_never_reaches_a_later_segment(
        v6 in any::<bool>(),
        payload in proptest::collection::vec(any::<u8>(), 1..600),
        size in 1_u16..60,
    ) {
        let whole = super_packet(v6, false, 0, 0, &payload);
        let sent: Vec<u8> = split(&whole, size)
            .iter()
            .flat_map(|segment| Packet::parse(segment).unwrap().payload().to_vec())
            .collect();
        prop_assert_eq!(sent, payload);
    }
}
