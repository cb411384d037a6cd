//! When handshakes, keepalives and refusals happen. Time is the test's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::time::Duration;

use common::{Gave, Pair, Took, flush, give, ipv4, is_initiation, refused, run, secs, take};
use tunnel::{MAX_QUEUED, OpenError, State};

const MILLI: Duration = Duration::from_millis(1);
/// The latest retry of a handshake: 5 s and the whole jitter.
const RETRY: Duration = Duration::from_millis(5333);

#[test]
fn an_idle_peer_asks_for_nothing() {
    let mut pair = Pair::new();
    assert_eq!(pair.agent.state(pair.now), State::Idle);
    assert_eq!(pair.agent.deadline(), None);
    pair.wait(secs(100_000));
    assert_eq!(pair.agent.on_deadline(&mut [0; 148], pair.now), None);
    pair.connect();
}

/// A way that carries packets in one direction only: the other end asks for a handshake again and again, and never hears an answer.
#[test]
fn who_is_asked_but_never_heard_finds_the_other_end_down() {
    let mut pair = Pair::up();
    let packet = ipv4(100, 3);
    assert!(matches!(give(&mut pair.gateway, &packet, pair.now), Gave::Datagram(_)));
    assert!(matches!(give(&mut pair.agent, &packet, pair.now), Gave::Datagram(_)));
    let (sent_at, mut questions) = (pair.now, 0);
    while pair.now < sent_at + secs(30) {
        pair.wait(100 * MILLI);
        run(&mut pair.agent, pair.now);
        for datagram in run(&mut pair.gateway, pair.now) {
            questions += usize::from(is_initiation(&datagram));
            let _ = take(&mut pair.agent, &datagram, pair.now);
        }
        assert_eq!(pair.agent.waits_since(), Some(sent_at));
    }
    assert!(questions > 1, "the control");
    assert!(matches!(pair.agent.state(pair.now), State::Down { .. }), "{:?}", pair.agent.state(pair.now));
}

#[test]
fn a_first_packet_waits_then_is_refused_and_retries_go_on() {
    let mut pair = Pair::new();
    let began = pair.now;
    let packet = ipv4(100, 3);
    assert!(matches!(give(&mut pair.agent, &packet, pair.now), Gave::Queued(Some(_))));
    pair.wait(secs(3));
    assert_eq!(give(&mut pair.agent, &packet, pair.now), Gave::Queued(None));
    assert_eq!(pair.agent.state(pair.now), State::Connecting { since: began });

    pair.now = began + secs(5) - MILLI;
    assert!(run(&mut pair.agent, pair.now).is_empty() && refused(&mut pair.agent).is_empty());
    assert_eq!(pair.agent.deadline(), Some(began + secs(5)));
    pair.now = began + secs(5);
    let mut sent = run(&mut pair.agent, pair.now).len();
    assert_eq!(refused(&mut pair.agent), vec![packet.clone(), packet.clone()]);
    assert_eq!(pair.agent.state(pair.now), State::Down { since: began + secs(5) });
    assert_eq!(give(&mut pair.agent, &packet, pair.now), Gave::Down);

    let retry = pair.agent.deadline().unwrap();
    assert!(retry <= began + RETRY);
    pair.now = retry;
    let retries = run(&mut pair.agent, pair.now);
    sent += retries.len();
    assert_eq!(sent, 1);
    assert!(matches!(pair.agent.state(pair.now), State::Down { .. }));

    pair.answer(&retries[0]);
    assert_eq!(pair.agent.state(pair.now), State::Up { since: pair.now });
    assert!(flush(&mut pair.agent, pair.now).is_empty());
    pair.upload();
}

/// The gateway's session begins with its answer, which lay here while the machine slept: it is not trusted for longer than the gateway does.
#[test]
fn an_answer_that_waited_is_as_old_as_its_question() {
    let mut pair = Pair::new();
    let asked = pair.now;
    let Gave::Queued(Some(initiation)) = give(&mut pair.agent, &ipv4(100, 1), asked) else { panic!() };
    let Ok(Took::Reply(answer)) = take(&mut pair.gateway, &initiation, asked) else { panic!() };
    pair.now = asked + secs(170);
    assert!(matches!(take(&mut pair.agent, &answer, pair.now), Ok(Took::Reply(_))));
    assert!(matches!(give(&mut pair.agent, &ipv4(100, 2), pair.now), Gave::Datagram(_)));
    let renewal = run(&mut pair.agent, pair.now);
    assert!(renewal.iter().any(|datagram| is_initiation(datagram)), "{renewal:?}");
    pair.now = asked + secs(181);
    assert!(!matches!(give(&mut pair.agent, &ipv4(100, 3), pair.now), Gave::Datagram(_)));
}

