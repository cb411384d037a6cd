//! The configuration that the documentation shows, and what the built-in sets and rules make of Genesys traffic.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;

use packet::Dscp;
use policy::{Captured, Config, Content, Facts, Fail, Mark, Path, Snapshot};

const CONFIG: &str = r#"
[interface]
address = ["10.99.0.1/32"]

[tunnel]
private_key_file = "agent.key"
peer_public_key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
endpoint = "vpn.example.com:51820"
keepalive = 25

[sets.genesys-signaling]
cidrs = ["203.0.113.0/24"]
"#;

fn snapshot(extra: &str) -> Snapshot {
    let (config, warnings) = Config::parse(&format!("{CONFIG}{extra}"), "breakout.toml").unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    Snapshot::compile(&config)
}

fn facts(protocol: u8, to: &str, dscp: Dscp, content: Content) -> Facts {
    let to: SocketAddr = to.parse().unwrap();
    Facts { protocol, ..Facts::udp(to, dscp, content) }
}

#[test]
fn judges_genesys_traffic() {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let (plain, ef) = (Dscp::DEFAULT, Dscp::EF);
    let cases = [
        ("voice marked EF", UDP, "52.129.96.10:20000", ef, Content::Other, Path::Bypass, "media"),
        ("voice unmarked", UDP, "52.129.96.10:20000", plain, Content::Rtp, Path::Bypass, "media"),
        ("STUN", UDP, "169.150.111.255:3478", plain, Content::Stun, Path::Bypass, "media"),
        ("video", UDP, "136.245.127.255:65535", Dscp::AF41, Content::Rtp, Path::Bypass, "media"),
        (
            "unknown UDP to media",
            UDP,
            "52.129.96.10:20000",
            plain,
            Content::Other,
            Path::Tunnel,
            "media-fallback",
        ),
        (
            "video that is not WebRTC",
            UDP,
            "52.129.96.10:20000",
            Dscp::AF41,
            Content::Other,
            Path::Tunnel,
            "media-fallback",
        ),
        ("TURN over TLS", TCP, "52.129.111.255:443", plain, Content::Other, Path::Tunnel, "media-fallback"),
        ("SSH to media", TCP, "52.129.96.10:22", plain, Content::Other, Path::Reject, "unmatched"),
        ("DNS to media", UDP, "52.129.96.10:53", ef, Content::Other, Path::Reject, "unmatched"),
        ("HTTPS", TCP, "203.0.113.7:443", plain, Content::Other, Path::Tunnel, "signaling"),
        ("SIP", UDP, "203.0.113.7:5060", plain, Content::Other, Path::Tunnel, "signaling"),
        ("voice to signaling", UDP, "203.0.113.7:20000", ef, Content::Rtp, Path::Reject, "unmatched"),
        ("just outside of media", UDP, "52.129.112.0:20000", ef, Content::Rtp, Path::Reject, "unmatched"),
        ("IPv6", UDP, "[2001:db8::1]:20000", ef, Content::Rtp, Path::Reject, "unmatched"),
    ];
    let snapshot = snapshot("");
    for (name, protocol, to, dscp, content, path, rule) in cases {
        let verdict = snapshot.classify(&facts(protocol, to, dscp, content));
        assert_eq!((verdict.path, snapshot.rule_name(verdict.rule)), (path, rule), "{name}");
        let mark = if rule == "media" { Mark::Voice(Dscp::EF) } else { Mark::Keep };
        assert_eq!(verdict.mark, mark, "{name}");
    }
}

#[test]
fn a_later_fragment_matches_no_rule_with_ports() {
    let whole = facts(17, "52.129.96.10:20000", Dscp::EF, Content::Other);
    let verdict = snapshot("").classify(&Facts { port: None, ..whole });
    assert_eq!(verdict.path, Path::Reject);
}

#[test]
fn explains_each_step() {
    let snapshot = snapshot("");
    let explained = snapshot.explain(&facts(17, "52.129.96.10:20000", Dscp::DEFAULT, Content::Other));
    let steps: Vec<_> =
        explained.steps.iter().map(|step| (step.check.as_str(), step.found.as_str(), step.decided)).collect();
    assert_eq!(
        steps,
        [
            ("set", "52.129.96.10 is in genesys-media by 52.129.96.0/20", false),
            ("rule media", "is for ef-or-webrtc, this is marked cs0 and not WebRTC", false),
            ("rule media-fallback", "matches: tunnel", true),
        ]
    );
    assert_eq!((explained.rule.as_str(), explained.mark.as_str()), ("media-fallback", "cs0"));

    let voice = snapshot.explain(&facts(17, "52.129.96.10:20000", Dscp::DEFAULT, Content::Rtp));
    assert_eq!((voice.path, voice.rule.as_str(), voice.mark.as_str()), (Path::Bypass, "media", "ef"));
    let video = snapshot.explain(&facts(17, "52.129.96.10:20000", Dscp::AF41, Content::Rtp));
    assert_eq!(video.mark, "af41");
}

#[test]
fn media_fails_direct_and_signaling_closed() {
    let snapshot = snapshot("");
    let expected = [
        ("52.129.96.0/20", Fail::Direct),
        ("136.245.64.0/18", Fail::Direct),
        ("167.234.48.0/20", Fail::Direct),
        ("169.150.104.0/21", Fail::Direct),
        ("203.0.113.0/24", Fail::Closed),
    ];
    let expected: Vec<_> = expected.map(|(net, fail)| Captured { prefix: net.parse().unwrap(), fail }).into();
    assert_eq!(snapshot.captured(), expected);
}

