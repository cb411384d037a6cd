//! Any bytes as a client's query and as an upstream's answer to it, beside a plain reading of what must come out.
//! Used by the property test and by the fuzz target.

mod plain;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;
use names::answer::{self, Answer, Chain, Reading, Wanted};
use names::exchange::{Exchange, Secret, Taken};
use names::question::{Judgement, Question, judge};
use names::{Failure, Policy, SearchList, Transport, reply};

use plain::Reading as Plain;

const A: u16 = 1;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const SVCB: u16 = 64;
const HTTPS: u16 = 65;
const TYPES: [u16; 8] = [A, AAAA, HTTPS, A, CNAME, SVCB, TXT, SOA];
/// The first is the one that is asked for.
const NAMES: [&str; 6] =
    ["api.example.com", "a.cdn.net", "b.cdn.net", "C.cdn.net", "www.example.com", "bank.test"];
const MAX_MESSAGES: usize = 4;
const TTL: u32 = 77;

/// Its names are `example.com` and all below; TCP and UDP 443, TCP 5061 and UDP 5060 are led into the TUN;
/// 10.20.0.0/16 is expected.
struct TestPolicy;

impl Policy for TestPolicy {
    fn has(&self, name: &str) -> bool {
        name == "example.com" || name.ends_with(".example.com")
    }

    fn takes(&self, name: &str, transport: Transport, port: u16) -> bool {
        let sip = if transport == Transport::Tcp { 5061 } else { 5060 };
        self.has(name) && [443, sip].contains(&port)
    }

    fn expects(&self, name: &str, address: IpAddr) -> bool {
        self.has(name) && matches!(address, IpAddr::V4(v4) if v4.octets().starts_with(&[10, 20]))
    }
}

/// What came of it, to show that the interesting cases are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reached {
    NoAnswer,
    Failed,
    Empty,
    Addresses,
    Records,
}

pub fn run(bytes: &[u8]) -> Reached {
    let mut input = Input(bytes);
    let ipv6 = input.byte() % 2 == 1;
    any_query(bytes);
    any_query(input.0);

    let question = question(&mut input);
    let wanted =
        Wanted { name: question.query_name(), query_type: question.query_type(), ipv6, policy: &TestPolicy };
    let mut chain = Chain::new(wanted.name);
    for _ in 0..MAX_MESSAGES {
        let start = chain.current().to_ascii().to_lowercase();
        let Some((built, message)) = upstream(&mut input, chain.current(), &wanted) else {
            return Reached::NoAnswer;
        };
        match answer::read(&message, &wanted, &mut chain) {
            Ok(Reading::Complete(answer, _)) => {
                let plain = complete(&question, &answer, ipv6);
                if let Some(built) = built {
                    compare(&question, &plain, start.trim_end_matches('.'), &built, ipv6);
                }
                return plain.reached();
            }
            Ok(Reading::Further) => continue,
            Err(failure) => return failed(&question, &failure),
        }
    }
    Reached::NoAnswer
}

/// Whatever a client sends is judged, and what it is told at once repeats its id.
fn any_query(bytes: &[u8]) {
    match judge(bytes, &TestPolicy, &SearchList::default()) {
        Judgement::Silence | Judgement::Relay { .. } => {}
        Judgement::Reply { message, .. } => {
            assert_eq!(message[..2], bytes[..2], "the id");
            assert_eq!(message[2] & 0x80, 0x80);
            assert!(
                plain::read(&message).is_some_and(|plain| plain.records.is_empty()),
                "an error has no records"
            );
        }
        Judgement::Ours(question) => {
            assert!(TestPolicy.has(&question.name));
            let told = reply::failed(&question, &Failure::Silent, question.udp_limit());
            assert_eq!(told[..2], bytes[..2]);
            assert!(told.len() <= question.udp_limit());
        }
    }
}

