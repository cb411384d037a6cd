use std::net::IpAddr;

use ipnet::IpNet;
use zeroize::Zeroizing;

use crate::failure::{Failure, Problem};

/// What a wg-quick file says that a configuration can hold, and what it cannot.
#[derive(Default)]
pub struct WgQuick {
    pub private_key: Zeroizing<String>,
    pub addresses: Vec<IpNet>,
    pub mtu: Option<u16>,
    pub public_key: String,
    pub preshared_key: Option<Zeroizing<String>>,
    pub endpoint: String,
    pub allowed_ips: Vec<IpNet>,
    /// Seconds.
    pub keepalive: Option<u16>,
    /// What cannot be carried over, a sentence each.
    pub notes: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    None,
    Interface,
    Peer,
    /// Every peer after the first.
    FurtherPeer,
}

/// Reads wg-quick's format (`wg-quick(8)`, `wg(8)`). Nothing in it is ever executed.
pub fn read(text: &str, name: &str) -> Result<WgQuick, Failure> {
    let mut file = WgQuick::default();
    let mut section = Section::None;
    let mut further_peers = 0;
    for (line, number) in text.lines().zip(1..) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        if let Some(title) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = match (title.to_ascii_lowercase().as_str(), section) {
                ("interface", _) => Section::Interface,
                ("peer", Section::Peer | Section::FurtherPeer) => Section::FurtherPeer,
                ("peer", _) => Section::Peer,
                _ => {
                    return Err(at(name, number, format!("unknown section [{title}]")).remedy(FORMAT).into());
                }
            };
            further_peers += usize::from(section == Section::FurtherPeer);
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            return Err(at(name, number, "neither a section nor `key = value`").remedy(FORMAT).into());
        };
        let key = key.trim().to_ascii_lowercase();
        let value = value.trim();
        let taken = match section {
            Section::Interface => file.take_interface(&key, value),
            Section::Peer => file.take_peer(&key, value),
            Section::FurtherPeer => Ok(()),
            Section::None => Err(format!("`{key}` stands before any section")),
        };
        taken.map_err(|found| at(name, number, found).remedy(FORMAT))?;
    }
    if further_peers > 0 {
        file.notes.push(format!(
            "{further_peers} further [Peer] sections: the first peer was taken; others that lead to the same networks can be added as [[gateways]]"
        ));
    }
    file.complete(name)
}

const FORMAT: &str = "wg-quick(8) and wg(8) say what such a file holds";

impl WgQuick {
    fn take_interface(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "privatekey" => self.private_key = Zeroizing::new(value.to_owned()),
            "address" => self.addresses.extend(nets(value)?),
            "mtu" => self.mtu = Some(number(value)?),
            "dns" => self.note(format!(
                "DNS = {value}: names are resolved as before; for those in a set's `domains`, give the servers to `dns` under [tunnel]"
            )),
            "listenport" => self.note(format!("ListenPort = {value}: the system chooses the port")),
            "table" | "fwmark" => {
                self.note(format!("{} = {value}: Breakout has its own routing table and mark", spelt(key)))
            }
            "preup" | "postup" | "predown" | "postdown" => {
                self.note(format!(
                    "{} = {value}: Breakout runs no commands, and this one was not run",
                    spelt(key)
                ));
            }
            "saveconfig" => self.note("SaveConfig: Breakout never writes to its configuration".to_owned()),
            _ => return Err(format!("unknown key `{key}` in [Interface]")),
        }
        Ok(())
    }

    fn take_peer(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "publickey" => self.public_key = value.to_owned(),
            "presharedkey" => self.preshared_key = Some(Zeroizing::new(value.to_owned())),
            "endpoint" => self.endpoint = value.to_owned(),
            "allowedips" => self.allowed_ips.extend(nets(value)?),
            "persistentkeepalive" if value.eq_ignore_ascii_case("off") => self.keepalive = None,
            "persistentkeepalive" => self.keepalive = Some(number(value)?).filter(|seconds| *seconds > 0),
            _ => return Err(format!("unknown key `{key}` in [Peer]")),
        }
        Ok(())
    }

    fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    fn complete(self, name: &str) -> Result<Self, Failure> {
        let missing = if self.private_key.is_empty() {
            Some((
                "PrivateKey in [Interface]",
                "put the key into the file; where PostUp sets it, put it there yourself",
            ))
        } else if self.addresses.is_empty() {
            Some(("Address in [Interface]", "add the address that the gateway's administrator assigned"))
        } else if self.public_key.is_empty() {
            Some(("PublicKey in [Peer]", "add the gateway's public key"))
        } else if self.endpoint.is_empty() {
            Some((
                "Endpoint in [Peer]",
                "add the gateway's address and port; a file without one is a gateway's own",
            ))
        } else {
            None
        };
        match missing {
            Some((what, remedy)) => {
                Err(Failure::usage(format!("{name} has no {what}")).remedy(remedy).into())
            }
            None => Ok(self),
        }
    }
}

fn at(name: &str, line: usize, found: impl std::fmt::Display) -> Problem {
    Failure::usage(format!("{name}:{line}: {found}"))
}

fn nets(list: &str) -> Result<Vec<IpNet>, String> {
    let parts = list.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let net = part.parse().or_else(|_| part.parse::<IpAddr>().map(IpNet::from));
            net.map_err(|_| format!("`{part}` is neither an address nor a network"))
        })
        .collect()
}

fn number(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| format!("`{text}` is no number up to 65535"))
}

fn spelt(key: &str) -> &'static str {
    match key {
        "table" => "Table",
        "fwmark" => "FwMark",
        "preup" => "PreUp",
        "postup" => "PostUp",
        "predown" => "PreDown",
        _ => "PostDown",
    }
}