#[test]
fn retries_end_90_s_after_the_last_wish_and_begin_again_with_the_next() {
    let mut pair = Pair::new();
    let began = pair.now;
    give(&mut pair.agent, &ipv4(40, 0), pair.now);
    let mut gaps = Vec::new();
    let mut last = began;
    while let Some(deadline) = pair.agent.deadline().filter(|deadline| *deadline < began + secs(500)) {
        pair.now = deadline;
        for datagram in run(&mut pair.agent, pair.now) {
            assert!(is_initiation(&datagram));
            gaps.push(pair.now - last);
            last = pair.now;
        }
    }
    assert!((16..=17).contains(&gaps.len()), "{} retries", gaps.len());
    assert!(gaps.iter().all(|gap| (secs(5)..=RETRY).contains(gap)), "{gaps:?}");
    assert!(gaps.windows(2).any(|pair| pair[0] != pair[1]), "no jitter");
    assert!(last < began + secs(90));
    assert_eq!(refused(&mut pair.agent).len(), 1);

    pair.now = began + secs(200);
    assert_eq!(give(&mut pair.agent, &ipv4(40, 0), pair.now), Gave::Down);
    let again = run(&mut pair.agent, pair.now);
    assert!(again.len() == 1 && is_initiation(&again[0]));
    pair.answer(&again[0]);
    pair.upload();
}

#[test]
fn after_its_end_a_forgotten_peer_has_no_deadline() {
    let mut pair = Pair::up();
    let began = pair.now;
    let mut calls = 0;
    for peer in [&mut pair.agent, &mut pair.gateway] {
        while let Some(deadline) = peer.deadline() {
            assert!(deadline <= began + secs(540));
            run(peer, deadline);
            calls += 1;
        }
        assert_eq!(peer.state(began + secs(540)), State::Idle);
    }
    assert!(calls <= 4, "{calls} wake-ups in 540 s");
    pair.now = began + secs(541);
    pair.connect();
}

#[test]
fn the_first_packet_after_a_pause_starts_no_handshake() {
    let mut pair = Pair::up();
    for pause in [15, 20, 25, 30] {
        assert_eq!(pair.pass(secs(pause)), 0, "during {pause} s");
        pair.upload();
        assert!(run(&mut pair.agent, pair.now).is_empty(), "after {pause} s");
        pair.download();
        assert!(run(&mut pair.gateway, pair.now).is_empty(), "after {pause} s");
    }
    assert_eq!(pair.agent.stats().handshakes, 1);
}

#[test]
fn data_received_is_acknowledged_after_10_s() {
    let mut pair = Pair::up();
    pair.download();
    let received = pair.now;
    assert_eq!(pair.agent.deadline(), Some(received + secs(10)));
    pair.wait(secs(10));
    let sent = run(&mut pair.agent, pair.now);
    assert_eq!(sent.len(), 1);
    assert_eq!(take(&mut pair.gateway, &sent[0], pair.now), Ok(Took::Keepalive));
    pair.wait(secs(60));
    assert!(run(&mut pair.agent, pair.now).is_empty());
}

#[test]
fn persistent_keepalives_keep_the_session_and_begin_at_once() {
    let mut pair = Pair::with(None, None, Some(secs(25)));
    let began = pair.now;
    let first = run(&mut pair.agent, pair.now);
    assert!(first.len() == 1 && is_initiation(&first[0]));
    pair.answer(&first[0]);
    let (mut keepalives, mut handshakes) = (0, 0);
    while pair.now < began + secs(600) {
        pair.now = pair.agent.deadline().unwrap();
        for datagram in run(&mut pair.agent, pair.now) {
            if is_initiation(&datagram) {
                pair.answer(&datagram);
                handshakes += 1;
            } else {
                assert_eq!(take(&mut pair.gateway, &datagram, pair.now), Ok(Took::Keepalive));
                keepalives += 1;
            }
        }
        assert_eq!(pair.agent.state(pair.now), State::Up { since: began });
    }
    assert_eq!((keepalives, handshakes), (24, 4));
}

