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

use plain::{Lead, Reading as Plain};

const A: u16 = 1;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const MX: u16 = 15;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const SRV: u16 = 33;
const NAPTR: u16 = 35;
const SVCB: u16 = 64;
const HTTPS: u16 = 65;
const URI: u16 = 256;
const TYPES: [u16; 14] = [A, AAAA, HTTPS, A, CNAME, SVCB, TXT, SOA, SRV, NAPTR, URI, MX, SRV, HTTPS];
/// The first three are those that are asked for.
const NAMES: [&str; 8] = [
    "api.example.com",
    "_sips._tcp.example.com",
    "_sip._udp.example.com",
    "a.cdn.net",
    "b.cdn.net",
    "C.cdn.net",
    "www.example.com",
    "bank.test",
];
const PORTS: [u16; 5] = [443, 5061, 5060, 5081, 8443];
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
    /// All records led out of the policy.
    Elsewhere,
    Empty,
    Addresses,
    /// To names, and ports of theirs.
    Leads,
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
        let start = chain.current().to_ascii().to_lowercase().trim_end_matches('.').to_owned();
        let Some((built, message)) = upstream(&mut input, chain.current(), &wanted) else {
            return Reached::NoAnswer;
        };
        match answer::read(&message, &wanted, &mut chain) {
            Ok(Reading::Complete(answer, _)) => {
                let plain = complete(&question, &answer, ipv6);
                if let Some(built) = built {
                    compare(&question, &plain, &end_of(&built, &start, &question), ipv6);
                }
                return plain.reached();
            }
            Ok(Reading::Further) => continue,
            Err(failure) => {
                let plain = failed(&question, &failure);
                if let (Failure::Elsewhere, Some(built)) = (&failure, built) {
                    compare(&question, &plain, &end_of(&built, &start, &question), ipv6);
                    return Reached::Elsewhere;
                }
                return Reached::Failed;
            }
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

/// A proper question for one of the first names, in mixed case. Completed it is none for anybody.
fn question(input: &mut Input) -> Question {
    let query_type = TYPES[usize::from(input.byte()) % TYPES.len()];
    let name = match query_type {
        SRV => NAMES[1 + usize::from(input.byte()) % 2],
        _ => NAMES[0],
    };
    let edns = input.byte();
    let header = [input.byte(), input.byte(), 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns > 64)];
    let cased: String = name
        .chars()
        .map(|letter| if input.byte() % 2 == 1 { letter.to_ascii_uppercase() } else { letter })
        .collect();
    let asking = |name: &str| {
        let mut message =
            [&header, plain::encoded(name).as_slice(), &query_type.to_be_bytes(), &[0, 1]].concat();
        if edns > 64 {
            message.extend([0, 0, 41, edns >> 4, 0, 0, 0, 0, 0, 0, 0]);
        }
        message
    };
    let search = SearchList::default();
    search.add(&["corp.test".to_owned()]);
    match judge(&asking(&format!("{cased}.Corp.test")), &TestPolicy, &search) {
        Judgement::Reply { message, .. } => {
            assert_eq!(plain::read(&message).map(|plain| plain.code), Some(3))
        }
        other => panic!("{other:?}"),
    }
    match judge(&asking(&cased), &TestPolicy, &search) {
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
    let built = (control & 2 == 0).then(|| built(input, name, wanted.query_type.into()));
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

fn failed(question: &Question, failure: &Failure) -> Plain {
    let told = reply::failed(question, failure, question.udp_limit());
    let plain = plain::read(&told).expect("it can be read");
    assert_eq!((plain.code, plain.records.len()), (2, 0));
    plain
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
    assert_eq!(plain.question.as_ref(), Some(&question.name), "the question that was asked");
    assert!(matches!(plain.code, 0 | 2 | 3));
    let learned: HashSet<_> = answer.addresses.iter().copied().collect();
    for address in &plain.addresses {
        assert!(may_have(question, *address), "{address}");
        assert!(ipv6 || address.is_ipv4(), "{address} without IPv6");
        assert!(learned.contains(address), "{address} was not learned");
    }
    for record in &plain.records {
        assert_eq!(record.name, question.name);
        assert_eq!(record.kind, u16::from(question.query_type()));
        assert_eq!(record.ttl, TTL);
        assert!(stays_within(question, record.kind, &record.lead), "{:?}", record.lead);
    }
}

/// Whether who follows a record asks for, and reaches, nothing in the clear.
fn stays_within(question: &Question, kind: u16, lead: &Lead) -> bool {
    let Lead { target, port, makes_uri, by_quic } = lead;
    let is_known = |name: &str| name.is_empty() || TestPolicy.has(name);
    let takes = |transport, port| {
        let target = if target.is_empty() { &question.name } else { target };
        TestPolicy.takes(target, transport, port)
    };
    let transport = if question.name.contains("._udp.") { Transport::Udp } else { Transport::Tcp };
    match kind {
        SRV => target.is_empty() || port.is_some_and(|port| takes(transport, port)),
        NAPTR => !makes_uri && is_known(target),
        CNAME => is_known(target),
        URI => false,
        HTTPS | SVCB => {
            is_known(target)
                && port.is_none_or(|port| takes(Transport::Tcp, port))
                && (!by_quic || takes(Transport::Udp, port.unwrap_or(443)))
        }
        _ => true,
    }
}

fn may_have(question: &Question, address: IpAddr) -> bool {
    plain::is_public(address) || TestPolicy.expects(&question.name, address)
}

/// The same as by following the CNAMEs of one message by hand, to these records.
fn compare(question: &Question, plain: &Plain, end: &[&Built], ipv6: bool) {
    let kind = u16::from(question.query_type());
    if matches!(kind, A | AAAA) {
        let may_be_told = |address: &IpAddr| may_have(question, *address) && (ipv6 || address.is_ipv4());
        let expected: HashSet<_> =
            end.iter().filter_map(|record| record.address()).filter(may_be_told).collect();
        assert_eq!(plain.addresses.iter().copied().collect::<HashSet<_>>(), expected);
    }
    let leads = end.iter().map(|record| record.lead());
    let mut expected: Vec<_> = leads.filter(|lead| stays_within(question, kind, lead)).collect();
    let mut told: Vec<_> = plain.records.iter().map(|record| record.lead.clone()).collect();
    if !matches!(kind, A | AAAA | SOA) {
        told.sort();
        expected.sort();
        assert_eq!(told, expected);
    }
}

/// The records of the type that is asked for, where a message's CNAMEs lead.
fn end_of<'a>(built: &'a [Built], start: &str, question: &Question) -> Vec<&'a Built> {
    let kind = u16::from(question.query_type());
    let mut owner = start.to_owned();
    for _ in 0..built.len() + 1 {
        let here = || built.iter().filter(|record| record.owner.eq_ignore_ascii_case(&owner));
        let found: Vec<_> = here().filter(|record| record.kind == kind && kind != SOA).collect();
        if !found.is_empty() {
            return found;
        }
        match here().find(|record| record.kind == CNAME) {
            Some(record) => owner = record.target().to_lowercase(),
            None => break,
        }
    }
    Vec::new()
}

