//! The addresses that the policy's names were found to have, and how long each counts.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs::{self, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};

use policy::{Learned, Snapshot};
use routes::crash_point;
use serde::{Deserialize, Serialize};

use super::{clock, grace::grace};

/// Each is a route and a rule's work for the kernel.
pub const MAX_ADDRESSES: usize = 4096;

/// The names that are known of one address.
const MAX_NAMES: usize = 16;
/// Forgotten together where there is no room: each time costs as much as there are addresses.
const AT_ONCE: usize = 64;
/// How long one counts, however much it is used, that only the network's own DNS servers had for a name: they may lie, and keep a stranger's
/// traffic in the tunnel.
const DOUBTFUL: Duration = Duration::from_secs(24 * 3600);

/// What the policy's names were found to have. Times count from the machine's start, without those when it was suspended (CLOCK_MONOTONIC):
/// applications slept as well. Nobody sets that clock, and the next start of the daemon has the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses(BTreeMap<IpAddr, Vec<Found>>);

/// A name that has an address, and so how that came to be in a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    pub name: String,
    pub set: String,
    pub known: Known,
    /// The TTL's end.
    fresh: Duration,
    pub until: Duration,
}

/// Who knows that a name has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Known {
    /// Maybe who has asked the network's own DNS servers, which had it before names were led here.
    Before,
    /// Nobody from us: the tunnel does not carry it.
    Withheld,
    /// Applications: they were told.
    Told,
}

/// An address that a name is found to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    pub address: IpAddr,
    pub ttl: Duration,
    pub known: Known,
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
    #[error("there are {MAX_ADDRESSES} learned addresses already, all within their TTL or in use")]
    Addresses,
    #[error("{0} has names of {MAX_NAMES} sets already")]
    Names(IpAddr),
}

impl Addresses {
    /// Notes what `name` of `set` was found to have. What nobody is told of is left out where there is no room.
    pub fn note(
        &mut self,
        (name, set): (&str, &str),
        sightings: &[Sighting],
        now: Duration,
    ) -> Result<News, Full> {
        let mut news = News::Nothing;
        for Sighting { address, ttl, known } in sightings.iter().copied() {
            let is_full = self.0.len() >= MAX_ADDRESSES;
            let names = match self.0.entry(address) {
                Entry::Vacant(_) if is_full && known == Known::Told => return Err(Full::Addresses),
                Entry::Vacant(_) if is_full => continue,
                entry => entry.or_default(),
            };
            let (fresh, until) = (now + ttl, now + ttl + grace());
            if let Some(found) = names.iter_mut().find(|found| found.name == name && found.set == set) {
                found.known = found.known.max(known);
                found.fresh = found.fresh.max(fresh);
                found.until = found.until.max(until);
                continue;
            }
            let is_known = names.iter().any(|found| found.set == set);
            news = news.max(if is_known { News::Name } else { News::Address });
            names.push(Found { name: name.to_owned(), set: set.to_owned(), known, fresh, until });
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
        sightings: &[Sighting],
        now: Duration,
    ) -> Option<News> {
        if !sightings.iter().all(|sighting| self.holds(sighting.address, set)) {
            return None;
        }
        self.note((name, set), sightings, now).ok()
    }

    /// Whether an address is known, in this set.
    pub fn holds(&self, address: IpAddr, set: &str) -> bool {
        self.0.get(&address).is_some_and(|names| names.iter().any(|found| found.set == set))
    }

    /// How many of these there is no room for.
    pub fn lacks_room(&self, sightings: &[Sighting]) -> usize {
        let new = sightings.iter().map(|sighting| sighting.address).filter(|new| !self.0.contains_key(new));
        (self.0.len() + new.collect::<BTreeSet<_>>().len()).saturating_sub(MAX_ADDRESSES)
    }

    /// Makes room for so many, as far as that can be had: forgets what would be forgotten first of what is past its TTL, then of what nobody
    /// was told of, but nothing that is in use.
    pub fn make_room(&mut self, count: usize, in_use: &BTreeSet<IpAddr>, now: Duration) {
        if count == 0 {
            return;
        }
        let (mut past, mut untold) = (Vec::new(), Vec::new());
        for (address, names) in self.0.iter().filter(|(address, _)| !in_use.contains(address)) {
            let until = names.iter().map(|found| found.until).max();
            if names.iter().all(|found| found.fresh <= now) {
                past.push((until, *address));
            } else if names.iter().all(|found| found.known < Known::Told) {
                untold.push((until, *address));
            }
        }
        past.sort();
        untold.sort();
        past.truncate(count.max(AT_ONCE));
        untold.truncate(count.saturating_sub(past.len()));
        for (_, address) in past.iter().chain(&untold) {
            self.0.remove(address);
        }
    }

    /// When the first of them ends.
    pub fn next_end(&self) -> Option<Duration> {
        self.iter().map(|(_, found)| found.until).min()
    }

    /// Keeps what is in use for another grace, and forgets what has ended. Whether an address is gone from a set.
    pub fn expire(&mut self, in_use: &BTreeSet<IpAddr>, now: Duration) -> bool {
        let before = self.learned();
        for (address, names) in &mut self.0 {
            if in_use.contains(address) {
                names.iter_mut().for_each(|found| found.use_at(now));
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
        addresses.values_mut().flatten().for_each(|found: &mut Found| found.use_at(clock::awake()));
        Ok(Self(addresses))
    }

    /// In one step: a crash leaves the old file or the new one. Root alone may know which names were asked for.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        let new = file.with_extension("new");
        let kept = Kept { boot: boot()?, addresses: self.0.clone() };
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        crash_point::reached();
        options.open(&new)?.write_all(&serde_json::to_vec(&kept)?)?;
        crash_point::reached();
        fs::rename(new, file)
    }
}

impl Known {
    /// A stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::Withheld => "withheld",
            Self::Told => "told",
        }
    }
}

