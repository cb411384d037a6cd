use std::iter;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use packet::{Echo, Headers, OuterDscp, Packet, Tos, clamp_mss};
use policy::Path;
use socket2::Socket;
use tunnel::Sealed;

use super::core::{Core, Flows, Tunnel};
use super::gateway_set::GatewaySet;
use super::to_tun::ToTun;
use crate::buffers::Buffers;
use crate::engine::Action;
use crate::fit;
use crate::io::tun::VNET_HEADER;
use crate::lock::Guard;
use crate::offload::{Segment, Segmentation, Segments};
use crate::path_mtu::LARGE;
use crate::path_mtu::probe::Probes;
use crate::wire::{Outbox, UdpSegmentation};
use crate::{BATCH, DropReason};

/// What is sealed before the peer is given to a thread that waits for it, and up to one super-packet more: 128 KiB at 1.2 GB/s are 0.1 ms.
const HELD_BYTES: usize = 64 << 10;
/// Of an answer to a probe.
const TTL: u8 = 64;

/// A thread's way into the tunnel: packets are sealed under the peer's lock and sent without it.
pub(super) struct Sealer {
    outbox: Outbox,
}

/// A packet in the batch of records that is to be sealed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain {
    pub(super) place: usize,
    pub(super) gateway: u8,
    pub(super) headers: Headers,
    pub(super) segmentation: Option<Segmentation>,
}

/// What came of a gateway's deadlines.
pub(super) struct Met {
    /// Whether the path's discovery has something to do, too.
    pub(super) wants_prober: bool,
    pub(super) has_come_up: bool,
    pub(super) has_gone_down: bool,
}

impl Sealer {
    pub(super) fn new(segmentation: Arc<UdpSegmentation>, dscp: OuterDscp) -> Self {
        Self { outbox: Outbox::new(segmentation, dscp) }
    }

    /// Its buffer's memory; see [`Rest`](crate::rest::Rest).
    pub(super) fn give_back(&mut self) {
        self.outbox.give_back();
    }

    /// Seals packets and sends them, one gateway's after the other's; super-packets are taken apart where they lie.
    pub(super) fn send(
        &mut self,
        packets: &[Plain],
        records: &mut Buffers,
        core: &Core,
        to_tun: &mut ToTun,
        now: Instant,
    ) {
        let gateways: GatewaySet = packets.iter().map(|packet| packet.gateway).collect();
        for gateway in gateways {
            let packets = packets.iter().filter(|packet| packet.gateway == gateway);
            self.send_to(gateway, packets, records, core, to_tun, now);
        }
    }

