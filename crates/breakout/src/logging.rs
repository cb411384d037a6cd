use std::io::IsTerminal;

use clap::{ArgAction, Args};
use tracing_subscriber::EnvFilter;

/// How much is logged to standard error.
#[derive(Args, Debug)]
pub struct Logging {
    /// Say more on standard error (-v, -vv)
    ///
    /// Each level says also what those before it say:
    ///   error        it cannot go on
    ///   warn         something is lost or not as it should be; a person may have to act
    ///   info         (the default) up, down, reloads, changes of the tunnel and the underlay
    ///   debug  -v    each step of the control plane, clients, refused datagrams
    ///   trace  -vv   all there is
    /// No level shows what packets carry. RUST_LOG, if set, decides instead: RUST_LOG=routes=debug,info
    #[arg(long, short, action = ArgAction::Count, verbatim_doc_comment)]
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
