//! What a reload from prefixes to names keeps for a while: applications go on using addresses that they have from before, and what is
//! in no set would leave directly.

use std::{sync::Arc, time::Duration};

use policy::{Former, Snapshot};
use tokio::time::Instant;

use super::{learned::GRACE, load::Loaded, machine::wanted, start::Running};
use crate::failure::{Failure, Problem};

/// After which prefixes that could not be let go are tried again.
const RETRY: Duration = Duration::from_secs(60);

/// Has the new policy hold what it is to keep beside its configuration.
pub fn keep(running: &Running, new: &mut Loaded) -> Vec<Former> {
    let mut former = running.former.clone();
    former.extend(new.config.former(&running.loaded.config));
    let (config, kept) = new.config.with_former(&former);
    if !kept.is_empty() {
        new.snapshot = Arc::new(Snapshot::compile(&config));
    }
    kept
}

/// A line for people, if there is something to tell.
pub fn told(former: &[Former]) -> Option<String> {
    let prefixes: Vec<String> =
        former.iter().map(|former| format!("{} ({})", former.prefix, former.set)).collect();
    (!former.is_empty()).then(|| {
        format!(
            "{} stays in the tunnel for another hour, and as long as it is used: applications may have addresses from before",
            prefixes.join(", ")
        )
    })
}

/// From here on the policy in force has this beside its configuration.
pub fn begin(running: &mut Running, former: Vec<Former>) {
    running.former_due = (!former.is_empty()).then(|| Instant::now() + GRACE);
    running.former = former;
}

/// Lets go of what no flow uses. What cannot be let go stays in the tunnel, and is tried again.
pub async fn expire(running: &mut Running) {
    if let Err(failure) = let_go(running).await {
        tracing::warn!("prefixes from before a reload stay in the tunnel: {}", failure.plain());
        running.former_due = Some(Instant::now() + RETRY);
    }
}

async fn let_go(running: &mut Running) -> Result<(), Failure> {
    let flows = running.pump.flows().map_err(not_changed)?;
    let is_used =
        |former: &&Former| flows.iter().any(|flow| former.prefix.contains(&flow.tuple.destination.ip()));
    let used: Vec<Former> = running.former.iter().filter(is_used).cloned().collect();
    let (config, used) = running.loaded.config.with_former(&used);
    let policy = Arc::new(Snapshot::compile(&config));
    let snapshot = Arc::new(policy.with_learned(&running.addresses.learned()));
    running.loaded.snapshot = policy;
    // First the policy: what is routed and not in it is refused.
    running.pump.swap(snapshot.clone()).map_err(not_changed)?;
    running.machine.want(&wanted(&running.loaded, &snapshot)).await?;
    running.snapshot = snapshot;
    tracing::info!(
        before = running.former.len(),
        now = used.len(),
        "prefixes from before a reload are let go"
    );
    begin(running, used);
    Ok(())
}

fn not_changed(error: impl std::error::Error + Send + Sync + 'static) -> Problem {
    Failure::system("the policy could not be changed").because(error)
}
