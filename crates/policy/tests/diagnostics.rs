//! Each mistake in a configuration: the line it is reported in, what is said to be found, and the remedy.
#![allow(clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use policy::{Config, ConfigError, Finding, Prefer};

const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

/// A valid file; each part is a line that a case may replace.
const VALID: [&str; 15] = [
    "[interface]",
    "address = [\"10.99.0.1/32\", \"fd99::1/128\"]",
    "[tunnel]",
    "private_key_file = \"agent.key\"",
    "peer_public_key = \"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\"",
    "endpoint = \"198.18.0.2:51820\"",
    "[sets.genesys-signaling]",
    "cidrs = [\"203.0.113.0/24\"]",
    "[sets.other]",
    "cidrs = [\"198.51.100.0/24\"]",
    "[[rules]]",
    "name = \"first\"",
    "to = [\"genesys-signaling\", \"genesys-media\", \"other\"]",
    "protocol = \"udp\"",
    "path = \"tunnel\"",
];

struct Case {
    /// Counted from 1; the line that `text` replaces.
    line: usize,
    text: &'static str,
    at: usize,
    found: &'static str,
    remedy: &'static str,
}

const fn case(line: usize, text: &'static str, found: &'static str, remedy: &'static str) -> Case {
    Case { line, text, at: line, found, remedy }
}

impl Case {
    /// The mistake shows in another line than the replaced one.
    const fn at(self, line: usize) -> Self {
        Self { at: line, ..self }
    }
}

fn parse(case: &Case) -> Result<(Config, Vec<Finding>), ConfigError> {
    let mut lines = VALID.to_vec();
    lines[case.line - 1] = case.text;
    Config::parse(&lines.join("\n"), "breakout.toml")
}

fn assert_found(case: &Case, findings: &[Finding]) {
    let matches =
        |finding: &&Finding| finding.message.contains(case.found) && finding.help.contains(case.remedy);
    let Some(finding) = findings.iter().find(matches) else {
        panic!("for `{}`: expected `{}` with `{}`, got {findings:#?}", case.text, case.found, case.remedy);
    };
    assert_eq!(finding.line, Some(case.at), "line of `{}`", finding.message);
}

#[test]
fn a_valid_file_has_no_findings() {
    let (config, warnings) = Config::parse(&VALID.join("\n"), "breakout.toml").unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(config.tunnel.gateways[0].public_key.0, [1; 32]);
}

/// A valid file with several gateways.
const SEVERAL: [&str; 15] = [
    "[interface]",
    "address = [\"10.99.0.1/32\"]",
    "[tunnel]",
    "private_key_file = \"agent.key\"",
    "prefer = \"round-trip\"",
    "[[gateways]]",
    "name = \"frankfurt\"",
    "public_key = \"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\"",
    "endpoint = \"vpn.example.com:51820\"",
    "preshared_key_file = \"a.psk\"",
    "[[gateways]]",
    "public_key = \"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=\"",
    "endpoint = \"[2001:db8::2]:51820\"",
    "[sets.genesys-signaling]",
    "cidrs = [\"203.0.113.0/24\"]",
];

fn parse_several(line: usize, text: &str) -> Result<(Config, Vec<Finding>), ConfigError> {
    let mut lines = SEVERAL.to_vec();
    lines[line - 1] = text;
    Config::parse(&lines.join("\n"), "breakout.toml")
}

#[test]
fn several_gateways_keep_their_order() {
    let (config, warnings) = parse_several(1, SEVERAL[0]).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    let [first, second] = config.tunnel.gateways.as_slice() else { panic!("{:?}", config.tunnel) };
    assert_eq!((first.name.as_str(), first.public_key.0), ("frankfurt", [1; 32]));
    assert_eq!(first.endpoint.to_string(), "vpn.example.com:51820");
    assert_eq!(first.preshared_key_file.as_deref(), Some("a.psk".as_ref()));
    assert_eq!((second.name.as_str(), second.public_key.0), ("[2001:db8::2]:51820", [2; 32]));
    assert_eq!((&second.preshared_key_file, config.tunnel.prefer), (&None, Prefer::RoundTrip));
    let (config, _) = parse_several(5, "").unwrap();
    assert_eq!(config.tunnel.prefer, Prefer::Order);
}

