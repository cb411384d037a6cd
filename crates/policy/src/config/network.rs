//! `[network]`: what is done about the networks that the machine comes into.

use std::net::{IpAddr, SocketAddr};

use super::{Endpoint, Network, PortalCheck, endpoint::is_host_name, finding::Findings, section::Section};

/// What GNOME's machines ask.
const DEFAULT: &str = "http://nmcheck.gnome.org/check_network_status.txt";
const PORT: u16 = 80;
/// Bytes.
const MAX_URL: usize = 255;

pub(super) fn read(root: &Section<'_>, findings: &mut Findings) -> Network {
    let section = root.section("network", &["portal_check"], findings);
    let Some(text) = section.and_then(|section| section.string("portal_check", findings)) else {
        return Network::default();
    };
    if text.get_ref().is_empty() {
        return Network { portal_check: None };
    }
    let portal_check = parse(text.get_ref());
    if let Err(problem) = &portal_check {
        let help = "write it like \"http://portal.example.com/check\"; it has to answer plainly, with status 204 or a line that it \
                    is known by (docs/networks.md); \"\" asks nobody";
        findings.error(text.span(), *problem, help);
    }
    Network { portal_check: portal_check.ok() }
}

impl Default for Network {
    fn default() -> Self {
        Self { portal_check: parse(DEFAULT).ok() }
    }
}

fn parse(url: &str) -> Result<PortalCheck, &'static str> {
    if url.len() > MAX_URL || !url.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("it is no web address");
    }
    let rest = url
        .strip_prefix("http://")
        .ok_or("it does not begin with http://: a portal cannot answer for HTTPS")?;
    let (host, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    if path.contains('#') {
        return Err("a web server is not told what follows `#`");
    }
    let endpoint = endpoint(host).ok_or("it names no host")?;
    Ok(PortalCheck { url: url.to_owned(), endpoint, host: host.to_owned(), path: path.to_owned() })
}

fn endpoint(host: &str) -> Option<Endpoint> {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return (address.port() > 0).then_some(Endpoint::Address(address));
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        // IPv6 has brackets, and nothing else has.
        return (address.is_ipv6() == (bare.len() < host.len()))
            .then_some(Endpoint::Address((address, PORT).into()));
    }
    let (host, port) = match host.split_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port > 0)?),
        None => (host, PORT),
    };
    is_host_name(host).then(|| Endpoint::Name { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_for_the_check_is_plain_http() {
        let name = |host: &str, port| Endpoint::Name { host: host.to_owned(), port };
        let address = |text: &str| Endpoint::Address(text.parse().unwrap());
        for (url, endpoint, host, path) in [
            (DEFAULT, name("nmcheck.gnome.org", 80), "nmcheck.gnome.org", "/check_network_status.txt"),
            ("http://a.example", name("a.example", 80), "a.example", "/"),
            ("http://a.example:8080/x?y=/z", name("a.example", 8080), "a.example:8080", "/x?y=/z"),
            ("http://192.0.2.80/x", address("192.0.2.80:80"), "192.0.2.80", "/x"),
            ("http://192.0.2.80:81", address("192.0.2.80:81"), "192.0.2.80:81", "/"),
            ("http://[2001:db8::1]/", address("[2001:db8::1]:80"), "[2001:db8::1]", "/"),
            ("http://[2001:db8::1]:81/", address("[2001:db8::1]:81"), "[2001:db8::1]:81", "/"),
        ] {
            let check = parse(url).unwrap();
            assert_eq!(
                (check.endpoint, check.host.as_str(), check.path.as_str()),
                (endpoint, host, path),
                "{url}"
            );
            assert_eq!(check.url, url);
        }
        for url in [
            "https://a.example/",
            "a.example",
            "http://",
            "http:///x",
            "http://user@a.example/",
            "http://a.example:0/",
            "http://a.example:http/",
            "http://2001:db8::1/",
            "http://[192.0.2.80]/",
            "http://192.0.2.80:0/",
            "http://a.example/#x",
            "http://a.example/a b",
            "http://a.example/\r\nX: y",
            "http://ä.example/",
            "http://1.2.3/",
        ] {
            assert!(parse(url).is_err(), "{url}");
        }
    }
}
