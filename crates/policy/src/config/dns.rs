//! `tunnel.dns`: the DNS servers behind the tunnel, and the set and the rule that lead to them.

use std::net::IpAddr;

use ipnet::IpNet;
use toml::Spanned;

use super::{
    Endpoint, Gateway,
    finding::{Findings, Span},
    interface::ReadInterface,
    rules::ReadRule,
    section::Section,
    sets::{ReadSet, never_captured},
};

/// Of the set, and of the rule for it.
pub(super) const NAME: &str = "tunnel-dns";
/// While one after another is asked, an application waits.
const MAX_SERVERS: usize = 4;

pub(super) const RULE: &str = r#"
[[rules]]
name = "tunnel-dns"
to = "tunnel-dns"
protocol = ["tcp", "udp"]
ports = ["53"]
path = "tunnel"
"#;

/// A server's address and its place.
pub(super) type Server = (IpAddr, Span);

/// The servers, distinct; `None` if none were given.
pub(super) fn read(section: &Section<'_>, findings: &mut Findings) -> Option<Vec<Server>> {
    if !section.has("dns") {
        return None;
    }
    let texts = section.strings("dns", findings).unwrap_or_default();
    if let Some(text) = texts.get(MAX_SERVERS) {
        let message = format!("there are {} DNS servers", texts.len());
        findings.error(
            text.span(),
            message,
            format!("give at most {MAX_SERVERS}: they are asked one after another"),
        );
    }
    let mut servers: Vec<Server> = Vec::with_capacity(texts.len());
    for text in &texts {
        let Some(address) = read_address(text, findings) else { continue };
        if let Some((_, first)) = servers.iter().find(|(other, _)| *other == address) {
            let first = Some(first.clone());
            findings
                .warn(text.span(), format!("{address} is listed twice"), "leave one of them out")
                .also(first, "here first");
            continue;
        }
        servers.push((address, text.span()));
    }
    Some(servers)
}

/// The set and the rule are the program's own, whether there are servers or not.
pub(super) fn check_names(sets: &[ReadSet], rules: &[ReadRule], findings: &mut Findings) {
    let set = sets.iter().find(|set| set.name == NAME).map(|set| ("set", &set.place));
    let rule = rules.iter().find(|read| read.rule.name == NAME).map(|read| ("rule", &read.place));
    for (what, place) in [set, rule].into_iter().flatten() {
        let message = format!("no {what} can be called `{NAME}`");
        let help = "give it another name: this one is for the servers in `dns` under [tunnel]";
        findings.error(place.clone(), message, help);
    }
}

/// Whether a server can be reached through the tunnel.
pub(super) fn is_reachable(
    (server, place): &Server,
    interface: &ReadInterface,
    gateways: &[Gateway],
    findings: &mut Findings,
) -> bool {
    let own = &interface.interface.address;
    let is_gateway =
        |gateway: &Gateway| matches!(&gateway.endpoint, Endpoint::Address(at) if at.ip() == *server);
    let is_of_its_family = |own: &IpNet| own.addr().is_ipv4() == server.is_ipv4();
    let (found, help) = if own.iter().any(|own| own.addr() == *server) {
        ("is the interface's own address".to_owned(), "give the address of a server behind the tunnel")
    } else if gateways.iter().any(is_gateway) {
        (
            "is a gateway's endpoint".to_owned(),
            "the tunnel cannot carry its own packets: give the address that the server has inside the tunnel",
        )
    } else if !own.is_empty() && !own.iter().any(is_of_its_family) {
        let (family, help) = match server {
            IpAddr::V4(_) => {
                ("IPv4", "add one to `address` (like \"10.99.0.1/32\"), or give a server's IPv6 address")
            }
            IpAddr::V6(_) => {
                ("IPv6", "add one to `address` (like \"fd00::1/128\"), or give a server's IPv4 address")
            }
        };
        (format!("cannot be reached: the interface has no {family} address"), help)
    } else {
        return true;
    };
    findings.error(place.clone(), format!("the DNS server {server} {found}"), help);
    false
}

/// The set of these servers; none for none.
pub(super) fn set(servers: &[Server]) -> Option<ReadSet> {
    let prefixes: Vec<_> =
        servers.iter().map(|(server, place)| (IpNet::from(*server), Some(place.clone()))).collect();
    (!prefixes.is_empty()).then(|| ReadSet { name: NAME.to_owned(), prefixes, ..ReadSet::default() })
}

fn read_address(text: &Spanned<&str>, findings: &mut Findings) -> Option<IpAddr> {
    let written = *text.get_ref();
    let Ok(address) = written.parse::<IpAddr>() else {
        let message = format!("`{}` is no address", written.escape_debug());
        findings.error(
            text.span(),
            message,
            "write it like \"10.99.0.53\" or \"fd99::53\"; the port is always 53",
        );
        return None;
    };
    if let Some(why) = never_captured(&IpNet::from(address)) {
        let help = "give the address of a server behind the tunnel";
        findings.error(text.span(), format!("{address} cannot be a DNS server: it {why}"), help);
        return None;
    }
    Some(address)
}
