//! The engine's promises, one by one and as a property over any sequence of events.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that fails here should stop"
)]

mod scenario;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use dataplane::engine::{Action, Answer, Engine, LINGER, Limits, MappingId, Note, Refusal};
use dataplane::{DropReason, Underlay};
use packet::{Checksum, Packet, PacketMut, Tos, build};
use scenario::{
    CABLE, MEDIA, OTHER_MEDIA, SIGNALING, STRANGER, TUN, WIFI, own, policy, rtp, stun, tcp, udp, underlay,
};

/// To the gateway that new flows go to at first.
const TUNNEL: Action = Action::Tunnel { gateway: 0 };
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const SYN_ACK: u8 = 0x12;
const FIN_ACK: u8 = 0x11;

struct Bench {
    engine: Engine,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        Self { engine: scenario::engine(limits), now: Instant::now() }
    }

    fn send(&mut self, mut bytes: Vec<u8>) -> Action {
        let mut packet = PacketMut::parse(&mut bytes, Checksum::Partial).unwrap();
        self.engine.outbound(&mut packet, None, self.now)
    }

    /// Sends voice and reserves the port that the engine asks for, at the internal port.
    fn call(&mut self, source: SocketAddr, destination: SocketAddr) -> (MappingId, SocketAddr) {
        let voice = || udp(source, destination, 0, &stun());
        let Action::Reserve { internal, external } = self.send(voice()) else { panic!("no port asked for") };
        let external = SocketAddr::new(external, internal.port());
        let mapping = self.engine.reserved(internal, external, self.now).unwrap();
        assert!(matches!(self.send(voice()), Action::Bypass { mapping: used, .. } if used == mapping));
        (mapping, external)
    }

    fn answer(&mut self, bytes: &[u8]) -> Result<(), DropReason> {
        self.engine.from_tunnel(&Packet::parse(bytes).unwrap(), 0, self.now)
    }

    fn swap(&mut self, kind: u8) -> usize {
        self.engine.swap(policy(kind));
        std::iter::repeat_with(|| self.engine.judge_again()).flatten().next().unwrap()
    }

    fn heard(&mut self, mapping: MappingId, from: SocketAddr) -> Result<SocketAddr, DropReason> {
        let answer = Answer { from, tos: Tos(0xb8), payload: &stun() };
        self.engine.from_bypass(mapping, &answer, self.now)
    }

    fn sweep(&mut self) -> Vec<MappingId> {
        let mut ended = Vec::new();
        self.engine.sweep(self.now, |id| ended.push(id));
        ended
    }
}

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

#[test]
fn each_kind_takes_its_path() {
    let voice = (Tos(0xb8), true);
    let cases = [
        ("unmarked STUN", udp(at(TUN, 5000), at(MEDIA, 20_000), 0, &stun()), "bypass"),
        ("marked anything", udp(at(TUN, 5001), at(MEDIA, 20_000), voice.0.0, b"?"), "bypass"),
        ("unmarked anything", udp(at(TUN, 5002), at(MEDIA, 20_000), 0, b"?"), "tunnel"),
        ("TURN over TLS", tcp(at(TUN, 5003), at(MEDIA, 443), SYN), "tunnel"),
        ("SSH to media", tcp(at(TUN, 5004), at(MEDIA, 22), SYN), "reset"),
        ("HTTPS to signaling", tcp(at(TUN, 5005), at(SIGNALING, 443), SYN), "tunnel"),
        ("SIP to signaling", udp(at(TUN, 5006), at(SIGNALING, 5060), 0, b"OPTIONS"), "tunnel"),
        ("Google STUN", udp(at(TUN, 5007), at(STRANGER, 19_302), 0, &stun()), "prohibited"),
        ("signaling under the physical address", tcp(at(WIFI, 5008), at(SIGNALING, 443), ACK), "reset"),
        ("voice under the physical address", udp(at(WIFI, 5009), at(MEDIA, 20_000), 0, &stun()), "identity"),
        (
            "voice under a container's address",
            udp(at(STRANGER, 5010), at(MEDIA, 20_000), 0, &stun()),
            "prohibited",
        ),
    ];
    let mut bench = Bench::new();
    for (what, bytes, expected) in cases {
        let found = match bench.send(bytes) {
            Action::Tunnel { .. } => "tunnel",
            Action::Reserve { .. } | Action::Bypass { .. } => "bypass",
            Action::Identity => "identity",
            Action::Refuse(Refusal::Reset) => "reset",
            Action::Refuse(Refusal::Prohibited) => "prohibited",
            Action::Drop => "drop",
        };
        assert_eq!(found, expected, "{what}");
    }
}

