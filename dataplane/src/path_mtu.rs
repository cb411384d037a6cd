//! Finds out how large a packet the way to a peer carries (RFC 8899), without I/O: answers, errors and `now` in, probes out.
//!
//! All sizes are bytes of IP packet; of the packet inside the tunnel where nothing else is said.

pub(crate) mod probe;
pub(crate) mod segments;

use std::fmt;
use std::time::{Duration, Instant};

use probe::CONTROL;

/// IPv6's least (RFC 8200 §5): an interface has at least this, and what may not be made smaller is sent in outer fragments up to it.
pub(crate) const LEAST_LINK_MTU: u16 = 1280;
/// What a narrower path than the known one may lose: whoever sends or receives such packets makes the path's size worth asking for.
pub(crate) const LARGE: usize = 1000;
/// Outer sizes that paths are known to have, in ascending order: IPv4's and IPv6's least, tunnels in tunnels, mobile networks, PPPoE, Ethernet.
const USUAL: [u16; 18] = [
    576, 800, 1006, 1200, 1280, 1300, 1340, 1358, 1380, 1400, 1420, 1440, 1452, 1460, 1472, 1480, 1492, 1500,
];
/// What is used where a larger size has just failed and none is known to pass.
const BASE: u16 = 1280;
/// WireGuard's header and tag, and UDP's.
const WIREGUARD_AND_UDP: u16 = 32 + 8;
/// WireGuard's overhead with an IPv6 header, which is left room for whatever the family, as the kernel's own WireGuard does.
const ROOM: u16 = WIREGUARD_AND_UDP + 40;
/// An outer packet's size where the interface's is not known: Ethernet's.
const ETHERNET: u32 = 1500;
/// Lost probes of one size after which it is held to be too large (RFC 8899 §5.1.2, MAX_PROBES).
const TRIES: u8 = 3;
/// For an answer. One that comes later still counts.
const WAIT: Duration = Duration::from_millis(500);
/// Between confirmations of the size in use, while large packets pass.
const CONFIRM: Duration = Duration::from_secs(2);
/// After this a larger size is tried (RFC 8899 §5.1.1, PMTU_RAISE_TIMER), or a gateway that answers no probes is asked again.
const RAISE: Duration = Duration::from_secs(600);
/// After this a size that probes have just found too large is tried again: a burst of losses looks the same. Each time in vain doubles it.
const DOUBT: Duration = Duration::from_secs(5);

/// The path to one peer.
#[derive(Clone, Debug)]
pub(crate) struct PathMtu {
    discovers: bool,
    /// As large as the interface towards the peer allows.
    ceiling: u16,
    /// What the tunnel adds to a packet.
    overhead: u16,
    mtu: u16,
    known: Known,
    /// In the probes of this path: an answer from before a change of network says nothing.
    id: u16,
    /// Hides a probe's size in its sequence number: who has not seen the probe can write no answer to it.
    key: u16,
    /// The largest size that was answered.
    confirmed: Option<u16>,
    /// The smallest that was not.
    failed: Option<u16>,
    probe: Option<Probe>,
    is_answered: bool,
    /// When the last probe ended.
    checked: Instant,
    raise_at: Option<Instant>,
    /// How long the smallest size that was not answered is left alone next.
    patience: Duration,
    /// No probe of the last round was answered, and no router speaks either: larger packets may be lost without a word.
    is_blind: bool,
    /// Since this was asked last.
    has_changed: bool,
}

/// How a size is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    Configured,
    /// The interface towards the peer says so.
    Interface,
    /// A router says so.
    Icmp,
    Probe,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    size: u16,
    sent: u8,
    is_alive: bool,
    due: Instant,
}

impl PathMtu {
    /// `mtu` from the configuration, which is not to be found out.
    pub(crate) fn fixed(mtu: u16, v4: bool, now: Instant) -> Self {
        let known = Known::Configured;
        Self { discovers: false, known, probe: None, ..Self::below(mtu, v4, 0, now) }
    }

    /// Begins with what the interface towards the peer takes, whose own MTU is `link`. `secret` is random: anybody inside the tunnel may write
    /// what looks like the answer to a probe, and the path would be held to carry what it does not.
    pub(crate) fn begin(link: Option<u32>, v4: bool, secret: u32, now: Instant) -> Self {
        Self::below(tunnel_mtu(link), v4, secret, now)
    }

