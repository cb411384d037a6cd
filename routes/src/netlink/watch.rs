use std::time::Duration;

use futures::{FutureExt, StreamExt, channel::mpsc::UnboundedReceiver};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{MulticastGroup, sys::SocketAddr};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use super::{Error, Netlink};

/// Changes come in bursts (a new address brings routes): what follows one this soon is told together.
const PAUSE: Duration = Duration::from_millis(20);
/// The kernel counts links from 1.
const NO_LINK: u32 = 0;

/// Changes of links, addresses, routes and rules in one network namespace, or of one link there.
#[derive(Debug)]
pub struct Watch {
    changes: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    connection: JoinHandle<()>,
    /// The ports of those whose changes are not told.
    ignored: Vec<u32>,
    /// The index of the link whose changes alone are told.
    only: Option<u32>,
    /// When a change may be told next.
    next: Instant,
    untold: bool,
}

impl Watch {
    /// Opens a watch in the calling thread's network namespace; what changes from here on is seen.
    /// Must be called within a tokio runtime with I/O and time enabled.
    pub fn new() -> Result<Self, Error> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv6Rule,
        ];
        Self::of(&groups)
    }

    /// As [`Watch::new`], of one link and its IPv4 addresses only: the one that [`Watch::follow`] says.
    pub fn of_link() -> Result<Self, Error> {
        let mut watch = Self::of(&[MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr])?;
        watch.follow(NO_LINK);
        Ok(watch)
    }

    /// What was not told yet counts, if it is about that link.
    pub fn follow(&mut self, index: u32) {
        self.only = Some(index);
    }

    /// What this connection changes is not told, nor what it has changed and was not told yet.
    pub fn ignore(&mut self, netlink: &Netlink) {
        self.ignored.push(netlink.port);
    }

    /// Waits for a change. The first is told at once, since until a removed rule is put back, signaling is in the open;
    /// those that follow within 20 ms are told together after that time. Changes that the socket's buffer had no room
    /// for count as one. Cancelling it loses nothing.
    pub async fn changed(&mut self) -> Result<(), Error> {
        let closed = || Error::Closed { action: "watch for changes".to_owned() };
        while !self.untold {
            let (change, _) = self.changes.next().await.ok_or_else(closed)?;
            self.untold = self.is_to_tell(&change);
        }
        sleep_until(self.next).await;
        while let Some(change) = self.changes.next().now_or_never() {
            change.ok_or_else(closed)?;
        }
        self.untold = false;
        self.next = Instant::now() + PAUSE;
        Ok(())
    }

    fn of(groups: &[MulticastGroup]) -> Result<Self, Error> {
        let (connection, _, changes) = rtnetlink::new_multicast_connection(groups).map_err(Error::Socket)?;
        let connection = tokio::spawn(connection);
        Ok(Self { changes, connection, ignored: Vec::new(), only: None, next: Instant::now(), untold: false })
    }

    fn is_to_tell(&self, change: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
        let is_wanted = match (self.only, &change.payload) {
            (Some(only), NetlinkPayload::InnerMessage(message)) => link_of(message) == Some(only),
            _ => true,
        };
        is_wanted && !self.ignored.contains(&change.header.port_number)
    }
}

fn link_of(message: &RouteNetlinkMessage) -> Option<u32> {
    match message {
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => Some(link.header.index),
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
            Some(address.header.index)
        }
        _ => None,
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
