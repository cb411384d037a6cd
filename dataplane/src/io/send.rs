use std::io;
use std::marker::PhantomData;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use packet::Tos;

use super::address::to_kernel;
use super::cmsg::Control;
use crate::BATCH;

/// What one datagram carries and how it is marked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagram<'a> {
    pub(crate) payload: &'a [u8],
    pub(crate) destination: SocketAddr,
    pub(crate) tos: Tos,
    /// `None`: the system's default.
    pub(crate) ttl: Option<u8>,
    /// The kernel makes datagrams of this size of the payload (UDP_SEGMENT), the last may be smaller.
    pub(crate) segment: Option<u16>,
}

/// Sends up to [`BATCH`] datagrams with one sendmmsg(2).
pub(crate) struct Sender {
    headers: Box<[libc::mmsghdr]>,
    vectors: Box<[libc::iovec]>,
    addresses: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
}

/// Datagrams ready to be sent; holds on to their payloads.
pub(crate) struct Loaded<'s, 'a> {
    headers: &'s mut [libc::mmsghdr],
    payloads: PhantomData<&'a [u8]>,
}

// SAFETY: the pointers inside are written at the start of each call and used before its end only; between calls they are never read.
unsafe impl Send for Sender {}

impl Sender {
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

    /// Sends datagrams in order. `refused` is told of each that the system does not take, with its place, and says how to go on. Returns
    /// whether one was refused that the kernel was to segment; its parts were then sent one by one.
    pub(crate) fn send_all<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        datagrams: impl Iterator<Item = Datagram<'a>> + Clone,
        mut refused: impl FnMut(usize, Datagram<'a>, &io::Error) -> Next,
    ) -> Option<io::Error> {
        let (mut unsegmented, mut sent) = (None, 0);
        loop {
            let rest = datagrams.clone().skip(sent);
            let mut whole = None;
            let loaded = self.load(rest.clone());
            let count = loaded.headers.len();
            loaded.send(socket, |place, error| {
                let Some(datagram) = rest.clone().nth(place) else { return Next::Skip };
                // Devices that cannot checksum refuse with EIO, some kernels and too small paths with EINVAL (udp(7)).
                let cannot = matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE));
                if !cannot || datagram.segment.is_none() {
                    return refused(sent + place, datagram, error);
                }
                unsegmented = error.raw_os_error().map(io::Error::from_raw_os_error);
                whole = Some((place, datagram));
                Next::Stop
            });
            match whole {
                // Its parts go before what is behind it.
                Some((place, datagram)) => {
                    for part in datagram.parts() {
                        let once = self.load(std::iter::once(part));
                        once.send(socket, |_, error| refused(sent + place, part, error));
                    }
                    sent += place + 1;
                }
                None if count < BATCH => return unsegmented,
                None => sent += count,
            }
        }
    }

    /// Takes the first [`BATCH`] datagrams.
    pub(crate) fn load<'a>(&mut self, datagrams: impl Iterator<Item = Datagram<'a>>) -> Loaded<'_, 'a> {
        let places =
            self.headers.iter_mut().zip(&mut self.vectors).zip(&mut self.addresses).zip(&mut self.controls);
        let mut count = 0;
        for ((((header, vector), address), control), datagram) in places.zip(datagrams) {
            let (kernel_address, address_len) = to_kernel(datagram.destination);
            *address = kernel_address;
            vector.iov_base = datagram.payload.as_ptr().cast_mut().cast();
            vector.iov_len = datagram.payload.len();
            let control_len = mark(control, &datagram);

            header.msg_hdr.msg_name = (&raw mut *address).cast();
            header.msg_hdr.msg_namelen = address_len;
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control =
                if control_len == 0 { std::ptr::null_mut() } else { control.as_mut_ptr() };
            header.msg_hdr.msg_controllen = control_len as _;
            count += 1;
        }
        let (headers, _) = self.headers.split_at_mut(count);
        Loaded { headers, payloads: PhantomData }
    }
}

