use proptest::prelude::*;

use super::*;

const MILLISECOND: Duration = Duration::from_millis(1);
/// As WireGuard has it.
const SESSION: Duration = Duration::from_secs(180);
const RETRY: Duration = Duration::from_secs(5);
/// As its peer has it: the least between two questions, and from the first to the third.
const LEAST: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(3)];
const WANTED: Duration = Duration::from_secs(90);

/// A gateway as it is, and what its peer has seen of it.
#[derive(Clone, Copy)]
struct Gateway {
    round_trip: Duration,
    /// Of three messages to it this one is lost; none if it is larger.
    loses: usize,
    messages: usize,
    reachable: bool,
    is_alive: bool,
    /// Since it last was not, or could not be reached.
    well_since: Option<Instant>,
    /// When its peer repeats a handshake that was not answered.
    repeats_at: Option<Instant>,
    /// The last two initiations, the latest first: the answer to another one is worthless.
    asked: [Option<Initiation>; 2],
    moved: Option<Instant>,
    /// When answers to what else was sent arrive.
    echoes_at: [Option<Instant>; 8],
    answers_probes: bool,
    session_until: Option<Instant>,
    waits_since: Option<Instant>,
    answered: Option<Instant>,
    wanted: Option<Instant>,
    measured: Option<(Instant, Duration)>,
}

#[derive(Clone, Copy)]
struct Initiation {
    sent: Instant,
    /// When its answer arrives; `None`: never.
    answer: Option<Instant>,
}

impl Gateway {
    fn has_session(&self, now: Instant) -> bool {
        self.session_until.is_some_and(|end| now < end)
    }

    fn is_wanted(&self, now: Instant) -> bool {
        self.wanted.is_some_and(|at| now < at + WANTED)
    }

    fn carries_next(&mut self) -> bool {
        self.messages += 1;
        self.reachable && self.is_alive && self.messages % 3 != self.loses
    }

    fn arrivals(&self) -> impl Iterator<Item = Instant> {
        self.asked
            .into_iter()
            .flatten()
            .filter_map(|asked| asked.answer)
            .chain(self.echoes_at.into_iter().flatten())
    }

    /// What is on its way is lost.
    fn lose_all(&mut self) {
        self.asked.iter_mut().flatten().for_each(|asked| asked.answer = None);
        self.echoes_at = [None; 8];
    }

    fn initiate(&mut self, now: Instant) {
        self.repeats_at = Some(now + RETRY);
        let answer = self.carries_next().then_some(now + self.round_trip);
        self.asked = [Some(Initiation { sent: now, answer }), self.asked[0]];
    }

    fn echo(&mut self, now: Instant) {
        let at = now + self.round_trip;
        if self.carries_next()
            && let Some(free) = self.echoes_at.iter_mut().find(|at| at.is_none())
        {
            *free = Some(at);
        }
    }

    /// Whether its answer may still come, so that another question would be too much.
    fn is_asked(&self, now: Instant) -> bool {
        let known = self.measured.filter(|(at, _)| Some(*at) > self.moved);
        self.asked[0].is_some()
            && self.asked.iter().zip(LEAST).any(|(asked, least)| {
                let pause = known.map_or(least, |(_, round_trip)| round_trip.max(least));
                asked.is_some_and(|asked| Some(asked.sent) > self.moved && now < asked.sent + pause)
            })
    }

    fn hear(&mut self, now: Instant) {
        let is_heard = self.is_alive && self.reachable;
        for place in 0..2 {
            let arrives = |asked: &mut Initiation| asked.answer.take_if(|at| *at == now).is_some();
            if self.asked[place].take_if(arrives).is_some() && is_heard {
                if place == 0 {
                    self.repeats_at = None;
                }
                self.waits_since = None;
                self.answered = Some(now);
                self.measured = Some((now, self.round_trip));
                self.session_until = Some(now + SESSION);
            }
        }
        let echoes = self.echoes_at.iter_mut().filter_map(|at| at.take_if(|at| *at == now)).count();
        if echoes > 0 && is_heard {
            self.waits_since = None;
        }
    }
}

