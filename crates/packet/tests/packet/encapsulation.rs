//! Outer and inner header of a tunnel, held against the RFCs' tables.

use crate::support::{Body, Spec};
use packet::{Checksum, Dscp, Ecn, OuterDscp, Tos, decapsulate};

const ALL: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce];

/// RFC 6040 §4.2, figure 4: rows are what the packet inside says, columns what its outer header does, both in the order of [`ALL`].
const FIGURE_4: [[Option<Ecn>; 4]; 4] = {
    use Ecn::{Ce, Ect0, Ect1, NotEct};
    [
        [Some(NotEct), Some(NotEct), Some(NotEct), None],
        [Some(Ect0), Some(Ect0), Some(Ect1), Some(Ce)],
        [Some(Ect1), Some(Ect1), Some(Ect1), Some(Ce)],
        [Some(Ce), Some(Ce), Some(Ce), Some(Ce)],
    ]
};

#[test]
fn what_leaves_a_tunnel_says_what_rfc_6040_wants() {
    for (inner, row) in ALL.into_iter().zip(FIGURE_4) {
        for (outer, expected) in ALL.into_iter().zip(row) {
            assert_eq!(inner.decapsulated(outer), expected, "{inner:?} inside {outer:?}");
            for v6 in [false, true] {
                let mut packet = packet(v6, Tos(0xb8).with_ecn(inner));
                let right = expected.map(|ecn| self::packet(v6, Tos(0xb8).with_ecn(ecn)));
                let stays = decapsulate(&mut packet, Tos(0x28).with_ecn(outer));
                assert_eq!(stays.then_some(packet), right, "every other byte but the checksum stays");
            }
        }
    }
}

#[test]
fn what_is_no_packet_is_left_alone() {
    for bytes in [&[][..], &[0x45], &[0x00, 0xff], &[0x45, 0x02], &[0x6f, 0xff, 0, 0], &[0xff; 60]] {
        let mut after = bytes.to_vec();
        assert!(
            decapsulate(&mut after, Tos(3)) || Tos::of(bytes).is_some_and(|tos| tos.ecn() == Ecn::NotEct)
        );
        assert_eq!(after, bytes);
    }
}

/// RFC 6040 §4.1, normal mode; RFC 2983 leaves the DSCP to the operator.
#[test]
fn what_enters_a_tunnel_keeps_its_ecn_and_gets_the_dscp_of_the_policy() {
    let af41 = OuterDscp::Fixed(Dscp::AF41);
    for ecn in 0..4 {
        let inner = Some(Tos(0xb8 | ecn));
        assert_eq!(OuterDscp::ZERO.encapsulated(inner), Tos(ecn));
        assert_eq!(OuterDscp::Copy.encapsulated(inner), Tos(0xb8 | ecn));
        assert_eq!(af41.encapsulated(inner), Tos(0x88 | ecn));
    }
    for (policy, without_packet) in [(OuterDscp::ZERO, 0), (OuterDscp::Copy, 0), (af41, 0x88)] {
        assert_eq!(policy.encapsulated(None), Tos(without_packet));
    }
}

#[test]
fn a_policy_is_written_as_a_word_a_name_or_a_number() {
    for (text, policy) in [
        ("zero", OuterDscp::ZERO),
        ("0", OuterDscp::ZERO),
        ("copy", OuterDscp::Copy),
        ("af41", OuterDscp::Fixed(Dscp::AF41)),
        ("46", OuterDscp::Fixed(Dscp::EF)),
    ] {
        assert_eq!(text.parse(), Ok(policy));
    }
    for text in ["", "64", "none", "af51", "-1"] {
        let message = text.parse::<OuterDscp>().unwrap_err().to_string();
        assert!(message.contains("\"copy\"") && message.contains(text), "{message}");
    }
    assert_eq!(OuterDscp::default(), OuterDscp::ZERO);
}

fn packet(v6: bool, tos: Tos) -> Vec<u8> {
    let [source, destination] = match v6 {
        false => ["10.99.0.1:40000", "203.0.113.10:443"],
        true => ["[fd00::1]:40000", "[2001:db8::10]:443"],
    };
    let spec = Spec {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        tos: tos.0,
        ttl: 64,
        body: Body::Udp { summed: true },
        option_words: 0,
        extensions: Vec::new(),
        cut: 0,
        payload: b"an odd number of bytes!".to_vec(),
        checksum: Checksum::Complete,
    };
    spec.build().bytes
}