#[test]
fn persistent_keepalives_try_a_dead_gateway_at_their_own_pace_in_the_end() {
    let mut pair = Pair::with(None, None, Some(secs(25)));
    let began = pair.now;
    let mut sent = Vec::new();
    while pair.now < began + secs(300) {
        pair.now = pair.agent.deadline().unwrap();
        sent.extend(run(&mut pair.agent, pair.now).iter().map(|_| pair.now - began));
    }
    let late: Vec<_> = sent.iter().filter(|at| **at > secs(125)).collect();
    assert!(late.windows(2).all(|pair| *pair[1] - *pair[0] == secs(25)), "{late:?}");
    let last = run(&mut pair.agent, pair.now + secs(25)).remove(0);
    pair.now += secs(25);
    pair.answer(&last);
    pair.upload();
}

#[test]
fn the_initiator_renews_after_120_s_while_packets_flow() {
    let mut pair = Pair::up();
    let began = pair.now;
    pair.now = began + secs(120) - MILLI;
    pair.upload();
    pair.download();
    assert!(run(&mut pair.agent, pair.now).is_empty());
    pair.wait(MILLI);
    pair.download();
    assert!(run(&mut pair.gateway, pair.now).is_empty(), "a responder does not renew");
    pair.upload();
    let sent = run(&mut pair.agent, pair.now);
    assert!(sent.len() == 1 && is_initiation(&sent[0]));
    pair.upload();
    let Ok(Took::Reply(response)) = take(&mut pair.gateway, &sent[0], pair.now) else {
        panic!("no response")
    };
    pair.upload();
    pair.download();
    let Ok(Took::Reply(keepalive)) = take(&mut pair.agent, &response, pair.now) else {
        panic!("no keepalive")
    };
    pair.download();
    assert_eq!(take(&mut pair.gateway, &keepalive, pair.now), Ok(Took::Keepalive));
    pair.upload();
    pair.download();
    assert_eq!(pair.agent.state(pair.now), State::Up { since: began });
    assert_eq!(pair.agent.stats().last_handshake, Some(pair.now));
}

#[test]
fn the_initiator_renews_on_receiving_after_165_s() {
    let mut pair = Pair::up();
    pair.wait(secs(165));
    run(&mut pair.agent, pair.now);
    pair.download();
    let sent = run(&mut pair.agent, pair.now);
    assert!(sent.len() == 1 && is_initiation(&sent[0]));
}

#[test]
fn a_session_ends_at_180_s_for_sealing_and_for_opening() {
    let mut pair = Pair::up();
    let Gave::Datagram(early) = give(&mut pair.gateway, &ipv4(60, 1), pair.now) else { panic!("not sent") };
    let Gave::Datagram(late) = give(&mut pair.gateway, &ipv4(60, 2), pair.now) else { panic!("not sent") };
    pair.wait(secs(180) - MILLI);
    assert!(take(&mut pair.agent, &early, pair.now).is_ok());
    pair.wait(MILLI);
    assert_eq!(take(&mut pair.agent, &late, pair.now), Err(OpenError::Expired));
    assert!(matches!(give(&mut pair.agent, &ipv4(60, 3), pair.now), Gave::Queued(Some(_))));
    assert!(matches!(give(&mut pair.gateway, &ipv4(60, 3), pair.now), Gave::Queued(Some(_))));
}

#[test]
fn a_silent_gateway_is_noticed_after_15_s_and_down_after_20() {
    let mut pair = Pair::up();
    let began = pair.now;
    let lost = ipv4(60, 4);
    for second in 0..15 {
        pair.now = began + secs(second);
        assert!(matches!(give(&mut pair.agent, &lost, pair.now), Gave::Datagram(_)));
        assert!(run(&mut pair.agent, pair.now).is_empty());
    }
    pair.now = began + secs(15);
    let sent = run(&mut pair.agent, pair.now);
    assert!(sent.len() == 1 && is_initiation(&sent[0]));
    pair.now = began + secs(20) - MILLI;
    assert!(matches!(give(&mut pair.agent, &lost, pair.now), Gave::Datagram(_)));
    pair.now = began + secs(20);
    assert_eq!(give(&mut pair.agent, &lost, pair.now), Gave::Down);
    assert_eq!(pair.agent.state(pair.now), State::Down { since: pair.now });

    // Anything authentic brings it up again, under the session that still lives.
    pair.wait(secs(1));
    pair.download();
    assert_eq!(pair.agent.state(pair.now), State::Up { since: pair.now });
    pair.upload();
}

