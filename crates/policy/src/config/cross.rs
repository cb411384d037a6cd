//! What only shows when the parts of a configuration are held against each other.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{
    Endpoint,
    coverage::covering,
    finding::{Findings, Span},
    interface::ReadInterface,
    rules::ReadRule,
    sets::ReadSet,
    tunnel::ReadTunnel,
};
use crate::{
    Path,
    prefix_table::{Owner, PrefixTable},
};

pub(super) fn check(
    interface: &ReadInterface,
    tunnel: Option<&ReadTunnel>,
    sets: &[ReadSet],
    rules: &[ReadRule],
    findings: &mut Findings,
) {
    let prefixes = prefixes_of(sets);
    check_identical(&prefixes, sets, findings);
    check_nested(&prefixes, sets, findings);
    check_hidden_sets(&prefixes, sets, findings);
    check_reachable(rules, findings);

    let named: HashSet<usize> = rules.iter().flat_map(|rule| rule.rule.to.iter().copied()).collect();
    if findings.errors() == 0 {
        check_unused_sets(&named, sets, findings);
    }
    let captured: Vec<&Prefix> = prefixes.iter().filter(|prefix| named.contains(&prefix.set)).collect();
    check_endpoints(tunnel, &captured, sets, findings);
    check_addresses(interface, &captured, sets, findings);
    check_families(interface, &captured, rules, findings);
}

struct Prefix {
    net: IpNet,
    set: usize,
    place: Option<Span>,
}

/// All prefixes by address, the shorter before the longer.
fn prefixes_of(sets: &[ReadSet]) -> Vec<Prefix> {
    let mut prefixes: Vec<Prefix> = sets
        .iter()
        .enumerate()
        .flat_map(|(set, read)| {
            read.prefixes.iter().map(move |(net, place)| Prefix { net: *net, set, place: place.clone() })
        })
        .collect();
    prefixes.sort_by_key(|prefix| prefix.net);
    prefixes
}

fn name(sets: &[ReadSet], set: usize) -> &str {
    sets.get(set).map_or("", |set| &set.name)
}

fn check_identical(prefixes: &[Prefix], sets: &[ReadSet], findings: &mut Findings) {
    for (one, other) in
        prefixes.iter().zip(prefixes.iter().skip(1)).filter(|(one, other)| one.net == other.net)
    {
        // A built-in prefix has no place: point to the user's.
        let (at, also) = if other.place.is_some() { (other, one) } else { (one, other) };
        let message = format!("{} is in {} and in {}", at.net, name(sets, at.set), name(sets, also.set));
        let help = "a prefix belongs to one set: take it out of the other";
        findings.error(at.place.clone(), message, help).also(also.place.clone(), "also here");
    }
}

fn check_nested(prefixes: &[Prefix], sets: &[ReadSet], findings: &mut Findings) {
    let mut around: Vec<&Prefix> = Vec::new();
    for prefix in prefixes {
        while around.last().is_some_and(|outer| !outer.net.contains(&prefix.net)) {
            around.pop();
        }
        if let Some(outer) = around.last().filter(|outer| outer.set != prefix.set && outer.net != prefix.net)
        {
            let (inner_set, outer_set) = (name(sets, prefix.set), name(sets, outer.set));
            let message = format!("{} ({inner_set}) lies inside {} ({outer_set})", prefix.net, outer.net);
            let help = format!(
                "the longest prefix wins: {} belongs to {inner_set}; if that is not meant, take it out",
                prefix.net
            );
            let (at, also) = match &prefix.place {
                Some(_) => (&prefix.place, &outer.place),
                None => (&outer.place, &prefix.place),
            };
            findings.warn(at.clone(), message, help).also(also.clone(), "around it");
        }
        around.push(prefix);
    }
}

/// A set all of whose addresses lie in longer prefixes of other sets holds nothing.
fn check_hidden_sets(prefixes: &[Prefix], sets: &[ReadSet], findings: &mut Findings) {
    let owned = |v4: bool| {
        let family = prefixes.iter().filter(move |prefix| prefix.net.addr().is_ipv4() == v4);
        family.map(|prefix| (prefix.net, Owner { prefix: 0, set: prefix.set as u32 }))
    };
    let (v4, v6) = (PrefixTable::<u32>::new(owned(true)), PrefixTable::<u128>::new(owned(false)));
    let holding: HashSet<u32> = v4.sets().chain(v6.sets()).collect();
    let identical: HashSet<usize> = prefixes
        .iter()
        .zip(prefixes.iter().skip(1))
        .filter(|(one, other)| one.net == other.net)
        .flat_map(|(one, other)| [one.set, other.set])
        .collect();
    for (at, set) in sets.iter().enumerate() {
        if set.prefixes.is_empty()
            || !set.domains.is_empty()
            || holding.contains(&(at as u32))
            || identical.contains(&at)
        {
            continue;
        }
        let message = format!("{} can never match: longer prefixes of other sets cover all of it", set.name);
        findings.error(set.place.clone(), message, format!("take {} out, or those prefixes", set.name));
    }
}

