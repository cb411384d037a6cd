//! Against a far end on another machine: `breakout bench --serve` there, `--live --target` here.

mod far;
mod near;

pub use far::{Far, MOST_TRANSFERS, serve};
pub use near::{Live, run};

/// TCP for transfers and UDP for voice; transfers over UDP use ports that the far end chooses.
pub const PORT: u16 = 47_000;
