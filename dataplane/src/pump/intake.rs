use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Instant;

use packet::{Headers, Packet, PacketMut};

use super::bypass::{Outgoing, Whole};
use super::core::Core;
use super::sealer::Plain;
use super::to_tun::ToTun;
use super::{PumpError, io_error};
use crate::buffers::Buffers;
use crate::engine::{Action, Engine};
use crate::io::tun::{Queue, Record, VNET_HEADER};
use crate::{BATCH, DropReason, fit};

/// One packet of any size with its virtio header, and room behind it for the tunnel's padding. Pages that are never used cost nothing.
const RECORD: usize = VNET_HEADER + 65_535 + 15;
/// A batch ends here even if it has few packets, so with at most one super-packet more: 128 KiB, about 0.1 ms of cipher, for which the
/// thread's other work waits. Two super-packets of 47 segments each fill two messages to the tunnel's socket but for what is left over of both.
const BATCH_BYTES: usize = 64 << 10;

/// Reads one queue of the TUN in batches and has them judged.
pub(super) struct Intake {
    queue: Queue,
    pub(super) ready: bool,
    pub(super) records: Buffers,
    lengths: [usize; BATCH],
    count: usize,
    /// The largest packet the tunnel carries, as of this batch.
    mtu: u16,
    pub(super) for_tunnel: Vec<Plain>,
    pub(super) for_bypass: Vec<Outgoing>,
    pub(super) whole: Vec<Whole>,
    answers: Vec<(usize, Answer)>,
}

/// What the sender of a packet is told.
enum Answer {
    Refused(Action),
    /// With what the tunnel carries, in bytes.
    TooBig(u16),
}

impl Intake {
    pub(super) fn new(queue: Queue) -> Self {
        Self {
            queue,
            ready: true,
            records: Buffers::new(BATCH, RECORD),
            lengths: [0; BATCH],
            count: 0,
            mtu: 0,
            for_tunnel: Vec::with_capacity(BATCH),
            for_bypass: Vec::with_capacity(BATCH),
            whole: Vec::with_capacity(BATCH),
            answers: Vec::with_capacity(BATCH),
        }
    }

    /// As [`Buffers::give_back`].
    pub(super) fn give_back(&mut self) {
        self.records.give_back();
    }

    /// Reads one batch of what applications sent; it is [`Intake::ready`] as long as there may be more.
    pub(super) fn read(&mut self) -> Result<(), PumpError> {
        self.count = 0;
        let mut bytes = 0;
        for (place, length) in self.lengths.iter_mut().enumerate() {
            if bytes >= BATCH_BYTES {
                break;
            }
            match self.queue.read(self.records.get_mut(place)) {
                Ok(read) => *length = read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.ready = false;
                    break;
                }
                Err(error) => return Err(io_error("reading from the TUN")(error)),
            }
            bytes += *length;
            self.count += 1;
        }
        Ok(())
    }

    /// Judges the batch that was read, and sorts it by where it goes. `reserve` gets an external port for an internal endpoint and tells the
    /// engine.
    pub(super) fn judge(
        &mut self,
        core: &Core,
        to_tun: &mut ToTun,
        mut reserve: impl FnMut(SocketAddr, IpAddr, &mut Engine) -> io::Result<()>,
        now: Instant,
    ) {
        self.for_tunnel.clear();
        self.for_bypass.clear();
        self.whole.clear();
        self.mtu = core.mtu();
        let mut judge = core.engine.lock();
        for place in 0..self.count {
            self.judge_one(place, &mut judge.engine, core, &mut reserve, now);
        }
        judge.set_alarm(now);
        drop(judge);
        self.answer(to_tun);
    }

    /// Writes to the TUN, which takes a system call each, so not under the engine's lock.
    fn answer(&mut self, to_tun: &mut ToTun) {
        for (place, answer) in self.answers.drain(..) {
            let length = self.lengths.get(place).copied().unwrap_or_default();
            let packet = self.records.get(place).get(VNET_HEADER..length).unwrap_or_default();
            let Ok(packet) = Packet::parse(packet) else { continue };
            match answer {
                Answer::Refused(action) => to_tun.refuse(action, &packet),
                Answer::TooBig(mtu) => to_tun.too_big(&packet, mtu.into()),
            }
        }
    }

    fn judge_one(
        &mut self,
        place: usize,
        engine: &mut Engine,
        core: &Core,
        reserve: &mut impl FnMut(SocketAddr, IpAddr, &mut Engine) -> io::Result<()>,
        now: Instant,
    ) {
        let length = self.lengths.get(place).copied().unwrap_or_default();
        let record = self.records.get_mut(place).get_mut(..length).unwrap_or_default();
        let record = Record::split(record);
        let segmentation = record.as_ref().and_then(|record| record.segmentation);
        let Some(mut packet) =
            record.and_then(|record| PacketMut::parse(record.packet, record.checksum).ok())
        else {
            core.counters.count_drop(DropReason::Malformed);
            return;
        };
        let segment = segmentation.map(|segmentation| segmentation.size);
        let mut action = engine.outbound(&mut packet, segment, now);
        if let Action::Reserve { internal, external } = action {
            action = match reserve(internal, external, engine) {
                Ok(()) => engine.outbound(&mut packet, segment, now),
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => engine.address_gone(),
                Err(_) => engine.unreserved(packet.headers(), now),
            };
        }
        if let Action::Tunnel { .. } = action {
            packet.clamp_mss(self.mtu);
            if let Some(mtu) = fit::too_big(&packet.as_packet(), segmentation, self.mtu) {
                return self.answers.push((place, Answer::TooBig(mtu)));
            }
        }
        let headers = *packet.headers();
        match action {
            // Segments get checksums of their own.
            Action::Tunnel { gateway } if segmentation.is_some() || packet.complete_checksum() => {
                self.for_tunnel.push(Plain { place, gateway, headers, segmentation });
            }
            Action::Identity if segmentation.is_some() || packet.complete_checksum() => {
                self.whole.push(Whole { place, headers, segmentation });
            }
            Action::Tunnel { .. } | Action::Identity => core.counters.count_drop(DropReason::Malformed),
            Action::Bypass { mapping, destination, tos, ttl } => {
                let payload = payload_in_record(&headers);
                self.for_bypass.push(Outgoing { place, payload, mapping, destination, tos, ttl, segment });
            }
            Action::Refuse(_) => self.answers.push((place, Answer::Refused(action))),
            Action::Drop | Action::Reserve { .. } => {}
        }
    }
}

fn payload_in_record(headers: &Headers) -> Range<usize> {
    VNET_HEADER + usize::from(headers.payload_at)..VNET_HEADER + headers.len as usize
}
