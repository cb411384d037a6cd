use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use packet::{FiveTuple, Headers, Tos, build};
use socket2::{Domain, Socket};

use super::core::Core;
use super::to_tun::ToTun;
use crate::buffers::Buffers;
use crate::engine::{Answer, Engine, MappingId};
use crate::fit::DF;
use crate::io::error_queue::{self, Cause};
use crate::io::receive::{Received, Receiver};
use crate::io::send::{Datagram, Next, Sender};
use crate::io::sockets;
use crate::io::tun::{VNET_HEADER, partial_udp};
use crate::offload::{Segmentation, Segments};
use crate::wire::UdpSegmentation;
use crate::{BATCH, DropReason, Feature, Underlay};

/// Room in front of a received payload for what the TUN wants before it: virtio, IPv6 and UDP header.
const HEADROOM: usize = VNET_HEADER + 48;
const DATAGRAM: usize = HEADROOM + 65_535;
/// More than a socket's buffer holds (each counts as 768 bytes or more), so that the queue is emptied, yet a flood does not keep us here.
const MAX_ERRORS: usize = 1024;

/// The mappings' sockets: payloads out as they were read, answers back behind a header written in front of them.
pub(super) struct Bypass {
    fwmark: u32,
    /// The tunnel's too: a device that refuses segmented sends refuses all.
    segmentation: Arc<UdpSegmentation>,
    underlay: Underlay,
    /// How often that had changed when it was looked at.
    underlays: u32,
    /// By the mapping's slot.
    sockets: Vec<Option<(MappingId, Outlet)>>,
    ready: Vec<usize>,
    raw_v4: io::Result<Outlet>,
    raw_v6: io::Result<Outlet>,
    sender: Sender,
    receiver: Receiver,
    datagrams: Buffers,
    /// To whom each of them goes.
    internal: [Option<SocketAddr>; BATCH],
    quote: Box<[u8]>,
    unsent: Vec<Unsent>,
}

/// A socket, and the interface by which what it sends leaves; `None`: as the routes say.
struct Outlet {
    socket: Socket,
    device: Option<u32>,
}

/// Whose packet could not be sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unsent {
    Mapped(MappingId, SocketAddr),
    Whole(FiveTuple),
}

/// A payload in the batch of records that goes out through a mapping.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    pub(super) place: usize,
    pub(super) payload: Range<usize>,
    pub(super) mapping: MappingId,
    pub(super) destination: SocketAddr,
    pub(super) tos: Tos,
    pub(super) ttl: u8,
    /// Of a super-packet: the kernel segments it again behind the mapping's socket.
    pub(super) segment: Option<u16>,
}

/// A packet in the batch of records that goes out as it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whole {
    pub(super) place: usize,
    pub(super) headers: Headers,
    pub(super) segmentation: Option<Segmentation>,
}

impl Bypass {
    pub(super) fn open(core: &Core, segmentation: Arc<UdpSegmentation>) -> Self {
        let raw = |domain| sockets::raw(domain, core.fwmark).map(Outlet::new);
        Self {
            fwmark: core.fwmark,
            segmentation,
            underlay: core.engine.lock().engine.underlay().clone(),
            underlays: 0,
            sockets: Vec::new(),
            ready: Vec::new(),
            raw_v4: raw(Domain::IPV4),
            raw_v6: raw(Domain::IPV6),
            sender: Sender::new(),
            receiver: Receiver::new(),
            datagrams: Buffers::new(BATCH, DATAGRAM),
            internal: [None; BATCH],
            quote: vec![0; build::MAX_REFUSAL].into_boxed_slice(),
            unsent: Vec::with_capacity(BATCH),
        }
    }

    pub(super) fn features(&self) -> Vec<Feature> {
        let raw = |name, socket: &io::Result<Outlet>| match socket {
            Ok(_) => (name, true, "a raw socket sends packets under their own address".to_owned()),
            Err(error) => (name, false, format!("no raw socket: {error}")),
        };
        vec![raw("identity-mapping-v4", &self.raw_v4), raw("identity-mapping-v6", &self.raw_v6)]
    }

    /// Its buffers' memory; see [`Rest`](crate::rest::Rest).
    pub(super) fn give_back(&mut self) {
        self.datagrams.give_back();
    }

