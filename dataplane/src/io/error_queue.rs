use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::address::from_kernel;
use super::cmsg::Control;

/// An error about a datagram that left earlier (ip(7), IP_RECVERR).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SendError {
    /// Where the datagram was to go; unspecified if the kernel does not say.
    pub(crate) destination: SocketAddr,
    /// How much of its payload is quoted, in bytes.
    pub(crate) quoted: usize,
    pub(crate) cause: Cause,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// An ICMP error from `from`, in the family's own numbers; `rest` is its second header word.
    Icmp {
        from: IpAddr,
        kind: u8,
        code: u8,
        rest: u32,
    },
    /// This machine knows that the path carries no more than `mtu`.
    TooBig {
        mtu: u32,
    },
    Other,
}

impl SendError {
    /// The largest packet that the path to its destination carries, IP header included, if that is what the error says.
    pub(crate) fn path_mtu(&self) -> Option<u32> {
        let (kind, code) = if self.destination.is_ipv4() { (3, 4) } else { (2, 0) };
        match self.cause {
            Cause::TooBig { mtu } => Some(mtu),
            Cause::Icmp { kind: found, code: and, rest, .. } if (found, and) == (kind, code) => Some(rest),
            Cause::Icmp { .. } | Cause::Other => None,
        }
    }
}

/// Takes the oldest error off a socket's queue, its datagram's payload into `payload`; `None` when the queue is empty. As long as it is not,
/// the kernel makes each error the socket's pending one as the one before is taken.
pub(crate) fn take(socket: BorrowedFd<'_>, payload: &mut [u8]) -> Option<SendError> {
    // SAFETY: all-zero bytes are valid for these plain C structures.
    let (mut name, mut header): (libc::sockaddr_storage, libc::msghdr) =
        unsafe { (mem::zeroed(), mem::zeroed()) };
    let mut control = Control::new();
    let mut vector = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = mem::size_of_val(&name) as libc::socklen_t;
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr();
    header.msg_controllen = Control::CAPACITY as _;
    // SAFETY: every pointer in `header` is to a local or to `payload`, all of which outlive the call.
    let received = unsafe {
        libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT)
    };
    let quoted = usize::try_from(received).ok()?;
    let destination = from_kernel(&name).unwrap_or((Ipv4Addr::UNSPECIFIED, 0).into());
    let cause = control.messages(header.msg_controllen).find_map(cause).unwrap_or(Cause::Other);
    Some(SendError { destination, quoted, cause })
}

/// Whether an error of a send may stem from an earlier datagram to someone else, whose error the socket reports now.
pub(crate) fn may_be_anothers(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNREFUSED
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EACCES
                | libc::EMSGSIZE
                | libc::EHOSTDOWN
                | libc::EOPNOTSUPP
        )
    )
}

fn cause((level, kind, data): (i32, i32, &[u8])) -> Option<Cause> {
    if !matches!((level, kind), (libc::SOL_IP, libc::IP_RECVERR) | (libc::SOL_IPV6, libc::IPV6_RECVERR)) {
        return None;
    }
    let (error, offender) = data.split_at_checked(mem::size_of::<libc::sock_extended_err>())?;
    // SAFETY: `error` has the size of the structure, whose fields are plain numbers; the read needs no alignment.
    let error = unsafe { error.as_ptr().cast::<libc::sock_extended_err>().read_unaligned() };
    if error.ee_origin == libc::SO_EE_ORIGIN_LOCAL {
        let too_big = error.ee_errno == libc::EMSGSIZE as u32;
        return Some(if too_big { Cause::TooBig { mtu: error.ee_info } } else { Cause::Other });
    }
    Some(Cause::Icmp {
        from: offender_address(offender)?,
        kind: error.ee_type,
        code: error.ee_code,
        rest: error.ee_info,
    })
}