#[test]
fn one_internal_endpoint_has_one_external_one_for_every_remote() {
    let mut bench = Bench::new();
    let (mapping, _) = bench.call(at(TUN, 5000), at(MEDIA, 20_000));
    let other = bench.send(udp(at(TUN, 5000), at(OTHER_MEDIA, 30_000), 0, &stun()));
    assert!(matches!(other, Action::Bypass { mapping: used, .. } if used == mapping));
}

#[test]
fn a_pinned_flow_is_not_judged_again() {
    let mut bench = Bench::new();
    bench.call(at(TUN, 5000), at(MEDIA, 20_000));
    let unmarked = bench.send(udp(at(TUN, 5000), at(MEDIA, 20_000), 0, b"not WebRTC"));
    assert!(matches!(unmarked, Action::Bypass { tos: Tos(0xb8), .. }));
    let video = bench.send(udp(at(TUN, 5000), at(MEDIA, 20_000), 0x89, b"not WebRTC"));
    assert!(matches!(video, Action::Bypass { tos: Tos(0x89), .. }), "AF41 and ECN are kept");
}

#[test]
fn a_mapping_lives_by_what_is_sent_and_for_five_minutes() {
    let mut bench = Bench::new();
    let (mapping, _) = bench.call(at(TUN, 5000), at(MEDIA, 20_000));
    for _ in 0..9 {
        bench.now += Duration::from_secs(33);
        assert_eq!(bench.heard(mapping, at(MEDIA, 20_000)), Ok(at(TUN, 5000)));
        assert!(bench.sweep().is_empty());
    }
    bench.now += Duration::from_secs(33);
    assert_eq!(bench.sweep(), [mapping], "what comes in does not refresh it (RFC 4787 REQ-6)");
    assert_eq!(bench.heard(mapping, at(MEDIA, 20_000)), Err(DropReason::Stranger));
}

#[test]
fn only_remotes_that_were_talked_to_get_in() {
    let mut bench = Bench::new();
    let (mapping, _) = bench.call(at(TUN, 5000), at(MEDIA, 20_000));
    let mut from = |remote| bench.heard(mapping, remote);
    assert_eq!(from(at(MEDIA, 20_000)), Ok(at(TUN, 5000)));
    assert_eq!(from(at(MEDIA, 9)), Ok(at(TUN, 5000)), "the same server from another port");
    assert_eq!(from(at(OTHER_MEDIA, 20_000)), Err(DropReason::Stranger));
}

#[test]
fn both_directions_of_a_call_are_measured() {
    let mut bench = Bench::new();
    let (mapping, _) = bench.call(at(TUN, 5000), at(MEDIA, 20_000));
    let rtp = |number| rtp(number, 172);
    for number in 0..100 {
        bench.now += Duration::from_millis(20);
        bench.send(udp(at(TUN, 5000), at(MEDIA, 20_000), 0, &rtp(number)));
        let answer = Answer { from: at(MEDIA, 20_000), tos: Tos(0xb8), payload: &rtp(number) };
        if number % 10 != 5 {
            bench.engine.from_bypass(mapping, &answer, bench.now).unwrap();
        }
    }
    // A super-packet is as many packets as it becomes.
    let mut bytes = udp(at(TUN, 5000), at(MEDIA, 20_000), 0, &(100..110).flat_map(rtp).collect::<Vec<_>>());
    let mut packet = PacketMut::parse(&mut bytes, Checksum::Partial).unwrap();
    bench.engine.outbound(&mut packet, Some(172), bench.now);

    let flows = bench.engine.flows(0, bench.now).unwrap();
    let (out, back) = (flows[0].out_rtp.unwrap(), flows[0].in_rtp.unwrap());
    assert_eq!((out.packets, out.lost, out.dscp.value()), (110, 0, 0), "as the application marked it");
    assert_eq!((back.packets, back.lost, back.dscp.value()), (90, 10, 46));
    assert_eq!((back.clock_rate, back.jitter), (Some(48_000), Some(Duration::ZERO)));
}

