use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
};

use super::{Error, Netlink};

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The interface's index.
    pub index: u32,
    /// The address with its network's length.
    pub net: IpNet,
    /// Reaches beyond its link (`RT_SCOPE_UNIVERSE` or `RT_SCOPE_SITE`).
    pub global: bool,
    /// Fit as a source: neither tentative, nor a duplicate, nor deprecated.
    pub usable: bool,
}

impl Netlink {
    /// The addresses of all interfaces, IPv4 and IPv6.
    pub async fn addresses(&self) -> Result<Vec<Address>, Error> {
        let get = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let messages = self.dump(get, "list addresses").await?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewAddress(address) => Address::from_message(&address),
                _ => None,
            })
            .collect())
    }

    /// An IPv6 address is usable at once if the link is up: duplicate address detection is left out (`IFA_F_NODAD`).
    pub async fn add_address(&self, index: u32, net: IpNet) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewAddress(address_message(index, net));
        self.create(message, &format!("add the address {net} to link {index}")).await
    }

    /// Of a single address that reaches no further than its site (`RT_SCOPE_SITE`): the kernel takes it for no other link's source.
    pub async fn add_site_address(&self, index: u32, address: IpAddr) -> Result<(), Error> {
        let mut message = address_message(index, address.into());
        message.header.scope = AddressScope::Site;
        let message = RouteNetlinkMessage::NewAddress(message);
        self.create(message, &format!("add the address {address} to link {index}")).await
    }

    pub async fn delete_address(&self, index: u32, net: IpNet) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelAddress(address_message(index, net));
        self.change(message, &format!("delete the address {net} of link {index}")).await
    }
}

fn address_message(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = net.prefix_len();
    message.attributes = vec![AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr())];
    match net {
        IpNet::V4(_) => message.header.family = AddressFamily::Inet,
        IpNet::V6(_) => {
            message.header.family = AddressFamily::Inet6;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
    }
    message
}

impl Address {
    fn from_message(message: &AddressMessage) -> Option<Self> {
        // On a point-to-point link IFA_ADDRESS is the far end and IFA_LOCAL ours; IPv6 usually has IFA_ADDRESS alone.
        let mut local: Option<IpAddr> = None;
        let mut address: Option<IpAddr> = None;
        let mut flags = AddressFlags::empty();
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => address = Some(*ip),
                AddressAttribute::Flags(bits) => flags = *bits,
                _ => {}
            }
        }
        let unusable = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
        Some(Self {
            index: message.header.index,
            net: IpNet::new(local.or(address)?, message.header.prefix_len).ok()?,
            global: matches!(message.header.scope, AddressScope::Universe | AddressScope::Site),
            usable: !flags.intersects(unusable),
        })
    }
}
