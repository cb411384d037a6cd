//! Which gateway new flows go to, and when one's flows leave it: without I/O, from what each peer knows.

use std::time::{Duration, Instant};

use super::gateway_set::GatewaySet;
use super::{FailoverCause, Prefer};

/// With a session: after data was sent for so long and nothing authentic came back, the gateway is asked, and asked again. Most pauses
/// begin with a packet that nobody answers (an acknowledgement), and a peer's keepalive comes after 10 s only. The first question is but a knock
/// where that is answered: traffic in one direction would be rekeyed all the time.
const SUSPICION: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(4)];
/// After so long all gateways are asked.
const SILENCE: Duration = Duration::from_secs(5);
/// Without one data waits for a handshake, whose answer takes no longer than a round trip.
const NO_ANSWER: Duration = Duration::from_secs(1);
/// For a silent gateway to answer itself: traffic in one direction alone is no outage, and others are often nearer. Where round trips are long,
/// two of them and a half: after half of it the silent one is asked once more, for the question may have been lost.
const GRACE: Duration = Duration::from_secs(1);
/// A round trip of 3 s, as where an uplink is filled, is no outage.
const MAX_GRACE: Duration = Duration::from_millis(7500);
/// For a route that is gone to come back, after a resume or where another access point takes over: its connections wait so long.
pub(super) const ROUTE_GRACE: Duration = Duration::from_secs(2);
/// As long as nobody answers, all are asked again after this.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Between two attempts to return to a gateway that is preferred.
const RETURN: Duration = Duration::from_secs(30);
/// Twice as long after each return that did not last for [`LASTS`], up to this.
const MAX_RETURN: Duration = Duration::from_secs(600);
const LASTS: Duration = Duration::from_secs(60);
/// One that has answered is asked once more after this: it answers twice before flows return.
const CONFIRM: Duration = Duration::from_secs(1);
/// By round trip the gateway in use is left only for one that takes less time by this and by a fifth, or two that are alike would take turns.
const LEAST_GAIN: Duration = Duration::from_millis(5);

/// The choice among gateways, which are told by their places in the order of preference.
///
/// A gateway is silent when data waited [`SILENCE`] for anything authentic to come back, or [`NO_ANSWER`] for a session. All are asked then, by
/// a handshake. If it has not answered itself after [`GRACE`], its flows go to another that has answered; if none has by then, the first that
/// does is where they go after a grace of its own, for all may have been away.
pub(super) struct Choice {
    prefer: Prefer,
    used: usize,
    gateways: Vec<Known>,
    measure: Measure,
    /// When to ask those that are preferred to the one in use.
    return_at: Option<Instant>,
    return_after: Duration,
    returned: Option<Instant>,
    /// One of them that has answered, and when it is asked once more.
    confirms: Option<(usize, Instant)>,
    /// Whoever is silent is asked again now, with all others.
    asks_again: bool,
    deadline: Option<Instant>,
}

/// What a peer knows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) reachable: bool,
    pub(super) has_session: bool,
    /// Its kernel answers small probes inside the session.
    pub(super) answers_probes: bool,
    /// Since when data waits for anything authentic to come back.
    pub(super) waits_since: Option<Instant>,
    /// When a handshake was last completed. What comes by itself, a keepalive for what arrived before, says nothing of the way there.
    pub(super) answered: Option<Instant>,
    /// Somebody wanted to send something not long ago.
    pub(super) is_wanted: bool,
    /// When a handshake's time was last measured, and that.
    pub(super) round_trip: Option<(Instant, Duration)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send a small probe to this one.
    Knock(usize),
    /// Begin a handshake with this one.
    Ask(usize),
    /// New flows go to this one, all others stay where they are.
    Use(usize),
    /// Nothing of `from` goes on there; if it was used, `to` is from now on.
    FailOver { from: usize, to: usize, cause: FailoverCause },
}

