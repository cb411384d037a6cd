//! One file for each command: its arguments, and what it does.

mod ask;
mod bench;
mod check;
mod down;
mod explain;
mod flows;
mod format;
mod gateway;
mod import;
mod keygen;
mod lab;
mod names;
mod panic_off;
mod ranges;
mod regions;
mod reload;
mod state;
mod status;
mod up;

use clap::{Parser, Subcommand};

use crate::{
    exit::{self, Exit},
    failure::Failure,
};

/// A split-tunnel VPN client for contact-centre agents
///
/// Signaling goes through a WireGuard tunnel, voice breaks out directly, and nothing else is touched.
/// `breakout lab` shows it at work on this machine, in a small internet of its own, with nothing to configure.
#[derive(Parser, Debug)]
#[command(version = env!("BREAKOUT_VERSION"), max_term_width = 100, after_help = exit::HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Lab(lab::Lab),
    Bench(Box<bench::Bench>),
    Up(up::Up),
    Down(down::Down),
    Status(status::Status),
    Flows(flows::Flows),
    Names(names::Names),
    Reload(reload::Reload),
    Explain(explain::Explain),
    Check(check::Check),
    Keygen(keygen::Keygen),
    Import(import::Import),
    Regions(regions::Regions),
    Ranges(ranges::Ranges),
    Gateway(gateway::Gateway),
    State(state::State),
    PanicOff(panic_off::PanicOff),
}

impl Cli {
    pub fn run(self) -> Result<Exit, Failure> {
        match self.command {
            Command::Lab(lab) => lab.run(),
            Command::Bench(bench) => bench.run(),
            Command::Up(up) => up.run(),
            Command::Down(down) => down.run(),
            Command::Status(status) => status.run(),
            Command::Flows(flows) => flows.run(),
            Command::Names(names) => names.run(),
            Command::Reload(reload) => reload.run(),
            Command::Explain(explain) => explain.run(),
            Command::Check(check) => check.run(),
            Command::Keygen(keygen) => keygen.run(),
            Command::Import(import) => import.run(),
            Command::Regions(regions) => regions.run(),
            Command::Ranges(ranges) => ranges.run(),
            Command::Gateway(gateway) => gateway.run(),
            Command::State(state) => state.run(),
            Command::PanicOff(panic_off) => panic_off.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
