use std::time::Duration;

use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use netlink_packet_core::NetlinkMessage;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{MulticastGroup, sys::SocketAddr};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::Error;

/// Changes come in bursts (a new address brings routes): this long without another ends one.
const QUIET: Duration = Duration::from_millis(100);
/// A burst without end is reported all the same.
const BURST: Duration = Duration::from_secs(1);

/// Changes of links, addresses, routes and rules in one network namespace.
#[derive(Debug)]
pub struct Watch {
    changes: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    connection: JoinHandle<()>,
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
        Ok(Self { changes, connection: tokio::spawn(connection) })
    }

    /// Waits for a change, then until 100 ms have passed without another (at most 1 s). Changes that the socket's
    /// buffer had no room for count as one. Cancelling it may lose a burst's beginning, never its end.
    pub async fn changed(&mut self) -> Result<(), Error> {
        let closed = || Error::Closed { action: "watch for changes".to_owned() };
        self.changes.next().await.ok_or_else(closed)?;
        let end = Instant::now() + BURST;
        while let Ok(change) = timeout_at(end.min(Instant::now() + QUIET), self.changes.next()).await {
            change.ok_or_else(closed)?;
        }
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