#[test]
fn out_of_the_tunnel_comes_only_what_was_asked_for() {
    let mut bench = Bench::new();
    assert_eq!(bench.send(tcp(at(TUN, 5000), at(SIGNALING, 443), SYN)), TUNNEL);
    assert_eq!(bench.answer(&tcp(at(SIGNALING, 443), at(TUN, 5000), SYN_ACK)), Ok(()));
    assert_eq!(bench.answer(&tcp(at(SIGNALING, 443), at(TUN, 5001), SYN_ACK)), Err(DropReason::Unsolicited));
    assert_eq!(bench.answer(&tcp(at(SIGNALING, 443), at(WIFI, 5000), SYN_ACK)), Err(DropReason::NotOurs));
}

#[test]
fn an_icmp_error_gets_in_if_it_is_about_a_tunnel_flow() {
    let mut bench = Bench::new();
    let asked = udp(at(TUN, 5000), at(SIGNALING, 5060), 0, b"OPTIONS");
    let never_asked = udp(at(TUN, 5001), at(SIGNALING, 5060), 0, b"OPTIONS");
    assert_eq!(bench.send(asked.clone()), TUNNEL);
    for (about, expected) in [(asked, Ok(())), (never_asked, Err(DropReason::Unsolicited))] {
        let mut error = [0; build::MAX_REFUSAL];
        let about = Packet::parse(&about).unwrap();
        let len = build::unreachable(&about, build::Unreachable::Port, SIGNALING, &mut error).unwrap();
        assert_eq!(bench.answer(&error[..len]), expected);
    }
}

#[test]
fn a_down_tunnel_resets_what_is_new_and_only_advises_what_is_up() {
    let mut bench = Bench::new();
    let mut refused = |mut bytes: Vec<u8>| {
        let packet = PacketMut::parse(&mut bytes, Checksum::Partial).unwrap();
        bench.engine.tunnel_down(packet.headers(), bench.now)
    };
    assert_eq!(refused(tcp(at(TUN, 5000), at(SIGNALING, 443), SYN)), Action::Refuse(Refusal::Reset));
    assert_eq!(refused(tcp(at(TUN, 5000), at(SIGNALING, 443), ACK)), Action::Refuse(Refusal::Prohibited));
    assert_eq!(
        refused(udp(at(TUN, 5000), at(SIGNALING, 5060), 0, b"x")),
        Action::Refuse(Refusal::Prohibited)
    );
    assert_eq!(
        refused(tcp(at(TUN, 5000), at(SIGNALING, 443), 0x04)),
        Action::Drop,
        "a reset is not answered"
    );
}

#[test]
fn a_mapping_outlives_its_address_for_a_moment_and_serves_on_when_it_returns() {
    let mut bench = Bench::new();
    let (mapping, _) = bench.call(at(TUN, 5000), at(MEDIA, 20_000));
    let voice = || udp(at(TUN, 5000), at(MEDIA, 20_000), 0, &stun());
    bench.engine.set_underlay(underlay(None), bench.now);
    assert_eq!(bench.send(voice()), Action::Drop);
    bench.now += LINGER - Duration::from_secs(1);
    assert!(bench.sweep().is_empty());
    bench.engine.set_underlay(underlay(Some(WIFI)), bench.now);
    assert!(matches!(bench.send(voice()), Action::Bypass { mapping: used, .. } if used == mapping));
    bench.now += LINGER;
    assert!(bench.sweep().is_empty());
}

