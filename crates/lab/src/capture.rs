use std::io;
use std::mem::{size_of, zeroed};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::thread::JoinHandle;

use nix::net::if_::if_nametoindex;
use packet::{FiveTuple, Packet, protocol};
use socket2::{Domain, Protocol, Socket, Type};

use crate::internet::addresses::GATEWAY_PORT;
use crate::{During, Host, LabError, Stop, StopSource};

/// One captured IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When the kernel saw it, in nanoseconds since 1970 (SO_TIMESTAMPNS).
    pub at_ns: u64,
    /// Sent by the capturing host, not received.
    pub outgoing: bool,
    /// IP protocol number.
    pub protocol: u8,
    /// Ports are 0 where the packet has none.
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// The type-of-service or traffic-class byte.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Of the IP packet, in bytes. The kernel may hand over several TCP segments as one.
    pub len: u32,
    /// The transport payload's first bytes, at most [`HEAD`].
    pub head: Vec<u8>,
}

/// How many payload bytes a record keeps.
pub const HEAD: usize = 32;

/// What a capture saw from its start to its end.
#[derive(Clone, Debug)]
pub struct Captured {
    pub records: Vec<Record>,
    /// Packets that passed while the capture's buffer was full: if there are any, their absence from the records proves nothing.
    pub lost: u64,
    /// IP packets that could not be parsed, fragments of fragments and the like.
    pub unparsed: u64,
}

/// A running capture of everything on one device of a host, in both directions.
#[derive(Debug)]
pub struct Capture {
    stop: StopSource,
    thread: JoinHandle<io::Result<Captured>>,
    name: String,
}

/// Room for packets that the capturing thread has not come to yet, in bytes: about a second of 250 Mbit/s.
const BUFFER: usize = 32 * 1024 * 1024;

impl Capture {
    /// Starts capturing; packets from now on are seen.
    pub fn start(host: &Host, device: &str) -> Result<Self, LabError> {
        Self::open(host, device, false)
    }

    /// As [`Capture::start`], but the kernel leaves out UDP over IPv4 from or to [`GATEWAY_PORT`]: for what happens beside a tunnel that
    /// carries more than a capture can hold.
    pub fn start_beside_tunnel(host: &Host, device: &str) -> Result<Self, LabError> {
        Self::open(host, device, true)
    }

    fn open(host: &Host, device: &str, beside_tunnel: bool) -> Result<Self, LabError> {
        let name = format!("capture {}/{device}", host.name());
        let stop = StopSource::new().during(|| format!("prepare the {name}"))?;
        let (token, at) = (stop.token(), device.to_owned());
        let socket = host.run(move || open(&at, beside_tunnel))?.during(|| format!("start the {name}"))?;
        let thread = host.thread(&name, move || record(&socket, &token))?;
        Ok(Self { stop, thread, name })
    }

    /// Ends the capture, with everything that passed before this call.
    pub fn finish(mut self) -> Result<Captured, LabError> {
        self.stop.stop();
        self.thread
            .join()
            .map_err(|_| LabError::HostGone(self.name.clone()))?
            .during(|| format!("read the {}", self.name))
    }
}

fn open(device: &str, beside_tunnel: bool) -> io::Result<Socket> {
    let protocol = i32::from((libc::ETH_P_ALL as u16).to_be());
    // Cooked: packets come without their link layer's header, on any kind of device. Protocol 0 until bound, so that nothing of another
    // device gets in.
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))?;
    // The forcing variant needs rights on the whole machine; without them the kernel's limit holds.
    if set_option(&socket, libc::SO_RCVBUFFORCE, BUFFER as i32).is_err() {
        socket.set_recv_buffer_size(BUFFER)?;
    }
    set_option(&socket, libc::SO_TIMESTAMPNS, 1)?;
    socket.set_nonblocking(true)?;
    if beside_tunnel {
        leave_out_tunnel(&socket)?;
    }
    // SAFETY: a zeroed sockaddr_ll is a valid one.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol as u16;
    address.sll_ifindex = if_nametoindex(device)? as i32;
    // SAFETY: the address is a sockaddr_ll of the length given.
    let bound = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32)
    };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// The filter sees packets from their IP header on.