    /// Begins with `ceiling`.
    pub(crate) fn below(ceiling: u16, v4: bool, secret: u32, now: Instant) -> Self {
        Self {
            discovers: true,
            ceiling,
            overhead: overhead(v4),
            mtu: ceiling,
            known: Known::Interface,
            id: (secret >> 16) as u16,
            key: secret as u16,
            confirmed: None,
            failed: None,
            probe: Some(Probe::new(ceiling, now)),
            is_answered: false,
            checked: now,
            raise_at: None,
            patience: DOUBT,
            is_blind: false,
            has_changed: true,
        }
    }

    /// The network has changed. Where the peer answers probes the size stays until one of them tells, else it begins anew.
    pub(crate) fn network_changed(&mut self, link: Option<u32>, now: Instant) {
        if self.discovers {
            self.restart(tunnel_mtu(link), now);
        }
    }

    /// As [`PathMtu::network_changed`], to a peer that has moved, of whichever family it is there.
    pub(crate) fn peer_moved(&mut self, v4: bool, now: Instant) {
        self.overhead = overhead(v4);
        if self.discovers {
            self.restart(self.ceiling, now);
        }
    }

    /// The largest packet inside the tunnel. On a narrow path a multiple of 16, to which the other end pads what it sends, unless its own MTU
    /// is less (WireGuard paper §5.4.6).
    pub(crate) fn mtu(&self) -> u16 {
        if self.mtu < self.ceiling { self.mtu & !15 } else { self.mtu }
    }

    /// The largest outer packet.
    pub(crate) fn outer(&self) -> u16 {
        self.mtu.saturating_add(self.overhead)
    }

    /// Whether the peer has answered a probe.
    pub(crate) fn is_answered(&self) -> bool {
        self.is_answered
    }

    pub(crate) fn discovers(&self) -> bool {
        self.discovers
    }

    /// The outer size that packets must be let fragmented to on their way, since larger ones have to be carried. Over IPv6 none does that but the
    /// sender.
    pub(crate) fn fragments(&self) -> Option<u16> {
        (self.discovers && self.mtu() < LEAST_LINK_MTU).then(|| self.outer())
    }

    /// Whether routers are let fragment what is too large for them: it is known that they must, or nobody would tell.
    pub(crate) fn lets_routers_fragment(&self) -> bool {
        self.is_blind || self.fragments().is_some()
    }

    /// Whether its size, or what becomes of larger packets, is another than when this was asked last.
    pub(crate) fn take_change(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }

    pub(crate) fn has_changed(&self) -> bool {
        self.has_changed
    }

