use std::time::Instant;

use super::PathMtu;

/// In the identifier of a probe that was one of several datagrams which the kernel was given as one.
const SEGMENTED: u16 = 0x8000;
/// After so many in turn that were lost, while the same datagram alone was answered, it is no chance: of a path that loses a twentieth
/// one in three million rounds ends so.
const MISSES: u8 = 5;

/// Whether datagrams that the kernel was given as one arrive as they do alone. The first probe of a round is sent so, the others are not.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SegmentCheck {
    misses: u8,
    alone: bool,
}

impl SegmentCheck {
    /// The first probe of the next round is about to be sent with others. Whether such have been lost for so long that no more should be.
    pub(crate) fn begins(&mut self) -> bool {
        if std::mem::take(&mut self.alone) {
            self.misses += 1;
        }
        let is_lost = self.misses >= MISSES;
        if is_lost {
            self.misses = 0;
        }
        is_lost
    }

    /// As [`PathMtu::answered`].
    pub(crate) fn answered(&mut self, path: &mut PathMtu, (id, sequence): (u16, u16), now: Instant) -> bool {
        if path.answered((id, sequence), now) {
            self.alone = true;
            return true;
        }
        let is_ours = path.answered((id ^ SEGMENTED, sequence), now);
        if is_ours {
            *self = Self::default();
        }
        is_ours
    }
}

/// The name of the same probe in such a message.
pub(crate) fn segmented((id, sequence): (u16, u16)) -> (u16, u16) {
    (id ^ SEGMENTED, sequence)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What of a round arrives.
    #[derive(Clone, Copy, PartialEq)]
    enum Arrives {
        All,
        Alone,
        Nothing,
        /// The answers to all come when the round has long gone on.
        Late,
    }

    /// Whether rounds of which that arrives end segmented sends.
    fn ends(rounds: &[Arrives]) -> bool {
        let mut now = Instant::now();
        let (mut path, mut check) = (PathMtu::begin(Some(1500), true, 7, now), SegmentCheck::default());
        rounds.iter().any(|arrives| {
            path.used(now);
            let (mut late, mut ended) = (Vec::new(), false);
            let end = now + Duration::from_secs(4);
            while now < end {
                now += Duration::from_millis(100);
                let Some(size) = path.on_deadline(now) else { continue };
                let together = path.begins_round();
                ended |= together && check.begins();
                let name = if together { segmented(path.name(size)) } else { path.name(size) };
                match arrives {
                    Arrives::Nothing => {}
                    Arrives::Alone if together => {}
                    Arrives::Late => late.push(name),
                    Arrives::All | Arrives::Alone => assert!(check.answered(&mut path, name, now)),
                }
                if late.len() == 2 {
                    late.drain(..).for_each(|name| assert!(check.answered(&mut path, name, now)));
                }
            }
            ended
        })
    }

    #[test]
    fn what_arrives_alone_only_ends_them() {
        use Arrives::{All, Alone, Late, Nothing};
        assert!(ends(&[Alone; 6]));
        assert!(!ends(&[All; 20]));
        assert!(!ends(&[Nothing; 20]), "it says nothing of segments");
        assert!(!ends(&[Alone, Alone, Alone, Alone, All].repeat(4)), "a loss now and then");
        assert!(!ends(&[Late; 20]), "a long round trip");
        assert!(ends(&[Alone, Nothing, Alone, Alone, Nothing, Alone, Alone, Alone]));
    }

    #[test]
    fn who_has_not_seen_a_probe_cannot_answer_it() {
        let now = Instant::now();
        let (mut path, mut check) = (PathMtu::begin(Some(1500), true, 7, now), SegmentCheck::default());
        let (id, sequence) = segmented(path.name(1420));
        assert!(!check.answered(&mut path, (id, sequence ^ 1), now));
        assert!(!check.answered(&mut path, (id ^ 1, sequence), now));
        assert!(check.answered(&mut path, (id, sequence), now));
    }
}
