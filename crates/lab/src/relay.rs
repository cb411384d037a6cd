use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::random::Random;
use crate::stop::Wake;
use crate::{During, LabError, Stop, StopSource};

/// What a link does to the frames of one direction. The default does nothing to them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Impairment {
    /// Every frame is this late.
    pub delay: Duration,
    /// And up to this much later, evenly distributed; frames keep their order.
    pub jitter: Duration,
    /// Probability, 0 to 1, that an IP packet is dropped. ARP is spared: a second without a neighbour is no packet loss.
    pub loss: f64,
    /// Probability, 0 to 1, that a frame is held back for another [`REORDER_HOLD`], so that later ones overtake it.
    pub reorder: f64,
    /// Bits per second, if limited.
    pub rate: Option<u64>,
}

/// By how much a reordered frame is later than its turn.
pub const REORDER_HOLD: Duration = Duration::from_millis(5);

/// Frames that wait in one direction at most, then new ones are dropped. 10 000 of 1514 B are 100 ms of 1.2 Gbit/s.
const QUEUE_LIMIT: usize = 10_000;
/// Frames read from one side before the other gets its turn.
const BATCH: usize = 64;
const FRAME: usize = 65_536;
const ARP: [u8; 2] = [0x08, 0x06];

/// Carries frames between two TAP devices.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
    stop: StopSource,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// From the first end to the second, and back.
    impairments: Mutex<[Impairment; 2]>,
    carried: AtomicU64,
    dropped: AtomicU64,
}

impl Relay {
    pub(crate) fn start(a: OwnedFd, b: OwnedFd, impairment: Impairment, seed: u64) -> Result<Self, LabError> {
        let shared = Arc::new(Shared {
            impairments: Mutex::new([impairment; 2]),
            carried: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        let stop = StopSource::new().during(|| "prepare a relay".to_owned())?;
        let (token, inner) = (stop.token(), shared.clone());
        let thread = std::thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || carry([a.into(), b.into()], &inner, Random::new(seed), &token))
            .during(|| "start a relay".to_owned())?;
        Ok(Self { shared, stop, thread: Some(thread) })
    }

    /// From now on, for frames that arrive from now on, in both directions.
    pub fn set(&self, impairment: Impairment) {
        self.set_each(impairment, impairment);
    }

    /// `forth` is from the link's first end to its second.
    pub fn set_each(&self, forth: Impairment, back: Impairment) {
        *self.shared.impairments.lock().unwrap_or_else(PoisonError::into_inner) = [forth, back];
    }

    /// Frames handed on so far.
    pub fn carried(&self) -> u64 {
        self.shared.carried.load(Ordering::Relaxed)
    }

    /// Frames dropped so far, by chance or because too many were waiting.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            // It holds nothing but its own frames.
            let _ = thread.join();
        }
    }
}

