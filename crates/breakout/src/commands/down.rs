use std::time::Duration;

use clap::Args;
use control::{Command, Reply};
use nix::unistd::Uid;
use serde::Serialize;

use super::ask;
use crate::{
    daemon,
    exit::{self, Exit},
    failure::Failure,
    output,
    state::StateDir,
};

/// Undoing takes milliseconds; a busy machine may take longer.
const LIMIT: Duration = Duration::from_secs(15);

/// End the daemon and leave the machine as it was
///
/// Waits until the daemon is gone. What it could not put back, or a crash left behind (the routes that keep signaling
/// closed, rules, sysctls) is removed, and said.
#[derive(Args, Debug)]
#[command(after_help = exit::HELP)]
pub struct Down {
    /// Print one JSON object: was_running, cleaned
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Ended {
    was_running: bool,
    /// What a crash had left, or the daemon could not put back; a line each.
    cleaned: Vec<String>,
}

impl Down {
    pub fn run(self) -> Result<Exit, Failure> {
        let state = StateDir::from_environment();
        let ended = match ask::daemon(&state, Command::Down) {
            Ok(Reply::Stopping) => {
                state.wait_until_gone(LIMIT)?;
                Ended { was_running: true, cleaned: clean_if_allowed(&state)? }
            }
            Ok(other) => return Err(ask::unexpected(&other)),
            Err(failure) if failure.exit == Exit::NoDaemon => {
                refuse_if_deaf(&state)?;
                Ended { was_running: false, cleaned: daemon::clean(&state)? }
            }
            Err(failure) => return Err(failure),
        };
        if self.json {
            output::json(&ended)?;
        } else {
            output::text(&ended.sentences())?;
        }
        Ok(Exit::Ok)
    }
}

/// What a daemon that was told to end could not put back. Members of the control group may end it, but not look.
fn clean_if_allowed(state: &StateDir) -> Result<Vec<String>, Failure> {
    if !Uid::effective().is_root() {
        return Ok(Vec::new());
    }
    state.refuse_if_replaced()?;
    daemon::clean(state)
}

/// A daemon has the lock before it can be asked, and after.
fn refuse_if_deaf(state: &StateDir) -> Result<(), Failure> {
    let Some(holder) = state.holder()?.filter(|_| Uid::effective().is_root()) else { return Ok(()) };
    let pid = holder.map_or_else(String::new, |pid| format!(" (pid {pid})"));
    Err(Failure::system(format!("the daemon{pid} cannot be asked to end: it is starting or ending"))
        .remedy("try again; if it hangs, `breakout panic-off` ends it")
        .into())
}

impl Ended {
    fn sentences(&self) -> String {
        let first = match (self.was_running, self.cleaned.is_empty()) {
            (true, true) => "breakout is down",
            (true, false) => "breakout is down; the daemon had left something behind",
            (false, true) => "no daemon was running, and none has left anything behind",
            (false, false) => "no daemon was running; a crash had left something behind",
        };
        let cleaned: String = self.cleaned.iter().map(|what| format!("removed {what}\n")).collect();
        format!("{first}\n{cleaned}")
    }
}
