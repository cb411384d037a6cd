use std::{collections::HashMap, ops::RangeInclusive};

use packet::Dscp;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    finding::{Findings, Span},
    section::{Section, check_name, choose, did_you_mean, nearest, string, wrong_type},
    sets::ReadSet,
};
use crate::{
    Mark, Path,
    ports::Ports,
    rule::{Protocols, Rule, When},
    snapshot::UNMATCHED,
};

/// More rules than anyone can read; it bounds the walk and the checks.
const MAX_RULES: usize = 1024;

/// A rule as read. Places are `None` where it is built in.
pub(super) struct ReadRule {
    pub(super) rule: Rule,
    /// Of its name.
    pub(super) place: Option<Span>,
    /// Read without an error, so that what follows from it can be trusted.
    pub(super) is_whole: bool,
    to: Vec<(String, Option<Span>)>,
}

const KEYS: [&str; 7] = ["name", "to", "protocol", "ports", "when", "path", "dscp"];

/// The rules of a file; `None` if it has none of its own.
pub(super) fn read(root: &Section<'_>, findings: &mut Findings) -> Option<Vec<ReadRule>> {
    let array = root.array("rules", findings)?;
    let span = array.span();
    let items = array.into_inner();
    if items.is_empty() {
        findings.error(
            span.clone(),
            "`rules` is empty",
            "write a [[rules]] table, or leave `rules` out for the built-in ones",
        );
    }
    if items.len() > MAX_RULES {
        let message = format!("there are {} rules", items.len());
        findings.error(
            span,
            message,
            format!("use at most {MAX_RULES}: one rule can name many sets, protocols and ports"),
        );
        return Some(Vec::new());
    }
    let mut rules = Vec::with_capacity(items.len());
    let mut names: HashMap<String, Option<Span>> = HashMap::new();
    for item in items {
        let DeValue::Table(table) = item.get_ref() else {
            wrong_type(
                "rules",
                "a list of tables, each headed [[rules]]",
                item.get_ref(),
                item.span(),
                findings,
            );
            continue;
        };
        let Some(read) = read_rule(table, item.span(), findings) else { continue };
        if let Some(first) = names.insert(read.rule.name.clone(), read.place.clone()) {
            let message = format!("two rules are called `{}`", read.rule.name);
            findings
                .error(read.place.clone(), message, "give each its own name: messages and counters go by it")
                .also(first, "the other");
        }
        rules.push(read);
    }
    Some(rules)
}

pub(super) fn read_unmatched(root: &Section<'_>, findings: &mut Findings) -> Path {
    let section = root.section("policy", &["unmatched"], findings);
    let word = section.and_then(|section| section.string("unmatched", findings));
    word.and_then(|word| {
        choose("unmatched", &word, &[("reject", Path::Reject), ("tunnel", Path::Tunnel)], findings)
    })
    .unwrap_or(Path::Reject)
}

/// Looks up the sets that the rules name.
pub(super) fn resolve(rules: Vec<ReadRule>, sets: &[ReadSet], findings: &mut Findings) -> Vec<ReadRule> {
    let names: Vec<&str> = sets.iter().map(|set| set.name.as_str()).collect();
    let index: HashMap<&str, usize> = names.iter().copied().zip(0..).collect();
    let resolve_one = |mut read: ReadRule| {
        for (name, place) in &read.to {
            match index.get(name.as_str()) {
                Some(set) if read.rule.to.contains(set) => {}
                Some(set) => read.rule.to.push(*set),
                None if place.is_none() => {
                    let message = format!(
                        "[sets.{name}] is missing, and the built-in rule `{}` needs it",
                        read.rule.name
                    );
                    let help = match nearest(name, &names) {
                        Some(other) => format!("rename `[sets.{other}]` to `[sets.{name}]`"),
                        None => {
                            format!(
                                "add `[sets.{name}]` with its `cidrs` or `domains`, or `[genesys]` with your `region`"
                            )
                        }
                    };
                    findings.error(None, message, help);
                }
                None => {
                    let message = format!("there is no set `{}`", name.escape_debug());
                    let help =
                        format!("{}, or add `[sets.{}]`", did_you_mean(name, &names), name.escape_debug());
                    findings.error(place.clone(), message, help);
                }
            }
        }
        read
    };
    rules.into_iter().map(resolve_one).collect()
}

