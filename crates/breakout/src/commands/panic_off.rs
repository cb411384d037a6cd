use std::time::Duration;

use clap::Args;
use control::Command;
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid},
};
use serde::Serialize;

use super::ask;
use crate::{daemon, exit::Exit, failure::Failure, output, state::StateDir};

/// A daemon that undoes what it changed needs milliseconds.
const LIMIT: Duration = Duration::from_secs(10);

/// Open the way again when all else fails
///
/// Ends the daemon, by SIGKILL if it does not end when asked; undoes what the journal notes; then removes, whatever lock,
/// journal and configuration say, all of Breakout's that keeps signaling closed: the kill switch, routes and rules.
/// Signaling goes out in the clear afterwards, until the next `up`. `breakout down` is the gentle way. Needs root.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit status:
  0  nothing of Breakout's keeps signaling closed any more
  3  something could not be undone; what, is on standard error, and the rest is done")]
pub struct PanicOff {
    /// Print one JSON object: removed, failed
    #[arg(long)]
    json: bool,
}

#[derive(Default, Serialize)]
struct Done {
    /// A line each.
    removed: Vec<String>,
    failed: Vec<String>,
}

impl PanicOff {
    pub fn run(self) -> Result<Exit, Failure> {
        if !Uid::effective().is_root() {
            return Err(Failure::system("panic-off needs root").remedy("use sudo").into());
        }
        let state = StateDir::from_environment();
        let mut done = Done::default();
        end_daemon(&state)
            .map_or_else(|failure| done.failed.push(failure.plain()), |ended| done.removed.extend(ended));
        match daemon::clean(&state) {
            Ok(cleaned) => done.removed.extend(cleaned),
            Err(failure) => done.failed.push(failure.plain()),
        }
        let (removed, failed) = daemon::open_up()?;
        done.removed.extend(removed);
        done.failed.extend(failed);

        if self.json {
            output::json(&done)?;
        } else {
            output::text(&done.sentences())?;
            for failed in &done.failed {
                eprintln!("failed: {failed}");
            }
        }
        Ok(if done.failed.is_empty() { Exit::Ok } else { Exit::System })
    }
}

/// What was ended, if there was a daemon.
fn end_daemon(state: &StateDir) -> Result<Option<String>, Failure> {
    let first = state.holder()?;
    if first.is_none() {
        return Ok(None);
    }
    let asked = ask::daemon(state, Command::Down).and_then(|_| state.wait_until_gone(LIMIT));
    let (Err(failure), Some(holder)) = (asked, state.holder()?) else {
        return Ok(Some("the daemon, which was asked to end".to_owned()));
    };
    if Some(holder) != first {
        return Err(failure);
    }
    let pid = holder
        .ok_or_else(|| Failure::system("a daemon holds the lock and has not said which process it is"))?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)
        .map_err(|errno| Failure::system(format!("cannot end the daemon (pid {pid})")).because(errno))?;
    state.wait_until_gone(LIMIT)?;
    Ok(Some(format!("the daemon (pid {pid}), by SIGKILL")))
}

impl Done {
    fn sentences(&self) -> String {
        if self.removed.is_empty() {
            return "there was nothing to remove\n".to_owned();
        }
        let removed: String = self.removed.iter().map(|what| format!("removed {what}\n")).collect();
        format!("{removed}signaling is not kept closed any more\n")
    }
}
