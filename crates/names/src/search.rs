use std::collections::HashSet;
use std::fs;
use std::sync::{PoisonError, RwLock};

use hickory_proto::rr::Name;

use crate::name;

const HOST_NAME: &str = "/proc/sys/kernel/hostname";
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
        if known.union(&domains).count() > MAX_DOMAINS {
            known.clear();
        }
        known.extend(domains);
    }

    /// Whether a name is what is made of one of `those`.
    pub fn completes(&self, name: &str, those: impl Fn(&str) -> bool) -> bool {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        name.match_indices('.').any(|(dot, _)| {
            let (before, after) = (name.get(..dot), name.get(dot + 1..));
            before.is_some_and(&those)
                && after.is_some_and(|domain| known.contains(domain) || is_hosts(domain))
        })
    }
}

/// Whether it is the domain of this machine's name, which the C library takes where no list is given, as it is when a program begins.
fn is_hosts(domain: &str) -> bool {
    let host = fs::read_to_string(HOST_NAME).unwrap_or_default();
    let hosts = host.trim().split_once('.').and_then(|(_, domain)| text(domain));
    hosts.is_some_and(|hosts| hosts == domain)
}

/// As names are told apart; `None` for the root, and for what is no domain.
fn text(domain: &str) -> Option<String> {
    let name = Name::from_ascii(domain).ok()?;
    (!name.is_root()).then(|| name::text(&name))
}
