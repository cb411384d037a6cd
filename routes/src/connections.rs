//! Ending connections of this machine (sock_diag(7)): one that is older than the routes knows nothing of them if its socket is
//! bound to a device, and else would hang with a source that the tunnel does not take.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt,
            socket, sockopt,
        },
        time::TimeVal,
    },
};

use crate::ip_protocol::{TCP, UDP};

/// What keeps the kernel's list from being read, or a connection from being ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this kernel cannot end connections (CONFIG_INET_DIAG_DESTROY)")]
    Unsupported,
    #[error("this kernel cannot list UDP sockets (CONFIG_INET_UDP_DIAG)")]
    UnsupportedUdp,
    #[error("cannot ask for connections: {0}")]
    Exchange(io::Error),
    #[error("the kernel refused to {action}: {source}")]
    Refused { action: String, source: io::Error },
}

/// A TCP connection, or the attempt at one; or a UDP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// IPv4 addresses of IPv6 sockets as such.
    pub local: SocketAddr,
    /// Unspecified where a UDP socket is not connected.
    pub remote: SocketAddr,
    /// SO_MARK of the socket. `None`: this kernel does not tell.
    pub mark: Option<u32>,
    protocol: Protocol,
    id: Id,
    /// Of the socket, which may be IPv6's with IPv4 addresses.
    family: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
}

/// `struct inet_diag_sockid` (linux/inet_diag.h), as the kernel gave it.
type Id = [u8; 48];

// linux/netlink.h
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The size of `struct nlmsghdr`.
const HEADER: usize = 16;
// linux/sock_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
// linux/inet_diag.h
const INET_DIAG_MARK: u16 = 15;
/// The size of `struct inet_diag_msg`.
const DIAG_MESSAGE: usize = 72;
/// Bits by `TCP_*` (linux/tcp_states.h): all but LISTEN, CLOSE, TIME_WAIT and NEW_SYN_RECV, which are no connections or have no
/// process behind them.
const STATES_TCP: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// ESTABLISHED, which is connected, and CLOSE.
const STATES_UDP: u32 = 1 << 1 | 1 << 7;
/// The kernel answers at once.
const LIMIT_SECONDS: i64 = 5;

/// Ends the TCP connections for which `is_wanted` holds, in the calling thread's network namespace: their programs are told
/// (ECONNABORTED). Goes on after an error and tells the first; else answers with those that were ended.
pub fn end(is_wanted: impl Fn(&Connection) -> bool) -> Result<Vec<Connection>, Error> {
    end_all(Protocol::Tcp, is_wanted)
}

/// The same for UDP sockets: a connected one is so no longer, and has no address of its own any more but what its program gave it.
pub fn end_udp(is_wanted: impl Fn(&Connection) -> bool) -> Result<Vec<Connection>, Error> {
    end_all(Protocol::Udp, is_wanted)
}

fn end_all(protocol: Protocol, is_wanted: impl Fn(&Connection) -> bool) -> Result<Vec<Connection>, Error> {
    let socket = open().map_err(Error::Exchange)?;
    let (mut ended, mut result) = (Vec::new(), Ok(()));
    for family in [libc::AF_INET, libc::AF_INET6] {
        let listed = list(&socket, protocol, family as u8).unwrap_or_else(|error| {
            note(&mut result, error);
            Vec::new()
        });
        for connection in listed.into_iter().filter(&is_wanted) {
            match destroy(&socket, &connection) {
                Ok(true) => ended.push(connection),
                Ok(false) => {}
                Err(error) => note(&mut result, error),
            }
        }
    }
    result.map(|()| ended)
}

fn note(result: &mut Result<(), Error>, error: Error) {
    if result.is_ok() {
        *result = Err(error);
    }
}

fn open() -> io::Result<OwnedFd> {
    let protocol = SockProtocol::NetlinkSockDiag;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(LIMIT_SECONDS, 0))?;
    Ok(fd)
}

fn list(socket: &OwnedFd, protocol: Protocol, family: u8) -> Result<Vec<Connection>, Error> {
    let mut found = Vec::new();
    let request = request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, protocol, family, &[0; 48]);
    match ask(socket, &request, |body| found.extend(Connection::read(protocol, body))) {
        Ok(()) => Ok(found),
        Err(error) if protocol == Protocol::Udp && error.raw_os_error() == Some(libc::ENOENT) => {
            Err(Error::UnsupportedUdp)
        }
        Err(source) => Err(Error::Refused { action: "list connections".to_owned(), source }),
    }
}

