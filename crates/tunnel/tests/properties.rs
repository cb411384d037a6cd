//! Whatever the network does: nothing panics, and what is delivered was sent, whole, and once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use common::{Gave, Pair, Took, flush, give, ipv4, refused, run, secs, take};
use proptest::prelude::*;
use tunnel::{MAX_QUEUED, Peer, State};

#[derive(Clone, Debug)]
enum Step {
    /// From the agent or the gateway, a packet of so many bytes.
    Send {
        agent: bool,
        length: usize,
    },
    /// Delivers one of the datagrams on their way.
    Deliver(prop::sample::Index),
    /// Delivers one and leaves a copy on its way.
    Duplicate(prop::sample::Index),
    Lose(prop::sample::Index),
    /// Delivers one with one bit turned; the true one is lost.
    Corrupt(prop::sample::Index, prop::sample::Index),
    DeliverAll,
    Wait(u64),
    /// On to the next deadline.
    NextDeadline,
    Underlay(bool),
    Ask,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<bool>(), 28..1500_usize).prop_map(|(agent, length)| Step::Send { agent, length }),
        6 => any::<prop::sample::Index>().prop_map(Step::Deliver),
        1 => any::<prop::sample::Index>().prop_map(Step::Duplicate),
        2 => any::<prop::sample::Index>().prop_map(Step::Lose),
        1 => (any::<prop::sample::Index>(), any::<prop::sample::Index>())
            .prop_map(|(which, bit)| Step::Corrupt(which, bit)),
        4 => Just(Step::DeliverAll),
        2 => (0..12_000_u64).prop_map(Step::Wait),
        1 => (0..700_000_u64).prop_map(Step::Wait),
        3 => Just(Step::NextDeadline),
        1 => any::<bool>().prop_map(Step::Underlay),
        1 => Just(Step::Ask),
    ]
}

/// No network holds a datagram for longer.
const ON_ITS_WAY: Duration = Duration::from_secs(60);

struct World {
    pair: Pair,
    /// To the gateway?, datagram, and since when it is on its way.
    wire: Vec<(bool, Vec<u8>, Instant)>,
    sent: HashSet<Vec<u8>>,
    delivered: HashSet<Vec<u8>>,
    refused: HashSet<Vec<u8>>,
}

impl World {
    fn step(&mut self, step: Step) {
        let now = self.pair.now;
        self.wire.retain(|(.., sent)| now < *sent + ON_ITS_WAY);
        match step {
            Step::Send { agent, length } => self.send(agent, length),
            Step::Wait(millis) => self.pair.now += Duration::from_millis(millis),
            Step::NextDeadline => {
                let next =
                    [self.pair.agent.deadline(), self.pair.gateway.deadline()].into_iter().flatten().min();
                self.pair.now = next.unwrap_or(self.pair.now).max(self.pair.now);
            }
            Step::Underlay(present) => self.pair.agent.set_underlay(present, self.pair.now),
            Step::Ask => self.pair.agent.ask(self.pair.now),
            Step::DeliverAll => {
                for (to_gateway, datagram, _) in std::mem::take(&mut self.wire) {
                    self.deliver(to_gateway, &datagram);
                }
            }
            _ if self.wire.is_empty() => {}
            Step::Deliver(which) => {
                let (to_gateway, datagram, _) = self.wire.swap_remove(which.index(self.wire.len()));
                self.deliver(to_gateway, &datagram);
            }
            Step::Duplicate(which) => {
                let (to_gateway, datagram, _) = which.get(&self.wire).clone();
                self.deliver(to_gateway, &datagram);
            }
            Step::Lose(which) => {
                self.wire.swap_remove(which.index(self.wire.len()));
            }
            Step::Corrupt(which, bit) => {
                let (to_gateway, mut datagram, _) = self.wire.swap_remove(which.index(self.wire.len()));
                let bit = bit.index(datagram.len() * 8);
                datagram[bit / 8] ^= 1 << (bit % 8);
                self.deliver(to_gateway, &datagram);
            }
        }
        for to_gateway in [true, false] {
            let now = self.pair.now;
            let peer = self.side(to_gateway);
            let (mut due, flushed, refused) = (run(peer, now), flush(peer, now), refused(peer));
            // What is flushed may be the last for an old session.
            due.extend(run(peer, now));
            assert!(peer.deadline().is_none_or(|deadline| deadline > now));
            assert!(refused.len() <= MAX_QUEUED);
            self.wire.extend(due.into_iter().chain(flushed).map(|datagram| (to_gateway, datagram, now)));
            for packet in refused {
                assert!(self.refused.insert(packet), "refused twice");
            }
        }
    }

    fn send(&mut self, agent: bool, length: usize) {
        let mut packet = ipv4(length, 0);
        packet[20..28].copy_from_slice(&(self.sent.len() as u64).to_be_bytes());
        self.sent.insert(packet.clone());
        let now = self.pair.now;
        match give(self.side(agent), &packet, now) {
            Gave::Datagram(datagram) | Gave::Queued(Some(datagram)) => self.wire.push((agent, datagram, now)),
            Gave::Down => assert!(self.refused.insert(packet)),
            Gave::Queued(None) | Gave::Full => {}
        }
    }

    fn deliver(&mut self, to_gateway: bool, datagram: &[u8]) {
        let now = self.pair.now;
        match take(self.side(!to_gateway), datagram, now) {
            Ok(Took::Packet(packet)) => {
                assert!(self.sent.contains(&packet), "delivered what nobody sent");
                assert!(!self.refused.contains(&packet), "delivered what was refused");
                assert!(self.delivered.insert(packet), "delivered twice");
            }
            Ok(Took::Reply(reply)) => self.wire.push((!to_gateway, reply, now)),
            Ok(Took::Keepalive | Took::Nothing) | Err(_) => {}
        }
    }

    fn side(&mut self, agent: bool) -> &mut Peer {
        if agent { &mut self.pair.agent } else { &mut self.pair.gateway }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn nothing_is_altered_duplicated_or_stuck(
        steps in prop::collection::vec(step(), 1..200),
        keepalive in prop::option::of(1..60_u64),
        patience in 0..4_u64,
    ) {
        let mut world = World {
            pair: Pair::with(None, None, keepalive.map(secs)),
            wire: Vec::new(),
            sent: HashSet::new(),
            delivered: HashSet::new(),
            refused: HashSet::new(),
        };
        world.pair.agent.wait_for_underlay(secs(patience));
        for step in steps {
            world.step(step);
        }
        // Afterwards, on a good network, traffic always comes through again.
        world.step(Step::Underlay(true));
        for _ in 0..20 {
            world.step(Step::Send { agent: true, length: 100 });
            world.step(Step::Wait(1000));
            for _ in 0..4 {
                world.step(Step::DeliverAll);
            }
        }
        let now = world.pair.now;
        prop_assert!(matches!(world.pair.agent.state(now), State::Up { .. }), "{:?}", world.pair.agent.state(now));
        let before = world.delivered.len();
        world.step(Step::Send { agent: true, length: 100 });
        world.step(Step::DeliverAll);
        prop_assert_eq!(world.delivered.len(), before + 1);
    }

    #[test]
    fn any_bytes_are_an_error_or_taken(datagram in prop::collection::vec(any::<u8>(), 0..300), kind in 0..6_u8) {
        let mut pair = Pair::up();
        let mut datagram = datagram;
        if let Some(header) = datagram.first_chunk_mut() {
            *header = [kind, 0, 0, 0];
        }
        prop_assert!(take(&mut pair.gateway, &datagram, pair.now).is_err());
        pair.upload();
    }
}
