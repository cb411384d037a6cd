//! The real programs under BPF_PROG_TEST_RUN, held against what crate `packet` makes of the same packet: for the property test and the
//! fuzz target.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::process::Command;
use std::time::Duration;
use std::{io, mem};

use dataplane::Direction;
use dataplane::fast_path::{Counts, EntryId, FastPath, Flow, Link, OBJECT, Program};
use dataplane::rtp::{HEAD, RtpStream};
use packet::{Checksum, Packet, PacketMut, ParseError, Transport};
use policy::Mark;

use crate::tun::{Offload, Tun, index};

/// The kernel reads a packet's EtherType where IPv4 has the source address's first two bytes, and IPv6 bytes 4 and 5 of it, if a test hands
/// it a packet without a link header: with these the EtherType comes out right.
pub const SOURCE_V4: [u8; 2] = [8, 0];
pub const SOURCE_V6: [u8; 6] = [0x20, 0x01, 0x0d, 0xb8, 0x86, 0xdd];

/// The least packet that the kernel shows a program without a link header: behind the 14 bytes that it takes for one it wants a whole IP
/// header.
pub fn least_len(v6: bool) -> usize {
    ETHERNET + if v6 { 40 } else { 20 }
}

/// RFC 3550 §5.1, without contributing sources.
const RTP_HEADER: usize = 12;
const FWMARK: u32 = 0x77;
const LEAVE: i32 = -1;
const REDIRECT: i32 = 7;
const ETHERNET: usize = 14;

/// A packet for a program, and the flow that is installed meanwhile.
#[derive(Clone, Debug)]
pub struct Case {
    pub direction: Direction,
    pub physical: Link,
    pub internal: SocketAddr,
    pub external: SocketAddr,
    pub remote: SocketAddr,
    pub mark: Mark,
    pub mtu: u32,
    /// Whether the direction is the kernel's.
    pub live: bool,
    /// From the IP header on; bytes behind the packet's end may follow.
    pub packet: Vec<u8>,
    /// Segment size of a super-packet.
    pub segment: Option<u16>,
    /// What passed in this direction before.
    pub talk: Talk,
}

/// RTP packets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Talk {
    pub packets: u16,
    pub interval: Duration,
    /// Every other one arrives so much later than its time.
    pub late: Duration,
    /// Whether the last one came from another source.
    pub interrupted: bool,
    /// Hertz.
    pub clock_rate: u32,
    /// Number of the first.
    pub sequence: u16,
    /// Whether others counted them.
    pub handed_over: bool,
}

/// What is to become of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Moved(Vec<u8>),
    /// Left alone and counted.
    HandedUp,
    /// Left alone and not counted, but of the flow.
    Passed,
    /// Left alone: no packet of the flow, or none that the pump would know as one.
    Left,
    /// Left alone; whether it is counted does not matter, as the pump drops it.
    Dropped,
}

/// The programs, attached in a network namespace of this thread's own.
pub struct Programs {
    fast_path: FastPath,
    tuns: [Tun; 2],
    ethernet: u32,
    mac: [u8; 6],
}

/// Whether the kernel shows the program a link header in front of the packet.
pub fn has_link_header(direction: Direction, physical: Link) -> bool {
    direction == Direction::Inbound && physical == Link::Ethernet
}

impl Programs {
    /// With its reason where they cannot be.
    pub fn start() -> Result<Self, String> {
        Self::start_object(OBJECT)
    }

