//! The directory in which a running daemon can be found: `lock`, `control`, and the journal of what to undo.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use crate::{failure::Failure, progress};

const DEFAULT: &str = "/run/breakout";
const OVERRIDE: &str = "BREAKOUT_STATE_DIR";

#[derive(Clone, Debug)]
pub struct StateDir(PathBuf);

impl StateDir {
    pub fn from_environment() -> Self {
        Self(std::env::var_os(OVERRIDE).map_or_else(|| PathBuf::from(DEFAULT), PathBuf::from))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn control_socket(&self) -> PathBuf {
        self.0.join("control")
    }

    /// What names were found to have, for the next start.
    pub fn learned(&self) -> PathBuf {
        self.0.join("learned.json")
    }

    /// Nothing keeps closed what was learned any more.
    pub fn forget_learned(&self) {
        match fs::remove_file(self.learned()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "cannot remove {}", self.learned().display());
            }
            _ => {}
        }
    }

    /// Waits until no daemon holds the lock any more.
    pub fn wait_until_gone(&self, limit: Duration) -> Result<(), Failure> {
        let _waiting = progress::waiting_for("the daemon to end");
        let deadline = Instant::now() + limit;
        loop {
            match self.is_running() {
                Ok(false) => return Ok(()),
                Ok(true) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
                Ok(true) => {
                    return Err(Failure::system(format!(
                        "the daemon is still there after {} s",
                        limit.as_secs()
                    ))
                    .remedy("see its log; if it hangs, end it with SIGKILL and run `breakout down` again")
                    .into());
                }
                Err(error) => {
                    return Err(Failure::system(format!("cannot look at {}", self.lock_file().display()))
                        .because(error)
                        .into());
                }
            }
        }
    }

    fn is_running(&self) -> io::Result<bool> {
        let file = match File::open(self.lock_file()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            // Only root may touch the lock; the control group sees the socket, which goes first.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Ok(self.control_socket().exists());
            }
            opened => opened?,
        };
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_) => Ok(false),
            Err((_, Errno::EWOULDBLOCK)) => Ok(true),
            Err((_, errno)) => Err(errno.into()),
        }
    }

    fn lock_file(&self) -> PathBuf {
        self.0.join("lock")
    }
}
