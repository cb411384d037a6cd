//! Our own responder's pump: TUN on one side, WireGuard peers on the other.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use packet::{Packet, PacketMut, Tos};
use socket2::Socket;
use tunnel::{Opened, Responder, Sealed};

use crate::BATCH;
use crate::buffers::Buffers;
use crate::clock::Clock;
use crate::io::receive::{Receiver, may_be_more};
use crate::io::send::{Datagram, Retry, Sender};
use crate::io::sockets;
use crate::io::tun::{COMPLETE, Tun, VNET_HEADER, split_record};
use crate::pump::{OnExit, PumpError, io_error};

pub struct GatewaySetup {
    pub tun: Tun,
    pub responder: Responder,
    /// Where peers reach it.
    pub listen: SocketAddr,
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
        let poll = Poll::new().map_err(io_error("opening an epoll"))?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER).map_err(io_error("opening a waker"))?);
        let socket = sockets::listening(setup.listen, 0).map_err(io_error("opening the gateway's port"))?;
        let clock = Clock::start().map_err(io_error("opening a timer"))?;
        let tun = setup.tun.as_fd().as_raw_fd();
        for (fd, token) in [(socket.as_raw_fd(), PEERS), (tun, TUN), (clock.as_raw_fd(), ALARM)] {
            poll.registry()
                .register(&mut SourceFd(&fd), token, Interest::READABLE)
                .map_err(io_error("watching the gateway's descriptors"))?;
        }
        let mut worker = Worker {
            poll,
            clock,
            stop: Arc::clone(&stop),
            tun: setup.tun,
            tun_ready: true,
            responder: setup.responder,
            socket,
            peers_ready: true,
            sender: Sender::new(),
            receiver: Receiver::new(),
            datagrams: Buffers::new(BATCH, DATAGRAM),
            sealed: Buffers::new(BATCH, DATAGRAM),
            outgoing: Vec::with_capacity(BATCH),
            record: vec![0; VNET_HEADER + DATAGRAM + 15].into_boxed_slice(),
        };
        let on_exit = setup.on_exit;
        let thread = thread::Builder::new()
            .name("gateway".to_owned())
            .spawn(move || on_exit(worker.run()))
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
const DATAGRAM: usize = 65_535;

struct Worker {
    poll: Poll,
    clock: Clock,
    stop: Arc<AtomicBool>,
    tun: Tun,
    tun_ready: bool,
    responder: Responder,
    socket: Socket,
    peers_ready: bool,
    sender: Sender,
    receiver: Receiver,
    datagrams: Buffers,
    /// Sealed datagrams, and how long each is and where it goes.
    sealed: Buffers,
    outgoing: Vec<(usize, SocketAddr)>,
    /// One packet behind its virtio header.
    record: Box<[u8]>,
}