    /// When [`PathMtu::on_deadline`] wants to be called, as long as the peer can be reached.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.probe.map(|probe| probe.due)
    }

    /// Large packets have passed, or are lost: a size that is in use is confirmed from time to time.
    pub(crate) fn used(&mut self, now: Instant) {
        if !self.discovers || self.probe.is_some() {
            return;
        }
        let raises = self.mtu < self.ceiling && self.raise_at.is_some_and(|at| at <= now);
        self.probe = Some(match raises {
            true => {
                self.raise_at = None;
                Probe::new(self.failed.unwrap_or(self.ceiling).min(self.ceiling), now)
            }
            false => Probe::new(self.mtu, self.checked + if self.is_answered { CONFIRM } else { RAISE }),
        });
    }

    /// The size of the probe to send now; `None`: none, see [`PathMtu::deadline`] again.
    pub(crate) fn on_deadline(&mut self, now: Instant) -> Option<u16> {
        let probe = self.probe.as_mut().filter(|probe| probe.due <= now)?;
        probe.sent += 1;
        match probe.sent {
            // The control goes with the last.
            TRIES => Some(probe.size),
            sent if sent < TRIES => {
                probe.due = now + WAIT;
                Some(probe.size)
            }
            sent if sent == TRIES + 1 => {
                probe.due = now + WAIT;
                Some(CONTROL)
            }
            _ => {
                let Probe { size, is_alive, .. } = *probe;
                self.probe = None;
                self.checked = now;
                match is_alive {
                    true => self.too_large(size, now),
                    // A round without any answer says nothing of its size.
                    false => self.set_blind(self.known != Known::Icmp),
                }
                None
            }
        }
    }

    /// Whether what [`PathMtu::on_deadline`] has just returned is the first probe of a round about the size in use.
    pub(crate) fn begins_round(&self) -> bool {
        self.probe.is_some_and(|probe| probe.sent == 1 && probe.size == self.mtu)
    }

    /// The identifier and the sequence number of a probe of this size.
    pub(crate) fn name(&self, size: u16) -> (u16, u16) {
        (self.id, size ^ self.key)
    }

    /// An answer to the probe of this name, or to the control. Whether it was to one of ours.
    pub(crate) fn answered(&mut self, (id, sequence): (u16, u16), now: Instant) -> bool {
        let size = sequence ^ self.key;
        let is_size = size == CONTROL || size == self.mtu || self.sizes().any(|it| it == size);
        if !self.discovers || id != self.id || !is_size {
            return false;
        }
        self.is_answered = true;
        self.set_blind(false);
        if size == CONTROL {
            self.probe.iter_mut().for_each(|probe| probe.is_alive = true);
            return true;
        }
        self.confirmed = self.confirmed.max(Some(size));
        self.failed = self.failed.filter(|failed| *failed > size);
        if size > self.mtu {
            self.set(size, Known::Probe);
            self.patience = DOUBT;
        }
        if self.probe.is_some_and(|probe| probe.size <= size) {
            self.probe = None;
            self.checked = now;
            if self.mtu < self.ceiling && self.failed.is_none() {
                self.probe = Some(Probe::new(self.ceiling, now));
            }
            self.search(now);
        }
        true
    }

    /// A router, or this machine's own kernel, says that an outer packet may have no more than `outer` bytes.
    pub(crate) fn told(&mut self, outer: u32, now: Instant) {
        let least = self.sizes().next().unwrap_or(self.mtu);
        let size = u16::try_from(outer).unwrap_or(u16::MAX).saturating_sub(self.overhead).max(least);
        if !self.discovers || size >= self.mtu {
            return;
        }
        // Anybody may write such a message: as soon as this size has passed, larger ones are tried (RFC 8899 §4.6.1).
        self.failed.get_or_insert(self.mtu.saturating_add(1));
        self.confirmed = self.confirmed.filter(|confirmed| *confirmed <= size);
        self.raise_at = Some(now + RAISE);
        self.set(size, Known::Icmp);
        self.set_blind(false);
        // Whether that much passes: a second narrow place may be behind the first.
        self.probe = Some(Probe::new(size, now));
    }

    fn restart(&mut self, ceiling: u16, now: Instant) {
        self.ceiling = ceiling;
        let mtu = if self.is_answered { self.mtu.min(ceiling) } else { ceiling };
        if mtu == ceiling {
            self.set(mtu, Known::Interface);
        }
        self.has_changed = true;
        self.id = self.id.wrapping_add(1);
        (self.confirmed, self.failed, self.raise_at) = (None, None, None);
        self.patience = DOUBT;
        self.set_blind(false);
        // A peer that is heard from two places in turn, which it may have made up, gets no probe for each of its packets.
        let due = self.deadline().filter(|due| *due <= now + WAIT);
        self.probe = Some(Probe::new(ceiling, due.map_or(now, |due| due.max(now))));
    }

    fn too_large(&mut self, size: u16, now: Instant) {
        self.failed = Some(self.failed.map_or(size, |failed| failed.min(size)));
        self.confirmed = self.confirmed.filter(|confirmed| *confirmed < size);
        self.raise_at = None;
        if self.mtu >= size {
            let base = BASE.saturating_sub(self.overhead);
            let fallback = self.confirmed.or_else(|| self.sizes().find(|it| *it == base && *it < size));
            let least = self.sizes().next().unwrap_or(size);
            self.set(fallback.unwrap_or(least), Known::Probe);
        }
        self.search(now);
    }

    /// Probes between the largest size that passes and the smallest that does not, if there is any left to try.
    fn search(&mut self, now: Instant) {
        let Some(failed) = self.failed else { return };
        let confirmed = self.confirmed.unwrap_or(0);
        let open = self.sizes().filter(move |size| confirmed < *size && *size < failed);
        let base = BASE.saturating_sub(self.overhead);
        let next = match self.confirmed {
            None if open.clone().any(|size| size == base) => Some(base),
            _ => open.clone().nth(open.count() / 2),
        };
        match next {
            Some(size) => self.probe = Some(Probe::new(size, now)),
            None if self.raise_at.is_none() => {
                self.raise_at = Some(now + self.patience());
                self.patience = (self.patience * 2).min(RAISE);
            }
            None => {}
        }
    }

    /// How long the smallest size that was not answered is left alone. A router's word is not in doubt.
    fn patience(&self) -> Duration {
        if self.known == Known::Icmp { RAISE } else { self.patience }
    }

    fn set(&mut self, mtu: u16, known: Known) {
        self.has_changed |= self.mtu != mtu || self.known != known;
        (self.mtu, self.known) = (mtu, known);
    }

    fn set_blind(&mut self, is_blind: bool) {
        self.has_changed |= self.is_blind != is_blind;
        self.is_blind = is_blind;
    }

    /// What may be tried, in ascending order.
    fn sizes(&self) -> impl Iterator<Item = u16> + Clone + use<> {
        let (ceiling, overhead) = (self.ceiling, self.overhead);
        let least = if overhead == ROOM { LEAST_LINK_MTU } else { 0 };
        let usual = USUAL.into_iter().filter(move |outer| *outer >= least).map(move |outer| outer - overhead);
        usual.filter(move |size| *size < ceiling).chain([ceiling])
    }
}

