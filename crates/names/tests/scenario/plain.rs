//! A DNS message read by hand: the reference that the resolver's own reading and writing is held against.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{A, AAAA, CNAME, HTTPS, MX, NAPTR, SRV, SVCB};

pub struct Reading {
    pub code: u8,
    /// Lowercase.
    pub question: Option<String>,
    /// Of the answer section.
    pub records: Vec<Record>,
    /// In these, hints included.
    pub addresses: Vec<IpAddr>,
}

pub struct Record {
    /// Lowercase.
    pub name: String,
    pub kind: u16,
    pub ttl: u32,
    pub lead: Lead,
}

/// Where a record leads who follows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lead {
    /// Lowercase; empty: there is none, or it is the root.
    pub target: String,
    pub port: Option<u16>,
    /// By a regular expression.
    pub makes_uri: bool,
    pub by_quic: bool,
}

pub fn read(message: &[u8]) -> Option<Reading> {
    let counts = [number(message, 4)?, number(message, 6)?];
    let mut reading =
        Reading { code: message.get(3)? & 15, question: None, records: Vec::new(), addresses: Vec::new() };
    let mut at = 12;
    for _ in 0..counts[0] {
        let (name, end) = name(message, at)?;
        reading.question = Some(name);
        at = end + 4;
    }
    for _ in 0..counts[1] {
        let (name, end) = name(message, at)?;
        let kind = number(message, end)?;
        let ttl = u32::from(number(message, end + 4)?) << 16 | u32::from(number(message, end + 6)?);
        let length = usize::from(number(message, end + 8)?);
        let data = message.get(end + 10..end + 10 + length)?;
        reading.addresses.extend(addresses(kind, data)?);
        reading.records.push(Record { name, kind, ttl, lead: lead(message, kind, end + 10, length)? });
        at = end + 10 + length;
    }
    Some(reading)
}

/// As text in lowercase, and where it ends.
fn name(message: &[u8], start: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let (mut at, mut end) = (start, None);
    for _ in 0..128 {
        let length = usize::from(*message.get(at)?);
        if length >= 0xc0 {
            end.get_or_insert(at + 2);
            at = usize::from(number(message, at)? & 0x3fff);
        } else if length == 0 {
            return Some((labels.join("."), end.unwrap_or(at + 1)));
        } else {
            labels.push(String::from_utf8_lossy(message.get(at + 1..at + 1 + length)?).to_lowercase());
            at += 1 + length;
        }
    }
    None
}

fn addresses(kind: u16, data: &[u8]) -> Option<Vec<IpAddr>> {
    match kind {
        A => Some(vec![v4(data)?]),
        AAAA => Some(vec![v6(data)?]),
        HTTPS | SVCB => hints(data),
        _ => Some(Vec::new()),
    }
}

/// Of the record whose data is `length` bytes at `at`.
fn lead(message: &[u8], kind: u16, at: usize, length: usize) -> Option<Lead> {
    let target = |at| Some(name(message, at)?.0);
    Some(match kind {
        CNAME => Lead { target: target(at)?, ..Lead::default() },
        MX => Lead { target: target(at + 2)?, ..Lead::default() },
        SRV => Lead { target: target(at + 6)?, port: Some(number(message, at + 4)?), ..Lead::default() },
        NAPTR => {
            let after = |at: usize| Some(at + 1 + usize::from(*message.get(at)?));
            let expression = after(after(at + 4)?)?;
            let makes_uri = *message.get(expression)? > 0;
            Lead { target: target(after(expression)?)?, makes_uri, ..Lead::default() }
        }
        HTTPS | SVCB => {
            let (target, params) = name(message, at + 2)?;
            service(target, message.get(params..at + length)?)?
        }
        _ => Lead::default(),
    })
}

fn service(target: String, mut params: &[u8]) -> Option<Lead> {
    let mut lead = Lead { target, ..Lead::default() };
    while !params.is_empty() {
        let length = usize::from(number(params, 2)?);
        let value = params.get(4..4 + length)?;
        match number(params, 0)? {
            1 => lead.by_quic = value.windows(3).any(|id| id == b"\x02h3"),
            3 => lead.port = Some(number(value, 0)?),
            _ => {}
        }
        params = params.get(4 + length..)?;
    }
    Some(lead)
}

fn hints(data: &[u8]) -> Option<Vec<IpAddr>> {
    let (_, mut at) = name(data, 2)?;
    let mut found = Vec::new();
    while at < data.len() {
        let length = usize::from(number(data, at + 2)?);
        let value = data.get(at + 4..at + 4 + length)?;
        match number(data, at)? {
            4 => found.extend(value.chunks(4).map(v4).collect::<Option<Vec<_>>>()?),
            6 => found.extend(value.chunks(16).map(v6).collect::<Option<Vec<_>>>()?),
            _ => {}
        }
        at += 4 + length;
    }
    Some(found)
}

fn v4(bytes: &[u8]) -> Option<IpAddr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into())
}

fn v6(bytes: &[u8]) -> Option<IpAddr> {
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into())
}

fn number(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]))
}

pub fn encoded(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// By the prefixes that no public address is in.
pub fn is_public(address: IpAddr) -> bool {
    const V4: [(u32, u32); 10] = [
        (0x0000_0000, 8),
        (0x0a00_0000, 8),
        (0x6440_0000, 10),
        (0x7f00_0000, 8),
        (0xa9fe_0000, 16),
        (0xac10_0000, 12),
        (0xc0a8_0000, 16),
        (0xe000_0000, 4),
        (0xf000_0000, 4),
        (0xffff_ffff, 32),
    ];
    const V6: [(u128, u32); 7] = [
        (0, 96),
        (0xffff << 32, 96),
        (0x0064_ff9b_0001 << 80, 48),
        (0xfc00 << 112, 7),
        (0xfe80 << 112, 10),
        (0xfec0 << 112, 10),
        (0xff00 << 112, 8),
    ];
    const NAT64: u128 = 0x0064_ff9b << 96;
    match address {
        IpAddr::V4(address) => {
            let bits = u32::from(address);
            V4.iter().all(|(prefix, length)| (bits ^ prefix) >> (32 - length) != 0)
        }
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            let is_nat64 = (bits ^ NAT64) >> 32 == 0;
            V6.iter().all(|(prefix, length)| (bits ^ prefix) >> (128 - length) != 0)
                && (!is_nat64 || is_public(Ipv4Addr::from(bits as u32).into()))
        }
    }
}
