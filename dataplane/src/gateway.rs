//! Our own responder's pump: TUN on one side, WireGuard peers on the other.

mod paths;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use packet::{OuterDscp, Packet, PacketMut, Tos, build, clamp_mss, decapsulate, may_be_icmp};
use paths::Paths;
use socket2::Socket;
use tunnel::{Opened, Responder, Sealed};

use crate::clock::{Alarm, Clock};
use crate::io::error_queue;
use crate::io::sockets::{self, Discover};
use crate::io::tun::{COMPLETE, Queue, Record, Tun, VNET_HEADER};
use crate::offload::Segments;
use crate::path_mtu::LARGE;
use crate::pump::{OnExit, PumpError, io_error, outcome};
use crate::rest::Rest;
use crate::tun_writer::TunWriter;
use crate::wire::{Inbox, Outbox, UdpSegmentation};
use crate::{BATCH, fit};

pub struct GatewaySetup {
    pub tun: Tun,
    pub responder: Responder,
    /// The gateway's own, inside the tunnel.
    pub addresses: Vec<IpAddr>,
    /// The TUN's, in bytes: the most that a peer's path may be found to carry.
    pub mtu: u16,
    /// Where peers reach it.
    pub listen: SocketAddr,
    /// Of the tunnel's own packets.
    pub outer_dscp: OuterDscp,
    /// Called once, by the gateway's thread, when it ends: `Ok` after [`Gateway::stop`].
    pub on_exit: OnExit,
}

/// A running gateway; dropping it stops it.
pub struct Gateway {
    stop: Arc<AtomicBool>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl Gateway {
    /// Starts the thread; returns once it can answer handshakes.
    pub fn start(setup: GatewaySetup) -> Result<Self, PumpError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut worker, on_exit) = Worker::new(setup, Arc::clone(&stop))?;
        let waker = Arc::new(Waker::new(worker.poll.registry(), WAKER).map_err(io_error("opening a waker"))?);
        let thread = thread::Builder::new()
            .name("gateway".to_owned())
            .spawn(move || on_exit(outcome(|| worker.run())))
            .map_err(io_error("starting the gateway's thread"))?;
        Ok(Self { stop, waker, thread: Some(thread) })
    }

    /// Stops the thread and waits for it.
    pub fn stop(mut self) -> Result<(), PumpError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), PumpError> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.waker.wake();
        thread.join().map_err(|_| PumpError::Stopped)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

const WAKER: Token = Token(0);
const TUN: Token = Token(1);
const PEERS: Token = Token(2);
const ALARM: Token = Token(3);
const VOICE: Token = Token(4);
/// A packet of any size with its virtio header, and room behind it for padding.
const RECORD: usize = VNET_HEADER + 65_535 + 15;
/// A turn of what goes to peers ends here even if it has few packets: about 0.2 ms of cipher, for which what comes from them waits.
const TURN_BYTES: usize = 128 << 10;
/// What is opened before voice is looked for again: 0.1 ms of cipher.
const VOICE_AFTER: usize = 128 << 10;
/// More than a socket's buffer holds, each counts as 768 bytes or more.
const MAX_ERRORS: usize = 4096;

struct Worker {
    poll: Poll,
    rest: Rest,
    clock: Clock,
    alarm: Alarm,
    stop: Arc<AtomicBool>,
    tun: Tun,
    tun_ready: bool,
    /// UDP's own of the TUN's queues; `None` where the kernel cannot lead it there.
    voice: Option<Queue>,
    voice_ready: bool,
    responder: Responder,
    paths: Paths,
    socket: Socket,
    outbox: Outbox,
    inbox: Inbox,
    peers_ready: bool,
    writer: TunWriter,
    record: Box<[u8]>,
}

