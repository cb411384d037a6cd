//! What the programs and the daemon share: the mirror of `bpf/entry.h`. Sizes and offsets are asserted on both sides.

use std::cell::UnsafeCell;
use std::mem::offset_of;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::rtp::RtpStream;

/// A packet's addresses and ports, as on the wire; an IPv4 address lies in the first four bytes, zeros behind it.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tuple {
    source: [u8; 16],
    destination: [u8; 16],
    source_port: [u8; 2],
    destination_port: [u8; 2],
    family: u32,
}

/// What the programs count of one direction of one flow. Times are CLOCK_BOOTTIME in nanoseconds.
#[repr(C)]
pub(super) struct Counts {
    pub(super) handed_up: AtomicU64,
    pub(super) last_handed_up: AtomicU64,
    pub(super) packets: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) last_seen: AtomicU64,
    reserved: [AtomicU64; 3],
}

/// What the programs do to a flow's packets.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) keep: u64,
    pub(super) life: u64,
    pub(super) outbound: Tuple,
    pub(super) inbound: Tuple,
    pub(super) next_hop: [u8; 16],
    pub(super) next_hop_family: u32,
    pub(super) physical: u32,
    pub(super) tun: u32,
    pub(super) mark: u32,
    pub(super) mtu: u32,
    pub(super) dscp: u32,
    pub(super) priority: u32,
    pub(super) reserved: [u32; 9],
}

/// One flow: `struct entry`.
#[repr(C)]
pub(super) struct Entry {
    pub(super) finished: [AtomicU64; 2],
    /// Written only while no program can find the entry.
    pub(super) rules: UnsafeCell<Rules>,
    pub(super) counts: [Counts; 2],
    pub(super) rtp: [Stream; 2],
}

/// An [`RtpStream`] that a program may be writing: one read then may be half of before and half of after a packet.
#[repr(C)]
pub(super) struct Stream([AtomicU64; 8]);

const _: () = {
    assert!(size_of::<Tuple>() == 40);
    assert!(size_of::<Counts>() == 64);
    assert!(size_of::<Entry>() == 448);
    let rules = offset_of!(Entry, rules);
    assert!(rules + offset_of!(Rules, outbound) == 32);
    assert!(rules + offset_of!(Rules, inbound) == 72);
    assert!(rules + offset_of!(Rules, next_hop) == 112);
    assert!(rules + offset_of!(Rules, next_hop_family) == 128);
    assert!(rules + offset_of!(Rules, priority) == 152);
    assert!(offset_of!(Entry, counts) == 192);
    assert!(offset_of!(Entry, rtp) == 320);
};

// SAFETY: 40 bytes without padding, of which any are a valid value.
unsafe impl aya::Pod for Tuple {}

impl Stream {
    pub(super) fn load(&self) -> RtpStream {
        let words = self.0.each_ref().map(|word| word.load(Ordering::Relaxed));
        // SAFETY: integers of 64 bytes in all without padding, of which any are a valid value.
        unsafe { std::mem::transmute::<[u64; 8], RtpStream>(words) }
    }

    pub(super) fn store(&self, stream: RtpStream) {
        // SAFETY: as above.
        let words = unsafe { std::mem::transmute::<RtpStream, [u64; 8]>(stream) };
        self.0.iter().zip(words).for_each(|(to, word)| to.store(word, Ordering::Relaxed));
    }
}

impl Tuple {
    pub(super) fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        let (source_address, family) = address(source.ip());
        let (destination_address, _) = address(destination.ip());
        Self {
            source: source_address,
            destination: destination_address,
            source_port: source.port().to_be_bytes(),
            destination_port: destination.port().to_be_bytes(),
            family,
        }
    }
}

/// An address as the programs see it, and its family.
pub(super) fn address(address: IpAddr) -> ([u8; 16], u32) {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            ([a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], libc::AF_INET as u32)
        }
        IpAddr::V6(v6) => (v6.octets(), libc::AF_INET6 as u32),
    }
}
