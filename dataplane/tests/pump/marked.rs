//! Datagrams with the marks of their IP header.

use std::io::ErrorKind;
use std::mem;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

pub struct Datagram {
    pub payload: Vec<u8>,
    pub from: SocketAddr,
    pub tos: u8,
    pub ttl: u8,
}

/// Makes a socket tell TOS and TTL of what it receives, and wait no longer than `patience`.
pub fn prepare(socket: &UdpSocket, patience: Duration) {
    socket.set_read_timeout(Some(patience)).unwrap();
    let (level, tos, ttl) = match is_v4(socket) {
        true => (libc::SOL_IP, libc::IP_RECVTOS, libc::IP_RECVTTL),
        false => (libc::SOL_IPV6, libc::IPV6_RECVTCLASS, libc::IPV6_RECVHOPLIMIT),
    };
    set_option(socket, level, tos, 1);
    set_option(socket, level, ttl, 1);
}

/// Marks what the socket sends from now on.
pub fn set(socket: &UdpSocket, tos: u8, ttl: u8) {
    let (level, tos_option, ttl_option) = match is_v4(socket) {
        true => (libc::SOL_IP, libc::IP_TOS, libc::IP_TTL),
        false => (libc::SOL_IPV6, libc::IPV6_TCLASS, libc::IPV6_UNICAST_HOPS),
    };
    set_option(socket, level, tos_option, tos.into());
    set_option(socket, level, ttl_option, ttl.into());
}

pub fn receive(socket: &UdpSocket) -> Datagram {
    let mut datagram = vec![0; 65_535];
    let (_, from) = loop {
        match socket.peek_from(&mut datagram) {
            // signal(7): a socket with a timeout is not waited for again.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            peeked => break peeked.expect("a datagram"),
        }
    };
    let mut control = [0u64; 32];
    let mut vector = libc::iovec { iov_base: datagram.as_mut_ptr().cast(), iov_len: datagram.len() };
    // SAFETY: all-zero bytes are a valid msghdr; every pointer set in it is to a local that outlives the call; the CMSG functions walk
    // what the kernel wrote into `control`.
    unsafe {
        let mut header: libc::msghdr = mem::zeroed();
        header.msg_iov = &raw mut vector;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = mem::size_of_val(&control);
        let length = libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0);
        datagram.truncate(usize::try_from(length).expect("a datagram"));
        let (mut tos, mut ttl) = (0, 0);
        let mut message = libc::CMSG_FIRSTHDR(&raw const header);
        while !message.is_null() {
            let value = libc::CMSG_DATA(message).read();
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::SOL_IP, libc::IP_TOS) | (libc::SOL_IPV6, libc::IPV6_TCLASS) => tos = value,
                (libc::SOL_IP, libc::IP_TTL) | (libc::SOL_IPV6, libc::IPV6_HOPLIMIT) => ttl = value,
                _ => {}
            }
            message = libc::CMSG_NXTHDR(&raw const header, message);
        }
        Datagram { payload: datagram, from, tos, ttl }
    }
}

fn is_v4(socket: &UdpSocket) -> bool {
    socket.local_addr().unwrap().is_ipv4()
}

fn set_option(socket: &UdpSocket, level: i32, name: i32, value: i32) {
    // SAFETY: the option's value is one `int`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            mem::size_of::<i32>() as u32,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
