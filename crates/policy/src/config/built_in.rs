//! Sets and rules that come with the program, read as a user's would be.

use super::{
    dns::{self, Server},
    finding::Findings,
    parse_toml,
    rules::{self, ReadRule},
    section::Section,
    sets::{self, ReadSet},
};
use crate::genesys;

/// A set of the user's own with the same name replaces the built-in one.
pub(super) fn add_sets(sets: &mut Vec<ReadSet>, servers: &[Server]) {
    let mut built_in = read(genesys::SETS, sets::read);
    built_in.retain(|set| !sets.iter().any(|own| own.name == set.name));
    sets.append(&mut built_in);
    sets.extend(dns::set(servers));
    sets.sort_by(|a, b| a.name.cmp(&b.name));
}

/// Rules of the user's own replace the built-in ones; before either comes the one for the tunnel's DNS servers, if any.
pub(super) fn with_rules(own: Option<Vec<ReadRule>>, servers: &[Server]) -> Vec<ReadRule> {
    let mut rules = if servers.is_empty() { Vec::new() } else { read_rules(dns::RULE) };
    rules.extend(own.unwrap_or_else(|| read_rules(genesys::RULES)));
    rules
}

fn read_rules(text: &str) -> Vec<ReadRule> {
    read(text, |root, findings| rules::read(root, findings).unwrap_or_default())
}

fn read<T: Default>(text: &str, read: impl FnOnce(&Section<'_>, &mut Findings) -> T) -> T {
    let mut findings = Findings::built_in(text);
    let Some(document) = parse_toml(text, &mut findings) else { return T::default() };
    let result =
        read(&Section::new("built in", 0..0, &document, &["sets", "rules"], &mut findings), &mut findings);
    debug_assert!(findings.finish().0.is_empty(), "the built-in sets and rules are valid");
    result
}