#[derive(Clone, Copy, Default)]
struct Known {
    /// Since when there is no route to it.
    lost: Option<Instant>,
    /// Silent: when all were asked last because of that.
    asked_for: Option<Instant>,
    /// When it was asked last.
    asked: Option<Instant>,
    knocked: Option<Instant>,
    /// The way to it is another one since then.
    moved: Option<Instant>,
    /// Preferred to the one in use: when it was last asked whether flows may return. What it says from then on shows that they may.
    return_asked: Option<Instant>,
    /// When its flows left it: it may be silent.
    left: Option<Instant>,
}

/// How the shortest round trip is found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Measure {
    Done,
    Due,
    Since(Instant),
}

/// When a gateway for which data waits is to be looked at next.
pub(super) fn look_at(waits_since: Instant, has_session: bool, now: Instant) -> Option<Instant> {
    let looks = SUSPICION.into_iter().filter(|_| has_session).map(|after| waits_since + after);
    looks.chain([silent_at(waits_since, has_session)]).find(|at| *at > now)
}

fn silent_at(waits_since: Instant, has_session: bool) -> Instant {
    waits_since + if has_session { SILENCE } else { NO_ANSWER }
}

impl Choice {
    /// Begins with the first of `count`.
    pub(super) fn new(prefer: Prefer, count: usize) -> Self {
        let measure = if prefer == Prefer::RoundTrip { Measure::Due } else { Measure::Done };
        let gateways = vec![Known::default(); count];
        Self {
            prefer,
            used: 0,
            gateways,
            measure,
            return_at: None,
            return_after: RETURN,
            returned: None,
            confirms: None,
            asks_again: false,
            deadline: None,
        }
    }

    /// Where new flows go.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// When [`Choice::follow`] wants to be called, though nothing was sent or heard.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// A gateway is looked for at another address. What is known of the others still counts.
    pub(super) fn moved(&mut self, gateway: usize, now: Instant) {
        if let Some(known) = self.gateways.get_mut(gateway) {
            (known.asked_for, known.moved) = (None, Some(now));
        }
        self.asks_again = true;
    }

    /// The underlay has changed. What those were asked before to which the way is `another` one says nothing.
    pub(super) fn network_changed(&mut self, another: GatewaySet, now: Instant) {
        for place in (0..self.gateways.len()).filter(|place| another.contains(*place as u8)) {
            self.moved(place, now);
        }
        self.asks_again = true;
        self.return_at = self.return_at.map(|_| now);
        self.return_after = RETURN;
        if self.prefer == Prefer::RoundTrip {
            self.measure = Measure::Due;
        }
    }

    /// Follows what the peers know now, one [`Seen`] for each gateway; returns what is to be done, in this order.
    pub(super) fn follow(&mut self, seen: &[Seen], now: Instant) -> Vec<Step> {
        let mut steps = Vec::new();
        self.deadline = None;
        for (known, seen) in self.gateways.iter_mut().zip(seen) {
            known.lost = (!seen.reachable).then(|| known.lost.unwrap_or(now));
        }
        self.measure(seen, &mut steps, now);
        self.heed_silence(seen, &mut steps, now);
        for from in 0..self.gateways.len() {
            self.fail_over(from, seen, &mut steps, now);
        }
        self.go_back(seen, &mut steps, now);
        steps
    }

    fn measure(&mut self, seen: &[Seen], steps: &mut Vec<Step>, now: Instant) {
        if self.measure == Measure::Due && seen.iter().any(|seen| seen.reachable) {
            self.measure = Measure::Since(now);
            self.ask(|_, seen| seen.reachable, seen, steps, now);
        }
        let Measure::Since(since) = self.measure else { return };
        let end = since + GRACE;
        let all_measured =
            (0..seen.len()).all(|it| !is_reachable(seen, it) || measured(seen, it, since).is_some());
        if !all_measured && now < end {
            return self.wake_at(end);
        }
        self.measure = Measure::Done;
        let Some((time, best)) =
            (0..seen.len()).filter_map(|it| Some((measured(seen, it, since)?, it))).min()
        else {
            return;
        };
        let gains = measured(seen, self.used, since)
            .is_none_or(|used| time + LEAST_GAIN <= used && time <= used * 4 / 5);
        if best != self.used && gains {
            self.begin_to_use(best, seen, steps, now);
        }
    }

