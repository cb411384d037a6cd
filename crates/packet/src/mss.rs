use crate::{Checksum, PacketMut, TcpFlags, protocol};

/// Lowers the MSS that a TCP SYN offers to what fits into `mtu` bytes of IP packet, its checksum with it; all other packets are left as they
/// are, most of them after two comparisons. Checksums must be complete. An IPv6 SYN behind extension headers is left alone.
#[inline]
pub fn clamp_mss(packet: &mut [u8], mtu: u16) {
    if is_syn(packet)
        && let Ok(mut packet) = PacketMut::parse(packet, Checksum::Complete)
    {
        packet.clamp_mss(mtu);
    }
}

/// Of a later fragment it may say so wrongly.
#[inline]
fn is_syn(packet: &[u8]) -> bool {
    let tcp_at = match packet.first() {
        Some(first @ 0x45..=0x4f) if packet.get(9) == Some(&protocol::TCP) => usize::from(first & 0x0f) * 4,
        Some(0x60..=0x6f) if packet.get(6) == Some(&protocol::TCP) => 40,
        _ => return false,
    };
    packet.get(tcp_at + 13).is_some_and(|flags| TcpFlags(*flags).has(TcpFlags::SYN))
}
