use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};

use super::PumpError;
use super::bulk::watch;
use super::bypass::{Bypass, Unsent};
use super::core::{Core, Judge};
use super::intake::Intake;
use super::io_error;
use super::sealer::Sealer;
use super::to_tun::ToTun;
use crate::Feature;
use crate::engine::{Engine, MappingId};
use crate::io::realtime::RealTime;
use crate::io::tun::Queue;
use crate::rest::Rest;
use crate::wire::UdpSegmentation;

const WAKER: Token = Token(0);
const TUN: Token = Token(1);
const ALARM: Token = Token(2);
/// Mapping `slot` has the token `FIRST_MAPPING + slot`.
const FIRST_MAPPING: usize = 3;

/// An exhausted system refuses each packet's port; it is told once in this time.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(10);

/// The thread for voice: the TUN's queue of UDP, and the mappings' sockets. Real-time where permitted, it waits for nothing but a lock that
/// the bulk thread holds for a batch at most; or for some milliseconds while it asks after a change of routes where the kernel's flows go now,
/// and attaches the fast path to another interface; or, for what goes into the tunnel, while it leads all flows to another gateway: once in
/// a fail-over, for a millisecond or two with all flows there can be.
pub(super) struct Voice {
    poll: Poll,
    rest: Rest,
    core: Arc<Core>,
    intake: Intake,
    to_tun: ToTun,
    sealer: Sealer,
    bypass: Bypass,
    /// Kept as long as this thread waits: closing a waker takes its wake-up back.
    waker: Arc<Waker>,
    next_warning: Option<Instant>,
}

impl Voice {
    pub(super) fn new(
        core: Arc<Core>,
        queue: Queue,
        sealer: Sealer,
        segmentation: Arc<UdpSegmentation>,
    ) -> Result<Self, PumpError> {
        let poll = Poll::new().map_err(io_error("opening an epoll"))?;
        let waker = Waker::new(poll.registry(), WAKER).map_err(io_error("opening a waker"))?;
        watch(&poll, core.engine.lock().alarm.as_raw_fd(), ALARM)?;
        watch(&poll, queue.as_raw_fd(), TUN)?;
        let own = queue.try_clone().map_err(io_error("sharing the TUN"))?;
        Ok(Self {
            poll,
            rest: Rest::default(),
            intake: Intake::new(queue),
            to_tun: ToTun::new(own, Arc::clone(&core.counters)),
            sealer,
            bypass: Bypass::open(&core, segmentation),
            core,
            waker: Arc::new(waker),
            next_warning: None,
        })
    }

    pub(super) fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    pub(super) fn features(&self) -> Vec<Feature> {
        self.bypass.features()
    }

    /// Moves packets until the pump stops, or until the TUN is gone.
    pub(super) fn run(&mut self, mut real_time: Option<RealTime>) -> Result<(), PumpError> {
        let mut events = Events::with_capacity(256);
        while !self.core.is_stopped() {
            let busy = self.intake.ready || self.bypass.has_ready();
            if self.rest.wait(&mut self.poll, &mut events, busy).map_err(io_error("waiting for packets"))? {
                self.give_back();
            }
            self.bypass.follow_underlay(&self.core);
            let now = self.core.clock.now();
            let mut due = false;
            for event in &events {
                match event.token() {
                    WAKER => {}
                    ALARM => due = true,
                    TUN => self.intake.ready = true,
                    Token(token) => self.bypass.set_ready(
                        token - FIRST_MAPPING,
                        event.is_error(),
                        &self.core,
                        &mut self.to_tun,
                    ),
                }
            }
            if due {
                self.look_into_queues(now);
            }
            self.bypass.receive(&self.core, &mut self.to_tun, now);
            let looked = self.intake.ready;
            if looked {
                self.take_from_tun(now)?;
            }
            self.follow_flows(looked && !self.intake.ready, due, now);
            if let Some(real_time) = &mut real_time {
                real_time.keep_modest(now);
            }
        }
        Ok(())
    }

    /// The buffers' memory.
    fn give_back(&mut self) {
        self.intake.give_back();
        self.bypass.give_back();
        self.sealer.give_back();
    }

    fn take_from_tun(&mut self, now: Instant) -> Result<(), PumpError> {
        self.intake.read()?;
        let (bypass, registry) = (&mut self.bypass, self.poll.registry());
        let next_warning = &mut self.next_warning;
        let reserve = |internal, external, engine: &mut Engine| {
            let token = |mapping: MappingId| Token(FIRST_MAPPING + usize::from(mapping.slot));
            let reserved = bypass.reserve(internal, external, engine, registry, token, now);
            if let Err(error) = &reserved
                && next_warning.is_none_or(|next| next <= now)
            {
                *next_warning = Some(now + BETWEEN_WARNINGS);
                tracing::warn!(%internal, %external, %error, "no external port for a voice flow");
            }
            reserved
        };
        let (core, to_tun, intake) = (&self.core, &mut self.to_tun, &mut self.intake);
        intake.judge(core, to_tun, reserve, now);
        self.bypass.send(&intake.for_bypass, &intake.records, core, to_tun);
        self.bypass.send_whole(&intake.whole, &mut intake.records, core);
        self.sealer.send(&intake.for_tunnel, &mut intake.records, core, to_tun, now);
        Ok(())
    }

    /// Before flows are given to the kernel, nothing of theirs may be left here.
    fn look_into_queues(&mut self, now: Instant) {
        let mut judge = self.core.engine.lock();
        let Ok(fast) = &mut judge.fast else { return };
        if fast.deadline().is_some_and(|due| due <= now) {
            fast.look(now);
            self.intake.ready = true;
            fast.to_be_emptied().for_each(|mapping| self.bypass.look_into(mapping));
        }
    }

    /// `queue_empty`: the TUN's queue was found empty after `now`, and what was in it is sent.
    fn follow_flows(&mut self, queue_empty: bool, due: bool, now: Instant) {
        let mut judge = self.core.engine.lock();
        let Judge { engine, fast, .. } = &mut *judge;
        if let Ok(fast) = fast {
            for unsent in self.bypass.take_unsent() {
                match unsent {
                    Unsent::Mapped(mapping, destination) => engine.not_sent(mapping, destination, now),
                    Unsent::Whole(tuple) => engine.not_cached(&tuple, now),
                }
            }
            fast.follow(engine, now);
            if queue_empty {
                fast.settle(engine, |mapping| !self.bypass.may_have_more(mapping), now);
            }
        }
        if due {
            judge.alarm.rang();
            judge.sweep(now, |mapping| self.bypass.close(mapping));
        }
        judge.set_alarm(now);
    }
}
