use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether a name behind the tunnel may have this address. A name that leads to the machine itself or into its own network
/// would make the browser a bridge into it (DNS rebinding). What a name was to have all along is another matter.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    // 0.0.0.0/8 is "this network" (RFC 791), 240.0.0.0/4 reserved, with the broadcast address (RFC 1112 §4).
    let is_reserved = first == 0 || first >= 240;
    // RFC 6598
    let is_shared = first == 100 && second & 0xc0 == 64;
    !(is_reserved
        || is_shared
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast())
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let bits = address.to_bits();
    // ::/96, with :: and ::1, and ::ffff:0:0/96 (RFC 4291 §2.5.5).
    if matches!(bits >> 32, 0 | 0xffff) {
        return false;
    }
    // 64:ff9b::/96, NAT64, leads to the IPv4 address in its last 32 bits (RFC 6052).
    if bits >> 32 == 0x0064_ff9b << 64 {
        return is_public_v4(Ipv4Addr::from_bits(bits as u32));
    }
    // 64:ff9b:1::/48 is for a site's own NAT64 (RFC 8215), fec0::/10 was site-local (RFC 3879).
    let is_local = bits >> 80 == 0x0064_ff9b_0001 || bits >> 118 == 0xfec0 >> 6;
    !(is_local || address.is_unique_local() || address.is_unicast_link_local() || address.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_taken() {
        let refused = [
            "0.0.0.0",
            "0.1.2.3",
            "10.1.2.3",
            "127.0.0.1",
            "127.51.82.53",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "100.127.255.255",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::10.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:203.0.113.1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
        ];
        let taken = [
            "203.0.113.10",
            "198.18.0.2",
            "52.129.96.1",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.0.1",
            "172.32.0.1",
            "1.1.1.1",
            "223.255.255.255",
            "2600:1f14::1",
            "2001:db8::1",
            "64:ff9b::203.0.113.1",
        ];
        for text in refused {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        for text in taken {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }
}