fn offender_address(bytes: &[u8]) -> Option<IpAddr> {
    // SAFETY: all-zero bytes are a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let len = bytes.len().min(mem::size_of_val(&storage));
    // SAFETY: `len` is within both, and they do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut storage).cast::<u8>(), len) };
    from_kernel(&storage).map(|address| address.ip())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{Ipv6Addr, UdpSocket};
    use std::os::fd::AsFd;
    use std::time::Duration;

    use packet::{Packet, Tos, build};
    use socket2::{Domain, Protocol, Socket, Type};

    use super::*;
    use crate::io::send::{Datagram, Next, Sender};
    use crate::io::sockets::{self, Discover};

    const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// On the loopback an ICMP error is there before the send returns.
    #[test]
    fn the_error_of_one_remote_fails_the_next_send_to_another_until_it_is_taken() {
        let socket = sockets::mapping(LOCALHOST, 0, 0).unwrap();
        let (dead, live) = (closed_port(), UdpSocket::bind((LOCALHOST, 0)).unwrap());
        let mut sender = Sender::new();
        let mut send = |payload, destination, errors: &mut Vec<SendError>| {
            let datagram = Datagram { payload, destination, tos: Tos(0xb8), ttl: Some(64), segment: None };
            let mut tries = 0;
            sender.load(std::iter::once(datagram)).send(socket.as_fd(), |_, error| {
                assert!(may_be_anothers(error), "{error}");
                errors.extend(std::iter::from_fn(|| take(socket.as_fd(), &mut [0; 100])));
                tries += 1;
                assert_eq!(tries, 1, "once is enough");
                Next::Again
            });
        };
        let mut errors = Vec::new();
        send(b"to nobody", dead, &mut errors);
        send(b"voice", live.local_addr().unwrap(), &mut errors);

        let mut received = [0; 10];
        assert_eq!(live.recv(&mut received).unwrap(), 5);
        let cause = Cause::Icmp { from: LOCALHOST, kind: 3, code: 3, rest: 0 };
        assert_eq!(errors, [SendError { destination: dead, quoted: 9, cause }]);
    }

    /// Anybody may write what a router says. It is told whatever the socket does with what is too large, and the kernel does not go by it.
    #[test]
    fn what_a_router_says_is_told_and_cuts_nothing() {
        for like in [IpAddr::from([127, 0, 77, 2]), Ipv6Addr::LOCALHOST.into()] {
            for mode in [Discover::On, Discover::Off] {
                let (Ok(forger), Ok(captured)) = (
                    sockets::raw(Domain::for_address(SocketAddr::new(like, 0)), 0),
                    Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)),
                ) else {
                    assert!(std::env::var_os("BREAKOUT_REQUIRE_ALL").is_none(), "no raw socket");
                    return eprintln!("skipped, because packets cannot be made and captured");
                };
                let router = UdpSocket::bind((like, 0)).unwrap();
                captured.bind(&SocketAddr::new([127, 0, 77, 2].into(), 0).into()).unwrap();
                captured.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let socket = sockets::listening(SocketAddr::new(like, 0), 0, Discover::On).unwrap();
                sockets::discover(&socket, mode, like).unwrap();
                let (source, destination) =
                    (socket.local_addr().unwrap().as_socket().unwrap(), router.local_addr().unwrap());
                let mut said = [0; build::MAX_REFUSAL];
                let (kind, code) = if like.is_ipv4() { (3, 4) } else { (2, 0) };
                let sent = build::SentUdp { source, destination, payload: &[7; 1000] };
                let error = build::IcmpError { kind, code, rest: 1280 };
                let length = build::error_about_udp(&sent, error, like, &mut said).unwrap();
                forger.send_to(&said[..length], &SocketAddr::new(like, 0).into()).unwrap();

                let told = take(socket.as_fd(), &mut []).expect("an error");
                assert_eq!((told.destination, told.path_mtu()), (destination, Some(1280)), "{mode:?}");
                if like.is_ipv6() {
                    continue;
                }
                // As large datagrams of one send, too.
                let one =
                    Datagram { payload: &[7; 1400], destination, tos: Tos(0), ttl: None, segment: None };
                let several = Datagram { payload: &[7; 4000], segment: Some(1400), ..one };
                for datagram in [one, several] {
                    let refused = |_, _, error: &io::Error| panic!("{mode:?}: {error}");
                    assert!(
                        Sender::new().send_all(socket.as_fd(), std::iter::once(datagram), refused).is_none()
                    );
                    let seen = next_to(destination, &captured);
                    assert_eq!(seen, (28 + datagram.payload.len(), mode == Discover::On));
                }
            }
        }
    }

    /// The length of the next packet to there, and whether it has DF. Until a raw socket is bound it hears everybody.
    fn next_to(destination: SocketAddr, mut captured: &Socket) -> (usize, bool) {
        let mut bytes = [0; 5000];
        loop {
            let length = captured.read(&mut bytes).unwrap();
            let packet = Packet::parse(&bytes[..length]).unwrap();
            if packet.five_tuple().is_some_and(|tuple| tuple.destination == destination) {
                return (length, bytes[6] & 0x40 != 0);
            }
        }
    }

    fn closed_port() -> SocketAddr {
        UdpSocket::bind((LOCALHOST, 0)).unwrap().local_addr().unwrap()
    }
}
