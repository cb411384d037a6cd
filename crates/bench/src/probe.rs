//! A datagram every millisecond, to see when a path begins or begins again to carry.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use lab::{During, Host, LabError};

use crate::clock;
use crate::scheduling::take_realtime;
use crate::voice::{Packet, Sample};

const INTERVAL: u64 = 1_000_000;

#[derive(Debug)]
pub struct Probe {
    shared: Arc<Shared>,
    thread: JoinHandle<io::Result<Vec<Sample>>>,
}

#[derive(Debug, Default)]
struct Shared {
    answers: AtomicU64,
    stop: AtomicBool,
}

impl Probe {
    /// Sends unmarked voice packets from `host` to `to`, each from whatever address the route then gives.
    pub fn start(host: &Host, to: SocketAddr) -> Result<Self, LabError> {
        let shared = Arc::new(Shared::default());
        let inner = shared.clone();
        let thread = host.thread("probe", move || send_and_receive(to, &inner))?;
        Ok(Self { shared, thread })
    }

    /// Waits for so many more answers than there are now; `false` if they do not come in time.
    pub fn wait_for_answers(&self, more: u64, patience: Duration) -> bool {
        let begun = Instant::now();
        let enough = self.answers() + more;
        while self.answers() < enough {
            if begun.elapsed() > patience {
                return false;
            }
            sleep(Duration::from_millis(5));
        }
        true
    }

    fn answers(&self) -> u64 {
        self.shared.answers.load(Ordering::Relaxed)
    }

    /// Ends it: every packet that came back, in order.
    pub fn finish(self) -> Result<Vec<Sample>, LabError> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.join().map_err(|_| "its thread panicked".to_owned());
        joined.during(|| "probe a path".to_owned())?.during(|| "probe a path".to_owned())
    }
}

fn send_and_receive(to: SocketAddr, shared: &Shared) -> io::Result<Vec<Sample>> {
    take_realtime();
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.set_nonblocking(true)?;
    let begun = clock::now_ns();
    let mut samples = Vec::new();
    let mut buffer = [0; 2048];
    for number in 0.. {
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        let due = begun + u64::from(number) * INTERVAL;
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
