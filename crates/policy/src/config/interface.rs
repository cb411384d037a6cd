use std::net::IpAddr;

use ipnet::IpNet;
use toml::Spanned;

use super::{
    Control, Interface,
    finding::{Findings, Span},
    section::Section,
};

/// The longest interface name: the kernel's IFNAMSIZ less the closing zero.
const MAX_NAME: usize = 15;
/// The link of the daemon's own that systemd-resolved is told of; no TUN can have this name.
pub const DNS_LINK: &str = "breakout-dns";
const MIN_MTU: u16 = 576;
/// RFC 8200 §5; below it the kernel takes an interface's IPv6 addresses and routes away.
const MIN_IPV6_MTU: u16 = 1280;

#[derive(Default)]
pub(super) struct ReadInterface {
    pub(super) interface: Interface,
    pub(super) span: Span,
    /// Of each address.
    pub(super) spans: Vec<Span>,
}

pub(super) fn read(root: &Section<'_>, findings: &mut Findings) -> ReadInterface {
    let Some(section) = root.section("interface", &["address", "name", "mtu"], findings) else {
        if !root.has("interface") {
            findings.error(
                None,
                "[interface] is missing",
                "add `[interface]` with `address = [\"10.99.0.1/32\"]`",
            );
        }
        return ReadInterface::default();
    };
    if !section.has("address") {
        section.missing("address", "address = [\"10.99.0.1/32\"]", findings);
    }
    let texts = section.strings("address", findings).unwrap_or_default();
    let mut addresses: Vec<(IpNet, Span)> = Vec::with_capacity(texts.len());
    for text in &texts {
        let Some(address) = read_address(text, findings) else { continue };
        if addresses.iter().any(|(other, _)| other.addr() == address.addr()) {
            findings.warn(
                text.span(),
                format!("{} is listed twice", address.addr()),
                "leave one of them out",
            );
            continue;
        }
        addresses.push((address, text.span()));
    }
    let (address, spans) = addresses.into_iter().unzip();
    let name = section.string("name", findings).filter(|name| is_name(name, findings));
    let mtu = section.integer("mtu", MIN_MTU, findings);
    if let Some(mtu) = mtu.as_ref().filter(|mtu| *mtu.get_ref() < MIN_IPV6_MTU) {
        let message = format!("an MTU of {} is too small for the interface", mtu.get_ref());
        let help = format!(
            "the interface keeps {MIN_IPV6_MTU}, less takes its IPv6 addresses and routes away; give {MIN_IPV6_MTU} or more"
        );
        findings.warn(mtu.span(), message, help);
    }
    ReadInterface {
        interface: Interface {
            address,
            name: name.map(|name| name.into_inner().to_owned()),
            mtu: mtu.map(Spanned::into_inner),
        },
        span: section.span,
        spans,
    }
}

pub(super) fn read_control(root: &Section<'_>, findings: &mut Findings) -> Control {
    let Some(section) = root.section("control", &["group"], findings) else { return Control::default() };
    let group = section.string("group", findings).filter(|group| {
        let is_valid = !group.get_ref().is_empty()
            && !group.get_ref().contains(|c: char| c.is_whitespace() || c == ':' || c.is_control());
        if !is_valid {
            let message = format!("`{}` is no group name", group.get_ref().escape_debug());
            findings.error(
                group.span(),
                message,
                "give the name of a group of this machine, or leave `group` out for root only",
            );
        }
        is_valid
    });
    Control { group: group.map(|group| group.into_inner().to_owned()) }
}

fn read_address(text: &Spanned<&str>, findings: &mut Findings) -> Option<IpNet> {
    let written = *text.get_ref();
    let address = written.parse().or_else(|_| written.parse::<IpAddr>().map(IpNet::from));
    let Ok(address) = address else {
        let message = format!("`{}` is no address", written.escape_debug());
        findings.error(text.span(), message, "write it like \"10.99.0.1/32\" or \"fd00::1/128\"");
        return None;
    };
    let ip: IpAddr = address.addr();
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
        let message = format!("{ip} cannot be an interface's address");
        findings.error(
            text.span(),
            message,
            "give the address that the gateway's administrator assigned to this machine",
        );
        return None;
    }
    Some(address)
}

fn is_name(name: &Spanned<&str>, findings: &mut Findings) -> bool {
    let text = *name.get_ref();
    let problem = if text.is_empty() || text == "." || text == ".." {
        format!("`{text}` is no interface name")
    } else if text.len() > MAX_NAME {
        format!("the interface name `{}` has {} bytes", text.escape_debug(), text.len())
    } else if text.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%')) {
        format!("the interface name `{}` has a character that the kernel refuses", text.escape_debug())
    } else if text == DNS_LINK {
        findings.error(
            name.span(),
            format!("the interface name `{DNS_LINK}` is that of the link by which names are resolved"),
            "give another name, or leave `name` out for the first free tunN",
        );
        return false;
    } else {
        return true;
    };
    let help = format!(
        "use 1 to {MAX_NAME} letters, digits, `-`, `_` or `.`; or leave `name` out for the first free tunN"
    );
    findings.error(name.span(), problem, help);
    false
}