#[test]
fn on_another_address_the_next_packet_starts_a_new_flow() {
    let mut bench = Bench::new();
    let (old, _) = bench.call(at(TUN, 5000), at(MEDIA, 20_000));
    bench.engine.set_underlay(underlay(Some(CABLE)), bench.now);
    let (new, external) = bench.call(at(TUN, 5000), at(MEDIA, 20_000));
    assert!(new != old && external.ip() == CABLE);
    assert_eq!(bench.heard(old, at(MEDIA, 20_000)), Ok(at(TUN, 5000)), "the old one lingers");
    bench.now += LINGER;
    assert_eq!(bench.sweep(), [old]);
}

#[test]
fn a_reload_cuts_what_it_forbids_and_leaves_the_rest() {
    let mut bench = Bench::new();
    let (mapping, _) = bench.call(at(TUN, 5000), at(MEDIA, 20_000));
    let signaling = || tcp(at(TUN, 5001), at(SIGNALING, 443), SYN);
    let voice = || udp(at(TUN, 5000), at(MEDIA, 20_000), 0, &stun());
    assert_eq!(bench.send(signaling()), TUNNEL);

    assert_eq!(bench.swap(0), 0);
    assert!(matches!(bench.send(voice()), Action::Bypass { .. }));

    assert_eq!(bench.swap(1), 1, "media is refused now");
    assert_eq!(bench.send(voice()), Action::Refuse(Refusal::Prohibited));
    assert_eq!(bench.heard(mapping, at(MEDIA, 20_000)), Err(DropReason::Cut));
    assert_eq!(bench.send(signaling()), TUNNEL);
}

#[test]
fn a_voice_flow_that_may_no_longer_go_in_the_clear_is_cut_not_moved() {
    let mut bench = Bench::new();
    bench.call(at(TUN, 5000), at(MEDIA, 20_000));
    assert_eq!(bench.swap(2), 1);
    assert_eq!(
        bench.send(udp(at(TUN, 5000), at(MEDIA, 20_000), 0, &stun())),
        Action::Refuse(Refusal::Prohibited)
    );
    assert_eq!(bench.send(udp(at(TUN, 5001), at(MEDIA, 20_000), 0, &stun())), TUNNEL, "a new flow");
}

#[test]
fn a_forbidden_flow_sends_and_hears_nothing_before_its_turn_in_a_reload_and_is_counted_once() {
    const FLOWS: u16 = 1000;
    let mut bench = Bench::new();
    let media = |flow| at(MEDIA, 20_000 + flow);
    let (mapping, _) = bench.call(at(TUN, 5000), media(0));
    let voice = |flow| udp(at(TUN, 5000), media(flow), 0, &stun());
    for flow in 1..FLOWS {
        assert!(matches!(bench.send(voice(flow)), Action::Bypass { .. }));
    }
    assert_eq!(bench.send(tcp(at(TUN, 5001), at(SIGNALING, 443), SYN)), TUNNEL);

    bench.engine.swap(policy(1));
    assert_eq!(bench.engine.judge_again(), None, "one step does not look at all flows");
    assert_eq!(bench.heard(mapping, media(FLOWS - 1)), Err(DropReason::Cut), "its turn has not come");
    assert_eq!(bench.send(voice(FLOWS - 2)), Action::Refuse(Refusal::Prohibited));
    assert_eq!(bench.send(voice(FLOWS)), Action::Refuse(Refusal::Prohibited), "a new flow");
    let cut = std::iter::repeat_with(|| bench.engine.judge_again()).flatten().next();
    assert_eq!(cut, Some(usize::from(FLOWS)), "those that sent before their turn are cut too");
}