    /// Asks everybody if there is one whose silence is new, or lasts; whoever may be silent soon alone.
    fn heed_silence(&mut self, seen: &[Seen], steps: &mut Vec<Step>, now: Instant) {
        let (mut asks, asks_again) = (false, std::mem::take(&mut self.asks_again));
        for place in 0..self.gateways.len() {
            let is_silent = self.is_silent(place, seen, now);
            let is_wanted = seen.get(place).is_some_and(|seen| seen.is_wanted);
            let grace = self.grace(place, seen);
            let again = ASK_AGAIN.max(2 * grace);
            let Some(known) = self.gateways.get_mut(place) else { continue };
            known.asked_for = known.asked_for.filter(|_| is_silent);
            let is_due = known.asked_for.is_none_or(|asked| is_wanted && asked + again <= now);
            if is_silent && is_due {
                known.asked_for = Some(now);
            }
            asks |= is_silent && (is_due || asks_again);
            if let Some(asked) = known.asked_for {
                let again = is_wanted.then_some(asked + again);
                let next = Some(asked + grace).filter(|end| *end > now).or(again);
                next.into_iter().for_each(|next| self.wake_at(next));
            }
        }
        if asks {
            self.ask(|_, seen| seen.reachable, seen, steps, now);
        }
        for place in 0..self.gateways.len() {
            self.make_sure(place, seen, steps, now);
        }
    }

    /// Asks one that may be silent soon, or is in its grace, where that is not done yet.
    fn make_sure(&mut self, place: usize, seen: &[Seen], steps: &mut Vec<Step>, now: Instant) {
        let (Some(known), Some(it)) = (self.gateways.get(place).copied(), seen.get(place)) else { return };
        let Some(since) = it.waits_since.filter(|_| it.reachable && known.left.is_none()) else { return };
        let questions = match known.asked_for {
            Some(asked) => [asked + self.grace(place, seen) / 2; 2],
            None if it.has_session => SUSPICION.map(|after| since + after),
            None => return,
        };
        let last = questions.into_iter().filter(|at| *at <= now).max();
        let is_knock = it.answers_probes && known.asked_for.is_none() && last == questions.into_iter().min();
        if is_knock && last > known.knocked {
            self.gateways.get_mut(place).into_iter().for_each(|known| known.knocked = Some(now));
            steps.push(Step::Knock(place));
        } else if !is_knock && last > known.asked {
            self.ask(|it, _| it == place, seen, steps, now);
        }
        if let Some(next) = questions.into_iter().filter(|at| *at > now).min() {
            self.wake_at(next);
        }
    }

