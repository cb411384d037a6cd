use std::io::{self, IoSlice};

use packet::{Headers, Packet};

use crate::buffers::Buffers;
use crate::io::tun::{COMPLETE, Tun, VNET_HEADER, segmented};
use crate::offload::{Bundle, Coalescer, MAX_HEADERS, MAX_PARTS};

/// Packets held back at most: two full super-packets of 1420 bytes and more, 180 KB, for which the first waits 0.15 ms of cipher.
const HELD: usize = 128;
const RECORD: usize = VNET_HEADER + 65_535;

/// Gathers packets for the TUN and writes those that the kernel may take as one with one call. Payloads stay where they were opened.
pub(crate) struct TunWriter {
    records: Buffers,
    lengths: Vec<usize>,
    /// Of each packet that was parsed; `None`: it is not written.
    headers: Vec<Option<Headers>>,
    coalescer: Coalescer,
}

impl TunWriter {
    pub(crate) fn new() -> Self {
        Self {
            records: Buffers::new(HELD, RECORD),
            lengths: Vec::with_capacity(HELD),
            headers: Vec::with_capacity(HELD),
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

    /// As [`Pages::give_back`](crate::io::pages::Pages::give_back), unless something waits in it.
    pub(crate) fn give_back(&mut self) {
        if self.lengths.is_empty() {
            self.records.give_back();
        }
    }

    /// To be called before [`TunWriter::judge`], which may hold a lock. Returns how many of what was pushed are no packets.
    pub(crate) fn parse(&mut self) -> usize {
        let mut malformed = 0;
        for (slot, length) in self.lengths.iter().enumerate().skip(self.headers.len()) {
            let packet = Packet::parse(packet_in(&self.records, slot, *length));
            malformed += usize::from(packet.is_err());
            self.headers.push(packet.ok().map(|packet| *packet.headers()));
        }
        malformed
    }

    /// Lets those packets through that `accepts`.
    pub(crate) fn judge(&mut self, mut accepts: impl FnMut(&Packet<'_>) -> bool) {
        let Self { records, lengths, headers, .. } = self;
        for (slot, (headers, length)) in headers.iter_mut().zip(lengths).enumerate() {
            let packet = |headers| Packet::from_parts(packet_in(records, slot, *length), headers);
            *headers = headers.filter(|headers| accepts(&packet(*headers)));
        }
    }

    /// Writes what was let through; returns how many packets the interface refused.
    pub(crate) fn flush(&mut self, tun: &mut Tun) -> usize {
        self.gather();
        let mut refused = 0;
        for bundle in self.coalescer.bundles() {
            let joined = write_joined(tun, &mut self.records, &self.lengths, bundle, &self.coalescer);
            if matches!(joined, Some(Ok(()))) {
                continue;
            }
            let mut taken = false;
            for slot in self.coalescer.slots(bundle) {
                let length = self.lengths.get(slot).copied().unwrap_or_default();
                let record = self.records.get_mut(slot).get_mut(..VNET_HEADER + length).unwrap_or_default();
                if let Some(header) = record.first_chunk_mut() {
                    *header = COMPLETE;
                }
                match tun.queue().write(record) {
                    Ok(()) => taken = true,
                    Err(_) => refused += 1,
                }
            }
            // An interface that is down takes neither.
            if let Some(Err(error)) = joined.filter(|_| taken) {
                tun.cannot_join(bundle.kind(), &error);
            }
        }
        self.lengths.clear();
        self.headers.clear();
        self.coalescer.clear();
        refused
    }

    /// Finds out which packets may be written as one; that takes a sum over each payload.
    fn gather(&mut self) {
        let Self { records, lengths, headers, coalescer, .. } = self;
        let bytes_of = |slot: usize| packet_in(records, slot, lengths.get(slot).copied().unwrap_or_default());
        for (slot, headers) in headers.iter().enumerate() {
            if let Some(headers) = headers {
                coalescer.add(slot, &Packet::from_parts(bytes_of(slot), *headers), bytes_of);
            }
        }
    }
}

/// `None`: it is no bundle, or none that the interface takes. What is not written is left in its packets.
fn write_joined(
    tun: &Tun,
    records: &mut Buffers,
    lengths: &[usize],
    bundle: &Bundle,
    coalescer: &Coalescer,
) -> Option<io::Result<()>> {
    if bundle.count < 2 || !tun.joins(bundle.kind()) {
        return None;
    }
    let payload_at = VNET_HEADER + usize::from(bundle.headers.payload_at);
    let (vnet, first) = records.get_mut(bundle.first).split_first_chunk_mut::<VNET_HEADER>()?;
    let headers = first.get_mut(..usize::from(bundle.headers.payload_at))?;
    let mut before = [0; MAX_HEADERS];
    let before = before.get_mut(..headers.len())?;
    before.copy_from_slice(headers);
    let segmentation = bundle.finish(headers)?;
    *vnet = segmented(segmentation, &bundle.headers);

    let mut parts = [IoSlice::new(&[]); MAX_PARTS];
    let mut start = 0;
    for (part, slot) in parts.iter_mut().zip(coalescer.slots(bundle)) {
        let end = VNET_HEADER + lengths.get(slot).copied().unwrap_or_default();
        *part = IoSlice::new(records.get(slot).get(start..end).unwrap_or_default());
        start = payload_at;
    }
    let written = tun.write_joined(parts.get(..bundle.count).unwrap_or_default());
    if written.is_err()
        && let Some(headers) = records.get_mut(bundle.first).get_mut(VNET_HEADER..payload_at)
    {
        headers.copy_from_slice(before);
    }
    Some(written)
}

fn packet_in(records: &Buffers, slot: usize, length: usize) -> &[u8] {
    records.get(slot).get(VNET_HEADER..VNET_HEADER + length).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use packet::checksum::Sum;

    use super::*;

    /// It is down until it is set up.
    #[test]
    fn an_interface_that_is_down_says_nothing_of_super_packets() {
        let mut tun = match Tun::open(None) {
            Ok(tun) => tun,
            Err(error) => {
                assert!(std::env::var_os("BREAKOUT_REQUIRE_ALL").is_none(), "no TUN: {error}");
                return eprintln!("skipped, because a TUN cannot be opened: {error}");
            }
        };
        tun.offer_segmentation(false);
        let mut writer = TunWriter::new();
        for sequence in [0, 100] {
            let packet = tcp(sequence);
            writer.room()[..packet.len()].copy_from_slice(&packet);
            writer.push(packet.len());
        }
        assert_eq!(writer.parse(), 0);
        writer.judge(|_| true);
        writer.gather();
        assert_eq!(writer.coalescer.bundles().len(), 1);
        writer.coalescer.clear();
        assert_eq!(writer.flush(&mut tun), 2);
        let [(name, on, why), _] = tun.features();
        assert!(on, "{name}: {why}");
    }

    #[test]
    fn what_waits_is_not_given_back() {
        let (mut writer, packet) = (TunWriter::new(), tcp(0));
        for _ in 0..HELD {
            writer.room()[..packet.len()].copy_from_slice(&packet);
            writer.push(packet.len());
        }
        writer.give_back();
        assert_eq!(writer.parse(), 0, "no packet is lost");
    }

    /// A segment of 100 bytes with right checksums.
    fn tcp(sequence: u32) -> Vec<u8> {
        let mut bytes =
            vec![0x45, 0, 0, 140, 0, 1, 0x40, 0, 64, 6, 0, 0, 203, 0, 113, 10, 10, 99, 0, 1, 1, 187, 19, 136];
        bytes.extend(sequence.to_be_bytes());
        bytes.extend([0, 0, 0, 9, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
        bytes.resize(140, 7);
        let ip = Sum::default().add_bytes(&bytes[..20]).checksum();
        bytes[10..12].copy_from_slice(&ip.to_be_bytes());
        let pseudo = [bytes[12..20].to_vec(), vec![0, 6, 0, 120]].concat();
        let tcp = Sum::default().add_bytes(&pseudo).add_bytes(&bytes[20..]).checksum();
        bytes[36..38].copy_from_slice(&tcp.to_be_bytes());
        bytes
    }
}