#[test]
fn a_flow_keeps_its_gateway_and_hears_no_other() {
    let mut bench = Bench::new();
    let (old, new) =
        (tcp(at(TUN, 5000), at(SIGNALING, 443), SYN), tcp(at(TUN, 5001), at(SIGNALING, 443), SYN));
    assert_eq!(bench.send(old.clone()), TUNNEL);
    bench.engine.use_gateway(1);
    assert_eq!(bench.send(old), TUNNEL);
    assert_eq!(bench.send(new), Action::Tunnel { gateway: 1 });
    for (port, gateway, expected) in
        [(5000, 0, Ok(())), (5000, 1, Err(DropReason::Unsolicited)), (5001, 1, Ok(()))]
    {
        let answer = tcp(at(SIGNALING, 443), at(TUN, port), SYN_ACK);
        let answer = Packet::parse(&answer).unwrap();
        assert_eq!(bench.engine.from_tunnel(&answer, gateway, bench.now), expected);
    }
    let mut flows = [0; 3];
    assert!(bench.engine.count_flows(0, &mut flows) && !bench.engine.count_flows(1, &mut flows));
    assert_eq!(flows, [1, 1, 0]);
}

#[test]
fn a_fail_over_cuts_connections_that_were_answered_and_moves_all_else() {
    const MOVED: Action = Action::Tunnel { gateway: 1 };
    const RESET: Action = Action::Refuse(Refusal::Reset);
    let mut bench = Bench::new();
    let packet = |port, flags| tcp(at(TUN, port), at(SIGNALING, 443), flags);
    let sip = || udp(at(TUN, 5060), at(SIGNALING, 5060), 0, b"OPTIONS");
    let [opening, live, closing, elsewhere] = [5000, 5001, 5002, 5003];
    for port in [opening, live, closing] {
        assert_eq!(bench.send(packet(port, SYN)), TUNNEL);
    }
    assert_eq!(bench.send(sip()), TUNNEL);
    for port in [live, closing] {
        bench.answer(&tcp(at(SIGNALING, 443), at(TUN, port), SYN_ACK)).unwrap();
        assert_eq!(bench.send(packet(port, ACK)), TUNNEL);
    }
    assert_eq!(bench.send(packet(closing, FIN_ACK)), TUNNEL);
    bench.answer(&udp(at(SIGNALING, 5060), at(TUN, 5060), 0, b"OK")).unwrap();
    bench.engine.use_gateway(2);
    assert_eq!(bench.send(packet(elsewhere, SYN)), Action::Tunnel { gateway: 2 });
    bench.engine.use_gateway(0);

    let cut: usize = (0..).map_while(|part| bench.engine.fail_over(0, 1, part)).sum();
    assert_eq!(cut, 1, "one connection was live");
    let mut judge_again =
        |bytes: &[u8]| bench.engine.after_fail_over(&Packet::parse(bytes).unwrap(), bench.now);
    assert_eq!(
        [packet(opening, SYN), packet(live, ACK), sip()].map(|it| judge_again(&it)),
        [MOVED, RESET, MOVED]
    );
    assert_eq!(judge_again(&packet(5999, ACK)), Action::Drop, "of no flow");
    assert_eq!(bench.send(packet(opening, SYN)), MOVED);
    assert_eq!(bench.send(sip()), MOVED);
    assert_eq!(bench.send(packet(elsewhere, SYN)), Action::Tunnel { gateway: 2 });
    for port in [live, closing] {
        assert_eq!(bench.send(packet(port, ACK)), RESET);
        assert_eq!(bench.answer(&tcp(at(SIGNALING, 443), at(TUN, port), ACK)), Err(DropReason::Cut));
    }
    assert_eq!(bench.send(packet(live, SYN)), MOVED, "the same ports again are another connection");
}

