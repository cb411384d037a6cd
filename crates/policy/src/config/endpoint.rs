//! Where a gateway is: an address or a host name, and a port.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use toml::Spanned;

use super::{Endpoint, finding::Findings};
use crate::domain::normal;

const EXAMPLE: &str =
    "write it like \"198.18.0.2:51820\", \"[2001:db8::2]:51820\" or \"vpn.example.com:51820\"";

pub(super) fn read(text: &Spanned<&str>, findings: &mut Findings) -> Option<Endpoint> {
    match parse(text.get_ref()) {
        Ok(endpoint) => Some(endpoint),
        Err(problem) => {
            findings.error(text.span(), problem, EXAMPLE);
            None
        }
    }
}

impl Endpoint {
    /// Lowercase, without the last dot; `None` for an address.
    pub fn host(&self) -> Option<String> {
        match self {
            Self::Address(_) => None,
            Self::Name { host, .. } => Some(normal(host)),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

fn parse(text: &str) -> Result<Endpoint, String> {
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
