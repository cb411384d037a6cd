//! Any bytes as a sequence of packets, times, network changes and reloads, run through the engine beside a plain model of what must hold.
//! Used by the property test and by the fuzz target.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use dataplane::engine::{Action, Answer, Engine, LINGER, Limits, MappingId};
use dataplane::{Counters, GatewayLeg, OwnAddress, Underlay};
use packet::{Checksum, FiveTuple, Packet, PacketMut, TcpFlags, Tos, Transport, build, protocol};
use policy::{Config, Snapshot};

pub const TUN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1));
pub const WIFI: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 77, 10));
pub const CABLE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 88, 10));
pub const MEDIA: IpAddr = IpAddr::V4(Ipv4Addr::new(52, 129, 96, 10));
pub const OTHER_MEDIA: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 150, 104, 7));
pub const SIGNALING: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10));
pub const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 80));
const FOREIGN: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 17, 0, 2));

/// A policy: the built-in rules (0), or with voice refused (1), or with everything tunnelled (2).
pub fn policy(kind: u8) -> Arc<Snapshot> {
    static POLICIES: LazyLock<[Arc<Snapshot>; 3]> = LazyLock::new(|| {
        [
            compile(""),
            compile(
                "[[rules]]\nname = \"signaling\"\nto = \"genesys-signaling\"\nprotocol = \"any\"\npath = \"tunnel\"\n\
                 [[rules]]\nname = \"no-media\"\nto = \"genesys-media\"\nprotocol = \"any\"\npath = \"reject\"\n",
            ),
            compile(
                "[[rules]]\nname = \"all\"\nto = [\"genesys-signaling\", \"genesys-media\"]\nprotocol = \"any\"\n\
                 path = \"tunnel\"\n",
            ),
        ]
    });
    Arc::clone(&POLICIES[usize::from(kind % 3)])
}

fn compile(rules: &str) -> Arc<Snapshot> {
    let text = format!(
        "[interface]\naddress = [\"10.99.0.1/32\"]\n\
         [tunnel]\nprivate_key_file = \"agent.key\"\n\
         peer_public_key = \"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\"\nendpoint = \"198.18.0.2:51820\"\n\
         [sets.genesys-signaling]\ncidrs = [\"203.0.113.0/24\"]\n{rules}"
    );
    let (config, _) = Config::parse(&text, "test.toml").unwrap_or_else(|error| panic!("{error:#}"));
    Arc::new(Snapshot::compile(&config))
}

/// The physical side with one address, or none.
pub fn own(ip: IpAddr) -> OwnAddress {
    OwnAddress { ip, device: None }
}

pub fn underlay(address: Option<IpAddr>) -> Underlay {
    let v4 = address.and_then(|address| match address {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    });
    let gateways = vec![GatewayLeg { reachable: address.is_some(), ..GatewayLeg::default() }];
    Underlay { v4, addresses: address.into_iter().map(own).collect(), gateways, ..Underlay::default() }
}

pub fn engine(limits: Limits) -> Engine {
    Engine::new(
        policy(0),
        vec![TUN],
        underlay(Some(WIFI)),
        limits,
        Arc::new(Counters::default()),
        (Instant::now(), Duration::ZERO),
    )
}

/// A UDP packet with complete IPv4 header and the transport checksum still partial, as the TUN gives it.
pub fn udp(source: SocketAddr, destination: SocketAddr, tos: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; build::udp_header_len(&destination)];
    assert!(build::udp_header(&mut bytes, source, destination, packet::Tos(tos), 64, payload.len()));
    bytes.extend_from_slice(payload);
    bytes
}

/// A TCP packet without payload.
pub fn tcp(source: SocketAddr, destination: SocketAddr, flags: u8) -> Vec<u8> {
    let mut bytes = udp(source, destination, 0, &[0; 12]);
    let [source_high, source_low] = source.port().to_be_bytes();
    let [destination_high, destination_low] = destination.port().to_be_bytes();
    bytes[9] = protocol::TCP;
    bytes[20..40].copy_from_slice(&[
        source_high,
        source_low,
        destination_high,
        destination_low,
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
        0x50,
        flags,
        0xff,
        0xff,
        0,
        0,
        0,
        0,
    ]);
    fix_ip_checksum(&mut bytes);
    bytes
}

