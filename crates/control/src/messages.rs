use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

/// What a client may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    Status,
    Flows,
    Names,
    /// Read the configuration again and swap it in, or keep the old one whole.
    Reload,
    /// Put the machine back and end.
    Down,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    Status(Box<Status>),
    Flows(Flows),
    Names(Names),
    Reloaded(Reloaded),
    /// `down` has begun; the daemon is gone when its lock is free.
    Stopping,
    Refused(Refusal),
}

/// Why a request was not answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub kind: RefusalKind,
    /// What was found and what to do, for people.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// Neither root nor of the configured group.
    Denied,
    /// Not a request this version knows.
    Malformed,
    /// Client and daemon are of different versions.
    Version,
    /// Too many clients at once, or the daemon is ending.
    Busy,
    /// The new configuration was not taken; the old one is whole.
    Configuration,
    /// The daemon could not do it.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    pub pid: u32,
    pub config: PathBuf,
    pub uptime_seconds: u64,
    pub interface: Interface,
    pub tunnel: Tunnel,
    pub underlay: Underlay,
    /// The page of a captive portal that is in the way, to be opened in a browser; null: none is known.
    pub portal: Option<String>,
    /// One each for `tunnel`, `bypass` and `reject`.
    pub paths: Vec<PathCount>,
    /// RTP of all flows that are remembered, `out` and `in`.
    pub voice: Vec<Voice>,
    /// Every reason that has occurred.
    pub drops: Vec<Drops>,
    pub features: Vec<Feature>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    /// Address and prefix length.
    pub addresses: Vec<String>,
    /// The largest packet in the tunnel, in bytes; the link itself has at least 1280.
    pub mtu: u16,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tunnel {
    /// Which gateway is used: `order` or `round-trip`.
    pub prefer: String,
    /// In the configuration's order, at least one.
    pub gateways: Vec<Gateway>,
    /// The last change from one that fell silent to another; null: none yet.
    pub failover: Option<Failover>,
}

/// A far end of the tunnel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gateway {
    pub name: String,
    pub public_key: String,
    /// Null: its name has no address yet.
    pub endpoint: Option<SocketAddr>,
    /// Whether there is a route to it.
    pub reachable: bool,
    /// `idle`, `connecting`, `up` or `down`.
    pub state: String,
    /// Whether new flows go there.
    pub used: bool,
    /// Why it is used, or not, in a phrase.
    pub why: String,
    /// Live flows that go there.
    pub flows: usize,
    /// Of the last handshake that this end began, in milliseconds; null: none was answered yet.
    pub round_trip_ms: Option<f64>,
    /// Seconds since the last handshake was completed; null: none yet.
    pub last_handshake_seconds: Option<f64>,
    /// Seconds since the peer was last heard; null: not yet.
    pub last_received_seconds: Option<f64>,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// The largest packet that the path to the gateway carries, in bytes.
    pub path_mtu: u16,
    /// How that is known, in a phrase.
    pub path_mtu_known: String,
    /// What seems wrong, and what to do.
    pub trouble: Option<String>,
}

/// A gateway fell silent, or lost its route, and another took its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failover {
    pub from: String,
    pub to: String,
    /// What was wrong with the one before, in a phrase.
    pub cause: String,
    pub seconds_ago: u64,
    /// TCP connections that were ended.
    pub cut_flows: usize,
}

/// The physical side: the source addresses of what breaks out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Underlay {
    pub v4: Option<String>,
    pub v6: Option<String>,
}

/// Out: from the applications. In: to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathCount {
    pub path: String,
    pub out_packets: u64,
    pub out_bytes: u64,
    pub in_packets: u64,
    pub in_bytes: u64,
}

/// The RTP streams of one direction, summed up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voice {
    /// `out` or `in`.
    pub direction: String,
    pub streams: u64,
    pub packets: u64,
    pub lost: u64,
    /// The worst stream's; null: not known.
    pub jitter_us: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// A stable name.
    pub reason: String,
    pub packets: u64,
    /// The reason in words.
    pub meaning: String,
}