#[test]
fn later_fragments_follow_their_first_one_to_another_gateway() {
    let mut bench = Bench::new();
    let part = |field| part_of(at(TUN, 5060), at(SIGNALING, 5060), field);
    assert_eq!([part(0x2000), part(0x0003)].map(|it| bench.send(it)), [TUNNEL, TUNNEL]);
    assert_eq!(bench.engine.fail_over(0, 1, 0), Some(0));
    assert_eq!(bench.send(part(0x0003)), Action::Tunnel { gateway: 1 });
}

#[test]
fn fragments_with_one_id_through_two_gateways_do_not_hide_each_other() {
    let mut bench = Bench::new();
    let (first, second, remote) = (at(TUN, 5060), at(TUN, 5062), at(SIGNALING, 5060));
    assert_eq!(bench.send(part_of(first, remote, 0x2000)), TUNNEL);
    bench.engine.use_gateway(1);
    assert_eq!(bench.send(part_of(second, remote, 0x2000)), Action::Tunnel { gateway: 1 });
    assert_eq!(bench.send(part_of(second, remote, 0x0003)), Action::Tunnel { gateway: 1 });
    for (to, gateway) in [(first, 0), (second, 1)] {
        let mut accepts = |field| {
            let bytes = part_of(remote, to, field);
            bench.engine.from_tunnel(&packet::Packet::parse(&bytes).unwrap(), gateway, bench.now)
        };
        assert_eq!([accepts(0x2000), accepts(0x0003)], [Ok(()), Ok(())], "{gateway}");
    }
}

/// A part of a datagram, with these flags and offset; the datagram is longer than its first part.
fn part_of(from: SocketAddr, to: SocketAddr, field: u16) -> Vec<u8> {
    let mut bytes = udp(from, to, 0, &[0; 16]);
    bytes[6..8].copy_from_slice(&field.to_be_bytes());
    bytes[25] += 16;
    let sum = packet::checksum::Sum::default().add_bytes(&bytes[..10]).add_bytes(&bytes[12..20]).checksum();
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes
}

#[test]
fn all_flows_are_shown_each_once() {
    let mut bench = Bench::new();
    for port in 1..=1000 {
        assert_eq!(bench.send(tcp(at(TUN, port), at(SIGNALING, 443), SYN)), TUNNEL);
    }
    let parts: Vec<_> = (0..).map_while(|part| bench.engine.flows(part, bench.now)).collect();
    assert!(parts.len() > 1, "one step does not show all flows");
    let mut ports: Vec<_> = parts.iter().flatten().map(|flow| flow.tuple.source.port()).collect();
    ports.sort_unstable();
    assert!(ports.into_iter().eq(1..=1000));
}

#[test]
fn where_applications_send_is_known_also_of_what_is_refused() {
    let mut bench = Bench::new();
    assert_eq!(bench.send(tcp(at(TUN, 5000), at(SIGNALING, 443), SYN)), TUNNEL);
    let refused = Action::Refuse(Refusal::Reset);
    for _ in 0..2 {
        assert_eq!(
            bench.send(tcp(at(WIFI, 5000), at(SIGNALING, 443), SYN)),
            refused,
            "no source of the tunnel's"
        );
    }
    assert_eq!(bench.engine.destinations(0).unwrap(), [SIGNALING]);
    assert_eq!(bench.engine.take_refused().collect::<Vec<_>>(), [SIGNALING]);
    assert_eq!(bench.engine.take_refused().count(), 0, "until it is asked for again");

    for last in 0..3000_u32 {
        let to = IpAddr::from((0xCB00_7100 + last).to_be_bytes());
        bench.send(udp(at(WIFI, 5000), at(to, 443), 0, b"x"));
    }
    assert_eq!(bench.engine.take_refused().count(), 1024);
}

#[test]
fn at_the_limit_no_live_flow_gives_way() {
    let mut bench = Bench::with(Limits { flows: 3, mappings: 3 });
    let signaling = |port| tcp(at(TUN, port), at(SIGNALING, 443), SYN);
    for port in 1..=3 {
        assert_eq!(bench.send(signaling(port)), TUNNEL);
    }
    assert_eq!(bench.send(signaling(4)), Action::Refuse(Refusal::Prohibited));
    bench.now += Duration::from_secs(61);
    assert_eq!(bench.send(signaling(1)), TUNNEL);
    assert_eq!(bench.send(signaling(4)), TUNNEL, "an idle one gave way");
    assert_eq!(bench.send(signaling(1)), TUNNEL, "a live one did not");
}

