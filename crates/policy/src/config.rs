mod built_in;
mod coverage;
mod cross;
mod dataplane;
mod dns;
mod domains;
mod endpoint;
mod finding;
mod gateways;
mod genesys;
mod interface;
mod network;
mod routes;
mod rules;
mod section;
mod sets;
mod tunnel;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use ipnet::IpNet;
use packet::OuterDscp;
use toml::de::DeTable;

use crate::{Path, rule::Rule};
use finding::Findings;
pub use finding::{ConfigError, Finding, Warning};
pub use interface::DNS_LINK;
use section::Section;
pub use sets::never_captured;

/// A configuration file, checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub interface: Interface,
    pub tunnel: Tunnel,
    pub control: Control,
    pub dataplane: Dataplane,
    pub routes: Routes,
    pub network: Network,
    pub(crate) policy: Policy,
}

#[derive(Clone, Debug, Default)]
pub struct Interface {
    /// At least one; the address counts, whatever the prefix length.
    pub address: Vec<IpNet>,
    /// Default: first free `tunN`.
    pub name: Option<String>,
    /// 576–65535. Default: underlay MTU minus the tunnel's overhead.
    pub mtu: Option<u16>,
}

#[derive(Clone, Debug)]
pub struct Tunnel {
    /// As written: relative to the configuration file.
    pub private_key_file: PathBuf,
    /// At least one, in the order of the file.
    pub gateways: Vec<Gateway>,
    pub prefer: Prefer,
    /// Seconds; 0 in the file is none.
    pub keepalive: Option<u16>,
    /// The DNS servers behind the tunnel, at most 4, in the order in which they are asked.
    pub dns: Vec<IpAddr>,
}

/// A far end of the tunnel. No two have the same name, public key or endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// The endpoint as written, where it has no name.
    pub name: String,
    pub public_key: PublicKey,
    /// As written: relative to the configuration file.
    pub preshared_key_file: Option<PathBuf>,
    pub endpoint: Endpoint,
}

/// Which of several gateways is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefer {
    /// The first that answers, in the order of the file.
    #[default]
    Order,
    /// The one whose handshake takes the shortest time.
    RoundTrip,
}

impl Prefer {
    /// As in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::RoundTrip => "round-trip",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Address(SocketAddr),
    Name { host: String, port: u16 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(pub [u8; 32]);

/// `[control]`: who besides root may talk to the daemon.
#[derive(Clone, Debug, Default)]
pub struct Control {
    pub group: Option<String>,
}

/// `[dataplane]`: which features may be used where the kernel has them, and how the tunnel's packets are marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dataplane {
    /// Super-packets on the TUN (TCP and UDP segmentation offload).
    pub tun_offload: bool,
    /// Several datagrams in one call on the tunnel's socket (UDP_SEGMENT, UDP_GRO).
    pub udp_offload: bool,
    /// Whether the kernel moves the packets of established calls.
    pub fast_path: FastPathUse,
    /// The DSCP of the tunnel's own packets.
    pub outer_dscp: OuterDscp,
}

/// Whether the kernel moves the packets of established calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastPathUse {
    /// Where it can.
    Auto,
    Off,
    /// Without it the pump does not start.
    Require,
}

impl Default for Dataplane {
    fn default() -> Self {
        Self {
            tun_offload: true,
            udp_offload: true,
            fast_path: FastPathUse::Auto,
            outer_dscp: OuterDscp::ZERO,
        }
    }
}

/// `[routes]`: what is done on the machine beside the routes themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// Whether the firewall keeps [`crate::Guarded`] traffic off all interfaces but the TUN.
    pub kill_switch: bool,
}

/// `[network]`: what is done about the networks that the machine comes into.
#[derive(Clone, Debug)]
pub struct Network {
    /// Who is asked whether a captive portal is in the way; `None`: nobody.
    pub portal_check: Option<PortalCheck>,
}

/// A web address without TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortalCheck {
    /// At most 255 printable ASCII characters.
    pub url: String,
    pub endpoint: Endpoint,
    /// With the port where it was given.
    pub host: String,
    /// With the query; begins with `/`.
    pub path: String,
}

#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) sets: Vec<Set>,
    pub(crate) rules: Vec<Rule>,
    pub(crate) unmatched: Path,
}

#[derive(Clone, Debug)]
pub(crate) struct Set {
    pub(crate) name: String,
    /// Distinct, without host bits.
    pub(crate) prefixes: Vec<IpNet>,
    /// Distinct, lowercase, without `*.`; of one set each.
    pub(crate) domains: Vec<String>,
}

impl Config {
    /// Reads a configuration; `name` is the file's name in messages. All errors are reported at once.
    pub fn parse(text: &str, name: &str) -> Result<(Self, Vec<Warning>), ConfigError> {
        let mut findings = Findings::new(text, name);
        let config = read(text, &mut findings);
        let (errors, warnings) = findings.finish();
        match config {
            Some(config) if errors.is_empty() => Ok((config, warnings)),
            _ => Err(ConfigError::new(name, errors)),
        }
    }
}

fn read(text: &str, findings: &mut Findings) -> Option<Config> {
    let document = parse_toml(text, findings)?;
    let known = [
        "interface",
        "tunnel",
        "gateways",
        "control",
        "dataplane",
        "routes",
        "network",
        "genesys",
        "sets",
        "policy",
        "rules",
    ];
    let root = Section::new("the file", 0..0, &document, &known, findings);

    let interface = interface::read(&root, findings);
    let control = interface::read_control(&root, findings);
    let dataplane = dataplane::read(&root, findings);
    let routes = routes::read(&root, findings);
    let network = network::read(&root, findings);
    let tunnel = tunnel::read(&root, findings);
    let mut sets = sets::read(&root, findings);
    let regions = genesys::read(&root, findings);
    let own_rules = rules::read(&root, findings);
    let unmatched = rules::read_unmatched(&root, findings);

    dns::check_names(&sets, own_rules.as_deref().unwrap_or_default(), findings);
    let servers = tunnel.as_ref().map(|tunnel| tunnel.servers(&interface, findings)).unwrap_or_default();
    genesys::add(regions, &mut sets);
    built_in::add_sets(&mut sets, &servers);
    let rules = rules::resolve(built_in::with_rules(own_rules, &servers), &sets, findings);
    cross::check(&interface, tunnel.as_ref(), &sets, &rules, findings);
    domains::check(&sets, &rules, tunnel.as_ref(), findings);
    routes.check(&rules, unmatched, findings);

    Some(Config {
        interface: interface.interface,
        tunnel: tunnel?.tunnel,
        control,
        dataplane,
        routes: routes.routes,
        network,
        policy: Policy {
            sets: sets.into_iter().map(sets::ReadSet::into_set).collect(),
            rules: rules.into_iter().map(|rule| rule.rule).collect(),
            unmatched,
        },
    })
}

fn parse_toml<'t>(text: &'t str, findings: &mut Findings) -> Option<DeTable<'t>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Some(document.into_inner());
    }
    for error in errors {
        let message = format!("not valid TOML: {}", error.message());
        findings.error(
            error.span(),
            message,
            "correct the syntax here (https://toml.io says how it must be)",
        );
    }
    None
}
