use packet::Packet;

use crate::offload::Segmentation;
use crate::path_mtu::LEAST_LINK_MTU;

/// Don't fragment, in an IPv4 header's seventh byte (RFC 791 §3.1).
pub(crate) const DF: u8 = 0x40;

/// What the sender of a packet, or of a super-packet, is to be told that the tunnel carries, in bytes; `None`: it fits.
///
/// What nobody may fragment has to fit into `mtu`. The rest is sent in outer fragments up to what the TUN takes at the least: IPv4 without DF,
/// and IPv6, whose senders need not know of less (RFC 8200 §5).
pub(crate) fn too_big(packet: &Packet<'_>, segmentation: Option<Segmentation>, mtu: u16) -> Option<u16> {
    let headers = packet.headers();
    let largest = segmentation.map_or(headers.len, |segmentation| {
        headers.len.min(u32::from(headers.payload_at) + u32::from(segmentation.size))
    });
    if largest <= mtu.into() {
        return None;
    }
    let limit = if has_df(packet) { mtu } else { mtu.max(LEAST_LINK_MTU) };
    (largest > limit.into()).then_some(limit)
}

fn has_df(packet: &Packet<'_>) -> bool {
    matches!(packet.bytes(), [0x40..=0x4f, _, _, _, _, _, flags, ..] if flags & DF != 0)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use packet::{Tos, build};

    use super::*;
    use crate::offload::SegmentKind;

    fn udp(v4: bool, df: bool, len: usize) -> Vec<u8> {
        let ends = if v4 { ["192.0.2.1:1", "192.0.2.2:2"] } else { ["[2001:db8::1]:1", "[2001:db8::2]:2"] };
        let [from, to] = ends.map(|end| end.parse::<SocketAddr>().unwrap());
        let mut packet = vec![0; len];
        let headers = build::udp_header_len(&to);
        assert!(build::udp_header(&mut packet[..headers], from, to, Tos(0), 64, len - headers));
        if v4 && !df {
            packet[6] = 0;
        }
        packet
    }

    #[test]
    fn only_what_nobody_may_fragment_has_to_fit_a_path_below_1280() {
        for (v4, df, len, mtu, told) in [
            (true, true, 1220, 1220, None),
            (true, true, 1221, 1220, Some(1220)),
            (true, false, 1280, 1220, None),
            (true, false, 1281, 1220, Some(1280)),
            (false, false, 1280, 1200, None),
            (false, false, 1281, 1200, Some(1280)),
            (false, false, 1301, 1300, Some(1300)),
        ] {
            let bytes = udp(v4, df, len);
            let packet = Packet::parse(&bytes).unwrap();
            assert_eq!(too_big(&packet, None, mtu), told, "{v4} {df} {len} {mtu}");
        }
    }

    #[test]
    fn of_a_super_packet_its_segments_have_to_fit() {
        let bytes = udp(true, true, 28 + 5000);
        let packet = Packet::parse(&bytes).unwrap();
        for (size, told) in [(1392, None), (1393, Some(1420))] {
            let segmentation = Segmentation { kind: SegmentKind::Udp, size };
            assert_eq!(too_big(&packet, Some(segmentation), 1420), told);
        }
    }
}
