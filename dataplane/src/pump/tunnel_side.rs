use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use packet::{Headers, OuterDscp, Packet, Tos, decapsulate};
use policy::Path;
use socket2::Socket;
use tunnel::{Opened, Peer, Sealed, State};

use super::shared::Shared;
use super::{PumpError, io_error};
use crate::buffers::Buffers;
use crate::io::sockets;
use crate::io::tun::VNET_HEADER;
use crate::offload::{Segmentation, Segments};
use crate::tun_writer::TunWriter;
use crate::wire::Wire;
use crate::{BATCH, DropReason, Feature, TunnelReport};

/// The WireGuard peer, its socket, and what it opened for the TUN.
pub(super) struct TunnelSide {
    pub(super) peer: Peer,
    pub(super) ready: bool,
    endpoint: SocketAddr,
    fwmark: u32,
    wire: Wire,
    writer: TunWriter,
}

/// A packet in the batch of records that is to be sealed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain {
    pub(super) place: usize,
    pub(super) headers: Headers,
    pub(super) segmentation: Option<Segmentation>,
}

impl TunnelSide {
    pub(super) fn open(
        peer: Peer,
        endpoint: SocketAddr,
        fwmark: u32,
        offload: bool,
        outer_dscp: OuterDscp,
        registry: &Registry,
        token: Token,
    ) -> Result<Self, PumpError> {
        let wire = Wire::new(open_socket(endpoint, fwmark, registry, token)?, offload, outer_dscp);
        Ok(Self { peer, ready: true, endpoint, fwmark, wire, writer: TunWriter::new() })
    }

    pub(super) fn features(&self) -> [Feature; 2] {
        self.wire.features()
    }

    /// On an error the peer stays where it was.
    pub(super) fn move_to(
        &mut self,
        endpoint: SocketAddr,
        registry: &Registry,
        token: Token,
    ) -> Result<(), PumpError> {
        if endpoint.is_ipv4() != self.endpoint.is_ipv4() {
            self.wire.replace(open_socket(endpoint, self.fwmark, registry, token)?);
        }
        self.endpoint = endpoint;
        Ok(())
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.peer.deadline()
    }

    /// Seals packets and sends them; super-packets are taken apart where they lie.
    pub(super) fn send(
        &mut self,
        packets: &[Plain],
        records: &mut Buffers,
        shared: &mut Shared,
        now: Instant,
    ) {
        for packet in packets {
            let Some(room) = records.get_mut(packet.place).get_mut(VNET_HEADER..) else { continue };
            let Some(segmentation) = packet.segmentation else {
                self.seal(room, packet.headers.len as usize, packet.headers.tos, shared, now);
                continue;
            };
            let Some(mut segments) = Segments::new(room, &packet.headers, segmentation) else {
                shared.counters.count_drop(DropReason::Malformed);
                continue;
            };
            while let Some(segment) = segments.next() {
                self.seal(segment.room, segment.length, packet.headers.tos, shared, now);
            }
        }
        self.send_sealed(shared);
    }

    fn seal(&mut self, room: &mut [u8], length: usize, tos: Tos, shared: &mut Shared, now: Instant) {
        match self.peer.seal(room, length, self.wire.outbox.room(), now) {
            Ok(Sealed::Datagram(datagram)) => {
                let len = datagram.len();
                self.push(len, Some(tos), shared);
                shared.counters.count_out(Path::Tunnel, length);
            }
            Ok(Sealed::Queued { handshake }) => {
                if let Some(len) = handshake.map(<[u8]>::len) {
                    self.push(len, None, shared);
                }
                shared.counters.count_out(Path::Tunnel, length);
            }
            Ok(Sealed::Full) => shared.counters.count_drop(DropReason::QueueFull),
            Ok(Sealed::Down) => refuse(room.get(..length).unwrap_or_default(), shared, now),
            Err(_) => shared.counters.count_drop(DropReason::TooBig),
        }
    }

    /// Opens one batch of what the gateway sent and writes it to the TUN.
    pub(super) fn receive(&mut self, shared: &mut Shared, now: Instant) {
        let (count, more) = self.wire.inbox.receive(&self.wire.socket);
        self.ready = more;
        for place in 0..count {
            let Some((from, tos, datagrams)) = self.wire.inbox.message(place) else { continue };
            for datagram in datagrams {
                let opened = match self.peer.open(datagram, self.writer.room(), now) {
                    Ok(opened) => opened,
                    Err(error) => {
                        tracing::trace!(%from, %error, "datagram refused");
                        shared.counters.count_drop(DropReason::NotAuthentic);
                        continue;
                    }
                };
                // Roaming: from now on the peer is answered where it is.
                if opened.is_authentic() {
                    self.endpoint = from;
                }
                match opened {
                    Opened::Packet(packet) => {
                        let length = packet.len();
                        if !decapsulate(packet, tos) {
                            shared.counters.count_drop(DropReason::Congested);
                            continue;
                        }
                        if shared.accepts(self.writer.pending(length), now) && self.writer.keep(length) {
                            shared.flush(&mut self.writer);
                        }
                    }
                    Opened::Reply(reply) => {
                        let failed = self.wire.outbox.send_now(reply, from, &self.wire.socket);
                        shared.count_failed(failed);
                    }
                    Opened::Keepalive | Opened::Nothing => {}
                }
            }
        }
        shared.flush(&mut self.writer);
        self.flush(shared, now);
    }

    pub(super) fn meet_deadlines(&mut self, shared: &mut Shared, now: Instant) {
        for _ in 0..BATCH {
            if self.peer.deadline().is_none_or(|due| due > now) {
                break;
            }
            let datagram = self.peer.on_deadline(self.wire.outbox.room(), now);
            if let Some(len) = datagram.map(<[u8]>::len) {
                self.push(len, None, shared);
            }
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
            let inner = self.peer.waiting(now).and_then(Tos::of);
            let Some(len) = self.peer.flush(self.wire.outbox.room(), now).map(<[u8]>::len) else { break };
            self.push(len, inner, shared);
        }
        self.send_sealed(shared);
    }

    fn push(&mut self, len: usize, inner: Option<Tos>, shared: &Shared) {
        shared.count_failed(self.wire.outbox.push(len, inner, self.endpoint, &self.wire.socket));
    }

    fn send_sealed(&mut self, shared: &Shared) {
        shared.count_failed(self.wire.outbox.send(&self.wire.socket));
    }
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
