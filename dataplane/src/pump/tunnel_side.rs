use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use packet::{Packet, Tos};
use policy::Path;
use socket2::Socket;
use tunnel::{Opened, Peer, Sealed, State};

use super::worker::Shared;
use super::{PumpError, io_error};
use crate::buffers::Buffers;
use crate::io::receive::{Receiver, may_be_more};
use crate::io::send::{Datagram, Retry, Sender};
use crate::io::sockets;
use crate::io::tun::{COMPLETE, VNET_HEADER};
use crate::{BATCH, DropReason, TunnelReport};

/// A datagram of any size.
const DATAGRAM: usize = 65_535;

/// The WireGuard peer, its socket and its buffers.
pub(super) struct TunnelSide {
    pub(super) peer: Peer,
    pub(super) ready: bool,
    endpoint: SocketAddr,
    fwmark: u32,
    socket: Socket,
    sender: Sender,
    receiver: Receiver,
    datagrams: Buffers,
    /// Sealed datagrams, and how long each is.
    sealed: Buffers,
    sealed_lengths: Vec<usize>,
    /// One opened packet behind its virtio header.
    opened: Box<[u8]>,
}

impl TunnelSide {
    pub(super) fn open(
        peer: Peer,
        endpoint: SocketAddr,
        fwmark: u32,
        registry: &Registry,
        token: Token,
    ) -> Result<Self, PumpError> {
        let socket = open_socket(endpoint, fwmark, registry, token)?;
        let mut opened = vec![0; VNET_HEADER + DATAGRAM].into_boxed_slice();
        if let Some(header) = opened.first_chunk_mut() {
            *header = COMPLETE;
        }
        Ok(Self {
            peer,
            ready: true,
            endpoint,
            fwmark,
            socket,
            sender: Sender::new(),
            receiver: Receiver::new(),
            datagrams: Buffers::new(BATCH, DATAGRAM),
            sealed: Buffers::new(BATCH, DATAGRAM),
            sealed_lengths: Vec::with_capacity(BATCH),
            opened,
        })
    }

    /// On an error the peer stays where it was.
    pub(super) fn move_to(
        &mut self,
        endpoint: SocketAddr,
        registry: &Registry,
        token: Token,
    ) -> Result<(), PumpError> {
        if endpoint.is_ipv4() != self.endpoint.is_ipv4() {
            self.socket = open_socket(endpoint, self.fwmark, registry, token)?;
        }
        self.endpoint = endpoint;
        Ok(())
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.peer.deadline()
    }

    /// Seals the packets at `places` and sends them.
    pub(super) fn send(
        &mut self,
        places: &[usize],
        lengths: &[usize; BATCH],
        records: &mut Buffers,
        shared: &mut Shared,
        now: Instant,
    ) {
        self.sealed_lengths.clear();
        for &place in places {
            let length = lengths.get(place).copied().unwrap_or_default().saturating_sub(VNET_HEADER);
            let Some(room) = records.get_mut(place).get_mut(VNET_HEADER..) else { continue };
            let out = self.sealed.get_mut(self.sealed_lengths.len());
            match self.peer.seal(room, length, out, now) {
                Ok(Sealed::Datagram(datagram)) => {
                    self.sealed_lengths.push(datagram.len());
                    shared.counters.count_out(Path::Tunnel, length);
                }
                Ok(Sealed::Queued { handshake }) => {
                    self.sealed_lengths.extend(handshake.map(<[u8]>::len));
                    shared.counters.count_out(Path::Tunnel, length);
                }
                Ok(Sealed::Full) => shared.counters.count_drop(DropReason::QueueFull),
                Ok(Sealed::Down) => refuse(room.get(..length).unwrap_or_default(), shared, now),
                Err(_) => shared.counters.count_drop(DropReason::TooBig),
            }
        }
        self.send_sealed(shared);
    }

