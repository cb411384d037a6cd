use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use packet::{Headers, PacketMut};

use super::bypass::{Bypass, Outgoing, Whole};
use super::refusal::Refuser;
use super::shared::Shared;
use super::tunnel_side::{Plain, TunnelSide};
use super::{Command, PumpError, Setup, io_error};
use crate::buffers::Buffers;
use crate::clock::Clock;
use crate::engine::{Action, Engine, Limits, MappingId};
use crate::io::sockets;
use crate::io::tun::{Queue, Record, VNET_HEADER};
use crate::offload::Segmentation;
use crate::{BATCH, Counters, DropReason, Feature};

/// One packet of any size with its virtio header, and room behind it for the tunnel's padding. Pages that are never used cost nothing.
const RECORD: usize = VNET_HEADER + 65_535 + 15;

/// A batch ends here even if it has few packets: about 0.2 ms of cipher, for which voice behind it waits.
const BATCH_BYTES: usize = 128 << 10;

const WAKER: Token = Token(0);
const VOICE: Token = Token(1);
const BULK: Token = Token(2);
const TUNNEL: Token = Token(3);
const ALARM: Token = Token(4);
/// Mapping `slot` has the token `FIRST_MAPPING + slot`.
const FIRST_MAPPING: usize = 5;

/// Left to the rest of the process where descriptors are few.
const OTHER_DESCRIPTORS: usize = 128;
/// An exhausted system refuses each packet's port; it is told once in this time.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(10);

/// The pump's thread: waits, then lets each side that has packets move one batch, voice first, until none has any.
pub(super) struct Worker {
    poll: Poll,
    clock: Clock,
    inbox: Receiver<Command>,
    /// The largest packet the tunnel carries; the TUN itself takes at least IPv6's 1280 bytes.
    mtu: u32,
    voice_ready: bool,
    bulk_ready: bool,
    records: Buffers,
    lengths: [usize; BATCH],
    for_tunnel: Vec<Plain>,
    for_bypass: Vec<Outgoing>,
    whole: Vec<Whole>,
    next_warning: Option<Instant>,
    tunnel: TunnelSide,
    bypass: Bypass,
    shared: Shared,
}

impl Worker {
    pub(super) fn new(
        setup: Setup,
        counters: Arc<Counters>,
        inbox: Receiver<Command>,
    ) -> Result<(Self, Arc<Waker>), PumpError> {
        let poll = Poll::new().map_err(io_error("opening an epoll"))?;
        let waker = Waker::new(poll.registry(), WAKER).map_err(io_error("opening a waker"))?;
        let clock = Clock::start().map_err(io_error("opening a timer"))?;
        let now = clock.now();
        let mut tun = setup.tun;
        if setup.offload.tun {
            tun.offer_segmentation();
        }
        tun.open_voice_queue();
        let queues = tun.queues().map(|(queue, fd)| match queue {
            Queue::Voice => (fd.as_raw_fd(), VOICE),
            Queue::Bulk => (fd.as_raw_fd(), BULK),
        });
        for (fd, token) in queues.chain([(clock.as_raw_fd(), ALARM)]) {
            poll.registry()
                .register(&mut SourceFd(&fd), token, Interest::READABLE)
                .map_err(io_error("watching the TUN and the timer"))?;
        }
        let mut peer = setup.peer;
        peer.set_underlay(setup.underlay.gateway_reachable, now);
        let tunnel = TunnelSide::open(
            peer,
            setup.endpoint,
            setup.fwmark,
            setup.offload.udp,
            setup.outer_dscp,
            poll.registry(),
            TUNNEL,
        )?;
        let bypass = Bypass::open(setup.fwmark);
        let (default, descriptors) = (Limits::default(), sockets::raise_descriptor_limit());
        let engine = Engine::new(
            setup.snapshot,
            setup.addresses,
            setup.underlay,
            Limits {
                mappings: default.mappings.min(descriptors.saturating_sub(OTHER_DESCRIPTORS)),
                ..default
            },
            Arc::clone(&counters),
        );
        let worker = Self {
            poll,
            clock,
            inbox,
            mtu: u32::from(setup.mtu),
            voice_ready: true,
            bulk_ready: true,
            records: Buffers::new(BATCH, RECORD),
            lengths: [0; BATCH],
            for_tunnel: Vec::with_capacity(BATCH),
            for_bypass: Vec::with_capacity(BATCH),
            whole: Vec::with_capacity(BATCH),
            next_warning: None,
            tunnel,
            bypass,
            shared: Shared { tun, engine, counters, refuser: Refuser::new() },
        };
        Ok((worker, Arc::new(waker)))
    }

