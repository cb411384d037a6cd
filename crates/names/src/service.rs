//! SRV (RFC 2782), HTTPS and SVCB records (RFC 9460): what is left for a client that is to stay within the policy's names, and
//! within the ports that are led into the TUN there.

use std::net::IpAddr;

use hickory_proto::rr::rdata::svcb::{Mandatory, SVCB, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{HTTPS, SRV};
use hickory_proto::rr::{Name, RData};

use crate::answer::Wanted;
use crate::name;
use crate::policy::Transport;

/// What HTTP/3 goes to where the record names no port.
const HTTPS_PORT: u16 = 443;

pub struct Cleaned {
    pub data: RData,
    pub addresses: Vec<IpAddr>,
    pub blocked: usize,
}

/// Whether a client that follows the record stays within the policy. "." says that there is no such service.
pub fn is_taken(record: &SRV, wanted: &Wanted) -> bool {
    let target = name::text(&record.target);
    record.target.is_root()
        || transport(wanted.name).is_some_and(|by| wanted.policy.takes(&target, by, record.port))
}

/// `owner` is the name that the record was found at, at most `room` hints are kept. `None`: the record is to be left out.
pub fn clean(data: &RData, owner: &Name, wanted: &Wanted, room: usize) -> Option<Cleaned> {
    let (RData::HTTPS(HTTPS(service)) | RData::SVCB(service)) = data else { return None };
    let target = target(service, owner, wanted)?;
    if !are_taken(service, &target, wanted) {
        return None;
    }

    let mut hints = Hints { wanted, room, addresses: Vec::new(), blocked: 0 };
    let mut params = Vec::with_capacity(service.svc_params.len());
    let mut removed = Vec::new();
    for (key, value) in &service.svc_params {
        match hints.clean(value) {
            Some(value) => params.push((*key, value)),
            None => removed.push(*key),
        }
    }
    // A client must not use a record without what it calls mandatory (§8).
    if mandatory(&params).iter().any(|key| removed.contains(key)) {
        return None;
    }

    let service = SVCB::new(service.svc_priority, target, params);
    let data =
        if matches!(data, RData::HTTPS(_)) { RData::HTTPS(HTTPS(service)) } else { RData::SVCB(service) };
    Some(Cleaned { data, addresses: hints.addresses, blocked: hints.blocked })
}

/// Where the client looks for addresses next. "." is the name asked, as the record is given for that one (§2.5.2); a name
/// outside of the policy's would be asked for in the clear.
fn target(service: &SVCB, owner: &Name, wanted: &Wanted) -> Option<Name> {
    let target = &service.target_name;
    if target.is_root() || target == owner {
        return Some(Name::root());
    }
    wanted.policy.has(&name::text(target)).then(|| target.clone())
}

/// Whether the ports that the record names are. With a hint a client goes to them before it has asked for the target.
fn are_taken(service: &SVCB, target: &Name, wanted: &Wanted) -> bool {
    let names = [wanted.name, target].into_iter().filter(|name| !name.is_root()).map(name::text);
    let names: Vec<String> = names.collect();
    let takes = |by, port| names.iter().all(|name| wanted.policy.takes(name, by, port));
    let port = service.svc_params.iter().find_map(|(_, value)| match value {
        SvcParamValue::Port(port) => Some(*port),
        _ => None,
    });
    port.is_none_or(|port| takes(Transport::Tcp, port))
        && (!offers_quic(service) || takes(Transport::Udp, port.unwrap_or(HTTPS_PORT)))
}

/// HTTP/3, or DNS over QUIC.
fn offers_quic(service: &SVCB) -> bool {
    service.svc_params.iter().any(|(_, value)| match value {
        SvcParamValue::Alpn(alpn) => alpn.0.iter().any(|id| id.starts_with("h3") || id.starts_with("doq")),
        _ => false,
    })
}

/// By the second label, as in `_sips._tcp.example.com`; `None` for those that no rule can name a port of.
fn transport(name: &Name) -> Option<Transport> {
    let label = name.iter().nth(1)?.to_ascii_lowercase();
    match label.as_slice() {
        b"_tcp" | b"_tls" => Some(Transport::Tcp),
        b"_udp" => Some(Transport::Udp),
        _ => None,
    }
}

fn mandatory(params: &[(SvcParamKey, SvcParamValue)]) -> &[SvcParamKey] {
    params
        .iter()
        .find_map(|(_, value)| match value {
            SvcParamValue::Mandatory(Mandatory(keys)) => Some(keys.as_slice()),
            _ => None,
        })
        .unwrap_or_default()
}

struct Hints<'a> {
    wanted: &'a Wanted<'a>,
    room: usize,
    addresses: Vec<IpAddr>,
    blocked: usize,
}

impl Hints<'_> {
    /// `None` for a hint that holds nothing any more.
    fn clean(&mut self, value: &SvcParamValue) -> Option<SvcParamValue> {
        match value.clone() {
            SvcParamValue::Ipv4Hint(mut hint) => {
                hint.0.retain(|address| self.take(address.0.into()));
                (!hint.0.is_empty()).then_some(SvcParamValue::Ipv4Hint(hint))
            }
            SvcParamValue::Ipv6Hint(mut hint) => {
                hint.0.retain(|address| self.take(address.0.into()));
                (!hint.0.is_empty()).then_some(SvcParamValue::Ipv6Hint(hint))
            }
            value => Some(value),
        }
    }

    fn take(&mut self, address: IpAddr) -> bool {
        if !self.wanted.may_have(address) {
            self.blocked += 1;
            return false;
        }
        let is_taken = self.addresses.len() < self.room && (self.wanted.ipv6 || address.is_ipv4());
        if is_taken {
            self.addresses.push(address);
        }
        is_taken
    }
}
