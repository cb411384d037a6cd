//! `breakout bench`: what Breakout and its peers cost and give, measured in one run and in turn, so that drift cancels.
//!
//! [`run`] builds a [`Site`] for each client (agent, wire, far end, all in network namespaces of their own), drives the same scenarios
//! through each in interleaved rounds, and returns a [`Report`]: every figure of every round, raw delay histograms, and what they were
//! measured on. [`live`] measures against a far end somewhere else, [`compare`] says what differs between two reports beyond the noise.

mod ceiling;
mod clock;
mod compare;
mod dual;
mod error;
mod flows;
mod forwarding;
mod idle;
pub mod live;
mod load;
mod machine;
pub mod metric;
mod plan;
mod probe;
mod progress;
mod report;
mod roaming;
mod run;
mod scenario;
mod schedule;
mod scheduling;
mod site;
mod startup;
mod talk;
pub mod throughput;
mod usage;
pub mod voice;

pub use compare::{Change, Comparison, RULE, compare};
pub use error::BenchError;
pub use plan::{Plan, Section, UnknownSection};
pub use report::{
    Bar, Better, Cell, Contender, Distribution, Failed, Judged, Key, Limit, Load, Machine, Metric, Mode,
    Path, Report, SCHEMA, UnknownLoad, html, judge,
};
pub use run::{Options, run};
pub use site::{Client, Site, UnknownClient};
pub use usage::{Usage, peak_memory, reset_peak_memory};
