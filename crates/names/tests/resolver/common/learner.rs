use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use names::Learn;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// What the daemon says to addresses.
#[derive(Clone, Copy)]
pub enum Verdict {
    Yes,
    /// After so long.
    YesAfter(Duration),
    No,
    /// Drops what it was to answer by.
    Dropped,
    Never,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Learned {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    /// Of each address.
    pub ttls: Vec<u64>,
}

/// The daemon's end of the learning.
pub struct Learner {
    learned: Arc<Mutex<Vec<Learned>>>,
    running: JoinHandle<()>,
}

impl Learner {
    pub fn start(mut receiver: mpsc::Receiver<Learn>, verdict: Verdict) -> Self {
        let learned = Arc::new(Mutex::new(Vec::new()));
        let noted = learned.clone();
        let running = tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Some(Learn { name, addresses, done }) = receiver.recv().await {
                if let Verdict::YesAfter(time) = verdict {
                    sleep(time).await;
                }
                let (addresses, ttls) = addresses.into_iter().map(|(ip, ttl)| (ip, ttl.as_secs())).unzip();
                noted.lock().unwrap().push(Learned { name, addresses, ttls });
                // Whoever asked may be gone.
                _ = match verdict {
                    Verdict::Yes | Verdict::YesAfter(_) => done.send(true),
                    Verdict::No => done.send(false),
                    Verdict::Dropped => Ok(()),
                    Verdict::Never => {
                        kept.push(done);
                        Ok(())
                    }
                };
            }
        });
        Self { learned, running }
    }

    pub fn learned(&self) -> Vec<Learned> {
        self.learned.lock().unwrap().clone()
    }

    /// Each address learned, once, in order.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses: Vec<_> =
            self.learned().into_iter().flat_map(|learned| learned.addresses).collect();
        addresses.sort();
        addresses.dedup();
        addresses
    }

    pub fn stop(&self) {
        self.running.abort();
    }
}