/// A proper question for the first of the names, in mixed case.
fn question(input: &mut Input) -> Question {
    let query_type = TYPES[usize::from(input.byte()) % TYPES.len()];
    let edns = input.byte();
    let mut message = vec![input.byte(), input.byte(), 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns > 64)];
    let cased: String = NAMES[0]
        .chars()
        .map(|letter| if input.byte() % 2 == 1 { letter.to_ascii_uppercase() } else { letter })
        .collect();
    message.extend(plain::encoded(&cased));
    message.extend(query_type.to_be_bytes());
    message.extend([0, 1]);
    if edns > 64 {
        message.extend([0, 0, 41, edns >> 4, 0, 0, 0, 0, 0, 0, 0]);
    }
    match judge(&message, &TestPolicy, &SearchList::default()) {
        Judgement::Ours(question) => question,
        other => panic!("{other:?}"),
    }
}

/// An answer to the exchange: put together, or whatever bytes there are after its question. With what it was made of.
fn upstream(
    input: &mut Input,
    name: &Name,
    wanted: &Wanted,
) -> Option<(Option<Vec<Built>>, Box<hickory_proto::op::Message>)> {
    let control = input.byte();
    let secret = Secret { id: u16::from(control) << 3, case: (control & 1 == 1).then_some([control; 32]) };
    let exchange =
        Exchange::new(name, wanted.query_type, secret).expect("a name that was read can be written");
    // Whatever comes, and is not made for it, is not taken.
    assert!(
        !matches!(exchange.take(input.0), Taken::Answer(_)) || input.0.starts_with(&exchange.query()[..2])
    );

    let end = exchange.query().len() - 11;
    let mut message = exchange.query()[..end].to_vec();
    message[2..4].copy_from_slice(&[0x81, 0x80 | if control & 0xc0 == 0xc0 { 3 } else { 0 }]);
    message[10..12].copy_from_slice(&[0, 0]);
    let built = (control & 2 == 0).then(|| built(input));
    match &built {
        Some(records) => {
            let (authorities, answers): (Vec<_>, Vec<_>) =
                records.iter().partition(|record| record.kind == SOA);
            message[6..8].copy_from_slice(&(answers.len() as u16).to_be_bytes());
            message[8..10].copy_from_slice(&(authorities.len() as u16).to_be_bytes());
            for record in answers.into_iter().chain(authorities) {
                record.append_to(&mut message);
            }
        }
        None => {
            message[6..8].copy_from_slice(&[0, input.byte() % 8]);
            message[8..10].copy_from_slice(&[0, input.byte() % 3]);
            message.extend(std::mem::take(&mut input.0));
        }
    }
    match exchange.take(&message) {
        Taken::Answer(message) => Some((built, message)),
        Taken::Malformed => None,
        other => panic!("{other:?}: it has the id and the question"),
    }
}

fn failed(question: &Question, failure: &Failure) -> Reached {
    let told = reply::failed(question, failure, question.udp_limit());
    let plain = plain::read(&told).expect("it can be read");
    assert_eq!((plain.code, plain.records.len()), (2, 0));
    Reached::Failed
}

fn complete(question: &Question, answer: &Answer, ipv6: bool) -> Plain {
    let limit = question.udp_limit();
    let udp = reply::found(question, answer, TTL, limit);
    assert!(udp.len() <= limit);
    let whole = reply::found(question, answer, TTL, usize::from(u16::MAX));
    let Some(plain) = plain::read(&whole) else { panic!("{whole:?} cannot be read") };
    check(question, answer, &plain, ipv6);
    plain
}

/// What holds for every answer, whatever it was made of.
fn check(question: &Question, answer: &Answer, plain: &Plain, ipv6: bool) {
    assert_eq!(plain.question.as_deref(), Some(NAMES[0]), "the question that was asked");
    assert!(matches!(plain.code, 0 | 2 | 3));
    let learned: HashSet<_> = answer.addresses.iter().copied().collect();
    for address in &plain.addresses {
        assert!(plain::is_public(*address), "{address}");
        assert!(ipv6 || address.is_ipv4(), "{address} without IPv6");
        assert!(learned.contains(address), "{address} was not learned");
    }
    for record in &plain.records {
        assert_eq!(record.name, NAMES[0]);
        assert_eq!(record.kind, u16::from(question.query_type()));
        assert_eq!(record.ttl, TTL);
    }
}

