//! `breakout explain`: what goes which way, and the story told.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test helpers")]

mod common;

use common::Place;

struct Case {
    arguments: &'static str,
    path: &'static str,
    rule: &'static str,
    mark: &'static str,
}

const fn case(arguments: &'static str, path: &'static str, rule: &'static str, mark: &'static str) -> Case {
    Case { arguments, path, rule, mark }
}

fn verify(place: &Place, config: Option<&str>, cases: &[Case]) {
    for Case { arguments, path, rule, mark } in cases {
        let mut command = vec!["explain", "--json"];
        command.extend(arguments.split_whitespace());
        command.extend(config.iter().flat_map(|config| ["--config", config]));
        let outcome = place.run(&command);
        outcome.assert(0, "");
        let json = outcome.json();
        assert_eq!(
            (&json["path"], &json["rule"], &json["mark"]),
            (&(*path).into(), &(*rule).into(), &(*mark).into()),
            "{arguments}: {json}"
        );
        let steps = json["steps"].as_array().unwrap();
        let decided = steps.iter().filter(|step| step["decided"] == true).count();
        assert_eq!(decided, 1, "{arguments}: {json}");
    }
}

#[test]
fn the_built_in_policy() {
    verify(
        &Place::new(),
        None,
        &[
            case("--proto udp --dst 52.129.96.10:20000 --dscp ef", "bypass", "media", "ef"),
            case("--proto udp --dst 52.129.96.10:20000 --payload rtp", "bypass", "media", "ef"),
            case("--proto udp --dst 136.245.64.1:3478 --payload stun", "bypass", "media", "ef"),
            case("--proto udp --dst 169.150.104.9:16384 --payload dtls", "bypass", "media", "ef"),
            case("--proto udp --dst 52.129.96.10:20000 --dscp af41 --payload rtp", "bypass", "media", "af41"),
            case("--proto udp --dst 52.129.96.10:20000", "tunnel", "media-fallback", "cs0"),
            case("--proto tcp --dst 52.129.96.10:443", "tunnel", "media-fallback", "cs0"),
            case("--proto 17 --dst 52.129.96.10:20000 --dscp 46", "bypass", "media", "ef"),
            case("--proto tcp --dst 52.129.96.10:22", "reject", "unmatched", "cs0"),
            case("--proto tcp --dst 203.0.113.9:443", "tunnel", "signaling", "cs0"),
            case("--proto icmp --dst 52.129.96.10", "reject", "unmatched", "cs0"),
            case("--proto udp --dst 8.8.8.8:53", "direct", "none", "cs0"),
            case("--proto tcp --dst [2001:db8::1]:443", "direct", "none", "cs0"),
        ],
    );
}

#[test]
fn a_configuration_and_the_source() {
    let place = Place::new();
    place.write_config("");
    verify(
        &place,
        Some("agent.toml"),
        &[
            case("--proto tcp --dst 203.0.113.7:443", "tunnel", "signaling", "cs0"),
            case("--proto tcp --dst 203.0.113.7:443 --src 10.99.0.1:40000", "tunnel", "signaling", "cs0"),
            case("--proto tcp --dst 203.0.113.7:443 --src 192.168.1.20:40000", "reject", "signaling", "cs0"),
            case(
                "--proto udp --dst 52.129.96.10:20000 --dscp ef --src 192.168.1.20:40000",
                "bypass",
                "media",
                "ef",
            ),
            case("--proto udp --dst 8.8.8.8:53 --src 10.99.0.1:40000", "reject", "none", "cs0"),
            case("--proto udp --dst 8.8.8.8:53 --src 192.168.1.20:40000", "direct", "none", "cs0"),
        ],
    );
}

#[test]
fn people_see_the_steps_and_which_policy_it_was() {
    let place = Place::new();
    let shown =
        place.run(&["explain", "--proto", "udp", "--dst", "52.129.96.10:20000", "--dscp", "ef"]).stdout;
    for part in [
        "udp to 52.129.96.10:20000",
        "genesys-media",
        "rule media",
        "<- decided",
        "path    bypass",
        "mark    ef",
        "policy  built in",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    place.write_config("");
    let shown =
        place.run(&["explain", "--proto", "icmp", "--dst", "203.0.113.7", "--config", "agent.toml"]).stdout;
    assert!(shown.contains("path    reject") && shown.contains("policy  agent.toml"), "{shown}");
}

#[test]
fn what_only_a_running_daemon_knows_is_said() {
    let place = Place::new();
    place.write_key("agent.key");
    let text = common::config("")
        .replace("[sets", "dns = [\"10.99.0.53\"]\n[genesys]\nregion = \"us-west-2\"\n[sets");
    place.write("agent.toml", &text);
    verify(
        &place,
        Some("agent.toml"),
        &[
            case("--proto udp --dst 10.99.0.53:53 --src 10.99.0.1:40000", "tunnel", "tunnel-dns", "cs0"),
            case("--proto tcp --dst 198.51.100.7:443", "direct", "none", "cs0"),
            case("--proto tcp --dst 203.0.113.7:443", "tunnel", "signaling", "cs0"),
        ],
    );
    let shown = |to| place.run(&["explain", "--config", "agent.toml", "--proto", "tcp", "--dst", to]).stdout;
    assert!(shown("198.51.100.7:443").contains("unless a name under usw2.pure.cloud has this address"));
    assert!(!shown("203.0.113.7:443").contains("unless a name"));
}

#[test]
fn questions_that_make_no_sense() {
    let place = Place::new();
    for (arguments, found) in [
        ("--proto udp --dst 52.129.96.10", "has no port"),
        ("--proto icmp --dst 52.129.96.10:80", "icmp has no ports"),
        ("--proto sctp --dst 52.129.96.10:80", "give tcp, udp, icmp"),
        ("--proto 256 --dst 52.129.96.10:80", "a number up to 255"),
        ("--proto tcp --dst 52.129.96.300:80", "give an address or a name, with a port"),
        ("--proto tcp --dst example..com:80", "give an address or a name, with a port"),
        ("--proto tcp --dst 52.129.96.10:80 --dscp loud", "is no DSCP"),
        ("--proto tcp --dst 52.129.96.10:80 --src [2001:db8::1]:1", "different families"),
        ("--proto tcp --dst 52.129.96.10:80 --config none.toml", "cannot read the configuration none.toml"),
        ("--dst 52.129.96.10:80", "--proto"),
    ] {
        let mut command = vec!["explain"];
        command.extend(arguments.split_whitespace());
        place.run(&command).assert(2, found);
    }
}
