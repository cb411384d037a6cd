//! `[genesys]`: the regions whose names are signaling.

use super::{
    finding::{Findings, Span},
    section::{Section, list, nearest},
    sets::ReadSet,
};
use crate::{
    domain::upward,
    genesys::{REGIONS, Region, SIGNALING},
};

const ALL: &str = "all";

/// The regions' domains, each with the place of its region.
pub(super) fn read(root: &Section<'_>, findings: &mut Findings) -> Vec<(String, Span)> {
    let Some(section) = root.section("genesys", &["region"], findings) else { return Vec::new() };
    if !section.has("region") {
        section.missing("region", "region = \"us-west-2\"", findings);
    }
    let mut domains = Vec::new();
    for word in section.strings("region", findings).unwrap_or_default() {
        let name = *word.get_ref();
        let chosen: Vec<&Region> =
            REGIONS.iter().filter(|region| name == ALL || name == region.name).collect();
        if chosen.is_empty() {
            findings.error(word.span(), format!("there is no region `{}`", name.escape_debug()), known(name));
        }
        let names = chosen.iter().flat_map(|region| region.domains);
        domains.extend(names.map(|domain| ((*domain).to_owned(), word.span())));
    }
    domains
}

/// Adds the domains to the signaling set, be it the user's own or not, where its own do not cover them.
pub(super) fn add(domains: Vec<(String, Span)>, sets: &mut Vec<ReadSet>) {
    let Some((_, place)) = domains.first() else { return };
    if !sets.iter().any(|set| set.name == SIGNALING) {
        let place = Some(place.clone());
        sets.push(ReadSet { name: SIGNALING.to_owned(), place, ..ReadSet::default() });
    }
    let Some(set) = sets.iter_mut().find(|set| set.name == SIGNALING) else { return };
    for (domain, place) in domains {
        if !upward(&domain).any(|above| set.domains.iter().any(|(own, _)| own == above)) {
            set.domains.push((domain, Some(place)));
        }
    }
}

fn known(word: &str) -> String {
    let names: Vec<&str> = REGIONS.iter().map(|region| region.name).chain([ALL]).collect();
    match nearest(word, &names) {
        Some(name) => format!("did you mean `{name}`? It can be {}", list(&names)),
        None => format!("it can be {}", list(&names)),
    }
}