impl Probe {
    fn new(size: u16, due: Instant) -> Self {
        Self { size, sent: 0, is_alive: false, due }
    }
}

impl fmt::Display for PathMtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.known {
            Known::Configured => "as configured",
            Known::Interface => "of the interface towards the gateway",
            Known::Icmp => "as a router on the way says",
            Known::Probe => "as probes have found",
        })?;
        match () {
            () if !self.discovers => Ok(()),
            () if self.is_blind => f.write_str("; no probe is answered, so routers may fragment"),
            () if self.confirmed >= Some(self.mtu) => f.write_str(", confirmed by a probe"),
            () if !self.is_answered && self.probe.is_none_or(|probe| probe.sent == 0) => {
                f.write_str("; no probe was answered yet")
            }
            () => Ok(()),
        }
    }
}

/// How large a packet in the tunnel may be if `link` is the largest, in bytes, that the interface or the route towards the peer takes; `None`:
/// not known.
pub fn tunnel_mtu(link: Option<u32>) -> u16 {
    // An IP header states 16 bits of length; no interface that carries IPv4 has less than 576.
    let link = link.unwrap_or(ETHERNET).clamp(576, u16::MAX.into());
    link as u16 - ROOM
}

fn overhead(v4: bool) -> u16 {
    WIREGUARD_AND_UDP + if v4 { 20 } else { 40 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A path that carries outer packets of `carries` bytes, and a gateway that may answer.
    struct Path {
        carries: u16,
        gateway_answers: bool,
        routers_answer: bool,
        mtu: PathMtu,
        now: Instant,
        probes: usize,
    }

    impl Path {
        fn new(carries: u16, gateway_answers: bool, routers_answer: bool) -> Self {
            let now = Instant::now();
            let mtu = PathMtu::begin(Some(1500), true, SECRET, now);
            Self { carries, gateway_answers, routers_answer, mtu, now, probes: 0 }
        }

        /// Lets `time` pass, with traffic or without.
        fn pass(&mut self, time: Duration, used: bool) {
            let end = self.now + time;
            loop {
                if used {
                    self.mtu.used(self.now);
                }
                let Some(due) = self.mtu.deadline().filter(|due| *due <= end) else { break };
                self.now = self.now.max(due);
                let Some(size) = self.mtu.on_deadline(self.now) else { continue };
                self.probes += 1;
                if size + overhead(true) > self.carries {
                    if self.routers_answer {
                        self.mtu.told(self.carries.into(), self.now);
                    }
                } else if self.gateway_answers {
                    assert!(self.mtu.answered(self.mtu.name(size), self.now));
                }
            }
            self.now = end;
        }
    }

    const MINUTE: Duration = Duration::from_secs(60);
    const SECRET: u32 = 0x6d74_1cc5;

    #[test]
    fn who_has_not_seen_a_probe_cannot_answer_it() {
        let mut path = Path::new(1280, true, false);
        path.pass(MINUTE, true);
        let (id, sequence) = path.mtu.name(1420);
        for forged in [(id, 1420), (id.wrapping_add(1), sequence), path.mtu.name(1419), path.mtu.name(1421)] {
            assert!(!path.mtu.answered(forged, path.now), "{forged:?}");
        }
        assert_eq!(path.mtu.outer(), 1280);
    }

    #[test]
    fn a_usual_path_is_found_whether_routers_say_so_or_not() {
        for routers_answer in [true, false] {
            for carries in [1280, 1380, 1420, 1500] {
                let mut path = Path::new(carries, true, routers_answer);
                path.pass(MINUTE, true);
                assert_eq!(path.mtu.outer(), carries.min(1480), "{routers_answer}");
                let is_narrow = carries < 1480;
                assert_eq!(path.mtu.known == Known::Probe, !routers_answer && is_narrow);
                assert_eq!(path.mtu.lets_routers_fragment(), carries < 1340);
                assert!(path.mtu.to_string().ends_with("confirmed by a probe"), "{}", path.mtu);
            }
        }
    }

    #[test]
    fn a_path_that_shrinks_is_noticed_within_seconds() {
        let mut path = Path::new(1500, true, false);
        path.pass(MINUTE, true);
        path.carries = 1280;
        path.pass(CONFIRM + WAIT * 4, true);
        assert_eq!(path.mtu.outer(), 1280);
        path.pass(MINUTE, true);
        assert_eq!(path.mtu.outer(), 1280);
    }

    #[test]
    fn a_path_that_grows_is_noticed_within_ten_minutes_and_seldom_asked_before() {
        let mut path = Path::new(1280, true, false);
        path.pass(RAISE * 3, true);
        let searched = path.probes;
        path.pass(MINUTE, true);
        assert!(path.probes - searched <= 34, "{} probes in a minute", path.probes - searched);
        path.carries = 1400;
        path.pass(RAISE + MINUTE, true);
        assert_eq!(path.mtu.outer(), 1400);
        path.carries = 1500;
        path.pass(RAISE + MINUTE, true);
        assert_eq!((path.mtu.mtu(), path.mtu.fragments()), (1420, None));
    }

    #[test]
    fn who_is_idle_sends_nothing() {
        let mut path = Path::new(1500, true, false);
        path.pass(MINUTE, false);
        let before = path.probes;
        path.pass(RAISE * 3, false);
        assert_eq!((before, path.probes), (1, 1));
    }

    #[test]
    fn a_burst_of_losses_makes_no_path_narrow_for_long() {
        let mut path = Path::new(1500, true, false);
        path.pass(MINUTE, true);
        path.carries = 1280;
        path.pass(CONFIRM + WAIT * 4, true);
        assert_eq!(path.mtu.outer(), 1280);
        path.carries = 1500;
        path.pass(Duration::from_secs(10), true);
        assert_eq!(path.mtu.mtu(), 1420);
    }

    #[test]
    fn where_nobody_answers_routers_may_fragment_until_somebody_does() {
        let mut path = Path::new(1500, false, false);
        path.pass(WAIT * 3, true);
        assert!(path.mtu.lets_routers_fragment());
        assert!(path.mtu.to_string().ends_with("so routers may fragment"), "{}", path.mtu);
        assert_eq!(path.mtu.mtu(), 1420);
        path.gateway_answers = true;
        path.pass(RAISE + MINUTE, true);
        assert!(!path.mtu.lets_routers_fragment());
        assert!(path.mtu.to_string().ends_with("confirmed by a probe"), "{}", path.mtu);

        path.gateway_answers = false;
        path.pass(CONFIRM + WAIT * 4, true);
        assert!(path.mtu.lets_routers_fragment());
        path.gateway_answers = true;
        path.pass(CONFIRM, true);
        assert!(!path.mtu.lets_routers_fragment());
    }

    #[test]
    fn a_narrow_path_without_any_answer_is_looked_at_again() {
        let mut path = Path::new(1280, true, false);
        path.pass(MINUTE, true);
        path.gateway_answers = false;
        path.pass(RAISE * 2, true);
        (path.gateway_answers, path.carries) = (true, 1500);
        path.pass(RAISE + MINUTE, true);
        assert_eq!(path.mtu.mtu(), 1420);
    }

    #[test]
    fn a_gateway_that_answers_nothing_is_not_asked_again_and_routers_are_believed() {
        let mut path = Path::new(1500, false, true);
        path.pass(RAISE - MINUTE, true);
        assert_eq!((path.mtu.mtu(), path.probes), (1420, 4));
        path.mtu.told(1380, path.now);
        assert!(!path.mtu.lets_routers_fragment());
        path.pass(MINUTE, true);
        assert_eq!((path.mtu.mtu(), path.mtu.outer(), path.mtu.known), (1312, 1380, Known::Icmp));
        assert!(!path.mtu.lets_routers_fragment(), "routers speak here");
        assert!(path.mtu.to_string().ends_with("no probe was answered yet"), "{}", path.mtu);
        path.mtu.told(2000, path.now);
        assert_eq!(path.mtu.outer(), 1380);
    }

    #[test]
    fn a_peer_that_moves_all_the_time_is_not_sent_probes_all_the_time() {
        let mut path = Path::new(1500, false, false);
        let begin = path.now;
        while path.now < begin + WAIT * 10 {
            path.mtu.peer_moved(true, path.now);
            path.pass(Duration::from_millis(1), true);
        }
        assert!((2..=20).contains(&path.probes), "{} probes", path.probes);
    }

    #[test]
    fn what_is_configured_stays() {
        let now = Instant::now();
        let mut mtu = PathMtu::fixed(1420, true, now);
        mtu.told(1280, now);
        mtu.used(now);
        mtu.network_changed(Some(1300), now);
        assert_eq!((mtu.mtu(), mtu.deadline()), (1420, None));
        assert!(!mtu.answered(mtu.name(1000), now));
    }

    #[test]
    fn after_a_change_of_network_old_answers_say_nothing() {
        let mut path = Path::new(1280, true, false);
        path.pass(MINUTE, true);
        let old = path.mtu.name(1420);
        path.mtu.network_changed(Some(1500), path.now);
        assert!(!path.mtu.answered(old, path.now));
        assert_eq!(path.mtu.outer(), 1280);
        path.carries = 1500;
        path.pass(WAIT, false);
        assert_eq!(path.mtu.mtu(), 1420);
        path.mtu.network_changed(Some(1400), path.now);
        assert_eq!(path.mtu.mtu(), 1320);
    }

    #[test]
    fn what_no_router_has_said_does_not_last() {
        let mut path = Path::new(1500, true, false);
        path.pass(MINUTE, true);
        path.mtu.told(576, path.now);
        assert_eq!(path.mtu.outer(), 576);
        path.pass(CONFIRM, false);
        assert_eq!((path.mtu.mtu(), path.mtu.fragments()), (1420, None));
    }

    #[test]
    fn no_router_makes_it_smaller_than_any_path_is() {
        let now = Instant::now();
        for (v4, least) in [(true, 576), (false, 1280)] {
            let mut mtu = PathMtu::begin(None, v4, SECRET, now);
            mtu.told(0, now);
            assert_eq!(mtu.outer(), least);
        }
        assert_eq!(tunnel_mtu(Some(0)), 496);
        assert_eq!(tunnel_mtu(Some(u32::MAX)), 65_455);
    }

    proptest! {
        #[test]
        fn whatever_a_path_carries_the_result_passes_and_is_not_far_below(
            carries in 576_u16..1700,
            routers_answer: bool,
            then in 576_u16..1700,
        ) {
            let mut path = Path::new(carries, true, routers_answer);
            for carries in [carries, then, carries] {
                path.carries = carries;
                path.pass(RAISE + MINUTE, true);
                let found = path.mtu.outer();
                prop_assert!(found <= carries, "{found} on a path of {carries}");
                let usual = USUAL.into_iter().rev().find(|size| *size <= carries.min(1480)).unwrap();
                prop_assert!(found >= usual, "{found} on a path of {carries}");
            }
        }
    }
}
