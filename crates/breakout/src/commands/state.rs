use clap::{Args, Subcommand};
use routes::{Leftovers, Undo};
use serde::Serialize;

use crate::{
    daemon,
    exit::{self, Exit},
    failure::Failure,
    output,
    state::StateDir,
};

/// What is to be undone on this machine: the journal
///
/// Each change to links, addresses, routes, rules, sysctls and the firewall is noted on disk, with its undo, before it is
/// made. A daemon that ends in order undoes all of it; one that died leaves it, and signaling closed, to the next `up`,
/// which takes it over, or to `down` and `state clean`, which undo it.
#[derive(Args, Debug)]
pub struct State {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    List(List),
    Clean(Clean),
}

/// Show what is noted, the first to be undone first
#[derive(Args, Debug)]
#[command(after_help = "\
Exit status:
  0  nothing is noted, or it is a running daemon's
  1  a daemon that died has left it
  3  the system refused: permission, a journal that cannot be read")]
struct List {
    /// Print one JSON object: running, pid, undo
    #[arg(long)]
    json: bool,
}

/// Undo what a daemon that died has left
///
/// Signaling goes out directly afterwards, as without Breakout. A running daemon is let be: `breakout down` ends it.
#[derive(Args, Debug)]
#[command(after_help = exit::HELP)]
struct Clean {
    /// Print one JSON object: cleaned
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Noted {
    running: bool,
    /// Of the running daemon, if it has said so yet.
    pid: Option<i32>,
    /// The first to be undone first.
    undo: Vec<Undo>,
}

#[derive(Serialize)]
struct Cleaned {
    /// A line each.
    cleaned: Vec<String>,
}

impl State {
    pub fn run(self) -> Result<Exit, Failure> {
        match self.command {
            Command::List(list) => list.run(),
            Command::Clean(clean) => clean.run(),
        }
    }
}

impl List {
    fn run(self) -> Result<Exit, Failure> {
        let Leftovers { running, mut undo } =
            Leftovers::look(StateDir::from_environment().path()).map_err(|error| {
                Failure::system("cannot look at the journal").because(error).remedy("run it as root")
            })?;
        undo.reverse();
        let noted = Noted { running: running.is_some(), pid: running.flatten(), undo };
        if self.json {
            output::json(&noted)?;
        } else {
            output::text(&noted.sentences())?;
        }
        Ok(if noted.running || noted.undo.is_empty() { Exit::Ok } else { Exit::No })
    }
}

impl Clean {
    fn run(self) -> Result<Exit, Failure> {
        let cleaned = daemon::clean(&StateDir::from_environment())?;
        if self.json {
            output::json(&Cleaned { cleaned })?;
            return Ok(Exit::Ok);
        }
        if cleaned.is_empty() {
            output::text("nothing was left behind\n")?;
        } else {
            output::text(&cleaned.iter().map(|what| format!("removed {what}\n")).collect::<String>())?;
        }
        Ok(Exit::Ok)
    }
}

impl Noted {
    fn sentences(&self) -> String {
        if self.undo.is_empty() {
            return "nothing is to be undone\n".to_owned();
        }
        let first = match (self.running, self.pid) {
            (true, Some(pid)) => format!("a breakout daemon is running (pid {pid}); when it ends it will"),
            (true, None) => "a breakout daemon is running; when it ends it will".to_owned(),
            (false, _) => {
                "a daemon died; the next `breakout up` takes this over, `breakout state clean` will"
                    .to_owned()
            }
        };
        let steps: String = self.undo.iter().map(|undo| format!("  {undo}\n")).collect();
        format!("{first}\n{steps}")
    }
}
