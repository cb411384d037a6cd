//! The addresses that the policy's names were found to have, and how long each counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::Path,
    time::Duration,
};

use policy::{Learned, Snapshot};
use serde::{Deserialize, Serialize};

/// How long an address counts beyond its TTL. Applications keep what they resolved for longer than they may; an address that no longer
/// counts is reached directly.
pub const GRACE: Duration = Duration::from_secs(3600);
/// Each is a route and a rule's work for the kernel.
pub const MAX_ADDRESSES: usize = 4096;

/// What the policy's names were found to have. Times count from the machine's start (CLOCK_BOOTTIME): nobody sets that clock, and the next
/// start of the daemon has the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses(BTreeMap<IpAddr, Found>);

/// How an address came to be in a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The name that was asked for last.
    pub name: String,
    pub set: String,
    pub until: Duration,
}

#[derive(Debug, thiserror::Error)]
#[error("there are {MAX_ADDRESSES} learned addresses already")]
pub struct Full;

impl Addresses {
    /// Notes what `name` of `set` was found to have, each with its TTL. Whether one of them is new, or another set's than before.
    pub fn note(
        &mut self,
        (name, set): (&str, &str),
        addresses: impl IntoIterator<Item = (IpAddr, Duration)>,
        now: Duration,
    ) -> Result<bool, Full> {
        let mut is_new = false;
        for (address, ttl) in addresses {
            let until = now + ttl + GRACE;
            let is_full = self.0.len() >= MAX_ADDRESSES;
            match self.0.get_mut(&address) {
                Some(found) => {
                    is_new |= found.set != set;
                    let until = found.until.max(until);
                    *found = Found { name: name.to_owned(), set: set.to_owned(), until };
                }
                None if is_full => return Err(Full),
                None => {
                    is_new = true;
                    self.0.insert(address, Found { name: name.to_owned(), set: set.to_owned(), until });
                }
            }
        }
        Ok(is_new)
    }

    /// When [`Addresses::expire`] has something to do.
    pub fn next_end(&self) -> Option<Duration> {
        self.0.values().map(|found| found.until).min()
    }

    /// Forgets what has ended, unless a flow uses it. Whether something is gone.
    pub fn expire(&mut self, in_use: &BTreeSet<IpAddr>, now: Duration) -> bool {
        let before = self.0.len();
        for (address, found) in &mut self.0 {
            if found.until <= now && in_use.contains(address) {
                found.until = now + GRACE;
            }
        }
        self.0.retain(|_, found| found.until > now);
        self.0.len() < before
    }

    /// As a policy judges them now: by the sets that its domains are in. A gateway's address is none of them: the tunnel would run
    /// inside itself.
    pub fn under(&self, policy: &Snapshot, gateways: &[IpAddr]) -> Self {
        let free = self.0.iter().filter(|(address, _)| !gateways.contains(address));
        let judged = free.filter_map(|(address, found)| {
            let (_, set) = policy.set_for_name(&found.name)?;
            Some((*address, Found { set: set.to_owned(), ..found.clone() }))
        });
        Self(judged.collect())
    }

    pub fn learned(&self) -> Vec<Learned> {
        self.0.iter().map(|(address, found)| Learned { address: *address, set: found.set.clone() }).collect()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&IpAddr, &Found)> {
        self.0.iter()
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
        addresses.values_mut().for_each(|found| found.until = found.until.max(now() + GRACE));
        Ok(Self(addresses))
    }

    /// In one step: a crash leaves the old file or the new one.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        let new = file.with_extension("new");
        let kept = Kept { boot: boot()?, addresses: self.0.clone() };
        fs::write(&new, serde_json::to_vec(&kept)?)?;
        fs::rename(new, file)
    }
}

#[derive(Serialize, Deserialize)]
struct Kept {
    /// The machine's run.
    boot: String,
    addresses: BTreeMap<IpAddr, Found>,
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

    #[test]
    fn an_address_counts_for_its_ttl_and_a_grace_and_as_long_as_it_is_used() {
        let begin = Duration::from_secs(1000);
        let mut addresses = Addresses::default();
        assert!(addresses.note(NAME, [(address(1), TTL), (address(2), TTL)], begin).unwrap());
        assert!(!addresses.note(NAME, [(address(2), 2 * TTL)], begin).unwrap(), "prolonged, not new");
        assert!(!addresses.note(NAME, [(address(2), TTL)], begin).unwrap(), "never shortened");
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
    fn another_sets_name_at_the_same_address_is_news() {
        let now = now();
        let mut addresses = Addresses::default();
        addresses.note(NAME, [(address(1), TTL)], now).unwrap();
        assert!(addresses.note(("phones.example.net", "phones"), [(address(1), TTL)], now).unwrap());
        assert_eq!(
            addresses.learned(),
            [Learned { address: address(1), set: "phones".to_owned() }],
            "the last one asked for has it"
        );
    }

    #[test]
    fn there_is_an_end_to_them() {
        let now = now();
        let mut addresses = Addresses::default();
        addresses.note(NAME, (0..MAX_ADDRESSES as u16).map(|last| (address(last), TTL)), now).unwrap();
        assert!(addresses.note(NAME, [(address(9999), TTL)], now).is_err());
        assert!(!addresses.note(NAME, [(address(7), TTL)], now).unwrap(), "those that are there go on");
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
