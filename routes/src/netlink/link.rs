use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags,
        LinkInfo, LinkMessage,
    },
};

use super::{Error, Netlink};

/// A network interface as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// Bytes of IP packet.
    pub mtu: u32,
    pub up: bool,
    /// Has a carrier and its queue (`IFF_RUNNING`). A link gets there some time after it and its far end are up, and an
    /// IPv6 address that is added before is not usable until then.
    pub running: bool,
    pub loopback: bool,
    /// The link-layer address; empty on a TUN.
    pub mac: Vec<u8>,
}

impl Netlink {
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let get = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let messages = self.dump(get, "list links").await?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) => Some(Link::from_message(link)),
                _ => None,
            })
            .collect())
    }

    pub async fn link(&self, index: u32) -> Result<Link, Error> {
        let links = self.links().await?;
        links
            .into_iter()
            .find(|link| link.index == index)
            .ok_or_else(|| Error::NoLink(format!("with index {index}")))
    }

    pub async fn link_index(&self, name: &str) -> Result<u32, Error> {
        let links = self.links().await?;
        let link =
            links.into_iter().find(|link| link.name == name).ok_or_else(|| Error::NoLink(name.to_owned()))?;
        Ok(link.index)
    }

    /// Makes a pair of virtual Ethernet interfaces. `peer_namespace` is an open network namespace into which the peer
    /// is born (`IFLA_NET_NS_FD`); this namespace if `None`.
    pub async fn add_veth(
        &self,
        name: &str,
        peer: &str,
        peer_namespace: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        let mut far = LinkMessage::default();
        far.attributes.push(LinkAttribute::IfName(peer.to_owned()));
        far.attributes.extend(peer_namespace.map(|fd| LinkAttribute::NetNsFd(fd.as_raw_fd())));
        let mut near = LinkMessage::default();
        near.attributes.push(LinkAttribute::IfName(name.to_owned()));
        near.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
        ]));
        let action = format!("create the veth pair {name} and {peer}");
        self.create(RouteNetlinkMessage::NewLink(near), &action).await
    }

    /// Makes an Ethernet link that needs nothing but a kind, as ip-link(8) names it. `EOPNOTSUPP`: the kernel does not have that
    /// kind.
    pub async fn add_link(&self, name: &str, kind: &str, mac: [u8; 6]) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Other(kind.to_owned()))]),
        ];
        self.create(RouteNetlinkMessage::NewLink(message), &format!("create the {kind} link {name}")).await
    }

    pub async fn delete_link(&self, index: u32) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelLink(link_message(index));
        self.change(message, &format!("delete link {index}")).await
    }

    pub async fn set_up(&self, index: u32) -> Result<(), Error> {
        self.set_flags(index, LinkFlags::Up).await
    }

    /// The kernel drops the link's routes with this, and its IPv6 addresses.
    pub async fn set_down(&self, index: u32) -> Result<(), Error> {
        self.set_flags(index, LinkFlags::empty()).await
    }

    /// `mtu` in bytes of IP packet. Below 1280 the kernel takes the link's IPv6 away.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), Error> {
        let mut message = link_message(index);
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.change(RouteNetlinkMessage::SetLink(message), &format!("set the MTU {mtu} of link {index}"))
            .await
    }

    /// The kernel gives it no IPv6 address of its own accord (`IN6_ADDR_GEN_MODE_NONE`, linux/if_link.h).
    pub async fn set_no_own_address(&self, index: u32) -> Result<(), Error> {
        let mut message = link_message(index);
        let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]));
        let action = format!("keep link {index} without an IPv6 address of its own");
        self.change(RouteNetlinkMessage::SetLink(message), &action).await
    }

    async fn set_flags(&self, index: u32, flags: LinkFlags) -> Result<(), Error> {
        let mut message = link_message(index);
        message.header.flags = flags;
        message.header.change_mask = LinkFlags::Up;
        let state = if flags.contains(LinkFlags::Up) { "up" } else { "down" };
        self.change(RouteNetlinkMessage::SetLink(message), &format!("set link {index} {state}")).await
    }
}

fn link_message(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

impl Link {
    pub(super) fn from_message(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            running: message.header.flags.contains(LinkFlags::Running),
            loopback: message.header.flags.contains(LinkFlags::Loopback),
            mac: Vec::new(),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(mac) => link.mac = mac,
                _ => {}
            }
        }
        link
    }
}