/// The same addresses as by following the CNAMEs of one message by hand.
fn compare(question: &Question, plain: &Plain, start: &str, built: &[Built], ipv6: bool) {
    let kind = u16::from(question.query_type());
    if !matches!(kind, A | AAAA) || plain.code != 0 {
        return;
    }
    let mut owner = start.to_owned();
    for _ in 0..built.len() + 1 {
        let here = || built.iter().filter(|record| record.owner.eq_ignore_ascii_case(&owner));
        let expected: HashSet<_> = here()
            .filter(|record| record.kind == kind)
            .filter_map(Built::address)
            .filter(|address| plain::is_public(*address) && (ipv6 || address.is_ipv4()))
            .collect();
        if here().any(|record| record.kind == kind) {
            let found: HashSet<_> = plain.addresses.iter().copied().collect();
            assert_eq!(found, expected);
            return;
        }
        match here().find(|record| record.kind == CNAME) {
            Some(record) => owner = record.target().to_lowercase(),
            None => return assert!(plain.addresses.is_empty()),
        }
    }
}

impl Plain {
    fn reached(&self) -> Reached {
        if !self.addresses.is_empty() {
            return Reached::Addresses;
        }
        if self.records.is_empty() { Reached::Empty } else { Reached::Records }
    }
}

/// A record that an upstream sends.
struct Built {
    owner: &'static str,
    kind: u16,
    ttl: u32,
    data: [u8; 16],
}

fn built(input: &mut Input) -> Vec<Built> {
    (0..input.byte() % 12).map(|_| Built::take(input)).collect()
}

impl Built {
    fn take(input: &mut Input) -> Self {
        let owner = NAMES[usize::from(input.byte()) % NAMES.len()];
        let kind = TYPES[usize::from(input.byte()) % TYPES.len()];
        let ttl = u32::from_be_bytes([input.byte(), 0, input.byte(), input.byte()]);
        let mut data = [0; 16];
        let ready = input.byte();
        match ready % 4 {
            0 => data[..4].copy_from_slice(&[203, 0, 113, ready]),
            1 => data[..4].copy_from_slice(&[10, 0, 0, ready]),
            _ => data.iter_mut().for_each(|byte| *byte = input.byte()),
        }
        Self { owner, kind, ttl, data }
    }

    fn target(&self) -> &'static str {
        NAMES[usize::from(self.data[0]) % NAMES.len()]
    }

    fn address(&self) -> Option<IpAddr> {
        match self.kind {
            A => self.data.first_chunk::<4>().map(|four| Ipv4Addr::from(*four).into()),
            AAAA => Some(Ipv6Addr::from(self.data).into()),
            _ => None,
        }
    }

    fn append_to(&self, message: &mut Vec<u8>) {
        let data = match self.kind {
            A => self.data[..4].to_vec(),
            AAAA => self.data.to_vec(),
            CNAME => plain::encoded(self.target()),
            TXT => [&[15][..], &self.data[..15]].concat(),
            SOA => {
                [plain::encoded("ns.test"), plain::encoded("a.test"), self.data.to_vec(), vec![0, 0, 0, 60]]
                    .concat()
            }
            _ => self.service(),
        };
        message.extend(plain::encoded(self.owner));
        message.extend(self.kind.to_be_bytes());
        message.extend([0, 1]);
        message.extend(self.ttl.to_be_bytes());
        message.extend((data.len() as u16).to_be_bytes());
        message.extend(data);
    }

    /// RFC 9460 §2.2, with both kinds of hints.
    fn service(&self) -> Vec<u8> {
        let target = if self.data[15].is_multiple_of(2) { vec![0] } else { plain::encoded(self.target()) };
        [&[0, 1][..], &target, &[0, 4, 0, 4], &self.data[..4], &[0, 6, 0, 16], &self.data].concat()
    }
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    /// Zeros when there is nothing left.
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }
}