/// A STUN binding request.
pub fn stun() -> Vec<u8> {
    let mut bytes = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    bytes.extend([7; 12]);
    bytes
}

/// A 20 ms frame at 48 kHz.
pub fn rtp(number: u16, len: usize) -> Vec<u8> {
    let mut bytes = vec![0x80, 111];
    bytes.extend(number.to_be_bytes());
    bytes.extend((u32::from(number) * 960).to_be_bytes());
    bytes.resize(len, 7);
    bytes
}

/// Runs the scenario that `bytes` spell; panics where the engine breaks a promise.
pub fn run(bytes: &[u8]) {
    let mut scenario = Scenario::new();
    let mut input = Input { bytes };
    while let Some(operation) = input.next() {
        scenario.step(operation, &mut input);
    }
}

struct Input<'a> {
    bytes: &'a [u8],
}

impl Input<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(*first)
    }

    fn pick<T: Copy, const N: usize>(&mut self, choices: [T; N]) -> T {
        choices[usize::from(self.next().unwrap_or(0)) % N]
    }
}

/// What the model remembers of a flow.
#[derive(Clone, Copy)]
struct Pinned {
    external: Option<SocketAddr>,
    bypass: bool,
    last_out: Instant,
    through: Through,
}

/// How a flow stands with the gateways.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Through {
    /// It goes out directly, or a reload may have cut it since it was pinned.
    Unknown,
    Gateway {
        gateway: u8,
        has_heard: bool,
    },
    /// Its gateway has failed.
    Cut,
}

struct Scenario {
    engine: Engine,
    now: Instant,
    physical: Option<IpAddr>,
    policy: u8,
    /// Where new flows go.
    gateway: u8,
    /// Live mappings: what each was made for.
    mappings: HashMap<MappingId, (SocketAddr, SocketAddr)>,
    talked_to: HashMap<MappingId, HashSet<IpAddr>>,
    pinned: HashMap<FiveTuple, Pinned>,
    /// Flows that ever went into the tunnel.
    tunnelled: HashSet<FiveTuple>,
    /// When each physical address went away last.
    left: HashMap<IpAddr, Instant>,
    next_port: u16,
}

impl Scenario {
    fn new() -> Self {
        Self {
            engine: engine(Limits { flows: 12, mappings: 5 }),
            now: Instant::now(),
            physical: Some(WIFI),
            policy: 0,
            gateway: 0,
            mappings: HashMap::new(),
            talked_to: HashMap::new(),
            pinned: HashMap::new(),
            tunnelled: HashSet::new(),
            left: HashMap::new(),
            next_port: 40_000,
        }
    }

    fn step(&mut self, operation: u8, input: &mut Input<'_>) {
        if operation >= 0xf0 {
            return self.change_gateway(operation, input);
        }
        match operation % 16 {
            0..=6 => self.send(input),
            7..=8 => self.answer_from_tunnel(input),
            9..=11 => self.answer_from_bypass(input),
            12 => {
                self.now += input.pick(
                    [1, 20, 5_000, 15_000, 70_000, 125_000, 299_000, 301_000].map(Duration::from_millis),
                )
            }
            13 => self.sweep(),
            14 => self.change_network(input),
            _ => self.reload(input),
        }
    }