#[test]
fn an_unanswered_renewal_leaves_a_living_session_alone_while_the_gateway_is_heard() {
    let mut pair = Pair::up();
    let began = pair.now;
    pair.now = began + secs(120);
    pair.upload();
    while pair.now < began + secs(180) - MILLI {
        run(&mut pair.agent, pair.now);
        pair.upload();
        pair.download();
        pair.wait(secs(1));
    }
    pair.now = began + secs(180);
    assert!(matches!(pair.agent.state(pair.now), State::Down { .. }));
    assert_eq!(give(&mut pair.agent, &ipv4(60, 0), pair.now), Gave::Down);
}

#[test]
fn a_gateway_that_dies_during_a_renewal_is_noticed_as_soon_as_any() {
    let mut pair = Pair::up();
    let began = pair.now;
    pair.now = began + secs(120);
    pair.upload();
    run(&mut pair.agent, pair.now);
    pair.wait(secs(6));
    run(&mut pair.agent, pair.now);
    pair.download();
    let dead = pair.now;
    while matches!(give(&mut pair.agent, &ipv4(60, 0), pair.now), Gave::Datagram(_)) {
        pair.wait(secs(1));
        run(&mut pair.agent, pair.now);
        assert!(pair.now <= dead + secs(20));
    }
    assert_eq!(pair.now, dead + secs(20));
}

#[test]
fn the_queue_holds_256_packets_for_5_s() {
    let mut pair = Pair::new();
    let began = pair.now;
    for number in 0..MAX_QUEUED {
        assert!(matches!(give(&mut pair.agent, &ipv4(60, number as u8), pair.now), Gave::Queued(_)));
    }
    assert_eq!(give(&mut pair.agent, &ipv4(60, 0), pair.now), Gave::Full);
    pair.now = began + secs(5);
    run(&mut pair.agent, pair.now);
    assert_eq!(refused(&mut pair.agent).len(), MAX_QUEUED);
}

#[test]
fn without_a_route_it_is_down_at_once_and_with_one_it_tries_at_once() {
    let mut pair = Pair::new();
    assert!(matches!(give(&mut pair.agent, &ipv4(60, 0), pair.now), Gave::Queued(Some(_))));
    pair.wait(secs(1));
    pair.agent.set_underlay(false, pair.now);
    assert_eq!(refused(&mut pair.agent).len(), 1);
    assert_eq!(pair.agent.state(pair.now), State::Down { since: pair.now });
    assert_eq!(give(&mut pair.agent, &ipv4(60, 0), pair.now), Gave::Down);
    pair.wait(secs(60));
    assert!(run(&mut pair.agent, pair.now).is_empty());

    pair.agent.set_underlay(true, pair.now);
    assert_eq!(pair.agent.state(pair.now), State::Connecting { since: pair.now });
    assert_eq!(give(&mut pair.agent, &ipv4(60, 5), pair.now), Gave::Queued(None));
    let sent = run(&mut pair.agent, pair.now);
    assert!(sent.len() == 1 && is_initiation(&sent[0]));
    pair.answer(&sent[0]);
    assert_eq!(flush(&mut pair.agent, pair.now).len(), 1);
}

#[test]
fn with_another_way_packets_wait_for_a_route_to_come_back() {
    let mut pair = Pair::up();
    pair.agent.wait_for_underlay(secs(2));
    pair.agent.set_underlay(false, pair.now);
    assert_eq!(pair.agent.state(pair.now), State::Down { since: pair.now });
    assert_eq!(give(&mut pair.agent, &ipv4(60, 1), pair.now), Gave::Queued(None));
    pair.wait(secs(2) - MILLI);
    assert_eq!(give(&mut pair.agent, &ipv4(60, 2), pair.now), Gave::Queued(None));
    pair.agent.set_underlay(true, pair.now);
    assert_eq!((flush(&mut pair.agent, pair.now).len(), refused(&mut pair.agent).len()), (2, 0));

    pair.agent.set_underlay(false, pair.now);
    assert_eq!(give(&mut pair.agent, &ipv4(60, 3), pair.now), Gave::Queued(None));
    assert_eq!(pair.agent.deadline(), Some(pair.now + secs(2)));
    pair.wait(secs(2));
    run(&mut pair.agent, pair.now);
    assert_eq!(refused(&mut pair.agent).len(), 1);
    assert_eq!(give(&mut pair.agent, &ipv4(60, 4), pair.now), Gave::Down);
}

