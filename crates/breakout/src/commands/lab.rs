use clap::Args;

use crate::{exit::Exit, failure::Failure, output};

/// Show the split tunnel at work, in a small internet of its own
///
/// Builds an agent's workstation, an access router, a gateway, Genesys signaling and media and an unrelated web site
/// out of network namespaces, raises the real daemon there, drives real traffic, and prints which way each kind of it
/// went, as seen by captures on the wire. Takes under 20 s, needs no configuration, and leaves nothing behind.
#[derive(Args, Debug)]
#[command(after_help = concat!(
    "Exit status:\n",
    "  0  green: every kind of traffic took its path, with its mark\n",
    "  1  red: a wrong path, a lost mark, or signaling in the clear\n",
    "  2  the command line cannot be used\n",
    "  3  the lab could not run; what is missing is said"
))]
pub struct Lab {
    /// The tunnel's far end: breakout, wireguard-go, gotatun or boringtun-cli
    #[arg(long, value_name = "PROGRAM", default_value = "breakout")]
    gateway: lab::Gateway,
    /// Send everything directly: the lab must then turn red, which shows that it can
    #[arg(long = "break")]
    break_split: bool,
    /// Leave it up and say how to enter each host, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
}

impl Lab {
    pub fn run(self) -> Result<Exit, Failure> {
        // Before anything else: a user namespace can only be entered while there is one thread.
        lab::enter().map_err(could_not_run)?;
        let exe = std::env::current_exe()
            .map_err(|error| Failure::system("cannot find this program's own file").because(error))?;
        let options = lab::Options {
            exe,
            gateway: self.gateway,
            break_split: self.break_split,
            keep: self.keep,
            ..lab::Options::default()
        };
        let run = lab::run(&options).map_err(could_not_run)?;
        if self.json {
            output::json(&run.report)?;
        } else {
            output::text(&run.report.to_string())?;
        }
        if self.keep {
            run.keep().map_err(could_not_run)?;
        }
        Ok(match run.report.exit_status() {
            0 => Exit::Ok,
            1 => Exit::No,
            _ => Exit::System,
        })
    }
}

fn could_not_run(error: lab::LabError) -> Failure {
    Failure::system("the lab could not run").because(error).into()
}