fn leave_out_tunnel(socket: &Socket) -> io::Result<()> {
    const fn step(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
        libc::sock_filter { code: code as u16, jt, jf, k }
    }
    use libc::{BPF_ABS, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_LDX, BPF_MSH, BPF_RET};
    let port = u32::from(GATEWAY_PORT);
    let mut filter = [
        step(BPF_LD | BPF_B | BPF_ABS, 9, 0, 0),
        step(BPF_JMP | BPF_JEQ | BPF_K, u32::from(protocol::UDP), 0, 5),
        step(BPF_LDX | BPF_B | BPF_MSH, 0, 0, 0),
        step(BPF_LD | BPF_H | BPF_IND, 0, 0, 0),
        step(BPF_JMP | BPF_JEQ | BPF_K, port, 3, 0),
        step(BPF_LD | BPF_H | BPF_IND, 2, 0, 0),
        step(BPF_JMP | BPF_JEQ | BPF_K, port, 1, 0),
        step(BPF_RET | BPF_K, u32::MAX, 0, 0),
        step(BPF_RET | BPF_K, 0, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel reads one sock_fprog and the steps it points to, all of which live here.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as u32,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set_option(socket: &Socket, option: i32, value: i32) -> io::Result<()> {
    let len = size_of::<i32>() as u32;
    // SAFETY: the kernel reads one int, which lives here.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const value).cast(), len)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn record(socket: &Socket, stop: &Stop) -> io::Result<Captured> {
    let mut captured = Captured { records: Vec::new(), lost: 0, unparsed: 0 };
    let mut frame = vec![0; 128 * 1024];
    loop {
        let go_on = stop.readable(socket);
        // Also after the stop: what has arrived by then belongs to the capture.
        while let Some(received) = receive(socket, &mut frame)? {
            if !received.is_ip {
                continue;
            }
            match frame.get(..received.len).map(Packet::parse) {
                Some(Ok(packet)) => captured.records.push(Record::new(&packet, &received)),
                _ => captured.unparsed += 1,
            }
        }
        if !go_on {
            captured.lost = lost(socket)?;
            return Ok(captured);
        }
    }
}

struct Received {
    len: usize,
    is_ip: bool,
    outgoing: bool,
    at_ns: u64,
}

/// `None` when nothing waits.
fn receive(socket: &Socket, frame: &mut [u8]) -> io::Result<Option<Received>> {
    // Aligned for the control message header.
    let mut control = [0_u64; 16];
    // SAFETY: zeroed, both are valid; pointers are set below.
    let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) = unsafe { (zeroed(), zeroed()) };
    let mut part = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
    message.msg_name = (&raw mut from).cast();
    message.msg_namelen = size_of::<libc::sockaddr_ll>() as u32;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: every pointer in the message leads to a buffer that lives here and is as long as stated.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
    if len < 0 {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
            // The device went down, once.
            _ if error.raw_os_error() == Some(libc::ENETDOWN) => Ok(None),
            _ => Err(error),
        };
    }
    let protocol = i32::from(u16::from_be(from.sll_protocol));
    Ok(Some(Received {
        len: len as usize,
        is_ip: matches!(protocol, libc::ETH_P_IP | libc::ETH_P_IPV6),
        outgoing: from.sll_pkttype == libc::PACKET_OUTGOING,
        at_ns: timestamp(&message),
    }))
}

fn timestamp(message: &libc::msghdr) -> u64 {
    // SAFETY: the message was filled by recvmsg and its control buffer is still there.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: not null, so within the control buffer; the kernel wrote a timespec behind such a header.
        unsafe {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_TIMESTAMPNS {
                let time = libc::CMSG_DATA(header).cast::<libc::timespec>().read_unaligned();
                return time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    0
}

fn lost(socket: &Socket) -> io::Result<u64> {
    // SAFETY: zeroed, it is a valid one.
    let mut statistics: libc::tpacket_stats = unsafe { zeroed() };
    let mut len = size_of::<libc::tpacket_stats>() as u32;
    // SAFETY: the kernel writes at most `len` bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &mut len,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(u64::from(statistics.tp_drops)) }
}

impl Record {
    fn new(packet: &Packet<'_>, received: &Received) -> Self {
        let headers = packet.headers();
        let flow = packet.five_tuple().unwrap_or(FiveTuple {
            protocol: headers.protocol,
            source: SocketAddr::new(headers.source, 0),
            destination: SocketAddr::new(headers.destination, 0),
        });
        Self {
            at_ns: received.at_ns,
            outgoing: received.outgoing,
            protocol: flow.protocol,
            source: flow.source,
            destination: flow.destination,
            tos: headers.tos.0,
            ttl: headers.ttl,
            len: headers.len,
            head: packet.payload().iter().take(HEAD).copied().collect(),
        }
    }

    /// The differentiated services code point, 0–63.
    pub fn dscp(&self) -> u8 {
        self.tos >> 2
    }
}