#[test]
fn mistakes_in_gateways() {
    const ENDPOINT: &str = "endpoint = \"198.18.0.2:51820\"\n[[gateways]]\nname = \"frankfurt\"\npublic_key = \"AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=\"\nendpoint = \"198.18.0.3:51820\"";
    let cases = [
        case(5, "prefer = \"round trip\"", "`prefer` is `round trip`", "did you mean `round-trip`?"),
        case(5, "prefer = 1", "`prefer` is a number", "text in quotes"),
        case(
            5,
            "endpoint = \"198.18.0.2:51820\"",
            "`endpoint` is in [tunnel], and there are [[gateways]]",
            "move it into",
        ),
        case(
            5,
            "peer_public_key = \"\"",
            "`peer_public_key` is in [tunnel], and there are",
            "take the [[gateways]] out",
        ),
        case(
            5,
            "preshared_key_file = \"\"",
            "`preshared_key_file` is in [tunnel], and there are",
            "move it into",
        ),
        case(7, "name = \"frank furt\"", "a gateway cannot be called `frank furt`", "letters, digits"),
        case(7, "nmae = \"frankfurt\"", "unknown key `nmae` in [[gateways]]", "did you mean `name`?"),
        case(
            8,
            "peer_public_key = \"\"",
            "unknown key `peer_public_key` in gateway `frankfurt`",
            "it can be `name`, `public_key`",
        ),
        case(8, "", "`public_key` is missing from gateway `frankfurt`", "add `public_key = ").at(6),
        case(
            8,
            "public_key = \"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=\"",
            "two gateways have the same public key",
            "a key pair of its own",
        )
        .at(12),
        case(
            9,
            "endpoint = \"[2001:DB8:0::2]:51820\"",
            "two gateways are at [2001:db8::2]:51820",
            "another address or port",
        )
        .at(13),
        case(
            9,
            "endpoint = \"203.0.113.5:51820\"",
            "endpoint 203.0.113.5 lies inside 203.0.113.0/24",
            "outside of all sets",
        ),
        case(10, "preshared_key_file = \"\"", "`preshared_key_file` names no file", "keygen"),
        case(13, "", "`endpoint` is missing from [[gateways]]", "add `endpoint = ").at(11),
        case(
            13,
            "endpoint = \"VPN.example.com.:51820\"",
            "two gateways are at VPN.example.com.:51820",
            "take one of them out",
        ),
        case(
            13,
            "endpoint = \"203.0.113.5:51820\"",
            "endpoint 203.0.113.5 lies inside 203.0.113.0/24",
            "outside of all sets",
        ),
        case(13, ENDPOINT, "two gateways are called `frankfurt`", "its own name").at(15),
    ];
    for case in &cases {
        match parse_several(case.line, case.text) {
            Ok(_) => panic!("`{}` was accepted", case.text),
            Err(error) => {
                assert_found(case, error.findings());
                let is_alone = |finding: &Finding| finding.to_string().contains("one gateway");
                assert!(!error.findings().iter().any(is_alone), "`{}`: there are two", case.text);
            }
        }
    }
}

#[test]
fn a_list_of_gateways_has_one_to_eight() {
    let gateway = |number: usize| {
        let key = format!("{}{}", char::from(b'A' + number as u8), &KEY[1..]);
        format!("[[gateways]]\npublic_key = \"{key}\"\nendpoint = \"198.18.0.2:{}\"\n", 1 + number)
    };
    let several = |count: usize| {
        let gateways: String = (0..count).map(gateway).collect();
        let text = [SEVERAL[..5].join("\n"), gateways, SEVERAL[13..].join("\n")].join("\n");
        Config::parse(&text, "breakout.toml")
    };
    assert_eq!(several(8).unwrap().0.tunnel.gateways.len(), 8);
    assert_found(
        &case(6, "9 gateways", "there are 9 gateways", "at most 8"),
        several(9).unwrap_err().findings(),
    );
    let (_, warnings) = several(1).unwrap();
    assert_found(&case(5, "one gateway", "no effect with one gateway", "leave it out"), &warnings);
}

