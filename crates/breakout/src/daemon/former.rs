//! What a reload from prefixes to names keeps for a while: applications go on using addresses that they have from before, and what is
//! in no set would leave directly.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use policy::{Config, Former, Snapshot};
use tokio::time::Instant;

use super::{grace::grace, load::Loaded, looks, machine::wanted, start::Running};
use crate::failure::{Failure, Problem};

/// A prefix that the policy in force has beside its configuration.
#[derive(Clone)]
pub struct Kept {
    pub former: Former,
    /// Longer if a flow uses it then.
    pub until: Instant,
}

/// Has the new policy hold what it is to keep beside its configuration.
pub fn keep(running: &Running, new: &mut Loaded) -> Vec<Kept> {
    let until = Instant::now() + grace();
    let left = new.config.former(&running.loaded.config);
    let mut former = running.former.clone();
    former.extend(left.into_iter().map(|former| Kept { former, until }));
    let (config, kept) = with(&new.config, former);
    if !kept.is_empty() {
        new.snapshot = Arc::new(Snapshot::compile(&config));
    }
    kept
}

/// A configuration that has these too, and which of them it did not have before.
fn with(config: &Config, former: Vec<Kept>) -> (Config, Vec<Kept>) {
    let prefixes: Vec<Former> = former.iter().map(|kept| kept.former.clone()).collect();
    let (config, taken) = config.with_former(&prefixes);
    let of = |taken: &Former| former.iter().find(|kept| kept.former == *taken).cloned();
    let kept = taken.iter().filter_map(of).collect();
    (config, kept)
}

/// A line for people, if there is something to tell.
pub fn told(kept: &[Kept]) -> Option<String> {
    let prefixes: Vec<String> =
        kept.iter().map(|Kept { former, .. }| format!("{} ({})", former.prefix, former.set)).collect();
    (!kept.is_empty()).then(|| {
        format!(
            "{} stays in the tunnel for an hour from when it left the configuration, and as long as it is used: applications may have addresses from before",
            prefixes.join(", ")
        )
    })
}

/// From here on the policy in force has this beside its configuration.
pub fn begin(running: &mut Running, former: Vec<Kept>) {
    running.former = former;
    looks::schedule(running);
}

/// Keeps what is in use, and lets go of what has ended and is not.
pub async fn expire(running: &mut Running, in_use: &BTreeSet<IpAddr>) -> Result<(), Failure> {
    let is_used = |former: &Former| in_use.iter().any(|address| former.prefix.contains(address));
    let left = unended(&running.former, is_used, Instant::now());
    if left.len() < running.former.len() {
        return let_go(running, left).await;
    }
    running.former = left;
    Ok(())
}

async fn let_go(running: &mut Running, left: Vec<Kept>) -> Result<(), Failure> {
    let (config, left) = with(&running.loaded.config, left);
    let policy = Arc::new(Snapshot::compile(&config));
    let snapshot = Arc::new(policy.with_learned(&running.addresses.learned()));
    running.loaded.snapshot = policy;
    running.names.iter().for_each(|names| names.policy_is(&running.loaded));
    // First the policy: what is routed and not in it is refused.
    running.pump.swap(snapshot.clone()).map_err(not_changed)?;
    running.machine.want(&wanted(&running.loaded, &snapshot)).await?;
    running.snapshot = snapshot;
    tracing::info!(
        before = running.former.len(),
        now = left.len(),
        "prefixes from before a reload are let go"
    );
    begin(running, left);
    Ok(())
}

/// What is used counts for another grace.
fn unended(kept: &[Kept], is_used: impl Fn(&Former) -> bool, now: Instant) -> Vec<Kept> {
    let mut left = kept.to_vec();
    for Kept { former, until } in &mut left {
        if is_used(former) {
            *until = (*until).max(now + grace());
        }
    }
    left.retain(|kept| kept.until > now);
    left
}

fn not_changed(error: impl std::error::Error + Send + Sync + 'static) -> Problem {
    Failure::system("the policy could not be changed").because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_prefix_has_an_end_of_its_own() {
        let begin = Instant::now();
        let kept = |prefix: &str, until| Kept {
            former: Former { set: "signaling".to_owned(), prefix: prefix.parse().unwrap() },
            until,
        };
        let (first, second) = (begin + grace() / 2, begin + grace());
        let all =
            [kept("192.0.2.0/25", first), kept("192.0.2.128/25", first), kept("203.0.113.0/24", second)];
        let is_used = |former: &Former| former.prefix == all[1].former.prefix;
        let until = |now| unended(&all, is_used, now).iter().map(|kept| kept.until).collect::<Vec<_>>();
        assert_eq!(until(begin), [first, second, second], "a use is not forgotten until the end");
        assert_eq!(until(first), [first + grace(), second]);
        assert_eq!(until(second), [second + grace()]);
    }
}
