use std::net::IpAddr;

use ipnet::IpNet;

/// Which peer an address belongs to: the longest prefix wins.
#[derive(Debug, Default)]
pub(crate) struct AllowedIps(Vec<(IpNet, usize)>);

impl AllowedIps {
    pub(crate) fn new(mut prefixes: Vec<(IpNet, usize)>) -> Self {
        prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.prefix_len()));
        Self(prefixes)
    }

    pub(crate) fn peer(&self, address: IpAddr) -> Option<usize> {
        self.0.iter().find(|(prefix, _)| prefix.contains(&address)).map(|(_, peer)| *peer)
    }

    /// What of a peer's is one address each.
    pub(crate) fn addresses(&self, peer: usize) -> impl Iterator<Item = IpAddr> {
        let own = self.0.iter().filter(move |(_, whose)| *whose == peer);
        own.filter(|(prefix, _)| prefix.prefix_len() == prefix.max_prefix_len())
            .map(|(prefix, _)| prefix.addr())
    }
}

/// The source address of an IP packet.
pub(crate) fn source(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::from(*packet.get(12..)?.first_chunk::<4>()?)),
        6 => Some(IpAddr::from(*packet.get(8..)?.first_chunk::<16>()?)),
        _ => None,
    }
}