    fn send(&mut self, input: &mut Input<'_>) {
        let source = SocketAddr::new(
            input.pick([TUN, TUN, TUN, WIFI, CABLE, FOREIGN]),
            input.pick([5000, 5002, 5004, 5006]),
        );
        let destination = input.pick([MEDIA, OTHER_MEDIA, SIGNALING, STRANGER]);
        let destination = SocketAddr::new(destination, input.pick([20_000, 3478, 443, 22]));
        let tos = input.pick([0, 0xb8, 0xb9, 0x88]);
        let mut bytes = match input.pick([0, 0, 1, 2, 3]) {
            0 => udp(source, destination, tos, &stun()),
            1 => udp(source, destination, tos, b"not WebRTC"),
            2 => tcp(source, destination, input.pick([0x02, 0x10, 0x11, 0x04])),
            _ => fragment(udp(source, destination, tos, &stun()), input.pick([0x2000, 0x2001, 0x0001])),
        };
        let Ok(mut packet) = PacketMut::parse(&mut bytes, Checksum::Partial) else { return };
        let headers = *packet.headers();
        let tuple = headers.five_tuple();
        // On another address an endpoint's next packet starts a new flow, whatever becomes of that.
        if let (Some(tuple), Some(physical)) = (tuple, self.physical) {
            let elsewhere = |flow: &Pinned| flow.external.is_some_and(|external| external.ip() != physical);
            self.pinned.retain(|pinned, flow| *pinned != tuple || !elsewhere(flow));
        }
        let mut action = self.engine.outbound(&mut packet, None, self.now);
        if let Action::Reserve { internal, external } = action {
            assert_eq!(Some(external), self.physical, "a port is reserved on the machine's address");
            assert_eq!(internal.ip(), TUN);
            let external = SocketAddr::new(external, self.next_port);
            self.next_port = self.next_port.wrapping_add(1).max(1024);
            match self.engine.reserved(internal, external, self.now) {
                Some(id) => {
                    self.mappings.insert(id, (internal, external));
                    self.talked_to.insert(id, HashSet::new());
                }
                None => return,
            }
            action = self.engine.outbound(&mut packet, None, self.now);
            assert!(!matches!(action, Action::Reserve { .. }), "a reserved port is used");
        }
        let Some(tuple) = tuple else {
            assert!(
                !matches!(action, Action::Bypass { .. } | Action::Identity),
                "a later fragment breaks out"
            );
            return;
        };
        self.check_gateway(tuple, action, begins_connection(&packet));
        self.check(tuple, action, headers.tos.0, packet.headers().tos.0);
    }

    fn check(&mut self, tuple: FiveTuple, action: Action, tos_before: u8, tos_in_place: u8) {
        let before = self.pinned.get(&tuple).copied().filter(|flow| self.lives(flow));
        match action {
            Action::Tunnel { gateway } => {
                assert_eq!(tuple.source.ip(), TUN, "only our address goes into the tunnel");
                assert!(before.is_none_or(|flow| !flow.bypass), "a live voice flow moved into the tunnel");
                self.tunnelled.insert(tuple);
                let through = match self.pinned.get(&tuple).map(|flow| flow.through) {
                    // What it has heard is not known either.
                    Some(Through::Unknown) => Through::Unknown,
                    // It may have ended and begun anew.
                    Some(Through::Gateway { .. }) if before.is_none() => Through::Unknown,
                    Some(Through::Gateway { gateway: before, has_heard }) => {
                        Through::Gateway { gateway, has_heard: before == gateway && has_heard }
                    }
                    Some(Through::Cut) | None => Through::Gateway { gateway, has_heard: false },
                };
                let pinned = Pinned { external: None, bypass: false, last_out: self.now, through };
                self.pinned.insert(tuple, pinned);
            }
            Action::Bypass { mapping, destination, tos, .. } => {
                let &(internal, external) = &self.mappings[&mapping];
                assert_eq!((internal, destination), (tuple.source, tuple.destination));
                assert_eq!(Some(external.ip()), self.physical, "sent from an address that is there");
                assert_ne!(destination.ip(), SIGNALING, "signaling in the clear");
                assert!(self.policy_lets_voice_out(), "voice goes on that a reload cut");
                assert_eq!(tos.0 & 3, tos_before & 3, "ECN is kept");
                assert!(matches!(tos.0 & 0xfc, 0xb8 | 0x88), "voice leaves marked");
                if let Some(flow) = before {
                    assert!(flow.bypass, "a live tunnel flow moved to the bypass");
                    assert_eq!(flow.external, Some(external), "a live flow changed its external address");
                }
                for flow in self.live_bypass_of(internal) {
                    assert_eq!(flow.external, Some(external), "the mapping depends on the remote");
                }
                self.talked_to.entry(mapping).or_default().insert(destination.ip());
                self.pin_directly(tuple, external);
            }
            Action::Identity => {
                assert_eq!(Some(tuple.source.ip()), self.physical);
                assert_ne!(tuple.destination.ip(), SIGNALING, "signaling in the clear");
                assert!(self.policy_lets_voice_out(), "voice goes on that a reload cut");
                assert!(matches!(tos_in_place & 0xfc, 0xb8 | 0x88), "voice leaves marked");
                assert!(before.is_none_or(|flow| flow.bypass));
                self.pin_directly(tuple, tuple.source);
            }
            Action::Refuse(_) | Action::Drop => {}
            Action::Reserve { .. } => panic!("asked twice for one port"),
        }
    }

