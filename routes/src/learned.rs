//! Which table each set's learned addresses have.

use std::collections::BTreeMap;

use policy::LearnedSet;

use crate::plan::TABLE_LEARNED;

/// A set's learned addresses, and the table that is theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    pub table: u32,
    pub set: LearnedSet,
}

/// Gives each set the table that it had, or one that was free.
pub(crate) fn place(before: &[Placed], sets: &[LearnedSet]) -> Vec<Placed> {
    let mut tables: BTreeMap<&str, u32> =
        before.iter().map(|placed| (placed.set.set.as_str(), placed.table)).collect();
    let mut free = tables.values().max().map_or(TABLE_LEARNED, |last| last.saturating_add(1));
    let mut placed = Vec::with_capacity(sets.len());
    for set in sets {
        let table = *tables.entry(&set.set).or_insert_with(|| {
            let table = free;
            free = free.saturating_add(1);
            table
        });
        placed.push(Placed { table, set: set.clone() });
    }
    placed
}

#[cfg(test)]
mod tests {
    use policy::Traffic;

    use super::*;

    #[test]
    fn a_set_keeps_its_table_while_it_stays() {
        let sets = |names: &str| -> Vec<LearnedSet> {
            let set = |name: char| LearnedSet {
                set: name.to_string(),
                addresses: Vec::new(),
                traffic: Traffic::default(),
            };
            names.chars().map(set).collect()
        };
        let mut placed = Vec::new();
        let mut tables = |names: &str| -> Vec<u32> {
            placed = place(&placed, &sets(names));
            placed.iter().map(|placed| placed.table - TABLE_LEARNED).collect()
        };
        assert_eq!(tables("ab"), [0, 1]);
        assert_eq!(tables("cbab"), [2, 1, 0, 1], "the same set twice, as during a reload");
        assert_eq!(tables("bd"), [1, 3]);
        assert_eq!(tables("a"), [4], "the others' were in use until now");
        assert_eq!(tables(""), [0; 0]);
        assert_eq!(tables("e"), [0]);
    }
}