#[test]
fn a_first_packet_waits_for_a_route_to_come_back_and_begins_the_handshake_then() {
    let mut pair = Pair::new();
    pair.agent.wait_for_underlay(secs(2));
    pair.agent.set_underlay(false, pair.now);
    assert_eq!(give(&mut pair.agent, &ipv4(60, 1), pair.now), Gave::Queued(None));
    pair.wait(secs(1));
    pair.agent.set_underlay(true, pair.now);
    let initiation = run(&mut pair.agent, pair.now);
    pair.answer(&initiation[0]);
    assert_eq!(flush(&mut pair.agent, pair.now).len(), 1);
}

#[test]
fn on_a_new_route_a_keepalive_tells_the_gateway_at_once() {
    let mut pair = Pair::up();
    pair.wait(secs(30));
    pair.agent.set_underlay(false, pair.now);
    pair.wait(secs(2));
    pair.agent.set_underlay(true, pair.now);
    let sent = run(&mut pair.agent, pair.now);
    assert_eq!(sent.len(), 1);
    assert_eq!(take(&mut pair.gateway, &sent[0], pair.now), Ok(Took::Keepalive));
    pair.upload();
}

#[test]
fn both_may_begin_at_once() {
    let mut pair = Pair::new();
    let Gave::Queued(Some(up)) = give(&mut pair.agent, &ipv4(60, 1), pair.now) else { panic!() };
    let Gave::Queued(Some(down)) = give(&mut pair.gateway, &ipv4(60, 2), pair.now) else { panic!() };
    let Ok(Took::Reply(to_agent)) = take(&mut pair.gateway, &up, pair.now) else { panic!() };
    let Ok(Took::Reply(to_gateway)) = take(&mut pair.agent, &down, pair.now) else { panic!() };
    for (peer, response) in [(&mut pair.agent, to_agent), (&mut pair.gateway, to_gateway)] {
        assert!(matches!(take(peer, &response, pair.now), Ok(Took::Reply(_))));
    }
    for datagram in flush(&mut pair.agent, pair.now) {
        assert_eq!(take(&mut pair.gateway, &datagram, pair.now), Ok(Took::Packet(ipv4(60, 1))));
    }
    for datagram in flush(&mut pair.gateway, pair.now) {
        assert_eq!(take(&mut pair.agent, &datagram, pair.now), Ok(Took::Packet(ipv4(60, 2))));
    }
    pair.upload();
    pair.download();
    pair.wait(secs(100));
    run(&mut pair.agent, pair.now);
    run(&mut pair.gateway, pair.now);
    pair.upload();
    pair.download();
}

#[test]
fn an_answer_to_an_earlier_initiation_counts() {
    let mut pair = Pair::new();
    let Gave::Queued(Some(first)) = give(&mut pair.agent, &ipv4(60, 1), pair.now) else { panic!() };
    let Ok(Took::Reply(late)) = take(&mut pair.gateway, &first, pair.now) else { panic!() };
    pair.wait(RETRY);
    let second = run(&mut pair.agent, pair.now);
    assert!(second.len() == 1 && is_initiation(&second[0]));
    let Ok(Took::Reply(keepalive)) = take(&mut pair.agent, &late, pair.now) else { panic!() };
    assert_eq!(take(&mut pair.gateway, &keepalive, pair.now), Ok(Took::Keepalive));
    assert!(matches!(pair.agent.state(pair.now), State::Up { .. }));
    let stats = pair.agent.stats();
    assert_eq!((stats.round_trip, stats.last_handshake), (Some(RETRY), Some(pair.now - RETRY)));
    pair.upload();
    pair.answer(&second[0]);
    pair.upload();
    pair.wait(secs(10));
    assert!(!run(&mut pair.agent, pair.now).iter().any(|datagram| is_initiation(datagram)));
}

