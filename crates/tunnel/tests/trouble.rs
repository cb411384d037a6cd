//! What `status` can say when no session comes up.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::time::Instant;

use common::{Gave, Pair, Took, give, ipv4, run, secs, take};
use tunnel::{OpenError, Peer, PeerConfig, PresharedKey, PrivateKey, Trouble};

#[test]
fn unequal_pre_shared_keys_are_named_at_both_ends() {
    let mut pair = Pair::with(Some(PresharedKey::generate().unwrap()), None, None);
    let Gave::Queued(Some(initiation)) = give(&mut pair.agent, &ipv4(60, 0), pair.now) else { panic!() };
    let Ok(Took::Reply(response)) = take(&mut pair.gateway, &initiation, pair.now) else { panic!() };
    assert_eq!(pair.agent.trouble(pair.now), None);
    assert_eq!(take(&mut pair.agent, &response, pair.now), Err(OpenError::NotAuthentic));
    assert_eq!(pair.agent.trouble(pair.now), Some(Trouble::PresharedKey));
    assert!(Trouble::PresharedKey.to_string().contains("pre-shared keys differ"));

    assert_eq!(pair.gateway.trouble(pair.now), None);
    pair.wait(secs(6));
    let retry = run(&mut pair.agent, pair.now).remove(0);
    assert!(take(&mut pair.gateway, &retry, pair.now).is_ok());
    assert_eq!(pair.gateway.trouble(pair.now), Some(Trouble::NeverConfirmed));
}

#[test]
fn equal_pre_shared_keys_work() {
    let key = PresharedKey::generate().unwrap();
    let mut pair = Pair::with(Some(key.clone()), Some(key), None);
    pair.connect();
    assert_eq!(pair.agent.trouble(pair.now), None);
    pair.download();
}

#[test]
fn a_wrong_key_of_the_gateway_gets_no_answer() {
    let mut pair = Pair::new();
    let config = PeerConfig {
        private_key: PrivateKey::generate().unwrap(),
        peer_public_key: PrivateKey::generate().unwrap().public_key(),
        preshared_key: None,
        keepalive: None,
        index: 1,
        mtu: common::MTU,
    };
    let mut agent = Peer::new(config, pair.now);
    let Gave::Queued(Some(initiation)) = give(&mut agent, &ipv4(60, 0), pair.now) else { panic!() };
    assert_eq!(take(&mut pair.gateway, &initiation, pair.now), Err(OpenError::NotAuthentic));
    assert_eq!(agent.trouble(pair.now), None);
    pair.wait(secs(9));
    let trouble = agent.trouble(pair.now).unwrap();
    assert_eq!(trouble, Trouble::NoAnswer(secs(9)));
    assert!(trouble.to_string().contains("no answer from the gateway for 9 s"));
    assert!(trouble.to_string().contains("peer_public_key"));
}

#[test]
fn an_unknown_agent_is_not_answered() {
    let mut pair = Pair::new();
    let mut other = Pair::new();
    let Gave::Queued(Some(initiation)) = give(&mut other.agent, &ipv4(60, 0), pair.now) else { panic!() };
    assert!(take(&mut pair.gateway, &initiation, pair.now).is_err());
    pair.connect();
}

#[test]
fn a_replayed_initiation_is_refused() {
    let mut pair = Pair::new();
    let Gave::Queued(Some(initiation)) = give(&mut pair.agent, &ipv4(60, 0), pair.now) else { panic!() };
    assert!(take(&mut pair.gateway, &initiation, pair.now).is_ok());
    assert_eq!(take(&mut pair.gateway, &initiation, pair.now), Err(OpenError::Replayed));
    assert_eq!(pair.gateway.stats().replayed, 1);
}

#[test]
fn without_a_route_it_says_so() {
    let mut pair = Pair::up();
    pair.agent.set_underlay(false, pair.now);
    assert_eq!(pair.agent.trouble(pair.now), Some(Trouble::NoRoute));
}

#[test]
fn a_flood_of_handshakes_is_limited() {
    let mut pair = Pair::new();
    let Gave::Queued(Some(initiation)) = give(&mut pair.agent, &ipv4(60, 0), pair.now) else { panic!() };
    let began = Instant::now();
    let looked_at = (0..2000)
        .filter(|_| take(&mut pair.gateway, &initiation, pair.now) != Err(OpenError::RateLimited))
        .count();
    // Boringtun counts in seconds of the real clock.
    let seconds = began.elapsed().as_secs() as usize + 1;
    assert!(looked_at <= 500 * seconds, "{looked_at} in {seconds} s");
}
