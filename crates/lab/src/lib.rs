//! A small internet of network namespaces: agent, access router, gateway, Genesys signaling and media, a web site.
//!
//! [`run`] is `breakout lab`: it drives real traffic through the real daemon and judges each kind by what captures saw. The parts it is
//! made of serve tests and benches as well: [`Host`]s connected by [`Link`]s, [`Capture`]s, [`Process`]es, the [`Internet`], the far ends
//! ([`service`]) and the [`traffic`].

mod capture;
mod daemon;
mod directory;
mod enter;
mod error;
mod gateway;
mod host;
mod internet;
mod judge;
mod keep;
mod lab;
mod link;
mod neighbour;
mod network;
mod process;
mod random;
mod relay;
mod report;
mod run;
pub mod service;
mod skip;
mod stop;
pub mod traffic;
mod wireguard;
mod wires;

pub use capture::{Capture, Captured, HEAD, Record};
pub use daemon::{Daemon, write_config};
pub use directory::Directory;
pub use enter::{clean_up_on_signals, enter, has_rights};
pub use error::{During, LabError};
pub use gateway::{Gateway, Keys, UnknownGateway, start_our_own};
pub use host::Host;
pub use internet::{Internet, SIGNALING_NET, Wiring, addresses};
pub use judge::Driven;
pub use lab::Lab;
pub use link::{End, Link, LinkKind};
pub use process::{Process, find_program};
pub use random::Random;
pub use relay::{Impairment, REORDER_HOLD, Relay};
pub use report::{CapturePoint, Path, Report, Row, Verdict};
pub use run::{Options, Run, run};
pub use skip::skip;
pub use stop::{Stop, StopSource, Wake};
pub use wireguard::{Foreign, WireGuard};
pub use wires::{Captures, Wires};
