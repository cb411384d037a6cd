//! One attempt to reach an address, and what became of it.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, socket},
};

use super::world::{Tun, World, silent};

/// Time for the neighbours to find each other, on a slow machine too.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Tcp,
    /// `connect`, then `send`.
    UdpConnected,
    /// `sendto` alone.
    UdpSendTo,
    /// An echo request; the port does not matter.
    Icmp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It entered the TUN, and nothing of it came to the neighbour.
    Entered,
    /// It came to the neighbour, and nothing of it entered the TUN.
    Arrived,
    /// By the sender's own machine: EACCES.
    Refused,
}

/// Makes the attempt, with a neighbour who listens at that address and port.
pub fn attempt(world: &World, tun: &mut Tun, way: Way, to: SocketAddr) -> Outcome {
    tun.packets();
    match way {
        Way::Tcp => tcp(world, tun, to),
        Way::UdpConnected | Way::UdpSendTo => udp(world, tun, way, to),
        Way::Icmp => icmp(tun, to),
    }
}

fn tcp(world: &World, tun: &mut Tun, to: SocketAddr) -> Outcome {
    let listener = listen(world, || TcpListener::bind(to));
    let socket = socket(family(to), SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Err(Errno::EACCES) => return Outcome::Refused,
        Err(Errno::EINPROGRESS) => {}
        other => panic!("{to}: {other:?}"),
    }
    if has_entered(tun, libc::IPPROTO_TCP, to) {
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "{to} was reached as well");
        return Outcome::Entered;
    }
    let stream = TcpStream::from(socket);
    let deadline = Instant::now() + PATIENCE;
    while stream.peer_addr().is_err() {
        assert!(Instant::now() < deadline, "the SYN to {to} went nowhere");
        std::thread::sleep(Duration::from_millis(5));
    }
    listener.accept().unwrap();
    assert!(!has_entered(tun, libc::IPPROTO_TCP, to), "{to} was in the TUN as well");
    Outcome::Arrived
}

fn udp(world: &World, tun: &mut Tun, way: Way, to: SocketAddr) -> Outcome {
    let wire = listen(world, || UdpSocket::bind(to));
    let socket = UdpSocket::bind(any(to)).unwrap();
    let sent = match way {
        Way::UdpConnected => socket.connect(to).and_then(|()| socket.send(b"OPTIONS")),
        _ => socket.send_to(b"OPTIONS", to),
    };
    match sent {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            assert!(silent(&wire), "{to} was reached as well");
            return Outcome::Refused;
        }
        sent => assert_eq!(sent.unwrap(), 7),
    }
    if has_entered(tun, libc::IPPROTO_UDP, to) {
        assert!(silent(&wire), "{to} was reached as well");
        return Outcome::Entered;
    }
    wire.set_read_timeout(Some(PATIENCE)).unwrap();
    wire.recv(&mut [0; 16]).unwrap_or_else(|error| panic!("the datagram to {to} went nowhere: {error}"));
    Outcome::Arrived
}

/// RFC 792 and RFC 4443 section 4.1; the kernel fills in ICMPv6's checksum.
fn icmp(tun: &mut Tun, to: SocketAddr) -> Outcome {
    let (number, protocol, request, answer) = if to.is_ipv4() {
        (libc::IPPROTO_ICMP, SockProtocol::Icmp, [8, 0, 0xf7, 0xfd, 0, 1, 0, 1], 0)
    } else {
        (libc::IPPROTO_ICMPV6, SockProtocol::IcmpV6, [128, 0, 0, 0, 0, 1, 0, 1], 129)
    };
    let raw = socket(family(to), SockType::Raw, SockFlag::empty(), protocol).unwrap();
    let raw = UdpSocket::from(raw);
    let to = SocketAddr::new(to.ip(), 0);
    match raw.send_to(&request, to) {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => return Outcome::Refused,
        sent => assert_eq!(sent.unwrap(), request.len()),
    }
    if tun
        .packets()
        .iter()
        .any(|packet| (packet.destination, i32::from(packet.protocol)) == (to.ip(), number))
    {
        return Outcome::Entered;
    }
    raw.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut packet = [0; 128];
    loop {
        let (length, from) = raw
            .recv_from(&mut packet)
            .unwrap_or_else(|error| panic!("the echo of {to} went nowhere: {error}"));
        // Only IPv4 shows its header.
        let message = if to.is_ipv4() { &packet[20..length] } else { &packet[..length] };
        if from.ip() == to.ip() && message.first() == Some(&answer) {
            return Outcome::Arrived;
        }
    }
}

/// A child that another test is just starting has a copy of the last attempt's socket until its exec.
fn listen<T: Send>(world: &World, bind: impl Fn() -> std::io::Result<T> + Sync) -> T {
    world.neighbour.enter(|| {
        loop {
            match bind() {
                Err(error) if error.kind() == ErrorKind::AddrInUse => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                bound => return bound.unwrap(),
            }
        }
    })
}

fn has_entered(tun: &mut Tun, protocol: i32, to: SocketAddr) -> bool {
    tun.packets().iter().any(|packet| {
        (packet.destination, packet.port, i32::from(packet.protocol)) == (to.ip(), to.port(), protocol)
    })
}

fn family(to: SocketAddr) -> AddressFamily {
    if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn any(to: SocketAddr) -> &'static str {
    if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }
}