impl Found {
    fn use_at(&mut self, now: Duration) {
        let mut until = now + grace();
        if self.known == Known::Before {
            until = until.min(self.fresh + DOUBTFUL);
        }
        self.until = self.until.max(until);
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NAME: (&str, &str) = ("api.example.com", "genesys-signaling");
    const TTL: Duration = Duration::from_secs(60);

    fn address(last: u16) -> IpAddr {
        let [high, low] = last.to_be_bytes();
        IpAddr::from([198, 51, high, low])
    }

    fn told(addresses: impl IntoIterator<Item = u16>, ttl: Duration) -> Vec<Sighting> {
        seen(Known::Told, addresses, ttl)
    }

    fn seen(known: Known, addresses: impl IntoIterator<Item = u16>, ttl: Duration) -> Vec<Sighting> {
        addresses.into_iter().map(|last| Sighting { address: address(last), ttl, known }).collect()
    }

    fn learned(address: IpAddr, set: &str) -> Learned {
        Learned { address, set: set.to_owned() }
    }

    #[test]
    fn an_address_counts_for_its_ttl_and_a_grace_and_after_each_use() {
        let begin = Duration::from_secs(1000);
        let mut addresses = Addresses::default();
        assert_eq!(addresses.note(NAME, &told([1, 2], TTL), begin).unwrap(), News::Address);
        assert_eq!(addresses.note(NAME, &told([2], 2 * TTL), begin).unwrap(), News::Nothing, "prolonged");
        assert_eq!(addresses.note(NAME, &told([2], TTL), begin).unwrap(), News::Nothing, "never shortened");
        assert_eq!(addresses.next_end(), Some(begin + TTL + grace()));

        let used = BTreeSet::from([address(1)]);
        let midway = begin + TTL + grace() / 2;
        assert!(!addresses.expire(&used, midway));
        assert!(addresses.expire(&BTreeSet::new(), begin + 2 * TTL + grace()));
        let left: Vec<_> = addresses.iter().map(|(address, _)| *address).collect();
        assert_eq!(left, [address(1)], "it was used before");
        assert_eq!(addresses.next_end(), Some(midway + grace()));
        assert!(addresses.expire(&BTreeSet::new(), midway + grace()));
        assert_eq!(addresses.next_end(), None);
    }

    #[test]
    fn what_the_networks_servers_had_does_not_count_for_ever() {
        let begin = Duration::from_secs(1000);
        let mut addresses = Addresses::default();
        addresses.note(NAME, &seen(Known::Before, [1, 2], Duration::ZERO), begin).unwrap();
        addresses.note(NAME, &told([2], TTL), begin).unwrap();
        let used = BTreeSet::from([address(1), address(2)]);
        for hours in 1..24 {
            assert!(!addresses.expire(&used, begin + hours * Duration::from_secs(3600) - TTL), "{hours} h");
        }
        assert!(addresses.expire(&used, begin + DOUBTFUL));
        assert_eq!(addresses.learned(), [learned(address(2), NAME.1)], "the tunnel's servers have it too");
    }

    #[test]
    fn names_of_two_sets_at_one_address_have_it_both() {
        let begin = Duration::from_secs(1000);
        let phones = ("phones.example.net", "phones");
        let mut addresses = Addresses::default();
        addresses.note(NAME, &told([1], TTL), begin).unwrap();
        assert_eq!(addresses.note(phones, &told([1], 2 * TTL), begin).unwrap(), News::Address);
        let both = [learned(address(1), NAME.1), learned(address(1), phones.1)];
        for name in [NAME, phones, NAME] {
            assert_eq!(addresses.note(name, &told([1], TTL), begin).unwrap(), News::Nothing);
            assert_eq!(addresses.learned(), both);
        }
        assert_eq!(addresses.len(), 1);
        assert!(addresses.expire(&BTreeSet::new(), begin + TTL + grace()));
        assert_eq!(addresses.learned(), both[1..]);
    }

    #[test]
    fn what_is_known_in_its_set_alone_is_noted_in_place() {
        let begin = Duration::from_secs(1000);
        let mut addresses = Addresses::default();
        addresses.note(NAME, &told([1], TTL), begin).unwrap();
        let before = addresses.clone();
        let both = told([1, 2], 2 * TTL);
        assert_eq!(addresses.note_known(NAME, &both, begin), None, "one is new");
        assert_eq!(addresses.note_known(("a.example", "phones"), &both[..1], begin), None, "new in the set");
        assert_eq!(addresses, before);
        assert_eq!(addresses.note_known(NAME, &both[..1], begin), Some(News::Nothing));
        assert_eq!(addresses.next_end(), Some(begin + 2 * TTL + grace()));
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
            addresses.note((name, "genesys-signaling"), &told([1], TTL), clock::awake()).unwrap();
        }
        addresses.note(("b.two.example", "genesys-signaling"), &told([2], TTL), clock::awake()).unwrap();
        let under = addresses.under(&policy);
        assert_eq!(under.learned(), [learned(address(1), "genesys-signaling")]);
        assert_eq!(under.iter().count(), 1);
    }

