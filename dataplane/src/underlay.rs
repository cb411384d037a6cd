use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The physical side as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Underlay {
    /// The source address the machine would use towards the internet; `None`: no route.
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
    /// Every address of the physical interfaces.
    pub addresses: Vec<OwnAddress>,
    /// The way to each gateway, in the order of [`Setup::gateways`](crate::Setup::gateways); one that is missing has none.
    pub gateways: Vec<GatewayLeg>,
}

/// An address of a physical interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnAddress {
    pub ip: IpAddr,
    /// The index of its interface, if that has a way out of its own: by that packets under this address leave, whichever interface the routes
    /// prefer. Another network's router takes them for forged. `None`: they leave as the routes say.
    pub device: Option<u32>,
}

/// The way to a gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GatewayLeg {
    /// Whether a route to the gateway exists.
    pub reachable: bool,
    /// The largest packet that the interface or the route towards the gateway takes, in bytes; `None`: not known.
    pub mtu: Option<u32>,
    /// The interface's index, the source address there, and the router, if there is one between; `None`: not known.
    pub by: Option<(u32, IpAddr, Option<IpAddr>)>,
}

impl Underlay {
    /// The usable source address of the same family as `like`.
    pub(crate) fn source_for(&self, like: IpAddr) -> Option<IpAddr> {
        match like {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }

    pub(crate) fn leg(&self, gateway: usize) -> GatewayLeg {
        self.gateways.get(gateway).copied().unwrap_or_default()
    }

    /// Whether the way to a gateway at this address is another one than in `other`.
    pub(crate) fn has_other_way(&self, other: &Self, gateway: u8, to: SocketAddr) -> bool {
        self.leg(gateway.into()) != other.leg(gateway.into())
            || self.source_for(to.ip()) != other.source_for(to.ip())
    }

    /// Whether the machine has this address: a source address may lie on an interface that is not physical, as on the loopback of a routed host.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.ip == address) || self.source_for(address) == Some(address)
    }

    /// By which interface packets under this address leave; `None`: as the routes say.
    pub(crate) fn device_of(&self, address: IpAddr) -> Option<u32> {
        self.addresses.iter().find(|own| own.ip == address)?.device
    }
}