impl Plain {
    fn reached(&self) -> Reached {
        match self.records.first() {
            _ if !self.addresses.is_empty() => Reached::Addresses,
            None => Reached::Empty,
            Some(record) if record.lead != Lead::default() => Reached::Leads,
            Some(_) => Reached::Records,
        }
    }
}

/// A record that an upstream sends.
struct Built {
    owner: &'static str,
    kind: u16,
    ttl: u32,
    data: [u8; 16],
}

/// Every other is of the type that is asked for, and every other at the name.
fn built(input: &mut Input, name: &Name, kind: u16) -> Vec<Built> {
    let name = name.to_ascii().to_lowercase();
    let is_it = |known: &&&str| known.eq_ignore_ascii_case(name.trim_end_matches('.'));
    let name = NAMES.iter().find(is_it).unwrap_or(&NAMES[0]);
    (0..input.byte() % 12).map(|_| Built::take(input, name, kind)).collect()
}

impl Built {
    fn take(input: &mut Input, name: &'static str, kind: u16) -> Self {
        let (at, of) = (usize::from(input.byte()), usize::from(input.byte()));
        let owner = if at < 128 { name } else { NAMES[at % NAMES.len()] };
        let kind = if of < 128 { kind } else { TYPES[of % TYPES.len()] };
        let ttl = u32::from_be_bytes([input.byte(), 0, input.byte(), input.byte()]);
        let mut data = [0; 16];
        let ready = input.byte();
        match ready % 4 {
            0 => data[..4].copy_from_slice(&[203, 0, 113, ready]),
            1 => data[..4].copy_from_slice(&[10, 19 + ready / 4 % 3, 0, ready]),
            _ => data.iter_mut().for_each(|byte| *byte = input.byte()),
        }
        Self { owner, kind, ttl, data }
    }

