use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

/// What is being measured and how long it will take, on standard error: one line that is written over on a terminal, plain lines
/// elsewhere.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
    begun: Instant,
    step: usize,
    steps: usize,
    /// What the steps before this one were expected to take, and those from it on.
    done: Duration,
    left: Duration,
}

/// Characters of a line on a terminal; a longer one would wrap and stay.
const WIDTH: usize = 100;

impl Progress {
    /// `all`: what the steps are expected to take together.
    pub fn new(steps: usize, all: Duration) -> Self {
        let (terminal, begun, done) = (stderr().is_terminal(), Instant::now(), Duration::ZERO);
        Self { terminal, begun, step: 0, steps, done, left: all }
    }

    /// Begins the next of the steps, which is expected to take as long as `length`.
    pub fn step(&mut self, what: &str, length: Duration) {
        self.step += 1;
        let left = remaining(self.begun.elapsed(), self.done, self.left);
        let line = format!("[{}/{}, {} left] {what}", self.step, self.steps, minutes(left));
        if self.terminal {
            eprint!("\r\x1b[2K{} …", line.chars().take(WIDTH).collect::<String>());
        } else {
            eprintln!("{line}");
        }
        self.done += length;
        self.left = self.left.saturating_sub(length);
    }

    /// Says that a step failed, in a line of its own.
    pub fn failed(&self, what: &str) {
        let begin = if self.terminal { "\r\x1b[2K" } else { "" };
        eprintln!("{begin}failed: {what}; the report says why");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal {
            eprint!("\r\x1b[2K");
        }
    }
}

/// As much longer or shorter than expected as what is done was; at the beginning as expected.
fn remaining(took: Duration, expected: Duration, left: Duration) -> Duration {
    const TELLING: Duration = Duration::from_secs(10);
    if expected < TELLING { left } else { left.mul_f64(took.as_secs_f64() / expected.as_secs_f64()) }
}

fn minutes(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_remains_follows_what_was_seen() {
        let seconds = Duration::from_secs;
        assert_eq!(remaining(seconds(5), seconds(2), seconds(100)), seconds(100));
        assert_eq!(remaining(seconds(30), seconds(20), seconds(100)), seconds(150));
        assert_eq!(minutes(seconds(125)), "2:05");
    }
}
