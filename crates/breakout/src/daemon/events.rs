use std::{io, pin::pin};

use control::{Call, Command, Refusal, RefusalKind, Reply, Server};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use super::{
    reload, report,
    start::{Exited, Running},
};
use crate::{exit::Exit, failure::Failure};

/// Requests that wait for the one before them.
const WAITING_CALLS: usize = 16;

/// Follows signals, requests, the underlay and the pump until the daemon is to end. An error means that it cannot go on.
pub async fn follow(running: &mut Running, server: &Server, mut exited: Exited) -> Result<(), Failure> {
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let (calls, mut asked) = mpsc::channel(WAITING_CALLS);
    let mut serving = pin!(server.serve(calls));
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => {
                if let Err(failure) = reload::reload(running, server).await {
                    tracing::warn!("the configuration was not taken, the old one is whole: {}", failure.plain());
                }
            }
            Some(call) = asked.recv() => {
                let is_end = call.command == Command::Down;
                answer(running, server, call).await;
                if is_end {
                    return Ok(());
                }
            }
            changed = running.machine.watch.changed() => {
                changed.map_err(|error| Failure::system("cannot follow the network's changes").because(error))?;
                follow_network(running).await?;
            }
            result = &mut exited => {
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

/// What goes wrong here is tried again with the next change; only a TUN that is gone ends the daemon.
async fn follow_network(running: &mut Running) -> Result<(), Failure> {
    match running.machine.follow().await {
        Ok(false) => {}
        Ok(true) => {
            let underlay = running.machine.underlay();
            tracing::info!(v4 = ?underlay.v4, v6 = ?underlay.v6, gateway_reachable = underlay.gateway_reachable, "the underlay has changed");
            running.pump.set_underlay(underlay).map_err(|error| pump_failed(error.to_string()))?;
        }
        Err(error @ routes::Error::TunGone(_)) => return Err(pump_failed(error.to_string())),
        Err(error) => tracing::error!(%error, "cannot follow a change of the network"),
    }
    Ok(())
}

async fn answer(running: &mut Running, server: &Server, call: Call) {
    tracing::debug!(command = ?call.command, uid = call.uid, "asked");
    let failed =
        |error: dataplane::PumpError| Reply::from(Refusal::new(RefusalKind::Failed, error.to_string()));
    let reply = match call.command {
        Command::Status => {
            report::status(running).map_or_else(failed, |status| Reply::Status(Box::new(status)))
        }
        Command::Flows => report::flows(running).map_or_else(failed, Reply::Flows),
        Command::Reload => match reload::reload(running, server).await {
            Ok(reloaded) => Reply::Reloaded(reloaded),
            Err(failure) => {
                let why = failure.plain();
                tracing::warn!("the configuration was not taken, the old one is whole: {why}");
                let kind = if failure.exit == Exit::Usage {
                    RefusalKind::Configuration
                } else {
                    RefusalKind::Failed
                };
                Refusal::new(kind, why).into()
            }
        },
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

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error: io::Error| Failure::system("cannot wait for signals").because(error).into())
}
