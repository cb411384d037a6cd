/// What kind of message a datagram claims to be (WireGuard paper §5.4), nothing of it authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Initiation,
    Response { receiver: u32 },
    CookieReply { receiver: u32 },
    Data { receiver: u32, counter: u64 },
}

pub(crate) const INITIATION_LEN: usize = 148;
const RESPONSE_LEN: usize = 92;
const COOKIE_REPLY_LEN: usize = 64;
/// Header and authentication tag of a data message.
pub(crate) const DATA_OVERHEAD: usize = 32;
/// The most a UDP length field can say.
pub(crate) const MAX_DATAGRAM: usize = 65_535;

impl Message {
    pub(crate) fn parse(datagram: &[u8]) -> Option<Self> {
        let length = datagram.len();
        if length > MAX_DATAGRAM {
            return None;
        }
        // Type and three reserved zero bytes, read as one number.
        match u32_at(datagram, 0)? {
            1 if length == INITIATION_LEN => Some(Self::Initiation),
            2 if length == RESPONSE_LEN => Some(Self::Response { receiver: u32_at(datagram, 8)? }),
            3 if length == COOKIE_REPLY_LEN => Some(Self::CookieReply { receiver: u32_at(datagram, 4)? }),
            4 if length >= DATA_OVERHEAD => {
                let counter = u64::from_le_bytes(*datagram.get(8..)?.first_chunk()?);
                Some(Self::Data { receiver: u32_at(datagram, 4)?, counter })
            }
            _ => None,
        }
    }
}

/// The index its sender gave to a handshake message.
pub(crate) fn sender_index(message: &[u8]) -> Option<u32> {
    u32_at(message, 4)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: [u8; 4], length: usize) -> Vec<u8> {
        let mut bytes = kind.to_vec();
        bytes.extend((4u8..).take(length - 4));
        bytes
    }

    #[test]
    fn kinds_lengths_and_reserved_bytes() {
        let cases = [
            (message([1, 0, 0, 0], 148), Some(Message::Initiation)),
            (message([1, 0, 0, 0], 147), None),
            (message([1, 0, 1, 0], 148), None),
            (message([2, 0, 0, 0], 92), Some(Message::Response { receiver: 0x0b0a_0908 })),
            (message([2, 0, 0, 0], 93), None),
            (message([3, 0, 0, 0], 64), Some(Message::CookieReply { receiver: 0x0706_0504 })),
            (
                message([4, 0, 0, 0], 32),
                Some(Message::Data { receiver: 0x0706_0504, counter: 0x0f0e_0d0c_0b0a_0908 }),
            ),
            (message([4, 0, 0, 0], 31), None),
            (message([5, 0, 0, 0], 148), None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Message::parse(&bytes), expected);
        }
        assert_eq!(Message::parse(&[]), None);
        let mut long = vec![0; MAX_DATAGRAM + 1];
        long[0] = 4;
        assert_eq!(Message::parse(&long), None);
        assert!(Message::parse(&long[1..]).is_none() && Message::parse(&long[..MAX_DATAGRAM]).is_some());
    }
}
