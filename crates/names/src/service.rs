//! HTTPS and SVCB records (RFC 9460): what is left of one for a client that is to stay within the policy's names.

use std::net::IpAddr;

use hickory_proto::rr::rdata::HTTPS;
use hickory_proto::rr::rdata::svcb::{Mandatory, SVCB, SvcParamKey, SvcParamValue};
use hickory_proto::rr::{Name, RData};

use crate::address::is_public;
use crate::answer::Wanted;
use crate::name;

pub struct Cleaned {
    pub data: RData,
    pub addresses: Vec<IpAddr>,
    pub blocked: usize,
}

/// `owner` is the name that the record was found at, at most `room` hints are kept. `None`: the record is to be left out.
pub fn clean(data: &RData, owner: &Name, wanted: &Wanted, room: usize) -> Option<Cleaned> {
    let (RData::HTTPS(HTTPS(service)) | RData::SVCB(service)) = data else { return None };
    let target = target(service, owner, wanted)?;

    let mut hints = Hints { ipv6: wanted.ipv6, room, addresses: Vec::new(), blocked: 0 };
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

fn mandatory(params: &[(SvcParamKey, SvcParamValue)]) -> &[SvcParamKey] {
    params
        .iter()
        .find_map(|(_, value)| match value {
            SvcParamValue::Mandatory(Mandatory(keys)) => Some(keys.as_slice()),
            _ => None,
        })
        .unwrap_or_default()
}

struct Hints {
    ipv6: bool,
    room: usize,
    addresses: Vec<IpAddr>,
    blocked: usize,
}

impl Hints {
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
        if !is_public(address) {
            self.blocked += 1;
            return false;
        }
        let is_taken = self.addresses.len() < self.room && (self.ipv6 || address.is_ipv4());
        if is_taken {
            self.addresses.push(address);
        }
        is_taken
    }
}
