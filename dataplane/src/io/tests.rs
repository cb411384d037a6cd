//! What the TUN hands over, whole and not.

use packet::Checksum;

use super::tun::{Record, VNET_HEADER};
use crate::offload::{SegmentKind, Segmentation};

/// `struct virtio_net_hdr` (linux/virtio_net.h) in front of four bytes.
fn record(flags: u8, gso: u8, size: u16) -> Vec<u8> {
    let [low, high] = size.to_ne_bytes();
    vec![flags, gso, 0, 0, low, high, 0, 0, 0, 0, 0x45, 0, 0, 4]
}

#[test]
fn a_record_says_what_is_left_to_do() {
    for (flags, gso, checksum, kind) in [
        (0, 0, Checksum::Complete, None),
        (1, 0, Checksum::Partial, None),
        // DATA_VALID: somebody has looked at it already.
        (2, 0, Checksum::Complete, None),
        (1, 1, Checksum::Partial, Some(SegmentKind::Tcp)),
        (1, 4, Checksum::Partial, Some(SegmentKind::Tcp)),
        (1, 0x81, Checksum::Partial, Some(SegmentKind::Tcp)),
        (1, 0x84, Checksum::Partial, Some(SegmentKind::Tcp)),
        (1, 5, Checksum::Partial, Some(SegmentKind::Udp)),
    ] {
        let mut bytes = record(flags, gso, 1200);
        let record = Record::split(&mut bytes).unwrap();
        assert_eq!(record.checksum, checksum);
        assert_eq!(record.segmentation, kind.map(|kind| Segmentation { kind, size: 1200 }));
        assert_eq!(record.packet, [0x45, 0, 0, 4]);
    }
}

#[test]
fn what_is_cut_short_or_was_not_asked_for_is_no_record() {
    for length in 0..VNET_HEADER {
        assert!(Record::split(&mut record(0, 0, 0)[..length]).is_none());
    }
    assert!(
        Record::split(&mut record(0, 0, 0)[..VNET_HEADER]).is_some_and(|record| record.packet.is_empty())
    );
    // UFO, which nobody offered, and types that are not there yet.
    for gso in [2, 3, 6, 0x20, 0x40, 0x7f, 0xff] {
        assert!(Record::split(&mut record(1, gso, 1200)).is_none(), "{gso}");
    }
}
