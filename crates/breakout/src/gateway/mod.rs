//! Our own WireGuard far end.

mod config;
mod run;

pub use run::run;