    /// Has what is sent under each address leave by the interface that has the address now.
    pub(super) fn follow_underlay(&mut self, core: &Core) {
        let underlays = core.underlays();
        if std::mem::replace(&mut self.underlays, underlays) == underlays {
            return;
        }
        self.underlay = core.engine.lock().engine.underlay().clone();
        for (_, outlet) in self.sockets.iter_mut().flatten() {
            if let Some(own) = outlet.socket.local_addr().ok().and_then(|own| own.as_socket()) {
                outlet.leave_by(self.underlay.device_of(own.ip()), own.ip());
            }
        }
    }

    /// Reserves an external port for an internal endpoint and tells the engine.
    pub(super) fn reserve(
        &mut self,
        internal: SocketAddr,
        external: IpAddr,
        engine: &mut Engine,
        registry: &Registry,
        token: impl Fn(MappingId) -> Token,
        now: Instant,
    ) -> io::Result<()> {
        let socket = sockets::mapping(external, internal.port(), self.fwmark)?;
        let bound = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let mut outlet = Outlet::new(socket);
        outlet.leave_by(engine.underlay().device_of(external), external);
        let Some(mapping) = engine.reserved(internal, bound, now) else {
            return Err(io::Error::other("all mappings are in use"));
        };
        let watched =
            registry.register(&mut SourceFd(&outlet.socket.as_raw_fd()), token(mapping), Interest::READABLE);
        if let Err(error) = watched {
            engine.given_back(mapping);
            return Err(error);
        }
        let slot = usize::from(mapping.slot);
        if self.sockets.len() <= slot {
            self.sockets.resize_with(slot + 1, || None);
        }
        if let Some(place) = self.sockets.get_mut(slot) {
            *place = Some((mapping, outlet));
        }
        tracing::debug!(%internal, external = %bound, "voice mapping");
        Ok(())
    }

    pub(super) fn close(&mut self, mapping: MappingId) {
        if let Some(place) = self.sockets.get_mut(usize::from(mapping.slot))
            && place.as_ref().is_some_and(|(id, _)| *id == mapping)
        {
            *place = None;
        }
    }

    /// Notes an event of the mapping's socket.
    pub(super) fn set_ready(&mut self, slot: usize, failed: bool, core: &Core, to_tun: &mut ToTun) {
        // A send may have taken the pending error without telling us (sendmmsg does where it sent something before), so that no receive
        // reports it any more; its queue is full all the same.
        if failed && let Some(Some((mapping, outlet))) = self.sockets.get(slot) {
            tell_errors(*mapping, &outlet.socket, &mut self.quote, core, to_tun);
        }
        self.look_at(slot);
    }

    /// Has a mapping's socket read once more, though nothing says that there is anything in it.
    pub(super) fn look_into(&mut self, mapping: MappingId) {
        self.look_at(usize::from(mapping.slot));
    }

    fn look_at(&mut self, slot: usize) {
        if !self.ready.contains(&slot) {
            self.ready.push(slot);
        }
    }

    /// Whether there may be more in a mapping's socket.
    pub(super) fn may_have_more(&self, mapping: MappingId) -> bool {
        self.ready.contains(&usize::from(mapping.slot))
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Sends payloads, those of one mapping that follow each other in one call.
    pub(super) fn send(&mut self, outgoing: &[Outgoing], records: &Buffers, core: &Core, to_tun: &mut ToTun) {
        for run in outgoing.chunk_by(|a, b| a.mapping == b.mapping) {
            let Some(first) = run.first() else { continue };
            let Some((mapping, socket)) = socket_of(&self.sockets, first.mapping) else {
                core.counters.count_drops(DropReason::SendFailed, run.len());
                continue;
            };
            let datagrams = run.iter().map(|out| Datagram {
                payload: payload(records, out),
                destination: out.destination,
                tos: out.tos,
                ttl: Some(out.ttl),
                segment: out.segment,
            });
            let (quote, unsent) = (&mut self.quote, &mut self.unsent);
            let mut tried_again = None;
            let refused = |place, datagram: Datagram<'_>, error: &io::Error| {
                // A pending error of one remote makes the send to another fail: it is taken off the queue, the send tried once more.
                if error_queue::may_be_anothers(error) {
                    tell_errors(mapping, socket, quote, core, to_tun);
                    if tried_again != Some(place) {
                        tried_again = Some(place);
                        return Next::Again;
                    }
                }
                core.counters.count_drops(DropReason::SendFailed, datagram.parts().count());
                if !is_full(error) {
                    unsent.push(Unsent::Mapped(mapping, datagram.destination));
                }
                Next::Skip
            };
            let socket = socket.as_fd();
            let unsegmented = match self.segmentation.is_on() {
                true => self.sender.send_all(socket, datagrams, refused),
                false => self.sender.send_all(socket, datagrams.flat_map(Datagram::parts), refused),
            };
            // Any other error may be about these datagrams, which may be too large for the path.
            if let Some(error) = unsegmented.filter(|error| error.raw_os_error() == Some(libc::EIO)) {
                self.segmentation.refused(&error);
            }
        }
    }

