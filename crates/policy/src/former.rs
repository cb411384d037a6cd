//! Prefixes that a configuration no longer has, of sets that go by names now.

use ipnet::IpNet;

use crate::{Config, Path, config::Set, rule::Rule};

/// A prefix from before a reload, and the set that it is in since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Former {
    pub set: String,
    pub prefix: IpNet,
}

impl Config {
    /// What there was in `was` where names are now that were not: applications may still use addresses from before. That is what a set had
    /// that has more names, and what one had that is gone and was for the tunnel alone: the names of another took its place.
    pub fn former(&self, was: &Self) -> Vec<Former> {
        let before = |name: &str| was.policy.sets.iter().find(|before| before.name == name);
        let has_more_names = |set: &&Set| {
            let known = before(&set.name).map_or(&[][..], |before| &before.domains);
            set.domains.iter().any(|domain| !known.contains(domain))
        };
        let own = self.policy.sets.iter().filter(has_more_names);
        let own = own.filter_map(|set| Some((set, before(&set.name)?)));

        let is_gone = |old: &&Set| self.policy.sets.iter().all(|set| set.name != old.name);
        let heir = self.policy.sets.iter().filter(has_more_names).find(|set| self.is_tunneled(set));
        let gone = was.policy.sets.iter().filter(is_gone).filter(|old| was.is_tunneled(old));
        let inherited = gone.filter_map(|old| Some((heir?, old)));

        let of = |(set, old): (&Set, &Set)| -> Vec<Former> {
            old.prefixes.iter().map(|prefix| Former { set: set.name.clone(), prefix: *prefix }).collect()
        };
        own.chain(inherited).flat_map(of).collect()
    }

    /// Whether there are rules for it, and by none of them anything of it leaves directly.
    fn is_tunneled(&self, set: &Set) -> bool {
        let is_for = |rule: &&Rule| {
            rule.to.iter().any(|at| self.policy.sets.get(*at).is_some_and(|other| other.name == set.name))
        };
        let mut rules = self.policy.rules.iter().filter(is_for).peekable();
        rules.peek().is_some() && rules.all(|rule| rule.path != Path::Bypass)
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

    #[test]
    fn what_a_set_had_that_is_gone_goes_to_the_one_whose_names_took_its_place() {
        let was = config(
            "[sets.my-signaling]\ncidrs = [\"203.0.113.0/24\"]\n\
             [sets.my-media]\ncidrs = [\"198.51.100.0/25\"]\n\
             [sets.unused]\ncidrs = [\"198.51.100.128/25\"]\n\
             [[rules]]\nname = \"signaling\"\nto = \"my-signaling\"\npath = \"tunnel\"\n\
             [[rules]]\nname = \"media\"\nto = \"my-media\"\nprotocol = \"udp\"\npath = \"bypass\"\n",
        );
        let is = config("[genesys]\nregion = \"us-west-2\"\n");
        let former = is.former(&was);
        let [Former { set, prefix }] = former.as_slice() else { panic!("{former:?}") };
        assert_eq!((set.as_str(), prefix.to_string().as_str()), ("genesys-signaling", "203.0.113.0/24"));
        let (with, taken) = is.with_former(&former);
        assert_eq!(taken, former);
        let facts = Facts::tcp("203.0.113.7:443".parse().unwrap());
        assert!(!Snapshot::compile(&is).is_routed(&facts) && Snapshot::compile(&with).is_routed(&facts));

        let without_names = config("[sets.genesys-signaling]\ncidrs = [\"192.0.2.0/24\"]\n");
        assert_eq!(without_names.former(&was), [], "without new names what is gone is gone");
    }
}
