use std::time::Duration;

use futures::{FutureExt, StreamExt, channel::mpsc::UnboundedReceiver};
use netlink_packet_core::NetlinkMessage;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{MulticastGroup, sys::SocketAddr};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use super::{Error, Netlink};

/// Changes come in bursts (a new address brings routes): what follows one this soon is told together.
const PAUSE: Duration = Duration::from_millis(20);

/// Changes of links, addresses, routes and rules in one network namespace.
#[derive(Debug)]
pub struct Watch {
    changes: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    connection: JoinHandle<()>,
    /// The ports of those whose changes are not told.
    ignored: Vec<u32>,
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
        let (connection, _, changes) = rtnetlink::new_multicast_connection(&groups).map_err(Error::Socket)?;
        let connection = tokio::spawn(connection);
        Ok(Self { changes, connection, ignored: Vec::new(), next: Instant::now(), untold: false })
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
            self.untold = !self.ignored.contains(&change.header.port_number);
        }
        sleep_until(self.next).await;
        while let Some(change) = self.changes.next().now_or_never() {
            change.ok_or_else(closed)?;
        }
        self.untold = false;
        self.next = Instant::now() + PAUSE;
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