/// `false`: it has ended by itself.
fn destroy(socket: &OwnedFd, connection: &Connection) -> Result<bool, Error> {
    let Connection { protocol, family, id, .. } = connection;
    let request = request(SOCK_DESTROY, NLM_F_ACK, *protocol, *family, id);
    match ask(socket, &request, |_| {}) {
        Ok(()) => Ok(true),
        // The latter where another socket has its addresses and ports now.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Err(Error::Unsupported),
        Err(source) => {
            let action = format!("end the connection to {}", connection.remote);
            Err(Error::Refused { action, source })
        }
    }
}

/// `struct nlmsghdr`, then `struct inet_diag_req_v2` (linux/inet_diag.h).
fn request(kind: u16, flags: u16, protocol: Protocol, family: u8, id: &Id) -> Vec<u8> {
    let (number, states) = match protocol {
        Protocol::Tcp => (TCP, STATES_TCP),
        Protocol::Udp => (UDP, STATES_UDP),
    };
    let mut body = vec![family, number, 0, 0];
    body.extend_from_slice(&states.to_ne_bytes());
    body.extend_from_slice(id);
    let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&body);
    message
}

/// Hands each message of the answer to `heard`; the last one says whether all went well.
fn ask(socket: &OwnedFd, request: &[u8], mut heard: impl FnMut(&[u8])) -> io::Result<()> {
    sendto(socket.as_raw_fd(), request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => continue,
            length => length?,
        };
        let mut bytes = buffer.get(..length).unwrap_or_default();
        while let Some((kind, body, rest)) = message(bytes) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return acknowledged(body),
                _ => heard(body),
            }
            bytes = rest;
        }
    }
}

/// The first message's kind and body, and what follows it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (header, rest) = bytes.split_at_checked(HEADER)?;
    let [l0, l1, l2, l3, k0, k1, ..] = *header else { return None };
    let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
    let body = rest.get(..length.checked_sub(HEADER)?)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16::from_ne_bytes([k0, k1]), body, rest))
}

/// `struct nlmsgerr`: 0, or the errno with its sign turned round.
fn acknowledged(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

impl Connection {
    /// `struct inet_diag_msg` (linux/inet_diag.h): family, state, timer, retransmissions, then the id, which begins with
    /// the ports and the addresses.
    fn read(protocol: Protocol, body: &[u8]) -> Option<Self> {
        let (head, rest) = body.split_first_chunk::<4>()?;
        let id: Id = *rest.first_chunk()?;
        let (local_port, at) = id.split_first_chunk::<2>()?;
        let (remote_port, at) = at.split_first_chunk::<2>()?;
        let (local, at) = at.split_first_chunk::<16>()?;
        let (remote, _) = at.split_first_chunk::<16>()?;
        let [family, ..] = *head;
        let end = |address, port: &[u8; 2]| {
            Some(SocketAddr::new(address_of(family, address)?, u16::from_be_bytes(*port)))
        };
        let (local, remote) = (end(local, local_port)?, end(remote, remote_port)?);
        Some(Self { protocol, local, remote, mark: mark(body), id, family })
    }
}

/// The attribute `INET_DIAG_MARK`, a `struct nlattr` behind the `struct inet_diag_msg`.
fn mark(body: &[u8]) -> Option<u32> {
    let mut attributes = body.get(DIAG_MESSAGE..)?;
    loop {
        let (header, rest) = attributes.split_first_chunk::<4>()?;
        let [l0, l1, k0, k1] = *header;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        if u16::from_ne_bytes([k0, k1]) == INET_DIAG_MARK {
            return rest.first_chunk().map(|mark| u32::from_ne_bytes(*mark));
        }
        attributes = attributes.get(length.max(header.len()).next_multiple_of(4)..)?;
    }
}

fn address_of(family: u8, bytes: &[u8; 16]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()),
        libc::AF_INET6 => Some(Ipv6Addr::from(*bytes).to_canonical()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_found_among_the_attributes() {
        let mut body = vec![0; DIAG_MESSAGE];
        assert_eq!(mark(&body), None);
        let [a, b] = INET_DIAG_MARK.to_ne_bytes();
        let [c, d] = 5_u16.to_ne_bytes();
        body.extend([c, d, 1, 0, 9, 0, 0, 0]);
        let [e, f] = 8_u16.to_ne_bytes();
        body.extend([e, f, a, b]);
        assert_eq!(mark(&body), None);
        body.extend(7_u32.to_ne_bytes());
        assert_eq!(mark(&body), Some(7));
    }

    #[test]
    fn whatever_the_kernel_says_nothing_panics() {
        for length in 0..200 {
            let bytes = vec![0xff; length];
            assert_eq!(message(&bytes), None);
            assert_eq!(mark(&bytes), None);
            assert_eq!(mark(&vec![0; length]), None);
            assert_eq!(Connection::read(Protocol::Tcp, &bytes), None);
            drop(acknowledged(&bytes));
        }
        assert_eq!(message(&[0; 64]), None);
    }
}