    #[test]
    fn there_is_an_end_to_addresses() {
        let now = clock::awake();
        let mut addresses = Addresses::default();
        addresses.note(NAME, &told(0..MAX_ADDRESSES as u16, TTL), now).unwrap();
        let news = told([9999], TTL);
        assert_eq!(addresses.lacks_room(&news), 1);
        addresses.make_room(1, &BTreeSet::new(), now);
        assert!(addresses.note(NAME, &news, now).is_err(), "all are within their TTL");
        let known = addresses.note(NAME, &told([7], TTL), now).unwrap();
        assert_eq!(known, News::Nothing, "those that are there go on");
        addresses.note(NAME, &seen(Known::Withheld, [9999], TTL), now).unwrap();
        assert_eq!(addresses.len(), MAX_ADDRESSES, "what nobody is told of is no reason to withhold what is");
    }

    #[test]
    fn room_is_made_by_what_would_end_first_and_is_not_in_use() {
        let begin = Duration::from_secs(1000);
        let mut addresses = Addresses::default();
        let all = MAX_ADDRESSES as u16;
        addresses.note(NAME, &told(0..all - 2, TTL), begin).unwrap();
        addresses.note(NAME, &told([7], 2 * TTL), begin).unwrap();
        addresses.note(NAME, &told([all - 2, all - 1], 4 * TTL), begin).unwrap();
        let (used, now) = (BTreeSet::from([address(0)]), begin + 2 * TTL);
        addresses.make_room(1, &used, now);
        assert_eq!(addresses.len(), MAX_ADDRESSES - AT_ONCE);
        let left: BTreeSet<IpAddr> = addresses.iter().map(|(address, _)| *address).collect();
        let gone: Vec<IpAddr> = (0..all).map(address).filter(|address| !left.contains(address)).collect();
        let first: Vec<IpAddr> = (1..).filter(|last| *last != 7).map(address).take(AT_ONCE).collect();
        assert_eq!(gone, first);
        addresses.note(NAME, &told([9999], TTL), now).unwrap();

        addresses.make_room(MAX_ADDRESSES, &used, now);
        let left: Vec<IpAddr> = addresses.iter().map(|(address, _)| *address).collect();
        assert_eq!(left, [address(0), address(all - 2), address(all - 1), address(9999)]);
    }