impl Worker {
    fn new(setup: GatewaySetup, stop: Arc<AtomicBool>) -> Result<(Self, OnExit), PumpError> {
        let poll = Poll::new().map_err(io_error("opening an epoll"))?;
        let socket = sockets::listening(setup.listen, 0, Discover::On)
            .map_err(io_error("opening the gateway's port"))?;
        let clock = Clock::start();
        let alarm = Alarm::new(clock).map_err(io_error("opening a timer"))?;
        let voice = setup.tun.voice_queue().inspect_err(|error| {
            tracing::warn!(%error, "voice waits behind bulk: all packets share one queue of the TUN");
        });
        let voice = voice.ok();
        let watched =
            [(setup.tun.queue().as_raw_fd(), TUN), (socket.as_raw_fd(), PEERS), (alarm.as_raw_fd(), ALARM)];
        for (fd, token) in watched.into_iter().chain(voice.iter().map(|queue| (queue.as_raw_fd(), VOICE))) {
            poll.registry()
                .register(&mut SourceFd(&fd), token, Interest::READABLE)
                .map_err(io_error("watching the gateway's descriptors"))?;
        }
        let segmentation = UdpSegmentation::new(&socket, true);
        let mut tun = setup.tun;
        tun.offer_segmentation(segmentation.is_on());
        let worker = Self {
            poll,
            rest: Rest::default(),
            clock,
            alarm,
            stop,
            tun,
            tun_ready: true,
            voice_ready: voice.is_some(),
            voice,
            paths: Paths::new(&setup.responder, &setup.addresses, setup.mtu),
            responder: setup.responder,
            outbox: Outbox::new(segmentation, setup.outer_dscp),
            inbox: Inbox::new(&socket, true),
            socket,
            peers_ready: true,
            writer: TunWriter::new(),
            record: vec![0; RECORD].into_boxed_slice(),
        };
        Ok((worker, setup.on_exit))
    }

    fn run(&mut self) -> Result<(), PumpError> {
        let mut events = Events::with_capacity(16);
        let mut now = self.clock.now();
        while !self.stop.load(Ordering::Relaxed) {
            let probe = self.paths.deadline();
            self.alarm.ring_at(self.responder.deadline().into_iter().chain(probe).min(), now);
            let busy = self.tun_ready || self.voice_ready || self.peers_ready;
            if self.rest.wait(&mut self.poll, &mut events, busy).map_err(io_error("waiting for packets"))? {
                self.give_back();
            }
            let mut has_errors = false;
            for event in &events {
                self.tun_ready |= event.token() == TUN;
                self.voice_ready |= event.token() == VOICE;
                self.peers_ready |= event.token() == PEERS;
                has_errors |= event.token() == PEERS && event.is_error();
                if event.token() == ALARM {
                    self.alarm.rang();
                }
            }
            now = self.clock.now();
            if has_errors {
                self.hear_errors(now);
            }
            self.move_packets(now)?;
            self.meet_deadlines(now);
            self.follow_paths(now);
        }
        Ok(())
    }

    /// The buffers' memory.
    fn give_back(&mut self) {
        self.inbox.give_back();
        self.outbox.give_back();
        self.writer.give_back();
    }

    fn move_packets(&mut self, now: Instant) -> Result<(), PumpError> {
        self.take_voice(now)?;
        if self.tun_ready {
            self.tun_ready = self.take_from_tun(false, now)?;
        }
        if self.peers_ready {
            self.take_from_peers(now)?;
        }
        Ok(())
    }

    /// Takes what UDP has come since, though no event told of it yet. What is bulk among it leaves bulk its turns.
    fn take_voice(&mut self, now: Instant) -> Result<(), PumpError> {
        if self.voice.is_some() {
            self.voice_ready = self.take_from_tun(true, now)?;
        }
        Ok(())
    }