    fn pin_directly(&mut self, tuple: FiveTuple, external: SocketAddr) {
        let (external, through) = (Some(external), Through::Unknown);
        self.pinned.insert(tuple, Pinned { external, bypass: true, last_out: self.now, through });
    }

    fn check_gateway(&self, tuple: FiveTuple, action: Action, begins: bool) {
        let Action::Tunnel { gateway } = action else { return };
        let before = self.pinned.get(&tuple).filter(|flow| !flow.bypass);
        match before.map(|flow| (flow.through, self.lives(flow))) {
            None => assert_eq!(gateway, self.gateway, "a new flow goes where new flows go"),
            Some((Through::Unknown, _)) => {}
            Some((Through::Cut, lives)) => {
                assert!(begins || !lives, "a connection goes on whose gateway has failed");
                assert_eq!(gateway, self.gateway, "another connection is a new flow");
            }
            Some((Through::Gateway { gateway: before, .. }, lives)) => {
                assert!(gateway == before || !lives, "a live flow changed its gateway");
                assert!(gateway == before || gateway == self.gateway);
            }
        }
    }

    /// A flow is live, for the model, if nothing happened that may end it: for longer than any eviction tolerates, or its address gone.
    fn lives(&self, flow: &Pinned) -> bool {
        self.now - flow.last_out < Duration::from_secs(60)
            && (!flow.bypass || flow.external.map(|external| external.ip()) == self.physical)
    }

    fn live_bypass_of(&self, internal: SocketAddr) -> impl Iterator<Item = &Pinned> {
        self.pinned
            .iter()
            .filter(move |(tuple, flow)| tuple.source == internal && flow.bypass && self.lives(flow))
            .map(|(_, flow)| flow)
    }

    fn answer_from_tunnel(&mut self, input: &mut Input<'_>) {
        let source =
            SocketAddr::new(input.pick([SIGNALING, MEDIA, STRANGER]), input.pick([443, 3478, 20_000]));
        let destination = SocketAddr::new(input.pick([TUN, TUN, WIFI]), input.pick([5000, 5002, 5004, 5006]));
        let bytes = if input.pick([true, false]) {
            udp(source, destination, 0, b"answer")
        } else {
            tcp(source, destination, 0x12)
        };
        let packet = Packet::parse(&bytes).unwrap();
        let from = input.pick([0, 0, 1, 2]);
        if self.engine.from_tunnel(&packet, from, self.now).is_ok() {
            let tuple = packet.five_tuple().unwrap().reversed();
            assert!(self.tunnelled.contains(&tuple), "in from the tunnel without being asked for: {tuple:?}");
            match self.pinned.get_mut(&tuple).map(|flow| &mut flow.through) {
                Some(Through::Gateway { gateway, has_heard }) => {
                    assert_eq!(*gateway, from, "in from a gateway that the flow does not go to");
                    *has_heard = true;
                }
                Some(Through::Cut) => panic!("in for a connection whose gateway has failed"),
                Some(Through::Unknown) | None => {}
            }
        }
    }

