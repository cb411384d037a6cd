//! Which rules can never match, because those before them take all there is to take.

use crate::rule::{Protocols, Rule, When};

/// The earlier rules that leave nothing to `rule`, in their order; `None` if it can match.
pub(super) fn covering<'a>(rule: &Rule, earlier: &'a [&Rule]) -> Option<Vec<&'a Rule>> {
    let mut covering: Vec<&Rule> = Vec::new();
    for set in &rule.to {
        for class in Protocols::CLASSES.into_iter().filter(|class| rule.protocols.contains(*class)) {
            for kind in kinds(rule.when) {
                let same = |other: &&&Rule| {
                    other.to.contains(set)
                        && other.protocols.contains(class)
                        && kinds(other.when).contains(kind)
                };
                let candidates: Vec<&Rule> = earlier.iter().filter(same).copied().collect();
                if !takes_all_ports(rule, &candidates) {
                    return None;
                }
                covering.extend(candidates);
            }
        }
    }
    let is_covering = |rule: &&Rule| covering.iter().any(|other| std::ptr::eq(*other, *rule));
    Some(earlier.iter().copied().filter(is_covering).collect())
}

/// What `when` tells apart.
#[derive(PartialEq, Eq)]
enum Kind {
    Ef,
    Webrtc,
    Neither,
}

fn kinds(when: When) -> &'static [Kind] {
    match when {
        When::Always => &[Kind::Ef, Kind::Webrtc, Kind::Neither],
        When::EfOrWebrtc => &[Kind::Ef, Kind::Webrtc],
        When::Ef => &[Kind::Ef],
    }
}

fn takes_all_ports(rule: &Rule, candidates: &[&Rule]) -> bool {
    if candidates.iter().any(|other| other.ports.is_none()) {
        return true;
    }
    // Without `ports` a rule also takes packets that have none, which no list covers.
    let Some(ports) = &rule.ports else { return false };
    ports.covered_by(candidates.iter().filter_map(|other| other.ports.as_ref()))
}
