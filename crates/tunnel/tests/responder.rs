//! A gateway with several agents behind one key.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use common::{Gave, MTU, Took, flush, give, ipv4, is_initiation, run, secs, take};
use tunnel::{
    OpenError, Opened, Peer, PeerConfig, PresharedKey, PrivateKey, PublicKey, Responder, ResponderError,
    ResponderPeer, Route, State,
};

struct Office {
    gateway: Responder,
    agents: Vec<Peer>,
    now: Instant,
}

impl Office {
    /// Agent *n* owns 10.99.*n*.0/24; the first one everything else too.
    fn new(agents: u8) -> Self {
        let now = Instant::now();
        let key = PrivateKey::generate().unwrap();
        let public = key.public_key();
        let (mut peers, mut configured) = (Vec::new(), Vec::new());
        for number in 0..agents {
            let own = PrivateKey::generate().unwrap();
            let psk = PresharedKey::generate().unwrap();
            let mut allowed = vec![format!("10.99.{number}.0/24")];
            if number == 0 {
                allowed.extend(["0.0.0.0/0".to_owned(), "::/0".to_owned()]);
            }
            configured.push(member(own.public_key(), Some(psk.clone()), &allowed));
            peers.push(agent(own, public, Some(psk), u32::from(number), now));
        }
        Self { gateway: Responder::new(key, configured, now).unwrap(), agents: peers, now }
    }

    fn connect(&mut self, number: usize) {
        let packet = from_agent(number, 1);
        let Gave::Queued(Some(initiation)) = give(&mut self.agents[number], &packet, self.now) else {
            panic!("no initiation")
        };
        let Ok((Some(found), Took::Reply(response))) = self.open(&initiation, endpoint(number)) else {
            panic!("no response")
        };
        assert_eq!(found, number);
        let Ok(Took::Reply(keepalive)) = take(&mut self.agents[number], &response, self.now) else {
            panic!("no keepalive")
        };
        assert_eq!(self.open(&keepalive, endpoint(number)), Ok((Some(number), Took::Keepalive)));
        let waited = flush(&mut self.agents[number], self.now).remove(0);
        assert_eq!(self.open(&waited, endpoint(number)), Ok((Some(number), Took::Packet(packet))));
    }

    fn open(&mut self, datagram: &[u8], from: SocketAddr) -> Result<(Option<usize>, Took), OpenError> {
        open(&mut self.gateway, datagram, from, self.now)
    }
}

fn open(
    gateway: &mut Responder,
    datagram: &[u8],
    from: SocketAddr,
    now: Instant,
) -> Result<(Option<usize>, Took), OpenError> {
    let mut out = vec![0; datagram.len().max(148)];
    gateway.open(datagram, from, &mut out, now).map(|(peer, opened)| {
        let took = match opened {
            Opened::Packet(packet) => Took::Packet(packet.to_vec()),
            Opened::Keepalive => Took::Keepalive,
            Opened::Reply(reply) => Took::Reply(reply.to_vec()),
            Opened::Nothing => Took::Nothing,
        };
        (peer, took)
    })
}

fn agent(
    private_key: PrivateKey,
    peer_public_key: PublicKey,
    preshared_key: Option<PresharedKey>,
    index: u32,
    now: Instant,
) -> Peer {
    Peer::new(
        PeerConfig { private_key, peer_public_key, preshared_key, keepalive: None, index, mtu: MTU },
        now,
    )
}

fn member(public_key: PublicKey, preshared_key: Option<PresharedKey>, allowed: &[String]) -> ResponderPeer {
    let allowed_ips = allowed.iter().map(|prefix| prefix.parse().unwrap()).collect();
    ResponderPeer { public_key, preshared_key, allowed_ips, mtu: MTU, keepalive: None }
}

fn endpoint(number: usize) -> SocketAddr {
    SocketAddr::from(([198, 18, 0, number as u8 + 1], 40_000))
}