/// `None` if the rule has no name or no path; all its other mistakes are reported too.
fn read_rule(table: &DeTable<'_>, span: Span, findings: &mut Findings) -> Option<ReadRule> {
    let errors_before = findings.errors();
    let title = match table.get("name").map(Spanned::get_ref) {
        Some(DeValue::String(name)) => format!("rule `{}`", name.escape_debug()),
        _ => "[[rules]]".to_owned(),
    };
    let section = Section::new(title, span, table, &KEYS, findings);
    let name = section.required_string("name", "name = \"…\"", findings);
    let path = section.required_string("path", "path = \"tunnel\"", findings);
    if !section.has("to") {
        section.missing("to", "to = \"genesys-media\"", findings);
    }
    let to = section.strings("to", findings).unwrap_or_default();
    let protocols = read_protocols(&section, findings);
    let ports = read_ports(&section, protocols, findings);
    let when = read_when(&section, protocols, findings);

    let name = name?;
    check_name("a rule", name.get_ref(), name.span(), findings);
    if *name.get_ref() == UNMATCHED {
        let help = "give it another name: this one stands for what no rule matches";
        findings.error(name.span(), format!("no rule can be called `{UNMATCHED}`"), help);
    }
    let paths = [("tunnel", Path::Tunnel), ("bypass", Path::Bypass), ("reject", Path::Reject)];
    let chosen = path.as_ref().and_then(|path| choose("path", path, &paths, findings));
    if let (Some(path), Some(Path::Bypass)) = (&path, chosen)
        && let Some(protocols) = protocols.filter(|protocols| *protocols != Protocols::UDP)
    {
        let message = format!("bypass is for UDP alone, this rule is for {protocols}");
        findings.error(
            path.span(),
            message,
            "give `protocol = \"udp\"`, and a rule of its own to the other protocols",
        );
    }
    let mark = read_mark(&section, chosen, findings);

    Some(ReadRule {
        place: findings.place(name.span()),
        is_whole: findings.errors() == errors_before,
        to: to.iter().map(|set| ((*set.get_ref()).to_owned(), findings.place(set.span()))).collect(),
        rule: Rule {
            name: name.into_inner().to_owned(),
            to: Vec::new(),
            protocols: protocols.unwrap_or(Protocols::ANY),
            ports,
            when,
            path: chosen?,
            mark,
        },
    })
}

/// `None` if it is not as it must be.
fn read_protocols(section: &Section<'_>, findings: &mut Findings) -> Option<Protocols> {
    if !section.has("protocol") {
        return Some(Protocols::ANY);
    }
    let known = [
        ("tcp", Protocols::TCP),
        ("udp", Protocols::UDP),
        ("icmp", Protocols::ICMP),
        ("any", Protocols::ANY),
    ];
    let words = section.strings("protocol", findings)?;
    let chosen: Vec<_> = words.iter().map(|word| choose("protocol", word, &known, findings)).collect();
    chosen.into_iter().try_fold(Protocols::NONE, |all, one| Some(all.with(one?)))
}

fn read_ports(section: &Section<'_>, protocols: Option<Protocols>, findings: &mut Findings) -> Option<Ports> {
    let items = section.array("ports", findings)?;
    let span = items.span();
    if items.get_ref().is_empty() {
        findings.error(span.clone(), "`ports` is empty", "list ports, or leave `ports` out for all of them");
        return None;
    }
    if let Some(protocols) = protocols.filter(|all| !Protocols::TCP.with(Protocols::UDP).contains(*all)) {
        let message = format!("`ports` in a rule for {protocols}: not all of that has ports");
        findings.error(span, message, "give `protocol = [\"tcp\", \"udp\"]`, or leave `ports` out");
    }
    Some(Ports::new(items.into_inner().iter().filter_map(|item| read_range(item, findings))))
}

fn read_range(item: &Spanned<DeValue<'_>>, findings: &mut Findings) -> Option<RangeInclusive<u16>> {
    let text = match item.get_ref() {
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(number.to_string(), |number| number.to_string()),
        _ => (*string("ports", item, findings)?.get_ref()).to_owned(),
    };
    let (start, end) = text.split_once('-').unwrap_or((&text, &text));
    let (Ok(start), Ok(end)) = (start.trim().parse::<u16>(), end.trim().parse::<u16>()) else {
        let message = format!("`{}` is no port and no range of ports", text.escape_debug());
        findings.error(item.span(), message, "write \"443\" or \"16384-65535\": ports go from 1 to 65535");
        return None;
    };
    if start == 0 || end == 0 {
        findings.error(
            item.span(),
            format!("`{}`: there is no port 0", text.escape_debug()),
            "ports go from 1 to 65535",
        );
        return None;
    }
    if start > end {
        let message = format!("the range {start}-{end} is turned round");
        findings.error(item.span(), message, format!("write \"{end}-{start}\""));
        return None;
    }
    Some(start..=end)
}

fn read_when(section: &Section<'_>, protocols: Option<Protocols>, findings: &mut Findings) -> When {
    let known = [("always", When::Always), ("ef", When::Ef), ("ef-or-webrtc", When::EfOrWebrtc)];
    let Some(word) = section.string("when", findings) else { return When::Always };
    let Some(when) = choose("when", &word, &known, findings) else { return When::Always };
    if when != When::Always
        && let Some(protocols) = protocols.filter(|protocols| *protocols != Protocols::UDP)
    {
        let message = format!("`when = \"{}\"` is for UDP alone, this rule is for {protocols}", when.name());
        findings.error(word.span(), message, "give `protocol = \"udp\"`, or leave `when` out");
    }
    when
}

fn read_mark(section: &Section<'_>, path: Option<Path>, findings: &mut Findings) -> Mark {
    let Some(text) = section.string("dscp", findings) else { return Mark::Keep };
    if path == Some(Path::Reject) {
        findings.warn(text.span(), "`dscp` in a rule that rejects has no effect", "leave `dscp` out");
    }
    match text.get_ref().parse::<Dscp>() {
        Ok(dscp) => Mark::Voice(dscp),
        Err(_) => {
            let message = format!("`{}` is no DSCP", text.get_ref().escape_debug());
            findings.error(
                text.span(),
                message,
                "give a name (ef, af11 to af43, cs0 to cs7, va, le) or a number from 0 to 63, in quotes",
            );
            Mark::Keep
        }
    }
}
