//! From wg-quick's file format to our configuration.

mod wg_quick;
mod write;

pub use wg_quick::{WgQuick, read};
pub use write::{Converted, convert};
