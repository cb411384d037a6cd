use std::future::pending;

use tokio::time::{Instant, sleep_until};

/// Without a time, for ever. Safe to drop in between.
pub async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}