struct World {
    choice: Choice,
    begun: Instant,
    now: Instant,
    gateways: Vec<Gateway>,
    /// Everything but questions, in milliseconds since the beginning.
    log: Vec<(u128, Step)>,
    questions: usize,
}

impl World {
    /// Gateways with these round trips in milliseconds.
    fn new(prefer: Prefer, round_trips: &[u64]) -> Self {
        let now = Instant::now();
        let gateway = |ms: &u64| Gateway {
            round_trip: Duration::from_millis(*ms),
            loses: 3,
            messages: 0,
            reachable: true,
            is_alive: true,
            well_since: Some(now),
            repeats_at: None,
            asked: [None; 2],
            moved: None,
            echoes_at: [None; 8],
            answers_probes: false,
            session_until: None,
            waits_since: None,
            answered: None,
            wanted: None,
            measured: None,
        };
        let gateways: Vec<_> = round_trips.iter().map(gateway).collect();
        let choice = Choice::new(prefer, gateways.len());
        let mut world = Self { choice, begun: now, now, gateways, log: Vec::new(), questions: 0 };
        world.follow();
        world
    }

    fn seen(&self) -> Vec<Seen> {
        let seen = |it: &Gateway| Seen {
            reachable: it.reachable,
            has_session: it.has_session(self.now),
            answers_probes: it.answers_probes,
            waits_since: it.waits_since,
            answered: it.answered,
            is_wanted: it.is_wanted(self.now),
            round_trip: it.measured,
        };
        self.gateways.iter().map(seen).collect()
    }

    fn follow(&mut self) {
        let seen = self.seen();
        let steps = self.choice.follow(&seen, self.now);
        for step in steps {
            if let Step::Use(to) = step {
                assert!(seen[to].reachable, "{step:?}");
            }
            if let Step::FailOver { from, to, cause } = step {
                assert!(from != to && seen[to].reachable, "{step:?}");
                assert_eq!(cause == FailoverCause::NoRoute, !seen[from].reachable);
                assert!(seen[to].answered > seen[from].answered, "{step:?}: it answered later");
                let Gateway { well_since, measured, moved, round_trip, .. } = self.gateways[from];
                // How long its answers take is not known from elsewhere.
                let is_known =
                    round_trip * 5 / 2 <= GRACE || measured.is_some_and(|(at, _)| Some(at) > moved);
                let grace = (round_trip * 5 / 2).max(GRACE);
                assert!(
                    !is_known || well_since.is_none_or(|since| self.now - since < SILENCE + grace),
                    "{step:?} is well"
                );
            }
            match step {
                Step::Knock(place) => self.gateways[place].echo(self.now),
                Step::Ask(place) => self.ask(place),
                _ => self.log.push(((self.now - self.begun).as_millis(), step)),
            }
        }
        assert_eq!(self.choice.follow(&self.seen(), self.now), [], "twice at one time changes nothing");
        assert!(self.choice.deadline().is_none_or(|due| due > self.now), "what is due is done");
    }

    fn ask(&mut self, place: usize) {
        if !self.gateways[place].is_asked(self.now) {
            self.initiate(place);
        }
    }

    fn initiate(&mut self, place: usize) {
        self.questions += 1;
        self.gateways[place].initiate(self.now);
    }

    /// An application sends to a gateway; what it talks to answers if `both_ways`.
    fn send_to(&mut self, place: usize, both_ways: bool) {
        let now = self.now;
        let gateway = &mut self.gateways[place];
        gateway.wanted = Some(now);
        gateway.waits_since.get_or_insert(now);
        if gateway.has_session(now) {
            if both_ways {
                gateway.echo(now);
            }
        } else if gateway.repeats_at.is_none() {
            self.initiate(place);
        }
        self.follow();
    }

