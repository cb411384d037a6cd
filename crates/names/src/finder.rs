use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::rr::{Name, RecordType};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::{OnceCell, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::answer::{self, Answer, Chain, Reading, Wanted};
use crate::cache::{Cache, Key};
use crate::counters::Counters;
use crate::failure::Failure;
use crate::name;
use crate::policy::Policy;
use crate::resolver::Learn;
use crate::upstream::Upstream;

/// From the question to SERVFAIL.
const DEADLINE: Duration = Duration::from_secs(4);
const LEARNING: Duration = Duration::from_secs(2);
/// What is asked for and told nobody keeps nobody waiting for longer.
const WITHHELD: Duration = Duration::from_millis(500);
/// What goes without them is kept for no longer: then they are asked for again.
const KEPT_WITHOUT: Duration = Duration::from_secs(5);
/// Each takes a socket or two.
const MAX_EXCHANGES: usize = 256;
/// Messages that one CNAME chain may take.
const MAX_MESSAGES: usize = 4;
const MAX_ENTRIES: usize = 4096;
const MAX_BYTES: usize = 4 << 20;
/// Told to applications, in seconds: they come back to us, and what they use is kept in the TUN.
const MAX_TOLD_TTL: u64 = 300;

type Outcome = Result<Arc<Answer>, Failure>;

/// Finds the addresses of the policy's names.
pub struct Finder {
    pub upstream: Upstream,
    pub policy: Arc<dyn Policy>,
    pub counters: Counters,
    ipv6: bool,
    learn: mpsc::Sender<Learn>,
    cache: Mutex<Cache>,
    /// What is being asked for now; whoever wants the same waits for the same.
    exchanges: Mutex<HashMap<Key, Arc<OnceCell<Outcome>>>>,
    slots: Semaphore,
    withheld_slots: Semaphore,
}

impl Finder {
    pub fn new(upstream: Upstream, ipv6: bool, policy: Arc<dyn Policy>, learn: mpsc::Sender<Learn>) -> Self {
        Self {
            upstream,
            policy,
            counters: Counters::default(),
            ipv6,
            learn,
            cache: Mutex::new(Cache::new(MAX_ENTRIES, MAX_BYTES)),
            exchanges: Mutex::default(),
            slots: Semaphore::new(MAX_EXCHANGES),
            withheld_slots: Semaphore::new(MAX_EXCHANGES),
        }
    }

    /// The answer and the TTL to tell, in seconds, when its addresses are in the TUN. `text` is the name as text.
    pub async fn find(
        self: &Arc<Self>,
        name: &Name,
        text: &str,
        query_type: RecordType,
    ) -> Result<(Arc<Answer>, u32), Failure> {
        self.counters.asked.add(1);
        let (answer, remaining) = self.look_up(name, text, query_type).await?;
        let ttl = told(remaining);
        let all = [answer.addresses.as_slice(), &answer.withheld].concat();
        self.have_learned(text, &all, ttl).await?;
        Ok((answer, u32::try_from(ttl.as_secs()).unwrap_or(1)))
    }

    pub fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn look_up(
        self: &Arc<Self>,
        name: &Name,
        text: &str,
        query_type: RecordType,
    ) -> Result<(Arc<Answer>, Duration), Failure> {
        let wanted = Wanted { name, query_type, ipv6: self.ipv6, policy: &*self.policy };
        if let Some(answer) = wanted.at_once() {
            return Ok((Arc::new(answer), Duration::ZERO));
        }
        let key: Key = (text.into(), query_type);
        let cached = self.cache().get(&key, now());
        if let Some(found) = cached {
            self.counters.cached.add(1);
            return Ok(found);
        }
        let answer = self.exchange_once(&key, &wanted).await?;
        let ttl = answer.ttl;
        Ok((answer, ttl))
    }

    async fn exchange_once(self: &Arc<Self>, key: &Key, wanted: &Wanted<'_>) -> Outcome {
        let cell = match self.exchanges().entry(key.clone()) {
            Entry::Occupied(entry) => entry.get().clone(),
            Entry::Vacant(entry) => entry.insert(Arc::default()).clone(),
        };
        let outcome = cell.get_or_init(|| self.exchange(key, wanted)).await.clone();
        let mut exchanges = self.exchanges();
        if exchanges.get(key).is_some_and(|current| Arc::ptr_eq(current, &cell)) {
            exchanges.remove(key);
        }
        outcome
    }

    fn exchanges(&self) -> MutexGuard<'_, HashMap<Key, Arc<OnceCell<Outcome>>>> {
        self.exchanges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn exchange(self: &Arc<Self>, key: &Key, wanted: &Wanted<'_>) -> Outcome {
        let _slot = self.slots.try_acquire().map_err(|_| Failure::Busy)?;
        let (answer, withheld) = tokio::join!(self.follow(wanted), self.withheld(wanted));
        let mut answer = match (answer, &withheld) {
            (Ok(answer), _) => answer,
            (Err(failure), None) => return Err(failure),
            (Err(failure), Some(withheld)) => {
                // That there is nothing to tell makes them no less reachable. They are asked for again with the next question.
                drop(self.have_learned(&key.0, withheld, KEPT_WITHOUT).await);
                return Err(failure);
            }
        };
        match withheld {
            Some(withheld) if withheld.is_empty() => {}
            Some(withheld) => Arc::make_mut(&mut answer).withheld = withheld,
            None => {
                let answer = Arc::make_mut(&mut answer);
                (answer.lacks_withheld, answer.ttl) = (true, answer.ttl.min(KEPT_WITHOUT));
            }
        }
        self.cache().put(key.clone(), answer.clone(), now());
        Ok(answer)
    }

    /// The IPv6 addresses of who is asked for IPv4 ones, where the tunnel does not carry IPv6. `None`: they are not known yet, and
    /// learned as soon as they are.
    async fn withheld(self: &Arc<Self>, wanted: &Wanted<'_>) -> Option<Vec<IpAddr>> {
        if self.ipv6 || wanted.query_type != RecordType::A {
            return Some(Vec::new());
        }
        let (tell, told) = oneshot::channel();
        tokio::spawn(self.clone().find_withheld(wanted.name.clone(), tell));
        timeout(WITHHELD, told).await.ok()?.ok()
    }

    /// Has them learned if nobody waits any more. Ends after [`DEADLINE`] and [`LEARNING`].
    async fn find_withheld(self: Arc<Self>, name: Name, tell: oneshot::Sender<Vec<IpAddr>>) {
        let Ok(_slot) = self.withheld_slots.try_acquire() else { return };
        let wanted = Wanted { name: &name, query_type: RecordType::AAAA, ipv6: true, policy: &*self.policy };
        let (addresses, ttl) = match self.follow(&wanted).await {
            Ok(answer) => (answer.addresses.clone(), answer.ttl),
            Err(Failure::Blocked(_)) => (Vec::new(), Duration::ZERO),
            Err(_) => return,
        };
        if let Err(addresses) = tell.send(addresses)
            && let Err(failure) = self.have_learned(&name::text(&name), &addresses, told(ttl)).await
        {
            tracing::debug!(%name, %failure, "IPv6 addresses were not learned");
        }
    }

    async fn follow(&self, wanted: &Wanted<'_>) -> Outcome {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        let mut chain = Chain::new(wanted.name);
        for _ in 0..MAX_MESSAGES {
            self.counters.exchanges.add(1);
            let name = chain.current().clone();
            let message = self.upstream.ask(&name, wanted.query_type, deadline, &self.counters).await?;
            let reading = answer::read(&message, wanted, &mut chain);
            if let Ok(Reading::Complete(_, blocked)) | Err(Failure::Blocked(blocked)) = &reading {
                self.counters.blocked.add(*blocked as u64);
            }
            if let Reading::Complete(answer, _) = reading? {
                return Ok(answer);
            }
        }
        Err(Failure::Chain)
    }

    /// Not before the daemon has said that the addresses are in the TUN may anyone be told them.
    async fn have_learned(&self, name: &str, addresses: &[IpAddr], ttl: Duration) -> Result<(), Failure> {
        if addresses.is_empty() {
            return Ok(());
        }
        let addresses = addresses.iter().map(|address| (*address, ttl)).collect();
        let (done, learned) = oneshot::channel();
        let learn = Learn { name: name.to_owned(), addresses, done };
        let learning = async {
            self.learn.send(learn).await.ok()?;
            learned.await.ok()
        };
        match timeout(LEARNING, learning).await {
            Ok(Some(true)) => Ok(()),
            _ => Err(Failure::NotLearned),
        }
    }
}

/// The TTL that applications are told, in whole seconds.
fn told(remaining: Duration) -> Duration {
    Duration::from_secs(remaining.as_secs().clamp(1, MAX_TOLD_TTL))
}

/// Since the machine's start, sleep included.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Into::into)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const ASLEEP: &str = "100000000";

    /// A time namespace whose time since boot is later is as a machine that has slept: no other clock has counted that.
    #[test]
    fn what_is_kept_gets_older_while_the_machine_sleeps() {
        let asleep = Duration::from_secs(ASLEEP.parse().unwrap());
        if std::env::var_os("ASLEEP").is_some() {
            assert!(now() >= asleep);
            return;
        }
        let later = |program: &str| {
            let mut command = Command::new("unshare");
            command.args(["--time", "--boottime", ASLEEP, program]);
            command
        };
        if !later("true").status().is_ok_and(|status| status.success()) {
            assert!(std::env::var_os("BREAKOUT_REQUIRE_ALL").is_none(), "no time namespaces");
            return eprintln!("skipped, because time namespaces need root and unshare (util-linux)");
        }
        assert!(now() < asleep);
        let own = std::env::current_exe().unwrap();
        let mut again = later(own.to_str().unwrap());
        let test = "finder::tests::what_is_kept_gets_older_while_the_machine_sleeps";
        let output = again.args(["--exact", test]).env("ASLEEP", "").output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && told.contains("1 passed"), "{told}");
    }
}
