use std::collections::BTreeSet;
use std::time::Instant;

/// When each of many things is due, so that none need be looked at of which nothing is.
///
/// A thing may be listed earlier than it is due, since deadlines mostly move away: who takes it looks at its deadline, and lists it anew.
#[derive(Default)]
pub struct Deadlines {
    queue: BTreeSet<(Instant, usize)>,
    listed: Vec<Option<Instant>>,
}

impl Deadlines {
    /// The thing of this number is due by then. A later time than the one that it is listed for changes nothing.
    pub fn list(&mut self, number: usize, due: Option<Instant>) {
        let Some(due) = due else { return };
        if self.listed.len() <= number {
            self.listed.resize(number + 1, None);
        }
        let Some(listed) = self.listed.get_mut(number) else { return };
        if listed.is_some_and(|listed| listed <= due) {
            return;
        }
        if let Some(before) = listed.replace(due) {
            self.queue.remove(&(before, number));
        }
        self.queue.insert((due, number));
    }

    /// The earliest time that something is listed for.
    pub fn earliest(&self) -> Option<Instant> {
        self.queue.first().map(|(due, _)| *due)
    }

    /// Takes the thing off the list that is listed for the earliest time, if that is not after `now`.
    pub fn take_due(&mut self, now: Instant) -> Option<usize> {
        if self.earliest()? > now {
            return None;
        }
        let (_, number) = self.queue.pop_first()?;
        if let Some(listed) = self.listed.get_mut(number) {
            *listed = None;
        }
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_due_first_comes_first_and_once() {
        let now = Instant::now();
        let at = |seconds| Some(now + Duration::from_secs(seconds));
        let mut deadlines = Deadlines::default();
        deadlines.list(3, at(5));
        deadlines.list(0, at(9));
        deadlines.list(1, at(7));
        deadlines.list(1, None);
        deadlines.list(0, at(2));
        deadlines.list(3, at(60));
        assert_eq!(deadlines.earliest(), at(2));
        assert_eq!(deadlines.take_due(now + Duration::from_secs(1)), None);
        let later = now + Duration::from_secs(10);
        let taken: Vec<_> = std::iter::from_fn(|| deadlines.take_due(later)).collect();
        assert_eq!(taken, [0, 3, 1]);
        assert_eq!(deadlines.earliest(), None);
        deadlines.list(0, at(1));
        assert_eq!(deadlines.take_due(later), Some(0));
    }
}