fn carry(mut taps: [File; 2], shared: &Shared, mut random: Random, stop: &Stop) {
    let mut queues = [DelayQueue::default(), DelayQueue::default()];
    let mut buffer = vec![0; FRAME];
    loop {
        let due = queues.iter().filter_map(DelayQueue::next_due).min();
        let patience = due.map(|due| due.saturating_duration_since(Instant::now()));
        let [a, b] = &taps;
        if stop.any_readable([a.as_fd(), b.as_fd()], patience) == Wake::Stopped {
            return;
        }
        let impairments = *shared.impairments.lock().unwrap_or_else(PoisonError::into_inner);
        for ((queue, tap), impairment) in queues.iter_mut().zip(&mut taps).zip(&impairments) {
            for _ in 0..BATCH {
                let len = match tap.read(&mut buffer) {
                    Ok(len) => len,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    // The device is gone, with its host.
                    Err(_) => return,
                };
                let Some(frame) = buffer.get(..len) else { break };
                if !queue.admit(frame, impairment, Instant::now(), &mut random) {
                    shared.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        let [forth, back] = &mut queues;
        let [a, b] = &mut taps;
        for (queue, to) in [(forth, b), (back, a)] {
            while let Some(frame) = queue.take_due(Instant::now()) {
                // The kernel refuses frames for a device that is down; a wire would lose them too.
                let counter = if to.write(&frame).is_ok() { &shared.carried } else { &shared.dropped };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// The frames under way in one direction.
#[derive(Debug, Default)]
struct DelayQueue {
    /// By the time they are due, and in order of arrival where that is the same.
    waiting: BTreeMap<(Instant, u64), Vec<u8>>,
    arrivals: u64,
    /// When the last bit of the frames admitted so far has left the sender.
    sent: Option<Instant>,
    /// When the last frame that keeps its order is due.
    last_due: Option<Instant>,
}

impl DelayQueue {
    /// `false` if the frame is dropped.
    fn admit(&mut self, frame: &[u8], impairment: &Impairment, now: Instant, random: &mut Random) -> bool {
        let is_ip = frame.get(12..14) != Some(&ARP[..]);
        if self.waiting.len() >= QUEUE_LIMIT || is_ip && random.chance(impairment.loss) {
            return false;
        }
        let mut due = self.sent.map_or(now, |sent| sent.max(now));
        if let Some(rate) = impairment.rate.filter(|rate| *rate > 0) {
            due += Duration::from_secs_f64(frame.len() as f64 * 8.0 / rate as f64);
            self.sent = Some(due);
        } else {
            self.sent = None;
            due = now;
        }
        due += impairment.delay + random.duration(impairment.jitter);
        if is_ip && random.chance(impairment.reorder) {
            due += REORDER_HOLD;
        } else {
            due = self.last_due.map_or(due, |last| last.max(due));
            self.last_due = Some(due);
        }
        self.arrivals += 1;
        self.waiting.insert((due, self.arrivals), frame.to_vec());
        true
    }

    fn next_due(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((due, _), _)| *due)
    }

    fn take_due(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.next_due().filter(|due| *due <= now)?;
        self.waiting.pop_first().map(|(_, frame)| frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IP: [u8; 14] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x08, 0x00];

    fn pass(impairment: Impairment, frames: u8, gap: Duration) -> Vec<(u8, Duration)> {
        let start = Instant::now();
        let mut random = Random::new(1);
        let mut queue = DelayQueue::default();
        for number in 0..frames {
            let frame = [&IP[..], &[number]].concat();
            queue.admit(&frame, &impairment, start + gap * u32::from(number), &mut random);
        }
        std::iter::from_fn(|| {
            let due = queue.next_due()?;
            let frame = queue.take_due(due)?;
            Some((frame[14], due - start))
        })
        .collect()
    }

    #[test]
    fn nothing_happens_by_default() {
        let passed = pass(Impairment::default(), 10, Duration::from_millis(1));
        assert_eq!(passed, (0..10).map(|n| (n, Duration::from_millis(u64::from(n)))).collect::<Vec<_>>());
    }

    #[test]
    fn jitter_stays_in_its_bounds_and_keeps_order() {
        let (delay, jitter) = (Duration::from_millis(20), Duration::from_millis(10));
        let passed = pass(Impairment { delay, jitter, ..Default::default() }, 200, Duration::from_millis(1));
        assert!(passed.iter().map(|(number, _)| *number).eq(0..200));
        for (number, due) in passed {
            let late = due - Duration::from_millis(u64::from(number));
            assert!((delay..=delay + jitter).contains(&late), "{late:?}");
        }
    }

    #[test]
    fn reordered_frames_are_overtaken() {
        let passed = pass(Impairment { reorder: 0.1, ..Default::default() }, 200, Duration::from_millis(1));
        assert_eq!(passed.len(), 200);
        let overtaken = passed.windows(2).filter(|pair| pair[0].0 > pair[1].0).count();
        assert!((5..40).contains(&overtaken), "{overtaken}");
    }

    #[test]
    fn a_rate_spreads_a_burst() {
        // 15 bytes at 120 kbit/s take 1 ms.
        let passed = pass(Impairment { rate: Some(120_000), ..Default::default() }, 10, Duration::ZERO);
        assert_eq!(passed.last().unwrap().1, Duration::from_millis(10));
    }

    #[test]
    fn the_same_seed_loses_the_same_frames_and_arp_is_spared() {
        let half = Impairment { loss: 0.5, ..Default::default() };
        let once = pass(half, 200, Duration::ZERO);
        assert!((60..140).contains(&once.len()), "{}", once.len());
        assert_eq!(once, pass(half, 200, Duration::ZERO).into_iter().collect::<Vec<_>>());
        let mut arp = IP;
        arp[13] = 0x06;
        let all = Impairment { loss: 1.0, ..Default::default() };
        assert!(DelayQueue::default().admit(&arp, &all, Instant::now(), &mut Random::new(1)));
        assert!(!DelayQueue::default().admit(&IP, &all, Instant::now(), &mut Random::new(1)));
    }
}
