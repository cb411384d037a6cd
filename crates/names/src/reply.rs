//! What a client is told.

use hickory_proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::opt::EdnsOption;

use crate::answer::Answer;
use crate::failure::Failure;
use crate::question::Question;
use crate::wire;

/// The largest UDP message that we take ourselves, in bytes: what passes every path unfragmented (DNS flag day 2020).
pub(crate) const UDP_PAYLOAD: u16 = 1232;
/// RFC 8914 §2
const EXTENDED_ERROR: u16 = 15;

/// The answer, with `ttl` (seconds) on each record. More than `limit` bytes are cut to the bare question, with TC set.
pub fn found(question: &Question, answer: &Answer, ttl: u32, limit: usize) -> Vec<u8> {
    let mut message = answering(question, answer.code);
    let owner = question.query_name();
    message.answers =
        answer.records.iter().map(|data| Record::from_rdata(owner.clone(), ttl, data.clone())).collect();
    message.authorities.extend(answer.soa.clone().map(|mut soa| {
        soa.ttl = ttl;
        soa
    }));
    encoded(question, &message, limit)
}

/// SERVFAIL, with the reason for clients that speak EDNS. RFC 8914
pub fn failed(question: &Question, failure: &Failure, limit: usize) -> Vec<u8> {
    let mut message = answering(question, ResponseCode::ServFail);
    if let Some(edns) = &mut message.edns {
        let reason = [&failure.extended().to_be_bytes(), failure.to_string().as_bytes()].concat();
        edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR, reason));
    }
    encoded(question, &message, limit)
}

/// BADVERS: the client's EDNS is newer than ours. RFC 6891 §6.1.3
pub(crate) fn bad_version(question: &Question) -> Vec<u8> {
    encoded(question, &answering(question, ResponseCode::BADVERS), question.udp_limit())
}

fn answering(question: &Question, code: ResponseCode) -> Message {
    let mut message = Message::response(question.header.id, OpCode::Query);
    message.metadata.recursion_desired = question.header.recursion_desired();
    message.metadata.recursion_available = true;
    message.metadata.checking_disabled = question.header.checking_disabled();
    message.metadata.response_code = code;
    message.queries = vec![question.query.clone()];
    message.edns = question.edns.map(|_| {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD);
        edns
    });
    message
}

fn encoded(question: &Question, message: &Message, limit: usize) -> Vec<u8> {
    let servfail = || wire::bare(question.header, &question.wire, wire::SERVFAIL);
    match message.to_vec() {
        Ok(bytes) if bytes.len() <= limit => bytes,
        // RFC 2181 §9
        Ok(_) => message.truncate().to_vec().unwrap_or_else(|_| servfail()),
        Err(_) => servfail(),
    }
}
