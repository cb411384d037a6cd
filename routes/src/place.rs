//! Where our rules stand among others': behind the local table's, so that what is this machine's own stays here, and ahead of all that
//! could send signaling elsewhere.
//!
//! The kernel gives a rule without a preference the one before the second rule's (`fib_default_rule_pref`, net/core/fib_rules.c), so that
//! another VPN's comes ahead of ours. If ours had 0 it would not, but each such rule would be behind the last one, and not ahead of it as
//! wg-quick, for one, needs its two to be: its tunnel would take the local network. So ours move ahead.

use std::collections::HashMap;

use crate::{
    netlink::{AnyRule, Family},
    plan::PRIORITIES,
};

/// `now` is where they stand, if they do.
pub(crate) fn place(others: &[AnyRule], now: u32) -> u32 {
    let local = local(others.iter().filter(|rule| rule.is_local()).map(|rule| (rule.family, rule.priority)));
    let is_next = |rule: &&AnyRule| rule.decides() && rule.priority > local;
    let next = others.iter().filter(is_next).map(|rule| rule.priority).min().unwrap_or(u32::MAX);
    let place = between(local, next, now);
    // Ahead of the others counts more than behind the local table.
    if ahead(others, now).count() < ahead(others, place).count() { now } else { place }
}

/// Of each family the first asks the local table, and others are of no use: the place is behind the first of both.
fn local(rules: impl Iterator<Item = (Family, u32)>) -> u32 {
    let mut first = HashMap::new();
    for (family, priority) in rules {
        let least = first.entry(family).or_insert(priority);
        *least = priority.min(*least);
    }
    first.into_values().max().unwrap_or(0)
}

/// The rules that decide before ours, which there is no room before.
pub(crate) fn ahead(others: &[AnyRule], place: u32) -> impl Iterator<Item = &AnyRule> {
    others.iter().filter(move |rule| rule.decides() && rule.priority < place.saturating_add(WIDTH))
}

const WIDTH: u32 = PRIORITIES.end - PRIORITIES.start;

fn between(local: u32, next: u32, now: u32) -> u32 {
    let usual = PRIORITIES.start.max(local.saturating_add(1));
    let last = next.saturating_sub(WIDTH);
    let fits = |at: &u32| *at > local && *at <= last;
    [usual, now, last].into_iter().find(fits).unwrap_or(usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_local_table_is_asked_where_its_first_rule_is() {
        let rules = [(Family::V4, 100), (Family::V4, 0), (Family::V6, 20), (Family::V6, 30)];
        assert_eq!(local(rules.into_iter()), 20);
        assert_eq!(local(rules.into_iter().take(2)), 0);
        assert_eq!(local([].into_iter()), 0);
    }

    #[test]
    fn they_stand_behind_the_local_table_and_ahead_of_all_others_if_there_is_room() {
        let home = PRIORITIES.start;
        for (local, next, now, expected) in [
            (0, 32_766, home, home),
            // Others come ahead, and more of them; then they go.
            (0, home - 1, home, home - 1 - WIDTH),
            (0, home - 1, home - 1 - WIDTH, home - 1 - WIDTH),
            (0, 40, home - 1 - WIDTH, 40 - WIDTH),
            (0, 32_766, 40 - WIDTH, home),
            // As for want of a preference.
            (0, home + WIDTH - 1, home, home - 1),
            // The local table's rule was moved.
            (100, 32_766, home, 101),
            (100, 110, 101, 101),
            (32_765, 32_766, home, 32_766),
            (0, 1, home, home),
            (u32::MAX, u32::MAX, home, u32::MAX),
        ] {
            assert_eq!(between(local, next, now), expected, "between {local} and {next}");
        }
    }
}
