//! UDP packets as they pass an interface.

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use packet::Packet;
use socket2::{Domain, Protocol, Socket, Type};

/// A capture on one interface, of both directions.
pub struct Capture {
    socket: Socket,
}

#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// When the kernel saw it, since 1970.
    pub at: Duration,
    /// Sent by this machine.
    pub outgoing: bool,
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

impl Capture {
    /// From now on, in this thread's network namespace.
    pub fn start(interface: &str) -> Self {
        // Without the link's header. Of no protocol until it is bound, so that nothing of other interfaces gets in.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0))).unwrap();
        let (on, buffer): (libc::c_int, libc::c_int) = (1, 4 << 20);
        let name = std::ffi::CString::new(interface).unwrap();
        // SAFETY: all-zero bytes are a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: the kernel reads a string, two `int`s and one address, all of which outlive the calls.
        let results = unsafe {
            address.sll_ifindex = libc::if_nametoindex(name.as_ptr()).cast_signed();
            let fd = socket.as_raw_fd();
            [
                libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, (&raw const on).cast(), 4),
                libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, (&raw const buffer).cast(), 4),
                libc::bind(fd, (&raw const address).cast(), mem::size_of_val(&address) as u32),
            ]
        };
        assert_eq!(results, [0, 0, 0], "{interface}: {}", io::Error::last_os_error());
        Self { socket }
    }

    /// The next one; `None` if none passes within `patience`.
    pub fn next(&self, patience: Duration) -> Option<Seen> {
        loop {
            let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd, which outlives the call.
            if unsafe { libc::poll(&raw mut poll, 1, patience.as_millis() as libc::c_int) } == 0 {
                return None;
            }
            if let Some(seen) = self.receive() {
                return Some(seen);
            }
        }
    }

    /// Those that passed already.
    pub fn waiting(&self) -> impl Iterator<Item = Seen> {
        std::iter::from_fn(|| self.next(Duration::ZERO))
    }

    /// `None`: no UDP packet, or a signal.
    fn receive(&self) -> Option<Seen> {
        let mut bytes = [0; 2048];
        let mut control = [0_u64; 16];
        let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: all-zero bytes are a valid sockaddr_ll and a valid msghdr; every pointer set is to a local that outlives the call; the
        // CMSG functions walk what the kernel wrote into `control`.
        unsafe {
            let mut from: libc::sockaddr_ll = mem::zeroed();
            let mut header: libc::msghdr = mem::zeroed();
            header.msg_name = (&raw mut from).cast();
            header.msg_namelen = mem::size_of_val(&from) as u32;
            header.msg_iov = &raw mut vector;
            header.msg_iovlen = 1;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = mem::size_of_val(&control);
            let len = libc::recvmsg(self.socket.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT);
            let packet = Packet::parse(bytes.get(..usize::try_from(len).ok()?)?).ok()?;
            let tuple = packet.five_tuple().filter(|tuple| tuple.protocol == packet::protocol::UDP)?;
            let stamp = libc::CMSG_FIRSTHDR(&raw const header);
            assert!(!stamp.is_null() && (*stamp).cmsg_type == libc::SCM_TIMESTAMPNS, "no time of arrival");
            let at = libc::CMSG_DATA(stamp).cast::<libc::timespec>().read_unaligned();
            Some(Seen {
                at: Duration::new(at.tv_sec.unsigned_abs(), at.tv_nsec as u32),
                outgoing: from.sll_pkttype == libc::PACKET_OUTGOING,
                source: tuple.source,
                destination: tuple.destination,
            })
        }
    }
}
