use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::{Captured, Fail};

/// Joins siblings, then leaves out what lies in a prefix of the same kind. Longest-prefix match over the result gives
/// every address the kind it had in `prefixes`.
pub(crate) fn aggregate(prefixes: impl IntoIterator<Item = (IpNet, Fail)>) -> Vec<Captured> {
    let mut kinds: BTreeMap<IpNet, Fail> = prefixes.into_iter().collect();
    join_siblings(&mut kinds);

    let mut captured = Vec::with_capacity(kinds.len());
    let mut around: Vec<Captured> = Vec::new();
    for (prefix, fail) in kinds {
        while around.last().is_some_and(|outer| !outer.prefix.contains(&prefix)) {
            around.pop();
        }
        if around.last().is_none_or(|outer| outer.fail != fail) {
            captured.push(Captured { prefix, fail });
            around.push(Captured { prefix, fail });
        }
    }
    captured
}

/// Two halves of the same kind become the whole, and hide it if it was there with another kind.
fn join_siblings(kinds: &mut BTreeMap<IpNet, Fail>) {
    let mut by_length: Vec<Vec<IpNet>> = vec![Vec::new(); 129];
    for prefix in kinds.keys() {
        if let Some(same) = by_length.get_mut(usize::from(prefix.prefix_len())) {
            same.push(*prefix);
        }
    }
    for length in (1..by_length.len()).rev() {
        let prefixes = by_length.get_mut(length).map(std::mem::take).unwrap_or_default();
        for prefix in prefixes {
            let Some(parent) = prefix.supernet() else { continue };
            let Some(sibling) = sibling(&prefix, &parent) else { continue };
            let (Some(&fail), Some(&other)) = (kinds.get(&prefix), kinds.get(&sibling)) else { continue };
            if fail != other {
                continue;
            }
            kinds.remove(&prefix);
            kinds.remove(&sibling);
            kinds.insert(parent, fail);
            if let Some(shorter) = by_length.get_mut(length - 1) {
                shorter.push(parent);
            }
        }
    }
}

fn sibling(prefix: &IpNet, parent: &IpNet) -> Option<IpNet> {
    parent.subnets(prefix.prefix_len()).ok()?.find(|half| half != prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Kinds = &'static [(&'static str, Fail)];

    fn table(prefixes: &[(&str, Fail)]) -> Vec<(String, Fail)> {
        let prefixes = prefixes.iter().map(|(net, fail)| (net.parse().unwrap(), *fail));
        aggregate(prefixes).into_iter().map(|c| (c.prefix.to_string(), c.fail)).collect()
    }

    #[test]
    fn aggregates_without_changing_any_address() {
        use Fail::{Closed, Direct};
        let cases: [(Kinds, Kinds); 6] = [
            (&[("10.0.0.0/25", Closed), ("10.0.0.128/25", Closed)], &[("10.0.0.0/24", Closed)]),
            (
                &[("10.0.0.0/25", Closed), ("10.0.0.128/25", Direct)],
                &[("10.0.0.0/25", Closed), ("10.0.0.128/25", Direct)],
            ),
            (&[("10.0.0.0/8", Closed), ("10.1.0.0/16", Closed)], &[("10.0.0.0/8", Closed)]),
            (
                &[("10.0.0.0/8", Closed), ("10.1.0.0/16", Direct), ("10.1.2.0/24", Closed)],
                &[("10.0.0.0/8", Closed), ("10.1.0.0/16", Direct), ("10.1.2.0/24", Closed)],
            ),
            (
                &[("fd00::/16", Direct), ("fd00::/17", Closed), ("fd00:8000::/17", Closed)],
                &[("fd00::/16", Closed)],
            ),
            (
                &[("10.0.0.0/26", Direct), ("10.0.0.64/26", Direct), ("10.0.0.128/25", Direct)],
                &[("10.0.0.0/24", Direct)],
            ),
        ];
        for (given, expected) in cases {
            let expected: Vec<_> = expected.iter().map(|(net, fail)| (net.to_string(), *fail)).collect();
            assert_eq!(table(given), expected);
        }
    }
}
