//! The addresses that the policy's names were found to have, and how long each counts.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs, io,
    net::IpAddr,
    path::Path,
    time::Duration,
};

use policy::{Learned, Snapshot};
use routes::crash_point;
use serde::{Deserialize, Serialize};

/// How long an address counts beyond its TTL. Applications keep what they resolved for longer than they may; an address that no longer
/// counts is reached directly.
pub const GRACE: Duration = Duration::from_secs(3600);
/// Each is a route and a rule's work for the kernel.
pub const MAX_ADDRESSES: usize = 4096;

/// The names that are known of one address.
const MAX_NAMES: usize = 16;

/// What the policy's names were found to have. Times count from the machine's start (CLOCK_BOOTTIME): nobody sets that clock, and the next
/// start of the daemon has the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses(BTreeMap<IpAddr, Vec<Found>>);

/// A name that has an address, and so how that came to be in a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    pub name: String,
    pub set: String,
    pub until: Duration,
}

/// What is new about what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum News {
    /// At most that it counts for longer.
    Nothing,
    /// An address that is known has another name.
    Name,
    /// An address is new, or new in a set.
    Address,
}

#[derive(Debug, thiserror::Error)]
pub enum Full {
    #[error("there are {MAX_ADDRESSES} learned addresses already")]
    Addresses,
    #[error("{0} has names of {MAX_NAMES} sets already")]
    Names(IpAddr),
}

impl Addresses {
    /// Notes what `name` of `set` was found to have, each with its TTL.
    pub fn note(
        &mut self,
        (name, set): (&str, &str),
        addresses: impl IntoIterator<Item = (IpAddr, Duration)>,
        now: Duration,
    ) -> Result<News, Full> {
        let mut news = News::Nothing;
        for (address, ttl) in addresses {
            let is_full = self.0.len() >= MAX_ADDRESSES;
            let names = match self.0.entry(address) {
                Entry::Vacant(_) if is_full => return Err(Full::Addresses),
                entry => entry.or_default(),
            };
            let until = now + ttl + GRACE;
            if let Some(found) = names.iter_mut().find(|found| found.name == name && found.set == set) {
                found.until = found.until.max(until);
                continue;
            }
            let is_known = names.iter().any(|found| found.set == set);
            news = news.max(if is_known { News::Name } else { News::Address });
            names.push(Found { name: name.to_owned(), set: set.to_owned(), until });
            if names.len() > MAX_NAMES {
                names.remove(spare(names).ok_or(Full::Names(address))?);
            }
        }
        Ok(news)
    }

    /// The same where all of these are known in the set; else `None`, and nothing is noted.
    pub fn note_known(
        &mut self,
        (name, set): (&str, &str),
        addresses: &[(IpAddr, Duration)],
        now: Duration,
    ) -> Option<News> {
        let is_known = |address: &IpAddr| {
            self.0.get(address).is_some_and(|names| names.iter().any(|found| found.set == set))
        };
        if !addresses.iter().all(|(address, _)| is_known(address)) {
            return None;
        }
        self.note((name, set), addresses.iter().copied(), now).ok()
    }

    /// When [`Addresses::expire`] has something to do.
    pub fn next_end(&self) -> Option<Duration> {
        self.iter().map(|(_, found)| found.until).min()
    }

    /// Forgets what has ended, unless a flow uses it. Whether an address is gone from a set.
    pub fn expire(&mut self, in_use: &BTreeSet<IpAddr>, now: Duration) -> bool {
        let before = self.learned();
        for (address, names) in &mut self.0 {
            if in_use.contains(address) {
                names
                    .iter_mut()
                    .filter(|found| found.until <= now)
                    .for_each(|found| found.until = now + GRACE);
            }
            names.retain(|found| found.until > now);
        }
        self.0.retain(|_, names| !names.is_empty());
        self.learned() != before
    }

    /// As a policy judges them now: by the sets that its domains are in.
    pub fn under(&self, policy: &Snapshot) -> Self {
        let judged = |found: &Found| {
            let (_, set) = policy.set_for_name(&found.name)?;
            Some(Found { set: set.to_owned(), ..found.clone() })
        };
        let judged =
            self.0.iter().map(|(address, names)| (*address, names.iter().filter_map(judged).collect()));
        Self(judged.filter(|(_, names): &(_, Vec<Found>)| !names.is_empty()).collect())
    }

