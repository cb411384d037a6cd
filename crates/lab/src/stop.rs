use std::io::{PipeReader, PipeWriter, pipe};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

/// Tells any number of threads to end. Dropping it does so too.
#[derive(Debug)]
pub struct StopSource {
    token: Stop,
    writer: Option<PipeWriter>,
}

/// The other end of a [`StopSource`], for a thread that blocks on file descriptors.
#[derive(Clone, Debug)]
pub struct Stop(Arc<PipeReader>);

impl StopSource {
    pub fn new() -> std::io::Result<Self> {
        let (reader, writer) = pipe()?;
        Ok(Self { token: Stop(Arc::new(reader)), writer: Some(writer) })
    }

    pub fn token(&self) -> Stop {
        self.token.clone()
    }

    pub fn stop(&mut self) {
        self.writer = None;
    }
}

impl Stop {
    /// Blocks until `fd` can be read (or is at its end or in error): `true`; or until told to stop: `false`.
    pub fn readable(&self, fd: impl AsFd) -> bool {
        self.any_readable([fd.as_fd()], None) == Wake::Readable
    }

    /// As [`Stop::readable`] for several descriptors, for at most `timeout`.
    pub fn any_readable<const N: usize>(&self, fds: [BorrowedFd<'_>; N], timeout: Option<Duration>) -> Wake {
        let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        polled.push(PollFd::new(self.0.as_fd(), PollFlags::POLLIN));
        loop {
            match ppoll(&mut polled, timeout.map(TimeSpec::from_duration), None) {
                Ok(0) => return Wake::TimedOut,
                Ok(_) if polled.last().and_then(PollFd::any).unwrap_or(true) => return Wake::Stopped,
                Ok(_) => return Wake::Readable,
                Err(Errno::EINTR) => {}
                Err(_) => return Wake::Stopped,
            }
        }
    }
}

/// Why [`Stop::any_readable`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    Readable,
    TimedOut,
    Stopped,
}
