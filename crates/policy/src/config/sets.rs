use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use toml::{Spanned, de::DeValue};

use super::{
    Set, domains,
    finding::{Findings, Span},
    section::{Section, check_name, wrong_type},
};

/// A set as read. Places are `None` where it is built in.
#[derive(Default)]
pub(super) struct ReadSet {
    pub(super) name: String,
    pub(super) place: Option<Span>,
    pub(super) prefixes: Vec<(IpNet, Option<Span>)>,
    /// As they are stored.
    pub(super) domains: Vec<(String, Option<Span>)>,
}

impl ReadSet {
    pub(super) fn into_set(self) -> Set {
        Set {
            name: self.name,
            prefixes: self.prefixes.into_iter().map(|(net, _)| net).collect(),
            domains: self.domains.into_iter().map(|(domain, _)| domain).collect(),
        }
    }
}

pub(super) fn read(root: &Section<'_>, findings: &mut Findings) -> Vec<ReadSet> {
    let Some(sets) = root.table("sets", findings) else { return Vec::new() };
    sets.iter().map(|(name, value)| read_set(name.get_ref(), name.span(), value, findings)).collect()
}

fn read_set(name: &str, at: Span, value: &Spanned<DeValue<'_>>, findings: &mut Findings) -> ReadSet {
    check_name("a set", name, at.clone(), findings);
    let place = findings.place(at.clone());
    let mut set = ReadSet { name: name.to_owned(), place, ..ReadSet::default() };
    let DeValue::Table(table) = value.get_ref() else {
        wrong_type(name, "a table with `cidrs` or `domains`", value.get_ref(), value.span(), findings);
        return set;
    };
    let section = Section::new(format!("[sets.{name}]"), at, table, &["cidrs", "domains"], findings);
    if !section.has("cidrs") && !section.has("domains") {
        let message = format!("[sets.{name}] has neither `cidrs` nor `domains`");
        let help = "add `cidrs = [\"203.0.113.0/24\"]` or `domains = [\"mypurecloud.com\"]`";
        findings.error(section.span.clone(), message, help);
    }
    set.domains = domains::read(&section, name, findings);
    let mut seen: HashMap<IpNet, Span> = HashMap::new();
    for text in section.strings("cidrs", findings).unwrap_or_default() {
        let Some(prefix) = read_prefix(&text, findings) else { continue };
        match seen.entry(prefix) {
            Entry::Vacant(vacant) => {
                vacant.insert(text.span());
                set.prefixes.push((prefix, findings.place(text.span())));
            }
            Entry::Occupied(first) => {
                let message = format!("{prefix} is in {name} twice");
                let first = Some(first.get().clone());
                findings.warn(text.span(), message, "leave one of them out").also(first, "here first");
            }
        }
    }
    set
}

fn read_prefix(text: &Spanned<&str>, findings: &mut Findings) -> Option<IpNet> {
    let written = *text.get_ref();
    let Ok(prefix) = written.parse::<IpNet>() else {
        let (message, help) = not_a_prefix(written);
        findings.error(text.span(), message, help);
        return None;
    };
    if prefix != prefix.trunc() {
        let message = format!("{prefix} has host bits set");
        findings.error(text.span(), message, format!("write {}", prefix.trunc()));
        return None;
    }
    if let Some(why) = never_captured(&prefix) {
        let help = "list only what Genesys uses: the rest of the machine's traffic must stay out";
        findings.error(text.span(), format!("{prefix} cannot be captured: it {why}"), help);
        return None;
    }
    Some(prefix)
}

fn not_a_prefix(written: &str) -> (String, String) {
    let shown = written.escape_debug();
    match written.parse::<IpAddr>() {
        Ok(address) => (format!("`{shown}` has no prefix length"), format!("write {}", IpNet::from(address))),
        Err(_) => {
            let help = "write it like \"203.0.113.0/24\" or \"2001:db8::/32\"; names go into `domains`";
            (format!("`{shown}` is no prefix"), help.to_owned())
        }
    }
}

/// Why no set can hold a prefix, as in "it overlaps loopback, 127.0.0.0/8": it is everything, or what never leaves the
/// machine or the link.
pub fn never_captured(prefix: &IpNet) -> Option<String> {
    let everything = match prefix {
        IpNet::V4(_) => prefix.prefix_len() == 0,
        IpNet::V6(net) => net.contains(&GLOBAL_UNICAST),
    };
    if everything {
        return Some("is the whole internet".to_owned());
    }
    let overlaps = |other: &IpNet| prefix.contains(other) || other.contains(prefix);
    let v4 = SPECIAL_V4.iter().map(|(net, name)| (IpNet::V4(*net), *name));
    let v6 = SPECIAL_V6.iter().map(|(net, name)| (IpNet::V6(*net), *name));
    v4.chain(v6).find(|(net, _)| overlaps(net)).map(|(net, name)| format!("overlaps {name}, {net}"))
}

/// RFC 4291 §2.4.
const GLOBAL_UNICAST: Ipv6Net = v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

/// RFC 6890 and the IANA special-purpose address registries, where they are not forwardable.
const SPECIAL_V4: [(Ipv4Net, &str); 5] = [
    (v4([0, 0, 0, 0], 8), "this network"),
    (v4([127, 0, 0, 0], 8), "loopback"),
    (v4([169, 254, 0, 0], 16), "link-local"),
    (v4([224, 0, 0, 0], 4), "multicast"),
    (v4([240, 0, 0, 0], 4), "reserved and broadcast"),
];
const SPECIAL_V6: [(Ipv6Net, &str); 5] = [
    (v6([0; 8], 128), "the unspecified address"),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "loopback"),
    (v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), "IPv4-mapped addresses"),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "link-local"),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast"),
];

const fn v4([a, b, c, d]: [u8; 4], length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(std::net::Ipv4Addr::new(a, b, c, d), length)
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(std::net::Ipv6Addr::new(a, b, c, d, e, f, g, h), length)
}
