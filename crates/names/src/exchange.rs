//! One query to an upstream, and what may count as the answer to it.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};

use crate::name;
use crate::reply::UDP_PAYLOAD;
use crate::wire::{self, Header};

/// What makes a query hard to guess for who cannot see it, with its source port: each exchange has its own.
#[derive(Debug, Clone, Copy)]
pub struct Secret {
    pub id: u16,
    /// The case of the name's letters ("0x20"); `None` towards a server that does not keep it, or where nobody can forge.
    pub case: Option<[u8; 32]>,
}

#[derive(Debug)]
pub struct Exchange {
    id: u16,
    is_exact: bool,
    query: Vec<u8>,
}

#[derive(Debug)]
pub enum Taken {
    Answer(Box<Message>),
    /// To be asked again by TCP.
    Truncated,
    /// Ours but for the case of its letters: to be asked again without.
    OtherCase,
    /// Ours, and cannot be read.
    Malformed,
    /// Not the answer: spoofed, late or confused. To be ignored.
    Stray,
}

impl Exchange {
    /// `None` for a name that cannot be encoded.
    pub fn new(name: &Name, query_type: RecordType, secret: Secret) -> Option<Self> {
        let cased = name::with_case(name, &secret.case.unwrap_or_default())?;
        let mut message = Message::new(secret.id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.queries = vec![Query::query(cased, query_type)];
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD);
        message.edns = Some(edns);
        Some(Self { id: secret.id, is_exact: secret.case.is_some(), query: message.to_vec().ok()? })
    }

    /// The message to send.
    pub fn query(&self) -> &[u8] {
        &self.query
    }

    /// Judges what came back from the address and port that were asked.
    pub fn take(&self, message: &[u8]) -> Taken {
        let Some(header) = Header::read(message) else { return Taken::Stray };
        if header.id != self.id || !header.is_answer() || !header.is_query() || header.questions != 1 {
            return Taken::Stray;
        }
        let (Some(ours), Some(theirs)) = (wire::question(&self.query), wire::question(message)) else {
            return Taken::Stray;
        };
        if !wire::is_same_question(ours, theirs) {
            return Taken::Stray;
        }
        if self.is_exact && ours != theirs {
            return Taken::OtherCase;
        }
        if header.is_truncated() {
            return Taken::Truncated;
        }
        match Message::from_vec(message) {
            Ok(message) => Taken::Answer(Box::new(message)),
            Err(_) => Taken::Malformed,
        }
    }
}