#[test]
fn a_responder_waits_for_the_initiator_to_use_the_session() {
    let mut pair = Pair::new();
    let Gave::Queued(Some(initiation)) = give(&mut pair.agent, &ipv4(60, 1), pair.now) else { panic!() };
    let Ok(Took::Reply(response)) = take(&mut pair.gateway, &initiation, pair.now) else { panic!() };
    assert_eq!(give(&mut pair.gateway, &ipv4(60, 2), pair.now), Gave::Queued(None));
    assert_eq!(pair.gateway.state(pair.now), State::Connecting { since: pair.now });
    assert!(flush(&mut pair.gateway, pair.now).is_empty());
    let Ok(Took::Reply(keepalive)) = take(&mut pair.agent, &response, pair.now) else { panic!() };
    assert_eq!(take(&mut pair.gateway, &keepalive, pair.now), Ok(Took::Keepalive));
    assert_eq!(flush(&mut pair.gateway, pair.now).len(), 1);
}

#[test]
fn a_question_is_one_handshake_and_keeps_nothing_up() {
    let mut pair = Pair::new();
    pair.agent.ask(pair.now);
    let first = run(&mut pair.agent, pair.now);
    assert!(first.len() == 1 && is_initiation(&first[0]));
    pair.agent.ask(pair.now + 499 * MILLI);
    assert!(run(&mut pair.agent, pair.now + 499 * MILLI).is_empty(), "it was asked a moment ago");
    pair.wait(secs(100));
    assert_eq!(pair.agent.state(pair.now), State::Idle, "no answer makes nobody down");
    assert!(run(&mut pair.agent, pair.now).is_empty(), "nobody wants to send");

    pair.agent.ask(pair.now);
    let second = run(&mut pair.agent, pair.now);
    pair.wait(30 * MILLI);
    pair.answer(&second[0]);
    assert_eq!(pair.agent.state(pair.now), State::Up { since: pair.now });
    let stats = pair.agent.stats();
    assert_eq!((stats.round_trip, stats.round_trip_at), (Some(30 * MILLI), Some(pair.now)));
    assert!(!pair.agent.is_wanted(pair.now));
    assert_eq!(pair.pass(secs(1000)), 0, "the session ends unused");
}

/// Only the answers to the last two initiations are taken.
#[test]
fn however_often_it_is_asked_an_answer_that_takes_seconds_is_taken() {
    for round_trip in [1000, 2000, 2750].map(Duration::from_millis) {
        let mut pair = Pair::new();
        let begun = pair.now;
        let mut answers = Vec::new();
        while pair.agent.stats().round_trip_at.is_none() {
            pair.agent.ask(pair.now);
            for initiation in run(&mut pair.agent, pair.now) {
                let Ok(Took::Reply(answer)) = take(&mut pair.gateway, &initiation, pair.now) else {
                    panic!()
                };
                answers.push((pair.now + round_trip, answer));
            }
            pair.wait(250 * MILLI);
            for (_, answer) in answers.extract_if(.., |(at, _)| *at <= pair.now) {
                let _ = take(&mut pair.agent, &answer, pair.now);
            }
            assert!(pair.now < begun + 3 * round_trip, "{round_trip:?}");
        }
        assert_eq!(pair.agent.stats().round_trip, Some(round_trip));
    }
}

#[test]
fn a_question_in_a_session_leaves_it_as_it_is() {
    let mut pair = Pair::up();
    pair.wait(secs(20));
    pair.agent.ask(pair.now);
    let initiation = run(&mut pair.agent, pair.now);
    assert!(initiation.len() == 1 && is_initiation(&initiation[0]));
    pair.upload();
    pair.answer(&initiation[0]);
    pair.upload();
}

#[test]
fn a_lost_question_refuses_nothing_in_a_session_and_is_repeated() {
    let mut pair = Pair::up();
    pair.wait(secs(20));
    pair.agent.ask(pair.now);
    let asked = pair.now;
    assert_eq!(run(&mut pair.agent, pair.now).len(), 1);
    while pair.now < asked + secs(95) {
        pair.now = pair.agent.deadline().unwrap();
        assert_eq!(run(&mut pair.agent, pair.now).len(), 1, "after {:?}", pair.now - asked);
    }
    assert!(pair.now <= asked + secs(101));
    let again = give(&mut pair.agent, &ipv4(60, 1), pair.now);
    assert!(matches!(again, Gave::Datagram(_) | Gave::Queued(None)), "{again:?}");
}

#[test]
fn a_lost_question_makes_nobody_down_who_was_never_used() {
    let mut pair = Pair::new();
    pair.agent.ask(pair.now);
    assert_eq!(run(&mut pair.agent, pair.now).len(), 1);
    pair.wait(secs(20));
    assert_eq!(give(&mut pair.agent, &ipv4(60, 1), pair.now), Gave::Queued(None));
    assert_eq!(pair.agent.state(pair.now), State::Connecting { since: pair.now });
    let initiation = run(&mut pair.agent, pair.now);
    pair.answer(&initiation[0]);
    assert_eq!(flush(&mut pair.agent, pair.now).len(), 1);
}

