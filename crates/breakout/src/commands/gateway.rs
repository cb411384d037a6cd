use std::path::PathBuf;

use clap::Args;

use crate::{
    exit::{self, Exit},
    failure::Failure,
    gateway,
    logging::Logging,
};

/// Run the tunnel's far end: a small WireGuard gateway
///
/// For the lab, measurements and small offices. What its peers send comes out of its TUN; the kernel routes and
/// masquerades it on, which is set up outside (docs/gateway.md). Runs until SIGTERM or SIGINT.
#[derive(Args, Debug)]
#[command(after_help = exit::HELP)]
pub struct Gateway {
    /// The gateway's configuration (TOML): `[interface]` address, listen_port, private_key_file; `[[peers]]`
    /// public_key, preshared_key_file, allowed_ips
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    logging: Logging,
}

impl Gateway {
    pub fn run(self) -> Result<Exit, Failure> {
        self.logging.start();
        gateway::run(self.config)
    }
}
