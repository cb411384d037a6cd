use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use clap::{Args, ValueEnum};
use packet::{Dscp, protocol};
use policy::{Config, Content, Facts, Path, Snapshot, Step};
use serde::Serialize;

use crate::{
    configuration::{self, Policy},
    exit::Exit,
    failure::Failure,
    output,
};

/// Say which way a packet would go, and why
///
/// Walks the policy as the pump would for a flow's first packet, and prints each step, the rule that decided, and the
/// verdict. No daemon is needed. The path is `tunnel`, `bypass`, `reject`, or `direct` for what never enters the TUN.
#[derive(Args, Debug)]
#[command(after_help = concat!(
    "Examples:\n",
    "  breakout explain --proto udp --dst 52.129.96.10:20000 --dscp ef\n",
    "  breakout explain --config /etc/breakout.toml --proto tcp --dst 203.0.113.7:443\n",
    "  breakout explain --proto udp --dst 52.129.96.10:20000 --payload stun --json\n\n",
    "Exit status:\n",
    "  0  explained, whatever the verdict\n",
    "  2  the command line or the configuration cannot be used"
))]
pub struct Explain {
    /// tcp, udp, icmp, icmpv6, or a protocol number
    #[arg(long, value_name = "PROTOCOL")]
    proto: Protocol,
    /// Destination: address and port; the address alone for a protocol without ports
    #[arg(long, value_name = "ADDRESS:PORT")]
    dst: Place,
    /// Source: tells also whether the tunnel takes it
    #[arg(long, value_name = "ADDRESS:PORT")]
    src: Option<Place>,
    /// The mark the packet comes with: a name (ef, af41, cs3, …) or a number up to 63
    #[arg(long, value_name = "DSCP", default_value = "0")]
    dscp: Dscp,
    /// What a UDP packet carries
    #[arg(long, value_enum, default_value_t = Payload::None)]
    payload: Payload,
    /// The configuration to walk; without it, the built-in sets and rules, 203.0.113.0/24 being the signaling
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON object: path, rule, mark, then steps and policy
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Protocol(u8);

/// An address with or without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    address: IpAddr,
    port: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Payload {
    Stun,
    Dtls,
    Rtp,
    Rtcp,
    Zrtp,
    /// TURN ChannelData
    Channel,
    /// Nothing that is WebRTC
    None,
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
        let facts = self.facts()?;
        let (config, snapshot) = self.policy()?;
        let explained = self.explain(&facts, &config, &snapshot);
        if self.json {
            output::json(&explained)?;
        } else {
            output::text(&self.table(&explained))?;
        }
        Ok(Exit::Ok)
    }

    fn facts(&self) -> Result<Facts, Failure> {
        let has_ports = matches!(self.proto.0, protocol::TCP | protocol::UDP);
        if has_ports && self.dst.port.is_none() {
            return Err(Failure::usage(format!("--dst {} has no port", self.dst.address))
                .remedy("tcp and udp have ports: give ADDRESS:PORT, for IPv6 [ADDRESS]:PORT")
                .into());
        }
        if !has_ports && self.dst.port.is_some() {
            return Err(Failure::usage(format!("{} has no ports", name(self.proto)))
                .remedy("give the address alone to --dst")
                .into());
        }
        if let Some(source) = self.src.filter(|source| source.address.is_ipv4() != self.dst.address.is_ipv4())
        {
            return Err(Failure::usage(format!(
                "--src {} and --dst {} are of different families",
                source.address, self.dst.address
            ))
            .remedy("give two IPv4 or two IPv6 addresses")
            .into());
        }
        let content = if self.proto.0 == protocol::UDP { self.payload.content() } else { Content::Other };
        Ok(Facts {
            protocol: self.proto.0,
            destination: self.dst.address,
            port: self.dst.port,
            dscp: self.dscp,
            content,
        })
    }