#[test]
fn at_the_limit_no_live_mapping_gives_way_and_no_port_is_asked_for() {
    let mut bench = Bench::with(Limits { flows: 100, mappings: 2 });
    let (first, _) = bench.call(at(TUN, 5000), at(MEDIA, 20_000));
    let (second, _) = bench.call(at(TUN, 5001), at(MEDIA, 20_000));
    let third = || udp(at(TUN, 5002), at(MEDIA, 20_000), 0, &stun());
    assert_eq!(bench.send(third()), Action::Refuse(Refusal::Prohibited));
    bench.now += Duration::from_secs(121);
    bench.send(udp(at(TUN, 5000), at(MEDIA, 20_000), 0, &stun()));
    let (reused, _) = bench.call(at(TUN, 5002), at(MEDIA, 20_000));
    assert_eq!((reused.slot, reused.generation), (second.slot, second.generation + 1));
    let live = bench.send(udp(at(TUN, 5000), at(MEDIA, 20_000), 0, &stun()));
    assert!(matches!(live, Action::Bypass { mapping, .. } if mapping == first));
    assert_eq!(bench.heard(second, at(MEDIA, 20_000)), Err(DropReason::Stranger));
}

#[test]
fn a_port_that_was_given_back_is_asked_for_again() {
    let mut bench = Bench::new();
    let (mapping, _) = bench.call(at(TUN, 5000), at(MEDIA, 20_000));
    bench.engine.given_back(mapping);
    bench.call(at(TUN, 5000), at(MEDIA, 20_000));
}

#[test]
fn an_error_is_told_only_about_a_remote_that_was_talked_to() {
    let mut bench = Bench::new();
    let (mapping, _) = bench.call(at(TUN, 5000), at(MEDIA, 20_000));
    assert_eq!(bench.engine.told_of_error(mapping, MEDIA), Some(at(TUN, 5000)));
    assert_eq!(bench.engine.told_of_error(mapping, OTHER_MEDIA), None);
}

/// A routed host's source address may lie on its loopback, which is no physical interface.
#[test]
fn the_source_address_counts_as_present_wherever_it_lies() {
    let mut bench = Bench::new();
    let elsewhere = Underlay { addresses: vec![own(CABLE)], ..underlay(Some(WIFI)) };
    bench.engine.set_underlay(elsewhere.clone(), bench.now);
    let (mapping, _) = bench.call(at(TUN, 5000), at(MEDIA, 20_000));
    bench.engine.set_underlay(elsewhere, bench.now);
    let voice = bench.send(udp(at(TUN, 5000), at(MEDIA, 20_000), 0, &stun()));
    assert!(matches!(voice, Action::Bypass { mapping: used, .. } if used == mapping));
    assert_eq!(bench.send(udp(at(WIFI, 5009), at(MEDIA, 20_000), 0, &stun())), Action::Identity);
}

#[test]
fn what_the_cache_did_not_take_is_offered_again_after_a_while_or_on_other_routes() {
    let mut bench = Bench::new();
    bench.engine.take_notes();
    let voice = || udp(at(TUN, 5000), at(MEDIA, 20_000), 0, &stun());
    let (mapping, _) = bench.call(at(TUN, 5000), at(MEDIA, 20_000));
    let (tuple, note) = bench.engine.next_note().unwrap();
    assert_eq!(note, Note::Sent);
    assert!(bench.engine.cacheable(&tuple, bench.now).is_some());

    let offered_after = |bench: &mut Bench, time: Duration| {
        bench.now += time;
        bench.send(voice());
        bench.engine.next_note().is_some()
    };
    bench.engine.not_sent(mapping, at(MEDIA, 20_000), bench.now);
    assert!(!offered_after(&mut bench, Duration::from_secs(9)));
    assert!(offered_after(&mut bench, Duration::from_secs(1)));

    bench.engine.not_cached(&tuple, bench.now);
    assert!(!offered_after(&mut bench, Duration::from_millis(1)));
    bench.engine.routes_changed(bench.now);
    assert!(offered_after(&mut bench, Duration::from_millis(1)));
}

