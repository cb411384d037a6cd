use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, NS, SOA};
use hickory_proto::rr::{Name, RData, Record};

/// An upstream's answer, put together by a test.
pub struct Reply(pub Message);

impl Reply {
    /// To the query, with nothing in it yet.
    pub fn to(query: &Message) -> Self {
        let mut message = Message::new(query.id, MessageType::Response, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.metadata.recursion_available = true;
        message.queries = query.queries.clone();
        Self(message)
    }

    pub fn code(mut self, code: ResponseCode) -> Self {
        self.0.metadata.response_code = code;
        self
    }

    pub fn truncated(mut self) -> Self {
        self.0.metadata.truncation = true;
        self
    }

    /// At the name that was asked for.
    pub fn address(self, address: &str, ttl: u32) -> Self {
        let name = self.asked();
        self.address_at(name, address, ttl)
    }

    pub fn address_at(self, owner: Name, address: &str, ttl: u32) -> Self {
        self.record(owner, ttl, RData::from(address.parse::<IpAddr>().unwrap()))
    }

    pub fn cname(self, owner: Name, target: &str, ttl: u32) -> Self {
        self.record(owner, ttl, RData::CNAME(CNAME(name(target))))
    }

    pub fn record(mut self, owner: Name, ttl: u32, data: RData) -> Self {
        self.0.answers.push(Record::from_rdata(owner, ttl, data));
        self
    }

    pub fn soa(mut self, zone: &str, ttl: u32, minimum: u32) -> Self {
        let soa = SOA::new(name("ns.example.com."), name("admin.example.com."), 1, 1, 1, 1, minimum);
        self.0.authorities.push(Record::from_rdata(name(zone), ttl, RData::SOA(soa)));
        self
    }

    pub fn referral(mut self, zone: &str) -> Self {
        self.0.authorities.push(Record::from_rdata(name(zone), 60, RData::NS(NS(name("ns.other.net.")))));
        self
    }

    pub fn asked(&self) -> Name {
        self.0.queries[0].name.clone()
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.to_vec().unwrap()
    }
}

pub fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}
