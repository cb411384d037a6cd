//! When the gateways' names are asked for again.

use std::{io, net::SocketAddr, time::Duration};

use policy::{Endpoint, Gateway};
use tokio::{task::JoinSet, time::Instant};

use super::{clock, gateways::look_up, wait::wait_until};

/// Between two lookups of one name, at least.
const LEAST_PAUSE: Duration = Duration::from_secs(10);
/// While a gateway does not answer the pause doubles, up to this.
const LAST_PAUSE: Duration = Duration::from_secs(300);

/// Looks for the gateways' addresses in tasks of their own.
pub struct Lookups {
    each: Vec<Lookup>,
    running: JoinSet<Answer>,
}

/// What a lookup has found.
pub struct Answer {
    pub gateway: usize,
    pub endpoint: Endpoint,
    /// All addresses, the best first; at least one.
    pub addresses: io::Result<Vec<SocketAddr>>,
}

struct Lookup {
    endpoint: Endpoint,
    last: Option<Instant>,
    /// The same by the clock that counts sleep, as what was heard of a gateway does.
    last_since_boot: Duration,
    due: Option<Instant>,
    pause: Duration,
    /// Whether the gateway was known not to answer when its name's last answer came: only then is that used.
    was_silent: bool,
}

impl Lookups {
    pub fn new(gateways: &[Gateway]) -> Self {
        let each = gateways.iter().map(|gateway| Lookup::new(gateway.endpoint.clone())).collect();
        Self { each, running: JoinSet::new() }
    }

    /// From now on these are looked for; there are as many as before.
    pub fn set_gateways(&mut self, gateways: &[Gateway]) {
        for (lookup, gateway) in self.each.iter_mut().zip(gateways) {
            if lookup.endpoint != gateway.endpoint {
                *lookup = Lookup::new(gateway.endpoint.clone());
            }
        }
    }

    /// Looks for a gateway that has stopped answering and was last heard so long after the machine's start: as soon as it may, or, if it was silent when it was
    /// looked for last, after the pause that it has by now.
    pub fn want_silent(&mut self, gateway: usize, heard: Option<Duration>, now: Instant) {
        let Some(lookup) = self.each.get(gateway) else { return };
        if lookup.last.is_none() || !lookup.was_silent || heard > Some(lookup.last_since_boot) {
            self.want(gateway, now);
        } else if lookup.due.is_none() {
            self.want_later(gateway, now);
        }
    }

    /// Whether a gateway that was looked for does not answer, by what is known when it is found.
    pub fn note_silent(&mut self, gateway: usize, is_silent: bool) {
        self.each.get_mut(gateway).into_iter().for_each(|lookup| lookup.was_silent = is_silent);
    }

    /// Looks for a gateway as soon as it may.
    pub fn want(&mut self, gateway: usize, now: Instant) {
        let Some(lookup) = self.each.get_mut(gateway) else { return };
        lookup.pause = LEAST_PAUSE;
        lookup.due_by(lookup.last.map_or(now, |last| now.max(last + LEAST_PAUSE)));
    }

    /// Looks for all that have a name: the network has changed.
    pub fn want_names(&mut self, now: Instant) {
        let names = self.each.iter().map(|lookup| matches!(lookup.endpoint, Endpoint::Name { .. }));
        let names: Vec<usize> = names.enumerate().filter(|(_, is_name)| *is_name).map(|(at, _)| at).collect();
        names.into_iter().for_each(|at| self.want(at, now));
    }

    /// Looks for a gateway again after a pause: it was not found, or does not answer where it was found.
    pub fn want_later(&mut self, gateway: usize, now: Instant) {
        let Some(lookup) = self.each.get_mut(gateway) else { return };
        lookup.due_by(now + lookup.pause);
        lookup.pause = LAST_PAUSE.min(2 * lookup.pause);
    }

    /// Begins what is due, and waits for what is found. May be dropped and called again.
    pub async fn answer(&mut self) -> Answer {
        loop {
            self.begin(Instant::now());
            let due = self.each.iter().filter_map(|lookup| lookup.due).min();
            tokio::select! {
                Some(answer) = self.running.join_next() => {
                    let Ok(answer) = answer else { continue };
                    if self.each.get(answer.gateway).is_some_and(|lookup| lookup.endpoint == answer.endpoint) {
                        return answer;
                    }
                }
                () = wait_until(due) => {}
            }
        }
    }