    /// Opens one batch of what the gateway sent and writes it to the TUN.
    pub(super) fn receive(&mut self, shared: &mut Shared, now: Instant) {
        let received = self.receiver.receive(self.socket.as_fd(), &mut self.datagrams, 0);
        self.ready = may_be_more(&received);
        let count = received.unwrap_or(0);
        for place in 0..count {
            let Some(received) = self.receiver.get(place) else { continue };
            let datagram = self.datagrams.get(place).get(..received.len).unwrap_or_default();
            let Some((_, out)) = self.opened.split_at_mut_checked(VNET_HEADER) else { continue };
            let opened = match self.peer.open(datagram, out, now) {
                Ok(opened) => opened,
                Err(error) => {
                    tracing::trace!(from = %received.from, %error, "datagram refused");
                    shared.counters.count_drop(DropReason::NotAuthentic);
                    continue;
                }
            };
            // Roaming: from now on the peer is answered where it is.
            if opened.is_authentic() {
                self.endpoint = received.from;
            }
            match opened {
                Opened::Packet(packet) => {
                    let length = packet.len();
                    let accepted = match Packet::parse(packet) {
                        Ok(packet) => shared.engine.from_tunnel(&packet, now).is_ok(),
                        Err(_) => {
                            shared.counters.count_drop(DropReason::Malformed);
                            false
                        }
                    };
                    if accepted && let Some(record) = self.opened.get(..VNET_HEADER + length) {
                        shared.write(record);
                    }
                }
                Opened::Reply(reply) => {
                    let reply =
                        Datagram { payload: reply, destination: received.from, tos: Tos(0), ttl: None };
                    send(&mut self.sender, &self.socket, std::iter::once(reply), shared);
                }
                Opened::Keepalive | Opened::Nothing => {}
            }
        }
        self.flush(shared, now);
    }

    pub(super) fn meet_deadlines(&mut self, shared: &mut Shared, now: Instant) {
        self.sealed_lengths.clear();
        for _ in 0..BATCH {
            if self.peer.deadline().is_none_or(|due| due > now) {
                break;
            }
            let out = self.sealed.get_mut(self.sealed_lengths.len());
            let datagram = self.peer.on_deadline(out, now);
            self.sealed_lengths.extend(datagram.map(<[u8]>::len));
        }
        self.send_sealed(shared);
        while let Some(packet) = self.peer.take_refused() {
            refuse(&packet, shared, now);
        }
    }

    pub(super) fn report(&self, now: Instant) -> TunnelReport {
        let stats = self.peer.stats();
        let ago = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        TunnelReport {
            state: match self.peer.state(now) {
                State::Idle => "idle",
                State::Connecting { .. } => "connecting",
                State::Up { .. } => "up",
                State::Down { .. } => "down",
            },
            endpoint: self.endpoint,
            last_handshake: ago(stats.last_handshake),
            last_received: ago(stats.last_received),
            sent_bytes: stats.sent_bytes,
            received_bytes: stats.received_bytes,
            trouble: self.peer.trouble(now).map(|trouble| trouble.to_string()),
        }
    }

    /// Sends what waited for the session that is up now.
    fn flush(&mut self, shared: &mut Shared, now: Instant) {
        loop {
            self.sealed_lengths.clear();
            while self.sealed_lengths.len() < BATCH {
                let out = self.sealed.get_mut(self.sealed_lengths.len());
                let Some(datagram) = self.peer.flush(out, now) else { break };
                self.sealed_lengths.push(datagram.len());
            }
            self.send_sealed(shared);
            if self.sealed_lengths.len() < BATCH {
                return;
            }
        }
    }

    fn send_sealed(&mut self, shared: &mut Shared) {
        if self.sealed_lengths.is_empty() {
            return;
        }
        let sealed = &self.sealed;
        let destination = self.endpoint;
        let datagrams = self.sealed_lengths.iter().enumerate().map(|(place, &length)| Datagram {
            payload: sealed.get(place).get(..length).unwrap_or_default(),
            destination,
            tos: Tos(0),
            ttl: None,
        });
        send(&mut self.sender, &self.socket, datagrams, shared);
    }
}

fn send<'a>(
    sender: &mut Sender,
    socket: &Socket,
    datagrams: impl Iterator<Item = Datagram<'a>>,
    shared: &Shared,
) {
    sender.load(datagrams).send(socket.as_fd(), |_, error| {
        tracing::debug!(%error, "the tunnel's datagram was not sent");
        shared.counters.count_drop(DropReason::SendFailed);
        Retry::No
    });
}

fn refuse(packet: &[u8], shared: &mut Shared, now: Instant) {
    let Ok(packet) = Packet::parse(packet) else { return };
    let action = shared.engine.tunnel_down(packet.headers(), now);
    shared.carry_out(action, &packet);
}

fn open_socket(
    endpoint: SocketAddr,
    fwmark: u32,
    registry: &Registry,
    token: Token,
) -> Result<Socket, PumpError> {
    let socket = sockets::tunnel(endpoint.ip(), fwmark).map_err(io_error("opening the tunnel's socket"))?;
    registry
        .register(&mut SourceFd(&socket.as_raw_fd()), token, Interest::READABLE)
        .map_err(io_error("watching the tunnel's socket"))?;
    Ok(socket)
}
