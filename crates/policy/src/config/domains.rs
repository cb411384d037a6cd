//! `domains`: the names that a set is for.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{
    dns,
    endpoint::is_host_name,
    finding::{Findings, Span},
    rules::ReadRule,
    section::Section,
    sets::ReadSet,
    tunnel::ReadTunnel,
};
use crate::{
    Path,
    domain::{normal, upward},
};

/// The second-level labels under which countries let anyone have a name.
const OF_EVERYONE: [&str; 7] = ["ac", "co", "com", "edu", "gov", "net", "org"];

/// The domains of a set as they are stored, distinct.
pub(super) fn read(section: &Section<'_>, set: &str, findings: &mut Findings) -> Vec<(String, Option<Span>)> {
    let mut places: HashMap<String, Span> = HashMap::new();
    let mut domains = Vec::new();
    for text in section.strings("domains", findings).unwrap_or_default() {
        let domain = match parse(text.get_ref()) {
            Ok(domain) => domain,
            Err((found, help)) => {
                findings.error(text.span(), found, help);
                continue;
            }
        };
        match places.entry(domain) {
            Entry::Vacant(vacant) => {
                domains.push((vacant.key().clone(), Some(text.span())));
                vacant.insert(text.span());
            }
            Entry::Occupied(first) => {
                let message = format!("{} is in {set} twice, with or without `*.`", first.key());
                let first = Some(first.get().clone());
                findings.warn(text.span(), message, "leave one of them out").also(first, "here first");
            }
        }
    }
    for (domain, place) in &domains {
        if let Some((above, around)) = upward(domain).skip(1).find_map(|above| places.get_key_value(above)) {
            let message = format!("{domain} lies under {above}, which {set} has too");
            let help = format!("leave {domain} out: a domain stands for all names below it");
            findings.warn(place.clone(), message, help).also(Some(around.clone()), "covers it");
        }
    }
    domains
}

pub(super) fn check(
    sets: &[ReadSet],
    rules: &[ReadRule],
    tunnel: Option<&ReadTunnel>,
    findings: &mut Findings,
) {
    let owners = check_shared(sets, findings);
    check_bypassed(sets, rules, findings);
    let Some(tunnel) = tunnel else { return };
    if tunnel.dns.is_none() {
        check_askable(sets, findings);
    }
    for (endpoint, place) in tunnel.endpoints() {
        if let Some(host) = endpoint.host() {
            check_gateway(&host, place, &owners, findings);
        }
    }
}

type Owners<'a> = HashMap<&'a str, (&'a ReadSet, &'a Option<Span>)>;

fn check_shared<'a>(sets: &'a [ReadSet], findings: &mut Findings) -> Owners<'a> {
    let mut owners: Owners<'_> = HashMap::new();
    for set in sets {
        for (domain, place) in &set.domains {
            if let Some((other, also)) = owners.insert(domain, (set, place)) {
                let message = format!("{domain} is in {} and in {}", other.name, set.name);
                let help = "a domain belongs to one set: take it out of the other";
                findings.error(place.clone(), message, help).also(also.clone(), "also here");
            }
        }
    }
    owners
}

/// Media is announced by address, and nobody else's is among its addresses; a name may share its own with anyone.
fn check_bypassed(sets: &[ReadSet], rules: &[ReadRule], findings: &mut Findings) {
    for read in rules.iter().filter(|read| read.rule.path == Path::Bypass) {
        for set in read.rule.to.iter().filter_map(|set| sets.get(*set)) {
            let (found, help) = if set.name == dns::NAME {
                ("holds the tunnel's DNS servers", "take it out of `to`: they are asked through the tunnel")
            } else if !set.domains.is_empty() {
                ("has domains", "give media a set of `cidrs` alone: it goes by address, never by name")
            } else {
                continue;
            };
            let message = format!("rule `{}` lets {} break out, which {found}", read.rule.name, set.name);
            let domains = set.domains.first().and_then(|(_, place)| place.clone());
            let at = read.place.clone().or(domains.clone());
            findings.error(at, message, help).also(domains, "these");
        }
    }
}

fn check_askable(sets: &[ReadSet], findings: &mut Findings) {
    let Some((set, (_, place))) = sets.iter().find_map(|set| Some((set, set.domains.first()?))) else {
        return;
    };
    let message = format!("{} has domains, and the tunnel no DNS server that could be asked", set.name);
    let help =
        "add `dns = [\"10.99.0.53\"]` to [tunnel]: the servers behind the tunnel that know these names";
    findings.error(place.clone(), message, help);
}

/// To find the gateway there must be a way that does not lead through it.
fn check_gateway(host: &str, at: &Span, owners: &Owners<'_>, findings: &mut Findings) {
    let Some((domain, (set, place))) = upward(host).find_map(|above| owners.get_key_value(above)) else {
        return;
    };
    let message = format!("the gateway's name {host} lies under {domain} ({})", set.name);
    let help =
        "it would be asked for through the tunnel itself: give the gateway's address, or narrower domains";
    findings.error(at.clone(), message, help).also((*place).clone(), "this domain");
}

fn parse(written: &str) -> Result<String, (String, String)> {
    let shown = written.escape_debug();
    let prefix = written.parse::<IpAddr>().map(IpNet::from).or_else(|_| written.parse::<IpNet>());
    if let Ok(prefix) = prefix {
        return Err((format!("`{shown}` is no name"), format!("write {} under `cidrs`", prefix.trunc())));
    }
    let name = normal(written.strip_prefix("*.").unwrap_or(written));
    if !is_host_name(&name) {
        let help = match name.is_ascii() {
            true => {
                "write \"mypurecloud.com\" or \"*.mypurecloud.com\": both stand for the name and all names below it"
            }
            false => "write it in ASCII, as it is asked for: \"xn--…\"",
        };
        return Err((format!("`{shown}` is no domain"), help.to_owned()));
    }
    if is_everyones(&name) {
        let help = "name the domain that Genesys uses: the rest of the machine's names must stay out";
        return Err((format!("anyone can have a name under `{shown}`"), help.to_owned()));
    }
    Ok(name)
}

/// `com`, `co.uk`
fn is_everyones(name: &str) -> bool {
    match name.split_once('.') {
        None => true,
        Some((second, top)) => top.len() == 2 && OF_EVERYONE.contains(&second),
    }
}
