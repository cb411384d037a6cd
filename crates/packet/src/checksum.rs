//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use std::net::IpAddr;

/// A one's-complement sum in the making, good for 16 GiB of input.
///
/// Words are added as they lie in memory and swapped once at the end, which RFC 1071 §2(B) shows to be the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Adds `bytes`; an odd last byte counts as the upper half of its word, so only the last part added may be of odd length.
    pub fn add_bytes(self, bytes: &[u8]) -> Self {
        // RFC 1071 §2(C): 16-bit words may be added in parallel in a wider register, the carries folded in at the end.
        let (words, rest) = bytes.as_chunks::<4>();
        let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
        let mut last = [0; 4];
        last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        Self(self.0 + sum + u64::from(u32::from_ne_bytes(last)))
    }

    pub fn add_word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word.to_be()))
    }

    /// Notes that `old` gives way to `new`: adds `~m + m'` (RFC 1624 §3). Both must be of the same, even length and start at an even offset.
    pub fn replace<const N: usize>(self, old: [u8; N], new: [u8; N]) -> Self {
        self.add_bytes(&old.map(|byte| !byte)).add_bytes(&new)
    }

    /// The 16-bit sum: 0 only if nothing but zeros was added.
    pub fn fold(self) -> u16 {
        let halves = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        let words = (halves >> 32) + (halves >> 16 & 0xffff) + (halves & 0xffff);
        let words = (words >> 16) + (words & 0xffff);
        u16::from_be(((words >> 16) + (words & 0xffff)) as u16)
    }

    /// What goes into a checksum field: the sum's complement.
    pub fn checksum(self) -> u16 {
        !self.fold()
    }

    /// The same for UDP, where 0 would mean "none computed" (RFC 768).
    pub fn udp_checksum(self) -> u16 {
        match self.checksum() {
            0 => 0xffff,
            checksum => checksum,
        }
    }
}

/// The sum of the pseudo header (RFC 9293 §3.1, RFC 8200 §8.1). `len` is that of the transport header and its payload.
/// Addresses of different families give a sum that means nothing.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: u32) -> Sum {
    Sum::default()
        .add_bytes(octets(&source).as_slice())
        .add_bytes(octets(&destination).as_slice())
        .add_bytes(&len.to_be_bytes())
        .add_word(u16::from(protocol))
}

/// Brings a checksum field up to date with a change noted by [`Sum::replace`] (RFC 1624 §3, equation 3: `HC' = ~(~HC + ~m + m')`).
pub fn update(checksum: u16, change: Sum) -> u16 {
    change.add_word(!checksum).checksum()
}

/// An address as 16 bytes, an IPv4 one behind zeros, which add nothing to a sum.
fn octets(address: &IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}