    /// Without a route to `from` new flows do not go there, but its own wait for the route.
    fn fail_over(&mut self, from: usize, seen: &[Seen], steps: &mut Vec<Step>, now: Instant) {
        let Some(known) = self.gateways.get(from).copied() else { return };
        let Some(asked) = known.asked_for else { return };
        let may_answer = |it: usize| it != from && is_reachable(seen, it) && !self.is_silent(it, seen, now);
        let left = |it: usize| self.gateways.get(it).and_then(|known| known.left);
        let answered = |it: usize| {
            may_answer(it) && has_answered(seen, it, left(it).map_or(asked, |left| left.max(asked)))
        };
        let Some(to) = self.best(answered, seen, asked) else { return };
        let could_be_better =
            |it: usize| may_answer(it) && !answered(it) && (self.prefer == Prefer::RoundTrip || it < to);
        let cause = if known.lost.is_none() { FailoverCause::Silence } else { FailoverCause::NoRoute };
        let waits = cause == FailoverCause::Silence || (0..self.gateways.len()).any(could_be_better);
        let grace = self.grace(from, seen);
        if waits && now < asked + grace {
            return;
        }
        let in_time =
            seen.get(to).is_some_and(|to| to.answered <= Some(asked + grace)) && now < asked + 2 * grace;
        if cause == FailoverCause::Silence && !in_time {
            if let Some(known) = self.gateways.get_mut(from) {
                known.asked_for = Some(now);
            }
            self.wake_at(now + grace);
            self.ask(|it, seen| (it == from || it == to) && seen.reachable, seen, steps, now);
            return self.make_sure(from, seen, steps, now);
        }
        if self.used == from && self.prefer == Prefer::Order {
            let lasted = self.returned.take().is_none_or(|returned| returned + LASTS <= now);
            self.return_after = if lasted { RETURN } else { (2 * self.return_after).min(MAX_RETURN) };
            self.return_at = Some(now + self.return_after);
            self.confirms = None;
            self.gateways.iter_mut().for_each(|known| known.return_asked = None);
        }
        let had_answered = seen.get(from).is_some_and(|from| from.answered.is_some());
        if let Some(lost) = known.lost.filter(|lost| had_answered && now < *lost + ROUTE_GRACE) {
            if self.used == from {
                self.begin_to_use(to, seen, steps, now);
            }
            return self.wake_at(lost + ROUTE_GRACE);
        }
        if let Some(known) = self.gateways.get_mut(from) {
            *known = Known { asked_for: None, left: Some(now), ..*known };
        }
        if self.used == from {
            self.used = to;
        }
        steps.push(Step::FailOver { from, to, cause });
        self.welcome(to, seen, steps, now);
    }

    /// New flows return to a gateway that is preferred as soon as it has answered twice.
    fn go_back(&mut self, seen: &[Seen], steps: &mut Vec<Step>, now: Instant) {
        let Some(return_at) = self.return_at else { return };
        self.confirm(seen, steps, now);
        let used = self.used;
        if used == 0 {
            self.return_at = None;
        } else if seen.get(used).is_some_and(|seen| seen.has_session) {
            let next = if return_at <= now { now + self.return_after } else { return_at };
            self.return_at = Some(next);
            self.wake_at(next);
            if return_at <= now {
                self.confirms = None;
                self.ask_to_return(|it| it < used, seen, steps, now);
            }
        }
    }

    /// Whether one that was asked has answered, and does so again a second later.
    fn confirm(&mut self, seen: &[Seen], steps: &mut Vec<Step>, now: Instant) {
        let return_asked = |it: usize| self.gateways.get(it).and_then(|known| known.return_asked);
        let answers = |it: usize| {
            is_reachable(seen, it)
                && return_asked(it)
                    .is_some_and(|asked| seen.get(it).is_some_and(|seen| seen.answered > Some(asked)))
                && !self.is_silent(it, seen, now)
        };
        let Some((it, at)) = self.confirms.filter(|(it, _)| is_reachable(seen, *it)) else {
            let first = (0..self.used).find(|it| answers(*it));
            self.confirms = first.map(|it| (it, now + CONFIRM));
            return self.confirms.into_iter().for_each(|(_, at)| self.wake_at(at));
        };
        if now < at {
            return self.wake_at(at);
        }
        let Some(asked) = return_asked(it).filter(|asked| *asked >= at) else {
            self.ask_to_return(|place| place == it, seen, steps, now);
            return self.wake_at(now + self.grace(it, seen));
        };
        if answers(it) {
            self.begin_to_use(it, seen, steps, now);
            self.returned = Some(now);
            self.confirms = None;
        } else if asked + self.grace(it, seen) <= now {
            // What it answers later is what its peer repeats.
            self.gateways.get_mut(it).into_iter().for_each(|known| known.return_asked = None);
            self.confirms = None;
        } else {
            self.wake_at(asked + self.grace(it, seen));
        }
    }

