use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    Command, MAX_REPLY, Refusal, Reply, VERSION,
    messages::{Answer, Request, Versioned},
};

/// A connection to the daemon. Blocking, with a time limit on every call.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no daemon is listening on {}", .0.display())]
    NoDaemon(PathBuf),
    #[error("no permission to open {}", .0.display())]
    Denied(PathBuf),
    #[error("cannot talk to the daemon")]
    Io(#[from] io::Error),
    #[error("the daemon has not answered within {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("the daemon closed the connection without an answer")]
    Closed,
    #[error("the daemon's answer is longer than {MAX_REPLY} bytes")]
    TooLong,
    #[error("the daemon speaks version {0} of the control protocol, this program {VERSION}")]
    Version(u32),
    #[error("the daemon's answer makes no sense")]
    Malformed(#[from] serde_json::Error),
    #[error("{}", .0.message)]
    Refused(Refusal),
}

impl Client {
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NoDaemon(path.to_owned())
            }
            io::ErrorKind::PermissionDenied => ClientError::Denied(path.to_owned()),
            _ => ClientError::Io(error),
        })?;
        Ok(Self { stream })
    }

    /// Asks, and waits for the answer up to `limit`. A refusal is an error.
    pub fn call(&mut self, command: Command, limit: Duration) -> Result<Reply, ClientError> {
        let deadline = Instant::now() + limit;
        let mut request = serde_json::to_vec(&Request { version: VERSION, command })?;
        request.push(b'\n');
        self.stream.set_write_timeout(Some(limit))?;
        match self.stream.write_all(&request) {
            // A daemon that refuses a client says so and closes, maybe before the request is written.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(timed_out(error, limit)),
            _ => {}
        }
        let answer = self.read_line(deadline, limit)?;
        let Versioned { version } = serde_json::from_slice(&answer)?;
        if version != VERSION {
            return Err(ClientError::Version(version));
        }
        match serde_json::from_slice::<Answer>(&answer)?.reply {
            Reply::Refused(refusal) => Err(ClientError::Refused(refusal)),
            reply => Ok(reply),
        }
    }

    fn read_line(&mut self, deadline: Instant, limit: Duration) -> Result<Vec<u8>, ClientError> {
        let mut line = Vec::new();
        let mut buffer = [0; 16 * 1024];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ClientError::Timeout(limit));
            }
            self.stream.set_read_timeout(Some(left))?;
            let count = match self.stream.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
                read => read.map_err(|error| timed_out(error, limit))?,
            };
            if count == 0 {
                return Err(ClientError::Closed);
            }
            line.extend_from_slice(buffer.get(..count).unwrap_or_default());
            // Answers come one at a time, each asked for: nothing follows the newline.
            if line.pop_if(|last| *last == b'\n').is_some() {
                return Ok(line);
            }
            if line.len() >= MAX_REPLY {
                return Err(ClientError::TooLong);
            }
        }
    }
}

fn timed_out(error: io::Error, limit: Duration) -> ClientError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Timeout(limit),
        _ => ClientError::Io(error),
    }
}
