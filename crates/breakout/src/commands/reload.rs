use clap::Args;
use control::{Command, Reply};

use super::ask;
use crate::{
    exit::{self, Exit},
    failure::Failure,
    output,
    state::StateDir,
};

/// Let the daemon read its configuration again
///
/// Sets, rules, policy, the control group and the gateway's endpoint change at once; flows that are alive keep their
/// path, those that the new policy forbids are cut. What can only change with a new start (the interface, the keys) is
/// refused, and the old configuration stays whole. SIGHUP does the same.
#[derive(Args, Debug)]
#[command(after_help = exit::HELP)]
pub struct Reload {
    /// Print one JSON object: changes, cut_flows, warnings
    #[arg(long)]
    json: bool,
}

impl Reload {
    pub fn run(self) -> Result<Exit, Failure> {
        let reloaded = match ask::daemon(&StateDir::from_environment(), Command::Reload)? {
            Reply::Reloaded(reloaded) => reloaded,
            other => return Err(ask::unexpected(&other)),
        };
        if self.json {
            output::json(&reloaded)?;
            return Ok(Exit::Ok);
        }
        for warning in &reloaded.warnings {
            eprintln!("warning: {warning}");
        }
        let mut lines: String = reloaded.changes.iter().map(|change| format!("{change}\n")).collect();
        if reloaded.changes.is_empty() {
            lines += "nothing has changed\n";
        }
        match reloaded.cut_flows {
            0 => {}
            1 => lines += "1 live flow was cut: the new policy forbids it\n",
            count => lines += &format!("{count} live flows were cut: the new policy forbids them\n"),
        }
        output::text(&lines)?;
        Ok(Exit::Ok)
    }
}
