//! From Genesys's own list of address ranges to the signaling set.

mod answer;
mod edit;
mod fetch;

pub use answer::{Selected, select};
pub use edit::{add, section};
pub use fetch::fetch;