    /// Moves packets until told to stop, or until the TUN is gone.
    pub(super) fn run(&mut self) -> Result<(), PumpError> {
        let mut events = Events::with_capacity(256);
        let mut now = self.clock.now();
        loop {
            self.clock.ring_at(self.deadline(), now);
            let busy = self.voice_ready || self.bulk_ready || self.tunnel.ready || self.bypass.has_ready();
            match self.poll.poll(&mut events, busy.then_some(Duration::ZERO)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(io_error("waiting for packets")(error));
                }
                _ => {}
            }
            now = self.clock.now();
            for event in &events {
                match event.token() {
                    WAKER => {
                        if self.obey(now) {
                            return Ok(());
                        }
                    }
                    ALARM => self.clock.rang(),
                    VOICE => self.voice_ready = true,
                    BULK => self.bulk_ready = true,
                    TUNNEL => self.tunnel.ready = true,
                    Token(token) => {
                        self.bypass.set_ready(token - FIRST_MAPPING, event.is_error(), &mut self.shared);
                    }
                }
            }
            self.bypass.receive(&mut self.shared, now);
            if self.voice_ready {
                self.voice_ready = self.take_from_tun(Queue::Voice, now)?;
            }
            if self.bulk_ready {
                self.bulk_ready = self.take_from_tun(Queue::Bulk, now)?;
            }
            if self.tunnel.ready {
                self.tunnel.receive(&mut self.shared, now);
            }
            self.meet_deadlines(now);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        [self.tunnel.deadline(), self.shared.engine.deadline()].into_iter().flatten().min()
    }

    fn meet_deadlines(&mut self, now: Instant) {
        self.tunnel.meet_deadlines(&mut self.shared, now);
        if self.shared.engine.deadline().is_some_and(|due| due <= now) {
            let bypass = &mut self.bypass;
            self.shared.engine.sweep(now, |mapping| bypass.close(mapping));
        }
    }

    /// Reads, judges and sends one batch of what applications sent; `true`: there may be more.
    fn take_from_tun(&mut self, queue: Queue, now: Instant) -> Result<bool, PumpError> {
        let mut more = true;
        let (mut count, mut bytes) = (0, 0);
        for (place, length) in self.lengths.iter_mut().enumerate() {
            if bytes >= BATCH_BYTES {
                break;
            }
            match self.shared.tun.read(queue, self.records.get_mut(place)) {
                Ok(read) => {
                    *length = read;
                    bytes += read;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    more = false;
                    break;
                }
                Err(error) => return Err(io_error("reading from the TUN")(error)),
            }
            count += 1;
        }
        self.for_tunnel.clear();
        self.for_bypass.clear();
        self.whole.clear();
        for place in 0..count {
            self.judge(place, now);
        }
        self.bypass.send(&self.for_bypass, &self.records, &mut self.shared);
        self.bypass.send_whole(&self.whole, &mut self.records, &mut self.shared);
        self.tunnel.send(&self.for_tunnel, &mut self.records, &mut self.shared, now);
        Ok(more)
    }

