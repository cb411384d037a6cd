use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use toml::Spanned;

use super::{
    Endpoint, PublicKey, Tunnel,
    dns::{self, Server},
    finding::{Findings, Span},
    interface::ReadInterface,
    section::Section,
};

pub(super) struct ReadTunnel {
    pub(super) tunnel: Tunnel,
    pub(super) endpoint_span: Span,
    /// `None` where `dns` was left out.
    pub(super) dns: Option<Vec<Server>>,
}

impl ReadTunnel {
    /// The DNS servers that can be reached through it.
    pub(super) fn servers(&self, interface: &ReadInterface, findings: &mut Findings) -> Vec<Server> {
        let servers = self.dns.iter().flatten();
        servers
            .filter(|server| dns::is_reachable(server, interface, &self.tunnel.endpoint, findings))
            .cloned()
            .collect()
    }
}

const KEYS: [&str; 6] =
    ["private_key_file", "peer_public_key", "preshared_key_file", "endpoint", "keepalive", "dns"];
const ENDPOINT_EXAMPLE: &str =
    "write it like \"198.18.0.2:51820\", \"[2001:db8::2]:51820\" or \"vpn.example.com:51820\"";

pub(super) fn read(root: &Section<'_>, findings: &mut Findings) -> Option<ReadTunnel> {
    let Some(section) = root.section("tunnel", &KEYS, findings) else {
        if !root.has("tunnel") {
            let help = "add `[tunnel]` with `private_key_file`, `peer_public_key` and `endpoint`";
            findings.error(None, "[tunnel] is missing", help);
        }
        return None;
    };
    let private_key_file =
        section.required_string("private_key_file", "private_key_file = \"agent.key\"", findings);
    let peer_public_key =
        section.required_string("peer_public_key", "peer_public_key = \"…the gateway's…\"", findings);
    let endpoint = section.required_string("endpoint", "endpoint = \"198.18.0.2:51820\"", findings);
    let preshared_key_file = section.string("preshared_key_file", findings);
    let keepalive = section.integer("keepalive", 0, findings).map(Spanned::into_inner);
    let dns = dns::read(&section, findings);

    let private_key_file = private_key_file.and_then(|file| file_name("private_key_file", &file, findings));
    let preshared_key_file =
        preshared_key_file.and_then(|file| file_name("preshared_key_file", &file, findings));
    let peer_public_key = peer_public_key.and_then(|key| public_key(&key, findings));
    let endpoint = endpoint.and_then(|text| Some((endpoint_of(&text, findings)?, text.span())));

    let (endpoint, endpoint_span) = endpoint?;
    let tunnel = Tunnel {
        private_key_file: private_key_file?,
        peer_public_key: peer_public_key?,
        preshared_key_file,
        endpoint,
        keepalive: keepalive.filter(|seconds| *seconds > 0),
        dns: dns.iter().flatten().map(|(server, _)| *server).collect(),
    };
    Some(ReadTunnel { tunnel, endpoint_span, dns })
}

fn file_name(key: &str, file: &Spanned<&str>, findings: &mut Findings) -> Option<PathBuf> {
    if file.get_ref().is_empty() || file.get_ref().contains('\0') {
        let help = "name a file, relative to this one or absolute; `breakout keygen FILE` makes a key";
        findings.error(file.span(), format!("`{key}` names no file"), help);
        return None;
    }
    Some(PathBuf::from(file.get_ref()))
}

fn public_key(text: &Spanned<&str>, findings: &mut Findings) -> Option<PublicKey> {
    let problem = match BASE64_STANDARD.decode(text.get_ref()) {
        Err(error) => format!("the key is not base64: {error}"),
        Ok(bytes) => match <[u8; 32]>::try_from(bytes.as_slice()) {
            Ok([0, rest @ ..]) if rest == [0; 31] => "the key is all zeros".to_owned(),
            Ok(key) => return Some(PublicKey(key)),
            Err(_) => format!("the key has {} bytes", bytes.len()),
        },
    };
    let help = "a public key is 32 bytes, written as 44 characters of base64; ask the gateway's administrator, or run `wg show` there";
    findings.error(text.span(), problem, help);
    None
}

fn endpoint_of(text: &Spanned<&str>, findings: &mut Findings) -> Option<Endpoint> {
    match parse_endpoint(text.get_ref()) {
        Ok(endpoint) => Some(endpoint),
        Err(problem) => {
            findings.error(text.span(), problem, ENDPOINT_EXAMPLE);
            None
        }
    }
}

fn parse_endpoint(text: &str) -> Result<Endpoint, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return check_address(address);
    }
    let shown = text.escape_debug();
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(format!("the endpoint `{shown}` has no port, or its address no brackets"));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(format!("the endpoint `{shown}` has no port"));
    };
    let port = match port.parse::<u16>() {
        Ok(port) if port > 0 && host.len() < text.len() => port,
        _ => return Err(format!("`{}` is no port", port.escape_debug())),
    };
    if !is_host_name(host) {
        return Err(format!("`{}` is neither an address nor a host name", host.escape_debug()));
    }
    Ok(Endpoint::Name { host: host.to_owned(), port })
}

fn check_address(address: SocketAddr) -> Result<Endpoint, String> {
    let ip: IpAddr = address.ip();
    if address.port() == 0 {
        return Err("the endpoint's port is 0".to_owned());
    }
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(format!("{ip} is no gateway's address"));
    }
    Ok(Endpoint::Address(address))
}

/// RFC 1123 §2.1: labels of 1–63 letters, digits and hyphens, 253 in all; a last label of digits alone would be an address.
pub(super) fn is_host_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_number = |label: &str| label.bytes().all(|c| c.is_ascii_digit());
    host.len() <= 253 && host.split('.').all(is_label) && !host.rsplit('.').next().is_some_and(is_number)
}
