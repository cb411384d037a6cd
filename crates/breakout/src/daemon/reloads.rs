//! Reloads, one at a time. What may take long goes on beside all else that the daemon does: the configuration with the names in it, and
//! programs of others that are to lead other names to our resolver.

use std::{future::pending, mem, pin::Pin};

use control::{Refusal, RefusalKind, Reloaded, Reply, Server};
use tokio::sync::oneshot;

use super::{
    reload::{self, New, NotTaken},
    start::Running,
};
use crate::{exit::Exit, failure::Failure};

/// Who asked; `None`: a signal.
type Asker = Option<oneshot::Sender<Reply>>;
type Doing = Pin<Box<dyn Future<Output = Result<New, Failure>>>>;

#[derive(Default)]
pub struct Reloads {
    stage: Stage,
    asked: Vec<Asker>,
    /// Who asked since the file was read.
    next: Vec<Asker>,
}

#[derive(Default)]
enum Stage {
    #[default]
    Idle,
    Reading(Doing),
    /// The names of the old policy and of the new one are being led here.
    Leading(Doing),
}

/// What was waited for.
pub enum Step {
    Read(Result<New, Failure>),
    Led(Result<New, Failure>),
}

impl Reloads {
    /// Reads the configuration, again if that is being done.
    pub fn ask(&mut self, running: &Running, asker: Asker) {
        if asker.is_some() || self.next.is_empty() {
            self.next.push(asker);
        }
        self.begin(running);
    }

    /// Resolves when [`Reloads::go_on`] has something to do. Safe to drop in between.
    pub async fn step(&mut self) -> Step {
        match &mut self.stage {
            Stage::Idle => pending().await,
            Stage::Reading(reading) => Step::Read(reading.await),
            Stage::Leading(leading) => Step::Led(leading.await),
        }
    }

    pub async fn go_on(&mut self, running: &mut Running, server: &Server, step: Step) {
        self.stage = Stage::Idle;
        let outcome = match step {
            Step::Read(Ok(new)) => match reload::begin(running, &new) {
                Ok(leading) => {
                    self.stage = Stage::Leading(Box::pin(async { leading.await.map(|()| new) }));
                    return;
                }
                Err(failure) => Err(failure.into()),
            },
            Step::Led(Ok(new)) => reload::finish(running, server, new).await,
            Step::Read(Err(failure)) => Err(failure.into()),
            Step::Led(Err(failure)) => {
                reload::give_up(running);
                Err(failure.into())
            }
        };
        self.answer(&outcome);
        self.begin(running);
    }

    fn begin(&mut self, running: &Running) {
        if matches!(self.stage, Stage::Idle) && !self.next.is_empty() {
            self.asked = mem::take(&mut self.next);
            self.stage = Stage::Reading(Box::pin(reload::read(running)));
        }
    }

    fn answer(&mut self, outcome: &Result<Reloaded, NotTaken>) {
        if let Err(not_taken) = outcome {
            tracing::warn!("{not_taken}");
        }
        for asker in mem::take(&mut self.asked).into_iter().flatten() {
            // The client may have gone away; that is its own business.
            drop(asker.send(reply(outcome)));
        }
    }
}

fn reply(outcome: &Result<Reloaded, NotTaken>) -> Reply {
    match outcome {
        Ok(reloaded) => Reply::Reloaded(reloaded.clone()),
        Err(not_taken) => {
            let is_whole = not_taken.broken.is_none();
            let kind = if is_whole && not_taken.why.exit == Exit::Usage {
                RefusalKind::Configuration
            } else {
                RefusalKind::Failed
            };
            let told = if is_whole { not_taken.why.plain() } else { not_taken.to_string() };
            Refusal::new(kind, told).into()
        }
    }
}
