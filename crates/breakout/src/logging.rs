use std::io::IsTerminal;

use clap::{ArgAction, Args};
use tracing_subscriber::EnvFilter;

/// How much is logged to standard error.
#[derive(Args, Debug)]
pub struct Logging {
    /// Say more on standard error; twice for everything
    ///
    /// The levels, each with those before it:
    /// error: the daemon cannot go on;
    /// warn: something is lost or not as it should be, and a person may have to act;
    /// info (the default): what a person would want to read once: up, down, reloads, the tunnel's and the underlay's changes;
    /// debug (-v): each decision of the control plane, clients, netlink messages;
    /// trace (-vv): all there is.
    /// No level logs packets. RUST_LOG, if set, decides instead (`RUST_LOG=routes=debug,info`).
    #[arg(long, short, action = ArgAction::Count)]
    verbose: u8,
}

impl Logging {
    pub fn start(&self) {
        let level = match self.verbose {
            0 => "info",
            1 => "debug",
            _ => "trace",
        };
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(self.verbose > 0)
            .init();
    }
}
