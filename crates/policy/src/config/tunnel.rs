use toml::Spanned;

use super::{
    Endpoint, Prefer, Tunnel,
    dns::{self, Server},
    finding::{Findings, Span},
    gateways::{self, ReadGateway},
    interface::ReadInterface,
    section::{Section, choose},
};

pub(super) struct ReadTunnel {
    pub(super) tunnel: Tunnel,
    /// Of each gateway's endpoint.
    places: Vec<Span>,
    /// `None` where `dns` was left out.
    pub(super) dns: Option<Vec<Server>>,
}

impl ReadTunnel {
    /// The gateways' endpoints, each with its place.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = (&Endpoint, &Span)> {
        self.tunnel.gateways.iter().map(|gateway| &gateway.endpoint).zip(&self.places)
    }

    /// The DNS servers that can be reached through it.
    pub(super) fn servers(&self, interface: &ReadInterface, findings: &mut Findings) -> Vec<Server> {
        let servers = self.dns.iter().flatten();
        servers
            .filter(|server| dns::is_reachable(server, interface, &self.tunnel.gateways, findings))
            .cloned()
            .collect()
    }
}

const KEYS: [&str; 4] = ["private_key_file", "prefer", "keepalive", "dns"];

pub(super) fn read(root: &Section<'_>, findings: &mut Findings) -> Option<ReadTunnel> {
    let known = [&KEYS[..], &gateways::KEYS].concat();
    let Some(section) = root.section("tunnel", &known, findings) else {
        if !root.has("tunnel") {
            let help = "add `[tunnel]` with `private_key_file`, `peer_public_key` and `endpoint`";
            findings.error(None, "[tunnel] is missing", help);
        }
        return None;
    };
    let private_key_file =
        section.required_string("private_key_file", "private_key_file = \"agent.key\"", findings);
    let private_key_file =
        private_key_file.and_then(|file| gateways::file_name("private_key_file", &file, findings));
    let gateways = gateways::read(root, &section, findings);
    let prefer = read_prefer(&section, root.count("gateways") > 1, findings);
    let keepalive = section.integer("keepalive", 0, findings).map(Spanned::into_inner);
    let dns = dns::read(&section, findings);

    let (gateways, places) =
        gateways.into_iter().map(|ReadGateway { gateway, place, .. }| (gateway, place)).unzip();
    let tunnel = Tunnel {
        private_key_file: private_key_file?,
        gateways,
        prefer,
        keepalive: keepalive.filter(|seconds| *seconds > 0),
        dns: dns.iter().flatten().map(|(server, _)| *server).collect(),
    };
    Some(ReadTunnel { tunnel, places, dns })
}

fn read_prefer(section: &Section<'_>, has_several: bool, findings: &mut Findings) -> Prefer {
    let Some(word) = section.string("prefer", findings) else { return Prefer::default() };
    if !has_several {
        let help = "leave it out, or write more [[gateways]]";
        findings.warn(word.span(), "`prefer` has no effect with one gateway", help);
    }
    let known = [Prefer::Order, Prefer::RoundTrip].map(|prefer| (prefer.name(), prefer));
    choose("prefer", &word, &known, findings).unwrap_or_default()
}
