use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use packet::{Headers, OuterDscp, Packet, Tos};
use policy::Path;
use socket2::Socket;
use tunnel::Sealed;

use super::core::{Core, Tunnel};
use super::to_tun::ToTun;
use crate::buffers::Buffers;
use crate::io::tun::VNET_HEADER;
use crate::lock::Guard;
use crate::offload::{Segment, Segmentation, Segments};
use crate::wire::{Outbox, Switch};
use crate::{BATCH, DropReason, Feature};

/// What is sealed before the peer is given to a thread that waits for it: about 0.1 ms of cipher.
const HELD_BYTES: usize = 64 << 10;

/// A thread's way into the tunnel: packets are sealed under the peer's lock and sent without it.
pub(super) struct Sealer {
    outbox: Outbox,
}

/// A packet in the batch of records that is to be sealed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain {
    pub(super) place: usize,
    pub(super) headers: Headers,
    pub(super) segmentation: Option<Segmentation>,
}

impl Sealer {
    pub(super) fn new(segments: Switch, dscp: OuterDscp) -> Self {
        Self { outbox: Outbox::new(segments, dscp) }
    }

    pub(super) fn feature(&self) -> Feature {
        self.outbox.feature()
    }

    /// Seals packets and sends them; super-packets are taken apart where they lie.
    pub(super) fn send(
        &mut self,
        packets: &[Plain],
        records: &mut Buffers,
        core: &Core,
        to_tun: &mut ToTun,
        now: Instant,
    ) {
        if packets.is_empty() {
            return;
        }
        let mut tunnel = core.tunnel.lock();
        let mut held = 0;
        for packet in packets {
            if held >= HELD_BYTES {
                drop(tunnel);
                tunnel = core.tunnel.lock();
                held = 0;
            }
            held += packet.headers.len as usize;
            let Some(room) = records.get_mut(packet.place).get_mut(VNET_HEADER..) else { continue };
            let (length, tos) = (packet.headers.len as usize, packet.headers.tos);
            let Some(segmentation) = packet.segmentation else {
                tunnel = self.make_room(tunnel, core);
                self.seal(&mut tunnel, Segment { room, length }, tos, core, to_tun, now);
                continue;
            };
            let Some(mut segments) = Segments::new(room, &packet.headers, segmentation) else {
                core.counters.count_drop(DropReason::Malformed);
                continue;
            };
            while let Some(segment) = segments.next() {
                tunnel = self.make_room(tunnel, core);
                self.seal(&mut tunnel, segment, tos, core, to_tun, now);
            }
        }
        tunnel.set_alarm(now);
        let socket = Arc::clone(&tunnel.socket);
        drop(tunnel);
        self.send_sealed(&socket, core);
    }

    /// Sends what waited for the session that is up now.
    pub(super) fn flush(&mut self, core: &Core, now: Instant) {
        let mut tunnel = core.tunnel.lock();
        loop {
            tunnel = self.make_room(tunnel, core);
            let inner = tunnel.peer.waiting(now).and_then(Tos::of);
            let Some(len) = tunnel.peer.flush(self.outbox.room(), now).map(<[u8]>::len) else { break };
            self.outbox.push(len, inner, tunnel.endpoint);
        }
        tunnel.set_alarm(now);
        let socket = Arc::clone(&tunnel.socket);
        drop(tunnel);
        self.send_sealed(&socket, core);
    }

    pub(super) fn meet_deadlines(&mut self, core: &Core, to_tun: &mut ToTun, now: Instant) {
        let mut tunnel = core.tunnel.lock();
        for _ in 0..BATCH {
            if tunnel.peer.deadline().is_none_or(|due| due > now) {
                break;
            }
            tunnel = self.make_room(tunnel, core);
            let datagram = tunnel.peer.on_deadline(self.outbox.room(), now);
            if let Some(len) = datagram.map(<[u8]>::len) {
                self.outbox.push(len, None, tunnel.endpoint);
            }
        }
        while let Some(packet) = tunnel.peer.take_refused() {
            refuse(&packet, core, to_tun, now);
        }
        tunnel.set_alarm(now);
        let socket = Arc::clone(&tunnel.socket);
        drop(tunnel);
        self.send_sealed(&socket, core);
    }

    /// Sends one datagram at once.
    pub(super) fn send_now(&mut self, datagram: &[u8], to: SocketAddr, socket: &Socket, core: &Core) {
        let failed = self.outbox.send_now(datagram, to, socket);
        core.counters.count_drops(DropReason::SendFailed, failed);
    }

    fn seal(
        &mut self,
        tunnel: &mut Tunnel,
        packet: Segment<'_>,
        tos: Tos,
        core: &Core,
        to_tun: &mut ToTun,
        now: Instant,
    ) {
        let Segment { room, length } = packet;
        let (sealed, inner) = match tunnel.peer.seal(room, length, self.outbox.room(), now) {
            Ok(Sealed::Datagram(datagram)) => (Some(datagram.len()), Some(tos)),
            Ok(Sealed::Queued { handshake }) => (handshake.map(<[u8]>::len), None),
            Ok(Sealed::Full) => return core.counters.count_drop(DropReason::QueueFull),
            Ok(Sealed::Down) => return refuse(room.get(..length).unwrap_or_default(), core, to_tun, now),
            Err(_) => return core.counters.count_drop(DropReason::TooBig),
        };
        if let Some(len) = sealed {
            self.outbox.push(len, inner, tunnel.endpoint);
        }
        core.counters.count_out(Path::Tunnel, length);
    }

    /// Without room for one more datagram, what is sealed is sent first, not under the lock.
    fn make_room<'a>(&mut self, tunnel: Guard<'a, Tunnel>, core: &'a Core) -> Guard<'a, Tunnel> {
        if !self.outbox.is_full() {
            return tunnel;
        }
        let socket = Arc::clone(&tunnel.socket);
        drop(tunnel);
        self.send_sealed(&socket, core);
        core.tunnel.lock()
    }

    fn send_sealed(&mut self, socket: &Socket, core: &Core) {
        let failed = self.outbox.send(socket);
        core.counters.count_drops(DropReason::SendFailed, failed);
    }
}

fn refuse(packet: &[u8], core: &Core, to_tun: &mut ToTun, now: Instant) {
    let Ok(packet) = Packet::parse(packet) else { return };
    let action = core.engine.lock().engine.tunnel_down(packet.headers(), now);
    to_tun.refuse(action, &packet);
}
