use std::time::Duration;

use dataplane::rtp::RtpStream;
use packet::Dscp;

use crate::stream::{
    Arrival, EF, FRAME, MILLISECOND, OTHER, SSRC, channel_data, frames, rtp, see, see_all, told,
};

const SECOND: u64 = 1000 * MILLISECOND;

#[test]
fn only_rtp_is_measured() {
    let after = |first: u8, second: u8| {
        let mut payload = rtp(SSRC, 1, 0);
        payload[..2].copy_from_slice(&[first, second]);
        payload
    };
    let cut = |payload: Vec<u8>, len: usize| payload[..len].to_vec();
    let mut lying = channel_data(&rtp(SSRC, 1, 0));
    lying[3] += 1;
    let cases = [
        ("PCMU", after(0x80, 0), true),
        ("the highest payload type, with marker", after(0x80, 0xff), true),
        ("with padding, extension and one contributing source", after(0xb1, 111), true),
        ("in ChannelData", channel_data(&rtp(SSRC, 1, 0)), true),
        ("in ChannelData, padded", [channel_data(&rtp(SSRC, 1, 0)), vec![0; 3]].concat(), true),
        ("a header and nothing else", cut(rtp(SSRC, 1, 0), 12), true),
        ("nothing", Vec::new(), false),
        ("less than a header", cut(rtp(SSRC, 1, 0), 11), false),
        ("fewer contributing sources than told", after(0x86, 111), false),
        ("STUN", after(0x00, 1), false),
        ("DTLS", after(0x16, 0xfe), false),
        ("version 1", after(0x7f, 111), false),
        ("version 3", after(0xc0, 111), false),
        ("RTCP sender report", after(0x80, 200), false),
        ("the first of RTCP", after(0x80, 192), false),
        ("the last of RTCP", after(0x80, 223), false),
        ("a payload type that would be RTCP with a marker", after(0x80, 64), false),
        ("STUN in ChannelData", channel_data(&after(0x00, 1)), false),
        ("RTCP in ChannelData", channel_data(&after(0x80, 200)), false),
        ("ChannelData in ChannelData", channel_data(&channel_data(&rtp(SSRC, 1, 0))), false),
        ("ChannelData longer than its datagram", lying, false),
        ("ChannelData with less than a header", channel_data(&cut(rtp(SSRC, 1, 0), 11)), false),
    ];
    for (what, payload, is_rtp) in cases {
        let seen = see_all([Arrival { payload, at: 1, tos: EF }]);
        assert_eq!(seen != RtpStream::default(), is_rtp, "{what}");
    }
}

#[test]
fn a_stream_takes_two_packets_in_sequence() {
    let packet = |sequence| Arrival { payload: rtp(SSRC, sequence, 0), at: FRAME, tos: 0 };
    assert_eq!(see_all([packet(0)]).report(), None);
    assert_eq!(see_all([packet(0), packet(2)]).report(), None);
    let seen = told(&see_all([packet(0), packet(2), packet(3), packet(4)]));
    assert_eq!((seen.ssrc, seen.packets, seen.lost, seen.strays), (SSRC, 3, 0, 1));
}

#[test]
fn each_clock_is_found_and_no_other_is_taken_for_one() {
    for rate in [8_000, 16_000, 48_000, 90_000] {
        let seen = told(&see_all(frames(SSRC, rate, 0, 200)));
        assert_eq!((seen.clock_rate, seen.jitter), (Some(rate), Some(Duration::ZERO)));
        assert_eq!((seen.packets, seen.lost, seen.dscp), (200, 0, Dscp::EF));
    }
    for rate in [11_025, 12_000, 22_050, 24_000, 32_000, 44_100, 96_000, 192_000] {
        let seen = told(&see_all(frames(SSRC, rate, 0, 200)));
        assert_eq!((seen.clock_rate, seen.jitter, seen.packets), (None, None, 200), "{rate} Hz");
    }
    let first_second = told(&see_all(frames(SSRC, 48_000, 0, 50)));
    assert_eq!((first_second.clock_rate, first_second.jitter), (None, None), "not yet");
}

#[test]
fn loss_counts_and_reordering_and_duplicates_do_not() {
    let all: Vec<_> = frames(SSRC, 48_000, 65_000, 1035).collect();
    let with = |order: &[usize]| {
        let seen = told(&see_all(order.iter().map(|&place| all[place].clone())));
        (seen.packets, seen.lost, seen.strays)
    };
    let straight: Vec<usize> = (0..all.len()).collect();
    assert_eq!(with(&straight), (1035, 0, 0), "over the wrap");
    let mut reordered = straight.clone();
    (100..1000).step_by(7).for_each(|place| reordered.swap(place, place + 3));
    assert_eq!(with(&reordered), (1035, 0, 0));
    let mut doubled = straight.clone();
    doubled.insert(500, 499);
    assert_eq!(with(&doubled), (1036, 0, 0));
    let gaps: Vec<usize> = straight.into_iter().filter(|place| place % 10 != 5).collect();
    assert_eq!(with(&gaps), (932, 103, 0));
}

