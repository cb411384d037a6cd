//! Attempts to reach signaling, by whatever way a socket has past the routing table, and what shows on the wire that they were made.

use std::io::{self, IoSlice, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use lab::Host;
use lab::addresses::WEB;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use socket2::{Domain, Protocol, Socket, Type};

use crate::common::ok;

pub const DEVICE: &str = "eth0";
/// For a connection that nobody answers.
pub const PATIENCE: Duration = Duration::from_millis(150);
const REQUEST: &[u8] = b"OPTIONS sip:nobody SIP/2.0\r\n\r\n";
/// Somebody whom no set has, in each family.
const WITNESS_V4: Ipv4Addr = WEB;
const WITNESS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9);

/// How a socket says where its packets are to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It does not: the routing table does.
    Routed,
    /// SO_BINDTODEVICE.
    Device,
    /// IP_PKTINFO and IPV6_PKTINFO with an interface's index, for one datagram.
    PacketInfo,
    /// IP_UNICAST_IF and IPV6_UNICAST_IF.
    UnicastInterface,
}

pub type Ways = &'static [Way];
pub const ROUTED: Ways = &[Way::Routed];
pub const BOUND: Ways = &[Way::Device, Way::PacketInfo, Way::UnicastInterface];
pub const BOTH: Ways = &[Way::Routed, Way::Device, Way::PacketInfo, Way::UnicastInterface];

impl Way {
    /// Whether connections have it too, and not datagrams alone.
    pub fn is_for_tcp(self) -> bool {
        matches!(self, Self::Routed | Self::Device)
    }

    /// Where a datagram shows on the wire that attempts by this way are made meanwhile, in the family of `to`.
    pub fn witness(self, to: SocketAddr) -> SocketAddr {
        let address = if to.is_ipv4() { IpAddr::from(WITNESS_V4) } else { WITNESS_V6.into() };
        (address, 7000 + self as u16).into()
    }
}

/// A connection and a datagram to each target by each way, and a datagram to the witness. Whatever becomes of them is the wire's to tell.
pub fn knock(targets: [SocketAddr; 2], ways: &[Way]) {
    for (to, way) in targets.into_iter().flat_map(|to| ways.iter().map(move |way| (to, *way))) {
        if way.is_for_tcp()
            && let Ok(mut stream) = connect(to, way)
        {
            let _ = stream.write_all(REQUEST);
        }
        let _ = send(to, way);
        let _ = send(way.witness(to), way);
    }
}

pub fn connect(to: SocketAddr, way: Way) -> io::Result<Socket> {
    let socket = open(to, way, Type::STREAM, Protocol::TCP);
    socket.connect_timeout(&to.into(), PATIENCE)?;
    Ok(socket)
}

/// A datagram socket that is connected.
pub fn connect_udp(to: SocketAddr, way: Way) -> io::Result<Socket> {
    let socket = open(to, way, Type::DGRAM, Protocol::UDP);
    socket.connect(&to.into())?;
    Ok(socket)
}

fn send(to: SocketAddr, way: Way) -> io::Result<()> {
    let socket = open(to, way, Type::DGRAM, Protocol::UDP);
    if way == Way::PacketInfo {
        return send_with_info(&socket, to);
    }
    socket.send_to(REQUEST, &to.into()).map(drop)
}

fn send_with_info(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    let index = if_nametoindex(DEVICE)?;
    let v4 = libc::in_pktinfo {
        ipi_ifindex: index as i32,
        ipi_spec_dst: libc::in_addr { s_addr: 0 },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let v6 = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: [0; 16] }, ipi6_ifindex: index };
    let info = match to {
        SocketAddr::V4(_) => ControlMessage::Ipv4PacketInfo(&v4),
        SocketAddr::V6(_) => ControlMessage::Ipv6PacketInfo(&v6),
    };
    let to = SockaddrStorage::from(to);
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(REQUEST)], &[info], MsgFlags::empty(), Some(&to))?;
    Ok(())
}

fn open(to: SocketAddr, way: Way, kind: Type, protocol: Protocol) -> Socket {
    let socket = Socket::new(Domain::for_address(to), kind, Some(protocol)).unwrap();
    match way {
        Way::Routed | Way::PacketInfo => {}
        Way::Device => socket.bind_device(Some(DEVICE.as_bytes())).unwrap(),
        Way::UnicastInterface => set_unicast_interface(&socket, to.is_ipv4()),
    }
    socket
}

/// The index in network byte order (ip(7), linux/in.h and linux/in6.h).
fn set_unicast_interface(socket: &Socket, is_ipv4: bool) {
    const IP_UNICAST_IF: i32 = 50;
    const IPV6_UNICAST_IF: i32 = 76;
    let (level, option) =
        if is_ipv4 { (libc::IPPROTO_IP, IP_UNICAST_IF) } else { (libc::IPPROTO_IPV6, IPV6_UNICAST_IF) };
    let index = if_nametoindex(DEVICE).unwrap().to_be();
    // SAFETY: the kernel reads the four bytes of an integer that lives here.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const index).cast(), 4) };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

/// Attempts, one after another, in a thread of their own; the first ones have been made when this is there.
pub struct Knocking {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Knocking {
    pub fn on(host: &Host, targets: [SocketAddr; 2], ways: Ways) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let (begun, has_begun) = channel();
        let body = move || {
            while !stopped.load(Ordering::Relaxed) {
                knock(targets, ways);
                // Only the first round is waited for.
                let _ = begun.send(());
            }
        };
        let thread = ok(host.thread("knocking", body));
        has_begun.recv().unwrap();
        Self { stop, thread }
    }

    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}