    fn send(&mut self) {
        self.send_to(self.choice.used(), true);
    }

    /// Lets time pass: with traffic every half second, or without.
    fn pass(&mut self, time: Duration, with_traffic: bool) {
        let end = self.now + time;
        while self.now < end {
            if with_traffic {
                self.send();
            }
            self.rest(end.min(self.now + 500 * MILLISECOND));
        }
    }

    fn rest(&mut self, end: Instant) {
        loop {
            let arrivals = self.gateways.iter().flat_map(Gateway::arrivals);
            let events = arrivals.chain(self.gateways.iter().filter_map(|it| it.repeats_at));
            let silences = self
                .seen()
                .into_iter()
                .filter_map(|seen| look_at(seen.waits_since?, seen.has_session, self.now));
            let next = events.chain(self.choice.deadline()).chain(silences).filter(|at| *at > self.now).min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = next;
            self.gateways.iter_mut().for_each(|it| it.hear(next));
            self.repeat();
            self.follow();
        }
        self.now = end;
        self.follow();
    }

    /// As a peer does of itself.
    fn repeat(&mut self) {
        for place in 0..self.gateways.len() {
            let (now, gateway) = (self.now, &mut self.gateways[place]);
            if gateway.repeats_at.take_if(|at| *at <= now).is_none() {
                continue;
            }
            if gateway.is_wanted(now) || gateway.has_session(now) {
                self.initiate(place);
            }
        }
    }

    fn meet(&mut self, event: Event) {
        match event {
            Event::Set { place, is_alive, reachable } => self.set(place, is_alive, reachable),
            // Flows that have left a gateway send nothing there.
            Event::OneWay(place) if self.choice.gateways[place].left.is_some() => {}
            Event::OneWay(place) => self.send_to(place, false),
            Event::Pass(time, with_traffic) => self.pass(Duration::from_millis(time), with_traffic),
        }
    }

    fn set(&mut self, place: usize, is_alive: bool, reachable: bool) {
        let (now, gateway) = (self.now, &mut self.gateways[place]);
        let was_reachable = std::mem::replace(&mut gateway.reachable, reachable);
        gateway.is_alive = is_alive;
        gateway.well_since = (is_alive && reachable).then(|| gateway.well_since.unwrap_or(now));
        if was_reachable != reachable {
            gateway.moved = Some(now);
            if reachable && (gateway.has_session(now) || gateway.is_wanted(now)) {
                gateway.initiate(now);
            }
            self.choice.network_changed([place as u8].into_iter().collect(), now);
        }
        self.follow();
    }

    fn dies(&mut self, place: usize) {
        self.set(place, false, true);
    }

    fn lives(&mut self, place: usize) {
        self.set(place, true, true);
    }

    /// What is on its way is lost.
    fn sleep(&mut self, time: Duration) {
        self.gateways.iter_mut().for_each(Gateway::lose_all);
        self.now += time;
        self.repeat();
        self.follow();
    }

    fn loses_its_route(&mut self, place: usize) {
        self.set(place, true, false);
    }
}

const fn silent(from: usize, to: usize) -> Step {
    Step::FailOver { from, to, cause: FailoverCause::Silence }
}

const fn no_route(from: usize, to: usize) -> Step {
    Step::FailOver { from, to, cause: FailoverCause::NoRoute }
}

