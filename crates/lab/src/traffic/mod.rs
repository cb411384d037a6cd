//! What the agent's applications do: each function is a client that runs in the calling thread's host and measures what it sees.

pub mod datagram;
mod kinds;
pub mod stream;
pub mod voice;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hdrhistogram::Histogram;

pub use kinds::{EF_TOS, Kind, Ports, after_kill, from_tun_address, kinds};

/// What an application saw of its own traffic.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The socket's own address.
    pub local: Option<SocketAddr>,
    /// Requests or datagrams sent.
    pub sent: u64,
    /// Those of them that were answered.
    pub answered: u64,
    /// Round trips in nanoseconds.
    pub round_trips: Histogram<u64>,
    /// RFC 3550 §6.4.1, of the round trip, in nanoseconds.
    pub jitter_ns: Option<f64>,
    /// The code points that answers arrived with, where the application looks at them.
    pub dscp_back: BTreeSet<u8>,
    /// What ended it early, and how long after the beginning.
    pub failure: Option<Failure>,
}

#[derive(Clone, Debug)]
pub struct Failure {
    pub error: String,
    /// The network said no, as opposed to not answering.
    pub refused: bool,
    pub after: Duration,
}

impl Default for Outcome {
    #[expect(clippy::expect_used, reason = "three significant digits are in the range that is allowed")]
    fn default() -> Self {
        Self {
            local: None,
            sent: 0,
            answered: 0,
            round_trips: Histogram::new(3).expect("0 to 5 digits are allowed"),
            jitter_ns: None,
            dscp_back: BTreeSet::new(),
            failure: None,
        }
    }
}

impl Outcome {
    /// Counts an answer that took `round_trip`.
    pub fn answer(&mut self, round_trip: Duration) {
        self.answered += 1;
        // Fails only for more than a histogram can grow to, which is centuries.
        let _ = self.round_trips.record(u64::try_from(round_trip.as_nanos()).unwrap_or(u64::MAX));
    }

    pub fn fail(&mut self, error: &io::Error, after: Duration) {
        self.failure = Some(Failure { error: error.to_string(), refused: is_refusal(error), after });
    }

    /// 0 to 1; 0 if nothing was sent.
    pub fn loss(&self) -> f64 {
        if self.sent == 0 { 0.0 } else { self.sent.saturating_sub(self.answered) as f64 / self.sent as f64 }
    }
}

/// A reset, an ICMP error, or the kernel's own no (a prohibit route), as opposed to silence.
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, PermissionDenied,
    };
    matches!(
        error.kind(),
        ConnectionRefused | ConnectionReset | HostUnreachable | NetworkUnreachable | PermissionDenied
    )
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} after {} ms", self.error, self.after.as_millis())
    }
}