#[test]
fn errors() {
    let cases = [
        case(1, "nonsense = 1\n[interface]", "unknown key `nonsense` in the file", "it can be `interface`"),
        case(1, "gateways = []\n[interface]", "`gateways` is empty", "write a [[gateways]] table"),
        case(1, "gateways = 7\n[interface]", "`gateways` is a number", "must be a list"),
        case(1, "gateways = [7]\n[interface]", "`gateways` is a number", "each headed [[gateways]]"),
        case(1, "gateways = []\n[interface]", "`endpoint` is in [tunnel], and there are", "move it into").at(7),
        case(1, "[interface]\nadress = []", "unknown key `adress` in [interface]", "did you mean `address`?").at(2),
        case(2, "", "`address` is missing from [interface]", "add `address = ").at(1),
        case(2, "address = []", "`address` is empty", "list at least one"),
        case(2, "address = [\"10.99.0.1/33\"]", "`10.99.0.1/33` is no address", "10.99.0.1/32"),
        case(2, "address = [\"127.0.0.1/8\"]", "127.0.0.1 cannot be", "administrator assigned"),
        case(2, "address = 7", "`address` is a number", "must be text in quotes"),
        case(2, "address = [\"203.0.113.9/32\"]", "address 203.0.113.9 lies inside 203.0.113.0/24", "narrow the set"),
        case(2, "address = \"10.99.0.1\"\nname = \"a-name-of-16-byte\"", "has 17 bytes", "1 to 15").at(3),
        case(2, "address = \"10.99.0.1\"\nname = \"tun/0\"", "the kernel refuses", "first free tunN").at(3),
        case(2, "address = \"10.99.0.1\"\nname = \"tun 0\"", "the kernel refuses", "first free tunN").at(3),
        case(2, "address = \"10.99.0.1\"\nname = \"\"", "is no interface name", "first free tunN").at(3),
        case(2, "address = \"10.99.0.1\"\nname = \"breakout-dns\"", "is that of the link", "first free tunN").at(3),
        case(2, "address = \"10.99.0.1\"\nmtu = 575", "`mtu` is 575", "from 576 to 65535").at(3),
        case(2, "address = \"10.99.0.1\"\nmtu = 65536", "`mtu` is 65536", "from 576 to 65535").at(3),
        case(3, "[control]\ngroup = \"\"\n[tunnel]", "is no group name", "root only").at(4),
        case(3, "[dataplane]\nfast_path = \"yes\"\n[tunnel]", "no setting of `fast_path`", "\"require\"").at(4),
        case(3, "[dataplane]\ntun_offload = \"on\"\n[tunnel]", "no setting of `tun_offload`", "\"auto\"").at(4),
        case(3, "[dataplane]\nouter_dscp = \"af44\"\n[tunnel]", "`af44` is no setting of `outer_dscp`", "\"copy\"").at(4),
        case(3, "[dataplane]\nouter_dscp = 46\n[tunnel]", "`outer_dscp` is a number", "text in quotes").at(4),
        case(3, "[network]\nportal_check = \"https://a.example/\"\n[tunnel]", "it does not begin with http://", "status 204").at(4),
        case(3, "[network]\nportal_check = false\n[tunnel]", "`portal_check` is true or false", "text in quotes").at(4),
        case(3, "[network]\nportal = \"\"\n[tunnel]", "unknown key `portal` in [network]", "portal_check").at(4),
        case(3, "[routes]\nkill_switch = \"yes\"\n[tunnel]", "`kill_switch` is text", "true or false").at(4),
        case(3, "[routes]\nkillswitch = true\n[tunnel]", "unknown key `killswitch` in [routes]", "did you mean `kill_switch`?").at(4),
        case(3, "[control]\nuser = \"x\"\n[tunnel]", "unknown key `user` in [control]", "`group`").at(4),
        case(4, "", "`private_key_file` is missing from [tunnel]", "add `private_key_file").at(3),
        case(4, "private_key_file = \"\"", "names no file", "keygen"),
        case(5, "peer_public_key = \"AQEB*\"", "not base64", "44 characters"),
        case(5, "peer_public_key = \"AQEB\"", "the key has 3 bytes", "44 characters"),
        case(5, "peer_public_key = \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"", "all zeros", "wg show"),
        case(6, "endpoint = \"198.18.0.2\"", "has no port", "198.18.0.2:51820"),
        case(6, "endpoint = \"2001:db8::1\"", "has no port, or its address no brackets", "[2001:db8::2]:51820"),
        case(6, "endpoint = \"198.18.0.2:0\"", "port is 0", "51820"),
        case(6, "endpoint = \"vpn.example.com:0\"", "`0` is no port", "51820"),
        case(6, "endpoint = \"300.1.1.1:51820\"", "neither an address nor a host name", "vpn.example.com"),
        case(6, "endpoint = \"203.0.113.5:51820\"", "endpoint 203.0.113.5 lies inside 203.0.113.0/24", "outside of all sets"),
        case(6, "endpoint = \"h:1\"\nkeepalive = -1", "`keepalive` is -1", "from 0 to 65535").at(7),
        case(6, "endpoint = \"h:1\"\ndns = []", "`dns` is empty", "list at least one").at(7),
        case(6, "endpoint = \"h:1\"\ndns = \"10.99.0.53:53\"", "`10.99.0.53:53` is no address", "the port is always 53").at(7),
        case(6, "endpoint = \"h:1\"\ndns = \"dns.example\"", "`dns.example` is no address", "\"10.99.0.53\"").at(7),
        case(6, "endpoint = \"h:1\"\ndns = [\"10.99.0.2\", \"10.99.0.3\", \"10.99.0.4\", \"10.99.0.5\", \"10.99.0.6\"]", "there are 5 DNS servers", "at most 4").at(7),
        case(6, "endpoint = \"h:1\"\ndns = \"127.0.0.53\"", "127.0.0.53 cannot be a DNS server: it overlaps loopback", "behind the tunnel").at(7),
        case(6, "endpoint = \"h:1\"\ndns = \"::\"", "it overlaps the unspecified address", "behind the tunnel").at(7),
        case(6, "endpoint = \"h:1\"\ndns = \"224.0.0.251\"", "it overlaps multicast", "behind the tunnel").at(7),
        case(6, "endpoint = \"h:1\"\ndns = \"10.99.0.1\"", "the DNS server 10.99.0.1 is the interface's own address", "behind the tunnel").at(7),
        case(6, "endpoint = \"198.18.0.2:51820\"\ndns = \"198.18.0.2\"", "the DNS server 198.18.0.2 is a gateway's endpoint", "inside the tunnel").at(7),
        case(6, "endpoint = \"h:1\"\ndns = \"203.0.113.53\"\n[sets.third]\ncidrs = [\"203.0.113.53/32\"]", "203.0.113.53/32 is in tunnel-dns and in third", "one set").at(7),
        case(6, "endpoint = \"VPN.x.example:1\"\n[sets.third]\ndomains = [\"x.example\"]", "the gateway's name vpn.x.example lies under x.example (third)", "narrower domains"),
        case(7, "[genesys]\n[sets.genesys-signaling]", "`region` is missing from [genesys]", "add `region = "),
        case(7, "[genesys]\nregions = \"all\"\n[sets.genesys-signaling]", "unknown key `regions` in [genesys]", "did you mean `region`?").at(8),
        case(7, "[genesys]\nregion = \"us-west-3\"\n[sets.genesys-signaling]", "there is no region `us-west-3`", "did you mean `us-west-2`? It can be `ap-northeast-1`, ").at(8),
        case(7, "[genesys]\nregion = [\"all\", \"mars\"]\n[sets.genesys-signaling]", "there is no region `mars`", "`us-west-2` or `all`").at(8),
        case(7, "[genesys]\nregion = \"all\"\n[sets.genesys-signaling]", "genesys-signaling has domains, and the tunnel no DNS server", "add `dns = ").at(8),
        case(8, "cidrs = []", "`cidrs` is empty", "list at least one"),
        case(8, "cidrs = [\"203.0.113.1/24\"]", "203.0.113.1/24 has host bits set", "write 203.0.113.0/24"),
        case(8, "cidrs = [\"203.0.113.1\"]", "has no prefix length", "write 203.0.113.1/32"),
        case(8, "cidrs = [\"api.mypurecloud.de\"]", "is no prefix", "names go into `domains`"),
        case(8, "cidrs = [\"0.0.0.0/0\"]", "is the whole internet", "must stay out"),
        case(8, "cidrs = [\"::/0\"]", "is the whole internet", "must stay out"),
        case(8, "cidrs = [\"2000::/3\"]", "is the whole internet", "must stay out"),
        case(8, "cidrs = [\"0.0.0.0/1\"]", "overlaps this network", "must stay out"),
        case(8, "cidrs = [\"127.0.0.0/16\"]", "overlaps loopback", "must stay out"),
        case(8, "cidrs = [\"::1/128\"]", "overlaps loopback", "must stay out"),
        case(8, "cidrs = [\"169.254.1.0/24\"]", "overlaps link-local", "must stay out"),
        case(8, "cidrs = [\"fe80::/64\"]", "overlaps link-local", "must stay out"),
        case(8, "cidrs = [\"239.0.0.0/8\"]", "overlaps multicast", "must stay out"),
        case(8, "cidrs = [\"198.51.100.0/24\"]", "198.51.100.0/24 is in other and in genesys-signaling", "one set").at(10),
        case(8, "cidrs = [\"52.129.96.0/20\"]", "is in genesys-signaling and in genesys-media", "one set"),
        case(8, "names = []", "unknown key `names` in [sets.genesys-signaling]", "`cidrs`"),
        case(8, "", "[sets.genesys-signaling] has neither `cidrs` nor `domains`", "add `cidrs = ").at(7),
        case(8, "domains = []", "`domains` is empty", "list at least one"),
        case(8, "domains = [\"com\"]", "anyone can have a name under `com`", "must stay out"),
        case(8, "domains = [\"*.co.uk\"]", "anyone can have a name under `*.co.uk`", "must stay out"),
        case(8, "domains = [\"COM.au.\"]", "anyone can have a name under `COM.au.`", "must stay out"),
        case(8, "domains = [\"203.0.113.5\"]", "`203.0.113.5` is no name", "write 203.0.113.5/32 under `cidrs`"),
        case(8, "domains = [\"2001:db8::1/32\"]", "is no name", "write 2001:db8::/32 under `cidrs`"),
        case(8, "domains = [\"https://api.mypurecloud.de\"]", "is no domain", "all names below it"),
        case(8, "domains = [\"api.*.de\"]", "`api.*.de` is no domain", "all names below it"),
        case(8, "domains = [\"*\"]", "`*` is no domain", "all names below it"),
        case(8, "domains = [\"a..de\"]", "`a..de` is no domain", "all names below it"),
        case(8, "domains = [\"b\u{fc}ro.example\"]", "is no domain", "xn--"),
        case(8, "domains = 7", "`domains` is a number", "must be text in quotes"),
        case(8, "domains = [\"*.mypurecloud.de\"]", "genesys-signaling has domains, and the tunnel no DNS server", "add `dns = "),
        case(9, "[sets.\"a b\"]", "a set cannot be called `a b`", "letters, digits"),
        case(10, "cidrs = [\"198.51.100.0/24\"]\n[sets.wide]\ncidrs = [\"192.0.2.0/24\"]\n[sets.halves]\ncidrs = [\"192.0.2.0/25\", \"192.0.2.128/25\"]", "wide can never match", "take wide out").at(11),
        case(9, "[sets.tunnel-dns]", "no set can be called `tunnel-dns`", "another name"),
        case(10, "domains = [\"x.example\"]\n[sets.third]\ndomains = [\"*.X.example.\"]", "x.example is in other and in third", "one set").at(12),
        case(11, "[policy]\nunmatched = \"bypass\"\n[[rules]]", "`unmatched` is `bypass`", "`reject` or `tunnel`").at(12),
        case(12, "", "`name` is missing from [[rules]]", "add `name").at(11),
        case(12, "name = \"unmatched\"", "no rule can be called `unmatched`", "another name"),
        case(12, "name = \"tunnel-dns\"", "no rule can be called `tunnel-dns`", "another name"),
        case(12, "name = \"a\\nb\"", "a rule cannot be called", "letters, digits"),
        case(12, "name = \"first\"\nport = 4", "unknown key `port` in rule `first`", "did you mean `ports`?").at(13),
        case(13, "to = \"genesys-medai\"", "there is no set `genesys-medai`", "did you mean `genesys-media`?"),
        case(13, "to = []", "`to` is empty", "list at least one"),
        case(13, "", "`to` is missing from rule `first`", "add `to = ").at(11),
        case(14, "protocol = \"upd\"", "`protocol` is `upd`", "did you mean `udp`?"),
        case(14, "protocol = []", "`protocol` is empty", "list at least one"),
        case(14, "protocol = \"tcp\"\nports = [\"65535-16384\"]", "65535-16384 is turned round", "write \"16384-65535\"").at(15),
        case(14, "protocol = \"tcp\"\nports = [0]", "no port 0", "1 to 65535").at(15),
        case(14, "protocol = \"tcp\"\nports = [65536]", "`65536` is no port", "1 to 65535").at(15),
        case(14, "protocol = \"tcp\"\nports = [\"http\"]", "`http` is no port", "1 to 65535").at(15),
        case(14, "protocol = \"tcp\"\nports = []", "`ports` is empty", "all of them").at(15),
        case(14, "protocol = \"tcp\"\nports = \"443\"", "`ports` is text", "must be a list").at(15),
        case(14, "protocol = \"icmp\"\nports = [443]", "`ports` in a rule for icmp", "[\"tcp\", \"udp\"]").at(15),
        case(14, "ports = [443]", "`ports` in a rule for any", "[\"tcp\", \"udp\"]"),
        case(14, "protocol = \"tcp\"\nwhen = \"ef\"", "`when = \"ef\"` is for UDP alone, this rule is for tcp", "protocol = \"udp\"").at(15),
        case(14, "protocol = \"udp\"\nwhen = \"webrtc\"", "`when` is `webrtc`", "`ef-or-webrtc`").at(15),
        case(14, "protocol = \"udp\"\ndscp = \"efg\"", "`efg` is no DSCP", "af11 to af43").at(15),
        case(15, "path = \"bypas\"", "`path` is `bypas`", "did you mean `bypass`?"),
        case(15, "", "`path` is missing from rule `first`", "add `path").at(11),
        case(15, "path = \"tunnel\"\n[[rules]]\nname = \"first\"\nto = \"other\"\npath = \"tunnel\"", "two rules are called `first`", "its own name").at(17),
        case(15, "path = \"tunnel\"\n[[rules]]\nname = \"second\"\nto = \"other\"\nprotocol = \"udp\"\nports = [443]\npath = \"tunnel\"", "rule `second` can never match: `first` before it", "move this rule up").at(17),
        case(15, "path = \"tunnel\"\n[[rules]]\nname = \"second\"\nto = \"other\"\nprotocol = [\"tcp\", \"udp\"]\npath = \"bypass\"", "bypass is for UDP alone, this rule is for tcp, udp", "a rule of its own").at(20),
        case(15, "path = \"tunnel\"\n[[rules]]\nname = \"second\"\nto = \"third\"\nprotocol = \"udp\"\npath = \"bypass\"\n[sets.third]\ndomains = [\"x.example\"]", "rule `second` lets third break out, which has domains", "never by name").at(17),
        case(15, "path = ", "not valid TOML", "correct the syntax"),
    ];
    for case in &cases {
        match parse(case) {
            Ok(_) => panic!("`{}` was accepted", case.text),
            Err(error) => assert_found(case, error.findings()),
        }
    }
}

#[test]
fn warnings() {
    let cases = [
        case(
            2,
            "address = [\"10.99.0.1/32\", \"10.99.0.1/24\", \"fd99::1\"]",
            "10.99.0.1 is listed twice",
            "one of them",
        ),
        case(
            15,
            "path = \"reject\"\n[routes]\nkill_switch = true",
            "the kill switch keeps nothing in",
            "leave `kill_switch` out",
        )
        .at(16),
        case(2, "address = [\"10.99.0.1/32\"]\nmtu = 1279", "an MTU of 1279 is too small", "keeps 1280")
            .at(3),
        case(
            8,
            "cidrs = [\"203.0.113.0/24\", \"203.0.113.0/24\"]",
            "203.0.113.0/24 is in genesys-signaling twice",
            "one of them",
        ),
        case(
            8,
            "cidrs = [\"198.51.100.0/25\"]",
            "198.51.100.0/25 (genesys-signaling) lies inside 198.51.100.0/24 (other)",
            "belongs to genesys-signaling",
        ),
        case(
            8,
            "cidrs = [\"52.129.0.0/16\"]",
            "52.129.96.0/20 (genesys-media) lies inside 52.129.0.0/16",
            "belongs to genesys-media",
        ),
        case(13, "to = \"genesys-signaling\"", "no rule is for other", "name it in a rule's `to`").at(9),
        case(
            6,
            "endpoint = \"h:1\"\ndns = [\"10.99.0.53\", \"10.99.0.53\"]",
            "10.99.0.53 is listed twice",
            "one of them",
        )
        .at(7),
        case(
            6,
            "endpoint = \"h:1\"\ndns = \"203.0.113.53\"",
            "203.0.113.53/32 (tunnel-dns) lies inside 203.0.113.0/24 (genesys-signaling)",
            "belongs to tunnel-dns",
        )
        .at(7),
        case(
            6,
            "endpoint = \"h:1\"\ndns = \"10.99.0.53\"\n[sets.third]\ndomains = [\"x.example\", \"*.X.example\"]",
            "x.example is in third twice",
            "one of them",
        )
        .at(9),
        case(
            6,
            "endpoint = \"h:1\"\ndns = \"10.99.0.53\"\n[sets.third]\ndomains = [\"a.b.x.example\", \"x.example\"]",
            "a.b.x.example lies under x.example, which third has too",
            "leave a.b.x.example out",
        )
        .at(9),
        case(
            6,
            "endpoint = \"h:1\"\ndns = \"10.99.0.53\"\n[genesys]\nregion = \"us-west-2\"\n[sets.third]\ndomains = [\"x.example\"]",
            "no rule is for third: nothing of it is captured",
            "name it in a rule's `to`",
        )
        .at(10),
    ];
    for case in &cases {
        let (_, warnings) = parse(case).unwrap_or_else(|error| panic!("`{}`: {error:#}", case.text));
        assert_found(case, &warnings);
    }
}

#[test]
fn a_tunnelled_family_without_an_address_is_a_warning() {
    let text = VALID.join("\n").replace(", \"fd99::1/128\"", "").replace("198.51.100.0/24", "2001:db8::/32");
    let (_, warnings) = Config::parse(&text, "breakout.toml").unwrap();
    let warning = &warnings[0];
    assert!(
        warning.message.contains("rule `first` tunnels 2001:db8::/32, but the interface has no IPv6 address")
    );
    assert!(warning.help.contains("fd00::1/128"));
    assert_eq!(warning.line, Some(10));
}

#[test]
fn a_dns_server_of_a_family_without_an_address_cannot_be_reached() {
    let text =
        VALID.join("\n").replace(", \"fd99::1/128\"", "").replace("[sets.g", "dns = \"fd99::53\"\n[sets.g");
    let error = Config::parse(&text, "breakout.toml").unwrap_err();
    let [finding] = error.findings() else { panic!("{error:#}") };
    assert_eq!(
        finding.message,
        "the DNS server fd99::53 cannot be reached: the interface has no IPv6 address"
    );
    assert!(finding.help.contains("fd00::1/128"));
    assert_eq!(finding.line, Some(7));
}

#[test]
fn the_dns_servers_break_out_by_no_rule() {
    let text = VALID
        .join("\n")
        .replace("[sets.g", "dns = \"10.99.0.53\"\n[sets.g")
        .replace("\"other\"]", "\"other\", \"tunnel-dns\"]")
        .replace("path = \"tunnel\"", "path = \"bypass\"");
    let error = Config::parse(&text, "breakout.toml").unwrap_err();
    let [finding] = error.findings() else { panic!("{error:#}") };
    assert!(
        finding
            .message
            .contains("rule `first` lets tunnel-dns break out, which holds the tunnel's DNS servers")
    );
    assert!(finding.help.contains("take it out of `to`"));
    assert_eq!(finding.line, Some(13));
}

#[test]
fn a_mark_on_a_rejecting_rule_is_a_warning() {
    let text =
        format!("{}\ndscp = \"ef\"", VALID.join("\n").replace("path = \"tunnel\"", "path = \"reject\""));
    let (_, warnings) = Config::parse(&text, "breakout.toml").unwrap();
    assert!(warnings[0].message.contains("no effect") && warnings[0].help.contains("leave `dscp` out"));
    assert_eq!(warnings[0].line, Some(16));
}

#[test]
fn missing_tables_and_sets_say_what_to_add() {
    let error = Config::parse("", "breakout.toml").unwrap_err();
    for (found, remedy) in [
        ("[interface] is missing", "address = "),
        ("[tunnel] is missing", "private_key_file"),
        (
            "[sets.genesys-signaling] is missing, and the built-in rule `signaling` needs it",
            "add `[sets.genesys-signaling]`",
        ),
    ] {
        let matches = |finding: &&Finding| finding.message.contains(found) && finding.help.contains(remedy);
        assert!(error.findings().iter().any(|finding| matches(&finding)), "{found}: {error:#}");
    }
}

#[test]
fn a_misspelt_signaling_set_is_named() {
    let text = VALID[..10].join("\n").replace("genesys-signaling", "genesys-signalling");
    let error = Config::parse(&text, "breakout.toml").unwrap_err();
    assert!(
        error.findings()[0].help.contains("rename `[sets.genesys-signalling]` to `[sets.genesys-signaling]`")
    );
}

#[test]
fn all_errors_come_at_once_and_in_order() {
    let text = VALID
        .join("\n")
        .replace(KEY, "x")
        .replace("51820", "")
        .replace("name", "nmae")
        .replace("udp", "tcp,udp");
    let error = Config::parse(&text, "breakout.toml").unwrap_err();
    let lines: Vec<_> = error.findings().iter().filter_map(|finding| finding.line).collect();
    assert_eq!(lines, [5, 6, 11, 12, 14]);
    assert!(error.to_string().starts_with("breakout.toml:5: the key is not base64"));
    assert!(error.to_string().ends_with("(and 4 more)"));
    assert_eq!(format!("{error:#}").lines().count(), 5);
}

#[test]
fn miette_shows_the_place_and_the_remedy() {
    let text = VALID.join("\n").replace("cidrs = [\"203.0.113.0/24\"]", "cidrs = [\"203.0.113.9/24\"]");
    let error = Config::parse(&text, "breakout.toml").unwrap_err();
    let mut shown = String::new();
    miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::none())
        .render_report(&mut shown, &error)
        .unwrap();
    for part in
        ["breakout.toml:8:10", "203.0.113.9/24 has host bits set", "help: write 203.0.113.0/24", "cidrs = ["]
    {
        assert!(shown.contains(part), "{part} in\n{shown}");
    }
}
