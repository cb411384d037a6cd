//! Checksums that the kernel has not finished, and super-packets: BPF_PROG_TEST_RUN cannot make them, so they pass the programs on a real
//! way, and are held against crate `packet` as they come out at its end.

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use dataplane::Direction;
use dataplane::fast_path::{FastPath, Flow, Link};
use packet::{Checksum, Dscp, Packet, PacketMut, protocol};
use policy::Mark;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::machine::{ip, namespace};
use crate::network::PATIENCE;
use crate::packets::{Body, Spec};
use crate::tun::{Offload, Tun, VNET_HEADER, readable};

const NEEDS_CSUM: u8 = 1;
const GSO_UDP_L4: u8 = 5;

#[derive(Clone, Debug)]
struct Case {
    direction: Direction,
    internal: SocketAddr,
    external: SocketAddr,
    remote: SocketAddr,
    tos: u8,
    payload: Vec<u8>,
    checksum: Checksum,
    segment: Option<u16>,
}

#[test]
fn unfinished_checksums_and_super_packets_are_rewritten_as_the_pump_would() {
    if namespace().is_none() {
        return;
    }
    let ways = Ways::open();
    let ways = std::cell::RefCell::new(ways);
    let mut runner = TestRunner::new(Config { cases: 400, failure_persistence: None, ..Config::default() });
    runner
        .run(&case(), |case| {
            ways.borrow_mut().check(&case);
            Ok(())
        })
        .unwrap();
}

/// From the TUN's egress to the physical interface, which is another TUN, and back.
struct Ways {
    tun: Tun,
    applications: PacketSocket,
    physical: Tun,
    fast_path: FastPath,
}

impl Ways {
    fn open() -> Self {
        let open = |name| {
            let tun = Tun::open(name, Offload::On).unwrap();
            ip(&format!("link set {name} up"));
            tun
        };
        let (tun, physical) = (open("tun"), open("wifi"));
        let mut fast_path = FastPath::open(tun.index, 4096).unwrap();
        assert_eq!(fast_path.attach(physical.index).unwrap(), Link::None);
        Self { applications: PacketSocket::open(tun.index), tun, physical, fast_path }
    }

    fn check(&mut self, case: &Case) {
        let flow = Flow {
            internal: case.internal,
            external: case.external,
            remote: case.remote,
            interface: self.physical.index,
            next_hop: None,
            fwmark: 1,
            mtu: 1500,
            mark: Mark::Voice(Dscp::EF),
            life: Duration::from_secs(300),
            rtp: Default::default(),
        };
        let id = self.fast_path.install(&flow).unwrap();
        assert!(self.fast_path.settle(id, case.direction, Duration::MAX, None));
        let sent = record(case);
        let got = match case.direction {
            Direction::Outbound => {
                self.applications.send(self.tun.index, &sent);
                wait_for_udp(|| self.physical.read(PATIENCE))
            }
            Direction::Inbound => {
                self.physical.write(&sent).unwrap();
                wait_for_udp(|| self.applications.receive())
            }
        };
        self.fast_path.remove(id).unwrap();

        let (vnet, packet) = got.split_at(VNET_HEADER);
        assert_eq!(packet, expected(case, &sent[VNET_HEADER..]), "{case:?}");
        assert_eq!(vnet[0] & NEEDS_CSUM, sent[0] & NEEDS_CSUM, "{case:?}");
        assert_eq!((vnet[1], &vnet[4..6]), (sent[1], &sent[4..6]), "segmentation of {case:?}");
    }
}

fn expected(case: &Case, packet: &[u8]) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    let mut packet = PacketMut::parse(&mut bytes, case.checksum).unwrap();
    match case.direction {
        Direction::Outbound => {
            packet.set_dscp(Mark::Voice(Dscp::EF).apply(packet.headers().tos).dscp());
            packet.set_source(case.external);
        }
        Direction::Inbound => {
            packet.set_destination(case.internal);
        }
    }
    bytes
}

fn record(case: &Case) -> Vec<u8> {
    let (source, destination) = match case.direction {
        Direction::Outbound => (case.internal, case.remote),
        Direction::Inbound => (case.remote, case.external),
    };
    let spec = Spec {
        source,
        destination,
        tos: case.tos,
        ttl: 64,
        body: Body::Udp { summed: true },
        option_words: 0,
        extensions: Vec::new(),
        cut: 0,
        payload: case.payload.clone(),
        checksum: case.checksum,
    };
    let packet = spec.build().bytes;
    let transport_at = if source.is_ipv4() { 20 } else { 40 };
    let mut vnet = [0; VNET_HEADER];
    if case.checksum == Checksum::Partial {
        vnet[0] = NEEDS_CSUM;
        vnet[6] = transport_at;
        vnet[8] = 6;
    }
    if let Some(size) = case.segment {
        vnet[1] = GSO_UDP_L4;
        vnet[2] = transport_at + 8;
        vnet[4..6].copy_from_slice(&size.to_ne_bytes());
    }
    [&vnet[..], &packet].concat()
}

