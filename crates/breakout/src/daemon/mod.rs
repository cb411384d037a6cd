//! The daemon: reads the configuration, puts the parts together, and follows what happens.

mod clock;
mod events;
mod first;
mod fold;
mod former;
mod gateways;
mod grace;
mod leading;
mod learned;
mod learning;
mod load;
mod looks;
mod lookups;
mod machine;
mod names;
mod portal;
mod reload;
mod reloads;
mod report;
mod standing;
mod start;
mod wait;

use std::path::PathBuf;

use nix::sys::signal::SigSet;

pub use start::open_tun;

use crate::{exit::Exit, failure::Failure, state::StateDir};

/// Runs the daemon until it is told to end. What it changed on the machine is undone when it was told to, and kept,
/// so that signaling stays closed, when it fails.
pub fn up(config: PathBuf) -> Result<Exit, Failure> {
    let runtime = runtime()?;
    let outcome = runtime.block_on(run(config));
    // The C library's resolver may be waiting for an answer that nobody needs any more.
    runtime.shutdown_background();
    outcome
}

async fn run(config: PathBuf) -> Result<Exit, Failure> {
    let loaded = load::load(&config).await?;
    let signals = events::Signals::listen()?;
    let (mut running, mut outside) = start::start(config, loaded).await?;
    events::follow(&mut running, &mut outside, signals).await?;
    running.end(outside).await?;
    Ok(Exit::Ok)
}

/// Removes what a daemon that died has left on the machine; says what it was, a line each.
pub fn clean(state: &StateDir) -> Result<Vec<String>, Failure> {
    runtime()?.block_on(machine::clean(state))
}

/// Removes whatever keeps signaling closed, without asking lock or journal. Says what it was, and what went wrong, a line each.
pub fn open_up() -> Result<(Vec<String>, Vec<String>), Failure> {
    Ok(runtime()?.block_on(machine::open_up()))
}

/// One thread for the whole control plane. Signals are let through, whatever the parent process held back.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    SigSet::all()
        .thread_unblock()
        .map_err(|errno| Failure::system("cannot let signals through").because(errno))?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::system("cannot start the control plane").because(error).into())
}