    fn send_to<'p>(
        &mut self,
        gateway: u8,
        packets: impl Iterator<Item = &'p Plain>,
        records: &mut Buffers,
        core: &Core,
        to_tun: &mut ToTun,
        now: Instant,
    ) {
        let mut tunnel = self.lock_for_flows(gateway, core, now);
        let (mut held, mut large) = (0, false);
        for packet in packets {
            if held >= HELD_BYTES {
                drop(tunnel);
                tunnel = self.lock_for_flows(gateway, core, now);
                held = 0;
            }
            held += packet.headers.len as usize;
            large |= packet.headers.len as usize > LARGE;
            let Some(room) = records.get_mut(packet.place).get_mut(VNET_HEADER..) else { continue };
            let (length, tos) = (packet.headers.len as usize, packet.headers.tos);
            let Some(segmentation) = packet.segmentation else {
                tunnel = self.make_room(tunnel, core, now);
                self.seal(&mut tunnel, Segment { room, length }, tos, core, to_tun, now);
                continue;
            };
            let Some(mut segments) = Segments::new(room, &packet.headers, segmentation) else {
                core.counters.count_drop(DropReason::Malformed);
                continue;
            };
            while let Some(segment) = segments.next() {
                tunnel = self.make_room(tunnel, core, now);
                self.seal(&mut tunnel, segment, tos, core, to_tun, now);
            }
        }
        if large {
            tunnel.path.used(now);
        }
        tunnel.set_alarm(now);
        let socket = Arc::clone(&tunnel.socket);
        drop(tunnel);
        self.send_sealed(&socket, core);
    }

    /// Seals and sends what waited for a gateway that its flows have left for this one, under its lock.
    pub(super) fn send_moved(
        &mut self,
        packets: Vec<Vec<u8>>,
        mut tunnel: Guard<'_, Tunnel>,
        core: &Core,
        to_tun: &mut ToTun,
        now: Instant,
    ) {
        for mut packet in packets {
            let length = packet.len();
            packet.resize(length.next_multiple_of(16), 0);
            clamp_mss(packet.get_mut(..length).unwrap_or_default(), tunnel.path.mtu());
            let Ok(parsed) = Packet::parse(packet.get(..length).unwrap_or_default()) else { continue };
            let tos = parsed.headers().tos;
            // Not in the match: the lock would be held while the TUN is written to.
            let action = core.engine.lock().engine.after_fail_over(&parsed, now);
            match action {
                Action::Tunnel { .. } => {}
                action => {
                    to_tun.refuse(action, &parsed);
                    continue;
                }
            }
            if let Some(mtu) = fit::too_big(&parsed, None, tunnel.path.mtu()) {
                to_tun.too_big(&parsed, mtu.into());
                continue;
            }
            if self.outbox.is_full() {
                self.send_sealed(&tunnel.socket, core);
            }
            // It was counted when it began to wait.
            self.seal_uncounted(&mut tunnel, Segment { room: &mut packet, length }, tos, core, to_tun, now);
        }
        self.send_sealed(&tunnel.socket, core);
        tunnel.set_alarm(now);
    }

    /// Sends what waited for the session that is up now.
    pub(super) fn flush(&mut self, gateway: u8, core: &Core, now: Instant) {
        self.lock(gateway, core, now).set_alarm(now);
    }

    pub(super) fn meet_deadlines(
        &mut self,
        gateway: u8,
        core: &Core,
        to_tun: &mut ToTun,
        now: Instant,
    ) -> Met {
        let mut tunnel = self.lock(gateway, core, now);
        let mut has_gone_down = false;
        for _ in 0..BATCH {
            if self.outbox.is_full() || tunnel.peer.deadline().is_none_or(|due| due > now) {
                break;
            }
            let datagram = tunnel.peer.on_deadline(self.outbox.room(), now);
            if let Some(len) = datagram.map(<[u8]>::len) {
                self.outbox.push(len, None, tunnel.endpoint);
            }
            has_gone_down |= tunnel.has_gone_down(now);
        }
        let refused: Vec<_> = iter::from_fn(|| tunnel.peer.take_refused()).collect();
        tunnel.set_alarm(now);
        let wants_prober = tunnel.is_probe_due(now) || tunnel.path.has_changed();
        let has_come_up = tunnel.has_come_up(now);
        let socket = Arc::clone(&tunnel.socket);
        drop(tunnel);
        self.send_sealed(&socket, core);
        refused.iter().for_each(|packet| refuse(packet, core, to_tun, now));
        Met { wants_prober, has_come_up, has_gone_down }
    }

    /// Sends datagrams, which may be larger than the path carries, at once. Returns how many sends the system refused.
    pub(super) fn send_probes(
        &mut self,
        probes: &Probes,
        as_one: bool,
        to: SocketAddr,
        socket: &Socket,
    ) -> usize {
        if as_one {
            return self.outbox.send_now(&probes.bytes, u16::try_from(probes.first).ok(), to, socket);
        }
        let datagrams = probes.bytes.chunks(probes.first.max(1));
        datagrams.map(|datagram| self.outbox.send_now(datagram, None, to, socket)).sum()
    }

    /// Answers a gateway's probe of the path, with as little as an answer can be.
    pub(super) fn answer(&mut self, echo: &Echo, gateway: u8, core: &Core, now: Instant) {
        let mut packet = [0; 48];
        let len = if echo.source.is_ipv4() { 28 } else { 48 };
        if !packet.get_mut(..len).is_some_and(|out| echo.reply(TTL, out)) {
            return;
        }
        let mut tunnel = self.lock(gateway, core, now);
        if let Ok(Sealed::Datagram(datagram)) = tunnel.peer.seal(&mut packet, len, self.outbox.room(), now) {
            let len = datagram.len();
            self.outbox.push(len, Some(Tos(0)), tunnel.endpoint);
        }
        tunnel.set_alarm(now);
        let socket = Arc::clone(&tunnel.socket);
        drop(tunnel);
        self.send_sealed(&socket, core);
    }

    /// Sends one datagram at once.
    pub(super) fn send_now(&mut self, datagram: &[u8], to: SocketAddr, socket: &Socket, core: &Core) {
        let failed = self.outbox.send_now(datagram, None, to, socket);
        core.counters.count_drops(DropReason::SendFailed, failed);
    }

    fn seal(
        &mut self,
        tunnel: &mut Tunnel,
        packet: Segment<'_>,
        tos: Tos,
        core: &Core,
        to_tun: &mut ToTun,
        now: Instant,
    ) {
        let length = packet.length;
        if self.seal_uncounted(tunnel, packet, tos, core, to_tun, now) {
            core.counters.count_out(Path::Tunnel, length);
        }
    }

    /// Whether the packet is sealed, or waits.
    #[inline]
    fn seal_uncounted(
        &mut self,
        tunnel: &mut Tunnel,
        packet: Segment<'_>,
        tos: Tos,
        core: &Core,
        to_tun: &mut ToTun,
        now: Instant,
    ) -> bool {
        let Segment { room, length } = packet;
        let (sealed, inner) = match tunnel.peer.seal(room, length, self.outbox.room(), now) {
            Ok(Sealed::Datagram(datagram)) => (Some(datagram.len()), Some(tos)),
            Ok(Sealed::Queued { handshake }) => (handshake.map(<[u8]>::len), None),
            Ok(Sealed::Full) => {
                core.counters.count_drop(DropReason::QueueFull);
                return false;
            }
            Ok(Sealed::Down) => {
                refuse(room.get(..length).unwrap_or_default(), core, to_tun, now);
                return false;
            }
            Err(_) => {
                core.counters.count_drop(DropReason::TooBig);
                return false;
            }
        };
        if let Some(len) = sealed {
            self.outbox.push(len, inner, tunnel.endpoint);
        }
        true
    }

    /// Without room for one more datagram, what is sealed is sent first, not under the lock.
    fn make_room<'a>(
        &mut self,
        tunnel: Guard<'a, Tunnel>,
        core: &'a Core,
        now: Instant,
    ) -> Guard<'a, Tunnel> {
        if !self.outbox.is_full() {
            return tunnel;
        }
        let (socket, gateway) = (Arc::clone(&tunnel.socket), tunnel.gateway);
        drop(tunnel);
        self.send_sealed(&socket, core);
        self.lock_for_flows(gateway, core, now)
    }

    /// As [`Sealer::lock`], of the gateway to which the flows of this one have gone. What is sealed already is sent where it belongs.
    fn lock_for_flows<'a>(&mut self, gateway: u8, core: &'a Core, now: Instant) -> Guard<'a, Tunnel> {
        let mut tunnel = self.lock(gateway, core, now);
        while let Flows::LeftFor(other) = tunnel.flows {
            self.send_sealed(&tunnel.socket, core);
            drop(tunnel);
            tunnel = self.lock(other, core, now);
        }
        tunnel
    }

    /// Locks the tunnel to a gateway. What waited for the session that is up now is sent before anything else can be sealed, under the lock: a later
    /// packet of the same flow may be with the other thread. Once in a session's life, that is up to [`tunnel::MAX_QUEUED`] packets.
    pub(super) fn lock<'a>(&mut self, gateway: u8, core: &'a Core, now: Instant) -> Guard<'a, Tunnel> {
        let mut tunnel = core.tunnel(gateway).lock();
        let mut flushed = false;
        while let Some(inner) = tunnel.peer.waiting(now).map(Tos::of) {
            if self.outbox.is_full() {
                self.send_sealed(&tunnel.socket, core);
            }
            let Some(len) = tunnel.peer.flush(self.outbox.room(), now).map(<[u8]>::len) else { break };
            self.outbox.push(len, inner, tunnel.endpoint);
            flushed = true;
        }
        if flushed {
            self.send_sealed(&tunnel.socket, core);
        }
        tunnel
    }

    fn send_sealed(&mut self, socket: &Socket, core: &Core) {
        let failed = self.outbox.send(socket);
        core.counters.count_drops(DropReason::SendFailed, failed);
    }
}