    /// The same with another build of them.
    pub fn start_object(object: &[u8]) -> Result<Self, String> {
        // SAFETY: takes no pointers.
        if unsafe { libc::geteuid() } != 0 {
            return Err("loading BPF programs needs root".to_owned());
        }
        // SAFETY: takes no pointers.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(format!("no network namespace: {}", io::Error::last_os_error()));
        }
        let open = |name| Tun::open(name, Offload::On).map_err(|error| format!("no TUN: {error}"));
        let tuns = [open("tun")?, open("plain")?];
        let mac = [2, 0, 0, 0, 0, 9];
        let link = ["link", "add", "ether", "address", "02:00:00:00:00:09", "type", "veth"];
        let made = Command::new("ip").args(link).status();
        if !made.is_ok_and(|status| status.success()) {
            return Err("the program ip (iproute2) cannot make a veth".to_owned());
        }
        let mut fast_path =
            FastPath::open_object(object, tuns[0].index, 1 << 16).map_err(|error| error.to_string())?;
        let ethernet = index("ether");
        for interface in [ethernet, tuns[1].index] {
            fast_path.attach(interface).map_err(|error| error.to_string())?;
        }
        Ok(Self { fast_path, tuns, ethernet, mac })
    }

    /// Runs the case and holds what the program did against what is expected, which is returned.
    pub fn check(&mut self, case: &Case) -> Outcome {
        let expected = expected(case);
        let id = self.install(case);
        let before = self.counts(id, case.direction);
        let began = since_boot();
        let ran = self.run(case);
        let ended = since_boot();
        let after = self.counts(id, case.direction);
        self.fast_path.remove(id).unwrap();

        if expected != Outcome::Dropped {
            let mut arrival = last_arrival(&after.rtp);
            if arrival == last_arrival(&before.rtp) {
                arrival = began;
            }
            assert!((began..=ended).contains(&arrival), "{case:?}");
            let is_seen = expected != Outcome::Left;
            let stream = if is_seen { measured(case, before.rtp, arrival) } else { before.rtp };
            assert_eq!(after.rtp, stream, "{case:?}");
        }
        let handed_up = after.handed_up - before.handed_up;
        match &expected {
            Outcome::Moved(packet) => {
                assert_eq!(ran.verdict, REDIRECT, "{case:?}");
                assert_eq!(&ran.packet, packet, "{case:?}");
                assert_eq!(handed_up, 0);
                assert_counted(case, &before, &after);
                if case.direction == Direction::Outbound {
                    assert_eq!(ran.mark, FWMARK);
                }
                return expected;
            }
            Outcome::HandedUp => assert_eq!(handed_up, 1, "{case:?}"),
            Outcome::Passed | Outcome::Left => assert_eq!(handed_up, 0, "{case:?}"),
            Outcome::Dropped => {}
        }
        assert_eq!(ran.verdict, LEAVE, "{case:?}");
        assert_eq!(ran.packet, case.packet, "untouched: {case:?}");
        assert_eq!((after.packets, after.bytes), (0, 0));
        expected
    }

    /// What becomes of the case's packet where the physical interface is another than the flow's.
    pub fn verdict_elsewhere(&mut self, case: &Case) -> i32 {
        let id = self.install(case);
        let elsewhere = Case { physical: other(case.physical), ..case.clone() };
        let verdict = self.run(&elsewhere).verdict;
        self.fast_path.remove(id).unwrap();
        verdict
    }

    fn install(&mut self, case: &Case) -> EntryId {
        let flow = Flow {
            internal: case.internal,
            external: case.external,
            remote: case.remote,
            interface: self.interface(case.physical),
            next_hop: (case.physical == Link::Ethernet).then_some(case.remote.ip()),
            fwmark: FWMARK,
            mtu: case.mtu,
            mark: case.mark,
            life: Duration::from_secs(300),
            rtp: [case.talk.heard(since_boot()); 2],
        };
        let id = self.fast_path.install(&flow).unwrap();
        for direction in [Direction::Outbound, Direction::Inbound] {
            if case.live || direction != case.direction {
                assert!(self.fast_path.settle(id, direction, Duration::MAX, None));
            }
        }
        id
    }

    fn counts(&self, id: EntryId, direction: Direction) -> Counts {
        let statistics = self.fast_path.statistics(id).unwrap();
        match direction {
            Direction::Outbound => statistics.outbound,
            Direction::Inbound => statistics.inbound,
        }
    }

    fn interface(&self, physical: Link) -> u32 {
        match physical {
            Link::Ethernet => self.ethernet,
            Link::None => self.tuns[1].index,
        }
    }

    fn run(&self, case: &Case) -> Ran {
        let program = match case.direction {
            Direction::Outbound => Program::Outbound,
            Direction::Inbound => Program::Inbound(case.physical),
        };
        let link_header = has_link_header(case.direction, case.physical);
        let mut input = Vec::new();
        if link_header {
            let ether_type = if case.remote.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
            input = [&self.mac[..], &[2, 0, 0, 0, 0, 1], &ether_type].concat();
        }
        let header = input.clone();
        input.extend(&case.packet);
        let context = Context {
            interface: match case.direction {
                Direction::Outbound => self.tuns[0].index,
                Direction::Inbound => self.interface(case.physical),
            },
            segment: case.segment.unwrap_or(0).into(),
        };
        let program = self.fast_path.program(program).unwrap();
        let mut ran = test_run(program, &input, context, link_header);
        let before_packet = match (case.direction, case.physical, ran.verdict) {
            // Room for the header that the redirect takes off again.
            (Direction::Outbound, Link::Ethernet, REDIRECT) => vec![0; ETHERNET],
            _ => header,
        };
        let packet = ran.packet.split_off(before_packet.len());
        assert_eq!(ran.packet, before_packet, "link header");
        Ran { packet, ..ran }
    }
}

