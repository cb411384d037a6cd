//! The physical side: what carries the tunnel and the bypass.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use policy::Captured;

use crate::{
    Error, dns,
    netlink::{Link, Netlink},
};

/// Addresses that are nobody's (RFC 5737, RFC 3849): their route is the default route.
const ANYWHERE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const ANYWHERE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// The physical side as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// The way to each gateway, in the order in which they were given; `None`: there is none.
    pub gateways: Vec<Option<Leg>>,
    /// The default way out over IPv4.
    pub v4: Option<Leg>,
    /// The default way out over IPv6.
    pub v6: Option<Leg>,
    /// All addresses of physical interfaces that reach beyond their link and are fit as a source.
    pub addresses: Vec<PhysicalAddress>,
}

/// A way out for marked packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leg {
    /// The source address that a socket without one is given.
    pub source: IpAddr,
    pub device: String,
    /// The device's index.
    pub index: u32,
    /// Bytes of IP packet: the smaller of the device's and the route's.
    pub mtu: u32,
    /// The next hop; `None` if the destination is a neighbour.
    pub via: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhysicalAddress {
    pub device: String,
    /// The device's index.
    pub index: u32,
    /// The address with its network's length.
    pub net: IpNet,
    /// Whether the device has a way out of its own, be that the one that is preferred or not.
    pub leads_out: bool,
}

/// What the captured prefixes get in the way of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    #[error(
        "the tunnel's endpoint {endpoint} is inside {prefix}, which is captured; take it out of the set or use an \
         endpoint outside"
    )]
    Endpoint { endpoint: IpAddr, prefix: IpNet },
    #[error(
        "the network {network} of {device} overlaps {prefix}, which is captured: its neighbours there cannot be reached \
         directly; use another network, or take it out of the set"
    )]
    Network { network: IpNet, device: String, prefix: IpNet },
}

/// Asks for the physical side now. `mark` is our sockets' fwmark, `gateways` are the gateways' addresses where they are known, `tun` is the
/// TUN's index if there is one.
pub async fn underlay(
    netlink: &Netlink,
    mark: u32,
    gateways: &[Option<IpAddr>],
    tun: Option<u32>,
) -> Result<Underlay, Error> {
    let mut links = netlink.links().await?;
    links.retain(|link| !link.loopback && Some(link.index) != tun && !dns::is_our_link(link));
    let mut legs = Vec::with_capacity(gateways.len());
    for gateway in gateways {
        legs.push(match gateway {
            Some(gateway) => leg(netlink, &links, *gateway, mark).await?,
            None => None,
        });
    }
    Ok(Underlay {
        gateways: legs,
        v4: leg(netlink, &links, ANYWHERE_V4, mark).await?,
        v6: leg(netlink, &links, ANYWHERE_V6, mark).await?,
        addresses: physical(netlink, &links, mark).await?,
    })
}

/// An endpoint inside a captured prefix is an error, a network that overlaps one a warning.
pub fn conflicts(captured: &[Captured], endpoints: &[IpAddr], underlay: &Underlay) -> Vec<Conflict> {
    let endpoints_captured = endpoints.iter().flat_map(|endpoint| {
        captured
            .iter()
            .filter(move |captured| captured.prefix.contains(endpoint))
            .map(move |captured| Conflict::Endpoint { endpoint: *endpoint, prefix: captured.prefix })
    });
    let networks = underlay.addresses.iter().flat_map(|address| {
        let network = address.net.trunc();
        captured
            .iter()
            .filter(move |captured| {
                network.prefix_len() < network.max_prefix_len() && overlap(network, captured.prefix)
            })
            .map(move |captured| Conflict::Network {
                network,
                device: address.device.clone(),
                prefix: captured.prefix,
            })
    });
    endpoints_captured.chain(networks).collect()
}

async fn leg(
    netlink: &Netlink,
    links: &[Link],
    destination: IpAddr,
    mark: u32,
) -> Result<Option<Leg>, Error> {
    let Some(hop) = netlink.route_to(destination, mark).await? else { return Ok(None) };
    let device = links.iter().find(|link| link.index == hop.device);
    let (Some(link), Some(source)) = (device, hop.source) else { return Ok(None) };
    Ok(Some(Leg {
        source,
        device: link.name.clone(),
        index: link.index,
        mtu: hop.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
        via: hop.via,
    }))
}

async fn physical(netlink: &Netlink, links: &[Link], mark: u32) -> Result<Vec<PhysicalAddress>, Error> {
    let mut ways = HashMap::new();
    let mut found = Vec::new();
    for address in netlink.addresses().await?.into_iter().filter(|address| address.global && address.usable) {
        let Some(link) = links.iter().find(|link| link.index == address.index && link.up) else { continue };
        let anywhere = if address.net.addr().is_ipv4() { ANYWHERE_V4 } else { ANYWHERE_V6 };
        let leads_out = match ways.get(&(link.index, anywhere)) {
            Some(leads_out) => *leads_out,
            None => link.running && netlink.leads_to(anywhere, mark, link.index).await?,
        };
        ways.insert((link.index, anywhere), leads_out);
        found.push(PhysicalAddress {
            device: link.name.clone(),
            index: link.index,
            net: address.net,
            leads_out,
        });
    }
    Ok(found)
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}
