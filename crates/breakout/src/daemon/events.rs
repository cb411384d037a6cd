use std::{future::pending, io, pin::pin, time::Duration};

use ::names::Learn;
use control::{Call, Command, Refusal, RefusalKind, Reply};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::Instant,
};

use super::{
    clock, gateways, learning, looks,
    names::{self, Heard, Names},
    portal,
    reloads::Reloads,
    report,
    start::{Outside, Running},
    wait::wait_until,
};
use crate::failure::Failure;

/// Requests that wait for the one before them.
const WAITING_CALLS: usize = 16;

/// After what went wrong when the network changed is tried again: it may be what keeps signaling closed.
const RETRY: Duration = Duration::from_millis(500);

/// What the outside tells the daemon.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// From here on signals wait for [`follow`] instead of killing the process.
    pub fn listen() -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::system("cannot wait for signals").because(error);
        let listen = |kind| signal(kind).map_err(failed);
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }
}

/// Follows signals, requests, the underlay and the pump until the daemon is to end. An error means that it cannot go on.
pub async fn follow(
    running: &mut Running,
    outside: &mut Outside,
    mut signals: Signals,
) -> Result<(), Failure> {
    let Outside { server, exited, heard, gateways: told } = outside;
    let (calls, mut asked) = mpsc::channel(WAITING_CALLS);
    let mut serving = pin!(server.serve(calls));
    let mut retry = None;
    let mut reloads = Reloads::default();
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return Ok(()),
            _ = signals.interrupt.recv() => return Ok(()),
            _ = signals.hangup.recv() => reloads.ask(running, None),
            Some(call) = asked.recv() => {
                let is_end = call.command == Command::Down;
                answer(running, &mut reloads, call);
                if is_end {
                    return Ok(());
                }
            }
            step = reloads.step() => reloads.go_on(running, server, step).await,
            changed = running.machine.watch.changed() => {
                changed.map_err(|error| Failure::system("cannot follow the network's changes").because(error))?;
                retry = follow_network(running).await?;
            }
            Ok(()) = running.mtu.changed() => {
                let mtu = *running.mtu.borrow_and_update();
                if let Err(error) = running.machine.set_mtu(mtu).await {
                    tracing::warn!(mtu, %error, "applications are told of the path's MTU by ICMP only");
                }
            }
            () = wait_until(retry) => retry = follow_network(running).await?,
            said = hear(heard) => match said {
                Some(found) => learning::learn(running, found).await,
                None => {
                    return Err(Failure::system("our resolver ended by itself")
                        .remedy("names have no answer until the next `breakout up`, or `breakout down`")
                        .into());
                }
            },
            answer = running.lookups.answer() => gateways::found(running, answer).await,
            Some(event) = told.recv() => gateways::heard(running, event),
            step = running.portal.step() => {
                portal::go_on(running, step).map_err(|error| pump_failed(error.to_string()))?;
            }
            () = wait_until(running.look_due) => looks::look(running).await,
            () = wait_until(running.unwritten_due) => learning::write(running),
            result = &mut *exited => {
                let why = match result {
                    Ok(Err(error)) => error.to_string(),
                    Ok(Ok(())) | Err(_) => "its thread ended".to_owned(),
                };
                return Err(pump_failed(why));
            }
            served = &mut serving => {
                let error = served.err().map_or_else(|| "it ended".to_owned(), |error| error.to_string());
                return Err(Failure::system("the control socket failed").because(error).into());
            }
        }
    }
}

/// Returns when to try again what went wrong; only a TUN that is gone ends the daemon.
async fn follow_network(running: &mut Running) -> Result<Option<Instant>, Failure> {
    // At once, whatever becomes of the rest: flows in the kernel follow the routes that they began with.
    running.pump.routes_changed().map_err(|error| pump_failed(error.to_string()))?;
    let followed = running.machine.follow(&running.loaded, &running.snapshot).await;
    let followed = followed.map_err(|error| pump_failed(error.to_string()))?;
    if followed.has_changed {
        let since = clock::since_boot();
        let underlay = running.machine.underlay();
        tracing::info!(v4 = ?underlay.v4, v6 = ?underlay.v6, gateways = ?underlay.gateways, "the underlay has changed");
        running.pump.set_underlay(underlay).map_err(|error| pump_failed(error.to_string()))?;
        running.lookups.want_names(Instant::now());
        running.names.iter().for_each(Names::network_changed);
        running.portal.network_changed(since);
    }
    Ok(followed.is_to_repeat.then(|| Instant::now() + RETRY))
}

/// What our resolver has found; `None`: it has ended.
async fn hear(heard: &mut Option<Heard>) -> Option<Learn> {
    let Some(Heard { learn, ended }) = heard else { return pending().await };
    tokio::select! {
        Some(found) = learn.recv() => Some(found),
        _ = ended => None,
    }
}

fn answer(running: &mut Running, reloads: &mut Reloads, call: Call) {
    tracing::debug!(command = ?call.command, uid = call.uid, "asked");
    let failed =
        |error: dataplane::PumpError| Reply::from(Refusal::new(RefusalKind::Failed, error.to_string()));
    let reply = match call.command {
        Command::Status => {
            report::status(running).map_or_else(failed, |status| Reply::Status(Box::new(status)))
        }
        Command::Flows => report::flows(running).map_or_else(failed, Reply::Flows),
        Command::Names => Reply::Names(names::report(running)),
        Command::Reload => return reloads.ask(running, Some(call.answer)),
        Command::Down => {
            tracing::info!(uid = call.uid, "asked to end");
            Reply::Stopping
        }
    };
    // The client may have gone away; that is its own business.
    drop(call.answer.send(reply));
}

fn pump_failed(why: String) -> Failure {
    Failure::system("the pump has stopped by itself")
        .because(why)
        .remedy(
            "signaling is refused until the next `breakout up`, so that nothing of it leaves in the clear; `breakout down` lifts that",
        )
        .into()
}
