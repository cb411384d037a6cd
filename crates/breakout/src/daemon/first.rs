//! Names that are asked for in advance: applications may have their addresses from before they were led here, and ask nobody any more.

use std::{net::IpAddr, sync::Arc, time::Duration};

use ::names::{Handle, is_public};
use policy::Snapshot;
use tokio::{
    net::lookup_host,
    sync::Notify,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use super::load::Loaded;

/// What a Genesys client asks for first, below each of signaling's domains.
const HOSTS: [&str; 4] = ["api", "apps", "login", "streaming"];
/// Names that are asked for at the same time.
const AT_ONCE: usize = 16;
/// For the network's DNS servers: a start waits for them.
const LIMIT: Duration = Duration::from_secs(2);
/// Addresses that are taken from them, of one name and in all.
const MAX_OF_NAME: usize = 32;
const MAX_BEFORE: usize = 1024;
/// Between attempts at names that the tunnel's servers did not answer: twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// What the network's own DNS servers have for names: each with its addresses.
pub type Before = Vec<(String, Vec<IpAddr>)>;

/// Each domain, and the usual hosts below it.
pub fn names(snapshot: &Snapshot) -> Vec<String> {
    let below = |domain: &str| HOSTS.map(|host| format!("{host}.{domain}"));
    snapshot.domains().flat_map(|(domain, _)| below(domain).into_iter().chain([domain.to_owned()])).collect()
}

/// Asks for names that `known` does not lead here, as applications have asked: by the C library, at the network's own DNS servers. These may
/// lie, as a captive portal's do, which have its address for all names: it must be reached, and what they also have for a name that is none
/// of the policy's is left out. After a crash names lead to a resolver that is gone, and nobody answers. Takes 2 s at most.
pub fn ask_before(loaded: &Loaded, known: Option<&Snapshot>) -> impl Future<Output = Before> + use<> {
    let is_new = |name: &String| known.is_none_or(|known| known.set_for_name(name).is_none());
    let mut names: Vec<String> = names(&loaded.snapshot).into_iter().filter(is_new).collect();
    if loaded.config.tunnel.dns.is_empty() {
        names.clear();
    }
    let portal_check = loaded.config.network.portal_check.as_ref();
    let stranger = portal_check.and_then(|check| check.endpoint.host()).filter(|_| !names.is_empty());
    async move {
        let mut found = ask_all(stranger.iter().cloned().chain(names)).await;
        let strangers = found.iter().position(|(name, _)| stranger.as_ref() == Some(name));
        let strangers = strangers.map_or_else(Vec::new, |at| found.swap_remove(at).1);
        let mut room = MAX_BEFORE;
        for (_, addresses) in &mut found {
            addresses.retain(|address| is_public(*address) && !strangers.contains(address));
            addresses.truncate(MAX_OF_NAME.min(room));
            room -= addresses.len();
        }
        found
    }
}

/// Those that were answered in time.
async fn ask_all(mut names: impl Iterator<Item = String>) -> Before {
    let deadline = Instant::now() + LIMIT;
    let (mut asking, mut found) = (JoinSet::new(), Vec::new());
    loop {
        while asking.len() < AT_ONCE
            && let Some(name) = names.next()
        {
            asking.spawn(async move {
                let addresses = lookup_host((name.as_str(), 0)).await.ok()?.map(|found| found.ip()).collect();
                Some((name, addresses))
            });
        }
        match timeout_at(deadline, asking.join_next()).await {
            Ok(Some(answer)) => found.extend(answer.ok().flatten()),
            Ok(None) => return found,
            Err(_) => {
                tracing::warn!(
                    "the network's DNS servers are slow: what applications have from before `up` may not be known"
                );
                return found;
            }
        }
    }
}

/// Asks for names through the tunnel until each has an answer, and anew as soon as a gateway is `up`.
pub async fn resolve(resolver: Handle, mut names: Vec<String>, up: Arc<Notify>) {
    let mut pause = FIRST_PAUSE;
    loop {
        names = resolve_all(&resolver, names).await;
        if names.is_empty() {
            return;
        }
        pause = match timeout(pause, up.notified()).await {
            Ok(()) => FIRST_PAUSE,
            Err(_) => LAST_PAUSE.min(2 * pause),
        };
    }
}

/// Those that failed.
async fn resolve_all(resolver: &Handle, names: Vec<String>) -> Vec<String> {
    let mut names = names.into_iter();
    let mut asking = JoinSet::new();
    let mut failed = Vec::new();
    loop {
        while asking.len() < AT_ONCE
            && let Some(name) = names.next()
        {
            let resolver = resolver.clone();
            asking.spawn(async move { resolver.resolve(&name).await.map_err(|failure| (name, failure)) });
        }
        match asking.join_next().await {
            None => return failed,
            Some(Ok(Err((name, failure)))) => {
                tracing::debug!(name, %failure, "not resolved in advance");
                failed.push(name);
            }
            Some(_) => {}
        }
    }
}
