use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use packet::{Dscp, Tos, protocol};
use socket2::{Domain, Protocol, Socket, Type};

/// More than the kernel says about one route.
const ANSWER: usize = 4096;

/// Asks the kernel where packets go, on whichever thread: the answer is there when the question was sent.
pub(crate) struct Routes {
    netlink: Socket,
    /// For questions about interfaces.
    any: UdpSocket,
    mark: u32,
    /// The last question's number.
    asked: u32,
}

/// The way of packets to one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    /// The interface's index.
    pub(crate) interface: u32,
    /// The router; `None`: the destination is a neighbour.
    pub(crate) via: Option<IpAddr>,
    /// Largest packet, IP header included.
    pub(crate) mtu: u32,
}

impl Routes {
    /// In this thread's network namespace, for packets with this mark.
    pub(crate) fn open(mark: u32) -> io::Result<Self> {
        let kind = Type::from(libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
        let netlink =
            Socket::new_raw(Domain::from(libc::AF_NETLINK), kind, Some(Protocol::from(libc::NETLINK_ROUTE)))?;
        Ok(Self { netlink, any: UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?, mark, asked: 0 })
    }

    /// Of a packet from `source`, which is this machine's, with this DSCP: rules may go by it. `device`: as of
    /// [`leave_by`](super::sockets::leave_by). An error: nowhere (`RTM_GETROUTE`, rtnetlink(7)). Ports of 0 say nothing about the protocol.
    pub(crate) fn to(
        &mut self,
        destination: SocketAddr,
        source: SocketAddr,
        device: Option<u32>,
        dscp: Dscp,
    ) -> io::Result<Hop> {
        let mut message = RouteMessage::default();
        let (family, length) = match destination.ip() {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        message.header.address_family = family;
        message.header.destination_prefix_length = length;
        message.header.source_prefix_length = length;
        message.header.tos = Tos::default().with_dscp(dscp).0;
        message.attributes =
            vec![RouteAttribute::Destination(address(destination.ip())), RouteAttribute::Mark(self.mark)];
        message.attributes.extend(device.map(RouteAttribute::Oif));
        // With a source the interface would be a mere wish over IPv6.
        if device.is_none() || destination.is_ipv4() {
            message.attributes.push(RouteAttribute::Source(address(source.ip())));
        }
        if destination.port() != 0 {
            message.attributes.extend([
                RouteAttribute::IpProto(protocol::UDP),
                RouteAttribute::Sport(source.port()),
                RouteAttribute::Dport(destination.port()),
            ]);
        }
        let answer = self.ask(RouteNetlinkMessage::GetRoute(message))?;
        self.hop(&answer).ok_or_else(|| io::Error::from(io::ErrorKind::HostUnreachable))
    }

    fn ask(&mut self, question: RouteNetlinkMessage) -> io::Result<RouteMessage> {
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(question));
        self.asked = self.asked.wrapping_add(1);
        message.header.flags = NLM_F_REQUEST;
        message.header.sequence_number = self.asked;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.netlink.send(&bytes)?;

        let mut answer = [0; ANSWER];
        let payload = loop {
            let length = (&self.netlink).read(&mut answer)?;
            let answer = answer.get(..length).unwrap_or_default();
            let answer =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(answer).map_err(io::Error::other)?;
            // Whatever else is there answers a question given up on.
            if answer.header.sequence_number == self.asked {
                break answer.payload;
            }
        };
        match payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => Ok(route),
            NetlinkPayload::Error(error) => Err(error.to_io()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn hop(&self, route: &RouteMessage) -> Option<Hop> {
        if route.header.kind != RouteType::Unicast {
            return None;
        }
        let mut hop = Hop { interface: 0, via: None, mtu: u32::MAX };
        // A path's size that some router has told, or somebody in its name.
        let is_cached = route
            .attributes
            .iter()
            .any(|attribute| matches!(attribute, RouteAttribute::CacheInfo(cached) if cached.expires != 0));
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(interface) => hop.interface = *interface,
                RouteAttribute::Gateway(via) => hop.via = ip(via),
                RouteAttribute::Via(RouteVia::Inet6(via)) => hop.via = Some((*via).into()),
                RouteAttribute::Via(RouteVia::Inet(via)) => hop.via = Some((*via).into()),
                RouteAttribute::Metrics(metrics) if !is_cached => {
                    for metric in metrics {
                        if let RouteMetric::Mtu(mtu) = metric {
                            hop.mtu = *mtu;
                        }
                    }
                }
                _ => {}
            }
        }
        hop.mtu = hop.mtu.min(self.mtu_of(hop.interface)?);
        Some(hop)
    }

    fn mtu_of(&self, interface: u32) -> Option<u32> {
        // SAFETY: all-zero bytes are a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes a name of at most IF_NAMESIZE bytes, terminator included, as long as this field is, and then the
        // interface's MTU into the union beside it.
        let found = unsafe {
            !libc::if_indextoname(interface, request.ifr_name.as_mut_ptr()).is_null()
                && libc::ioctl(self.any.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) == 0
        };
        // SAFETY: the call filled this member of the union.
        found.then(|| unsafe { request.ifr_ifru.ifru_mtu }.unsigned_abs())
    }
}

fn address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use netlink_packet_route::route::RouteCacheInfo;

    use super::*;

    #[test]
    fn what_leads_to_this_machine_is_no_way_out() {
        let mut routes = Routes::open(0).unwrap();
        for local in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let (there, here) = (SocketAddr::new(local, 20_000), SocketAddr::new(local, 5_000));
            let error = routes.to(there, here, None, Dscp::DEFAULT).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::HostUnreachable, "{local}: {error}");
        }
    }

    #[test]
    fn the_size_of_a_path_that_a_router_has_told_is_not_the_routes() {
        let routes = Routes::open(0).unwrap();
        let mut message = RouteMessage::default();
        message.header.kind = RouteType::Unicast;
        // The loopback interface has it everywhere.
        message.attributes =
            vec![RouteAttribute::Oif(1), RouteAttribute::Metrics(vec![RouteMetric::Mtu(600)])];
        assert_eq!(routes.hop(&message).unwrap().mtu, 600);
        // `struct rta_cacheinfo` (linux/rtnetlink.h), whose third word is when it expires.
        let mut cached = [0; 32];
        cached[8] = 1;
        message.attributes.push(RouteAttribute::CacheInfo(RouteCacheInfo::parse(&cached).unwrap()));
        assert!(routes.hop(&message).unwrap().mtu > 600);
    }

    #[test]
    fn an_address_that_is_not_ours_is_no_source() {
        let documentation = SocketAddr::from(([192, 0, 2, 1], 0));
        assert!(Routes::open(0).unwrap().to(documentation, documentation, None, Dscp::EF).is_err());
    }
}
