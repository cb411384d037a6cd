use std::net::SocketAddr;

use ipnet::IpNet;
use toml::Value;

use super::WgQuick;

/// Nobody's addresses.
const PLACEHOLDER: &str = "203.0.113.0/24";

/// A configuration's text, and what a person should know about it.
pub struct Converted {
    pub toml: String,
    pub notes: Vec<String>,
}

/// Renders a configuration whose key files are `stem.key` and, where there is one, `stem.psk`.
pub fn convert(file: &WgQuick, stem: &str) -> Converted {
    let mut notes = file.notes.clone();
    let signaling = signaling(file, &mut notes);
    let addresses: Vec<String> = file.addresses.iter().map(IpNet::to_string).collect();

    let mut toml = format!("[interface]\naddress = {}\n", list(&addresses));
    if let Some(mtu) = file.mtu {
        toml += &format!("mtu = {mtu}\n");
    }
    toml += &format!(
        "\n[tunnel]\nprivate_key_file = {}\npeer_public_key = {}\n",
        quoted(&format!("{stem}.key")),
        quoted(&file.public_key)
    );
    if file.preshared_key.is_some() {
        toml += &format!("preshared_key_file = {}\n", quoted(&format!("{stem}.psk")));
    }
    toml += &format!("endpoint = {}\n", quoted(&file.endpoint));
    if let Some(keepalive) = file.keepalive {
        toml += &format!("keepalive = {keepalive}\n");
    }
    if signaling.is_empty() {
        toml += "\n# Put the signaling's addresses here; this documentation range (RFC 5737) only holds the place.";
        notes.push(format!("{PLACEHOLDER} holds the place of the signaling's addresses: put them under [sets.genesys-signaling]"));
    } else {
        notes.push(
            "AllowedIPs became the set genesys-signaling: of it, only the ports of the rules go through the tunnel, the rest is refused".to_owned(),
        );
    }
    let cidrs: Vec<String> = match signaling.as_slice() {
        [] => vec![PLACEHOLDER.to_owned()],
        nets => nets.iter().map(IpNet::to_string).collect(),
    };
    toml += &format!("\n[sets.genesys-signaling]\ncidrs = {}\n", list(&cidrs));
    Converted { toml, notes }
}

/// What of AllowedIPs may be the signaling set.
fn signaling(file: &WgQuick, notes: &mut Vec<String>) -> Vec<IpNet> {
    let gateway = file.endpoint.parse::<SocketAddr>().ok().map(|endpoint| endpoint.ip());
    let mut kept = Vec::new();
    for net in &file.allowed_ips {
        if net.prefix_len() == 0 {
            notes.push(format!(
                "AllowedIPs {net} means all traffic, and Breakout tunnels signaling only: it was left out"
            ));
        } else if gateway.is_some_and(|gateway| net.contains(&gateway)) {
            notes.push(format!("AllowedIPs {net} holds the gateway's own endpoint and was left out: the tunnel cannot run inside itself"));
        } else if file.addresses.iter().any(|own| net.contains(&own.addr())) {
            notes.push(format!(
                "AllowedIPs {net} holds this machine's own address and was left out: list the signaling's addresses in it one by one"
            ));
        } else {
            kept.push(net.trunc());
        }
    }
    IpNet::aggregate(&kept)
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn list(texts: &[String]) -> String {
    let quoted: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
    format!("[{}]", quoted.join(", "))
}
