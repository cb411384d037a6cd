//! The kernel's links, addresses, routes and rules over rtnetlink (`rtnetlink(7)`).
//!
//! A netlink socket belongs to the network namespace of the thread that opens it, for good: [`Netlink::new`] looks at
//! the calling thread's namespace once, and every call speaks to that one.

mod address;
mod any_rule;
mod link;
mod route;
mod rule;
mod watch;

use std::io;

use futures::StreamExt;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::sys::AsyncSocket;
use tokio::task::JoinHandle;

use crate::crash_point;

pub use address::Address;
pub use any_rule::AnyRule;
pub use link::Link;
pub(crate) use route::AnyRoute;
pub use route::{Hop, Kind, Route};
pub use rule::{Family, Rule};
pub use watch::Watch;

/// The main routing table (`RT_TABLE_MAIN`, linux/rtnetlink.h).
pub const TABLE_MAIN: u32 = 254;
/// Made by an administrator (`RTPROT_STATIC`, linux/rtnetlink.h).
pub const PROTOCOL_STATIC: u8 = 4;

/// How often a dump is begun again when the tables change while it is read.
const DUMP_ATTEMPTS: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open a netlink socket: {0}")]
    Socket(io::Error),
    #[error("the kernel refused to {action}: {source}")]
    Refused { action: String, source: io::Error },
    #[error("the netlink connection ended while asked to {action}")]
    Closed { action: String },
    #[error("the kernel's tables kept changing while asked to {action}; try again")]
    Unsettled { action: String },
    #[error("there is no network interface {0}")]
    NoLink(String),
}

impl Error {
    /// The kernel's errno, where it gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Socket(source) | Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// A connection to one network namespace's rtnetlink. Closed when dropped.
#[derive(Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    connection: JoinHandle<()>,
    /// By which the kernel's notices name this connection.
    port: u32,
}

impl Netlink {
    /// Opens a connection in the calling thread's network namespace.
    /// Must be called within a tokio runtime with I/O enabled, and lives no longer than that.
    pub fn new() -> Result<Self, Error> {
        let (mut connection, handle, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
        let port = connection.socket_mut().socket_mut().bind_auto().map_err(Error::Socket)?.port_number();
        Ok(Self { handle, connection: tokio::spawn(connection), port })
    }

    async fn create(&self, message: RouteNetlinkMessage, action: &str) -> Result<(), Error> {
        crash_point::reached();
        self.request(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, action).await.map(drop)
    }

    async fn change(&self, message: RouteNetlinkMessage, action: &str) -> Result<(), Error> {
        crash_point::reached();
        self.request(message, NLM_F_ACK, action).await.map(drop)
    }

    /// A dump that other changes ran into is inconsistent (`NLM_F_DUMP_INTR`) and is read again.
    async fn dump(
        &self,
        message: RouteNetlinkMessage,
        action: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            match self.request(message.clone(), NLM_F_DUMP, action).await {
                Err(Error::Unsettled { .. }) => {}
                answer => return answer,
            }
        }
        Err(Error::Unsettled { action: action.to_string() })
    }

    async fn request(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let closed = || Error::Closed { action: action.to_string() };
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut answers = self.handle.clone().request(request).map_err(|_| closed())?;
        let mut messages = Vec::new();
        let mut interrupted = false;
        while let Some(answer) = answers.next().await {
            interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => messages.push(message),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(Error::Refused { action: action.to_string(), source: error.to_io() });
                }
                NetlinkPayload::Overrun(_) => return Err(closed()),
                _ => {}
            }
        }
        if self.connection.is_finished() {
            return Err(closed());
        }
        if interrupted {
            return Err(Error::Unsettled { action: action.to_string() });
        }
        Ok(messages)
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