fn refuse(packet: &[u8], core: &Core, to_tun: &mut ToTun, now: Instant) {
    let Ok(packet) = Packet::parse(packet) else { return };
    let action = core.engine.lock().engine.tunnel_down(packet.headers(), now);
    to_tun.refuse(action, &packet);
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{IpAddr, Ipv4Addr, UdpSocket};
    use std::time::Duration;

    use packet::{Checksum, PacketMut, build};
    use policy::{Config, Snapshot};
    use tunnel::{Opened, Peer, PeerConfig, PrivateKey};

    use super::super::core::Judge;
    use super::*;
    use crate::clock::{Alarm, Clock};
    use crate::engine::{Engine, Limits};
    use crate::io::sockets::{self, Discover};
    use crate::path_mtu::PathMtu;
    use crate::path_mtu::segments::SegmentCheck;
    use crate::{Counters, Underlay};

    const CONFIG: &str = r#"
[interface]
address = ["10.99.0.1/32"]
[tunnel]
private_key_file = "agent.key"
peer_public_key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
endpoint = "198.18.0.2:51820"
[sets.genesys-signaling]
cidrs = ["203.0.113.0/24"]
"#;

    struct Scene {
        core: Arc<Core>,
        gateway: Peer,
        socket: UdpSocket,
        sealer: Sealer,
        to_tun: ToTun,
        records: Buffers,
    }

    impl Scene {
        fn new() -> Self {
            let (agent, gateway) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
            let clock = Clock::start();
            let peer = |private_key: &PrivateKey, other: &PrivateKey, index| {
                let (private_key, peer_public_key) = (private_key.clone(), other.public_key());
                let config = PeerConfig {
                    private_key,
                    peer_public_key,
                    preshared_key: None,
                    keepalive: None,
                    index,
                    mtu: 1420,
                };
                Peer::new(config, clock.now())
            };
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let endpoint = socket.local_addr().unwrap();
            let own = Arc::new(sockets::tunnel(endpoint.ip(), 0, Discover::Off).unwrap());
            let segmentation = UdpSegmentation::new(&own, true);
            let (config, _) = Config::parse(CONFIG, "test.toml").unwrap();
            let counters = Arc::new(Counters::default());
            let engine = Engine::new(
                Arc::new(Snapshot::compile(&config)),
                vec![IpAddr::from([10, 99, 0, 1])],
                Underlay::default(),
                Limits::default(),
                Arc::clone(&counters),
                clock.origin(),
            );
            let alarm = || Alarm::new(clock).unwrap();
            let tunnel = |place, flows, mtu| Tunnel {
                peer: peer(&agent, &gateway, 1),
                endpoint,
                proven: None,
                path: PathMtu::fixed(mtu, true, clock.now()),
                segments: SegmentCheck::default(),
                probed: None,
                socket: Arc::clone(&own),
                segmentation: Arc::clone(&segmentation),
                alarm: alarm(),
                gateway: place,
                reachable: true,
                has_others: true,
                flows,
                was_down: false,
                was_up: false,
            };
            let (first, others) = (tunnel(0, Flows::New, 1420), vec![tunnel(1, Flows::None, 1300)]);
            let judge = Judge { engine, fast: Err("not in this test".to_owned()), alarm: alarm() };
            Self {
                core: Core::new(clock, judge, first, others, Arc::clone(&counters), Vec::new(), 0),
                gateway: peer(&gateway, &agent, 2),
                socket,
                sealer: Sealer::new(segmentation, OuterDscp::ZERO),
                to_tun: ToTun::new(File::open("/dev/null").unwrap().into(), counters),
                records: Buffers::new(1, 2048),
            }
        }

        fn send(&mut self, payload: &[u8]) {
            let (from, to) =
                (SocketAddr::from(([10, 99, 0, 1], 5060)), SocketAddr::from(([203, 0, 113, 10], 5060)));
            let record = self.records.get_mut(0).get_mut(VNET_HEADER..).unwrap();
            let end = build::udp_header_len(&from) + payload.len();
            let (headers, rest) = record.split_at_mut(build::udp_header_len(&from));
            assert!(build::udp_header(headers, from, to, Tos(0), 64, payload.len()));
            rest[..payload.len()].copy_from_slice(payload);
            let now = self.core.clock.now();
            let mut packet = PacketMut::parse(record.get_mut(..end).unwrap(), Checksum::Complete).unwrap();
            self.core.engine.lock().engine.outbound(&mut packet, None, now);
            let headers = *packet.headers();
            let packet = Plain { place: 0, gateway: 0, headers, segmentation: None };
            self.sealer.send(&[packet], &mut self.records, &self.core, &mut self.to_tun, now);
        }

        fn receive(&self) -> Vec<u8> {
            let mut datagram = vec![0; 2048];
            let len = self.socket.recv(&mut datagram).unwrap();
            datagram.truncate(len);
            datagram
        }

        /// The payload that the gateway opens next.
        fn opened(&mut self) -> Vec<u8> {
            loop {
                let (datagram, mut out) = (self.receive(), vec![0; 2048]);
                if let Opened::Packet(packet) =
                    self.gateway.open(&datagram, &mut out, self.core.clock.now()).unwrap()
                {
                    return packet[28..].to_vec();
                }
            }
        }
    }

    #[test]
    fn what_waited_for_the_session_is_sent_before_what_comes_later() {
        let mut scene = Scene::new();
        let packets: Vec<_> = (1..=100_u8).map(|number| vec![number; 100]).collect();
        packets.iter().for_each(|packet| scene.send(packet));
        let mut reply = vec![0; 2048];
        let Opened::Reply(response) =
            scene.gateway.open(&scene.receive(), &mut reply, scene.core.clock.now()).unwrap()
        else {
            panic!("no handshake")
        };
        // Another thread opens it, and has not come to flush what waits.
        let mut out = vec![0; 2048];
        scene.core.tunnel(0).lock().peer.open(response, &mut out, scene.core.clock.now()).unwrap();
        scene.send(b"later");
        for packet in packets.iter().map(Vec::as_slice).chain([b"later".as_slice()]) {
            assert_eq!(scene.opened(), packet);
        }
    }

    #[test]
    fn what_moves_is_counted_once_and_told_of_a_narrower_path() {
        let mut scene = Scene::new();
        [100, 1372].into_iter().for_each(|len| scene.send(&vec![0; len]));
        let (core, now) = (Arc::clone(&scene.core), scene.core.clock.now());
        let waiting: Vec<_> = std::iter::from_fn(|| core.tunnel(0).lock().peer.take_waiting()).collect();
        let target = scene.sealer.lock(1, &core, now);
        scene.sealer.send_moved(waiting, target, &core, &mut scene.to_tun, now);
        assert_eq!(core.counters.path(Path::Tunnel).out_packets, 2);
        let too_big = core.counters.drops().find(|(reason, _)| *reason == DropReason::TooBig);
        assert_eq!(too_big, Some((DropReason::TooBig, 1)));
        assert!(core.tunnel(1).lock().peer.waiting(now).is_some());
    }

    #[test]
    fn a_narrow_gateway_counts_as_long_as_its_flows_may_have_packets() {
        let scene = Scene::new();
        let now = scene.core.clock.now();
        assert_eq!(scene.core.least_mtu(now), Some(1420), "nothing goes to the other");
        scene.core.tunnel(0).lock().flows = Flows::Old;
        scene.core.tunnel(1).lock().flows = Flows::New;
        assert_eq!(scene.core.least_mtu(now), Some(1300));
        scene.core.tunnel(0).lock().flows = Flows::New;
        scene.core.tunnel(1).lock().flows = Flows::Old;
        assert_eq!(scene.core.least_mtu(now), Some(1420), "it has no session");
        let mut packet = [0; 32];
        let mut tunnel = scene.core.tunnel(1).lock();
        tunnel.peer.seal(&mut packet, 20, &mut [0; 148], now).unwrap();
        drop(tunnel);
        assert_eq!(scene.core.least_mtu(now), Some(1300), "something waits for one");
        scene.core.forget_old_flows();
        assert_eq!(scene.core.least_mtu(now), Some(1420), "there is no flow");
        assert_eq!(scene.core.tunnel(0).lock().flows, Flows::New, "there may be at any time");
    }
}