/// An optional ability of the kernel or the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feature {
    pub name: String,
    pub on: bool,
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flows {
    pub flows: Vec<Flow>,
    /// How many more there are than [`crate::MAX_FLOWS`].
    pub omitted: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// `tcp`, `udp`, `icmp`, `icmpv6`, or the protocol's number.
    pub protocol: String,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub path: String,
    /// Where there are several, the name of the gateway that a tunnel flow goes to.
    pub gateway: Option<String>,
    pub rule: String,
    /// The external endpoint; only of bypass flows.
    pub mapping: Option<SocketAddr>,
    /// The DSCP its packets leave with, or `keep`.
    pub mark: String,
    pub out_packets: u64,
    pub out_bytes: u64,
    pub in_packets: u64,
    pub in_bytes: u64,
    pub idle_seconds: f64,
    /// Whether the kernel fast path has the flow; otherwise the pump moves its packets.
    pub in_kernel: bool,
    /// RTP from the application; only of bypass flows.
    pub out_rtp: Option<Rtp>,
    /// RTP to the application.
    pub in_rtp: Option<Rtp>,
}

/// What one RTP stream's packets tell, since it began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rtp {
    pub ssrc: u32,
    pub packets: u32,
    pub lost: u32,
    /// RTP packets of other streams in the same flow, or far out of sequence.
    pub strays: u32,
    /// RFC 3550 §6.4.1; null: the clock rate is not known.
    pub jitter_us: Option<u64>,
    /// Hertz; null: not yet known, or none of 8, 16, 48 and 90 kHz.
    pub clock_rate: Option<u32>,
    /// The last packet's as it arrived: a name or a number.
    pub dscp: String,
}

/// How the policy's names are resolved, and the addresses that they were found to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    pub config: PathBuf,
    /// How this machine's applications come to ask our resolver; null: there is none, without `dns` in `[tunnel]`.
    pub resolver: Option<Resolver>,
    pub addresses: Vec<LearnedAddress>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolver {
    /// `systemd-resolved`, `resolvconf` or `/etc/resolv.conf`.
    pub mode: String,
    pub why: String,
    pub listening: Vec<SocketAddr>,
    /// Asked for the policy's names, through the tunnel.
    pub tunnel_dns: Vec<SocketAddr>,
    /// Asked for all other names, as before.
    pub others: Vec<SocketAddr>,
    /// Questions for the policy's names.
    pub asked: u64,
    /// Those of them that could not be answered.
    pub failed: u64,
    /// Questions for other names, handed on.
    pub handed_on: u64,
    /// The known servers of DNS over HTTPS among them: a program that asks for one may resolve by itself.
    pub doh: Vec<DohServer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DohServer {
    pub name: String,
    pub questions: u64,
}

/// An address that a name has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LearnedAddress {
    pub address: IpAddr,
    pub name: String,
    /// The name's, or that whose prefix holds the address.
    pub set: String,
    /// `told`: applications may know it from us; `withheld`: they are not told of it; `before`: they may know it from the network's own
    /// DNS servers.
    pub known: String,
    /// How long it stays, unless the name is asked for again or the address is used.
    pub seconds_left: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// What is different now, a line each; empty: nothing.
    pub changes: Vec<String>,
    /// Live flows that the new policy forbids.
    pub cut_flows: usize,
    pub warnings: Vec<String>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Request {
    pub version: u32,
    pub command: Command,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Answer {
    pub version: u32,
    pub reply: Reply,
}

/// What every version of a message has.
#[derive(Deserialize)]
pub(crate) struct Versioned {
    pub version: u32,
}

impl Tunnel {
    /// The gateway that new flows go to.
    pub fn used(&self) -> Option<&Gateway> {
        self.gateways.iter().find(|gateway| gateway.used)
    }
}

impl Refusal {
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}
