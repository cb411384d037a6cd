use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use packet::Tos;

use super::address::from_kernel;
use super::cmsg::{Control, number};
use crate::BATCH;
use crate::buffers::Buffers;

/// Errors in a row after which a socket's next event is waited for, so that none that stays keeps us here.
const MAX_ERRORS: usize = 16;

/// Receives up to [`BATCH`] datagrams with one recvmmsg(2).
pub(crate) struct Receiver {
    headers: Box<[libc::mmsghdr]>,
    vectors: Box<[libc::iovec]>,
    addresses: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
}

/// One received datagram's length, sender and marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) len: usize,
    pub(crate) from: SocketAddr,
    pub(crate) tos: Tos,
    pub(crate) ttl: u8,
    /// The payload is several datagrams of this size (UDP_GRO), the last may be smaller; never 0.
    pub(crate) segment: usize,
}

// SAFETY: the pointers inside are written at the start of each call and used before its end only; between calls they are never read.
unsafe impl Send for Receiver {}

impl Receiver {
    pub(crate) fn new() -> Self {
        // SAFETY: all-zero bytes are valid for these plain C structures.
        let (header, vector, address) = unsafe { (mem::zeroed(), mem::zeroed(), mem::zeroed()) };
        Self {
            headers: vec![header; BATCH].into_boxed_slice(),
            vectors: vec![vector; BATCH].into_boxed_slice(),
            addresses: vec![address; BATCH].into_boxed_slice(),
            controls: vec![Control::new(); BATCH].into_boxed_slice(),
        }
    }

    /// Receives what is there, each datagram into a buffer of its own, `headroom` bytes from its start. Returns how many;
    /// fewer than there are buffers means that no more are there. Any error but `WouldBlock` stands for one event of the socket, which
    /// `failed` is told of; what else is there is still read.
    pub(crate) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        buffers: &mut Buffers,
        headroom: usize,
        mut failed: impl FnMut(),
    ) -> usize {
        for _ in 0..MAX_ERRORS {
            match self.try_receive(socket, buffers, headroom) {
                Ok(count) => return count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return 0,
                Err(_) => failed(),
            }
        }
        0
    }

    /// The datagram at a place below what [`Receiver::receive`] returned; `None` if it was cut short or is not from an IP address.
    pub(crate) fn get(&self, place: usize) -> Option<Received> {
        let header = self.headers.get(place)?;
        if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            return None;
        }
        let from = from_kernel(self.addresses.get(place)?)?;
        let len = header.msg_len as usize;
        let mut received = Received { len, from, tos: Tos(0), ttl: 64, segment: len.max(1) };
        let control = self.controls.get(place)?;
        for (level, kind, data) in control.messages(header.msg_hdr.msg_controllen) {
            let Some(value) = number(data) else { continue };
            match (level, kind) {
                (libc::SOL_IP, libc::IP_TOS) | (libc::SOL_IPV6, libc::IPV6_TCLASS) => {
                    received.tos = Tos(value as u8);
                }
                (libc::SOL_IP, libc::IP_TTL) | (libc::SOL_IPV6, libc::IPV6_HOPLIMIT) => {
                    received.ttl = value as u8;
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    received.segment = usize::try_from(value).unwrap_or(0).max(1)
                }
                _ => {}
            }
        }
        Some(received)
    }

    fn try_receive(
        &mut self,
        socket: BorrowedFd<'_>,
        buffers: &mut Buffers,
        headroom: usize,
    ) -> io::Result<usize> {
        let places =
            self.headers.iter_mut().zip(&mut self.vectors).zip(&mut self.addresses).zip(&mut self.controls);
        let mut count = 0;
        for ((((header, vector), address), control), buffer) in places.zip(buffers.iter_mut()) {
            let Some(room) = buffer.get_mut(headroom..) else { break };
            vector.iov_base = room.as_mut_ptr().cast();
            vector.iov_len = room.len();
            header.msg_hdr.msg_name = (&raw mut *address).cast();
            header.msg_hdr.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.as_mut_ptr();
            header.msg_hdr.msg_controllen = Control::CAPACITY as _;
            header.msg_hdr.msg_flags = 0;
            count += 1;
        }
        // SAFETY: the first `count` headers were just filled; names, vectors and control messages lie in boxes of `self`, the
        // payload rooms are distinct and borrowed mutably from `buffers`; all outlive the call.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn an_error_that_stays_ends_the_attempt() {
        let no_socket = File::open("/dev/null").unwrap();
        let mut errors = 0;
        let received =
            Receiver::new().receive(no_socket.as_fd(), &mut Buffers::new(1, 100), 0, || errors += 1);
        assert_eq!((received, errors), (0, MAX_ERRORS));
    }
}