#[test]
fn a_packet_has_a_lost_question_repeated_soon() {
    let mut pair = Pair::new();
    pair.agent.ask(pair.now);
    assert_eq!(run(&mut pair.agent, pair.now).len(), 1);
    pair.wait(100 * MILLI);
    assert_eq!(give(&mut pair.agent, &ipv4(60, 1), pair.now), Gave::Queued(None));
    assert!(run(&mut pair.agent, pair.now).is_empty(), "the answer may be on its way");
    pair.wait(400 * MILLI);
    assert_eq!(run(&mut pair.agent, pair.now).len(), 1);
}

#[test]
fn a_lost_question_keeps_no_session_from_being_renewed() {
    let mut pair = Pair::up();
    let begun = pair.now;
    pair.wait(secs(95));
    pair.agent.ask(pair.now);
    run(&mut pair.agent, pair.now);
    while pair.now < begun + secs(400) {
        pair.wait(secs(1));
        pair.upload();
        for initiation in run(&mut pair.agent, pair.now).iter().filter(|it| is_initiation(it)) {
            pair.answer(initiation);
        }
        pair.download();
    }
    assert_eq!(pair.agent.state(pair.now), State::Up { since: begun });
    assert!(pair.agent.stats().handshakes >= 4);
}

#[test]
fn without_a_route_nobody_is_asked() {
    let mut pair = Pair::new();
    pair.agent.set_underlay(false, pair.now);
    pair.agent.ask(pair.now);
    pair.agent.set_underlay(true, pair.now);
    assert_eq!(pair.agent.deadline(), None);
}

#[test]
fn a_new_route_repeats_no_question_that_was_not_answered() {
    let mut pair = Pair::new();
    pair.agent.ask(pair.now);
    assert_eq!(run(&mut pair.agent, pair.now).len(), 1);
    pair.wait(secs(20));
    pair.agent.set_underlay(true, pair.now);
    assert!(run(&mut pair.agent, pair.now).is_empty());
}

#[test]
fn on_a_new_route_it_can_be_asked_again_at_once() {
    let mut pair = Pair::new();
    pair.agent.ask(pair.now);
    assert_eq!(run(&mut pair.agent, pair.now).len(), 1);
    pair.wait(MILLI);
    pair.agent.set_underlay(true, pair.now);
    pair.agent.ask(pair.now);
    assert_eq!(run(&mut pair.agent, pair.now).len(), 1);
}

#[test]
fn data_waits_from_when_it_was_given_until_anything_comes_back() {
    let mut pair = Pair::new();
    assert_eq!(pair.agent.waits_since(), None);
    let begun = pair.now;
    let Gave::Queued(Some(initiation)) = give(&mut pair.agent, &ipv4(100, 0), pair.now) else {
        panic!("no initiation")
    };
    pair.wait(secs(1));
    give(&mut pair.agent, &ipv4(100, 1), pair.now);
    assert_eq!(pair.agent.waits_since(), Some(begun));
    pair.answer(&initiation);
    assert_eq!(pair.agent.waits_since(), None);

    assert_eq!(flush(&mut pair.agent, pair.now).len(), 2);
    let flushed = pair.now;
    pair.wait(secs(3));
    pair.upload();
    assert_eq!(pair.agent.waits_since(), Some(flushed));
    pair.wait(secs(10));
    let initiation = run(&mut pair.agent, pair.now).pop();
    assert_eq!((initiation, pair.agent.waits_since()), (None, Some(flushed)));
    pair.download();
    assert_eq!(pair.agent.waits_since(), None);
}

#[test]
fn what_waits_can_be_taken_away_without_its_padding() {
    let mut pair = Pair::new();
    let packets = [ipv4(41, 1), ipv4(100, 2)];
    packets.iter().for_each(|packet| drop(give(&mut pair.agent, packet, pair.now)));
    let taken: Vec<_> = std::iter::from_fn(|| pair.agent.take_waiting()).collect();
    assert_eq!(taken, packets);
    pair.wait(secs(5));
    run(&mut pair.agent, pair.now);
    assert!(refused(&mut pair.agent).is_empty());
}
