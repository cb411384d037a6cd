use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteScope, RouteType},
};

use super::{Error, Netlink, PROTOCOL_STATIC, TABLE_MAIN};

/// What a route does with a packet (`RTN_*`, linux/rtnetlink.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Unicast,
    Local,
    /// Dropped in silence; the sender's call fails with EINVAL.
    Blackhole,
    /// Refused: EACCES, or ICMP administratively prohibited to others.
    Prohibit,
    /// As if the table held nothing: the next rule is asked.
    Throw,
}

/// A route with at most one next hop.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    pub prefix: IpNet,
    pub table: u32,
    pub kind: Kind,
    /// Smaller is asked first. 0 leaves the choice to the kernel (IPv6: 1024).
    pub metric: u32,
    pub via: Option<IpAddr>,
    /// The index of the interface.
    pub device: Option<u32>,
    /// The source address that sockets without one are given.
    pub source: Option<IpAddr>,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
}

/// A route of whatever kind.
#[derive(Clone, Debug)]
pub(crate) struct AnyRoute {
    pub table: u32,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
    /// `None`: it is of a kind that [`Kind`] does not name.
    pub route: Option<Route>,
    message: RouteMessage,
}

/// Where a packet to some destination would go now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The index of the interface.
    pub device: u32,
    pub via: Option<IpAddr>,
    /// The source address that a socket without one would be given.
    pub source: Option<IpAddr>,
    /// The route's own MTU in bytes, where it has one.
    pub mtu: Option<u32>,
}

impl Route {
    /// A unicast route of the main table; the rest by struct update.
    pub fn new(prefix: IpNet) -> Self {
        Self {
            prefix: prefix.trunc(),
            table: TABLE_MAIN,
            kind: Kind::Unicast,
            metric: 0,
            via: None,
            device: None,
            source: None,
            protocol: PROTOCOL_STATIC,
        }
    }
}

impl Netlink {
    /// Fails with EEXIST if the table has a route of this prefix and metric.
    pub async fn add_route(&self, route: &Route) -> Result<(), Error> {
        let mut message = route.to_message();
        message.header.protocol = route.protocol.into();
        message.header.scope = match route.kind {
            Kind::Local => RouteScope::Host,
            Kind::Unicast if route.via.is_none() && route.prefix.addr().is_ipv4() => RouteScope::Link,
            _ => RouteScope::Universe,
        };
        self.create(RouteNetlinkMessage::NewRoute(message), &format!("add the route {route}")).await
    }

    pub async fn delete_route(&self, route: &Route) -> Result<(), Error> {
        let mut message = route.to_message();
        // RT_SCOPE_NOWHERE matches a route of any scope (net/ipv4/fib_trie.c, fib_table_delete).
        message.header.scope = RouteScope::NoWhere;
        self.change(RouteNetlinkMessage::DelRoute(message), &format!("delete the route {route}")).await
    }

    /// The IPv4 and IPv6 routes of one table, of the kinds that [`Kind`] names.
    pub async fn routes(&self, table: u32) -> Result<Vec<Route>, Error> {
        let mut routes = self.all_routes().await?;
        routes.retain(|route| route.table == table);
        Ok(routes)
    }

    /// The IPv4 and IPv6 routes of all tables, of the kinds that [`Kind`] names.
    pub async fn all_routes(&self) -> Result<Vec<Route>, Error> {
        Ok(self.any_routes().await?.into_iter().filter_map(|any| any.route).collect())
    }

    pub(crate) async fn any_routes(&self) -> Result<Vec<AnyRoute>, Error> {
        let get = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        let messages = self.dump(get, "list routes").await?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(route) => Some(AnyRoute::from_message(route)),
                _ => None,
            })
            .collect())
    }

    /// This one, and none that is like it.
    pub(crate) async fn delete_any_route(&self, any: &AnyRoute) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelRoute(any.message.clone());
        self.change(message, &format!("delete the route {any}")).await
    }

    /// Asks the kernel where a packet with this mark would go (`RTM_GETROUTE`). `None` if nowhere: no route, or a
    /// route that refuses.
    pub async fn route_to(&self, destination: IpAddr, mark: u32) -> Result<Option<Hop>, Error> {
        let answer = self.look_up(question(destination, mark), destination).await?;
        Ok(answer.and_then(|route| Hop::from_message(&route)))
    }

    /// Whether a packet with this mark that has to leave by this interface finds a route there, preferred or not.
    pub async fn leads_to(&self, destination: IpAddr, mark: u32, device: u32) -> Result<bool, Error> {
        let mut message = question(destination, mark);
        message.attributes.push(RouteAttribute::Oif(device));
        // Of itself the kernel takes whoever no route leads to for a neighbour (net/ipv4/route.c, ip_route_output_key_hash_rcu).
        message.header.flags |= RouteFlags::FibMatch;
        let answer = self.look_up(message, destination).await?;
        Ok(answer.is_some_and(|route| route.header.kind == RouteType::Unicast))
    }

    async fn look_up(
        &self,
        question: RouteMessage,
        destination: IpAddr,
    ) -> Result<Option<RouteMessage>, Error> {
        let action = format!("look up the route to {destination}");
        let answers = match self.request(RouteNetlinkMessage::GetRoute(question), 0, &action).await {
            Err(error) if error.errno().is_some_and(refuses) => return Ok(None),
            answers => answers?,
        };
        Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        }))
    }
}