    /// Each address once for each of its sets.
    pub fn learned(&self) -> Vec<Learned> {
        let mut learned: Vec<Learned> = self
            .iter()
            .map(|(address, found)| Learned { address: *address, set: found.set.clone() })
            .collect();
        learned.sort_by(|one, other| (one.address, &one.set).cmp(&(other.address, &other.set)));
        learned.dedup();
        learned
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Each address once for each of its names.
    pub fn iter(&self) -> impl Iterator<Item = (&IpAddr, &Found)> {
        self.0.iter().flat_map(|(address, names)| names.iter().map(move |found| (address, found)))
    }

    /// What an earlier daemon of this run of the machine has kept: it counted when that ended, and does for a while.
    pub fn read(file: &Path) -> io::Result<Self> {
        let kept: Kept = match fs::read(file) {
            Ok(text) => serde_json::from_slice(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        if kept.boot != boot()? {
            return Ok(Self::default());
        }
        let mut addresses = kept.addresses;
        addresses
            .values_mut()
            .flatten()
            .for_each(|found: &mut Found| found.until = found.until.max(now() + GRACE));
        Ok(Self(addresses))
    }

    /// In one step: a crash leaves the old file or the new one.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        let new = file.with_extension("new");
        let kept = Kept { boot: boot()?, addresses: self.0.clone() };
        crash_point::reached();
        fs::write(&new, serde_json::to_vec(&kept)?)?;
        crash_point::reached();
        fs::rename(new, file)
    }
}

#[derive(Serialize, Deserialize)]
struct Kept {
    /// The machine's run.
    boot: String,
    addresses: BTreeMap<IpAddr, Vec<Found>>,
}

/// Which of the names but the last can be done without: of those whose set another one keeps, that which ends first.
fn spare(names: &[Found]) -> Option<usize> {
    let (_, older) = names.split_last()?;
    let is_kept =
        |at: usize, set: &str| names.iter().enumerate().any(|(other, found)| other != at && found.set == set);
    let spare = older.iter().enumerate().filter(|(at, found)| is_kept(*at, &found.set));
    spare.min_by_key(|(_, found)| found.until).map(|(at, _)| at)
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Time since the machine's start, sleep included.
pub fn now() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: (&str, &str) = ("api.example.com", "genesys-signaling");
    const TTL: Duration = Duration::from_secs(60);

    fn address(last: u16) -> IpAddr {
        let [high, low] = last.to_be_bytes();
        IpAddr::from([198, 51, high, low])
    }

    fn learned(address: IpAddr, set: &str) -> Learned {
        Learned { address, set: set.to_owned() }
    }

    #[test]
    fn an_address_counts_for_its_ttl_and_a_grace_and_as_long_as_it_is_used() {
        let begin = Duration::from_secs(1000);
        let mut addresses = Addresses::default();
        assert_eq!(
            addresses.note(NAME, [(address(1), TTL), (address(2), TTL)], begin).unwrap(),
            News::Address
        );
        assert_eq!(addresses.note(NAME, [(address(2), 2 * TTL)], begin).unwrap(), News::Nothing, "prolonged");
        assert_eq!(
            addresses.note(NAME, [(address(2), TTL)], begin).unwrap(),
            News::Nothing,
            "never shortened"
        );
        assert_eq!(addresses.next_end(), Some(begin + TTL + GRACE));

        let used = BTreeSet::from([address(1)]);
        assert!(!addresses.expire(&used, begin + TTL + GRACE));
        assert!(addresses.expire(&used, begin + 2 * TTL + GRACE));
        let left: Vec<_> = addresses.iter().map(|(address, _)| *address).collect();
        assert_eq!(left, [address(1)]);
        assert!(addresses.expire(&BTreeSet::new(), begin + TTL + 2 * GRACE));
        assert_eq!(addresses.next_end(), None);
    }

    #[test]
    fn names_of_two_sets_at_one_address_have_it_both() {
        let begin = Duration::from_secs(1000);
        let phones = ("phones.example.net", "phones");
        let mut addresses = Addresses::default();
        addresses.note(NAME, [(address(1), TTL)], begin).unwrap();
        assert_eq!(addresses.note(phones, [(address(1), 2 * TTL)], begin).unwrap(), News::Address);
        let both = [learned(address(1), NAME.1), learned(address(1), phones.1)];
        for name in [NAME, phones, NAME] {
            assert_eq!(addresses.note(name, [(address(1), TTL)], begin).unwrap(), News::Nothing);
            assert_eq!(addresses.learned(), both);
        }
        assert_eq!(addresses.len(), 1);
        assert!(addresses.expire(&BTreeSet::new(), begin + TTL + GRACE));
        assert_eq!(addresses.learned(), both[1..]);
    }

    #[test]
    fn what_is_known_in_its_set_alone_is_noted_in_place() {
        let begin = Duration::from_secs(1000);
        let mut addresses = Addresses::default();
        addresses.note(NAME, [(address(1), TTL)], begin).unwrap();
        let before = addresses.clone();
        let both = [(address(1), 2 * TTL), (address(2), TTL)];
        assert_eq!(addresses.note_known(NAME, &both, begin), None, "one is new");
        assert_eq!(addresses.note_known(("a.example", "phones"), &both[..1], begin), None, "new in the set");
        assert_eq!(addresses, before);
        assert_eq!(addresses.note_known(NAME, &both[..1], begin), Some(News::Nothing));
        assert_eq!(addresses.next_end(), Some(begin + 2 * TTL + GRACE));
        assert_eq!(addresses.note_known(("b.example", NAME.1), &both[..1], begin), Some(News::Name));
        assert_eq!(addresses.iter().count(), 2);
    }

    #[test]
    fn a_policy_without_one_of_an_addresss_names_goes_by_the_others() {
        let config = r#"
[interface]
address = "10.99.0.1/32"
[tunnel]
private_key_file = "agent.key"
peer_public_key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
endpoint = "198.18.0.2:51820"
dns = ["10.99.0.53"]
[sets.genesys-signaling]
domains = ["one.example"]
"#;
        let (config, _) = policy::Config::parse(config, "test").unwrap();
        let policy = Snapshot::compile(&config);
        let mut addresses = Addresses::default();
        for name in ["a.one.example", "a.two.example"] {
            addresses.note((name, "genesys-signaling"), [(address(1), TTL)], now()).unwrap();
        }
        addresses.note(("b.two.example", "genesys-signaling"), [(address(2), TTL)], now()).unwrap();
        let under = addresses.under(&policy);
        assert_eq!(under.learned(), [learned(address(1), "genesys-signaling")]);
        assert_eq!(under.iter().count(), 1);
    }

    #[test]
    fn there_is_an_end_to_addresses() {
        let now = now();
        let mut addresses = Addresses::default();
        addresses.note(NAME, (0..MAX_ADDRESSES as u16).map(|last| (address(last), TTL)), now).unwrap();
        assert!(addresses.note(NAME, [(address(9999), TTL)], now).is_err());
        let known = addresses.note(NAME, [(address(7), TTL)], now).unwrap();
        assert_eq!(known, News::Nothing, "those that are there go on");
    }

    #[test]
    fn there_is_an_end_to_names_but_no_set_loses_its_last() {
        let begin = Duration::from_secs(1000);
        let mut addresses = Addresses::default();
        addresses.note(("alone.example", "phones"), [(address(1), Duration::ZERO)], begin).unwrap();
        for number in 0..3 * MAX_NAMES {
            let name = format!("{number}.example");
            let ttl = TTL * u32::try_from(number).unwrap();
            let news = addresses.note((&name, NAME.1), [(address(1), ttl)], begin).unwrap();
            assert_eq!(news, if number == 0 { News::Address } else { News::Name });
        }
        let names: Vec<&str> = addresses.iter().map(|(_, found)| found.name.as_str()).collect();
        assert_eq!((names.len(), names[0]), (MAX_NAMES, "alone.example"));
        assert_eq!(names.last(), Some(&format!("{}.example", 3 * MAX_NAMES - 1).as_str()));

        let mut addresses = Addresses::default();
        for number in 0..MAX_NAMES {
            addresses.note(("one.example", &number.to_string()), [(address(1), TTL)], begin).unwrap();
        }
        assert!(addresses.note(("one.example", "another"), [(address(1), TTL)], begin).is_err());
    }

    #[test]
    fn they_are_kept_for_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("learned.json");
        assert_eq!(Addresses::read(&file).unwrap(), Addresses::default());
        let mut addresses = Addresses::default();
        addresses.note(NAME, [(address(1), TTL), ("2001:db8::1".parse().unwrap(), TTL)], now()).unwrap();
        addresses.write(&file).unwrap();
        assert_eq!(Addresses::read(&file).unwrap(), addresses);
        fs::write(&file, b"{").unwrap();
        assert!(Addresses::read(&file).is_err());
    }
}