fn check_reachable(rules: &[ReadRule], findings: &mut Findings) {
    let rules: Vec<&ReadRule> =
        rules.iter().filter(|read| read.is_whole && !read.rule.to.is_empty()).collect();
    let plain: Vec<_> = rules.iter().map(|read| &read.rule).collect();
    for (at, read) in rules.iter().enumerate() {
        let Some(covering) = plain.get(..at).and_then(|earlier| covering(&read.rule, earlier)) else {
            continue;
        };
        let names: Vec<_> = covering.iter().map(|rule| format!("`{}`", rule.name)).collect();
        let message =
            format!("rule `{}` can never match: {} before it takes all", read.rule.name, names.join(", "));
        let place =
            |name: &str| rules.iter().find(|rule| rule.rule.name == name).and_then(|rule| rule.place.clone());
        let finding = findings.error(
            read.place.clone(),
            message,
            "the first match wins: move this rule up, narrow the one before it, or take one out",
        );
        for rule in covering {
            finding.also(place(&rule.name), "takes it");
        }
    }
}

fn check_unused_sets(named: &HashSet<usize>, sets: &[ReadSet], findings: &mut Findings) {
    for (at, set) in sets.iter().enumerate() {
        if set.place.is_some() && !named.contains(&at) {
            let message = format!("no rule is for {}: nothing of it is captured", set.name);
            findings.warn(set.place.clone(), message, "name it in a rule's `to`, or take it out");
        }
    }
}

fn check_endpoints(
    tunnel: Option<&ReadTunnel>,
    captured: &[&Prefix],
    sets: &[ReadSet],
    findings: &mut Findings,
) {
    for (endpoint, place) in tunnel.iter().flat_map(|tunnel| tunnel.endpoints()) {
        let Endpoint::Address(endpoint) = endpoint else { continue };
        let Some(prefix) = holding(captured, endpoint.ip()) else { continue };
        let message =
            format!("the endpoint {} lies inside {} ({})", endpoint.ip(), prefix.net, name(sets, prefix.set));
        let help = "the tunnel cannot carry its own packets: use a gateway address outside of all sets, or narrow the set";
        findings.error(place.clone(), message, help).also(prefix.place.clone(), "captured here");
    }
}

fn check_addresses(
    interface: &ReadInterface,
    captured: &[&Prefix],
    sets: &[ReadSet],
    findings: &mut Findings,
) {
    for (address, span) in interface.interface.address.iter().zip(&interface.spans) {
        let Some(prefix) = holding(captured, address.addr()) else { continue };
        let set = name(sets, prefix.set);
        let message =
            format!("the interface's address {} lies inside {} ({set})", address.addr(), prefix.net);
        let help = "the machine cannot be one of the hosts it captures: narrow the set, or have another address assigned";
        findings.error(span.clone(), message, help).also(prefix.place.clone(), "captured here");
    }
}

/// Into the tunnel only an address of the interface may go as source: without one of its family nothing passes.
fn check_families(
    interface: &ReadInterface,
    captured: &[&Prefix],
    rules: &[ReadRule],
    findings: &mut Findings,
) {
    let addresses = &interface.interface.address;
    if addresses.is_empty() {
        return;
    }
    let tunnelled: HashMap<usize, &str> = rules
        .iter()
        .filter(|rule| rule.rule.path == Path::Tunnel)
        .flat_map(|rule| rule.rule.to.iter().map(|set| (*set, rule.rule.name.as_str())))
        .collect();
    for (is_v4, family, example) in [(true, "IPv4", "10.99.0.1/32"), (false, "IPv6", "fd00::1/128")] {
        if addresses.iter().any(|address| address.addr().is_ipv4() == is_v4) {
            continue;
        }
        let missing = captured.iter().find_map(|prefix| {
            let rule = tunnelled.get(&prefix.set)?;
            (prefix.net.addr().is_ipv4() == is_v4).then_some((prefix, rule))
        });
        if let Some((prefix, rule)) = missing {
            let message =
                format!("rule `{rule}` tunnels {}, but the interface has no {family} address", prefix.net);
            let help =
                format!("add one to `address` (like \"{example}\"); without it these packets are refused");
            let at = prefix.place.clone().unwrap_or(interface.span.clone());
            findings.warn(at, message, help).also(Some(interface.span.clone()), "the interface");
        }
    }
}

fn holding<'a>(captured: &[&'a Prefix], address: IpAddr) -> Option<&'a Prefix> {
    captured.iter().rev().find(|prefix| prefix.net.contains(&address)).copied()
}
