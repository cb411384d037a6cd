//! The directory in which a running daemon can be found: `lock`, `control`, and the journal of what to undo.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use routes::Holder;

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
        // The latter is what a crash left of a write.
        for file in [self.learned(), self.learned().with_extension("new")] {
            match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, "cannot remove {}", file.display());
                }
                _ => {}
            }
        }
    }

    /// Who holds the lock; `None`: nobody.
    pub fn holder(&self) -> Result<Option<Holder>, Failure> {
        match routes::running(&self.0) {
            Ok(holder) => Ok(holder),
            // Only root may touch the lock; the control group sees the socket, which goes first.
            Err(routes::Error::Directory { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Ok(self.control_socket().exists().then_some(None))
            }
            Err(error) => Err(Failure::system("cannot look for a daemon").because(error).into()),
        }
    }

    /// Waits until the daemon that holds the lock now does so no more; fails if another one does by then.
    pub fn wait_until_gone(&self, limit: Duration) -> Result<(), Failure> {
        let _waiting = progress::waiting_for("the daemon to end");
        let deadline = Instant::now() + limit;
        let first = self.holder()?;
        loop {
            match self.holder()? {
                None => return Ok(()),
                Some(holder) if Some(holder) != first => return Err(replaced(holder)),
                Some(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
                Some(_) => {
                    return Err(Failure::system(format!(
                        "the daemon is still there after {} s",
                        limit.as_secs()
                    ))
                    .remedy(
                        "see its log; if it hangs, end it with SIGKILL and run `breakout down` again; if a service \
                         manager has started another, stop it there",
                    )
                    .into());
                }
            }
        }
    }

    /// For who has ended a daemon and wants to clean up after it.
    pub fn refuse_if_replaced(&self) -> Result<(), Failure> {
        self.holder()?.map_or(Ok(()), |holder| Err(replaced(holder)))
    }
}

fn replaced(holder: Holder) -> Failure {
    let pid = holder.map_or_else(String::new, |pid| format!(" (pid {pid})"));
    Failure::system(format!("the daemon ended, and another one was started in its place{pid}"))
        .remedy("a service manager does that: stop it there")
        .into()
}
