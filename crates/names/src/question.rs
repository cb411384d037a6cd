//! What a client asks: judged before anything else is done for it.

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use hickory_proto::serialize::binary::BinDecodable;

use crate::doh;
use crate::policy::Policy;
use crate::search::SearchList;
use crate::wire::{self, Header};
use crate::{name, reply};

/// Names that are answered NXDOMAIN, so that the software which asks for them keeps to the system's resolver: Firefox then
/// leaves DNS over HTTPS off, and macOS and iOS their relay.
pub const CANARIES: [&str; 3] = ["use-application-dns.net", "mask.icloud.com", "mask-h2.icloud.com"];

/// The largest answer given by UDP, in bytes, however much the client would take.
const MAX_UDP: u16 = 4096;
/// RFC 1035 §4.2.1
const MIN_UDP: u16 = 512;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// Not even a header, or no query.
    Silence,
    /// Answered at once: an error, or a name that is not to be had.
    Reply { message: Vec<u8>, is_error: bool },
    /// One of the policy's names.
    Ours(Question),
    /// Any other name: to be passed on as it is. Of a server of DNS over HTTPS, if it is one.
    Relay { doh: Option<&'static str> },
}

/// A question for one of the policy's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub(crate) header: Header,
    /// As the client wrote it: name, type and class.
    pub(crate) wire: Vec<u8>,
    /// As the client wrote it.
    pub(crate) query: Query,
    /// Lowercase, without the trailing dot.
    pub name: String,
    /// With EDNS: the largest UDP answer that the client takes, in bytes.
    pub(crate) edns: Option<u16>,
}

impl Question {
    pub fn query_name(&self) -> &Name {
        &self.query.name
    }

    pub fn query_type(&self) -> RecordType {
        self.query.query_type
    }

    /// The largest answer by UDP, in bytes.
    pub fn udp_limit(&self) -> usize {
        usize::from(self.edns.unwrap_or(MIN_UDP).clamp(MIN_UDP, MAX_UDP))
    }
}

pub fn judge(message: &[u8], policy: &dyn Policy, search: &SearchList) -> Judgement {
    let Some(header) = Header::read(message) else { return Judgement::Silence };
    if header.is_answer() {
        return Judgement::Silence;
    }
    if !header.is_query() {
        return error(header, &[], wire::NOTIMP);
    }
    if header.questions != 1 {
        return error(header, &[], wire::FORMERR);
    }
    let Some(asking) = wire::question(message) else { return error(header, &[], wire::FORMERR) };
    let Ok(query) = Query::from_bytes(asking) else { return error(header, &[], wire::FORMERR) };
    if query.query_class != DNSClass::IN {
        return error(header, asking, wire::REFUSED);
    }

    let name = name::text(&query.name);
    let is_canary = |name: &str| CANARIES.contains(&name);
    if !is_canary(&name) && policy.has(&name) {
        return ours(message, header, asking, query, name);
    }
    if is_canary(&name) || search.completes(&name, |name| is_canary(name) || policy.has(name)) {
        return Judgement::Reply { message: wire::bare(header, asking, wire::NXDOMAIN), is_error: false };
    }
    Judgement::Relay { doh: doh::server(&name) }
}

fn ours(message: &[u8], header: Header, asking: &[u8], query: Query, name: String) -> Judgement {
    let Ok(parsed) = Message::from_vec(message) else { return error(header, asking, wire::FORMERR) };
    let edns = parsed.edns.as_ref().map(|edns| edns.max_payload());
    let version = parsed.edns.as_ref().map_or(0, |edns| edns.version());
    let question = Question { header, wire: asking.to_vec(), query, name, edns };
    // RFC 6891 §6.1.3
    if version > 0 {
        return Judgement::Reply { message: reply::bad_version(&question), is_error: true };
    }
    if is_answerable(question.query_type()) {
        return Judgement::Ours(question);
    }
    error(header, asking, wire::REFUSED)
}

/// Not ANY (RFC 8482), nor zone transfers and what else is no type of a record (RFC 6895 §3.1: OPT and 128–255).
fn is_answerable(query_type: RecordType) -> bool {
    let number = u16::from(query_type);
    number != 0 && query_type != RecordType::OPT && !(128..=255).contains(&number)
}

fn error(header: Header, asking: &[u8], code: u16) -> Judgement {
    Judgement::Reply { message: wire::bare(header, asking, code), is_error: true }
}