fn question(destination: IpAddr, mark: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination);
    message.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
    message.attributes = vec![RouteAttribute::Destination(destination.into()), RouteAttribute::Mark(mark)];
    message
}

/// What a lookup answers where it ends in no route, in one that refuses (EINVAL is a blackhole's), at an interface that is gone, or in a
/// family that the kernel does not have (EOPNOTSUPP: nobody answers for it, as for IPv6 with `ipv6.disable=1`).
fn refuses(errno: i32) -> bool {
    [
        libc::ENETUNREACH,
        libc::EHOSTUNREACH,
        libc::EACCES,
        libc::EINVAL,
        libc::EAFNOSUPPORT,
        libc::EOPNOTSUPP,
        libc::ENODEV,
    ]
    .contains(&errno)
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

impl Route {
    fn to_message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family(self.prefix.addr());
        message.header.destination_prefix_length = self.prefix.prefix_len();
        message.header.kind = match self.kind {
            Kind::Unicast => RouteType::Unicast,
            Kind::Local => RouteType::Local,
            Kind::Blackhole => RouteType::BlackHole,
            Kind::Prohibit => RouteType::Prohibit,
            Kind::Throw => RouteType::Throw,
        };
        // The header's table has 8 bits; RTA_TABLE has precedence over it.
        message.attributes = vec![RouteAttribute::Table(self.table)];
        if self.prefix.prefix_len() > 0 {
            message.attributes.push(RouteAttribute::Destination(self.prefix.addr().into()));
        }
        if self.metric > 0 {
            message.attributes.push(RouteAttribute::Priority(self.metric));
        }
        message.attributes.extend(self.via.map(|via| RouteAttribute::Gateway(via.into())));
        message.attributes.extend(self.device.map(RouteAttribute::Oif));
        message.attributes.extend(self.source.map(|source| RouteAttribute::PrefSource(source.into())));
        message
    }

    fn from_message(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let unspecified = match header.address_family {
            AddressFamily::Inet => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
            AddressFamily::Inet6 => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
            _ => return None,
        };
        let kind = match header.kind {
            RouteType::Unicast => Kind::Unicast,
            RouteType::Local => Kind::Local,
            RouteType::BlackHole => Kind::Blackhole,
            RouteType::Prohibit => Kind::Prohibit,
            RouteType::Throw => Kind::Throw,
            _ => return None,
        };
        let mut route = Self {
            table: header.table.into(),
            kind,
            protocol: header.protocol.into(),
            ..Self::new(unspecified)
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => {
                    route.prefix = IpNet::new(ip(address)?, header.destination_prefix_length).ok()?;
                }
                RouteAttribute::Table(table) => route.table = *table,
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::Gateway(address) => route.via = ip(address),
                // The kernel hangs IPv6 routes that refuse on lo.
                RouteAttribute::Oif(index) if matches!(kind, Kind::Unicast | Kind::Local) => {
                    route.device = Some(*index);
                }
                RouteAttribute::PrefSource(address) => route.source = ip(address),
                _ => {}
            }
        }
        Some(route)
    }
}

impl AnyRoute {
    fn from_message(message: RouteMessage) -> Self {
        Self {
            table: table_of(&message),
            protocol: message.header.protocol.into(),
            route: Route::from_message(&message),
            message,
        }
    }
}

impl Hop {
    fn from_message(message: &RouteMessage) -> Option<Self> {
        if !matches!(message.header.kind, RouteType::Unicast | RouteType::Local) {
            return None;
        }
        let mut hop = Self { device: 0, via: None, source: None, mtu: None };
        let mut expires = false;
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => hop.device = *index,
                RouteAttribute::Gateway(address) => hop.via = ip(address),
                RouteAttribute::PrefSource(address) => hop.source = ip(address),
                RouteAttribute::Metrics(metrics) => {
                    hop.mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                RouteAttribute::CacheInfo(cached) => expires = cached.expires != 0,
                _ => {}
            }
        }
        // The size of a path, which a router has told the kernel, is nothing that is configured.
        hop.mtu = hop.mtu.filter(|_| !expires);
        (hop.device != 0).then_some(hop)
    }
}

pub(super) fn table_of(message: &RouteMessage) -> u32 {
    let table = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.unwrap_or(message.header.table.into())
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

impl fmt::Display for AnyRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.route {
            Some(route) => route.fmt(f),
            None => write!(f, "of kind {} in table {}", u8::from(self.message.header.kind), self.table),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Unicast => {}
            Kind::Local => f.write_str("local ")?,
            Kind::Blackhole => f.write_str("blackhole ")?,
            Kind::Prohibit => f.write_str("prohibit ")?,
            Kind::Throw => f.write_str("throw ")?,
        }
        write!(f, "{}", self.prefix)?;
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        if let Some(device) = self.device {
            write!(f, " on link {device}")?;
        }
        write!(f, " in table {}", self.table)?;
        if self.metric > 0 {
            write!(f, " with metric {}", self.metric)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_family_that_the_kernel_does_not_have_leads_nowhere() {
        let netlink = Netlink::new().unwrap();
        let mut message = RouteMessage::default();
        // As absent as IPv6 is with `ipv6.disable=1`.
        message.header.address_family = AddressFamily::Appletalk;
        let error = netlink.request(RouteNetlinkMessage::GetRoute(message), 0, "ask").await.unwrap_err();
        assert!(error.errno().is_some_and(refuses), "{error}");
    }
}
