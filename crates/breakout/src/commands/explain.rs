mod arguments;

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Duration,
};

use arguments::{Destination, Payload, Place, Protocol};
use clap::Args;
use control::{Client, Command, LearnedAddress, Reply};
use packet::{Dscp, protocol};
use policy::{Config, Content, Facts, Learned, Path, Snapshot, Step};
use serde::Serialize;

use super::format;
use crate::{
    configuration::{self, Policy},
    exit::Exit,
    failure::Failure,
    output,
    state::StateDir,
};

/// For a name whose addresses are not known (RFC 5737).
const STAND_INS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(203, 0, 113, 1)];
/// For the daemon's answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Say which way a packet would go, and why
///
/// Walks the policy as the pump would for a flow's first packet, and prints each step, the rule that decided, and the
/// verdict. No daemon is needed; one that runs with the same configuration tells how an address came to be in a set, and until when.
/// The path is `tunnel`, `bypass`, `reject`, or `direct` for what never enters the TUN; `differs` if it is not the same for all addresses
/// that a name has.
#[derive(Args, Debug)]
#[command(after_help = concat!(
    "Examples:\n",
    "  breakout explain --proto udp --dst 52.129.96.10:20000 --dscp ef\n",
    "  breakout explain --config /etc/breakout.toml --proto tcp --dst 203.0.113.7:443\n",
    "  breakout explain --config /etc/breakout.toml --proto tcp --dst api.usw2.pure.cloud:443\n",
    "  breakout explain --proto udp --dst 52.129.96.10:20000 --payload stun --json\n\n",
    "Exit status:\n",
    "  0  explained, whatever the verdict\n",
    "  2  the command line or the configuration cannot be used"
))]
pub struct Explain {
    /// tcp, udp, icmp, icmpv6, or a protocol number
    #[arg(long, value_name = "PROTOCOL")]
    proto: Protocol,
    /// Destination: address or name, and port; without the port for a protocol that has none
    #[arg(long, value_name = "ADDRESS:PORT")]
    dst: Destination,
    /// Source: tells also whether the tunnel takes it
    #[arg(long, value_name = "ADDRESS:PORT")]
    src: Option<Place>,
    /// The mark the packet comes with: a name (ef, af41, cs3, …) or a number up to 63
    #[arg(long, value_name = "DSCP", default_value = "0")]
    dscp: Dscp,
    /// What a UDP packet carries
    #[arg(long, value_enum, default_value_t = Payload::None)]
    payload: Payload,
    /// The configuration to walk; without it the running daemon's, without one the built-in sets and rules, 203.0.113.0/24 being the signaling
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON object: path, rule, mark, then steps and policy
    #[arg(long)]
    json: bool,
}

/// The policy to walk.
struct Walked {
    config: Config,
    snapshot: Snapshot,
    /// The file, if it is one.
    file: Option<PathBuf>,
    /// What the daemon that has the same configuration learned.
    learned: Vec<LearnedAddress>,
}

#[derive(Serialize)]
struct Explained {
    path: &'static str,
    rule: String,
    mark: String,
    steps: Vec<Step>,
    policy: String,
}

impl Explain {
    pub fn run(self) -> Result<Exit, Failure> {
        self.check_ports()?;
        let walked = self.policy()?;
        let explained = match &self.dst {
            Destination::Address(place) => self.explain_address(place.address, &walked)?,
            Destination::Name { name, .. } => self.explain_name(name, &walked)?,
        };
        if self.json {
            output::json(&explained)?;
        } else {
            output::text(&self.table(&explained))?;
        }
        Ok(Exit::Ok)
    }

    fn check_ports(&self) -> Result<(), Failure> {
        let has_ports = matches!(self.proto.0, protocol::TCP | protocol::UDP);
        if has_ports && self.dst.port().is_none() {
            return Err(Failure::usage(format!("--dst {} has no port", self.dst))
                .remedy("tcp and udp have ports: give ADDRESS:PORT, for IPv6 [ADDRESS]:PORT, or NAME:PORT")
                .into());
        }
        if !has_ports && self.dst.port().is_some() {
            return Err(Failure::usage(format!("{} has no ports", name(self.proto)))
                .remedy("give the address alone to --dst")
                .into());
        }
        Ok(())
    }

    fn facts(&self, destination: IpAddr) -> Result<Facts, Failure> {
        if let Some(source) = self.src.filter(|source| source.address.is_ipv4() != destination.is_ipv4()) {
            return Err(Failure::usage(format!(
                "--src {} and --dst {destination} are of different families",
                source.address
            ))
            .remedy("give two IPv4 or two IPv6 addresses")
            .into());
        }
        let content = if self.proto.0 == protocol::UDP { self.payload.content() } else { Content::Other };
        Ok(Facts { protocol: self.proto.0, destination, port: self.dst.port(), dscp: self.dscp, content })
    }

