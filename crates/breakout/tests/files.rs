//! `check` and `keygen`: what is in files.

mod common;

use std::fs;

use common::{PEER, PRIVATE, PUBLIC, Place, config, mode, set_mode};

#[test]
fn a_good_configuration_is_said_to_be_good() {
    let place = Place::new();
    place.write_config("");
    let outcome = place.run(&["check", "agent.toml"]);
    outcome.assert(0, "");
    assert_eq!(outcome.stdout, "agent.toml can be used\n");
    let json = place.run(&["check", "--json", "agent.toml"]).json();
    assert_eq!(json["valid"], true);
    assert_eq!(json["errors"].as_array().unwrap().len(), 0);
}

#[test]
fn the_names_that_are_asked_for_are_shown() {
    let place = Place::new();
    place.write_key("agent.key");
    let text = config("")
        .replace("[sets", "dns = [\"10.99.0.53\", \"10.99.0.54\"]\n[sets")
        .replace("cidrs", "domains = [\"*.MyPureCloud.de\", \"pure.cloud\"]\ncidrs");
    place.write("agent.toml", &text);
    let outcome = place.run(&["check", "agent.toml"]);
    outcome.assert(0, "");
    assert_eq!(
        outcome.stdout,
        "agent.toml can be used\nnames asked for through the tunnel, at 10.99.0.53, 10.99.0.54:\n  mypurecloud.de  genesys-signaling\n  pure.cloud      genesys-signaling\n"
    );
    let json = place.run(&["check", "--json", "agent.toml"]).json();
    assert_eq!(json["dns"], serde_json::json!(["10.99.0.53", "10.99.0.54"]));
    assert_eq!(json["domains"][1], serde_json::json!({"domain": "pure.cloud", "set": "genesys-signaling"}));
}

#[test]
fn several_gateways_are_shown_in_their_order() {
    let place = Place::new();
    place.write_key("agent.key");
    let gateway = |name: &str, key: &str, endpoint: &str| {
        format!("[[gateways]]\nname = \"{name}\"\npublic_key = \"{key}\"\nendpoint = \"{endpoint}\"\n")
    };
    let gateways = gateway("frankfurt", PEER, "vpn.example.com:51820")
        + &gateway("paris", PUBLIC, "[2001:db8::2]:51820");
    let one = format!("peer_public_key = \"{PEER}\"\nendpoint = \"198.18.0.2:51820\"\n");
    let text =
        config("").replace(&one, "prefer = \"round-trip\"\n").replace("[sets", &format!("{gateways}[sets"));
    place.write("agent.toml", &text);
    let outcome = place.run(&["check", "agent.toml"]);
    outcome.assert(0, "");
    assert_eq!(
        outcome.stdout,
        "agent.toml can be used\ngateways, by round-trip:\n  frankfurt  vpn.example.com:51820\n  paris      [2001:db8::2]:51820\n"
    );
    let json = place.run(&["check", "--json", "agent.toml"]).json();
    assert_eq!(json["prefer"], "round-trip");
    assert_eq!(json["gateways"][1], serde_json::json!({"name": "paris", "endpoint": "[2001:db8::2]:51820"}));
    place.write(
        "agent.toml",
        &text.replace("endpoint = \"vpn", "preshared_key_file = \"a.psk\"\nendpoint = \"vpn"),
    );
    place.run(&["check", "agent.toml"]).assert(1, "cannot read the key file a.psk");
    place.write("agent.toml", &text.replace(PUBLIC, PEER));
    place.run(&["check", "agent.toml"]).assert(1, "two gateways have the same public key");
}

#[test]
fn what_is_wrong_is_shown_with_its_place_and_remedy() {
    let good = config("");
    for (text, found) in [
        (good.replace("10.99.0.1/32", "10.99.0.300/32"), "10.99.0.300/32"),
        (good.replace("endpoint", "endpiont"), "endpiont"),
        (good.replace("203.0.113.0/24", "198.18.0.0/24"), "198.18.0.2"),
        (good.replace("[\"203.0.113.0/24\"]", "[]"), "cidrs"),
        ("[interface".to_owned(), "not valid TOML"),
        (String::new(), "[interface] is missing"),
    ] {
        let place = Place::new();
        place.write_key("agent.key");
        place.write("agent.toml", &text);
        place.run(&["check", "agent.toml"]).assert(1, found);
        let outcome = place.run(&["check", "--json", "agent.toml"]);
        assert_eq!(outcome.status, 1);
        let json = outcome.json();
        assert_eq!(json["valid"], false);
        assert!(json["errors"].to_string().contains(found), "{found}: {json}");
        place.run(&["up", "--config", "agent.toml"]).assert(2, found);
    }
}

