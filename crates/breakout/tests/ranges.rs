//! `breakout regions` and `breakout ranges import`: what Genesys publishes of itself.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test helpers")]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
    thread,
};

use common::{Outcome, Place, mode, set_mode};
use lab::service::Identity;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

const ANSWER: &str = r#"{"entities": [
    {"cidr": "192.0.2.0/25", "service": "api", "region": "us-west-2", "direction": "inbound"},
    {"cidr": "192.0.2.129/25", "service": "api", "direction": "both", "since": 2024},
    {"cidr": "198.51.100.0/24", "service": "smtp", "region": "us-west-2", "direction": "inbound"},
    {"cidr": "198.51.100.128/25", "service": "api", "direction": "outbound"},
    {"cidr": "52.129.96.0/24", "service": "api", "direction": "both"},
    {"cidr": "2001:db8:7::/48", "service": "api", "direction": "both"},
    {"cidr": "0.0.0.0/0", "service": "api", "direction": "both"},
    {"cidr": "everywhere", "service": "api", "direction": "both"},
    {"service": "api", "direction": "inbound"},
    {"cidr": "203.0.113.7", "service": "api", "direction": null},
    {}
], "total": 11}"#;

#[test]
fn regions_are_listed_with_their_domains() {
    let place = Place::new();
    let shown = place.run(&["regions"]);
    shown.assert(0, "");
    assert!(shown.stdout.lines().any(|line| line == "us-west-2       usw2.pure.cloud"), "{}", shown.stdout);
    let json = place.run(&["regions", "--json"]).json();
    let regions = json["regions"].as_array().unwrap();
    assert_eq!(regions.len(), shown.stdout.lines().count());
    let frankfurt = regions.iter().find(|region| region["region"] == "eu-central-1").unwrap();
    assert_eq!(frankfurt["domains"], serde_json::json!(["mypurecloud.de", "euc1.pure.cloud"]));

    // Each of them can be given.
    for region in regions {
        let region = region["region"].as_str().unwrap();
        place.write_key("agent.key");
        place.write("agent.toml", &with_region(region));
        place.run(&["check", "agent.toml"]).assert(0, "");
    }
}

#[test]
fn the_ranges_of_the_api_are_printed_as_a_section() {
    let place = Place::new();
    place.write("ranges.json", ANSWER);
    let outcome = place.run(&["ranges", "import", "ranges.json"]);
    outcome.assert(0, "");
    assert_eq!(
        outcome.stdout,
        "[sets.genesys-signaling]\ncidrs = [\n    \"192.0.2.0/24\",\n    \"2001:db8:7::/48\",\n]\n"
    );
    for note in [
        "4 ranges were left out: of other services",
        "52.129.96.0/24 belongs to genesys-media; it was left out",
        "0.0.0.0/0 cannot be captured: it is the whole internet",
        "`everywhere` is no prefix",
        "a range has no `cidr`",
    ] {
        assert!(outcome.stderr.contains(note), "{note} in {}", outcome.stderr);
    }
    let json = place.run(&["ranges", "import", "--json", "ranges.json"]).json();
    assert_eq!(json["cidrs"], serde_json::json!(["192.0.2.0/24", "2001:db8:7::/48"]));
    assert_eq!((&json["config"], json["notes"].as_array().unwrap().len()), (&serde_json::Value::Null, 5));
}