#[test]
fn an_own_media_set_replaces_the_built_in_one() {
    let snapshot = snapshot("[sets.genesys-media]\ncidrs = [\"198.51.100.0/24\"]");
    assert_eq!(snapshot.set_of("52.129.96.10".parse().unwrap()), None);
    let (set, prefix) = snapshot.set_of("198.51.100.1".parse().unwrap()).unwrap();
    assert_eq!((set, prefix.to_string().as_str()), ("genesys-media", "198.51.100.0/24"));
}

#[test]
fn own_rules_replace_the_built_in_ones_and_only_their_sets_are_captured() {
    let snapshot = snapshot(
        "[policy]\nunmatched = \"tunnel\"\n[[rules]]\nname = \"all\"\nto = \"genesys-signaling\"\nprotocol = [\"icmp\", \"tcp\"]\npath = \"tunnel\"",
    );
    let rules: Vec<_> =
        snapshot.rules().map(|rule| (rule.name, rule.protocol, rule.ports, rule.when)).collect();
    assert_eq!(rules, [("all", "tcp, icmp".to_owned(), None, "always")]);
    let captured: Vec<_> = snapshot.sets().map(|set| (set.name, set.captured)).collect();
    assert_eq!(captured, [("genesys-media", false), ("genesys-signaling", true)]);
    assert_eq!(snapshot.captured().len(), 1);

    let icmp = Facts { protocol: 1, port: None, ..facts(1, "203.0.113.7:0", Dscp::DEFAULT, Content::Other) };
    assert_eq!(snapshot.rule_name(snapshot.classify(&icmp).rule), "all");
    let media = facts(17, "52.129.96.10:20000", Dscp::EF, Content::Rtp);
    assert_eq!(snapshot.classify(&media).path, Path::Tunnel);
    assert_eq!(snapshot.rule_name(snapshot.classify(&media).rule), "unmatched");
}

const NAMES: &str = r#"
[interface]
address = ["10.99.0.1/32"]
[tunnel]
private_key_file = "agent.key"
peer_public_key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
endpoint = "vpn.example.com:51820"
dns = ["10.99.0.53"]
"#;

fn with_names(extra: &str) -> Snapshot {
    let (config, warnings) = Config::parse(&format!("{NAMES}{extra}"), "breakout.toml").unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    Snapshot::compile(&config)
}

#[test]
fn a_region_fills_the_signaling_set() {
    let snapshot = with_names("[genesys]\nregion = \"eu-central-1\"");
    let domains: Vec<_> = snapshot.domains().collect();
    let signaling = "genesys-signaling";
    assert_eq!(domains, [("euc1.pure.cloud", signaling), ("mypurecloud.de", signaling)]);
    assert_eq!(snapshot.set_for_name("streaming.mypurecloud.de"), Some(("mypurecloud.de", signaling)));
    assert_eq!(snapshot.set_for_name("streaming.usw2.pure.cloud"), None);

    let count = |region: &str| with_names(&format!("[genesys]\nregion = {region}")).domains().count();
    assert_eq!(count("[\"us-west-2\", \"us-east-1\", \"us-west-2\"]"), 2);
    let all = policy::REGIONS.iter().map(|region| region.domains.len()).sum::<usize>();
    assert_eq!((count("\"all\""), count("[\"all\", \"us-west-2\"]")), (all, all));
}

#[test]
fn a_region_adds_to_an_own_signaling_set_what_it_lacks() {
    let snapshot = with_names(
        "[genesys]\nregion = [\"us-west-2\", \"us-east-1\"]\n\
         [sets.genesys-signaling]\ncidrs = [\"203.0.113.0/24\"]\ndomains = [\"*.pure.cloud\"]",
    );
    let set = snapshot.sets().find(|set| set.name == "genesys-signaling").unwrap();
    assert_eq!(
        (set.prefixes.len(), set.domains),
        (1, ["pure.cloud", "mypurecloud.com"].map(str::to_owned).as_slice())
    );
}

#[test]
fn the_tunnels_dns_servers_are_asked_through_it_by_the_first_rule() {
    let snapshot = with_names("[genesys]\nregion = \"us-west-2\"");
    for (protocol, to, rule) in [
        (17, "10.99.0.53:53", "tunnel-dns"),
        (6, "10.99.0.53:53", "tunnel-dns"),
        (6, "10.99.0.53:853", "unmatched"),
        (17, "10.99.0.54:53", "unmatched"),
    ] {
        let facts = facts(protocol, to, Dscp::DEFAULT, Content::Other);
        assert_eq!(snapshot.rule_name(snapshot.classify(&facts).rule), rule, "{to}");
    }
    let server = Captured { prefix: "10.99.0.53/32".parse().unwrap(), fail: Fail::Closed };
    assert!(snapshot.captured().contains(&server));
    assert_eq!(snapshot.rules().next().unwrap().name, "tunnel-dns");
    assert!(
        snapshot.explain(&facts(6, "10.99.0.53:53", Dscp::DEFAULT, Content::Other)).steps[0]
            .found
            .ends_with("is in tunnel-dns by 10.99.0.53/32")
    );
}