    fn policy(&self) -> Result<Walked, Failure> {
        let running = daemon();
        let file = self.config.clone().or_else(|| running.as_ref().map(|names| names.config.clone()));
        let Some(file) = file else {
            let Policy { config, snapshot, .. } = configuration::built_in_policy()?;
            return Ok(Walked { config, snapshot, file: None, learned: Vec::new() });
        };
        let Policy { config, snapshot, .. } = configuration::read_policy(&file)?;
        let is_same = |other: &PathBuf| other.canonicalize().ok() == file.canonicalize().ok();
        let learned =
            running.filter(|names| is_same(&names.config)).map_or_else(Vec::new, |names| names.addresses);
        let of_set = |found: &LearnedAddress| Learned { address: found.address, set: found.set.clone() };
        let snapshot = snapshot.with_learned(&learned.iter().map(of_set).collect::<Vec<_>>());
        Ok(Walked { config, snapshot, file: Some(file), learned })
    }

    fn explain_address(&self, address: IpAddr, walked: &Walked) -> Result<Explained, Failure> {
        let facts = self.facts(address)?;
        let mut explained = self.walk(&facts, &walked.snapshot, walked);
        let is_learned = walked.snapshot.is_learned(address);
        let known = walked.learned.iter().filter(|found| found.address == address).map(|found| {
            let shared =
                if is_learned { "; whatever else is at this address and port goes with it" } else { "" };
            step("learned", found_at(found) + shared)
        });
        explained.steps.splice(..0, known);
        Ok(explained)
    }

    /// As its addresses are judged, known or not.
    fn explain_name(&self, name: &str, walked: &Walked) -> Result<Explained, Failure> {
        let asked = name.trim_end_matches('.').to_ascii_lowercase();
        let mut gateways = walked.config.tunnel.gateways.iter();
        if gateways.any(|gateway| gateway.endpoint.host().as_ref() == Some(&asked)) {
            let found =
                format!("{name} is a gateway's own name: it is resolved as ever, and no domain may hold it");
            let decided = Step { decided: true, ..step("name", found) };
            return Ok(walked.explained("direct", "none", self.dscp.to_string(), vec![decided]));
        }
        let Some((domain, set)) = walked.snapshot.set_for_name(name) else {
            let found = format!(
                "no set has a domain that {name} is under: it is resolved as ever, and its address decides"
            );
            let decided = Step { decided: true, ..step("name", found) };
            return Ok(walked.explained("direct", "none", self.dscp.to_string(), vec![decided]));
        };
        let mut steps = vec![step("name", format!("{name} is in {set} by its domain {domain}"))];
        let known =
            walked.learned.iter().filter(|found| found.name.eq_ignore_ascii_case(name.trim_end_matches('.')));
        let known: Vec<&LearnedAddress> = known.collect();
        steps.extend(known.iter().map(|found| step("learned", found_at(found))));
        if known.is_empty() {
            steps.push(step(
                "learned",
                "no address yet: it is routed before an application is told of it".to_owned(),
            ));
            return Ok(walked.merged(steps, vec![self.explain_unknown(set, walked)?]));
        }
        let mut likely = known;
        narrow(&mut likely, |found| found.known == "told");
        narrow(&mut likely, |found| {
            self.src.is_none_or(|src| src.address.is_ipv4() == found.address.is_ipv4())
        });
        let walk = |found: &&LearnedAddress| -> Result<Explained, Failure> {
            Ok(self.walk(&self.facts(found.address)?, &walked.snapshot, walked))
        };
        Ok(walked.merged(steps, likely.iter().map(walk).collect::<Result<_, _>>()?))
    }

    /// As an address of a set's names will be judged.
    fn explain_unknown(&self, set: &str, walked: &Walked) -> Result<Explained, Failure> {
        let is_free = |address: &IpAddr| walked.snapshot.set_of(*address).is_none();
        let Some(address) = STAND_INS.map(IpAddr::V4).into_iter().find(is_free) else {
            return Err(Failure::usage("documentation's own addresses are all in sets")
                .remedy("give an address")
                .into());
        };
        let snapshot = walked.snapshot.with_learned(&[Learned { address, set: set.to_owned() }]);
        let mut explained = self.walk(&self.facts(address)?, &snapshot, walked);
        explained.steps.retain(|step| step.check != "set");
        Ok(explained)
    }

    fn walk(&self, facts: &Facts, snapshot: &Snapshot, walked: &Walked) -> Explained {
        let own = &walked.config.interface.address;
        let is_own = |source: Place| own.iter().any(|own| own.addr() == source.address);
        let judged_source = self.src.filter(|_| walked.file.is_some());

        if !snapshot.is_routed(facts) {
            let found = if snapshot.is_learned(facts.destination) {
                format!(
                    "no rule is for this traffic to {}, a name's address: it is not routed into the TUN",
                    facts.destination
                )
            } else {
                format!("no set that a rule names holds {}: it is not routed into the TUN", facts.destination)
            };
            let mut steps = vec![Step { decided: true, ..step("set", found) }];
            if walked.learned.is_empty() {
                steps.extend(perhaps_learned(snapshot));
            }
            let mut path = "direct";
            if let Some(source) = judged_source.filter(|source| is_own(*source)) {
                path = Path::Reject.name();
                decide(
                    &mut steps,
                    format!("{} is the TUN's: refused, so that it does not leave elsewhere", source.address),
                );
            }
            return walked.explained(path, "none", facts.dscp.to_string(), steps);
        }

        let policy::Explanation { path: judged, rule, mark, mut steps } = snapshot.explain(facts);
        let mut path = judged;
        if let Some(source) = judged_source {
            match (path, is_own(source)) {
                (Path::Tunnel, false) => {
                    path = Path::Reject;
                    decide(
                        &mut steps,
                        format!("{} is not the interface's: the tunnel takes no other", source.address),
                    );
                }
                (Path::Bypass, false) => {
                    let found =
                        format!("{} is not the interface's: it leaves as it is, unmapped", source.address);
                    steps.push(step("source", found));
                }
                (Path::Tunnel | Path::Bypass, true) => {
                    steps.push(step("source", format!("{} is the interface's", source.address)));
                }
                (Path::Reject, _) => {}
            }
        }
        walked.explained(path.name(), &rule, mark, steps)
    }