#[test]
fn a_cache_hears_of_what_it_left_to_the_pump_also_of_a_flow_that_it_is_not_to_keep() {
    let mut bench = Bench::new();
    bench.engine.take_notes();
    let (mapping, _) = bench.call(at(TUN, 5000), at(MEDIA, 20_000));
    let (tuple, _) = bench.engine.next_note().unwrap();
    bench.engine.set_cached(&tuple, true);
    assert!(!bench.engine.is_refused(&tuple, bench.now));
    bench.engine.not_sent(mapping, at(MEDIA, 20_000), bench.now);
    bench.send(udp(at(TUN, 5000), at(MEDIA, 20_000), 0, &stun()));
    assert_eq!(bench.engine.next_note(), Some((tuple, Note::Sent)));
    assert!(bench.engine.is_refused(&tuple, bench.now));
}

#[test]
fn a_flow_whose_address_vanished_is_not_for_the_cache() {
    let mut bench = Bench::new();
    bench.engine.take_notes();
    bench.call(at(TUN, 5000), at(MEDIA, 20_000));
    assert_eq!(bench.send(udp(at(WIFI, 5009), at(MEDIA, 20_000), 0, &stun())), Action::Identity);
    for own in [TUN, WIFI] {
        let (tuple, note) = bench.engine.next_note().unwrap();
        assert_eq!((tuple.source.ip(), note), (own, Note::Sent));
        bench.engine.set_underlay(underlay(Some(WIFI)), bench.now);
        assert!(bench.engine.cacheable(&tuple, bench.now).is_some());
        bench.engine.set_underlay(underlay(None), bench.now);
        assert_eq!(bench.engine.cacheable(&tuple, bench.now), None);
    }
}

#[test]
fn refusals_are_limited_in_rate() {
    let mut bench = Bench::new();
    let refused = (0..1000)
        .filter(|_| matches!(bench.send(udp(at(TUN, 1), at(STRANGER, 9), 0, b"x")), Action::Refuse(_)))
        .count();
    assert_eq!(refused, 200);
    bench.now += Duration::from_secs(1);
    assert!(matches!(bench.send(udp(at(TUN, 1), at(STRANGER, 9), 0, b"x")), Action::Refuse(_)));
}

/// Also of a table that has been full and keeps its size.
#[test]
fn sweeping_takes_less_than_one_step_in_a_second() {
    let mut bench = Bench::new();
    for source in 0..=u16::MAX {
        assert_eq!(bench.send(tcp(at(TUN, source), at(SIGNALING, 443), SYN)), TUNNEL);
    }
    let (end, mut steps) = (bench.now + Duration::from_secs(60), 0);
    while let Some(due) = bench.engine.deadline().filter(|due| *due <= end) {
        bench.now = due;
        bench.sweep();
        steps += 1;
    }
    assert!((1..60).contains(&steps), "{steps} in a minute");
}

#[test]
fn nothing_is_to_be_waited_for_when_nothing_flows() {
    let mut bench = Bench::new();
    assert_eq!(bench.engine.deadline(), None);
    bench.call(at(TUN, 5000), at(MEDIA, 20_000));
    assert!(bench.engine.deadline().is_some());
    for _ in 0..20 {
        bench.now += Duration::from_secs(40);
        bench.sweep();
    }
    assert_eq!(bench.engine.deadline(), None);
}

proptest::proptest! {
    #[test]
    fn any_scenario_keeps_every_promise(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..2000)) {
        scenario::run(&bytes);
    }
}
