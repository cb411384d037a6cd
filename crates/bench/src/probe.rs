//! A datagram every millisecond, to see when a path begins or begins again to carry.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use lab::{During, Host, LabError};

use crate::clock;
use crate::forwarding::{OPENING, PAUSE};
use crate::scheduling::take_realtime;
use crate::voice::{Packet, Sample};

const INTERVAL: u64 = 1_000_000;

#[derive(Debug)]
pub struct Probe {
    shared: Arc<Shared>,
    thread: JoinHandle<io::Result<Vec<Sample>>>,
}

/// How a probe begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    AtOnce,
    /// With pauses in which whoever takes over established flows does so; later there is none that is long enough.
    WithPauses,
}

/// What a probe has heard so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answers {
    pub count: u64,
    /// Of this machine's packets.
    pub port: u16,
}

#[derive(Debug, Default)]
struct Shared {
    answers: AtomicU64,
    port: AtomicU16,
    stop: AtomicBool,
}

impl Probe {
    /// Sends unmarked voice packets from `host` to `to`, each from whatever address the route then gives.
    pub fn start(host: &Host, to: SocketAddr, begin: Begin) -> Result<Self, LabError> {
        let shared = Arc::new(Shared::default());
        let inner = shared.clone();
        let thread = host.thread("probe", move || send_and_receive(to, begin, &inner))?;
        Ok(Self { shared, thread })
    }

    /// Waits for so many more answers than there are now; `false` if they do not come in time.
    pub fn wait_for_answers(&self, more: u64, patience: Duration) -> bool {
        let begun = Instant::now();
        let enough = self.answers().count + more;
        while self.answers().count < enough {
            if begun.elapsed() > patience {
                return false;
            }
            sleep(Duration::from_millis(5));
        }
        true
    }

    pub fn answers(&self) -> Answers {
        let count = self.shared.answers.load(Ordering::Relaxed);
        Answers { count, port: self.shared.port.load(Ordering::Relaxed) }
    }

    /// Ends it: every packet that came back, in order.
    pub fn finish(self) -> Result<Vec<Sample>, LabError> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.join().map_err(|_| "its thread panicked".to_owned());
        joined.during(|| "probe a path".to_owned())?.during(|| "probe a path".to_owned())
    }
}

fn send_and_receive(to: SocketAddr, begin: Begin, shared: &Shared) -> io::Result<Vec<Sample>> {
    take_realtime();
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.set_nonblocking(true)?;
    shared.port.store(socket.local_addr()?.port(), Ordering::Relaxed);
    let pauses = match begin {
        Begin::AtOnce => 0,
        Begin::WithPauses => OPENING,
    };
    let begun = clock::now_ns();
    let mut samples = Vec::new();
    let mut buffer = [0; 2048];
    for number in 0.. {
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        let due = begun + due_after(number, pauses);
        clock::sleep_until(due);
        // Refused while there is no path yet.
        let _ = socket.send_to(&Packet { call: 0, number, due, far: 0 }.write(), to);
        while let Ok(len) = socket.recv(&mut buffer) {
            let Some(packet) = buffer.get(..len).and_then(Packet::read) else { continue };
            let Packet { call, number, due, far } = packet;
            samples.push(Sample { call, number, due, far, back: clock::now_ns() });
            shared.answers.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(samples)
}

/// When a packet is due after the first, in nanoseconds, if the first so many are followed by a pause.
fn due_after(number: u32, pauses: u32) -> u64 {
    let paused = u64::from(number.min(pauses));
    paused * PAUSE.as_nanos() as u64 + (u64::from(number) - paused) * INTERVAL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_due_every_millisecond_but_after_the_first_ones() {
        let due = |pauses: u32| [0, 1, 3, 4, 100].map(|number| due_after(number, pauses) / 1_000_000);
        assert_eq!((due(0), due(3)), ([0, 1, 3, 4, 100], [0, 20, 60, 61, 157]));
    }
}
