//! Leads the machine's questions to our resolver, in a task of its own: systemd-resolved and resolvconf take the time they like.

use std::{net::SocketAddr, time::Duration};

use names::Handle;
use routes::{
    Error, State,
    dns::{Dns, Report},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};

use super::wait::wait_until;

#[derive(Debug, thiserror::Error)]
pub enum NotLed {
    #[error(transparent)]
    Routes(#[from] Error),
    #[error("what leads names to our resolver has ended by itself")]
    Ended,
}

/// After which it is tried again to lead names to our resolver.
const RETRY: Duration = Duration::from_secs(2);

/// Dropped, it leaves things as a crash would.
pub struct Leading {
    orders: mpsc::UnboundedSender<Order>,
    led: watch::Receiver<Led>,
    task: JoinHandle<()>,
}

/// How names come to be asked at our resolver, and where all others go.
#[derive(Clone, Debug)]
pub struct Led {
    pub report: Report,
    pub others: Vec<SocketAddr>,
}

struct Order {
    domains: Vec<String>,
    done: oneshot::Sender<Result<(), Error>>,
}

impl Leading {
    /// Puts back from now on what others change, and has the resolver hand on what is not the policy's to where it went before.
    pub fn start(dns: Dns, state: State, resolver: Handle) -> Self {
        hand_on(&dns, &resolver);
        let (orders, taken) = mpsc::unbounded_channel();
        let (tell, led) = watch::channel(Led::of(&dns));
        let task = tokio::spawn(follow(dns, state, resolver, taken, tell));
        Self { orders, led, task }
    }

    pub fn led(&self) -> Led {
        self.led.borrow().clone()
    }

    /// Has these domains led here, as soon as what was begun is done. Where that fails it is tried again and again.
    pub fn set_domains(&self, domains: Vec<String>) -> impl Future<Output = Result<(), NotLed>> + use<> {
        let (done, answer) = oneshot::channel();
        let order = Order { domains, done };
        // A task that has ended drops it, and so answers.
        drop(self.orders.send(order));
        async { Ok(answer.await.map_err(|_| NotLed::Ended)??) }
    }

    /// Stops, be it in the middle of a change: its undo is noted.
    pub async fn end(mut self) {
        self.task.abort();
        drop((&mut self.task).await);
    }
}

impl Drop for Leading {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Led {
    fn of(dns: &Dns) -> Self {
        Self { report: dns.report(), others: dns.before() }
    }
}

async fn follow(
    mut dns: Dns,
    state: State,
    resolver: Handle,
    mut orders: mpsc::UnboundedReceiver<Order>,
    tell: watch::Sender<Led>,
) {
    let mut retry = None;
    loop {
        let reached = tokio::select! {
            Some(Order { domains, done }) = orders.recv() => {
                let reached = dns.set_domains(&state, domains).await;
                let has_failed = reached.is_err();
                // Who asked may have stopped waiting.
                drop(done.send(reached));
                if has_failed { None } else { Some(Vec::new()) }
            }
            () = dns.changed() => repair(&mut dns, &state).await,
            () = wait_until(retry) => repair(&mut dns, &state).await,
        };
        retry = reached.is_none().then(|| Instant::now() + RETRY);
        for repaired in reached.into_iter().flatten() {
            tracing::warn!("put back: {repaired}");
        }
        hand_on(&dns, &resolver);
        tell.send_replace(Led::of(&dns));
    }
}

/// Has other names asked for as before, and no name of the policy's that was completed.
fn hand_on(dns: &Dns, resolver: &Handle) {
    resolver.set_search(dns.search());
    resolver.set_forward(dns.before());
}

/// What was put back; `None`: it could not be.
async fn repair(dns: &mut Dns, state: &State) -> Option<Vec<String>> {
    let repaired = dns.repair(state).await;
    repaired
        .inspect_err(|error| tracing::error!(%error, "cannot lead names to our resolver again; trying again"))
        .ok()
}