/// By the library that the pump rewrites with.
fn expected(case: &Case) -> Outcome {
    let mut bytes = case.packet.clone();
    let found = bytes.len();
    let mut packet = match PacketMut::parse(&mut bytes, Checksum::Complete) {
        Ok(packet) => packet,
        Err(ParseError::SourceRouted | ParseError::Ipv4Option { .. }) => return Outcome::Dropped,
        Err(_) => return Outcome::Left,
    };
    let headers = *packet.headers();
    let Some(tuple) = headers.five_tuple().filter(|_| matches!(headers.transport, Transport::Udp { .. }))
    else {
        return Outcome::Left;
    };
    let (outbound, options) = (
        case.direction == Direction::Outbound,
        match headers.source.is_ipv4() {
            true => headers.transport_at != 20,
            false => headers.transport_at != 40,
        },
    );
    let endpoints = if outbound { (case.internal, case.remote) } else { (case.remote, case.external) };
    if (tuple.source, tuple.destination) != endpoints
        || headers.fragment.is_some()
        || options && headers.source.is_ipv6()
        || outbound && headers.len as usize != found
    {
        return Outcome::Left;
    }
    if options && !outbound {
        return Outcome::Passed;
    }
    let largest = case.segment.map_or(headers.len, |size| u32::from(size) + u32::from(headers.payload_at));
    if options || !case.live || outbound && largest > case.mtu {
        return Outcome::HandedUp;
    }
    if outbound {
        packet.set_dscp(case.mark.apply(headers.tos).dscp());
        assert!(packet.set_source(case.external));
    } else {
        assert!(packet.set_destination(case.internal));
    }
    Outcome::Moved(bytes)
}

/// By the arithmetic that the pump measures with.
fn measured(case: &Case, mut stream: RtpStream, arrival: u64) -> RtpStream {
    let packet = Packet::parse(&case.packet).unwrap();
    let whole = packet.payload();
    let datagram =
        whole.get(..case.segment.unwrap_or(0).into()).filter(|first| !first.is_empty()).unwrap_or(whole);
    let head = datagram.get(..HEAD).unwrap_or(datagram);
    stream.seen(head, datagram.len(), arrival, packet.headers().tos.0);
    // Behind the first datagram of several there are others, which nobody looks at.
    let several = case.segment.is_some() && datagram.len() >= RTP_HEADER;
    if several { stream.handed_over() } else { stream }
}

impl Talk {
    /// As it was measured by `now`, in nanoseconds.
    fn heard(&self, now: u64) -> RtpStream {
        let mut stream = RtpStream::default();
        for number in 0..self.packets {
            let late = if number % 2 == 1 { self.late } else { Duration::ZERO };
            let ago = (self.interval * u32::from(self.packets - number)).saturating_sub(late);
            let other = self.interrupted && number + 1 == self.packets;
            let arrival = now.wrapping_sub(ago.as_nanos() as u64);
            stream.seen(&self.packet(number, other), RTP_HEADER, arrival, 0xb8);
        }
        if self.handed_over { stream.handed_over() } else { stream }
    }

    fn packet(&self, number: u16, other: bool) -> [u8; RTP_HEADER] {
        let step = self.interval.as_millis() as u32 * (self.clock_rate / 1000);
        let [s0, s1] = self.sequence.wrapping_add(number).to_be_bytes();
        let [t0, t1, t2, t3] = u32::from(number).wrapping_mul(step).to_be_bytes();
        [0x80, 111, s0, s1, t0, t1, t2, t3, 0x6c, 0x61, 0x62, other.into()]
    }

    /// What comes next, or `ahead` places further, from the same source or another; relayed: in TURN ChannelData.
    pub fn next(&self, ahead: u16, other: bool, relayed: bool, rest: &[u8]) -> Vec<u8> {
        let header = self.packet(self.packets.wrapping_add(ahead), other);
        let len = (RTP_HEADER + rest.len()) as u16;
        let channel = [&[0x40, 1][..], &len.to_be_bytes()].concat();
        [if relayed { &channel[..] } else { &[] }, &header, rest].concat()
    }
}

