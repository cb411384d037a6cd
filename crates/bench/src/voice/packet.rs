/// RTP header (RFC 3550 §5.1) and 160 bytes: G.711's 20 ms. The first bytes of the 160 carry the bench's own stamps.
pub const PAYLOAD: usize = 172;
/// RTP timestamp units per packet (Opus counts at 48 kHz).
const TICKS: u32 = 960;
/// Version 2, no padding, extension or contributing sources.
const FIRST: u8 = 0x80;
/// Dynamic payload type.
const KIND: u8 = 111;
const DUE: usize = 12;
const FAR: usize = 20;
const NUMBER: usize = 28;

/// One voice packet's stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// RTP's synchronization source.
    pub call: u32,
    pub number: u32,
    /// When it was to be sent, in nanoseconds of the sender's clock.
    pub due: u64,
    /// When the far end received it, in nanoseconds of its clock; 0 on the way there.
    pub far: u64,
}

impl Packet {
    pub fn write(self) -> [u8; PAYLOAD] {
        let mut bytes = [0xd5; PAYLOAD];
        let mut put = |at: usize, field: &[u8]| {
            for (to, from) in bytes.iter_mut().skip(at).zip(field) {
                *to = *from;
            }
        };
        put(0, &[FIRST, KIND]);
        put(2, &(self.number as u16).to_be_bytes());
        put(4, &self.number.wrapping_mul(TICKS).to_be_bytes());
        put(8, &self.call.to_be_bytes());
        put(DUE, &self.due.to_be_bytes());
        put(FAR, &self.far.to_be_bytes());
        put(NUMBER, &self.number.to_be_bytes());
        bytes
    }

    /// `None` for anything but the bench's own packets.
    pub fn read(datagram: &[u8]) -> Option<Self> {
        if !is_ours(datagram) {
            return None;
        }
        let word = |at: usize| datagram.get(at..)?.first_chunk().map(|field| u64::from_be_bytes(*field));
        let half = |at: usize| datagram.get(at..)?.first_chunk().map(|field| u32::from_be_bytes(*field));
        Some(Self { call: half(8)?, number: half(NUMBER)?, due: word(DUE)?, far: word(FAR)? })
    }
}

pub fn is_ours(datagram: &[u8]) -> bool {
    datagram.len() == PAYLOAD && datagram.starts_with(&[FIRST, KIND])
}

/// Writes the far end's stamp into a packet.
pub fn stamp(datagram: &mut [u8], at: u64) {
    if let Some(field) = datagram.get_mut(FAR..FAR + 8) {
        field.copy_from_slice(&at.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_rtp_and_carry_their_stamps() {
        let packet = Packet { call: 3, number: 0x0102_0304, due: 5, far: 0 };
        let mut bytes = packet.write();
        assert_eq!(bytes[..4], [0x80, 111, 3, 4]);
        stamp(&mut bytes, 77);
        assert_eq!(Packet::read(&bytes), Some(Packet { far: 77, ..packet }));
        assert_eq!(Packet::read(&bytes[..171]), None);
        assert_eq!(Packet::read(&[0; PAYLOAD]), None);
    }
}
