//! What an upstream's message says about a name: followed to the end of its CNAMEs, and cleaned.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::address::is_public;
use crate::failure::Failure;
use crate::policy::Policy;
use crate::{name, service};

/// CNAMEs from the name asked to the one that has the records.
const MAX_CHAIN: usize = 16;
/// Addresses taken from one answer; each becomes a route.
const MAX_ADDRESSES: usize = 64;
const MAX_TTL: u32 = 24 * 60 * 60;
/// A name that appears is not missed for longer. RFC 2308 §5 leaves the limit to us.
const MAX_NEGATIVE_TTL: u32 = 300;

/// RFC 7553
const URI: RecordType = RecordType::Unknown(256);

/// What is known about a name, for one type of record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// NOERROR or NXDOMAIN.
    pub code: ResponseCode,
    /// They belong to the name asked, wherever the CNAMEs led.
    pub records: Vec<RData>,
    /// Of a negative answer, if its zone holds the name asked.
    pub soa: Option<Record>,
    /// Those in `records`, hints included: each is public, or expected.
    pub addresses: Vec<IpAddr>,
    /// Those that the name has too and nobody is told, since the tunnel does not carry them: the same holds. Applications may
    /// know them from before.
    pub withheld: Vec<IpAddr>,
    /// Whether it may have such that are not known yet.
    pub lacks_withheld: bool,
    /// Zero: good for those who are waiting for it, not to be kept.
    pub ttl: Duration,
}

impl Answer {
    /// The name exists, and has no such record; not to be kept.
    pub fn empty() -> Self {
        Self {
            code: ResponseCode::NoError,
            records: Vec::new(),
            soa: None,
            addresses: Vec::new(),
            withheld: Vec::new(),
            lacks_withheld: false,
            ttl: Duration::ZERO,
        }
    }
}

/// What is wanted to know.
pub struct Wanted<'a> {
    pub name: &'a Name,
    pub query_type: RecordType,
    /// Whether the tunnel carries IPv6: without it no IPv6 address is given out.
    pub ipv6: bool,
    pub policy: &'a dyn Policy,
}

impl Wanted<'_> {
    /// The answer to what needs no asking.
    pub fn at_once(&self) -> Option<Answer> {
        (self.query_type == RecordType::AAAA && !self.ipv6).then(Answer::empty)
    }

    pub(crate) fn may_have(&self, address: IpAddr) -> bool {
        is_public(address) || self.policy.expects(&name::text(self.name), address)
    }
}

/// The way along CNAMEs, over as many messages as it takes.
#[derive(Debug)]
pub struct Chain {
    passed: Vec<Name>,
    current: Name,
    ttl: u32,
}

impl Chain {
    pub fn new(name: &Name) -> Self {
        Self { passed: Vec::new(), current: name.clone(), ttl: MAX_TTL }
    }

    /// The name to ask for now.
    pub fn current(&self) -> &Name {
        &self.current
    }

    fn step(&mut self, target: Name, ttl: u32) -> Result<(), Failure> {
        let passed = std::mem::replace(&mut self.current, target);
        self.passed.push(passed);
        if self.passed.len() > MAX_CHAIN || self.passed.contains(&self.current) {
            return Err(Failure::Chain);
        }
        self.ttl = self.ttl.min(sane(ttl));
        Ok(())
    }
}

#[derive(Debug)]
pub enum Reading {
    /// How many private addresses were taken out stands beside it.
    Complete(Arc<Answer>, usize),
    /// The message ends within the chain: its current name is to be asked for.
    Further,
}

/// Reads an answer to the question for the chain's current name.
pub fn read(message: &Message, wanted: &Wanted, chain: &mut Chain) -> Result<Reading, Failure> {
    let passed = chain.passed.len();
    loop {
        let records: Vec<_> =
            at(message, &chain.current).filter(|record| record.record_type() == wanted.query_type).collect();
        if !records.is_empty() {
            return positive(&records, wanted, chain);
        }
        let next = at(message, &chain.current).find_map(cname).map(|(target, ttl)| (target.clone(), ttl));
        let Some((target, ttl)) = next else { break };
        chain.step(target, ttl)?;
    }

    let soa = message.authorities.iter().find(|record| matches!(record.data, RData::SOA(_)));
    if message.response_code == ResponseCode::NXDomain || soa.is_some() {
        return Ok(complete(negative(message.response_code, soa, wanted, chain), 0));
    }
    if chain.passed.len() > passed {
        return Ok(Reading::Further);
    }
    Ok(complete(Answer::empty(), 0))
}

