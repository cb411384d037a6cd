//! What is WebRTC and what is not, by tables of payloads.

use policy::{Content, recognise};
use proptest::prelude::*;

fn payload(head: &[u8], len: usize) -> Vec<u8> {
    let mut bytes = head.to_vec();
    bytes.resize(len, 0xa5);
    bytes
}

const STUN: [u8; 8] = [0x00, 0x01, 0x00, 0x08, 0x21, 0x12, 0xa4, 0x42];
const DTLS: [u8; 13] = [22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 100];

#[test]
fn recognises_each_kind() {
    let with = |head: &[u8], at: usize, byte: u8| {
        let mut head = head.to_vec();
        head[at] = byte;
        head
    };
    let cases: [(&str, Vec<u8>, Content); 34] = [
        ("STUN binding request", payload(&STUN, 28), Content::Stun),
        ("GOOG-PING", payload(&with(&STUN, 0, 2), 28), Content::Stun),
        ("STUN without attributes", payload(&with(&STUN, 3, 0), 20), Content::Stun),
        ("STUN cut short", payload(&STUN, 27), Content::Other),
        ("STUN, 19 bytes", payload(&with(&STUN, 3, 0), 19), Content::Other),
        ("STUN, odd length", payload(&with(&STUN, 3, 6), 28), Content::Other),
        ("STUN, other cookie", payload(&with(&STUN, 7, 0x43), 28), Content::Other),
        ("first byte 4", payload(&with(&STUN, 0, 4), 28), Content::Other),
        ("ZRTP hello", payload(b"\x10\x00\x00\x01ZRTP", 28), Content::Zrtp),
        ("ZRTP, other cookie", payload(b"\x10\x00\x00\x01ZRTQ", 28), Content::Other),
        ("ZRTP cut short", payload(b"\x10\x00\x00\x01ZRTP", 27), Content::Other),
        ("DTLS 1.2 handshake", payload(&DTLS, 113), Content::Dtls),
        ("DTLS 1.0 handshake", payload(&with(&DTLS, 2, 0xff), 113), Content::Dtls),
        ("DTLS cut short", payload(&DTLS, 112), Content::Other),
        ("DTLS, header cut short", payload(&DTLS[..12], 12), Content::Other),
        ("TLS over UDP", payload(&with(&DTLS, 1, 3), 113), Content::Other),
        ("DTLS 1.3, length given", payload(&[0b0010_1100, 0, 1, 0, 40], 45), Content::Dtls),
        ("DTLS 1.3, length too long", payload(&[0b0010_1100, 0, 1, 0, 41], 45), Content::Other),
        ("DTLS 1.3, length too short", payload(&[0b0010_1100, 0, 1, 0, 15], 45), Content::Other),
        ("DTLS 1.3, no length", payload(&[0b0010_1000, 0, 1], 19), Content::Dtls),
        ("DTLS 1.3, no length, short", payload(&[0b0010_1000, 0, 1], 18), Content::Other),
        ("ChannelData", payload(&[0x40, 0, 0, 20], 24), Content::Channel),
        ("ChannelData, padded", payload(&[0x4f, 0xff, 0, 19], 24), Content::Channel),
        ("ChannelData cut short", payload(&[0x40, 0, 0, 21], 24), Content::Other),
        ("first byte 0x50", payload(&[0x50, 0, 0, 20], 24), Content::Other),
        ("RTP, Opus", payload(&[0x80, 111], 172), Content::Rtp),
        ("RTP, marker", payload(&[0x80, 0x80 | 111], 172), Content::Rtp),
        ("RTP, 11 bytes", payload(&[0x80, 111], 11), Content::Other),
        ("RTP, sources cut short", payload(&[0x82, 111], 19), Content::Other),
        (
            "RTP, extension",
            payload(&[0x90, 111, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xbe, 0xde, 0, 1], 20),
            Content::Rtp,
        ),
        (
            "RTP, extension cut short",
            payload(&[0x90, 111, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xbe, 0xde, 0, 2], 20),
            Content::Other,
        ),
        ("RTCP receiver report", payload(&[0x81, 201, 0, 7], 32), Content::Rtcp),
        ("RTCP cut short", payload(&[0x81, 201, 0, 7], 31), Content::Other),
        ("QUIC", payload(&[0xc3, 0, 0, 0, 1], 1200), Content::Other),
    ];
    for (name, payload, expected) in cases {
        assert_eq!(recognise(&payload), expected, "{name}");
    }
    assert_eq!(recognise(&[]), Content::Other);
}

proptest! {
    #[test]
    fn keeps_to_the_ranges_of_rfc_7983(payload: Vec<u8>) {
        let first = payload.first().copied();
        let allowed = match recognise(&payload) {
            Content::Stun => 0..=3,
            Content::Zrtp => 16..=19,
            Content::Dtls => 20..=63,
            Content::Channel => 64..=79,
            Content::Rtp | Content::Rtcp => 128..=191,
            Content::Other => 0..=255,
        };
        prop_assert!(first.is_none_or(|first| allowed.contains(&first)));
    }
}

/// A wrong guess costs an unmarked packet its tunnel, so random bytes must rarely pass: beyond the quarter that is
/// formally RTP and the eighth that is formally DTLS 1.3, almost none.
#[test]
fn takes_few_random_payloads() {
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as u8
    };
    let mut strict = 0;
    for _ in 0..20_000 {
        let payload: Vec<u8> = (0..100).map(|_| random()).collect();
        let content = recognise(&payload);
        let is_loose = content == Content::Rtp || (content == Content::Dtls && payload[0] >= 32);
        strict += usize::from(content.is_webrtc() && !is_loose);
    }
    assert!(strict < 20, "{strict} of 20000");
}
