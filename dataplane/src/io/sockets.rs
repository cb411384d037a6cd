use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};

/// What comes at 5 Gbit/s in a gap of 5 ms (a turn of the bulk thread is about 1 ms, and another thread may have its core for a scheduler's
/// slice of 3 to 4 ms) is 3.1 MB. The kernel grants twice what is asked for, and counts 1.2 times the size of what it gathers.
const TUNNEL_BUFFER: usize = 2 << 20;
/// One call is 50 packets/s of 200 B, each counted as 768 B: of the 512 KB granted that is 13 s. Video of 4 Mbit/s, counted about twice, fills
/// it in 0.5 s, well beyond the gap of a voice thread that is not real-time.
const MAPPING_BUFFER: usize = 256 << 10;

/// Lets this process open as many descriptors as the system allows it; returns how many. The soft limit is 1024 by default, for the sake of
/// programs that use select(2).
pub(crate) fn raise_descriptor_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for the kernel to fill, and to read.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) == 0 {
            limit = raised;
        }
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

/// The tunnel's socket, on any address and port.
pub(crate) fn tunnel(like: IpAddr, fwmark: u32, path_mtu: Discover) -> io::Result<Socket> {
    let any: IpAddr = match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    listening(SocketAddr::new(any, 0), fwmark, path_mtu)
}

/// A gateway's socket. `fwmark` 0: none. Where the path's MTU is discovered, errors wait in its error queue.
pub(crate) fn listening(address: SocketAddr, fwmark: u32, path_mtu: Discover) -> io::Result<Socket> {
    let socket = udp(address.ip(), fwmark)?;
    discover(&socket, path_mtu, address.ip())?;
    if path_mtu != Discover::Off {
        report_errors(&socket, address.ip())?;
    }
    grow_buffers(&socket, TUNNEL_BUFFER);
    report_tos(&socket, address.ip())?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Lets the kernel hand over several datagrams of one size in one buffer (UDP_GRO, Linux 5.0).
pub(crate) fn gather_datagrams(socket: &Socket) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Whether the kernel makes datagrams of a large one (UDP_SEGMENT, Linux 4.18); nothing is changed.
pub(crate) fn segments_datagrams(socket: &Socket) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0)
}

/// A mapping's socket on `address`, at `port` if it is free. What is too large for its way is fragmented there: an application that is told of it
/// would do so itself, and fragments have no ports to be judged by.
pub(crate) fn mapping(address: IpAddr, port: u16, fwmark: u32) -> io::Result<Socket> {
    let socket = udp(address, fwmark)?;
    discover(&socket, Discover::Off, address)?;
    grow_buffers(&socket, MAPPING_BUFFER);
    report_errors(&socket, address)?;
    report_marks(&socket, address)?;
    if socket.bind(&SocketAddr::new(address, port).into()).is_err() {
        socket.bind(&SocketAddr::new(address, 0).into())?;
    }
    Ok(socket)
}

/// Has what a socket sends from an address of its own leave by this interface, by whichever router that has; `None`: as the routes say.
pub(crate) fn leave_by(socket: &Socket, device: Option<u32>, like: IpAddr) -> io::Result<()> {
    let device = device.unwrap_or(0);
    match like {
        // An answer may come by another interface: Linux answers ARP for an address on each of them.
        IpAddr::V4(_) => set_option(socket, libc::SOL_IP, libc::IP_UNICAST_IF, device.to_be() as libc::c_int),
        // IPV6_UNICAST_IF is a mere wish where the source address is given (net/ipv6/route.c, ip6_route_output_flags).
        IpAddr::V6(_) => set_option(socket, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, device as libc::c_int),
    }
}

/// A raw socket that sends whole packets (`IP_HDRINCL`): over IPv4, as a mapping's socket, as large as they are whatever routers say.
pub(crate) fn raw(domain: Domain, fwmark: u32) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    socket.set_nonblocking(true)?;
    if domain == Domain::IPV4 {
        discover(&socket, Discover::Off, Ipv4Addr::UNSPECIFIED.into())?;
    }
    socket.set_mark(fwmark)?;
    Ok(socket)
}

fn udp(like: IpAddr, fwmark: u32) -> io::Result<Socket> {
    let domain = if like.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if like.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if fwmark != 0 {
        socket.set_mark(fwmark)?;
    }
    Ok(socket)
}