    fn change_gateway(&mut self, operation: u8, input: &mut Input<'_>) {
        let to = input.pick([0, 1, 2]);
        let from = input.pick([0, 1, 2]);
        if operation < 0xf8 || from == to {
            self.gateway = to;
            return self.engine.use_gateway(to);
        }
        if self.gateway == from {
            self.gateway = to;
        }
        let cut: usize = (0..).map_while(|part| self.engine.fail_over(from, to, part)).sum();
        let mut may_be_cut = 0;
        for (tuple, flow) in &mut self.pinned {
            match flow.through {
                Through::Gateway { gateway, has_heard } if gateway == from => {
                    let is_cut = has_heard && tuple.protocol == protocol::TCP;
                    may_be_cut += usize::from(is_cut);
                    flow.through = match is_cut {
                        true => Through::Cut,
                        false => Through::Gateway { gateway: to, has_heard },
                    };
                }
                // What became of it is not known.
                Through::Unknown => may_be_cut += 1,
                Through::Gateway { .. } | Through::Cut => {}
            }
        }
        assert!(cut <= may_be_cut, "what never heard anything was cut");
    }

    fn answer_from_bypass(&mut self, input: &mut Input<'_>) {
        let place = usize::from(input.next().unwrap_or(0));
        let mut known: Vec<_> = self.mappings.keys().copied().collect();
        known.sort_by_key(|id| (id.slot, id.generation));
        let Some(&id) = known.get(place % known.len().max(1)) else { return };
        let from = SocketAddr::new(input.pick([MEDIA, OTHER_MEDIA, STRANGER]), input.pick([20_000, 3478, 9]));
        let answer = Answer { from, tos: Tos(0), payload: &stun() };
        if let Ok(internal) = self.engine.from_bypass(id, &answer, self.now) {
            assert_eq!(internal, self.mappings[&id].0, "an answer goes to whom its mapping is for");
            assert!(self.talked_to[&id].contains(&from.ip()), "a stranger got in: {from}");
        }
    }

    fn sweep(&mut self) {
        let mut ended = Vec::new();
        self.engine.sweep(self.now, |id| ended.push(id));
        for id in ended {
            let (_, external) = self.mappings.remove(&id).expect("a mapping ends once");
            let live = self.pinned.values().any(|flow| flow.external == Some(external) && self.lives(flow));
            assert!(!live, "a live flow's mapping ended");
        }
    }

    fn change_network(&mut self, input: &mut Input<'_>) {
        let before = self.physical;
        self.physical = input.pick([Some(WIFI), Some(CABLE), None]);
        self.engine.set_underlay(underlay(self.physical), self.now);
        if before == self.physical {
            return;
        }
        if let Some(address) = before {
            self.left.insert(address, self.now);
        }
        if let Some(address) = self.physical
            && self.left.get(&address).is_some_and(|&left| self.now - left >= LINGER)
        {
            self.pinned.retain(|_, flow| flow.external.is_none_or(|external| external.ip() != address));
        }
    }

    fn reload(&mut self, input: &mut Input<'_>) {
        self.policy = input.next().unwrap_or(0);
        self.engine.swap(policy(self.policy));
        self.pinned.values_mut().for_each(|flow| flow.through = Through::Unknown);
        if input.pick([true, false]) {
            while self.engine.judge_again().is_none() {}
        }
        if !self.policy_lets_voice_out() {
            self.pinned.retain(|_, flow| !flow.bypass);
        }
    }

    fn policy_lets_voice_out(&self) -> bool {
        self.policy.is_multiple_of(3)
    }
}

fn begins_connection(packet: &PacketMut<'_>) -> bool {
    matches!(packet.headers().transport, Transport::Tcp { flags, .. } if flags.has(TcpFlags::SYN))
}

fn fragment(mut bytes: Vec<u8>, field: u16) -> Vec<u8> {
    bytes[6..8].copy_from_slice(&field.to_be_bytes());
    fix_ip_checksum(&mut bytes);
    bytes
}

fn fix_ip_checksum(bytes: &mut [u8]) {
    bytes[10..12].fill(0);
    let sum: u32 = bytes[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    bytes[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
}