type Case = (&'static str, Prefer, &'static [u64], fn(&mut World), &'static [(u128, Step)]);

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const CASES: &[Case] = &[
    ("all is well", Prefer::Order, &[30, 10, 10], |world| world.pass(secs(600), true), &[]),
    (
        "a gateway that is dead from the start is left after a second for its answer and one of grace",
        Prefer::Order,
        &[30, 40, 10],
        |world| {
            world.dies(0);
            world.pass(secs(20), true);
        },
        &[(2000, silent(0, 1))],
    ),
    (
        "with a session it has five seconds, and one of grace",
        Prefer::Order,
        &[30, 40, 10],
        |world| {
            world.pass(secs(10), true);
            world.dies(0);
            world.pass(secs(20), true);
        },
        &[(16_000, silent(0, 1))],
    ),
    (
        "traffic in one direction is no outage",
        Prefer::Order,
        &[30, 10],
        |world| {
            world.pass(secs(2), true);
            for _ in 0..100 {
                world.send_to(0, false);
                world.rest(world.now + secs(1));
            }
        },
        &[],
    ),
    (
        "an uplink that has been filled since the last measurement is no outage",
        Prefer::Order,
        &[30, 10],
        |world| {
            world.pass(secs(2), true);
            for round_trip in [1600, 2400, 2700] {
                world.gateways.iter_mut().for_each(|it| it.measured = Some((world.now, 30 * MILLISECOND)));
                let shorter = [0, 400];
                for (gateway, shorter) in world.gateways.iter_mut().zip(shorter) {
                    gateway.round_trip = (round_trip - shorter) * MILLISECOND;
                }
                world.send_to(0, false);
                world.pass(secs(30), false);
            }
        },
        &[],
    ),
    (
        "where small probes are answered, traffic in one direction begins no handshakes",
        Prefer::Order,
        &[30, 10],
        |world| {
            world.gateways[0].answers_probes = true;
            world.pass(secs(2), true);
            for _ in 0..100 {
                world.send_to(0, false);
                world.rest(world.now + secs(1));
            }
            assert_eq!(world.questions, 1);
        },
        &[],
    ),
    (
        "a gateway that answered small probes and dies is left as soon as any",
        Prefer::Order,
        &[30, 10],
        |world| {
            world.gateways[0].answers_probes = true;
            world.pass(secs(10), true);
            world.dies(0);
            world.pass(secs(20), true);
        },
        &[(16_000, silent(0, 1))],
    ),
    (
        "before a gateway is silent it alone is asked",
        Prefer::Order,
        &[30, 10],
        |world| {
            world.pass(secs(2), true);
            world.pass(secs(10), false);
            let begun = [0, 1].map(|it| world.gateways[it].messages);
            world.send_to(0, false);
            world.pass(secs(100), false);
            assert_eq!([0, 1].map(|it| world.gateways[it].messages - begun[it]), [1, 0]);
        },
        &[],
    ),
    (
        "a network that changes all the while puts no fail-over off",
        Prefer::Order,
        &[30, 10],
        |world| {
            world.pass(secs(10), true);
            world.dies(0);
            for _ in 0..20 {
                world.pass(Duration::from_millis(700), true);
                world.choice.network_changed(GatewaySet::default(), world.now);
                world.follow();
            }
        },
        &[(16_000, silent(0, 1))],
    ),
    (
        "after an outage of all the one in use has its grace, though others answer first and all are slow",
        Prefer::Order,
        &[1300, 1200],
        |world| {
            world.pass(secs(10), true);
            (0..2).for_each(|it| world.dies(it));
            world.pass(secs(17), true);
            (0..2).for_each(|it| world.lives(it));
            world.pass(secs(20), true);
        },
        &[],
    ),
    (
        "after a sleep in the grace it has another",
        Prefer::Order,
        &[30, 10],
        |world| {
            world.pass(secs(10), true);
            world.dies(0);
            world.pass(Duration::from_millis(5500), true);
            world.lives(0);
            world.sleep(secs(3600));
            world.pass(secs(20), true);
        },
        &[],
    ),
    (
        "nobody who sends hears of a death, and nobody is asked",
        Prefer::Order,
        &[30, 10],
        |world| {
            world.pass(secs(2), true);
            world.dies(0);
            world.pass(secs(1000), false);
            assert_eq!((world.questions, world.choice.deadline()), (1, None));
        },
        &[],
    ),
    (
        "one that nobody takes over from is waited for, and the first that answers is taken",
        Prefer::Order,
        &[30, 30, 30],
        |world| {
            world.pass(secs(10), true);
            (0..3).for_each(|it| world.dies(it));
            world.pass(secs(17), true);
            world.lives(2);
            world.pass(secs(5), true);
        },
        // Asked again at 30 s; a second later there is nobody better.
        &[(31_000, silent(0, 2))],
    ),
    (
        "after an outage of all it is the same gateway as before, though another is nearer",
        Prefer::Order,
        &[30, 10],
        |world| {
            world.pass(secs(10), true);
            (0..2).for_each(|it| world.dies(it));
            world.pass(secs(17), true);
            (0..2).for_each(|it| world.lives(it));
            world.pass(secs(20), true);
        },
        &[],
    ),
    (
        "new flows return as soon as the first has answered twice, which is asked every 30 s",
        Prefer::Order,
        &[30, 40],
        |world| {
            world.dies(0);
            world.pass(secs(20), true);
            world.lives(0);
            world.pass(secs(40), true);
        },
        &[(2000, silent(0, 1)), (33_060, Step::Use(0))],
    ),
    (
        "who answers once only is not returned to",
        Prefer::Order,
        &[30, 40],
        |world| {
            world.dies(0);
            world.pass(secs(20), true);
            for _ in 0..10 {
                world.lives(0);
                while world.gateways[0].answered.is_none_or(|at| at + secs(1) < world.now) {
                    world.pass(Duration::from_millis(500), true);
                }
                world.dies(0);
                world.pass(secs(2), true);
            }
        },
        &[(2000, silent(0, 1))],
    ),
    (
        "returns that do not last come ever later",
        Prefer::Order,
        &[30, 40],
        |world| {
            world.dies(0);
            world.pass(secs(3), true);
            for after in [33, 10, 60, 10, 120] {
                world.set(0, world.choice.used() == 1, true);
                world.pass(secs(after), true);
            }
        },
        &[
            (2000, silent(0, 1)),
            (33_060, Step::Use(0)),
            (42_000, silent(0, 1)),
            (103_060, Step::Use(0)),
            (112_000, silent(0, 1)),
            (233_060, Step::Use(0)),
        ],
    ),
    (
        "without a session nobody is asked; the first use brings the return",
        Prefer::Order,
        &[30, 40],
        |world| {
            world.dies(0);
            world.pass(secs(3), true);
            world.lives(0);
            world.gateways.iter_mut().for_each(|it| it.session_until = None);
            world.pass(secs(997), false);
            world.pass(secs(2), true);
        },
        // The session that was used took 40 ms, each question 30 ms.
        &[(2000, silent(0, 1)), (1_001_100, Step::Use(0))],
    ),
    (
        "an old gateway dies with the flows that stayed there",
        Prefer::Order,
        &[30, 40],
        |world| {
            world.dies(0);
            world.pass(secs(3), true);
            world.lives(0);
            world.pass(secs(37), true);
            world.dies(1);
            world.send_to(1, true);
            world.pass(secs(10), true);
        },
        &[(2000, silent(0, 1)), (33_060, Step::Use(0)), (46_000, silent(1, 0))],
    ),
    (
        "without a route new flows go to the first that answers and is best placed, and its own stay for a moment",
        Prefer::Order,
        &[30, 40, 10],
        |world| {
            world.pass(secs(10), true);
            world.loses_its_route(0);
            world.pass(Duration::from_millis(1500), true);
            world.lives(0);
            world.pass(secs(20), true);
        },
        &[(10_040, Step::Use(1)), (12_560, Step::Use(0))],
    ),
    (
        "a route that is gone for longer takes its flows with it, also those that send nothing",
        Prefer::Order,
        &[30, 40, 10],
        |world| {
            world.pass(secs(10), true);
            world.loses_its_route(0);
            world.pass(secs(20), false);
        },
        &[(10_040, Step::Use(1)), (12_000, no_route(0, 1))],
    ),
    (
        "who never answered has no connections that could wait",
        Prefer::Order,
        &[30, 40],
        |world| {
            world.loses_its_route(0);
            world.pass(secs(20), true);
        },
        &[(40, no_route(0, 1))],
    ),
    (
        "where no other answers, a route that comes back finds all as it was",
        Prefer::Order,
        &[30, 40],
        |world| {
            world.pass(secs(10), true);
            (0..2).for_each(|it| world.loses_its_route(it));
            world.pass(secs(20), true);
            (0..2).for_each(|it| world.lives(it));
            world.pass(secs(20), true);
        },
        &[],
    ),
    (
        "by round trip the nearest is used from the start",
        Prefer::RoundTrip,
        &[30, 10, 20],
        |world| world.pass(secs(20), true),
        &[(30, Step::Use(1))],
    ),
    (
        "by round trip a dead one is not waited for longer than the grace",
        Prefer::RoundTrip,
        &[30, 10, 20],
        |world| {
            world.dies(1);
            world.choice.network_changed(GatewaySet::default(), world.now);
            world.pass(secs(20), true);
        },
        &[(1000, Step::Use(2))],
    ),
    (
        "by round trip flows go to the nearest that lives, and stay when a nearer one comes back",
        Prefer::RoundTrip,
        &[30, 10, 20],
        |world| {
            world.pass(secs(10), true);
            world.dies(1);
            world.pass(secs(10), true);
            world.lives(1);
            world.pass(secs(100), true);
        },
        &[(30, Step::Use(1)), (16_000, silent(1, 2))],
    ),
    (
        "by round trip two that are alike do not take turns",
        Prefer::RoundTrip,
        &[20, 30],
        |world| {
            for round_trip in [18, 14, 16, 30] {
                world.pass(secs(1), true);
                world.gateways[1].round_trip = round_trip * MILLISECOND;
                world.choice.network_changed(GatewaySet::default(), world.now);
            }
            world.pass(secs(1), true);
        },
        &[(2020, Step::Use(1)), (4030, Step::Use(0))],
    ),
    (
        "by round trip what was measured in another network does not count",
        Prefer::RoundTrip,
        &[30, 10],
        |world| {
            world.pass(secs(10), true);
            world.gateways[1].round_trip = 100 * MILLISECOND;
            world.dies(0);
            world.choice.network_changed(GatewaySet::default(), world.now);
            world.follow();
            world.rest(world.now + MILLISECOND);
            // A handshake of its own: nothing is measured.
            world.gateways[0].answered = Some(world.now);
            world.pass(secs(10), true);
        },
        &[(30, Step::Use(1))],
    ),
    (
        "by round trip the network's change is a new choice",
        Prefer::RoundTrip,
        &[30, 10],
        |world| {
            world.pass(secs(10), true);
            world.gateways[1].round_trip = 50 * MILLISECOND;
            world.choice.network_changed(GatewaySet::default(), world.now);
            world.pass(secs(10), true);
        },
        &[(30, Step::Use(1)), (10_050, Step::Use(0))],
    ),
];

#[test]
fn each_outage_has_its_end() {
    for (name, prefer, round_trips, story, expected) in CASES {
        let mut world = World::new(*prefer, round_trips);
        story(&mut world);
        assert_eq!(world.log, *expected, "{name}");
    }
}

/// Each resets all live connections: not one at each time that it comes back.
/// Also where its name has several addresses, at each of which it is looked for.
#[test]
fn a_gateway_that_comes_and_goes_is_returned_to_ever_more_seldom() {
    for ((up, down), moves) in [(15, 15), (25, 40), (50, 50)].into_iter().flat_map(|it| [(it, 0), (it, 2)]) {
        let mut world = World::new(Prefer::Order, &[30, 40]);
        while world.now < world.begun + secs(20 * 60) {
            world.lives(0);
            world.pass(secs(up), true);
            world.dies(0);
            for _ in 0..moves {
                world.pass(secs(down) / (moves + 1), true);
                world.choice.moved(0, world.now);
            }
            world.pass(secs(down) / (moves + 1), true);
        }
        let is_fail_over = |(_, step): &&(u128, Step)| matches!(step, Step::FailOver { .. });
        let fail_overs: Vec<_> = world.log.iter().filter(is_fail_over).map(|(at, _)| at / 1000).collect();
        // The first, and after pauses of 30, 60, 120, 240 and 480 s.
        assert!(
            (2..=6).contains(&fail_overs.len()),
            "{up} s up, {down} s down, {moves} moves: at {fail_overs:?} s"
        );
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Set { place: usize, is_alive: bool, reachable: bool },
    OneWay(usize),
    Pass(u64, bool),
}

/// In milliseconds. The long ones are those of an uplink that is filled.
fn round_trip() -> impl Strategy<Value = u64> {
    prop_oneof![2 => 1..400_u64, 1 => 400..3000_u64]
}

/// What waits for several round trips takes so many of those that are longer than usual.
const SLOWER: u32 = 8;

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..3_usize, any::<bool>(), prop::bool::weighted(0.8))
            .prop_map(|(place, is_alive, reachable)| Event::Set { place, is_alive, reachable }),
        1 => (0..3_usize).prop_map(Event::OneWay),
        3 => (1..20_000_u64, any::<bool>()).prop_map(|(time, with_traffic)| Event::Pass(time, with_traffic)),
    ]
}

