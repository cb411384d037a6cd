//! Breakout: a split-tunnel VPN client for contact-centre agents.
#![forbid(unsafe_code)]

mod commands;
mod configuration;
mod daemon;
mod exit;
mod failure;
mod gateway;
mod import;
mod key_file;
mod logging;
mod output;
mod progress;
mod ranges;
mod state;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match commands::Cli::parse().run() {
        Ok(exit) => exit.into(),
        Err(failure) => {
            eprintln!("{:?}", failure.report);
            failure.exit.into()
        }
    }
}