    /// Seals and sends one turn of what is in the queue of `voice` or in the other one; whether there may be more.
    fn take_from_tun(&mut self, voice: bool, now: Instant) -> Result<bool, PumpError> {
        let (mut bytes, mut more) = (0, true);
        for _ in 0..BATCH {
            if bytes >= TURN_BYTES {
                break;
            }
            let queue = self.voice.as_ref().filter(|_| voice).unwrap_or(self.tun.queue());
            match queue.read(&mut self.record) {
                Ok(length) => {
                    bytes += length;
                    self.seal(length, now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    more = false;
                    break;
                }
                Err(error) => return Err(io_error("reading from the TUN")(error)),
            }
        }
        self.outbox.send(&self.socket);
        Ok(more)
    }

    /// Seals the packet in `record` for the peer that its destination belongs to; one that belongs to nobody heard of yet is dropped.
    fn seal(&mut self, length: usize, now: Instant) -> Option<()> {
        let record = Record::split(self.record.get_mut(..length)?)?;
        let segmentation = record.segmentation;
        let mut packet = PacketMut::parse(record.packet, record.checksum).ok()?;
        if segmentation.is_none() && !packet.complete_checksum() {
            return None;
        }
        let route = self.responder.route(packet.headers().destination)?;
        let (endpoint, mtu) = (route.endpoint?, self.paths.mtu(route.peer));
        packet.clamp_mss(mtu);
        if let Some(mtu) = fit::too_big(&packet.as_packet(), segmentation, mtu) {
            return tell_too_big(&packet.as_packet(), mtu, &self.tun);
        }
        let headers = *packet.headers();
        if headers.len as usize > LARGE {
            self.paths.used(route.peer, now);
        }
        let peer = self.responder.peer_mut(route.peer)?;
        let (outbox, socket) = (&mut self.outbox, &self.socket);
        let mut seal = |room: &mut [u8], length| {
            make_room(outbox, socket);
            match peer.seal(room, length, outbox.room(), now) {
                Ok(Sealed::Datagram(datagram)) => {
                    let len = datagram.len();
                    outbox.push(len, Some(headers.tos), endpoint);
                }
                Ok(Sealed::Queued { handshake: Some(handshake) }) => {
                    let len = handshake.len();
                    outbox.push(len, None, endpoint);
                }
                Ok(Sealed::Queued { handshake: None } | Sealed::Full | Sealed::Down) | Err(_) => {}
            }
        };
        let room = self.record.get_mut(VNET_HEADER..)?;
        let Some(segmentation) = segmentation else {
            seal(room, headers.len as usize);
            return Some(());
        };
        let mut segments = Segments::new(room, &headers, segmentation)?;
        while let Some(segment) = segments.next() {
            seal(segment.room, segment.length);
        }
        Some(())
    }

    fn take_from_peers(&mut self, now: Instant) -> Result<(), PumpError> {
        let (count, more) = self.inbox.receive(&self.socket);
        self.peers_ready = more;
        let mut opened_bytes = 0;
        for place in 0..count {
            if opened_bytes >= VOICE_AFTER {
                opened_bytes = 0;
                self.take_voice(now)?;
            }
            let (mut heard, mut large) = (None, false);
            if let Some((from, tos, datagrams)) = self.inbox.message(place) {
                for datagram in datagrams {
                    opened_bytes += datagram.len();
                    if self.writer.is_full() {
                        pass_on(&mut self.writer, &mut self.tun);
                    }
                    let opened = self.responder.open(datagram, from, self.writer.room(), now);
                    let Ok((peer, opened)) =
                        opened.inspect_err(|error| tracing::debug!(%from, %error, "datagram refused"))
                    else {
                        continue;
                    };
                    heard = peer.or(heard);
                    match opened {
                        Opened::Packet(packet) => {
                            let length = packet.len();
                            large |= length > LARGE;
                            if let Some(peer) = peer {
                                if may_be_icmp(packet) && is_answer(&mut self.paths, peer, packet, now) {
                                    continue;
                                }
                                clamp_mss(packet, self.paths.mtu(peer));
                            }
                            if decapsulate(packet, tos) {
                                self.writer.push(length);
                            }
                        }
                        Opened::Reply(reply) => {
                            self.outbox.send_now(reply, None, from, &self.socket);
                        }
                        Opened::Keepalive | Opened::Nothing => {}
                    }
                }
            }
            if let Some(peer) = heard {
                if let Some(from) = self.responder.endpoint(peer) {
                    self.paths.heard(peer, from, now);
                }
                if large {
                    self.paths.used(peer, now);
                }
                self.flush(peer, now);
            }
        }
        pass_on(&mut self.writer, &mut self.tun);
        Ok(())
    }

    /// Sends what waited for the peer's session.
    fn flush(&mut self, peer: usize, now: Instant) {
        let Some(endpoint) = self.responder.endpoint(peer) else { return };
        let Some(peer) = self.responder.peer_mut(peer) else { return };
        loop {
            make_room(&mut self.outbox, &self.socket);
            let inner = peer.waiting(now).and_then(Tos::of);
            let Some(len) = peer.flush(self.outbox.room(), now).map(<[u8]>::len) else { break };
            self.outbox.push(len, inner, endpoint);
        }
        self.outbox.send(&self.socket);
    }

    fn meet_deadlines(&mut self, now: Instant) {
        for _ in 0..BATCH {
            if self.responder.deadline().is_none_or(|due| due > now) {
                break;
            }
            make_room(&mut self.outbox, &self.socket);
            let Some((peer, datagram)) = self.responder.on_deadline(self.outbox.room(), now) else {
                continue;
            };
            let len = datagram.len();
            if let Some(endpoint) = self.responder.endpoint(peer) {
                self.outbox.push(len, None, endpoint);
            }
        }
        self.outbox.send(&self.socket);
    }

    /// Sends probes of the paths' MTUs, and applies what was found.
    fn follow_paths(&mut self, now: Instant) {
        for _ in 0..BATCH {
            let Some((probe, endpoint)) = self.paths.on_deadline(&mut self.responder, now) else { break };
            self.outbox.send_now(&probe, None, endpoint, &self.socket);
        }
        if self.paths.apply(&mut self.responder) {
            // A path that is too narrow refuses large sends in one call.
            self.outbox.segmentation().offer_again();
        }
        if let Some((destinations, least)) = self.paths.fragmenting() {
            self.outbox.let_fragment(destinations, least);
        }
    }

    /// Empties the socket's error queue.
    fn hear_errors(&mut self, now: Instant) {
        for _ in 0..MAX_ERRORS {
            let Some(error) = error_queue::take(self.socket.as_fd(), &mut []) else { return };
            if let Some(mtu) = error.path_mtu() {
                self.paths.told(error.destination, mtu, now);
            }
        }
    }
}

/// In the name of the packet's destination; back to its sender by way of the TUN.
fn tell_too_big(packet: &Packet<'_>, mtu: u16, tun: &Tun) -> Option<()> {
    let mut record = [0; VNET_HEADER + build::MAX_REFUSAL];
    let (header, out) = record.split_first_chunk_mut::<VNET_HEADER>()?;
    *header = COMPLETE;
    let len = build::too_big(packet, mtu.into(), packet.headers().destination, out)?;
    tun.queue().write(record.get(..VNET_HEADER + len)?).ok()
}

fn is_answer(paths: &mut Paths, peer: usize, packet: &[u8], now: Instant) -> bool {
    Packet::parse(packet).is_ok_and(|packet| paths.is_answer(peer, &packet, now))
}

/// Without room for one more datagram, what is sealed is sent first.
fn make_room(outbox: &mut Outbox, socket: &Socket) {
    if outbox.is_full() {
        outbox.send(socket);
    }
}

/// Writes what was opened to the TUN: a peer's addresses are checked when it is opened.
fn pass_on(writer: &mut TunWriter, tun: &mut Tun) {
    writer.parse();
    writer.judge(|_| true);
    writer.flush(tun);
}

#[cfg(test)]
mod tests;
