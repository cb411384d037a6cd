use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt,
    sockopt::{IpRecvTos, ReceiveTimestampns},
};

use crate::clock;

/// A datagram, with when it came and from whom.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    pub len: usize,
    /// `None` on a connected socket.
    pub from: Option<SocketAddr>,
    /// In nanoseconds since the machine started.
    pub at: u64,
    /// The type-of-service byte, if the socket asked for it.
    pub tos: Option<u8>,
}

/// Prepares a socket for [`receive`]. `stamps`: the kernel stamps datagrams as they arrive, for threads that are not real-time and
/// would otherwise measure their own wake-up.
pub fn prepare(socket: &UdpSocket, stamps: bool) -> io::Result<()> {
    setsockopt(socket, ReceiveTimestampns, &stamps)?;
    setsockopt(socket, IpRecvTos, &true)?;
    Ok(())
}

/// Takes one datagram, waiting as the socket's mode says.
pub fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec, u8);
    let mut parts = [IoSliceMut::new(buffer)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())?;
    let now = clock::now_ns();
    let (mut at, mut tos) = (now, None);
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::ScmTimestampns(time) => at = clock::of_stamp(time),
            ControlMessageOwned::Ipv4Tos(mark) => tos = Some(mark),
            _ => {}
        }
    }
    let from = message.address.as_ref().and_then(|address| {
        let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
    });
    Ok(Received { len: message.bytes, from, at, tos })
}