    fn table(&self, explained: &Explained) -> String {
        let width = explained.steps.iter().map(|step| step.check.chars().count()).max().unwrap_or(0).max(6);
        let mut lines = format!("{} to {}\n", name(self.proto), self.dst);
        for Step { check, found, decided } in &explained.steps {
            let decided = if *decided { "  <- decided" } else { "" };
            lines += &format!("  {check:width$}  {found}{decided}\n");
        }
        let Explained { path, rule, mark, policy, .. } = explained;
        lines + &format!("path    {path}\nrule    {rule}\nmark    {mark}\npolicy  {policy}\n")
    }
}

impl Walked {
    fn explained(&self, path: &'static str, rule: &str, mark: String, steps: Vec<Step>) -> Explained {
        let policy =
            self.file.as_ref().map_or_else(|| "built in".to_owned(), |file| file.display().to_string());
        Explained { path, rule: rule.to_owned(), mark, steps, policy }
    }

    /// Of a name: each way that its addresses are judged.
    fn merged(&self, mut steps: Vec<Step>, each: Vec<Explained>) -> Explained {
        let mut ways: Vec<Explained> = Vec::new();
        for explained in each {
            if ways.iter().all(|way| way.verdict() != explained.verdict()) {
                ways.push(explained);
            }
        }
        let path = match ways.as_slice() {
            [way] => way.path,
            _ => "differs",
        };
        let (rule, mark) =
            (joined(ways.iter().map(|way| &way.rule)), joined(ways.iter().map(|way| &way.mark)));
        steps.extend(ways.into_iter().flat_map(|way| way.steps));
        self.explained(path, &rule, mark, steps)
    }
}

impl Explained {
    fn verdict(&self) -> (&str, &str, &str) {
        (self.path, &self.rule, &self.mark)
    }
}

/// Leaves those out that are not so, if others are.
fn narrow(all: &mut Vec<&LearnedAddress>, is_so: impl Fn(&LearnedAddress) -> bool) {
    if all.iter().any(|found| is_so(found)) {
        all.retain(|found| is_so(found));
    }
}

/// Each once.
fn joined<'a>(texts: impl Iterator<Item = &'a String>) -> String {
    let mut distinct: Vec<&str> = Vec::new();
    for text in texts {
        if !distinct.contains(&text.as_str()) {
            distinct.push(text);
        }
    }
    distinct.join(", ")
}

/// What no file tells: which addresses the names have.
fn perhaps_learned(snapshot: &Snapshot) -> Option<Step> {
    let domains: Vec<&str> = snapshot.domains().map(|(domain, _)| domain).collect();
    let (first, others) = domains.split_first()?;
    let more = if others.is_empty() { String::new() } else { format!(" or {} more domains", others.len()) };
    let found = format!(
        "unless a name under {first}{more} has this address: a running daemon captures those, on the ports of the set's rules"
    );
    Some(step("domains", found))
}

/// What the running daemon tells of names; `None` if there is none, or none that talks to this user.
fn daemon() -> Option<control::Names> {
    let mut client = Client::connect(&StateDir::from_environment().control_socket()).ok()?;
    match client.call(Command::Names, LIMIT).ok()? {
        Reply::Names(names) => Some(names),
        _ => None,
    }
}

fn found_at(found: &LearnedAddress) -> String {
    let LearnedAddress { address, name, set, known, seconds_left } = found;
    let left = format::duration(*seconds_left as f64);
    let by = match known.as_str() {
        "before" => " by the network's own DNS servers",
        "withheld" => " (applications are not told)",
        _ => "",
    };
    format!("{address} is {name}'s{by}, in {set} for another {left}")
}

fn step(check: &str, found: String) -> Step {
    Step { check: check.to_owned(), found, decided: false }
}

/// The source has the last word.
fn decide(steps: &mut Vec<Step>, found: String) {
    steps.iter_mut().for_each(|step| step.decided = false);
    steps.push(Step { check: "source".to_owned(), found, decided: true });
}

fn name(protocol: Protocol) -> String {
    protocol::name(protocol.0).map_or_else(|| format!("protocol {}", protocol.0), str::to_owned)
}
