//! What should happen to a packet: configuration → sets and rules → snapshot → verdict, with its reason.
//!
//! No I/O: texts in, snapshots and verdicts out.
#![forbid(unsafe_code)]

mod capture;
mod config;
mod domain;
mod explain;
mod former;
mod genesys;
mod guard;
mod learned;
mod ports;
mod prefix_table;
mod rule;
mod snapshot;
mod verdict;
mod webrtc;

pub use config::{
    Config, ConfigError, Control, DNS_LINK, Dataplane, Endpoint, FastPathUse, Finding, Gateway, Interface,
    Network, PortalCheck, Prefer, PublicKey, Routes, Tunnel, Warning, never_captured,
};
pub use explain::{Explanation, Step};
pub use former::Former;
pub use genesys::{REGIONS, Region, SIGNALING};
pub use guard::{Guarded, Traffic};
pub use learned::{Learned, LearnedSet};
pub use snapshot::{Captured, Facts, Fail, RuleView, SetView, Snapshot};
pub use verdict::{Mark, Path, RuleId, Verdict};
pub use webrtc::{Content, recognise};