/// Where a stream keeps the time of the last packet that was measured.
fn last_arrival(stream: &RtpStream) -> u64 {
    const { assert!(size_of::<RtpStream>() >= size_of::<u64>()) };
    // SAFETY: the structure is `repr(C)`, large enough, and its first field is that number.
    unsafe { (&raw const *stream).cast::<u64>().read() }
}

/// The programs' clock, in nanoseconds.
fn since_boot() -> u64 {
    // SAFETY: all-zero bytes are a valid timespec, which the kernel fills.
    let time = unsafe {
        let mut time: libc::timespec = mem::zeroed();
        assert_eq!(libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time), 0);
        time
    };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

fn assert_counted(case: &Case, before: &Counts, after: &Counts) {
    let headers = if case.remote.is_ipv4() { 28 } else { 48 };
    let packet = Packet::parse(&case.packet).unwrap();
    let datagrams = match case.segment {
        Some(size) => packet.payload().chunks(size.into()).map(<[u8]>::len).collect(),
        None => vec![packet.payload().len()],
    };
    let datagrams = if datagrams.is_empty() { vec![0] } else { datagrams };
    let bytes: usize = datagrams.iter().map(|len| headers + len).sum();
    assert_eq!((before.packets, before.bytes), (0, 0));
    assert_eq!((after.packets, after.bytes), (datagrams.len() as u64, bytes as u64), "{case:?}");
    assert!(after.last_seen >= before.last_seen);
}

fn other(link: Link) -> Link {
    match link {
        Link::Ethernet => Link::None,
        Link::None => Link::Ethernet,
    }
}

struct Ran {
    verdict: i32,
    packet: Vec<u8>,
    mark: u32,
}

struct Context {
    interface: u32,
    segment: u32,
}

/// The packet's checksum is given as summed up by the interface (CHECKSUM_COMPLETE) where `summed`, and the kernel then checks that its
/// sum still fits.
fn test_run(program: BorrowedFd<'_>, input: &[u8], context: Context, summed: bool) -> Ran {
    /// linux/bpf.h.
    const BPF_PROG_TEST_RUN: libc::c_int = 10;
    const BPF_F_TEST_SKB_CHECKSUM_COMPLETE: u32 = 4;
    /// `struct __sk_buff`, of which all else must be 0.
    const MARK: usize = 8;
    const IFINDEX: usize = 40;
    const GSO_SIZE: usize = 176;
    const SK_BUFF: usize = 192;

    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        program: u32,
        verdict: u32,
        input_len: u32,
        output_len: u32,
        input: u64,
        output: u64,
        repeat: u32,
        duration: u32,
        context_len: u32,
        context_out_len: u32,
        context: u64,
        context_out: u64,
        flags: u32,
        cpu: u32,
        batch_size: u32,
        padding: u32,
    }

    let mut output = vec![0; input.len() + 64];
    let mut skb = [0; SK_BUFF];
    skb[IFINDEX..][..4].copy_from_slice(&context.interface.to_ne_bytes());
    skb[GSO_SIZE..][..4].copy_from_slice(&context.segment.to_ne_bytes());
    let mut skb_out = [0; SK_BUFF];
    let mut run = |flags| {
        let mut attributes = Attributes {
            program: program.as_raw_fd().cast_unsigned(),
            input_len: input.len() as u32,
            output_len: output.len() as u32,
            input: input.as_ptr() as u64,
            output: output.as_mut_ptr() as u64,
            context_len: SK_BUFF as u32,
            context_out_len: SK_BUFF as u32,
            context: skb.as_ptr() as u64,
            context_out: skb_out.as_mut_ptr() as u64,
            flags,
            ..Attributes::default()
        };
        // SAFETY: the kernel reads and writes the attributes and the buffers that they name, with their lengths; all outlive the call.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, mem::size_of::<Attributes>())
        };
        if result == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
    };
    let ran = match run(if summed { BPF_F_TEST_SKB_CHECKSUM_COMPLETE } else { 0 }) {
        // Before Linux 6.16.
        Err(error) if summed && error.raw_os_error() == Some(libc::EINVAL) => run(0),
        ran => ran,
    };
    let ran = ran.unwrap_or_else(|error| panic!("running the program on {input:02x?}: {error}"));
    output.truncate(ran.output_len as usize);
    let mark = u32::from_ne_bytes(skb_out[MARK..][..4].try_into().unwrap());
    Ran { verdict: ran.verdict.cast_signed(), packet: output, mark }
}
