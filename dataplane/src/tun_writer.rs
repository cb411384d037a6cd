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
    coalescer: Coalescer,
}

impl TunWriter {
    pub(crate) fn new() -> Self {
        Self {
            records: Buffers::new(HELD, RECORD),
            lengths: Vec::with_capacity(HELD),
            coalescer: Coalescer::default(),
        }
    }

    /// Where the next packet is to be opened.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.records.get_mut(self.lengths.len()).get_mut(VNET_HEADER..).unwrap_or_default()
    }

    /// The packet in the first `length` bytes of [`TunWriter::room`].
    pub(crate) fn pending(&self, length: usize) -> &[u8] {
        packet_in(&self.records, self.lengths.len(), length)
    }

    /// Keeps the packet in the first `length` bytes of [`TunWriter::room`] for the next [`TunWriter::flush`]; `true`: that has to be now.
    pub(crate) fn keep(&mut self, length: usize) -> bool {
        let slot = self.lengths.len();
        self.lengths.push(length);
        let (records, lengths) = (&self.records, &self.lengths);
        let bytes_of = |slot: usize| packet_in(records, slot, lengths.get(slot).copied().unwrap_or_default());
        if let Ok(packet) = Packet::parse(bytes_of(slot)) {
            self.coalescer.add(slot, &packet, bytes_of);
        }
        self.lengths.len() == HELD
    }

    /// Writes everything; returns how many packets the interface refused.
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
                refused += usize::from(tun.write(record).is_err());
            }
        }
        self.lengths.clear();
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
