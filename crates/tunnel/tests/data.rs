//! What goes through a session: bytes, padding, order, replays, bounds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use common::{Gave, MTU, Pair, Took, flush, give, ipv4, take};
use tunnel::{DATAGRAM_OVERHEAD, OpenError, SealError, State};

#[test]
fn data_flows_both_ways() {
    let mut pair = Pair::up();
    assert_eq!(pair.agent.state(pair.now), State::Up { since: pair.now });
    assert_eq!(pair.gateway.state(pair.now), State::Up { since: pair.now });
    for _ in 0..100 {
        pair.upload();
        pair.download();
    }
    let (agent, gateway) = (pair.agent.stats(), pair.gateway.stats());
    assert_eq!((agent.sent_packets, agent.received_packets), (101, 100));
    assert_eq!((agent.sent_bytes, agent.received_bytes), (gateway.received_bytes, gateway.sent_bytes));
    assert_eq!((agent.handshakes, gateway.handshakes), (1, 1));
    assert_eq!(agent.last_received, Some(pair.now));
}

#[test]
fn packets_are_padded_with_zeros_within_the_mtu() {
    let mut pair = Pair::up();
    let mtu = usize::from(MTU);
    for (length, on_the_wire) in
        [(20, 32), (32, 32), (33, 48), (1408, 1408), (1409, mtu), (mtu, mtu), (1500, 1500)]
    {
        let packet = ipv4(length, 7);
        let Gave::Datagram(datagram) = give(&mut pair.agent, &packet, pair.now) else { panic!("not sent") };
        assert_eq!(datagram.len(), on_the_wire + DATAGRAM_OVERHEAD, "a packet of {length} bytes");
        let mut out = vec![0xaa; datagram.len().max(148)];
        assert!(pair.gateway.open(&datagram, &mut out, pair.now).is_ok());
        assert_eq!(out[..length], packet);
        assert!(out[length..on_the_wire].iter().all(|byte| *byte == 0), "padding is not zero");
    }
}

#[test]
fn buffers_that_do_not_fit_are_errors() {
    let mut pair = Pair::up();
    let (mut packet, mut out) = (vec![0; 70_000], vec![0; 70_000]);
    let mut seal = |packet: &mut [u8], length, out: &mut [u8]| {
        pair.agent.seal(packet, length, out, pair.now).map(|_| ())
    };
    assert_eq!(seal(&mut packet, 0, &mut out), Err(SealError::Length(0)));
    assert_eq!(seal(&mut packet, 65_504, &mut out), Err(SealError::Length(65_504)));
    assert_eq!(seal(&mut packet, 65_503, &mut out), Ok(()));
    assert_eq!(seal(&mut packet[..40], 40, &mut out), Err(SealError::Padding { need: 48, have: 40 }));
    assert_eq!(seal(&mut packet, usize::MAX, &mut out), Err(SealError::Length(usize::MAX)));
    assert_eq!(seal(&mut packet, 40, &mut out[..147]), Err(SealError::Out { need: 148, have: 147 }));
    assert_eq!(seal(&mut packet, 1400, &mut out[..1439]), Err(SealError::Out { need: 1440, have: 1439 }));
    assert_eq!(seal(&mut packet, 1400, &mut out[..1440]), Ok(()));

    for (length, room, error) in [
        (65_536, 70_000, OpenError::NotWireGuard),
        (148, 147, OpenError::Buffer),
        (2000, 1999, OpenError::Buffer),
        (0, 148, OpenError::NotWireGuard),
    ] {
        let datagram = vec![4; length];
        assert_eq!(pair.agent.open(&datagram, &mut out[..room], pair.now), Err(error));
    }
    assert!(pair.agent.flush(&mut [], pair.now).is_none());
    assert!(pair.agent.on_deadline(&mut [], pair.now).is_none());
}

#[test]
fn a_replay_is_refused_and_reordering_is_not() {
    let mut pair = Pair::up();
    let packets: Vec<_> = (0..50).map(|tag| ipv4(200, tag)).collect();
    let sealed: Vec<_> = packets
        .iter()
        .map(|packet| match give(&mut pair.agent, packet, pair.now) {
            Gave::Datagram(datagram) => datagram,
            other => panic!("{other:?}"),
        })
        .collect();
    for (packet, datagram) in packets.iter().zip(&sealed).rev() {
        assert_eq!(take(&mut pair.gateway, datagram, pair.now), Ok(Took::Packet(packet.clone())));
    }
    for datagram in &sealed {
        assert_eq!(take(&mut pair.gateway, datagram, pair.now), Err(OpenError::Replayed));
    }
    assert_eq!(pair.gateway.stats().replayed, 50);
}

#[test]
fn the_replay_window_is_1024_packets() {
    let mut pair = Pair::up();
    let mut seal = || match give(&mut pair.agent, &ipv4(20, 0), pair.now) {
        Gave::Datagram(datagram) => datagram,
        other => panic!("{other:?}"),
    };
    let sealed: Vec<_> = (0..1026).map(|_| seal()).collect();
    assert!(take(&mut pair.gateway, &sealed[1025], pair.now).is_ok());
    assert_eq!(take(&mut pair.gateway, &sealed[0], pair.now), Err(OpenError::Replayed));
    assert!(take(&mut pair.gateway, &sealed[2], pair.now).is_ok());
}

#[test]
fn a_changed_byte_anywhere_is_noticed() {
    let mut pair = Pair::up();
    let Gave::Datagram(datagram) = give(&mut pair.agent, &ipv4(64, 9), pair.now) else { panic!("not sent") };
    for place in 0..datagram.len() {
        let mut changed = datagram.clone();
        changed[place] ^= 1;
        assert!(take(&mut pair.gateway, &changed, pair.now).is_err(), "byte {place}");
    }
    assert!(take(&mut pair.gateway, &datagram, pair.now).is_ok());
}

#[test]
fn what_is_not_an_ip_packet_inside_is_said_to_be_so() {
    let mut pair = Pair::up();
    for junk in [vec![0x15; 40], ipv4(60, 0)[..40].to_vec()] {
        let Gave::Datagram(datagram) = give(&mut pair.agent, &junk, pair.now) else { panic!("not sent") };
        assert_eq!(take(&mut pair.gateway, &datagram, pair.now), Err(OpenError::NotIp));
    }
    pair.upload();
}

#[test]
fn a_queued_packet_keeps_its_bytes_and_order() {
    let mut pair = Pair::new();
    let packets: Vec<_> = (1..=20).map(|tag| ipv4(usize::from(tag) * 31, tag)).collect();
    let mut initiation = None;
    for packet in &packets {
        match give(&mut pair.agent, packet, pair.now) {
            Gave::Queued(handshake) => initiation = initiation.or(handshake),
            other => panic!("{other:?}"),
        }
    }
    pair.answer(&initiation.unwrap());
    let arrived: Vec<_> = flush(&mut pair.agent, pair.now)
        .iter()
        .map(|datagram| {
            assert_eq!(datagram.len() % 16, 0);
            take(&mut pair.gateway, datagram, pair.now)
        })
        .collect();
    assert_eq!(arrived, packets.into_iter().map(|packet| Ok(Took::Packet(packet))).collect::<Vec<_>>());
}

#[test]
fn keys_and_peers_can_be_handed_to_another_thread() {
    fn send<T: Send>() {}
    send::<tunnel::Peer>();
    send::<tunnel::Responder>();
}
