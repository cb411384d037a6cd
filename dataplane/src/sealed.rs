use std::net::SocketAddr;
use std::ops::Range;

use packet::Tos;

use crate::BATCH;
use crate::io::pages::Pages;
use crate::io::send::Datagram;

/// A UDP datagram of any size, with its headers.
const DATAGRAM: usize = 65_535;
/// What one batch of reads from the TUN may become (64 KiB and one super-packet more), sealed: 32 bytes more for each of 1420 make 134 KB,
/// behind which there is still room for a datagram of any size.
const CAPACITY: usize = 4 * DATAGRAM;
/// UDP_MAX_SEGMENTS (linux/udp.h) before Linux 6.9; later kernels take 128.
const MAX_SEGMENTS: usize = 64;
/// What IPv4 carries in one packet without its own and UDP's header, the bound of a segmented send too.
const MAX_PAYLOAD: usize = 65_507;

/// Sealed datagrams back to back in one buffer, those of equal size and TOS to one destination as one message that the kernel segments.
pub(crate) struct SealedBatch {
    bytes: Pages,
    used: usize,
    messages: Vec<Message>,
}

struct Message {
    range: Range<usize>,
    destination: SocketAddr,
    tos: Tos,
    /// The size of each datagram in it but the last.
    size: usize,
    count: usize,
    open: bool,
}

impl SealedBatch {
    pub(crate) fn new() -> Self {
        Self { bytes: Pages::new(CAPACITY), used: 0, messages: Vec::with_capacity(BATCH) }
    }

    /// Where the next datagram is to be sealed.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.used..).unwrap_or_default()
    }

    /// Takes what was written to the first `len` bytes of [`SealedBatch::room`]. With `segments` it joins the message before where it can.
    pub(crate) fn push(&mut self, len: usize, destination: SocketAddr, tos: Tos, segments: bool) {
        let range = self.used..self.used + len;
        self.used = range.end;
        if let Some(last) = self.messages.last_mut()
            && segments
            && last.open
            && last.destination == destination
            && last.tos == tos
            && len <= last.size
            && last.range.len() + len <= MAX_PAYLOAD
        {
            last.range.end = range.end;
            last.count += 1;
            last.open = len == last.size && last.count < MAX_SEGMENTS;
            return;
        }
        self.messages.push(Message { range, destination, tos, size: len, count: 1, open: true });
    }

    /// Whether another datagram may not fit: send and clear first.
    pub(crate) fn is_full(&self) -> bool {
        self.messages.len() == BATCH || self.bytes.len() - self.used < DATAGRAM
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.used = 0;
        self.messages.clear();
    }

    /// As [`Pages::give_back`], unless something waits in it.
    pub(crate) fn give_back(&mut self) {
        if self.is_empty() {
            self.bytes.give_back();
        }
    }

    pub(crate) fn datagrams(&self) -> impl Iterator<Item = Datagram<'_>> + Clone {
        self.messages.iter().map(|message| Datagram {
            payload: self.bytes.get(message.range.clone()).unwrap_or_default(),
            destination: message.destination,
            tos: message.tos,
            ttl: None,
            segment: (message.count > 1).then_some(message.size as u16),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(sizes: &[(usize, u16)], segments: bool) -> Vec<(usize, Option<u16>)> {
        let mut sealed = SealedBatch::new();
        for &(size, port) in sizes {
            sealed.push(size, SocketAddr::from(([198, 18, 0, 2], port)), Tos(0), segments);
        }
        sealed.datagrams().map(|datagram| (datagram.payload.len(), datagram.segment)).collect()
    }

    #[test]
    fn equal_sizes_to_one_destination_are_one_message_and_a_smaller_one_ends_it() {
        let sizes = [(1452, 1), (1452, 1), (300, 1), (300, 1), (1452, 1), (1452, 2)];
        assert_eq!(messages(&sizes, true), [(3204, Some(1452)), (300, None), (1452, None), (1452, None)]);
        assert_eq!(messages(&sizes, false).len(), sizes.len());
    }

    #[test]
    fn no_message_has_datagrams_of_two_tos() {
        let mut sealed = SealedBatch::new();
        for tos in [0, 0, 2, 2, 0] {
            sealed.push(1452, SocketAddr::from(([198, 18, 0, 2], 1)), Tos(tos), true);
        }
        let messages: Vec<_> = sealed.datagrams().map(|it| (it.payload.len(), it.tos.0)).collect();
        assert_eq!(messages, [(2904, 0), (2904, 2), (1452, 0)]);
    }

    #[test]
    fn a_message_stays_within_what_the_kernel_segments() {
        for size in [100, 1452] {
            for (len, segment) in messages(&vec![(size, 1); 130], true) {
                assert!(
                    len <= MAX_PAYLOAD
                        && len <= MAX_SEGMENTS * size
                        && segment.is_none_or(|it| usize::from(it) == size)
                );
            }
        }
    }

    #[test]
    fn what_waits_is_not_given_back() {
        let mut sealed = SealedBatch::new();
        sealed.room()[..40_000].fill(7);
        sealed.push(40_000, SocketAddr::from(([198, 18, 0, 2], 1)), Tos(0), true);
        sealed.give_back();
        assert!(sealed.datagrams().all(|datagram| datagram.payload == [7; 40_000]));
    }

    #[test]
    fn there_is_always_room_for_one_more_until_it_is_full() {
        let mut sealed = SealedBatch::new();
        while !sealed.is_full() {
            assert!(sealed.room().len() >= DATAGRAM);
            sealed.push(DATAGRAM, SocketAddr::from(([198, 18, 0, 2], 1)), Tos(0), true);
        }
        sealed.clear();
        assert!(!sealed.is_full() && sealed.is_empty());
    }
}