impl Loaded<'_, '_> {
    /// Sends all; what is refused is told to `refused`, with its place, which says how to go on.
    pub(crate) fn send(self, socket: BorrowedFd<'_>, mut refused: impl FnMut(usize, &io::Error) -> Next) {
        let mut next = 0;
        while let Some(rest) = self.headers.get_mut(next..).filter(|rest| !rest.is_empty()) {
            // SAFETY: `rest` holds initialised headers. Names, vectors and control messages lie in boxes of the Sender that `self` borrows
            // mutably; payloads are borrowed for `'a`, and the kernel only reads them.
            let sent = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    rest.as_mut_ptr(),
                    rest.len() as libc::c_uint,
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            };
            if let Ok(sent @ 1..) = usize::try_from(sent) {
                next += sent;
                continue;
            }
            match refused(next, &io::Error::last_os_error()) {
                Next::Again => {}
                Next::Skip => next += 1,
                Next::Stop => return,
            }
        }
    }
}

/// What to do about a datagram that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Again,
    Skip,
    /// Neither it nor what is behind it is sent.
    Stop,
}

impl<'a> Datagram<'a> {
    /// What the kernel would make of it: itself, or its segments.
    pub(crate) fn parts(self) -> impl Iterator<Item = Self> + Clone + use<'a> {
        let size = self.segment.map_or(self.payload.len(), usize::from).max(1);
        let count = self.payload.len().div_ceil(size).max(1);
        (0..count).map(move |part| {
            let end = self.payload.len().min((part + 1) * size);
            Self { payload: self.payload.get(part * size..end).unwrap_or_default(), segment: None, ..self }
        })
    }
}

/// Writes what is not the default as control messages; returns their length.
fn mark(control: &mut Control, datagram: &Datagram<'_>) -> usize {
    let (level, tos, ttl) = match datagram.destination {
        SocketAddr::V4(_) => (libc::SOL_IP, libc::IP_TOS, libc::IP_TTL),
        SocketAddr::V6(_) => (libc::SOL_IPV6, libc::IPV6_TCLASS, libc::IPV6_HOPLIMIT),
    };
    let mut len = 0;
    if datagram.tos.0 != 0 {
        len = control.push(len, level, tos, i32::from(datagram.tos.0).to_ne_bytes());
    }
    if let Some(value) = datagram.ttl {
        len = control.push(len, level, ttl, i32::from(value).to_ne_bytes());
    }
    if let Some(size) = datagram.segment {
        len = control.push(len, libc::SOL_UDP, libc::UDP_SEGMENT, size.to_ne_bytes());
    }
    len
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;

    #[test]
    fn nothing_is_left_out_of_more_than_a_batch() {
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let destination = receiver.local_addr().unwrap();
        let payload: Vec<u8> = (0..=255).collect();
        let whole = Datagram { payload: &payload, destination, tos: Tos(0), ttl: None, segment: Some(2) };
        let empty = Datagram { payload: &[], segment: None, ..whole };
        let all = whole.parts().chain(empty.parts());
        assert!(Sender::new().send_all(socket.as_fd(), all, |_, _, error| panic!("{error}")).is_none());
        let mut buffer = [0; 100];
        for part in payload.chunks(2).chain([[].as_slice()]) {
            let len = receiver.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], part);
        }
    }

    /// The kernel segments into 128 at most (64 before Linux 6.9).
    #[test]
    fn what_the_kernel_does_not_segment_goes_one_by_one_in_its_place() {
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let destination = receiver.local_addr().unwrap();
        let payloads: [Vec<u8>; 3] = [vec![1; 40], (0..150).collect(), vec![3; 50]];
        let datagrams = payloads.iter().zip([Some(20), Some(1), None]).map(|(payload, segment)| Datagram {
            payload,
            destination,
            tos: Tos(0),
            ttl: None,
            segment,
        });
        let error = Sender::new().send_all(socket.as_fd(), datagrams, |_, _, error| panic!("{error}"));
        assert_eq!(error.unwrap().raw_os_error(), Some(libc::EINVAL));

        let mut arrived = Vec::new();
        let mut buffer = [0; 100];
        for _ in 0..2 + 150 + 1 {
            let len = receiver.recv(&mut buffer).unwrap();
            arrived.push(buffer[..len].to_vec());
        }
        let parts = payloads[1].iter().map(|byte| vec![*byte]);
        let (first, last) = ([vec![1; 20], vec![1; 20]], [vec![3; 50]]);
        let expected: Vec<_> = first.into_iter().chain(parts).chain(last).collect();
        assert_eq!(arrived, expected);
    }
}