/// Whether the server only knows who else to ask: it does not recurse. RFC 1034 §4.3.1
pub(crate) fn is_referral(message: &Message) -> bool {
    let has = |wanted| message.authorities.iter().any(|record| record.record_type() == wanted);
    message.answers.is_empty() && has(RecordType::NS) && !has(RecordType::SOA)
}

/// The answer's records for a name.
fn at<'a>(message: &'a Message, name: &'a Name) -> impl Iterator<Item = &'a Record> {
    message.answers.iter().filter(move |record| record.dns_class == DNSClass::IN && record.name == *name)
}

fn cname(record: &Record) -> Option<(&Name, u32)> {
    match &record.data {
        RData::CNAME(target) => Some((&target.0, record.ttl)),
        _ => None,
    }
}

fn positive(records: &[&Record], wanted: &Wanted, chain: &Chain) -> Result<Reading, Failure> {
    let mut taken = Vec::new();
    let mut addresses = Vec::new();
    let mut blocked = 0;
    for record in records {
        match &record.data {
            data @ (RData::A(_) | RData::AAAA(_)) => {
                let Some(address) = data.ip_addr() else { continue };
                if !wanted.may_have(address) {
                    blocked += 1;
                } else if addresses.len() < MAX_ADDRESSES && (wanted.ipv6 || address.is_ipv4()) {
                    addresses.push(address);
                    taken.push(data.clone());
                }
            }
            data @ (RData::HTTPS(_) | RData::SVCB(_)) => {
                let room = MAX_ADDRESSES.saturating_sub(addresses.len());
                if let Some(cleaned) = service::clean(data, chain.current(), wanted, room) {
                    blocked += cleaned.blocked;
                    addresses.extend(cleaned.addresses);
                    taken.push(cleaned.data);
                }
            }
            data if leads_elsewhere(data, wanted) => {}
            data => taken.push(data.clone()),
        }
    }
    if taken.is_empty() && matches!(wanted.query_type, RecordType::SRV | RecordType::NAPTR | URI) {
        return Err(Failure::Elsewhere);
    }
    let is_address = matches!(wanted.query_type, RecordType::A | RecordType::AAAA);
    if is_address && taken.is_empty() && blocked > 0 {
        return Err(Failure::Blocked(blocked));
    }

    let ttl = records.iter().map(|record| sane(record.ttl)).fold(chain.ttl, u32::min);
    let ttl = Duration::from_secs(ttl.into());
    Ok(complete(Answer { records: taken, addresses, ttl, ..Answer::empty() }, blocked))
}

/// A client would go on to the name that the record has, and were that none of the policy's, ask for it and reach it in the clear;
/// and so it would a port that no rule takes. Mail (MX) is no signaling.
fn leads_elsewhere(data: &RData, wanted: &Wanted) -> bool {
    let next = match data {
        RData::SRV(record) => return !service::is_taken(record, wanted),
        // It makes a URI of what the client has, with any host (RFC 3402).
        RData::NAPTR(rule) if !rule.regexp.is_empty() => return true,
        RData::NAPTR(rule) => &rule.replacement,
        RData::CNAME(target) => &target.0,
        _ => return wanted.query_type == URI,
    };
    !next.is_root() && !wanted.policy.has(&name::text(next))
}

fn complete(answer: Answer, blocked: usize) -> Reading {
    Reading::Complete(Arc::new(answer), blocked)
}

/// RFC 2308 §5: kept for the lesser of the SOA's own TTL and its last field; without SOA, not at all.
fn negative(code: ResponseCode, soa: Option<&Record>, wanted: &Wanted, chain: &Chain) -> Answer {
    let ttl = match soa.map(|record| (&record.data, record.ttl)) {
        Some((RData::SOA(soa), ttl)) => sane(soa.minimum).min(sane(ttl)).min(chain.ttl).min(MAX_NEGATIVE_TTL),
        _ => 0,
    };
    Answer {
        code,
        soa: soa.filter(|soa| soa.dns_class == DNSClass::IN && soa.name.zone_of(wanted.name)).cloned(),
        ttl: Duration::from_secs(ttl.into()),
        ..Answer::empty()
    }
}

/// RFC 2181 §8: a TTL with its first bit set is 0.
fn sane(ttl: u32) -> u32 {
    if ttl > i32::MAX as u32 { 0 } else { ttl.min(MAX_TTL) }
}
