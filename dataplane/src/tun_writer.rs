use std::io::IoSlice;

use packet::Packet;

use crate::buffers::Buffers;
use crate::io::tun::{COMPLETE, Tun, VNET_HEADER, segmented};
use crate::offload::{Bundle, Coalescer, MAX_HEADERS, MAX_PARTS};

/// Packets held back at most: at 1420 bytes about 180 KB, which the kernel takes within 50 µs.
const HELD: usize = 128;
const RECORD: usize = VNET_HEADER + 65_535;

/// Gathers packets for the TUN and writes those that the kernel may take as one with one call. Payloads stay where they were opened.
pub(crate) struct TunWriter {
    records: Buffers,
    lengths: Vec<usize>,
    judged: usize,
    coalescer: Coalescer,
}

impl TunWriter {
    pub(crate) fn new() -> Self {
        Self {
            records: Buffers::new(HELD, RECORD),
            lengths: Vec::with_capacity(HELD),
            judged: 0,
            coalescer: Coalescer::default(),
        }
    }

    /// Where the next packet is to be opened. No room is left when [`TunWriter::is_full`].
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.records.get_mut(self.lengths.len()).get_mut(VNET_HEADER..).unwrap_or_default()
    }

    /// Takes the packet in the first `length` bytes of [`TunWriter::room`]; it is written only if [`TunWriter::judge`] lets it.
    pub(crate) fn push(&mut self, length: usize) {
        self.lengths.push(length);
    }

    pub(crate) fn is_full(&self) -> bool {
        self.lengths.len() == HELD
    }

    /// Lets those through that `accepts`, of the packets pushed since it was called last. Returns how many were no packets.
    pub(crate) fn judge(&mut self, mut accepts: impl FnMut(&Packet<'_>) -> bool) -> usize {
        let mut malformed = 0;
        let (records, lengths) = (&self.records, &self.lengths);
        let bytes_of = |slot: usize| packet_in(records, slot, lengths.get(slot).copied().unwrap_or_default());
        for slot in self.judged..lengths.len() {
            match Packet::parse(bytes_of(slot)) {
                Ok(packet) if accepts(&packet) => self.coalescer.add(slot, &packet, bytes_of),
                Ok(_) => {}
                Err(_) => malformed += 1,
            }
        }
        self.judged = lengths.len();
        malformed
    }

    /// Writes what was let through; returns how many packets the interface refused.
    pub(crate) fn flush(&mut self, tun: &mut Tun) -> usize {
        let mut refused = 0;
        for bundle in self.coalescer.bundles() {
            if write_joined(tun, &mut self.records, &self.lengths, bundle, &self.coalescer) {
                continue;
            }
            for slot in self.coalescer.slots(bundle) {
                let length = self.lengths.get(slot).copied().unwrap_or_default();
                let record = self.records.get_mut(slot).get_mut(..VNET_HEADER + length).unwrap_or_default();
                if let Some(header) = record.first_chunk_mut() {
                    *header = COMPLETE;
                }
                refused += usize::from(tun.queue().write(record).is_err());
            }
        }
        self.lengths.clear();
        self.judged = 0;
        self.coalescer.clear();
        refused
    }
}

/// `false`: it is no bundle, or the interface does not take it, which is then left in its packets.
fn write_joined(
    tun: &mut Tun,
    records: &mut Buffers,
    lengths: &[usize],
    bundle: &Bundle,
    coalescer: &Coalescer,
) -> bool {
    if bundle.count < 2 || !tun.joins(bundle.kind()) {
        return false;
    }
    let payload_at = VNET_HEADER + usize::from(bundle.headers.payload_at);
    let Some((vnet, first)) = records.get_mut(bundle.first).split_first_chunk_mut::<VNET_HEADER>() else {
        return false;
    };
    let Some(headers) = first.get_mut(..usize::from(bundle.headers.payload_at)) else { return false };
    let mut before = [0; MAX_HEADERS];
    let Some(before) = before.get_mut(..headers.len()) else { return false };
    before.copy_from_slice(headers);
    let Some(segmentation) = bundle.finish(headers) else { return false };
    *vnet = segmented(segmentation, &bundle.headers);

    let mut parts = [IoSlice::new(&[]); MAX_PARTS];
    let mut start = 0;
    for (part, slot) in parts.iter_mut().zip(coalescer.slots(bundle)) {
        let end = VNET_HEADER + lengths.get(slot).copied().unwrap_or_default();
        *part = IoSlice::new(records.get(slot).get(start..end).unwrap_or_default());
        start = payload_at;
    }
    let written = tun.write_joined(parts.get(..bundle.count).unwrap_or_default(), segmentation.kind);
    if !written && let Some(headers) = records.get_mut(bundle.first).get_mut(VNET_HEADER..payload_at) {
        headers.copy_from_slice(before);
    }
    written
}

fn packet_in(records: &Buffers, slot: usize, length: usize) -> &[u8] {
    records.get(slot).get(VNET_HEADER..VNET_HEADER + length).unwrap_or_default()
}