/// Interfaces send other things by themselves.
fn wait_for_udp(mut next: impl FnMut() -> Option<Vec<u8>>) -> Vec<u8> {
    loop {
        let record = next().expect("a packet in time");
        let packet = Packet::parse(&record[VNET_HEADER..]);
        if packet.is_ok_and(|packet| packet.headers().protocol == protocol::UDP) {
            return record;
        }
    }
}

fn case() -> impl Strategy<Value = Case> {
    any::<bool>().prop_flat_map(|v6| {
        let endpoint = move || {
            (any::<[u8; 16]>(), any::<u16>()).prop_map(move |(octets, port)| match v6 {
                true => (octets, port).into(),
                false => (*octets.first_chunk::<4>().unwrap(), port).into(),
            })
        };
        let size = prop_oneof![2 => Just(None), 1 => (100..1400u16).prop_map(Some)];
        let payload = prop::collection::vec(any::<u8>(), 0..1400);
        let rest = (any::<[bool; 3]>(), any::<u8>(), payload, size, 2..20usize);
        (endpoint(), endpoint(), endpoint(), rest).prop_map(
            |(internal, external, remote, ([out, partial, same_port], tos, payload, segment, times))| {
                let direction = if out { Direction::Outbound } else { Direction::Inbound };
                let mut external: SocketAddr = external;
                let internal: SocketAddr = internal;
                if same_port {
                    external.set_port(internal.port());
                }
                // A super-packet is longer than its segments, and its checksum is never finished.
                let segment = segment.filter(|_| !payload.is_empty());
                let payload = match segment {
                    Some(size) => payload.into_iter().cycle().take(usize::from(size) * times + 1).collect(),
                    None => payload,
                };
                let checksum =
                    if partial || segment.is_some() { Checksum::Partial } else { Checksum::Complete };
                Case { direction, internal, external, remote, tos, payload, checksum, segment }
            },
        )
    })
}

/// A packet socket on the TUN, with virtio headers: in the place of applications.
struct PacketSocket(OwnedFd);

impl PacketSocket {
    fn open(interface: u32) -> Self {
        /// linux/if_packet.h.
        const PACKET_VNET_HDR: libc::c_int = 15;
        let every = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: takes no pointers.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
                every.into(),
            )
        };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the kernel just gave us this descriptor.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        let on: libc::c_int = 1;
        let address = address(interface, every);
        // SAFETY: the kernel reads one `int` and one address, both of which outlive the calls.
        let results = unsafe {
            [
                libc::setsockopt(fd, libc::SOL_PACKET, PACKET_VNET_HDR, (&raw const on).cast(), 4),
                libc::bind(fd, (&raw const address).cast(), mem::size_of_val(&address) as u32),
            ]
        };
        assert_eq!(results, [0, 0], "{}", io::Error::last_os_error());
        socket
    }

    fn send(&self, interface: u32, record: &[u8]) {
        let family = if record[VNET_HEADER] >> 4 == 4 { libc::ETH_P_IP } else { libc::ETH_P_IPV6 };
        let address = address(interface, (family as u16).to_be());
        // SAFETY: the kernel reads the record and the address, which outlive the call.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                record.as_ptr().cast(),
                record.len(),
                0,
                (&raw const address).cast(),
                mem::size_of_val(&address) as u32,
            )
        };
        assert_eq!(sent, record.len() as isize, "{}", io::Error::last_os_error());
    }

    /// The next packet that arrived on the TUN.
    fn receive(&self) -> Option<Vec<u8>> {
        loop {
            let mut record = vec![0; VNET_HEADER + 65_575];
            let mut from = address(0, 0);
            let mut from_len = mem::size_of_val(&from) as u32;
            // SAFETY: the kernel writes into the record and the address, whose lengths it is told.
            let len = unsafe {
                libc::recvfrom(
                    self.0.as_raw_fd(),
                    record.as_mut_ptr().cast(),
                    record.len(),
                    0,
                    (&raw mut from).cast(),
                    &raw mut from_len,
                )
            };
            match usize::try_from(len) {
                Ok(len) if from.sll_pkttype == libc::PACKET_HOST => {
                    record.truncate(len);
                    return Some(record);
                }
                Ok(_) => {}
                Err(_) if !readable(self.0.as_raw_fd(), PATIENCE) => return None,
                Err(_) => {}
            }
        }
    }
}

fn address(interface: u32, protocol: u16) -> libc::sockaddr_ll {
    // SAFETY: all-zero bytes are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = interface.cast_signed();
    address
}