/// What becomes of packets that are too large for their way (ip(7), IP_MTU_DISCOVER). The kernel goes by what routers once told it in neither
/// case: anybody may have written that, and it holds for ten minutes. It does tell the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Discover {
    /// Routers fragment them; over IPv6 the kernel does, see [`fragment_v6`].
    Off,
    /// DF is set on all.
    On,
}

pub(crate) fn discover(socket: &Socket, discover: Discover, like: IpAddr) -> io::Result<()> {
    let (level, name, value) = match (like, discover) {
        (IpAddr::V4(_), Discover::Off) => (libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_OMIT),
        (IpAddr::V4(_), Discover::On) => (libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        // With IPV6_PMTUDISC_OMIT the socket would not be told (net/ipv6/udp.c, __udp6_lib_err).
        (IpAddr::V6(_), Discover::Off) => (libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT),
        (IpAddr::V6(_), Discover::On) => (libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
    };
    set_option(socket, level, name, value)
}

/// Runs `send` so that all it sends has DF set and is as large as it is. `otherwise` is what holds for all else, as of [`discover`] and
/// [`fragment_v6`]: what the latter would cut is refused while DF is set. What another thread sends meanwhile has DF too: of that, only what is
/// larger than the path carries could be lost.
pub(crate) fn probing(
    socket: &Socket,
    like: IpAddr,
    otherwise: (Discover, Option<u16>),
    send: impl FnOnce(),
) -> io::Result<()> {
    let (mode, cut) = otherwise;
    if mode == Discover::On {
        send();
        return Ok(());
    }
    discover(socket, Discover::On, like)?;
    if like.is_ipv6() {
        fragment_v6(socket, None)?;
    }
    send();
    if like.is_ipv6() {
        fragment_v6(socket, cut)?;
    }
    discover(socket, mode, like)
}

/// Runs `send` so that routers may fragment what it sends, or over IPv6 the kernel does: to `least` bytes, if that is known.
pub(crate) fn fragmenting(
    socket: &Socket,
    like: IpAddr,
    least: Option<u16>,
    send: impl FnOnce(),
) -> io::Result<()> {
    discover(socket, Discover::Off, like)?;
    if like.is_ipv6() {
        fragment_v6(socket, least)?;
    }
    send();
    if like.is_ipv6() {
        fragment_v6(socket, None)?;
    }
    discover(socket, Discover::On, like)
}

/// Has the kernel cut IPv6 packets to `mtu` bytes (IPV6_MTU, at least 1280): only their sender may, and it may not know. `None`: as it knows.
pub(crate) fn fragment_v6(socket: &Socket, mtu: Option<u16>) -> io::Result<()> {
    set_option(socket, libc::SOL_IPV6, libc::IPV6_MTU, mtu.unwrap_or_default().into())
}

fn report_tos(socket: &Socket, like: IpAddr) -> io::Result<()> {
    match like {
        IpAddr::V4(_) => set_option(socket, libc::SOL_IP, libc::IP_RECVTOS, 1),
        IpAddr::V6(_) => set_option(socket, libc::SOL_IPV6, libc::IPV6_RECVTCLASS, 1),
    }
}

fn report_marks(socket: &Socket, like: IpAddr) -> io::Result<()> {
    report_tos(socket, like)?;
    match like {
        IpAddr::V4(_) => set_option(socket, libc::SOL_IP, libc::IP_RECVTTL, 1),
        IpAddr::V6(_) => set_option(socket, libc::SOL_IPV6, libc::IPV6_RECVHOPLIMIT, 1),
    }
}

fn report_errors(socket: &Socket, like: IpAddr) -> io::Result<()> {
    match like {
        IpAddr::V4(_) => set_option(socket, libc::SOL_IP, libc::IP_RECVERR, 1),
        IpAddr::V6(_) => set_option(socket, libc::SOL_IPV6, libc::IPV6_RECVERR, 1),
    }
}

/// Beyond the system's limit where we may; what the system grants otherwise will do.
fn grow_buffers(socket: &Socket, bytes: usize) {
    for (force, ask) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        let set = |name| set_option(socket, libc::SOL_SOCKET, name, bytes as libc::c_int);
        let _ = set(force).or_else(|_| set(ask));
    }
}

fn set_option(socket: &Socket, level: i32, name: i32, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the option's value is one `int`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
