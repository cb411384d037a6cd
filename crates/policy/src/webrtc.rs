use serde::Serialize;

/// What a UDP payload is, told by its first bytes (RFC 7983 §7, RFC 8489 §5, RFC 5761 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    Stun,
    Zrtp,
    Dtls,
    /// TURN ChannelData.
    Channel,
    Rtp,
    Rtcp,
    Other,
}

impl Content {
    pub fn is_webrtc(self) -> bool {
        self != Self::Other
    }
}

/// Recognises a WebRTC payload: the first byte's range says what it may be (RFC 7983 §7), the fields behind it whether it is.
///
/// Lengths inside are held to fit, not to fill the payload: a segmented send arrives as one payload of several datagrams.
pub fn recognise(payload: &[u8]) -> Content {
    match payload.first() {
        Some(0..=3) if is_stun(payload) => Content::Stun,
        Some(16..=19) if is_zrtp(payload) => Content::Zrtp,
        Some(20..=31) if is_dtls_record(payload) => Content::Dtls,
        Some(32..=63) if is_dtls_unified(payload) => Content::Dtls,
        Some(64..=79) if is_channel_data(payload) => Content::Channel,
        Some(128..=191) => rtp_or_rtcp(payload),
        _ => Content::Other,
    }
}

/// RFC 8489 §5: 20 bytes of header, a length in whole words that the payload holds, the magic cookie. The type is left
/// open: browsers use unassigned ones too.
fn is_stun(payload: &[u8]) -> bool {
    let Some(&[_, _, l0, l1, c0, c1, c2, c3]) = payload.first_chunk() else { return false };
    let length = usize::from(u16::from_be_bytes([l0, l1]));
    [c0, c1, c2, c3] == [0x21, 0x12, 0xa4, 0x42] && length.is_multiple_of(4) && 20 + length <= payload.len()
}

/// RFC 6189 §5: the magic cookie `ZRTP`, then an SSRC; the smallest message is Conf2ACK, 12 bytes, and a CRC of 4.
fn is_zrtp(payload: &[u8]) -> bool {
    payload.len() >= 28 && payload.get(4..8) == Some(b"ZRTP")
}

/// RFC 6347 §4.1: a record header of 13 bytes with version 1.0 or 1.2 (which DTLS 1.3 writes too), and its fragment.
fn is_dtls_record(payload: &[u8]) -> bool {
    let Some(&[_, 0xfe, 0xfd | 0xff, _, _, _, _, _, _, _, _, l0, l1]) = payload.first_chunk() else {
        return false;
    };
    13 + usize::from(u16::from_be_bytes([l0, l1])) <= payload.len()
}

/// RFC 9147 §4: `001CSLEE`, then a connection id (C, of a length only the endpoints know), a sequence number of one or
/// two (S) bytes and, with L, a length; §4.2.3: at least 16 bytes of ciphertext.
fn is_dtls_unified(payload: &[u8]) -> bool {
    const CONNECTION_ID: u8 = 0x10;
    const LONG_SEQUENCE: u8 = 0x08;
    const LENGTH: u8 = 0x04;
    const MIN_CIPHERTEXT: usize = 16;

    let Some((&flags, rest)) = payload.split_first() else { return false };
    let sequence = if flags & LONG_SEQUENCE == 0 { 1 } else { 2 };
    if flags & LENGTH == 0 || flags & CONNECTION_ID != 0 {
        return rest.len() >= sequence + MIN_CIPHERTEXT;
    }
    let Some((length, ciphertext)) = rest.get(sequence..).and_then(|rest| rest.split_first_chunk()) else {
        return false;
    };
    (MIN_CIPHERTEXT..=ciphertext.len()).contains(&usize::from(u16::from_be_bytes(*length)))
}

/// RFC 8656 §12.4: a channel number, then the length of the application data, which the payload holds.
fn is_channel_data(payload: &[u8]) -> bool {
    let Some((&[_, _, l0, l1], data)) = payload.split_first_chunk() else { return false };
    usize::from(u16::from_be_bytes([l0, l1])) <= data.len()
}

/// Version 2 of both, told apart by the second byte: 192–223 is RTCP (RFC 5761 §4).
fn rtp_or_rtcp(payload: &[u8]) -> Content {
    match payload.get(1) {
        Some(192..=223) if is_rtcp(payload) => Content::Rtcp,
        Some(192..=223) | None => Content::Other,
        Some(_) if is_rtp(payload) => Content::Rtp,
        Some(_) => Content::Other,
    }
}

/// RFC 3550 §6.4.1: at least the header and one SSRC; the length counts words less one.
fn is_rtcp(payload: &[u8]) -> bool {
    let Some(&[_, _, l0, l1, _, _, _, _]) = payload.first_chunk() else { return false };
    4 * (usize::from(u16::from_be_bytes([l0, l1])) + 1) <= payload.len()
}

/// RFC 3550 §5.1: 12 bytes, the contributing sources, and (§5.3.1) the extension if there is one.
fn is_rtp(payload: &[u8]) -> bool {
    const EXTENSION: u8 = 0x10;

    let Some(&[first, _, _, _, _, _, _, _, _, _, _, _]) = payload.first_chunk() else { return false };
    let fixed = 12 + 4 * usize::from(first & 0x0f);
    if first & EXTENSION == 0 {
        return payload.len() >= fixed;
    }
    let Some(&[_, _, l0, l1]) = payload.get(fixed..).and_then(<[u8]>::first_chunk) else { return false };
    fixed + 4 + 4 * usize::from(u16::from_be_bytes([l0, l1])) <= payload.len()
}