    /// What could not be sent since this was asked last, but for want of room.
    pub(super) fn take_unsent(&mut self) -> impl Iterator<Item = Unsent> {
        self.unsent.drain(..)
    }

    /// Sends packets whose source is the physical interface's own, under it.
    pub(super) fn send_whole(&mut self, whole: &[Whole], records: &mut Buffers, core: &Core) {
        for packet in whole {
            let destination = packet.headers.destination;
            let Ok(outlet) = (if destination.is_ipv4() { &mut self.raw_v4 } else { &mut self.raw_v6 }) else {
                core.counters.count_drop(DropReason::SendFailed);
                continue;
            };
            outlet.leave_by(self.underlay.device_of(packet.headers.source), destination);
            let socket = &outlet.socket;
            let (sender, unsent) = (&mut self.sender, &mut self.unsent);
            let mut send = |payload: &[u8]| {
                let destination = SocketAddr::new(destination, 0);
                let datagram = Datagram { payload, destination, tos: Tos(0), ttl: None, segment: None };
                sender.load(std::iter::once(datagram)).send(socket.as_fd(), |_, error| {
                    tracing::debug!(%error, "a packet under the physical address was not sent");
                    core.counters.count_drop(DropReason::SendFailed);
                    let refused = packet.headers.five_tuple().filter(|_| !is_full(error));
                    unsent.extend(refused.map(Unsent::Whole));
                    Next::Skip
                });
            };
            let Some(room) = records.get_mut(packet.place).get_mut(VNET_HEADER..) else { continue };
            if destination.is_ipv4() {
                clear_df(room);
            }
            match packet.segmentation {
                None => send(room.get(..packet.headers.len as usize).unwrap_or_default()),
                Some(segmentation) => {
                    let Some(mut segments) = Segments::new(room, &packet.headers, segmentation) else {
                        core.counters.count_drop(DropReason::Malformed);
                        continue;
                    };
                    while let Some(segment) = segments.next() {
                        send(segment.room.get(..segment.length).unwrap_or_default());
                    }
                }
            }
        }
    }

    /// Hands one batch of each ready mapping's answers to the TUN.
    pub(super) fn receive(&mut self, core: &Core, to_tun: &mut ToTun, now: Instant) {
        let mut ready = std::mem::take(&mut self.ready);
        ready.retain(|&slot| self.receive_from(slot, core, to_tun, now));
        self.ready = ready;
    }

    /// `true` if there may be more.
    fn receive_from(&mut self, slot: usize, core: &Core, to_tun: &mut ToTun, now: Instant) -> bool {
        let Some(Some((mapping, Outlet { socket, .. }))) = self.sockets.get(slot) else { return false };
        let mapping = *mapping;
        let quote = &mut self.quote;
        // A pending error is reported once in place of data; what it was about stands in the error queue.
        let failed = || tell_errors(mapping, socket, quote, core, to_tun);
        let count = self.receiver.receive(socket.as_fd(), &mut self.datagrams, HEADROOM, failed);
        if count == 0 {
            return false;
        }
        let mut judge = core.engine.lock();
        for (place, to) in self.internal.iter_mut().enumerate().take(count) {
            *to = self.receiver.get(place).and_then(|received| {
                let payload = self.datagrams.get(place).get(HEADROOM..HEADROOM + received.len)?;
                let answer = Answer { from: received.from, tos: received.tos, payload };
                judge.engine.from_bypass(mapping, &answer, now).ok()
            });
        }
        drop(judge);
        for (place, to) in self.internal.iter().enumerate().take(count) {
            let (Some(internal), Some(received)) = (*to, self.receiver.get(place)) else { continue };
            if let Some(record) = with_headers(self.datagrams.get_mut(place), &received, internal) {
                to_tun.write(record);
            }
        }
        count == BATCH
    }
}