#[test]
fn an_answer_is_added_to_a_configuration() {
    let place = Place::new();
    let config = place.write_config("# the end\n");
    set_mode(&config, 0o640);
    place.write("ranges.json", ANSWER);
    let outcome = place.run(&["ranges", "import", "ranges.json", "--into", "agent.toml"]);
    outcome.assert(0, "");
    assert!(
        outcome.stdout.contains("added to genesys-signaling in agent.toml:\n  192.0.2.0/24\n"),
        "{}",
        outcome.stdout
    );
    let text = fs::read_to_string(&config).unwrap();
    for part in ["\"203.0.113.0/24\",\n    \"192.0.2.0/24\",\n", "# the end\n"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(mode(&config), 0o640);
    place.run(&["check", "agent.toml"]).assert(0, "");
    let explained = place.run(&[
        "explain",
        "--config",
        "agent.toml",
        "--proto",
        "tcp",
        "--dst",
        "192.0.2.200:443",
        "--json",
    ]);
    assert_eq!(explained.json()["rule"], "signaling");

    let again = place.run(&["ranges", "import", "ranges.json", "--into", "agent.toml", "--json"]);
    assert_eq!(again.json()["added"].as_array().unwrap().len(), 0);
    assert_eq!(fs::read_to_string(&config).unwrap(), text);
    assert_eq!(fs::read_dir(config.parent().unwrap()).unwrap().count(), 3, "the file, its key, the answer");
}

#[test]
fn ranges_widen_what_a_region_says() {
    let place = Place::new();
    place.write_key("agent.key");
    place.write("agent.toml", &with_region("us-west-2"));
    place.write("ranges.json", ANSWER);
    place.run(&["ranges", "import", "ranges.json", "--into", "agent.toml"]).assert(0, "");
    let checked = place.run(&["check", "agent.toml"]);
    checked.assert(0, "");
    assert!(checked.stdout.contains("usw2.pure.cloud"), "{}", checked.stdout);
}

#[test]
fn an_answer_is_fetched_from_whom_the_system_trusts() {
    let place = Place::new();
    let identity = Identity::new(&[Ipv4Addr::LOCALHOST.into()]).unwrap();
    let server = serve(identity.server);
    let trusted = place.write("trusted.pem", &identity.certificate_pem);
    let import = |path: &str| -> Outcome {
        let trusted = ("SSL_CERT_FILE", trusted.to_str().unwrap());
        let url = format!("https://{server}{path}");
        place.run_with(&["ranges", "import", &url], &[trusted, ("NO_PROXY", "*")])
    };
    let fetched = import("/api/v2/ipranges");
    fetched.assert(0, "note: 52.129.96.0/24 belongs to genesys-media; it was left out");
    assert!(fetched.stdout.contains("\"192.0.2.0/24\",\n"), "{}", fetched.stdout);
    import("/moved").assert(0, "");

    import("/secret").assert(3, "http status: 401");
    import("/leads-to-http").assert(3, "https only");
    import("/circle").assert(3, "too many redirects");
    import("/endless").assert(3, "larger than request limit: 16777216");
    import("/cut").assert(3, "cannot fetch");
    import("/page").assert(2, "is no list of Genesys's address ranges");

    let stranger = Identity::new(&[Ipv4Addr::LOCALHOST.into()]).unwrap();
    place.write("trusted.pem", &stranger.certificate_pem);
    import("/api/v2/ipranges").assert(3, "invalid peer certificate");
    place.write("trusted.pem", "");
    import("/api/v2/ipranges").assert(3, "| breakout ranges import -`");
}

/// A server by HTTPS, one request for each connection.
fn serve(tls: Arc<ServerConfig>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let session = ServerConnection::new(tls.clone()).unwrap();
            // Whoever trusts another one goes away.
            let _ = answer(StreamOwned::new(session, stream));
        }
    });
    address
}

fn answer(stream: StreamOwned<ServerConnection, std::net::TcpStream>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut asking = String::new();
    stream.read_line(&mut asking)?;
    let mut line = String::new();
    while stream.read_line(&mut line)? > "\r\n".len() {
        line.clear();
    }
    let stream = stream.get_mut();
    let (status, header, body) = match asking.split(' ').nth(1) {
        Some("/api/v2/ipranges") => ("200 OK", "", ANSWER),
        Some("/moved") => ("302 Found", "Location: /api/v2/ipranges\r\n", ""),
        Some("/leads-to-http") => ("302 Found", "Location: http://127.0.0.1:1/\r\n", ""),
        Some("/circle") => ("302 Found", "Location: /circle\r\n", ""),
        Some("/endless") => ("200 OK", "Transfer-Encoding: chunked\r\n", ""),
        Some("/cut") => ("200 OK", "Content-Length: 99999\r\n", "{"),
        Some("/page") => ("200 OK", "", "<html></html>"),
        _ => ("401 Unauthorized", "", "{}"),
    };
    write!(stream, "HTTP/1.1 {status}\r\n{header}Connection: close\r\n\r\n{body}")?;
    while header.starts_with("Transfer-Encoding") {
        write!(stream, "10000\r\n{}\r\n", " ".repeat(0x1_0000))?;
    }
    stream.conn.send_close_notify();
    stream.flush()
}

#[test]
fn what_is_no_such_answer_changes_nothing() {
    for (text, found) in [
        ("", "is no list of Genesys's address ranges"),
        ("[]", "is no list of Genesys's address ranges"),
        ("{\"ranges\": []}", "missing field `entities`"),
        ("{\"entities\": [{\"cidr\": 7}]}", "invalid type"),
        ("{\"entities\": []}", "it has no service at all"),
        ("{\"entities\": [{\"cidr\": \"192.0.2.0/24\", \"service\": \"smtp\"}]}", "it has smtp"),
        (
            "{\"entities\": [{\"cidr\": \"198.18.0.0/24\", \"service\": \"api\", \"direction\": \"both\"}]}",
            "endpoint 198.18.0.2 lies inside 198.18.0.0/24",
        ),
    ] {
        let place = Place::new();
        let config = place.write_config("");
        let before = fs::read_to_string(&config).unwrap();
        place.write("ranges.json", text);
        place.run(&["ranges", "import", "ranges.json", "--into", "agent.toml"]).assert(2, found);
        assert_eq!(fs::read_to_string(&config).unwrap(), before);
    }
    let place = Place::new();
    place.run(&["ranges", "import", "none.json"]).assert(2, "cannot read none.json");
    let url = "http://api.mypurecloud.de/api/v2/ipranges";
    place.run(&["ranges", "import", url]).assert(2, "give a URL with https");
    place.run(&["ranges", "import", "-"]).assert(2, "standard input is no list");
}

fn with_region(region: &str) -> String {
    let config = common::config("");
    let without_set = config.split("[sets").next().unwrap();
    format!("{without_set}dns = [\"10.99.0.53\"]\n[genesys]\nregion = \"{region}\"\n")
}
