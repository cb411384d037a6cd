use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

/// How servers are asked: the next one when the last has been silent for `patience`, or has failed, round and round, until
/// `failures` of them have failed or it is `deadline`. Whoever was asked may answer all the while: a slow server is not a dead one.
pub struct Race {
    pub patience: Duration,
    pub failures: usize,
    pub deadline: Instant,
}

impl Race {
    /// The first answer, with its server; else the last failure, if there was one.
    pub async fn run<T, E, F>(
        &self,
        servers: &[SocketAddr],
        ask: impl Fn(SocketAddr) -> F,
    ) -> Result<(SocketAddr, T), Option<E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        let mut next = servers.iter().copied().cycle();
        let mut asking = FuturesUnordered::new();
        let mut start = Instant::now();
        let mut failed = 0;
        let mut last = None;
        loop {
            tokio::select! {
                Some((server, outcome)) = asking.next() => match outcome {
                    Ok(answer) => return Ok((server, answer)),
                    Err(failure) => {
                        last = Some(failure);
                        failed += 1;
                        start = Instant::now();
                    }
                },
                () = sleep_until(start), if failed < self.failures => {
                    let Some(server) = next.next() else { return Err(None) };
                    let answer = ask(server);
                    asking.push(async move { (server, answer.await) });
                    start += self.patience;
                }
                () = sleep_until(self.deadline) => return Err(last),
            }
            if failed >= self.failures && asking.is_empty() {
                return Err(last);
            }
        }
    }
}