    fn begin(&mut self, now: Instant) {
        for (gateway, lookup) in self.each.iter_mut().enumerate() {
            if lookup.due.is_none_or(|due| due > now) {
                continue;
            }
            (lookup.due, lookup.last, lookup.last_since_boot) = (None, Some(now), clock::since_boot());
            let endpoint = lookup.endpoint.clone();
            self.running.spawn(async move {
                let addresses = look_up(endpoint.clone()).await;
                Answer { gateway, endpoint, addresses }
            });
        }
    }
}

impl Lookup {
    fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            last: None,
            last_since_boot: Duration::ZERO,
            due: None,
            pause: LEAST_PAUSE,
            was_silent: false,
        }
    }

    fn due_by(&mut self, time: Instant) {
        self.due = Some(self.due.map_or(time, |due| due.min(time)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(endpoint: &str) -> Gateway {
        Gateway {
            name: endpoint.to_owned(),
            public_key: policy::PublicKey([1; 32]),
            preshared_key_file: None,
            endpoint: match endpoint.parse() {
                Ok(address) => Endpoint::Address(address),
                Err(_) => Endpoint::Name { host: endpoint.to_owned(), port: 1 },
            },
        }
    }

    fn due(lookups: &Lookups) -> Vec<Option<Instant>> {
        lookups.each.iter().map(|lookup| lookup.due).collect()
    }

    #[test]
    fn a_name_is_asked_for_at_once_and_then_ever_more_seldom() {
        let now = Instant::now();
        let mut lookups = Lookups::new(&[gateway("vpn.invalid"), gateway("198.18.0.2:51820")]);
        lookups.want_names(now);
        assert_eq!(due(&lookups), [Some(now), None], "an address does not change with the network");

        let lookup = &mut lookups.each[0];
        (lookup.due, lookup.last) = (None, Some(now));
        let soon = now + Duration::from_secs(1);
        lookups.want(0, soon);
        assert_eq!(due(&lookups)[0], Some(now + LEAST_PAUSE), "not twice within ten seconds");
        lookups.want(0, soon + LEAST_PAUSE);
        assert_eq!(due(&lookups)[0], Some(now + LEAST_PAUSE), "what is due already stays so");

        let mut pauses = Vec::new();
        for _ in 0..7 {
            lookups.each[0].due = None;
            lookups.want_later(0, now);
            pauses.extend(due(&lookups)[0].map(|due| (due - now).as_secs()));
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300]);
        lookups.want(0, now + LAST_PAUSE);
        lookups.each[0].due = None;
        lookups.want_later(0, now);
        assert_eq!(due(&lookups)[0], Some(now + LEAST_PAUSE), "a new reason begins anew");
    }

    #[test]
    fn a_gateway_that_stays_silent_wherever_it_is_looked_for_is_asked_for_ever_more_seldom() {
        let begin = Instant::now();
        let mut lookups = Lookups::new(&[gateway("vpn.invalid")]);
        let heard = Some(Duration::from_secs(1000));
        lookups.want_silent(0, heard, begin);
        let mut asked = Vec::new();
        while let Some(due) = due(&lookups)[0].filter(|_| asked.len() < 7) {
            asked.push((due - begin).as_secs());
            let lookup = &mut lookups.each[0];
            (lookup.due, lookup.last, lookup.last_since_boot) = (None, Some(due), Duration::from_secs(1001));
            lookups.note_silent(0, true);
            lookups.want_later(0, due);
            lookups.want_silent(0, heard, due + Duration::from_secs(5));
        }
        assert_eq!(asked, [0, 10, 30, 70, 150, 310, 610]);

        let again = begin + Duration::from_secs(700);
        lookups.want_silent(0, Some(Duration::from_secs(1002)), again);
        assert_eq!(due(&lookups), [Some(again)], "it had answered, and falls silent anew");

        lookups.each[0].due = None;
        lookups.note_silent(0, false);
        lookups.want_silent(0, heard, again);
        assert_eq!(
            due(&lookups),
            [Some(again)],
            "it was not known to be silent when its name was asked for last"
        );
    }

    #[tokio::test]
    async fn an_address_is_its_own_answer_and_one_for_another_endpoint_is_none() {
        let mut lookups = Lookups::new(&[gateway("198.18.0.2:51820")]);
        lookups.want(0, Instant::now());
        lookups.begin(Instant::now());
        lookups.set_gateways(&[gateway("198.18.0.3:51820")]);
        lookups.want(0, Instant::now());
        let answer = lookups.answer().await;
        assert_eq!(
            (answer.gateway, answer.addresses.unwrap()),
            (0, vec!["198.18.0.3:51820".parse().unwrap()])
        );
    }
}
