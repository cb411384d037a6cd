use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::rr::{Name, RecordType};
use tokio::sync::{OnceCell, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::answer::{self, Answer, Chain, Reading, Wanted};
use crate::cache::{Cache, Key};
use crate::counters::Counters;
use crate::failure::Failure;
use crate::resolver::Learn;
use crate::upstream::Upstream;

/// From the question to SERVFAIL.
const DEADLINE: Duration = Duration::from_secs(4);
const LEARNING: Duration = Duration::from_secs(2);
/// What is asked for and told nobody keeps nobody waiting for longer.
const WITHHELD: Duration = Duration::from_millis(500);
/// Each takes a socket or two.
const MAX_EXCHANGES: usize = 256;
/// Messages that one CNAME chain may take.
const MAX_MESSAGES: usize = 4;
const MAX_ENTRIES: usize = 4096;
const MAX_BYTES: usize = 4 << 20;
/// Told to applications, in seconds: they come back to us, and what they use is kept in the TUN.
const MAX_TOLD_TTL: u64 = 300;

pub type Asked = Box<dyn Fn(&str) -> bool + Send + Sync>;
type Outcome = Result<Arc<Answer>, Failure>;

/// Finds the addresses of the policy's names.
pub struct Finder {
    pub upstream: Upstream,
    pub asked: Asked,
    pub counters: Counters,
    ipv6: bool,
    learn: mpsc::Sender<Learn>,
    cache: Mutex<Cache>,
    /// What is being asked for now; whoever wants the same waits for the same.
    exchanges: Mutex<HashMap<Key, Arc<OnceCell<Outcome>>>>,
    slots: Semaphore,
}

impl Finder {
    pub fn new(upstream: Upstream, ipv6: bool, asked: Asked, learn: mpsc::Sender<Learn>) -> Self {
        Self {
            upstream,
            asked,
            counters: Counters::default(),
            ipv6,
            learn,
            cache: Mutex::new(Cache::new(MAX_ENTRIES, MAX_BYTES)),
            exchanges: Mutex::default(),
            slots: Semaphore::new(MAX_EXCHANGES),
        }
    }

    /// The answer and the TTL to tell, in seconds, when its addresses are in the TUN. `text` is the name as text.
    pub async fn find(
        &self,
        name: &Name,
        text: &str,
        query_type: RecordType,
    ) -> Result<(Arc<Answer>, u32), Failure> {
        self.counters.asked.add(1);
        let (answer, remaining) = self.look_up(name, text, query_type).await?;
        let ttl = remaining.as_secs().clamp(1, MAX_TOLD_TTL);
        self.have_learned(text, &answer, Duration::from_secs(ttl)).await?;
        Ok((answer, u32::try_from(ttl).unwrap_or(1)))
    }

    pub fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn look_up(
        &self,
        name: &Name,
        text: &str,
        query_type: RecordType,
    ) -> Result<(Arc<Answer>, Duration), Failure> {
        let wanted = Wanted { name, query_type, ipv6: self.ipv6, asked: &*self.asked };
        if let Some(answer) = wanted.at_once() {
            return Ok((Arc::new(answer), Duration::ZERO));
        }
        let key: Key = (text.into(), query_type);
        let cached = self.cache().get(&key, Instant::now());
        if let Some(found) = cached {
            self.counters.cached.add(1);
            return Ok(found);
        }
        let answer = self.exchange_once(&key, &wanted).await?;
        let ttl = answer.ttl;
        Ok((answer, ttl))
    }

    async fn exchange_once(&self, key: &Key, wanted: &Wanted<'_>) -> Outcome {
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

    async fn exchange(&self, key: &Key, wanted: &Wanted<'_>) -> Outcome {
        let _slot = self.slots.try_acquire().map_err(|_| Failure::Busy)?;
        let (answer, withheld) = tokio::join!(self.follow(wanted), self.withheld(wanted));
        let mut answer = answer?;
        if !withheld.is_empty() {
            Arc::make_mut(&mut answer).withheld = withheld;
        }
        self.cache().put(key.clone(), answer.clone(), Instant::now());
        Ok(answer)
    }

    /// The IPv6 addresses of who is asked for IPv4 ones, where the tunnel does not carry IPv6.
    async fn withheld(&self, wanted: &Wanted<'_>) -> Vec<IpAddr> {
        if self.ipv6 || wanted.query_type != RecordType::A {
            return Vec::new();
        }
        let wanted = Wanted { query_type: RecordType::AAAA, ipv6: true, ..*wanted };
        match timeout(WITHHELD, self.follow(&wanted)).await {
            Ok(Ok(answer)) => answer.addresses.clone(),
            _ => Vec::new(),
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
    async fn have_learned(&self, name: &str, answer: &Answer, ttl: Duration) -> Result<(), Failure> {
        let addresses: Vec<_> =
            answer.addresses.iter().chain(&answer.withheld).map(|address| (*address, ttl)).collect();
        if addresses.is_empty() {
            return Ok(());
        }
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