#[test]
fn a_late_packet_is_a_sixteenth_of_its_lateness_each_way() {
    let mut all: Vec<_> = frames(SSRC, 48_000, 0, 200).collect();
    all[198].at += 16 * MILLISECOND;
    let jitter = told(&see_all(all[..199].to_vec())).jitter.unwrap();
    assert_eq!(jitter, Duration::from_millis(1));
    let jitter = told(&see_all(all)).jitter.unwrap();
    assert!(jitter.abs_diff(Duration::from_micros(1937)) < Duration::from_micros(10), "{jitter:?}");
}

#[test]
fn a_long_jump_is_another_beginning_and_not_loss() {
    let after = told(&see_all(frames(SSRC, 48_000, 0, 100).chain(frames(SSRC, 48_000, 30_000, 100))));
    assert_eq!((after.packets, after.lost, after.strays), (100, 0, 0));
    let stray = frames(SSRC, 48_000, 30_000, 1);
    let on = frames(SSRC, 48_000, 100, 100);
    let after = told(&see_all(frames(SSRC, 48_000, 0, 100).chain(stray).chain(on)));
    assert_eq!((after.packets, after.lost, after.strays), (200, 0, 1));
}

#[test]
fn another_source_takes_over_once_the_first_is_silent() {
    let first = || frames(SSRC, 48_000, 0, 100);
    let next = told(&see_all(first().chain(frames(OTHER, 8_000, 100, 100))));
    assert_eq!((next.ssrc, next.lost), (OTHER, 0));
    assert_eq!(next.packets + next.strays, 100, "the first 200 ms are not of the stream");
    assert!(next.strays <= 10, "{next:?}");
    let stray = told(&see_all(first().chain(frames(OTHER, 8_000, 200, 1))));
    assert_eq!((stray.ssrc, stray.packets, stray.strays), (SSRC, 100, 1));
}

#[test]
fn of_two_streams_at_once_the_first_is_measured() {
    let both = frames(SSRC, 48_000, 0, 200).zip(frames(OTHER, 90_000, 0, 200));
    let seen = told(&see_all(both.flat_map(|(audio, video)| [audio, video.clone(), video])));
    assert_eq!((seen.ssrc, seen.packets, seen.lost, seen.strays), (SSRC, 200, 0, 400));
    assert_eq!((seen.clock_rate, seen.jitter), (Some(48_000), Some(Duration::ZERO)));
}

#[test]
fn a_break_of_the_timestamp_is_no_jitter_and_the_clock_stays() {
    let mut stream = see_all(frames(SSRC, 48_000, 0, 200));
    for mut frame in frames(SSRC, 48_000, 200, 200) {
        frame.payload[4] ^= 0x40;
        see(&mut stream, &frame);
    }
    let seen = told(&stream);
    assert_eq!((seen.clock_rate, seen.jitter), (Some(48_000), Some(Duration::ZERO)));
}

#[test]
fn silence_is_no_jitter() {
    let paused = |pause: u64| {
        told(&see_all(frames(SSRC, 48_000, 0, 400).enumerate().map(|(place, mut frame)| {
            if place >= 200 {
                frame.at += pause;
                let timestamp = (place as u32) * 960 + (pause / MILLISECOND) as u32 * 48;
                frame.payload[4..8].copy_from_slice(&timestamp.to_be_bytes());
            }
            frame
        })))
    };
    for pause in [SECOND, 60 * SECOND, 3600 * SECOND] {
        let seen = paused(pause);
        assert_eq!((seen.packets, seen.clock_rate, seen.jitter), (400, Some(48_000), Some(Duration::ZERO)));
    }
}

#[test]
fn a_codec_with_another_clock_is_found_after_three_seconds() {
    let mut stream = see_all(frames(SSRC, 48_000, 0, 200));
    let mut known = Vec::new();
    for frame in frames(SSRC, 8_000, 200, 400) {
        see(&mut stream, &frame);
        known.push(told(&stream).clock_rate);
    }
    known.dedup();
    assert_eq!(known, [Some(48_000), Some(8_000)]);
    assert_eq!(told(&stream).jitter, Some(Duration::ZERO));
}