    fn policy(&self) -> Result<(Config, Snapshot), Failure> {
        let Policy { config, snapshot, .. } = match &self.config {
            Some(file) => configuration::read_policy(file)?,
            None => configuration::built_in_policy()?,
        };
        Ok((config, snapshot))
    }

    fn explain(&self, facts: &Facts, config: &Config, snapshot: &Snapshot) -> Explained {
        let policy =
            self.config.as_ref().map_or_else(|| "built in".to_owned(), |file| file.display().to_string());
        let is_own = |source: Place| config.interface.address.iter().any(|own| own.addr() == source.address);
        let judged_source = self.src.filter(|_| self.config.is_some());

        if !snapshot.is_routed(facts) {
            let found = format!(
                "no set that a rule names holds {}: it is not routed into the TUN",
                facts.destination
            );
            let mut steps = vec![Step { check: "set".to_owned(), found, decided: true }];
            steps.extend(perhaps_learned(snapshot));
            let mut path = "direct";
            if let Some(source) = judged_source.filter(|source| is_own(*source)) {
                path = Path::Reject.name();
                decide(
                    &mut steps,
                    format!("{} is the TUN's: refused, so that it does not leave elsewhere", source.address),
                );
            }
            return Explained { path, rule: "none".to_owned(), mark: facts.dscp.to_string(), steps, policy };
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
                    steps.push(Step { check: "source".to_owned(), found, decided: false });
                }
                (Path::Tunnel | Path::Bypass, true) => {
                    let found = format!("{} is the interface's", source.address);
                    steps.push(Step { check: "source".to_owned(), found, decided: false });
                }
                (Path::Reject, _) => {}
            }
        }
        Explained { path: path.name(), rule, mark, steps, policy }
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

/// What no file tells: which addresses the names have.
fn perhaps_learned(snapshot: &Snapshot) -> Option<Step> {
    let domains: Vec<&str> = snapshot.domains().map(|(domain, _)| domain).collect();
    let (first, others) = domains.split_first()?;
    let more = if others.is_empty() { String::new() } else { format!(" or {} more domains", others.len()) };
    let found = format!(
        "unless a name under {first}{more} has this address: a running daemon captures those, on the ports of the set's rules"
    );
    Some(Step { check: "domains".to_owned(), found, decided: false })
}

/// The source has the last word.
fn decide(steps: &mut Vec<Step>, found: String) {
    steps.iter_mut().for_each(|step| step.decided = false);
    steps.push(Step { check: "source".to_owned(), found, decided: true });
}

fn name(protocol: Protocol) -> String {
    protocol::name(protocol.0).map_or_else(|| format!("protocol {}", protocol.0), str::to_owned)
}

impl Payload {
    fn content(self) -> Content {
        match self {
            Self::Stun => Content::Stun,
            Self::Dtls => Content::Dtls,
            Self::Rtp => Content::Rtp,
            Self::Rtcp => Content::Rtcp,
            Self::Zrtp => Content::Zrtp,
            Self::Channel => Content::Channel,
            Self::None => Content::Other,
        }
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = match text.to_ascii_lowercase().as_str() {
            "tcp" => protocol::TCP,
            "udp" => protocol::UDP,
            "icmp" => protocol::ICMP,
            "icmpv6" => protocol::ICMPV6,
            other => {
                other.parse().map_err(|_| "give tcp, udp, icmp, icmpv6 or a number up to 255".to_owned())?
            }
        };
        Ok(Self(number))
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(socket) = text.parse::<SocketAddr>() {
            return Ok(Self { address: socket.ip(), port: Some(socket.port()) });
        }
        let address = text.trim_start_matches('[').trim_end_matches(']').parse();
        let address = address
            .map_err(|_| "give an address with a port: 192.0.2.1:443 or [2001:db8::1]:443".to_owned())?;
        Ok(Self { address, port: None })
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
            None => self.address.fmt(f),
        }
    }
}
