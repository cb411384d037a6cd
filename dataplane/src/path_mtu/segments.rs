use std::time::Instant;

use tunnel::DATAGRAM_OVERHEAD;

use super::PathMtu;
use super::probe::CONTROL;

/// After so many pairs in turn that were lost as one, while each next one arrived whole one by one, it is no chance: of a path that loses
/// a hundredth each way one in ten million fives ends so.
const MISSES: u8 = 5;
/// Bytes that the largest datagram over IPv4 holds.
const LARGEST: usize = 65_507;

/// How the first probe of a round and a control behind it are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pair {
    /// The kernel is given both as one.
    AsOne,
    OneByOne,
}

/// Whether datagrams that the kernel was given as one arrive as they do one by one. Rounds begin with a pair that is sent as one; where that
/// is not answered whole the next begins with the same one by one: whatever else loses answers loses those of both.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SegmentCheck {
    misses: u8,
    last: Option<Pair>,
    as_one: Arrived,
    one_by_one: Arrived,
}

/// Which answers have come.
#[derive(Clone, Copy, Debug, Default)]
struct Arrived {
    probe: bool,
    control: bool,
}

impl SegmentCheck {
    /// Whether a probe of this size and a control can be sent as one.
    pub(crate) fn fits(size: u16) -> bool {
        usize::from(size) + usize::from(CONTROL) + 2 * DATAGRAM_OVERHEAD <= LARGEST
    }

    /// How the pair of the round that begins is to be sent; `None`: as one they have been lost for so long that nothing more should be.
    pub(crate) fn begin_round(&mut self) -> Option<Pair> {
        match self.last {
            _ if self.as_one.is_whole() => self.misses = 0,
            Some(Pair::AsOne) => {
                (self.last, self.one_by_one) = (Some(Pair::OneByOne), Arrived::default());
                return self.last;
            }
            Some(Pair::OneByOne) if self.one_by_one.is_whole() => self.misses += 1,
            Some(Pair::OneByOne) | None => {}
        }
        if self.misses >= MISSES {
            *self = Self::default();
            return None;
        }
        (self.last, self.as_one) = (Some(Pair::AsOne), Arrived::default());
        self.last
    }

    /// As [`PathMtu::answered`].
    pub(crate) fn answered(&mut self, path: &mut PathMtu, name: (u16, u16), now: Instant) -> bool {
        if path.answered(name, now) {
            return true;
        }
        let pairs = [(Pair::AsOne, &mut self.as_one), (Pair::OneByOne, &mut self.one_by_one)];
        for (pair, arrived) in pairs {
            if path.answered(pair.name(name), now) {
                let is_control = path.name(CONTROL).1 == name.1;
                arrived.probe |= !is_control;
                arrived.control |= is_control;
                return true;
            }
        }
        false
    }
}

impl Arrived {
    fn is_whole(self) -> bool {
        self.probe && self.control
    }
}

impl Pair {
    /// The name of a probe in such a pair, and back.
    pub(crate) fn name(self, (id, sequence): (u16, u16)) -> (u16, u16) {
        let mark = match self {
            Self::AsOne => 0x8000,
            Self::OneByOne => 0x4000,
        };
        (id ^ mark, sequence)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What of a round's pair arrives.
    #[derive(Clone, Copy, PartialEq)]
    enum Arrives {
        All,
        /// If they are sent one by one.
        Apart,
        /// Of what is sent as one the last is lost.
        Tailless,
        /// A gateway does not answer two probes at once.
        First,
        Nothing,
        /// The answers come when the round has long gone on.
        Late,
    }

    /// Whether rounds of which that arrives end segmented sends.
    fn ends(rounds: &[Arrives]) -> bool {
        let mut now = Instant::now();
        let (mut path, mut check) = (PathMtu::begin(Some(1500), true, 7, now), SegmentCheck::default());
        let mut ended = false;
        for arrives in rounds {
            path.used(now);
            let (mut late, end) = (Vec::new(), now + Duration::from_secs(4));
            while now < end {
                now += Duration::from_millis(100);
                let Some(size) = path.on_deadline(now) else { continue };
                if !path.begins_round() {
                    if *arrives == Arrives::Late {
                        late.drain(..).for_each(|name| assert!(check.answered(&mut path, name, now)));
                    } else if *arrives != Arrives::Nothing {
                        let name = path.name(size);
                        assert!(check.answered(&mut path, name, now));
                    }
                    continue;
                }
                let Some(pair) = check.begin_round() else {
                    ended = true;
                    continue;
                };
                let [probe, control] = [size, CONTROL].map(|size| pair.name(path.name(size)));
                let as_one = pair == Pair::AsOne;
                let answered = match arrives {
                    Arrives::Nothing => vec![],
                    Arrives::Apart if as_one => vec![],
                    Arrives::Tailless if as_one => vec![probe],
                    Arrives::First => vec![probe],
                    Arrives::Late => {
                        late = vec![probe, control];
                        vec![]
                    }
                    Arrives::All | Arrives::Apart | Arrives::Tailless => vec![probe, control],
                };
                answered.into_iter().for_each(|name| assert!(check.answered(&mut path, name, now)));
            }
        }
        ended
    }

    #[test]
    fn what_arrives_one_by_one_only_ends_them() {
        use Arrives::{All, Apart, First, Late, Nothing, Tailless};
        assert!(ends(&[Apart; 11]));
        assert!(ends(&[Tailless; 11]));
        assert!(!ends(&[All; 40]));
        assert!(!ends(&[First; 40]), "it says nothing of segments");
        assert!(!ends(&[Nothing; 40]), "nor does this");
        assert!(!ends(&[Late; 40]), "a long round trip");
        assert!(!ends(&[Apart, Apart, Apart, Apart, Apart, Apart, Apart, Apart, All, All].repeat(4)));
        assert!(!ends(&[Apart, Nothing].repeat(20)), "one by one they are lost too");
    }

    #[test]
    fn who_has_not_seen_a_probe_cannot_answer_it() {
        let now = Instant::now();
        let (mut path, mut check) = (PathMtu::begin(Some(1500), true, 7, now), SegmentCheck::default());
        let (id, sequence) = Pair::AsOne.name(path.name(1420));
        assert!(!check.answered(&mut path, (id, sequence ^ 1), now));
        assert!(!check.answered(&mut path, (id ^ 1, sequence), now));
        assert!(check.answered(&mut path, (id, sequence), now));
    }

    #[test]
    fn what_no_datagram_holds_is_not_sent_as_one() {
        assert!(SegmentCheck::fits(8940) && SegmentCheck::fits(65_379) && !SegmentCheck::fits(65_380));
    }
}