impl Outlet {
    fn new(socket: Socket) -> Self {
        Self { socket, device: None }
    }

    fn leave_by(&mut self, device: Option<u32>, like: IpAddr) {
        if self.device == device {
            return;
        }
        match sockets::leave_by(&self.socket, device, like) {
            Ok(()) => self.device = device,
            // The interface has just gone, and whoever tells of that will tell.
            Err(error) => tracing::debug!(%error, ?device, "voice leaves as the routes say"),
        }
    }
}

/// Whether there was no room for a packet: the next one may have some.
fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN))
}

fn socket_of(sockets: &[Option<(MappingId, Outlet)>], mapping: MappingId) -> Option<(MappingId, &Socket)> {
    let (id, outlet) = sockets.get(usize::from(mapping.slot))?.as_ref()?;
    (*id == mapping).then_some((mapping, &outlet.socket))
}

/// As in a mapping, routers may fragment an IPv4 packet. The kernel writes the checksum of a raw socket's header.
fn clear_df(packet: &mut [u8]) {
    if let [_, _, _, _, _, _, flags, ..] = packet {
        *flags &= !DF;
    }
}

/// The payload to send, which is never copied: it lies in the buffer it was read into.
fn payload<'a>(records: &'a Buffers, out: &Outgoing) -> &'a [u8] {
    let payload = records.get(out.place).get(out.payload.clone()).unwrap_or_default();
    debug_assert!(records.hold(payload));
    payload
}

/// Writes the headers directly before the received payload; returns the record from its virtio header on.
fn with_headers<'a>(buffer: &'a mut [u8], received: &Received, internal: SocketAddr) -> Option<&'a [u8]> {
    let header_len = build::udp_header_len(&received.from);
    let headers_at = HEADROOM - header_len;
    let headers = buffer.get_mut(headers_at..HEADROOM)?;
    if !build::udp_header(headers, received.from, internal, received.tos, received.ttl, received.len) {
        return None;
    }
    let record_at = headers_at - VNET_HEADER;
    *buffer.get_mut(record_at..)?.first_chunk_mut()? = partial_udp(header_len as u16 - 8);
    buffer.get(record_at..HEADROOM + received.len)
}

/// Empties a socket's error queue; each error goes to the application whose datagram it is about, if there was one. What it says of sizes does
/// not: here nothing is too large, and an application's host would believe for ten minutes what anybody may have written.
fn tell_errors(mapping: MappingId, socket: &Socket, quote: &mut [u8], core: &Core, to_tun: &mut ToTun) {
    for _ in 0..MAX_ERRORS {
        let Some(error) = error_queue::take(socket.as_fd(), quote) else { return };
        let Cause::Icmp { from, kind, code, rest } = error.cause else { continue };
        if error.path_mtu().is_some() {
            continue;
        }
        let about = core.engine.lock().engine.told_of_error(mapping, error.destination.ip());
        let Some(internal) = about else { continue };
        let payload = quote.get(..error.quoted).unwrap_or_default();
        let sent = build::SentUdp { source: internal, destination: error.destination, payload };
        to_tun.error_about(&sent, build::IcmpError { kind, code, rest }, from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_goes_to_the_tun_from_the_buffer_that_it_was_received_into() {
        let mut datagrams = Buffers::new(2, DATAGRAM);
        for (from, internal) in
            [("203.0.113.9:443", "10.99.0.1:5000"), ("[2001:db8::9]:443", "[2001:db8:99::1]:5000")]
        {
            let payload = datagrams.get(1).as_ptr_range().start.wrapping_add(HEADROOM);
            let received =
                Received { len: 1200, from: from.parse().unwrap(), tos: Tos(0xb8), ttl: 50, segment: 1200 };
            let record = with_headers(datagrams.get_mut(1), &received, internal.parse().unwrap()).unwrap();
            let record = record.as_ptr_range();
            assert_eq!(record.end, payload.wrapping_add(1200), "the payload did not move");
            let all = datagrams.get(1).as_ptr_range();
            assert!(all.start <= record.start && record.end <= all.end);
        }
    }
}