fn from_agent(number: usize, tag: u8) -> Vec<u8> {
    let mut packet = ipv4(60, tag);
    packet[12..16].copy_from_slice(&[10, 99, number as u8, 1]);
    packet
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn several_agents_at_once() {
    let mut office = Office::new(3);
    for number in 0..3 {
        office.connect(number);
    }
    for number in [2, 0, 1] {
        let route = office.gateway.route(address(&format!("10.99.{number}.7"))).unwrap();
        assert_eq!(route, Route { peer: number, endpoint: Some(endpoint(number)) });
        let packet = ipv4(80, number as u8);
        let peer = office.gateway.peer_mut(route.peer).unwrap();
        let Gave::Datagram(datagram) = give(peer, &packet, office.now) else { panic!("not sent") };
        assert_eq!(take(&mut office.agents[number], &datagram, office.now), Ok(Took::Packet(packet)));
        let other = &mut office.agents[(number + 1) % 3];
        assert!(take(other, &datagram, office.now).is_err());
    }
}

#[test]
fn the_longest_prefix_decides_whose_an_address_is() {
    let office = Office::new(2);
    let peer = |text| office.gateway.route(address(text)).map(|route| route.peer);
    assert_eq!(peer("10.99.1.9"), Some(1));
    assert_eq!(peer("10.99.0.9"), Some(0));
    assert_eq!(peer("10.99.2.9"), Some(0));
    assert_eq!(peer("2001:db8::1"), Some(0));
    assert!(office.gateway.allowed(1, address("10.99.1.9")));
    assert!(!office.gateway.allowed(1, address("10.99.0.9")));
    assert!(!office.gateway.allowed(0, address("10.99.1.9")));
    assert!(!office.gateway.allowed(7, address("10.99.1.9")));
}

#[test]
fn a_packet_from_another_ones_address_is_refused() {
    let mut office = Office::new(2);
    office.connect(1);
    let Gave::Datagram(forged) = give(&mut office.agents[1], &from_agent(0, 1), office.now) else { panic!() };
    assert_eq!(office.open(&forged, endpoint(1)), Err(OpenError::SourceNotAllowed));
    let Gave::Datagram(own) = give(&mut office.agents[1], &from_agent(1, 1), office.now) else { panic!() };
    assert!(office.open(&own, endpoint(1)).is_ok());
}

#[test]
fn an_endpoint_follows_authentic_packets_only() {
    let mut office = Office::new(1);
    office.connect(0);
    let Gave::Datagram(datagram) = give(&mut office.agents[0], &from_agent(0, 1), office.now) else {
        panic!()
    };
    let mut forged = datagram.clone();
    forged[40] ^= 1;
    let elsewhere: SocketAddr = "203.0.113.9:1".parse().unwrap();
    assert_eq!(office.open(&forged, elsewhere), Err(OpenError::NotAuthentic));
    assert_eq!(office.gateway.endpoint(0), Some(endpoint(0)));
    let roamed: SocketAddr = "[2001:db8::5]:9".parse().unwrap();
    assert!(office.open(&datagram, roamed).is_ok());
    assert_eq!(office.gateway.endpoint(0), Some(roamed));
    assert_eq!(office.open(&datagram, elsewhere), Err(OpenError::Replayed));
    assert_eq!(office.gateway.endpoint(0), Some(roamed));
}

#[test]
fn a_peer_never_heard_is_down() {
    let mut office = Office::new(1);
    assert_eq!(office.gateway.route(address("10.99.0.1")), Some(Route { peer: 0, endpoint: None }));
    let peer = office.gateway.peer_mut(0).unwrap();
    assert_eq!(give(peer, &ipv4(60, 1), office.now), Gave::Down);
    assert_eq!(peer.state(office.now), State::Down { since: office.now });
    assert_eq!(office.gateway.deadline(), None);
    office.connect(0);
    assert!(matches!(office.gateway.peer(0).unwrap().state(office.now), State::Up { .. }));
}

#[test]
fn strangers_get_nothing() {
    let mut office = Office::new(1);
    let stranger = PrivateKey::generate().unwrap();
    let public = PrivateKey::generate().unwrap();
    let mut lost = agent(stranger, public.public_key(), None, 5, office.now);
    let Gave::Queued(Some(initiation)) = give(&mut lost, &ipv4(60, 0), office.now) else { panic!() };
    assert_eq!(office.open(&initiation, endpoint(9)), Err(OpenError::NotAuthentic));

    let mut data = [0; 64];
    data[0] = 4;
    assert_eq!(office.open(&data, endpoint(9)), Err(OpenError::NoSession));
    assert_eq!(office.open(&data[1..], endpoint(9)), Err(OpenError::NotWireGuard));
    assert_eq!(office.gateway.open(&data, endpoint(9), &mut [0; 147], office.now), Err(OpenError::Buffer));
}

#[test]
fn a_key_that_is_not_among_the_peers_is_told_apart() {
    let now = Instant::now();
    let key = PrivateKey::generate().unwrap();
    let mut unknown = agent(PrivateKey::generate().unwrap(), key.public_key(), None, 5, now);
    let mut gateway = Responder::new(key, Vec::new(), now).unwrap();
    let Gave::Queued(Some(initiation)) = give(&mut unknown, &ipv4(60, 0), now) else { panic!() };
    assert_eq!(open(&mut gateway, &initiation, endpoint(9), now), Err(OpenError::UnknownPeer));
}

#[test]
fn under_load_an_agent_proves_its_address_with_a_cookie() {
    // Load is what comes within a second of the real clock: on a machine that is too slow, it is tried again.
    for _ in 0..5 {
        let mut office = Office::new(1);
        let began = Instant::now();
        let Gave::Queued(Some(initiation)) = give(&mut office.agents[0], &from_agent(0, 1), office.now)
        else {
            panic!()
        };
        let cookie = (0..200).find_map(|_| match office.open(&initiation, endpoint(0)) {
            Ok((None, Took::Reply(cookie))) => Some(cookie),
            _ => None,
        });
        let Some(cookie) = cookie else { continue };
        assert_eq!(cookie.len(), 64);
        assert_eq!(take(&mut office.agents[0], &cookie, office.now), Ok(Took::Nothing));

        office.now += secs(6);
        let retry = run(&mut office.agents[0], office.now).remove(0);
        assert!(is_initiation(&retry));
        let elsewhere = office.open(&retry, "192.0.2.77:1".parse().unwrap());
        if began.elapsed() >= Duration::from_secs(1) {
            continue;
        }
        assert!(matches!(elsewhere, Ok((None, Took::Reply(_)))), "a cookie was taken from another address");
        let Ok((Some(0), Took::Reply(response))) = office.open(&retry, endpoint(0)) else {
            panic!("not answered")
        };
        assert!(matches!(take(&mut office.agents[0], &response, office.now), Ok(Took::Reply(_))));
        return;
    }
    panic!("100 handshakes took longer than a second, five times");
}

#[test]
fn deadlines_of_all_peers_are_served() {
    let mut office = Office::new(3);
    for number in 0..3 {
        office.connect(number);
    }
    office.now = office.gateway.deadline().unwrap();
    let mut out = [0; 148];
    let mut served = Vec::new();
    while office.gateway.deadline().unwrap() <= office.now {
        let Some((peer, datagram)) = office.gateway.on_deadline(&mut out, office.now) else { continue };
        assert_eq!(take(&mut office.agents[peer], datagram, office.now), Ok(Took::Keepalive));
        served.push(peer);
    }
    assert_eq!(served, [0, 1, 2]);
}

#[test]
fn no_deadline_is_missed_whatever_is_done_with_peers() {
    let mut office = Office::new(3);
    for number in [0, 2, 1] {
        office.connect(number);
        office.now += Duration::from_secs(1);
    }
    let mut out = [0; 148];
    for step in 0..2000 {
        let earliest = (0..3).filter_map(|peer| office.gateway.peer(peer)?.deadline()).min();
        assert!(office.gateway.deadline() <= earliest, "{step}");
        office.now += Duration::from_millis(150);
        if step % 7 == 0 {
            let peer = office.gateway.peer_mut(step % 3).unwrap();
            give(peer, &ipv4(60, 1), office.now);
        }
        for _ in 0..10 {
            office.gateway.on_deadline(&mut out, office.now);
        }
        let due = |peer: usize| office.gateway.peer(peer).and_then(Peer::deadline);
        assert!((0..3).filter_map(due).all(|due| due > office.now), "{step}");
    }
}

#[test]
fn where_nothing_is_due_nobody_is_looked_at() {
    const CALLS: u32 = 1000;
    let mut office = Office::new(1);
    office.connect(0);
    let crowd = |_| member(PrivateKey::generate().unwrap().public_key(), None, &[]);
    let mut large =
        Responder::new(PrivateKey::generate().unwrap(), (0..2000).map(crowd).collect(), office.now).unwrap();
    let took = |gateway: &mut Responder| {
        let round = || {
            let began = Instant::now();
            (0..CALLS).for_each(|_| {
                std::hint::black_box(gateway.deadline());
            });
            began.elapsed()
        };
        std::iter::repeat_with(round).take(10).min().unwrap()
    };
    let (few, many) = (took(&mut office.gateway), took(&mut large));
    assert!(many < few * 20, "{many:?} with 2000 peers, {few:?} with one");
}

#[test]
fn lists_that_cannot_work_are_refused() {
    let now = Instant::now();
    let key = PrivateKey::generate().unwrap();
    let other = PrivateKey::generate().unwrap().public_key();
    let third = PrivateKey::generate().unwrap().public_key();
    let prefix = ["10.0.0.0/8".to_owned()];
    let error = |peers| Responder::new(key.clone(), peers, now).err();
    assert_eq!(
        error(vec![member(other, None, &[]), member(other, None, &[])]),
        Some(ResponderError::DuplicateKey(other))
    );
    assert_eq!(
        error(vec![member(key.public_key(), None, &[])]),
        Some(ResponderError::OwnKey(key.public_key()))
    );
    assert_eq!(
        error(vec![member(other, None, &prefix), member(third, None, &["10.1.0.0/8".to_owned()])]),
        Some(ResponderError::DuplicatePrefix("10.0.0.0/8".parse().unwrap()))
    );
}
