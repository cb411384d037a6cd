//! `breakout import`: wg-quick files, good and bad.

mod common;

use std::fs;

use common::{PEER, PRIVATE, Place, mode};

fn wg_quick(interface: &str, peer: &str) -> String {
    format!(
        "# made by hand\n[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.99.0.1/32, fd00::1/128 # ours\n{interface}\n\
         [Peer]\nPublicKey={PEER}\nEndpoint = 198.18.0.2:51820\n{peer}\n"
    )
}

#[test]
fn a_plain_file_becomes_a_configuration_that_passes_check() {
    let place = Place::new();
    place.write(
        "wg0.conf",
        &wg_quick("MTU = 1380", &format!("AllowedIPs = 203.0.113.0/24, 192.0.2.0/25\nPresharedKey = {PRIVATE}\nPersistentKeepalive = 25")),
    );
    let outcome = place.run(&["import", "--json", "wg0.conf", "--out", "new/place"]);
    outcome.assert(0, "");
    let json = outcome.json();
    assert_eq!(json["config"], "new/place/wg0.toml");
    for key in ["new/place/wg0.key", "new/place/wg0.psk"] {
        assert_eq!(mode(&place.path(key)), 0o600);
        assert_eq!(fs::read_to_string(place.path(key)).unwrap(), format!("{PRIVATE}\n"));
    }
    let toml = fs::read_to_string(place.path("new/place/wg0.toml")).unwrap();
    assert!(!toml.contains(PRIVATE), "{toml}");
    for part in [
        "\"10.99.0.1/32\", \"fd00::1/128\"",
        "mtu = 1380",
        PEER,
        "198.18.0.2:51820",
        "keepalive = 25",
        "203.0.113.0/24",
    ] {
        assert!(toml.contains(part), "{part} in {toml}");
    }
    place.run(&["check", "new/place/wg0.toml"]).assert(0, "");
}

#[test]
fn what_cannot_be_carried_over_is_said_and_nothing_is_executed() {
    for (interface, peer, said) in [
        ("DNS = 10.0.0.53", "AllowedIPs = 203.0.113.0/24", "DNS = 10.0.0.53"),
        ("PostUp = touch executed", "AllowedIPs = 203.0.113.0/24", "Breakout runs no commands"),
        ("Table = off", "AllowedIPs = 203.0.113.0/24", "Table = off"),
        ("FwMark = 51820", "AllowedIPs = 203.0.113.0/24", "FwMark = 51820"),
        ("ListenPort = 51820", "AllowedIPs = 203.0.113.0/24", "ListenPort"),
        ("SaveConfig = true", "AllowedIPs = 203.0.113.0/24", "SaveConfig"),
        ("", "AllowedIPs = 0.0.0.0/0, ::/0", "means all traffic"),
        ("", "AllowedIPs = 10.99.0.0/24, 203.0.113.0/24", "this machine's own address"),
        ("", "AllowedIPs = 198.18.0.0/15, 203.0.113.0/24", "the gateway's own endpoint"),
        ("", "AllowedIPs = 203.0.113.0/24\n[Peer]\nPublicKey = x\n[Peer]", "2 further [Peer] sections"),
        ("", "AllowedIPs = 203.0.113.0/24", "became the set genesys-signaling"),
    ] {
        let place = Place::new();
        place.write("wg0.conf", &wg_quick(interface, peer));
        let outcome = place.run(&["import", "wg0.conf"]);
        outcome.assert(0, "");
        assert!(outcome.stdout.contains(said), "{said} in {}", outcome.stdout);
        assert!(!place.path("executed").exists());
        place.run(&["check", "wg0.toml"]).assert(0, "");
    }
}

#[test]
fn a_file_that_cannot_be_used_leaves_nothing_behind() {
    let good = wg_quick("", "AllowedIPs = 203.0.113.0/24");
    for (text, said) in [
        (good.replace(PRIVATE, "short"), "PrivateKey is no key"),
        (good.replace(PEER, "short"), "peer_public_key"),
        (good.replace("Endpoint", "Endpoynt"), "unknown key `endpoynt` in [Peer]"),
        (good.replace("[Peer]", "[Pear]"), "unknown section [Pear]"),
        (good.replace("Endpoint = 198.18.0.2:51820", ""), "has no Endpoint"),
        (good.replace("198.18.0.2:51820", "198.18.0.2"), "endpoint"),
        (good.replace(&format!("PrivateKey = {PRIVATE}"), ""), "has no PrivateKey"),
        (good.replace("203.0.113.0/24", "203.0.113.0/99"), "wg0.conf:9: `203.0.113.0/99`"),
        (good.replace("# made by hand", "made by hand"), "wg0.conf:1: neither a section nor"),
        (good.replace("# made by hand", "MTU = 1400"), "stands before any section"),
        (good.replace("[Interface]", "[Interface]\nMTU = many"), "`many` is no number"),
        (String::new(), "has no PrivateKey"),
    ] {
        let place = Place::new();
        place.write("wg0.conf", &text);
        place.run(&["import", "wg0.conf", "--out", "new"]).assert(2, said);
        assert!(!place.path("new").exists(), "{said}");
    }
}

#[test]
fn nothing_is_overwritten() {
    for taken in ["wg0.toml", "wg0.key"] {
        let place = Place::new();
        place.write("wg0.conf", &wg_quick("", "AllowedIPs = 203.0.113.0/24"));
        place.write(taken, "mine");
        place.run(&["import", "wg0.conf"]).assert(3, "exists already");
        assert_eq!(fs::read_to_string(place.path(taken)).unwrap(), "mine");
        let others = ["wg0.toml", "wg0.key"].into_iter().filter(|name| *name != taken);
        assert!(others.into_iter().all(|name| !place.path(name).exists()));
    }
}