    fn ask_to_return(
        &mut self,
        whom: impl Fn(usize) -> bool,
        seen: &[Seen],
        steps: &mut Vec<Step>,
        now: Instant,
    ) {
        let asked = |it: usize, seen: &Seen| whom(it) && seen.reachable;
        for (it, (known, seen)) in self.gateways.iter_mut().zip(seen).enumerate() {
            if asked(it, seen) {
                known.return_asked = Some(now);
            }
        }
        self.ask(asked, seen, steps, now);
    }

    fn begin_to_use(&mut self, gateway: usize, seen: &[Seen], steps: &mut Vec<Step>, now: Instant) {
        self.used = gateway;
        steps.push(Step::Use(gateway));
        self.welcome(gateway, seen, steps, now);
    }

    /// Flows go there, which may have left it before.
    fn welcome(&mut self, gateway: usize, seen: &[Seen], steps: &mut Vec<Step>, now: Instant) {
        if let Some(known) = self.gateways.get_mut(gateway) {
            known.left = None;
        }
        self.make_sure(gateway, seen, steps, now);
    }

    fn ask(
        &mut self,
        whom: impl Fn(usize, &Seen) -> bool,
        seen: &[Seen],
        steps: &mut Vec<Step>,
        now: Instant,
    ) {
        for (place, (known, seen)) in self.gateways.iter_mut().zip(seen).enumerate() {
            if whom(place, seen) {
                known.asked = Some(now);
                steps.push(Step::Ask(place));
            }
        }
    }

    /// Of those that are `eligible` the one to choose, by what was measured from then on.
    fn best(&self, eligible: impl Fn(usize) -> bool, seen: &[Seen], since: Instant) -> Option<usize> {
        let mut eligible = (0..self.gateways.len()).filter(|it| eligible(*it));
        match self.prefer {
            Prefer::Order => eligible.next(),
            Prefer::RoundTrip => {
                eligible.min_by_key(|it| measured(seen, *it, since).unwrap_or(Duration::MAX))
            }
        }
    }

    fn is_silent(&self, place: usize, seen: &[Seen], now: Instant) -> bool {
        let (Some(known), Some(seen)) = (self.gateways.get(place), seen.get(place)) else { return false };
        match seen.waits_since {
            _ if known.left.is_some() => false,
            Some(since) => !seen.reachable || silent_at(since, seen.has_session) <= now,
            None => !seen.reachable && (place == self.used || known.asked_for.is_some()),
        }
    }

    fn grace(&self, place: usize, seen: &[Seen]) -> Duration {
        let moved = self.gateways.get(place).and_then(|known| known.moved);
        let round_trip = seen.get(place).and_then(|seen| seen.round_trip);
        let known = round_trip.filter(|(at, _)| Some(*at) > moved);
        known.map_or(GRACE, |(_, round_trip)| (round_trip * 5 / 2).clamp(GRACE, MAX_GRACE))
    }

    fn wake_at(&mut self, at: Instant) {
        self.deadline = Some(self.deadline.map_or(at, |deadline| deadline.min(at)));
    }
}

fn is_reachable(seen: &[Seen], place: usize) -> bool {
    seen.get(place).is_some_and(|seen| seen.reachable)
}

fn measured(seen: &[Seen], place: usize, since: Instant) -> Option<Duration> {
    let (at, round_trip) = seen.get(place).filter(|seen| seen.reachable)?.round_trip?;
    (at >= since).then_some(round_trip)
}

fn has_answered(seen: &[Seen], place: usize, asked: Instant) -> bool {
    seen.get(place).is_some_and(|seen| seen.reachable && seen.answered >= Some(asked))
}

#[cfg(test)]
mod tests;