    fn judge(&mut self, place: usize, now: Instant) {
        let length = self.lengths.get(place).copied().unwrap_or_default();
        let record = self.records.get_mut(place).get_mut(..length).unwrap_or_default();
        let record = Record::split(record);
        let segmentation = record.as_ref().and_then(|record| record.segmentation);
        let Some(mut packet) =
            record.and_then(|record| PacketMut::parse(record.packet, record.checksum).ok())
        else {
            self.shared.counters.count_drop(DropReason::Malformed);
            return;
        };
        let mut action = self.shared.engine.outbound(&mut packet, now);
        if let Action::Reserve { internal, external } = action {
            let registry = self.poll.registry();
            let token = |mapping: MappingId| Token(FIRST_MAPPING + usize::from(mapping.slot));
            let engine = &mut self.shared.engine;
            action = match self.bypass.reserve(internal, external, engine, registry, token, now) {
                Ok(()) => engine.outbound(&mut packet, now),
                Err(error) => {
                    if self.next_warning.is_none_or(|next| next <= now) {
                        self.next_warning = Some(now + BETWEEN_WARNINGS);
                        tracing::warn!(%internal, %external, %error, "no external port for a voice flow");
                    }
                    engine.unreserved(packet.headers(), now)
                }
            };
        }
        let headers = *packet.headers();
        match action {
            Action::Tunnel if largest(&headers, segmentation) > self.mtu => {
                self.shared.too_big(&packet.as_packet(), self.mtu);
            }
            // Segments get checksums of their own.
            Action::Tunnel if segmentation.is_some() || packet.complete_checksum() => {
                self.for_tunnel.push(Plain { place, headers, segmentation });
            }
            Action::Identity if segmentation.is_some() || packet.complete_checksum() => {
                self.whole.push(Whole { place, headers, segmentation });
            }
            Action::Tunnel | Action::Identity => self.shared.counters.count_drop(DropReason::Malformed),
            Action::Bypass { mapping, destination, tos, ttl } => {
                let payload = payload_in_record(&headers);
                let segment = segmentation.map(|segmentation| segmentation.size);
                self.for_bypass.push(Outgoing { place, payload, mapping, destination, tos, ttl, segment });
            }
            Action::Refuse(_) => self.shared.carry_out(action, &packet.as_packet()),
            Action::Drop | Action::Reserve { .. } => {}
        }
    }

    fn features(&self) -> Vec<Feature> {
        let tun = self.shared.tun.features().into_iter();
        tun.chain(self.tunnel.features()).chain(self.bypass.features()).collect()
    }

    /// Does what the control plane asked; `true`: stop.
    fn obey(&mut self, now: Instant) -> bool {
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::Swap(snapshot, reply) => {
                    let _ = reply.send(self.shared.engine.swap(snapshot));
                }
                Command::Underlay(underlay) => {
                    self.tunnel.peer.set_underlay(underlay.gateway_reachable, now);
                    self.shared.engine.set_underlay(underlay, now);
                }
                Command::Endpoint(endpoint, reply) => {
                    let _ = reply.send(self.tunnel.move_to(endpoint, self.poll.registry(), TUNNEL));
                }
                Command::Flows(reply) => {
                    let _ = reply.send(self.shared.engine.flows(now));
                }
                Command::Tunnel(reply) => {
                    let _ = reply.send(self.tunnel.report(now));
                }
                Command::Features(reply) => {
                    let _ = reply.send(self.features());
                }
                Command::Stop => return true,
            }
        }
        false
    }
}

/// The length of the largest packet that it becomes, headers included.
fn largest(headers: &Headers, segmentation: Option<Segmentation>) -> u32 {
    segmentation.map_or(headers.len, |segmentation| {
        headers.len.min(u32::from(headers.payload_at) + u32::from(segmentation.size))
    })
}

fn payload_in_record(headers: &Headers) -> std::ops::Range<usize> {
    VNET_HEADER + usize::from(headers.payload_at)..VNET_HEADER + headers.len as usize
}
