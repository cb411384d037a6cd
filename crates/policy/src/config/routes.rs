//! `[routes]`: what is done on the machine beside the routes themselves.

use super::{Routes, finding::Findings, section::Section};

pub(super) fn read(root: &Section<'_>, findings: &mut Findings) -> Routes {
    let Some(section) = root.section("routes", &["kill_switch"], findings) else { return Routes::default() };
    Routes { kill_switch: section.boolean("kill_switch", findings).unwrap_or(false) }
}
