use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use ipnet::IpNet;
use miette::{Diagnostic, NamedSource, SourceSpan};
use packet::{OuterDscp, ParseOuterDscpError};
use serde::Deserialize;
use toml::Spanned;
use tunnel::PublicKey;

/// A gateway's configuration, checked.
#[derive(Debug)]
pub struct Config {
    pub private_key_file: PathBuf,
    pub addresses: Vec<IpNet>,
    pub listen_address: IpAddr,
    pub listen_port: u16,
    pub name: Option<String>,
    /// Bytes of IP packet inside the tunnel.
    pub mtu: u16,
    /// The DSCP of the tunnel's own packets.
    pub outer_dscp: OuterDscp,
    pub peers: Vec<Peer>,
}

#[derive(Debug)]
pub struct Peer {
    pub public_key: PublicKey,
    pub preshared_key_file: Option<PathBuf>,
    pub allowed_ips: Vec<IpNet>,
}

/// Ethernet's 1500 less the tunnel's overhead over IPv6.
const DEFAULT_MTU: u16 = 1420;
/// Below it the kernel takes an interface's IPv6 away.
const MIN_MTU: u16 = 1280;
/// The kernel's IFNAMSIZ less the closing zero.
const MAX_NAME: usize = 15;

#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("the gateway's configuration cannot be used")]
pub struct ConfigError {
    #[source_code]
    source_code: NamedSource<String>,
    #[related]
    findings: Vec<Finding>,
}

#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{message}")]
struct Finding {
    message: String,
    #[help]
    remedy: String,
    #[label]
    place: Option<SourceSpan>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    interface: RawInterface,
    peers: Spanned<Vec<RawPeer>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInterface {
    private_key_file: PathBuf,
    address: Spanned<Vec<Spanned<String>>>,
    #[serde(default = "any_ipv4")]
    listen_address: IpAddr,
    listen_port: Spanned<u16>,
    name: Option<Spanned<String>>,
    mtu: Option<Spanned<u16>>,
    outer_dscp: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPeer {
    public_key: Spanned<String>,
    preshared_key_file: Option<PathBuf>,
    allowed_ips: Spanned<Vec<Spanned<String>>>,
}

impl Config {
    /// Reads a gateway's configuration; `name` is the file's name in messages. All errors are reported at once.
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigError> {
        let mut findings = Findings(Vec::new());
        let config = toml::from_str(text)
            .map_err(|error| findings.syntax(&error))
            .ok()
            .map(|file| findings.check(file));
        match config {
            Some(config) if findings.0.is_empty() => Ok(config),
            _ => Err(ConfigError {
                source_code: NamedSource::new(name, text.to_owned()),
                findings: findings.0,
            }),
        }
    }
}

struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, place: std::ops::Range<usize>, message: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Finding { message: message.into(), remedy: remedy.into(), place: Some(place.into()) });
    }

    fn syntax(&mut self, error: &toml::de::Error) {
        self.0.push(Finding {
            message: error.message().to_owned(),
            remedy: "a gateway has [interface] with private_key_file, address and listen_port (listen_address, name, mtu and outer_dscp if need be), \
                     and [[peers]] with public_key and allowed_ips (preshared_key_file if there is one)"
                .to_owned(),
            place: error.span().map(SourceSpan::from),
        });
    }

    fn check(&mut self, file: File) -> Config {
        let File { interface, peers } = file;
        let addresses = self.nets(&interface.address, "address");
        if *interface.listen_port.get_ref() == 0 {
            self.add(
                interface.listen_port.span(),
                "listen_port is 0",
                "give the port that clients have in their endpoint",
            );
        }
        if let Some(name) = interface.name.as_ref().filter(|name| !is_name(name.get_ref())) {
            let remedy = format!(
                "1 to {MAX_NAME} letters, digits, `-`, `_` or `.`; leave it out for the first free tunN"
            );
            self.add(
                name.span(),
                format!("`{}` is no interface name", name.get_ref().escape_debug()),
                remedy,
            );
        }
        if let Some(mtu) = interface.mtu.as_ref().filter(|mtu| *mtu.get_ref() < MIN_MTU) {
            self.add(
                mtu.span(),
                format!("an MTU of {} is too small", mtu.get_ref()),
                format!("give {MIN_MTU} or more"),
            );
        }
        let outer_dscp = interface.outer_dscp.as_ref().map(|text| self.outer_dscp(text)).unwrap_or_default();
        if peers.get_ref().is_empty() {
            self.add(peers.span(), "there are no peers", "add a [[peers]] for each client");
        }
        let peers: Vec<_> = peers.into_inner().into_iter().filter_map(|peer| self.peer(peer)).collect();
        self.distinct(&peers);
        Config {
            private_key_file: interface.private_key_file,
            addresses,
            listen_address: interface.listen_address,
            listen_port: interface.listen_port.into_inner(),
            name: interface.name.map(Spanned::into_inner),
            mtu: interface.mtu.map_or(DEFAULT_MTU, Spanned::into_inner),
            outer_dscp,
            peers: peers.into_iter().map(|(peer, _)| peer).collect(),
        }
    }

    fn outer_dscp(&mut self, text: &Spanned<String>) -> OuterDscp {
        text.get_ref().parse().unwrap_or_else(|error: ParseOuterDscpError| {
            self.add(text.span(), error.to_string(), "leave it out for \"zero\"");
            OuterDscp::default()
        })
    }

    fn peer(&mut self, raw: RawPeer) -> Option<(Peer, std::ops::Range<usize>)> {
        let allowed_ips = self.nets(&raw.allowed_ips, "allowed_ips");
        let place = raw.public_key.span();
        match raw.public_key.get_ref().parse() {
            Ok(public_key) => {
                Some((Peer { public_key, preshared_key_file: raw.preshared_key_file, allowed_ips }, place))
            }
            Err(error) => {
                self.add(
                    place,
                    format!("public_key: {error}"),
                    "give the client's public key, as `breakout keygen` prints it",
                );
                None
            }
        }
    }

    fn distinct(&mut self, peers: &[(Peer, std::ops::Range<usize>)]) {
        for (at, (peer, place)) in peers.iter().enumerate() {
            for (earlier, _) in peers.iter().take(at) {
                if earlier.public_key == peer.public_key {
                    self.add(
                        place.clone(),
                        "two peers have this public key",
                        "give each client a key of its own",
                    );
                }
                if let Some(net) = peer.allowed_ips.iter().find(|net| earlier.allowed_ips.contains(net)) {
                    let message = format!("{net} is among an earlier peer's allowed_ips too");
                    self.add(
                        place.clone(),
                        message,
                        "an address belongs to one peer: take it from the other",
                    );
                }
            }
        }
    }

    fn nets(&mut self, list: &Spanned<Vec<Spanned<String>>>, key: &str) -> Vec<IpNet> {
        if list.get_ref().is_empty() {
            self.add(list.span(), format!("`{key}` is empty"), "list at least one, such as \"10.99.0.1/32\"");
        }
        let mut nets = Vec::with_capacity(list.get_ref().len());
        for text in list.get_ref() {
            match text.get_ref().parse() {
                Ok(net) => nets.push(net),
                Err(_) => {
                    let message =
                        format!("`{}` is no address with a prefix length", text.get_ref().escape_debug());
                    self.add(text.span(), message, "write it like \"10.99.0.1/32\"");
                }
            }
        }
        nets
    }
}

