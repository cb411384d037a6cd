//! Looks at what applications use, now and then: that stays in the tunnel, and what has ended and is not used is let go.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use tokio::time::Instant;

use super::{clock, former, grace::look as pause, learning, start::Running};
use crate::failure::Failure;

/// After which what could not be let go is tried again.
const RETRY: Duration = Duration::from_secs(60);

/// To be called when [`Running::look_due`] has come. What cannot be let go stays in the tunnel, and is tried again.
pub async fn look(running: &mut Running) {
    if let Err(failure) = keep_used(running).await {
        tracing::warn!("what has ended stays in the tunnel: {}", failure.plain());
        running.look_due = Some(Instant::now() + RETRY);
    }
}

/// Answers with what is in use.
pub async fn keep_used(running: &mut Running) -> Result<BTreeSet<IpAddr>, Failure> {
    let in_use = running
        .pump
        .destinations()
        .map_err(|error| Failure::system("it is not known what is in use").because(error))?;
    running.look_due = None;
    let former = former::expire(running, &in_use).await;
    let learned = learning::expire(running, &in_use).await;
    schedule(running);
    former.and(learned).map(|()| in_use)
}

/// Plans the next look, no later than it is planned already: when the first of it ends, and often enough to see each use.
pub fn schedule(running: &mut Running) {
    let now = Instant::now();
    let learned = running.addresses.next_end().map(|end| now + end.saturating_sub(clock::awake()));
    let ends = running.former.iter().map(|kept| kept.until).chain(learned);
    let due = ends.min().map(|end| end.min(now + pause()));
    running.look_due = running.look_due.into_iter().chain(due).min();
}
