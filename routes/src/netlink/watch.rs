use std::time::Duration;

use futures::{FutureExt, StreamExt, channel::mpsc::UnboundedReceiver};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{MulticastGroup, sys::SocketAddr};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::{Error, Netlink, route::table_of};
use crate::{
    plan::{self, PROTOCOL},
    process::Process,
};

/// Changes come in bursts (a new address brings routes): what follows one this soon is told together.
const PAUSE: Duration = Duration::from_millis(20);
/// The kernel counts links from 1.
const NO_LINK: u32 = 0;

/// A notice, and whose.
type Heard = (NetlinkMessage<RouteNetlinkMessage>, SocketAddr);

/// Changes of links, addresses, routes and rules in one network namespace, or of one link there.
#[derive(Debug)]
pub struct Watch {
    changes: UnboundedReceiver<Heard>,
    connection: JoinHandle<()>,
    /// The ports of those whose changes are not told.
    ignored: Vec<u32>,
    /// The index of the link whose changes alone are told.
    only: Option<u32>,
    /// When a change may be told next.
    next: Instant,
    untold: bool,
    /// One is not told that is to be told at once.
    is_urgent: bool,
    /// Who has changed a route or a rule last.
    last: Option<Process>,
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

    /// Waits for a change. The first is told at once, and those that follow within 20 ms together after that time; but at once those of
    /// rules, and that routes of ours are gone or
    /// others' are in our tables, since until that is put right, signaling is in the open. Changes that the socket's buffer
    /// had no room for count as one. Cancelling it loses nothing.
    pub async fn changed(&mut self) -> Result<(), Error> {
        while !self.is_urgent {
            let next = self.changes.next();
            let change = match self.untold {
                false => next.await,
                true => match timeout_at(self.next, next).await {
                    Ok(change) => change,
                    Err(_) => break,
                },
            };
            self.note(change)?;
        }
        while let Some(change) = self.changes.next().now_or_never() {
            self.note(change)?;
        }
        (self.untold, self.is_urgent) = (false, false);
        self.next = Instant::now() + PAUSE;
        Ok(())
    }

    /// Who made the last change of a route or a rule, if that can be said: the kernel's notices name the maker's port, and a program that
    /// only makes a change may have ended by then.
    pub fn last(&self) -> Option<&Process> {
        self.last.as_ref()
    }

    fn note(&mut self, change: Option<Heard>) -> Result<(), Error> {
        let (change, _) = change.ok_or_else(|| Error::Closed { action: "watch for changes".to_owned() })?;
        if !self.is_to_tell(&change) {
            return Ok(());
        }
        self.untold = true;
        if let NetlinkPayload::InnerMessage(message) = &change.payload {
            self.is_urgent |= may_open(message);
            if is_about_routing(message) {
                // Soon: it may end.
                self.last = Process::of_port(change.header.port_number);
            }
        }
        Ok(())
    }

    fn of(groups: &[MulticastGroup]) -> Result<Self, Error> {
        let (connection, _, changes) = rtnetlink::new_multicast_connection(groups).map_err(Error::Socket)?;
        let connection = tokio::spawn(connection);
        let (ignored, next) = (Vec::new(), Instant::now());
        Ok(Self {
            changes,
            connection,
            ignored,
            only: None,
            next,
            untold: false,
            is_urgent: false,
            last: None,
        })
    }

    fn is_to_tell(&self, change: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
        let is_wanted = match (self.only, &change.payload) {
            (Some(only), NetlinkPayload::InnerMessage(message)) => link_of(message) == Some(only),
            _ => true,
        };
        is_wanted && !self.ignored.contains(&change.header.port_number)
    }
}

fn may_open(message: &RouteNetlinkMessage) -> bool {
    match message {
        RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => true,
        RouteNetlinkMessage::DelRoute(route) => u8::from(route.header.protocol) == PROTOCOL,
        RouteNetlinkMessage::NewRoute(route) => plan::is_ours(table_of(route)),
        _ => false,
    }
}

fn is_about_routing(message: &RouteNetlinkMessage) -> bool {
    matches!(
        message,
        RouteNetlinkMessage::NewRule(_)
            | RouteNetlinkMessage::DelRule(_)
            | RouteNetlinkMessage::NewRoute(_)
            | RouteNetlinkMessage::DelRoute(_)
    )
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