#[test]
fn key_files_are_part_of_the_question() {
    let place = Place::new();
    let file = place.write("agent.toml", &config(""));
    place.run(&["check", "agent.toml"]).assert(1, "cannot read the key file agent.key");

    let key = place.write("agent.key", "no key at all\n");
    set_mode(&key, 0o600);
    place.run(&["check", "agent.toml"]).assert(1, "agent.key holds no private key");

    place.write_key("agent.key");
    set_mode(&key, 0o640);
    place.run(&["check", "agent.toml"]).assert(1, "its mode is 0640");
    place.run(&["up", "--config", file.to_str().unwrap()]).assert(2, "chmod 600");

    fs::remove_file(&key).unwrap();
    fs::create_dir(&key).unwrap();
    place.run(&["check", "agent.toml"]).assert(1, "is not a regular file");
}

#[test]
fn a_configuration_that_is_not_there_is_no_answer() {
    let place = Place::new();
    for command in [
        ["check", "none.toml"].as_slice(),
        &["up", "--config", "none.toml"],
        &["gateway", "--config", "none.toml"],
    ] {
        place.run(command).assert(2, "cannot read the configuration none.toml");
    }
    place.run(&["check", "."]).assert(2, "cannot read the configuration .");
}

#[test]
fn keygen_makes_a_private_file_and_never_overwrites() {
    let place = Place::new();
    let made = place.run(&["keygen", "agent.key"]);
    made.assert(0, "");
    assert_eq!(mode(&place.path("agent.key")), 0o600);
    let secret = fs::read_to_string(place.path("agent.key")).unwrap();
    assert_eq!(secret.len(), 45);
    assert_eq!(place.run(&["keygen", "--public", "agent.key"]).stdout, made.stdout);

    place.run(&["keygen", "agent.key"]).assert(3, "never overwritten");
    assert_eq!(fs::read_to_string(place.path("agent.key")).unwrap(), secret);
    place.run(&["keygen", "no/such/directory.key"]).assert(3, "cannot make the key file");
}

#[test]
fn keygen_prints_the_public_key_of_a_known_one() {
    let place = Place::new();
    let key = place.write_key("known.key");
    assert_eq!(place.run(&["keygen", "--public", "known.key"]).stdout, format!("{PUBLIC}\n"));
    let json = place.run(&["keygen", "--public", "--json", "known.key"]).json();
    assert_eq!((json["public_key"].as_str(), json["file"].as_str()), (Some(PUBLIC), Some("known.key")));
    set_mode(&key, 0o604);
    let refused = place.run(&["keygen", "--public", "known.key"]);
    refused.assert(2, "its mode is 0604");
    assert!(!refused.stderr.contains(PRIVATE));
}

#[test]
fn a_preshared_key_is_printed_nowhere() {
    let place = Place::new();
    let made = place.run(&["keygen", "--preshared", "agent.psk"]);
    made.assert(0, "");
    assert_eq!(made.stdout, "");
    assert_eq!(mode(&place.path("agent.psk")), 0o600);
}

#[test]
fn a_gateways_configuration_is_refused_with_its_place() {
    let place = Place::new();
    place.write("gw.toml", "[interface]\naddress = [\"10.99.0.254/24\"]\nlisten_port = 51820\nprivate_key_file = \"gw.key\"\ncolour = 1\n");
    place.run(&["gateway", "--config", "gw.toml"]).assert(2, "unknown field `colour`");
}

#[test]
fn help_and_mistakes_on_the_command_line() {
    let place = Place::new();
    for command in [
        "lab",
        "up",
        "down",
        "status",
        "flows",
        "reload",
        "explain",
        "check",
        "keygen",
        "gateway",
        "import",
        "regions",
        "ranges",
        "panic-off",
    ] {
        let help = place.run(&[command, "--help"]);
        help.assert(0, "");
        assert!(help.stdout.contains("Exit status:"), "{command}: {}", help.stdout);
    }
    place.run(&["fly"]).assert(2, "unrecognized subcommand 'fly'");
    place.run(&[]).assert(2, "Usage:");
    place.run(&["lab", "--gateway", "carrier-pigeon"]).assert(2, "carrier-pigeon");
}
