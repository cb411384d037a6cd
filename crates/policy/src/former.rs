//! Prefixes that a configuration no longer has, of sets that go by names now.

use ipnet::IpNet;

use crate::Config;

/// A prefix that a set had before a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Former {
    pub set: String,
    pub prefix: IpNet,
}

impl Config {
    /// What the sets had in `was` that have names now which they had not: applications may still use addresses from before.
    pub fn former(&self, was: &Self) -> Vec<Former> {
        let mut former = Vec::new();
        for set in &self.policy.sets {
            let Some(before) = was.policy.sets.iter().find(|before| before.name == set.name) else {
                continue;
            };
            if set.domains.iter().any(|domain| !before.domains.contains(domain)) {
                let of_set = |prefix: &IpNet| Former { set: set.name.clone(), prefix: *prefix };
                former.extend(before.prefixes.iter().map(of_set));
            }
        }
        former
    }

    /// This configuration with these prefixes in their sets, and which of them it has: not what a prefix of its own holds, and not what has
    /// no set any more.
    pub fn with_former(&self, former: &[Former]) -> (Self, Vec<Former>) {
        let mut config = self.clone();
        let mut taken = Vec::new();
        let own: Vec<IpNet> = self.policy.sets.iter().flat_map(|set| set.prefixes.iter().copied()).collect();
        for former in former {
            if own.iter().any(|own| own.contains(&former.prefix)) || taken.contains(former) {
                continue;
            }
            if let Some(set) = config.policy.sets.iter_mut().find(|set| set.name == former.set) {
                set.prefixes.push(former.prefix);
                taken.push(former.clone());
            }
        }
        (config, taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Facts, Snapshot};

    fn config(sets: &str) -> Config {
        let text = format!(
            "[interface]\naddress = \"10.99.0.1/32\"\n[tunnel]\nprivate_key_file = \"agent.key\"\n\
             peer_public_key = \"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\"\nendpoint = \"198.18.0.2:51820\"\n\
             dns = [\"10.99.0.53\"]\n{sets}"
        );
        Config::parse(&text, "test").unwrap().0
    }

    #[test]
    fn a_set_that_goes_by_names_now_can_keep_what_no_other_set_has() {
        let was = config(
            "[sets.genesys-signaling]\ncidrs = [\"203.0.113.0/25\", \"198.51.100.0/25\", \"192.0.2.0/24\"]\n\
             [sets.other]\ncidrs = [\"198.51.100.128/25\"]\n\
             [[rules]]\nname = \"web\"\nto = [\"genesys-signaling\", \"other\"]\npath = \"tunnel\"\n",
        );
        let is = config(
            "[sets.genesys-signaling]\ncidrs = [\"203.0.113.0/24\"]\ndomains = [\"a.example\"]\n\
             [sets.other]\ncidrs = [\"192.0.2.128/25\"]\n\
             [[rules]]\nname = \"web\"\nto = [\"genesys-signaling\", \"other\"]\npath = \"tunnel\"\n",
        );
        let former = is.former(&was);
        assert!(
            former.len() >= 3 && former.iter().all(|former| former.set == "genesys-signaling"),
            "{former:?}"
        );
        let (with, taken) = is.with_former(&former);
        let taken: Vec<String> = taken.iter().map(|former| former.prefix.to_string()).collect();
        assert_eq!(taken, ["198.51.100.0/25", "192.0.2.0/24"]);
        let (plain, with) = (Snapshot::compile(&is), Snapshot::compile(&with));
        for (to, before, now) in [
            ("198.51.100.7:443", None, Some("genesys-signaling")),
            ("198.51.100.200:443", None, None),
            ("192.0.2.7:443", None, Some("genesys-signaling")),
            ("192.0.2.200:443", Some("other"), Some("other")),
            ("203.0.113.7:443", Some("genesys-signaling"), Some("genesys-signaling")),
        ] {
            let facts = Facts::tcp(to.parse().unwrap());
            assert_eq!(plain.set_of(facts.destination).map(|(set, _)| set), before, "{to}");
            assert_eq!(with.set_of(facts.destination).map(|(set, _)| set), now, "{to}");
            assert_eq!(with.is_routed(&facts), now.is_some(), "{to}");
        }
        assert_eq!(is.former(&is), []);
        assert_eq!(was.former(&is), [], "without new names what is gone is gone");
    }
}
