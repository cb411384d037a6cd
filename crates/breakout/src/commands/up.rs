use std::path::PathBuf;

use clap::Args;

use crate::{
    daemon,
    exit::{self, Exit},
    failure::Failure,
    logging::Logging,
};

/// Raise the split tunnel, in the foreground
///
/// Prints "breakout is up" when packets can move, and runs until SIGTERM, SIGINT or `breakout down`, which leave the
/// machine as it was. SIGHUP reads the configuration again. If it dies otherwise, signaling stays refused until the
/// next `up` or `down`, so that nothing of it leaves in the clear.
#[derive(Args, Debug)]
#[command(after_help = exit::HELP)]
pub struct Up {
    /// The configuration (TOML); docs/configuration.md has every key
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    logging: Logging,
}

impl Up {
    pub fn run(self) -> Result<Exit, Failure> {
        self.logging.start();
        daemon::up(self.config)
    }
}
