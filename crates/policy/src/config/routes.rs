//! `[routes]`: what is done on the machine beside the routes themselves.

use super::{
    Routes,
    finding::{Findings, Span},
    rules::ReadRule,
    section::Section,
};
use crate::Path;

#[derive(Default)]
pub(super) struct ReadRoutes {
    pub(super) routes: Routes,
    span: Span,
}

pub(super) fn read(root: &Section<'_>, findings: &mut Findings) -> ReadRoutes {
    let Some(section) = root.section("routes", &["kill_switch"], findings) else {
        return ReadRoutes::default();
    };
    let kill_switch = section.boolean("kill_switch", findings).unwrap_or(false);
    ReadRoutes { routes: Routes { kill_switch }, span: section.span }
}

impl ReadRoutes {
    /// A kill switch that would keep nothing in is no safety: [`crate::Guarded`] says what it keeps.
    pub(super) fn check(&self, rules: &[ReadRule], unmatched: Path, findings: &mut Findings) {
        if !self.routes.kill_switch || findings.errors() > 0 {
            return;
        }
        let fails_direct = |set: &usize| {
            rules.iter().any(|read| read.rule.path == Path::Bypass && read.rule.to.contains(set))
        };
        let tunnels = |read: &&ReadRule| read.rule.path == Path::Tunnel || unmatched == Path::Tunnel;
        if rules.iter().filter(tunnels).flat_map(|read| &read.rule.to).all(fails_direct) {
            findings.warn(
                self.span.clone(),
                "the kill switch keeps nothing in: no set is for the tunnel alone",
                "have a rule that tunnels a set which no rule lets break out, or leave `kill_switch` out",
            );
        }
    }
}