fn any_ipv4() -> IpAddr {
    Ipv4Addr::UNSPECIFIED.into()
}

fn is_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(is_plain) && name != "." && name != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

    fn text(interface: &str, peer: &str) -> String {
        format!(
            "[interface]\nprivate_key_file = \"gw.key\"\n{interface}\n[[peers]]\npublic_key = \"{KEY}\"\n{peer}\n"
        )
    }

    #[test]
    fn a_gateway_of_one_peer() {
        let text =
            text("address = [\"10.99.0.254/24\"]\nlisten_port = 51820", "allowed_ips = [\"10.99.0.1/32\"]");
        let config = Config::parse(&text, "gw.toml").unwrap();
        assert_eq!((config.listen_port, config.mtu, config.peers.len()), (51820, DEFAULT_MTU, 1));
        assert_eq!(config.outer_dscp, OuterDscp::ZERO);
        assert_eq!(config.peers[0].public_key.to_string(), KEY);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_remedy() {
        let good = "address = [\"10.99.0.254/24\"]\nlisten_port = 51820";
        let ips = "allowed_ips = [\"10.99.0.1/32\"]";
        let twice = format!("{ips}\n[[peers]]\npublic_key = \"{KEY}\"\n{ips}");
        for (text, found) in [
            (text("address = []\nlisten_port = 51820", ips), "`address` is empty"),
            (text("address = [\"10.99.0.300/24\"]\nlisten_port = 1", ips), "`10.99.0.300/24` is no address"),
            (text("address = [\"10.99.0.254/24\"]\nlisten_port = 0", ips), "listen_port is 0"),
            (text(&format!("{good}\nmtu = 1000"), ips), "an MTU of 1000 is too small"),
            (text(&format!("{good}\nouter_dscp = \"af9\""), ips), "`af9` is no outer DSCP"),
            (text(&format!("{good}\nname = \"a/b\""), ips), "`a/b` is no interface name"),
            (text(&format!("{good}\ndns = \"x\""), ips), "unknown field `dns`"),
            (text(good, "allowed_ips = []"), "`allowed_ips` is empty"),
            (text(good, &twice), "two peers have this public key"),
            (text(good, &twice), "10.99.0.1/32 is among an earlier"),
            (text(good, ips).replace(KEY, "short"), "public_key: a key is 44 characters"),
            ("[interface".to_owned(), ""),
            (String::new(), "missing field"),
        ] {
            let error = Config::parse(&text, "gw.toml").unwrap_err();
            let messages: Vec<_> = error.findings.iter().map(|finding| finding.message.as_str()).collect();
            assert!(messages.iter().any(|message| message.contains(found)), "{found}: {messages:?}");
            assert!(error.findings.iter().all(|finding| !finding.remedy.is_empty()));
        }
    }
}
