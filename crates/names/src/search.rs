use std::collections::HashSet;
use std::sync::{PoisonError, RwLock};

use hickory_proto::rr::Name;

use crate::name;

/// Of all lists together: those from before are forgotten first.
const MAX_DOMAINS: usize = 1024;

/// The domains that stub resolvers put after a name which had no answer (resolv.conf(5), `search`). Whoever gives them,
/// which a network may, has the completed name, and would answer for the policy's with it (RFC 1535).
#[derive(Debug, Default)]
pub struct SearchList(RwLock<HashSet<String>>);

impl SearchList {
    /// Adds a list that is in force now. Programs keep the one from before for a while, so that counts on.
    pub fn add(&self, domains: &[String]) {
        let domains: HashSet<String> = domains.iter().filter_map(|domain| text(domain)).collect();
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() + domains.len() > MAX_DOMAINS {
            known.clear();
        }
        known.extend(domains);
    }

    /// Whether a name is what is made of one of `those`.
    pub fn completes(&self, name: &str, those: impl Fn(&str) -> bool) -> bool {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        name.match_indices('.').any(|(dot, _)| {
            let (before, after) = (name.get(..dot), name.get(dot + 1..));
            after.is_some_and(|domain| known.contains(domain)) && before.is_some_and(&those)
        })
    }
}

/// As names are told apart; `None` for the root, and for what is no domain.
fn text(domain: &str) -> Option<String> {
    let name = Name::from_ascii(domain).ok()?;
    (!name.is_root()).then(|| name::text(&name))
}