    #[test]
    fn what_nobody_is_told_of_makes_room_for_what_applications_are() {
        let begin = Duration::from_secs(1000);
        let mut addresses = Addresses::default();
        addresses.note(NAME, &seen(Known::Withheld, 0..MAX_ADDRESSES as u16, TTL), begin).unwrap();
        let news = told([9998, 9999], TTL);
        addresses.make_room(addresses.lacks_room(&news), &BTreeSet::new(), begin);
        addresses.note(NAME, &news, begin).unwrap();
        assert_eq!(addresses.len(), MAX_ADDRESSES, "and no more than that");
    }

    #[test]
    fn there_is_an_end_to_names_but_no_set_loses_its_last() {
        let begin = Duration::from_secs(1000);
        let mut addresses = Addresses::default();
        addresses.note(("alone.example", "phones"), &told([1], Duration::ZERO), begin).unwrap();
        for number in 0..3 * MAX_NAMES {
            let name = format!("{number}.example");
            let ttl = TTL * u32::try_from(number).unwrap();
            let news = addresses.note((&name, NAME.1), &told([1], ttl), begin).unwrap();
            assert_eq!(news, if number == 0 { News::Address } else { News::Name });
        }
        let names: Vec<&str> = addresses.iter().map(|(_, found)| found.name.as_str()).collect();
        assert_eq!((names.len(), names[0]), (MAX_NAMES, "alone.example"));
        assert_eq!(names.last(), Some(&format!("{}.example", 3 * MAX_NAMES - 1).as_str()));

        let mut addresses = Addresses::default();
        for number in 0..MAX_NAMES {
            addresses.note(("one.example", &number.to_string()), &told([1], TTL), begin).unwrap();
        }
        assert!(addresses.note(("one.example", "another"), &told([1], TTL), begin).is_err());
    }

    #[test]
    fn they_are_kept_for_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("learned.json");
        assert_eq!(Addresses::read(&file).unwrap(), Addresses::default());
        let mut addresses = Addresses::default();
        let v6 = Sighting { address: "2001:db8::1".parse().unwrap(), ttl: TTL, known: Known::Withheld };
        addresses.note(NAME, &[told([1], TTL), vec![v6]].concat(), clock::awake()).unwrap();
        addresses.write(&file).unwrap();
        assert_eq!(Addresses::read(&file).unwrap(), addresses);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&file, b"{").unwrap();
        assert!(Addresses::read(&file).is_err());
    }
}
