use std::time::Duration;

use clap::Args;
use control::{Command, Reply};
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
/// Waits until the daemon is gone. Where none is running, removes what a crash left behind: the routes that keep
/// signaling closed, rules, sysctls; and says what it was.
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
    /// What a crash had left, a line each.
    cleaned: Vec<String>,
}

impl Down {
    pub fn run(self) -> Result<Exit, Failure> {
        let state = StateDir::from_environment();
        let ended = match ask::daemon(&state, Command::Down) {
            Ok(Reply::Stopping) => {
                state.wait_until_gone(LIMIT)?;
                Ended { was_running: true, cleaned: Vec::new() }
            }
            Ok(other) => return Err(ask::unexpected(&other)),
            Err(failure) if failure.exit == Exit::NoDaemon => {
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

impl Ended {
    fn sentences(&self) -> String {
        if self.was_running {
            return "breakout is down\n".to_owned();
        }
        if self.cleaned.is_empty() {
            return "no daemon was running, and none has left anything behind\n".to_owned();
        }
        let cleaned: String = self.cleaned.iter().map(|what| format!("removed {what}\n")).collect();
        format!("no daemon was running; a crash had left something behind\n{cleaned}")
    }
}