impl Worker {
    fn run(&mut self) -> Result<(), PumpError> {
        let mut events = Events::with_capacity(16);
        let mut now = self.clock.now();
        while !self.stop.load(Ordering::Relaxed) {
            self.clock.ring_at(self.responder.deadline(), now);
            let busy = self.tun_ready || self.peers_ready;
            match self.poll.poll(&mut events, busy.then_some(Duration::ZERO)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(io_error("waiting for packets")(error));
                }
                _ => {}
            }
            for event in &events {
                self.tun_ready |= event.token() == TUN;
                self.peers_ready |= event.token() == PEERS;
                if event.token() == ALARM {
                    self.clock.rang();
                }
            }
            now = self.clock.now();
            if self.tun_ready {
                self.take_from_tun(now)?;
            }
            if self.peers_ready {
                self.take_from_peers(now);
            }
            self.meet_deadlines(now);
        }
        Ok(())
    }

    fn take_from_tun(&mut self, now: Instant) -> Result<(), PumpError> {
        self.outgoing.clear();
        for _ in 0..BATCH {
            let length = match self.tun.read(&mut self.record) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.tun_ready = false;
                    break;
                }
                Err(error) => return Err(io_error("reading from the TUN")(error)),
            };
            self.seal(length, now);
        }
        self.send();
        Ok(())
    }

    /// Seals the packet in `record` for the peer that its destination belongs to; one that belongs to nobody heard of yet is dropped.
    fn seal(&mut self, length: usize, now: Instant) -> Option<()> {
        let record = self.record.get_mut(..length)?;
        let (checksum, packet) = split_record(record)?;
        let mut packet = PacketMut::parse(packet, checksum).ok()?;
        if !packet.complete_checksum() {
            return None;
        }
        let route = self.responder.route(packet.headers().destination)?;
        let endpoint = route.endpoint?;
        let room = self.record.get_mut(VNET_HEADER..)?;
        let out = self.sealed.get_mut(self.outgoing.len());
        let peer = self.responder.peer_mut(route.peer)?;
        match peer.seal(room, length - VNET_HEADER, out, now).ok()? {
            Sealed::Datagram(datagram) | Sealed::Queued { handshake: Some(datagram) } => {
                self.outgoing.push((datagram.len(), endpoint));
            }
            Sealed::Queued { handshake: None } | Sealed::Full | Sealed::Down => {}
        }
        Some(())
    }

    fn take_from_peers(&mut self, now: Instant) {
        let received = self.receiver.receive(self.socket.as_fd(), &mut self.datagrams, 0);
        self.peers_ready = may_be_more(&received);
        for place in 0..received.unwrap_or(0) {
            self.open(place, now);
        }
    }

    fn open(&mut self, place: usize, now: Instant) -> Option<()> {
        let received = self.receiver.get(place)?;
        let datagram = self.datagrams.get(place).get(..received.len)?;
        let (header, out) = self.record.split_first_chunk_mut::<VNET_HEADER>()?;
        let opened = self.responder.open(datagram, received.from, out, now);
        let (peer, opened) = opened
            .inspect_err(|error| tracing::debug!(from = %received.from, %error, "datagram refused"))
            .ok()?;
        match opened {
            Opened::Packet(packet) => {
                *header = COMPLETE;
                let (length, whole) = (packet.len(), Packet::parse(packet).is_ok());
                if whole && let Err(error) = self.tun.write(self.record.get(..VNET_HEADER + length)?) {
                    tracing::debug!(%error, "the interface refused a packet");
                }
            }
            Opened::Reply(reply) => {
                let reply = Datagram { payload: reply, destination: received.from, tos: Tos(0), ttl: None };
                self.sender.load(std::iter::once(reply)).send(self.socket.as_fd(), not_sent);
            }
            Opened::Keepalive | Opened::Nothing => {}
        }
        self.flush(peer?, now);
        Some(())
    }

    /// Sends what waited for the peer's session.
    fn flush(&mut self, peer: usize, now: Instant) {
        loop {
            self.outgoing.clear();
            while self.outgoing.len() < BATCH {
                let out = self.sealed.get_mut(self.outgoing.len());
                let Some(endpoint) = self.responder.endpoint(peer) else { return };
                let datagram = self.responder.peer_mut(peer).and_then(|peer| peer.flush(out, now));
                let Some(datagram) = datagram else { break };
                self.outgoing.push((datagram.len(), endpoint));
            }
            self.send();
            if self.outgoing.len() < BATCH {
                return;
            }
        }
    }

    fn meet_deadlines(&mut self, now: Instant) {
        self.outgoing.clear();
        for _ in 0..BATCH {
            if self.responder.deadline().is_none_or(|due| due > now) {
                break;
            }
            let out = self.sealed.get_mut(self.outgoing.len());
            let Some((peer, datagram)) = self.responder.on_deadline(out, now) else { continue };
            let length = datagram.len();
            if let Some(endpoint) = self.responder.endpoint(peer) {
                self.outgoing.push((length, endpoint));
            }
        }
        self.send();
    }

    fn send(&mut self) {
        if self.outgoing.is_empty() {
            return;
        }
        let sealed = &self.sealed;
        let datagrams = self.outgoing.iter().enumerate().map(|(place, &(length, destination))| Datagram {
            payload: sealed.get(place).get(..length).unwrap_or_default(),
            destination,
            tos: Tos(0),
            ttl: None,
        });
        self.sender.load(datagrams).send(self.socket.as_fd(), not_sent);
    }
}

fn not_sent(_: usize, error: &io::Error) -> Retry {
    tracing::debug!(%error, "a datagram to a peer was not sent");
    Retry::No
}