    fn target(&self) -> &'static str {
        NAMES[usize::from(self.data[0]) % NAMES.len()]
    }

    /// Empty is the root, which a record may have in place of a name.
    fn target_or_root(&self) -> &'static str {
        if self.data[15].is_multiple_of(4) { "" } else { self.target() }
    }

    fn port(&self) -> u16 {
        PORTS[usize::from(self.data[13]) % PORTS.len()]
    }

    fn has_port(&self) -> bool {
        !self.data[14].is_multiple_of(4)
    }

    fn is_by_quic(&self) -> bool {
        self.data[12].is_multiple_of(3)
    }

    fn makes_uri(&self) -> bool {
        self.data[11].is_multiple_of(3)
    }

    /// Where it leads, as an application is told.
    fn lead(&self) -> Lead {
        let target = self.target_or_root().to_lowercase();
        match self.kind {
            SRV => Lead { target, port: Some(self.port()), ..Lead::default() },
            NAPTR => Lead { target, makes_uri: self.makes_uri(), ..Lead::default() },
            CNAME | MX => Lead { target: self.target().to_lowercase(), ..Lead::default() },
            HTTPS | SVCB => {
                let is_itself = target.eq_ignore_ascii_case(self.owner);
                Lead {
                    target: if is_itself { String::new() } else { target },
                    port: self.has_port().then_some(self.port()),
                    by_quic: self.is_by_quic(),
                    ..Lead::default()
                }
            }
            _ => Lead::default(),
        }
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
            MX => [vec![0, 1], plain::encoded(self.target())].concat(),
            SRV => {
                let fixed = [&[0, 1, 0, 1][..], &self.port().to_be_bytes()].concat();
                [fixed, plain::encoded(self.target_or_root())].concat()
            }
            NAPTR => {
                let expression: &[u8] = if self.makes_uri() { b"\x11!^.*$!sips:x.net!" } else { &[0] };
                let fixed = [&[0, 1, 0, 1, 1, b's', 8][..], b"SIPS+D2T", expression].concat();
                [fixed, plain::encoded(self.target_or_root())].concat()
            }
            URI => b"\0\x01\0\x01https://api.example.com/".to_vec(),
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
        let id = if self.is_by_quic() { b"h3" } else { b"h2" };
        let alpn = [&[0, 1, 0, 3, 2][..], id].concat();
        let port = [&[0, 3, 0, 2][..], &self.port().to_be_bytes()].concat();
        let hints = [&[0, 4, 0, 4][..], &self.data[..4], &[0, 6, 0, 16], &self.data].concat();
        let port = if self.has_port() { port } else { Vec::new() };
        [vec![0, 1], plain::encoded(self.target_or_root()), alpn, port, hints].concat()
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