proptest! {
    /// Held against each step as it is made.
    #[test]
    fn who_is_well_is_not_left_for_one_message_of_three_that_is_lost(
        by_order in any::<bool>(),
        gateways in prop::collection::vec((round_trip(), 0..3_usize, any::<bool>()), 3),
        events in prop::collection::vec(event(), 1..30),
    ) {
        let prefer = if by_order { Prefer::Order } else { Prefer::RoundTrip };
        let round_trips: Vec<_> = gateways.iter().map(|(round_trip, ..)| *round_trip).collect();
        let mut world = World::new(prefer, &round_trips);
        for (gateway, (_, loses, answers_probes)) in world.gateways.iter_mut().zip(gateways) {
            (gateway.loses, gateway.answers_probes) = (loses, answers_probes);
        }
        events.into_iter().for_each(|event| world.meet(event));
    }

    /// Besides what each step is held against as it is made.
    #[test]
    fn who_is_well_is_never_left_and_who_is_not_does_not_stay_in_use(
        by_order in any::<bool>(),
        round_trips in prop::collection::vec(round_trip(), 3),
        events in prop::collection::vec(event(), 1..30),
    ) {
        let prefer = if by_order { Prefer::Order } else { Prefer::RoundTrip };
        let mut world = World::new(prefer, &round_trips);
        events.into_iter().for_each(|event| world.meet(event));
        // One more question to all (5 s) and an answer, or 5 s of silence and the grace, with half a second to send.
        let longest = round_trips.iter().max().copied().unwrap_or(0);
        let slow = Duration::from_millis(longest).saturating_sub(GRACE * 2 / 5);
        world.pass(Duration::from_millis(7000) + slow * SLOWER, true);
        let well: Vec<_> = (0..3).filter(|it| world.gateways[*it].well_since.is_some()).collect();
        let used = world.choice.used();
        prop_assert!(well.is_empty() || well.contains(&used), "{used} is used, {well:?} are well");
        // And in the end the first that is well, by order.
        world.pass(world.choice.return_after + secs(3) + slow * SLOWER, true);
        if by_order && let Some(first) = well.first() {
            prop_assert_eq!(world.choice.used(), *first);
        }
    }
}
