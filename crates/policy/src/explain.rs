use packet::{Tos, protocol};
use serde::Serialize;

use crate::{
    Content, Facts, Path, Snapshot,
    rule::{Mismatch, Rule},
    snapshot::UNMATCHED,
};

/// How a verdict came about, step by step. Serializes as one object: `path`, `rule`, `mark`, then `steps`.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    pub path: Path,
    pub rule: String,
    /// The DSCP the packet leaves with, by name.
    pub mark: String,
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What was looked at: `set`, `rule media`, …
    pub check: String,
    /// What was found.
    pub found: String,
    /// Whether it decided.
    pub decided: bool,
}

impl Snapshot {
    /// Walks the policy exactly as [`Snapshot::classify`] does, and tells.
    pub fn explain(&self, facts: &Facts) -> Explanation {
        let mut steps = Vec::new();
        let verdict = self.walk(facts, &mut steps);
        let tos = verdict.mark.apply(Tos::default().with_dscp(facts.dscp));
        Explanation {
            path: verdict.path,
            rule: self.rule_name(verdict.rule).to_owned(),
            mark: tos.dscp().to_string(),
            steps,
        }
    }
}

/// Sees each step of the walk: nothing at all for the pump, the story for `explain`.
pub(crate) trait Trace {
    fn set(&mut self, snapshot: &Snapshot, facts: &Facts);
    fn rule(&mut self, rule: &Rule, facts: &Facts, result: Result<(), Mismatch>);
    fn unmatched(&mut self, path: Path);
}

impl Trace for () {
    fn set(&mut self, _: &Snapshot, _: &Facts) {}
    fn rule(&mut self, _: &Rule, _: &Facts, _: Result<(), Mismatch>) {}
    fn unmatched(&mut self, _: Path) {}
}

impl Trace for Vec<Step> {
    fn set(&mut self, snapshot: &Snapshot, facts: &Facts) {
        let address = facts.destination;
        let found = match snapshot.set_of(address) {
            Some((set, _)) if snapshot.is_learned(address) => {
                let sets: Vec<&str> = snapshot.learned_sets(address).collect();
                match sets.len() {
                    0 | 1 => format!("{address} is in {set}: a name under its domains has this address"),
                    _ => format!(
                        "{address} is in {}: names under their domains have this address",
                        sets.join(" and ")
                    ),
                }
            }
            Some((set, prefix)) => format!("{address} is in {set} by {prefix}"),
            None => format!("{address} is in no set"),
        };
        self.push(Step { check: "set".to_owned(), found, decided: false });
    }

    fn rule(&mut self, rule: &Rule, facts: &Facts, result: Result<(), Mismatch>) {
        let found = match result {
            Ok(()) => format!("matches: {}", rule.path.name()),
            Err(Mismatch::Protocol) => {
                format!("is for protocol {}, this is {}", rule.protocols, protocol_name(facts.protocol))
            }
            Err(Mismatch::Port) => {
                let ports = rule.ports.as_ref().map(ToString::to_string).unwrap_or_default();
                match facts.port {
                    Some(port) => format!("is for ports {ports}, this is {port}"),
                    None => format!("is for ports {ports}, this has none"),
                }
            }
            Err(Mismatch::When) => format!(
                "is for {}, this is marked {} and {}",
                rule.when.name(),
                facts.dscp,
                content_name(facts.content),
            ),
        };
        self.push(Step { check: format!("rule {}", rule.name), found, decided: result.is_ok() });
    }

    fn unmatched(&mut self, path: Path) {
        let found = format!("no rule matches: {}", path.name());
        self.push(Step { check: UNMATCHED.to_owned(), found, decided: true });
    }
}

fn protocol_name(number: u8) -> String {
    protocol::name(number).map_or_else(|| format!("protocol {number}"), str::to_owned)
}

fn content_name(content: Content) -> &'static str {
    match content {
        Content::Stun => "STUN",
        Content::Zrtp => "ZRTP",
        Content::Dtls => "DTLS",
        Content::Channel => "TURN ChannelData",
        Content::Rtp => "RTP",
        Content::Rtcp => "RTCP",
        Content::Other => "not WebRTC",
    }
}
