//! What an application is told about one of the policy's names, and what the daemon learns before it.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::common::{Act, DnsServer, Reply, Scene, Verdict, question, settings};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::rdata::svcb::{
    Alpn, EchConfigList, IpHint, Mandatory, SVCB, SvcParamKey, SvcParamValue,
};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, HTTPS, MX, NAPTR, NULL, SRV, TXT};
use hickory_proto::rr::{Name, RData, RecordType};
use names::{Failure, Settings};

const BLOCKED: u16 = 15;
const URI: RecordType = RecordType::Unknown(256);

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    let mut addresses: Vec<_> = message.answers.iter().filter_map(|record| record.data.ip_addr()).collect();
    addresses.sort();
    addresses
}

/// The code of the extended error. RFC 8914
fn extended(message: &Message) -> Option<u16> {
    match message.edns.as_ref()?.option(EdnsCode::Unknown(15))? {
        EdnsOption::Unknown(_, data) => Some(u16::from_be_bytes(*data.first_chunk::<2>()?)),
        _ => None,
    }
}

#[tokio::test]
async fn the_answer_comes_after_the_learning() {
    let server =
        DnsServer::answering(|asked| Reply::to(&asked.query).address("203.0.113.10", 60).bytes()).await;
    let wait = Duration::from_millis(300);
    let scene = Scene::with(settings(&[&server]), Verdict::YesAfter(wait));
    let began = Instant::now();
    let answer = scene.client().ask("api.example.com.", RecordType::A).await;
    assert!(began.elapsed() >= wait);
    assert_eq!(addresses(&answer), [ip("203.0.113.10")]);
    let learned = scene.learner.learned();
    assert_eq!(learned.len(), 1);
    assert_eq!(
        (learned[0].name.as_str(), &learned[0].addresses[..]),
        ("api.example.com", &[ip("203.0.113.10")][..])
    );
    assert_eq!(learned[0].ttls, [60]);
}

#[tokio::test]
async fn what_is_not_learned_is_not_told() {
    let server =
        DnsServer::answering(|asked| Reply::to(&asked.query).address("203.0.113.10", 60).bytes()).await;
    for verdict in [Verdict::No, Verdict::Dropped, Verdict::Never] {
        let scene = Scene::with(settings(&[&server]), verdict);
        let answer = scene.client().ask("api.example.com.", RecordType::A).await;
        assert_eq!(answer.response_code, ResponseCode::ServFail);
        assert!(answer.answers.is_empty());
    }
    let scene = Scene::asking(&[&server]);
    scene.learner.stop();
    let answer = scene.client().ask("api.example.com.", RecordType::A).await;
    assert_eq!(answer.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn an_answer_is_kept_for_its_ttl_and_learned_each_time() {
    let server = DnsServer::answering(|asked| {
        let last = asked.before as u8 + 1;
        Reply::to(&asked.query).address(&format!("203.0.113.{last}"), 1).bytes()
    })
    .await;
    let scene = Scene::asking(&[&server]);
    let client = scene.client();
    let began = Instant::now();
    let first = client.ask("api.example.com.", RecordType::A).await;
    let second = client.ask("API.example.COM.", RecordType::A).await;
    if began.elapsed() < Duration::from_millis(900) {
        assert_eq!(addresses(&first), addresses(&second));
        assert_eq!(server.asked().len(), 1);
        assert_eq!(scene.handle.counts().cached, 1);
    }
    assert_eq!(second.answers[0].name.to_ascii(), "API.example.COM.");
    assert_eq!(scene.learner.learned().len(), 2);

    tokio::time::sleep(Duration::from_millis(1100)).await;
    let third = client.ask("api.example.com.", RecordType::A).await;
    assert_ne!(addresses(&first), addresses(&third));
}

#[tokio::test]
async fn a_ttl_is_told_within_bounds() {
    let server = DnsServer::answering(|asked| {
        let ttl = match asked.name().as_str() {
            "long.example.com." => 86400,
            "none.example.com." => 0,
            // RFC 2181 §8
            _ => u32::MAX,
        };
        Reply::to(&asked.query).address("203.0.113.10", ttl).bytes()
    })
    .await;
    let scene = Scene::asking(&[&server]);
    let client = scene.client();
    for (name, ttl, questions) in
        [("long.example.com.", 300, 1), ("none.example.com.", 1, 2), ("odd.example.com.", 1, 2)]
    {
        let before = server.asked().len();
        for _ in 0..2 {
            assert_eq!(client.ask(name, RecordType::A).await.answers[0].ttl, ttl, "{name}");
        }
        assert_eq!(server.asked().len() - before, questions, "{name}");
    }
}

#[tokio::test]
async fn a_chain_ends_at_the_name_asked() {
    let server = DnsServer::answering(|asked| {
        let reply = Reply::to(&asked.query);
        let first = reply.asked();
        reply
            .cname(first, "a.cdn.net.", 100)
            .cname(name("a.cdn.net."), "b.cdn.net.", 20)
            .address_at(name("b.cdn.net."), "203.0.113.10", 60)
            .address_at(name("c.cdn.net."), "203.0.113.66", 60)
            .bytes()
    })
    .await;
    let scene = Scene::asking(&[&server]);
    let answer = scene.client().ask("Api.example.com.", RecordType::A).await;
    assert_eq!(answer.answers.len(), 1, "{answer:?}");
    assert_eq!(answer.answers[0].name.to_ascii(), "Api.example.com.");
    assert_eq!(answer.answers[0].ttl, 20);
    assert_eq!(scene.learner.addresses(), [ip("203.0.113.10")]);
    assert_eq!(scene.learner.learned()[0].name, "api.example.com");
}

#[tokio::test]
async fn a_chain_that_stops_short_is_asked_on() {
    let server = DnsServer::answering(|asked| {
        let reply = Reply::to(&asked.query);
        let owner = reply.asked();
        match asked.name().as_str() {
            "api.example.com." => reply.cname(owner, "a.cdn.net.", 60).bytes(),
            "a.cdn.net." => reply.cname(owner, "b.cdn.net.", 60).bytes(),
            _ => reply.address("203.0.113.10", 60).bytes(),
        }
    })
    .await;
    let scene = Scene::asking(&[&server]);
    let answer = scene.client().ask("api.example.com.", RecordType::A).await;
    assert_eq!(addresses(&answer), [ip("203.0.113.10")]);
    assert_eq!(server.asked().len(), 3);
}

#[tokio::test]
async fn a_chain_in_a_circle_is_an_error() {
    let server = DnsServer::answering(|asked| {
        let reply = Reply::to(&asked.query);
        let owner = reply.asked();
        match asked.name().as_str() {
            "self.example.com." => reply.cname(owner, "self.example.com.", 60).bytes(),
            "pair.example.com." => reply
                .cname(owner, "x.cdn.net.", 60)
                .cname(name("x.cdn.net."), "pair.example.com.", 60)
                .bytes(),
            // One CNAME in each message, and no end of them.
            "far.example.com." => reply.cname(owner, "1.cdn.net.", 60).bytes(),
            other => {
                let number: u32 = other.split('.').next().unwrap().parse().unwrap();
                reply.cname(owner, &format!("{}.cdn.net.", number + 1), 60).bytes()
            }
        }
    })
    .await;
    let scene = Scene::asking(&[&server]);
    for name in ["self.example.com.", "pair.example.com.", "far.example.com."] {
        let answer = scene.client().ask(name, RecordType::A).await;
        assert_eq!(answer.response_code, ResponseCode::ServFail, "{name}");
    }
    assert!(server.asked().len() < 10);
    assert!(scene.learner.learned().is_empty());
}

#[tokio::test]
async fn without_ipv6_no_ipv6_address_is_told() {
    let server =
        DnsServer::answering(|asked| Reply::to(&asked.query).address("2600:1f14::10", 60).bytes()).await;
    let scene = Scene::new(without_ipv6(&server));
    let answer = scene.client().ask("api.example.com.", RecordType::AAAA).await;
    assert_eq!((answer.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
    assert!(server.asked().is_empty());

    let scene = Scene::asking(&[&server]);
    let answer = scene.client().ask("api.example.com.", RecordType::AAAA).await;
    assert_eq!(addresses(&answer), [ip("2600:1f14::10")]);
    assert_eq!(scene.learner.addresses(), [ip("2600:1f14::10")]);
}

/// An application may have them from before the tunnel was up.
#[tokio::test]
async fn without_ipv6_what_is_not_told_is_learned_all_the_same() {
    let server = DnsServer::answering(|asked| {
        let (reply, private) = (Reply::to(&asked.query), asked.name() == "private.example.com.");
        match asked.query_type() {
            RecordType::A => reply.address("203.0.113.10", 60).bytes(),
            _ if private => reply.address("fd00::1", 60).bytes(),
            _ => reply.address("2600:1f14::10", 60).bytes(),
        }
    })
    .await;
    let scene = Scene::new(without_ipv6(&server));
    for _ in 0..2 {
        let answer = scene.client().ask("api.example.com.", RecordType::A).await;
        assert_eq!(addresses(&answer), [ip("203.0.113.10")]);
    }
    for learned in scene.learner.learned() {
        assert_eq!(learned.addresses, [ip("203.0.113.10"), ip("2600:1f14::10")], "of the cached answer too");
    }
    assert_eq!(scene.learner.learned().len(), 2);
    assert_eq!(server.asked().len(), 2);

    let answer = scene.client().ask("private.example.com.", RecordType::A).await;
    assert_eq!(addresses(&answer), [ip("203.0.113.10")]);
    assert_eq!(scene.learner.learned()[2].addresses, [ip("203.0.113.10")]);
}

/// The first question for IPv6 addresses gets lost.
#[tokio::test]
async fn nobody_waits_long_for_what_is_not_told_and_it_is_learned_later() {
    let is_first = AtomicBool::new(true);
    let server = DnsServer::start(move |asked| {
        let reply = Reply::to(&asked.query);
        match asked.query_type() {
            RecordType::A => vec![Act::Send(reply.address("203.0.113.10", 60).bytes())],
            _ if is_first.swap(false, Ordering::Relaxed) => Vec::new(),
            _ => vec![Act::Send(reply.address("2600:1f14::10", 60).bytes())],
        }
    })
    .await;
    let scene = Scene::new(without_ipv6(&server));
    let begun = Instant::now();
    let answer = scene.client().ask("api.example.com.", RecordType::A).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(addresses(&answer), [ip("203.0.113.10")]);
    assert!(answer.answers[0].ttl <= 5, "it is kept as if all were known");
    assert_eq!(scene.learner.addresses(), [ip("203.0.113.10")]);
    let unknown = scene.handle.resolve("api.example.com").await;
    assert_eq!(unknown, Err(Failure::NotAll));
    while scene.learner.addresses().len() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(6), "they are not learned");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(scene.learner.learned().last().unwrap().addresses, [ip("2600:1f14::10")]);
}

#[tokio::test]
async fn what_is_not_told_is_learned_where_there_is_nothing_to_tell() {
    let server = DnsServer::answering(|asked| {
        let reply = Reply::to(&asked.query);
        match asked.query_type() {
            RecordType::A => reply.address("10.0.0.1", 60).bytes(),
            _ => reply.address("2600:1f14::10", 60).bytes(),
        }
    })
    .await;
    let scene = Scene::new(without_ipv6(&server));
    let answer = scene.client().ask("api.example.com.", RecordType::A).await;
    assert_eq!(answer.response_code, ResponseCode::ServFail);
    assert_eq!(scene.learner.addresses(), [ip("2600:1f14::10")]);
}

#[tokio::test]
async fn private_addresses_are_taken_out() {
    let server = DnsServer::answering(|asked| {
        let reply = Reply::to(&asked.query).address("10.0.0.1", 60).address("127.0.0.1", 60);
        match asked.name().as_str() {
            "mixed.example.com." => reply.address("203.0.113.10", 60).bytes(),
            _ => reply.bytes(),
        }
    })
    .await;
    let scene = Scene::asking(&[&server]);
    let client = scene.client();
    let mixed = client.ask("mixed.example.com.", RecordType::A).await;
    assert_eq!(addresses(&mixed), [ip("203.0.113.10")]);
    let bad = client.ask("rebind.example.com.", RecordType::A).await;
    assert_eq!((bad.response_code, extended(&bad)), (ResponseCode::ServFail, Some(BLOCKED)));
    assert!(bad.answers.is_empty());
    assert_eq!(scene.learner.addresses(), [ip("203.0.113.10")]);
    assert_eq!(scene.handle.counts().blocked, 4);
}

#[tokio::test]
async fn private_addresses_that_the_configuration_has_are_told() {
    let server = DnsServer::answering(|asked| {
        let reply = Reply::to(&asked.query);
        let owner = reply.asked();
        match asked.query_type() {
            RecordType::HTTPS => {
                let hint = IpHint(vec![A::new(10, 20, 0, 8), A::new(10, 21, 0, 8)]);
                let params = vec![(SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(hint))];
                reply.record(owner, 60, RData::HTTPS(HTTPS(SVCB::new(1, Name::root(), params))))
            }
            _ => reply.address("10.20.0.7", 60).address("10.21.0.7", 60),
        }
        .bytes()
    })
    .await;
    let scene = Scene::asking(&[&server]);
    let answer = scene.client().ask("api.example.com.", RecordType::A).await;
    assert_eq!(addresses(&answer), [ip("10.20.0.7")]);
    scene.client().ask("api.example.com.", RecordType::HTTPS).await;
    assert_eq!(scene.learner.addresses(), [ip("10.20.0.7"), ip("10.20.0.8")]);
    assert_eq!(scene.handle.counts().blocked, 2);
}

#[tokio::test]
async fn service_records_keep_clients_within_the_policy() {
    let hints = || {
        vec![
            (SvcParamKey::Alpn, SvcParamValue::Alpn(Alpn(vec!["h2".into()]))),
            (
                SvcParamKey::Ipv4Hint,
                SvcParamValue::Ipv4Hint(IpHint(vec![A::new(203, 0, 113, 10), A::new(10, 0, 0, 1)])),
            ),
            (SvcParamKey::EchConfigList, SvcParamValue::EchConfigList(EchConfigList(vec![1, 2, 3]))),
            (
                SvcParamKey::Ipv6Hint,
                SvcParamValue::Ipv6Hint(IpHint(vec![AAAA::new(0x2600, 0, 0, 0, 0, 0, 0, 1)])),
            ),
        ]
    };
    let server = DnsServer::answering(move |asked| {
        let service = |target: &str, params| RData::HTTPS(HTTPS(SVCB::new(1, name(target), params)));
        let mandatory = [
            vec![(SvcParamKey::Mandatory, SvcParamValue::Mandatory(Mandatory(vec![SvcParamKey::Ipv6Hint])))],
            hints(),
        ]
        .concat();
        let reply = Reply::to(&asked.query);
        let owner = reply.asked();
        reply
            .cname(owner, "x.cdn.net.", 60)
            .record(name("x.cdn.net."), 60, service(".", hints()))
            .record(name("x.cdn.net."), 60, service("x.cdn.net.", Vec::new()))
            .record(name("x.cdn.net."), 60, service("other.example.com.", Vec::new()))
            .record(name("x.cdn.net."), 60, service("other.cdn.net.", hints()))
            .record(name("x.cdn.net."), 60, service(".", mandatory))
            .bytes()
    })
    .await;
    let scene = Scene::new(without_ipv6(&server));
    let answer = scene.client().ask("api.example.com.", RecordType::HTTPS).await;
    let services: Vec<_> = answer
        .answers
        .iter()
        .map(|record| match &record.data {
            RData::HTTPS(HTTPS(service)) => service.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    let targets: Vec<_> = services.iter().map(|service| service.target_name.to_ascii()).collect();
    assert_eq!(targets, [".", ".", "other.example.com."]);
    assert!(answer.answers.iter().all(|record| record.name == name("api.example.com.")));
    let kept: Vec<_> = services[0].svc_params.iter().map(|(key, _)| *key).collect();
    assert_eq!(kept, [SvcParamKey::Alpn, SvcParamKey::Ipv4Hint, SvcParamKey::EchConfigList]);
    assert_eq!(services[0].svc_params[1].1, SvcParamValue::Ipv4Hint(IpHint(vec![A::new(203, 0, 113, 10)])));
    assert_eq!(scene.learner.addresses(), [ip("203.0.113.10")]);
}

/// What goes to a port that no rule takes would leave in the clear.
#[tokio::test]
async fn service_records_keep_clients_within_the_ports_of_the_tunnel() {
    let server = DnsServer::answering(|asked| {
        let service = |priority, target: &str, port: Option<u16>, alpn: &str| {
            let port = port.map(|port| (SvcParamKey::Port, SvcParamValue::Port(port)));
            let alpn = (SvcParamKey::Alpn, SvcParamValue::Alpn(Alpn(vec![alpn.to_owned()])));
            let params = [alpn].into_iter().chain(port).collect();
            RData::HTTPS(HTTPS(SVCB::new(priority, name(target), params)))
        };
        let reply = Reply::to(&asked.query);
        let owner = reply.asked();
        let records = match asked.name().as_str() {
            "none.example.com." => vec![service(1, ".", Some(8443), "h2")],
            _ => vec![
                service(1, ".", Some(8443), "h2"),
                service(2, ".", Some(5061), "h2"),
                service(3, ".", Some(5061), "h3"),
                service(4, "other.example.com.", Some(8443), "h2"),
                service(5, "other.example.com.", Some(443), "h3"),
                service(6, ".", None, "h3"),
            ],
        };
        records.into_iter().fold(reply, |reply, data| reply.record(owner.clone(), 60, data)).bytes()
    })
    .await;
    let scene = Scene::asking(&[&server]);
    let answer = scene.client().ask("api.example.com.", RecordType::HTTPS).await;
    let left = answer.answers.iter().map(|record| match &record.data {
        RData::HTTPS(HTTPS(service)) => service.svc_priority,
        other => panic!("{other:?}"),
    });
    assert_eq!(left.collect::<Vec<_>>(), [2, 5, 6]);
    // Without one, a client goes by the name's addresses.
    let none = scene.client().ask("none.example.com.", RecordType::HTTPS).await;
    assert_eq!((none.response_code, none.answers.len()), (ResponseCode::NoError, 0));
}

/// Their targets have to be asked for before they are used, and are learned then.
#[tokio::test]
async fn services_by_name_stay_within_the_policy_and_mail_does_not_have_to() {
    let server = DnsServer::answering(|asked| {
        let reply = Reply::to(&asked.query);
        let owner = reply.asked();
        let srv_at = |target: &str, port| RData::SRV(SRV::new(1, 1, port, name(target)));
        let srv = |target: &str| srv_at(target, 5061);
        match (asked.query_type(), asked.name().as_str()) {
            (RecordType::SRV, "_sips._tcp.example.com.") => reply
                .record(owner.clone(), 60, srv("sip.example.com."))
                .record(owner.clone(), 60, srv("sip.other.net."))
                .record(owner.clone(), 60, srv_at("sip.example.com.", 5081))
                .record(owner, 60, srv(".")),
            (RecordType::SRV, "_sip._udp.example.com.") => reply
                .record(owner.clone(), 60, srv("sip.example.com."))
                .record(owner, 60, srv_at("sip.example.com.", 5060)),
            (RecordType::SRV, "_sip._tcp.example.com." | "_sip._sctp.example.com.") => reply
                .record(owner.clone(), 60, srv_at("sip.example.com.", 5060))
                .record(owner, 60, srv_at("sip.example.com.", 5081)),
            (RecordType::SRV, _) => reply.record(owner, 60, srv("sip.other.net.")),
            (RecordType::NAPTR, _) => {
                let naptr = |replacement: &str| {
                    let [flags, service] = [b"s".as_slice(), b"SIPS+D2T"].map(Box::from);
                    RData::NAPTR(NAPTR::new(1, 1, flags, service, Box::default(), name(replacement)))
                };
                let regexp = b"!^.*$!sips:sip.other.net!".as_slice().into();
                let uri = NAPTR::new(1, 1, Box::from(b"u".as_slice()), Box::default(), regexp, Name::root());
                reply
                    .record(owner.clone(), 60, naptr("_sips._tcp.example.com."))
                    .record(owner.clone(), 60, naptr("_sips._tcp.other.net."))
                    .record(owner, 60, RData::NAPTR(uri))
            }
            (RecordType::CNAME, "inside.example.com.") => {
                reply.record(owner, 60, RData::CNAME(CNAME(name("api.example.com."))))
            }
            (RecordType::CNAME, _) => reply.record(owner, 60, RData::CNAME(CNAME(name("api.other.net.")))),
            (URI, _) => {
                let data = NULL::with(b"\0\x01\0\x01https://api.other.net/".to_vec());
                reply.record(owner, 60, RData::Unknown { code: URI, rdata: data })
            }
            _ => reply.record(owner, 60, RData::MX(MX::new(10, name("mail.other.net.")))),
        }
        .bytes()
    })
    .await;
    let scene = Scene::asking(&[&server]);
    let client = scene.client();
    let srv = client.ask("_sips._tcp.example.com.", RecordType::SRV).await;
    let targets: Vec<_> = srv.answers.iter().map(|record| record.data.to_string()).collect();
    assert_eq!(targets, ["1 1 5061 sip.example.com.", "1 1 5061 ."]);
    let udp = client.ask("_SIP._UDP.example.com.", RecordType::SRV).await;
    assert_eq!(udp.answers[0].data.to_string(), "1 1 5060 sip.example.com.");
    assert_eq!(udp.answers.len(), 1, "5061 is led into the TUN by TCP");
    for name in ["_sip._tls.example.com.", "_sip._tcp.example.com.", "_sip._sctp.example.com."] {
        let none = client.ask(name, RecordType::SRV).await;
        assert_eq!((none.response_code, extended(&none)), (ResponseCode::ServFail, Some(BLOCKED)), "{name}");
    }
    assert_eq!(client.ask("example.com.", RecordType::NAPTR).await.answers.len(), 1);
    assert_eq!(client.ask("example.com.", RecordType::MX).await.answers.len(), 1);
    assert_eq!(client.ask("inside.example.com.", RecordType::CNAME).await.answers.len(), 1);
    let outside = client.ask("outside.example.com.", RecordType::CNAME).await;
    assert_eq!((outside.response_code, outside.answers.len()), (ResponseCode::NoError, 0));
    let uri = client.ask("example.com.", URI).await;
    assert_eq!((uri.response_code, extended(&uri)), (ResponseCode::ServFail, Some(BLOCKED)));
    assert!(scene.learner.learned().is_empty());
}

#[tokio::test]
async fn other_types_pass() {
    let server = DnsServer::answering(|asked| {
        let reply = Reply::to(&asked.query);
        let owner = reply.asked();
        reply.record(owner, 60, RData::TXT(TXT::new(vec!["v=spf1 -all".into()]))).bytes()
    })
    .await;
    let scene = Scene::asking(&[&server]);
    let answer = scene.client().ask("example.com.", RecordType::TXT).await;
    assert_eq!(answer.answers[0].data, RData::TXT(TXT::new(vec!["v=spf1 -all".into()])));
    assert!(scene.learner.learned().is_empty());
}

#[tokio::test]
async fn a_negative_answer_is_kept_as_its_soa_says() {
    let server = DnsServer::answering(|asked| {
        let reply = Reply::to(&asked.query);
        match asked.name().as_str() {
            "gone.example.com." => reply.code(ResponseCode::NXDomain).soa("example.com.", 900, 60).bytes(),
            "empty.example.com." => reply.soa("example.com.", 30, 900).bytes(),
            _ => reply.code(ResponseCode::NXDomain).bytes(),
        }
    })
    .await;
    let scene = Scene::asking(&[&server]);
    let client = scene.client();
    for (name, code, ttl, questions) in [
        ("gone.example.com.", ResponseCode::NXDomain, Some(60), 1),
        ("empty.example.com.", ResponseCode::NoError, Some(30), 1),
        ("bare.example.com.", ResponseCode::NXDomain, None, 2),
    ] {
        let before = server.asked().len();
        let answer = client.ask(name, RecordType::A).await;
        assert_eq!((answer.response_code, answer.answers.len()), (code, 0), "{name}");
        assert_eq!(answer.authorities.first().map(|soa| soa.ttl), ttl, "{name}");
        assert_eq!(client.ask(name, RecordType::A).await.response_code, code);
        assert_eq!(server.asked().len() - before, questions, "{name}");
    }
}

#[tokio::test]
async fn an_answer_too_large_for_the_client_is_cut_and_whole_by_tcp() {
    let server = DnsServer::answering(|asked| {
        let reply = Reply::to(&asked.query);
        (1..=60).fold(reply, |reply, last| reply.address(&format!("203.0.113.{last}"), 60)).bytes()
    })
    .await;
    let scene = Scene::asking(&[&server]);
    let client = scene.client();
    for (edns, whole) in [(None, false), (Some(512), false), (Some(1232), true)] {
        let answer = client.udp(&question("api.example.com.", RecordType::A, edns)).await;
        assert_eq!(
            (answer.truncation, answer.answers.len()),
            (!whole, if whole { 60 } else { 0 }),
            "{edns:?}"
        );
        assert_eq!(answer.edns.is_some(), edns.is_some());
    }
    let answer = client.tcp(&question("api.example.com.", RecordType::A, None)).await;
    assert_eq!((answer.truncation, answer.answers.len()), (false, 60));
}

#[tokio::test]
async fn equal_questions_at_once_are_one_exchange() {
    let server = DnsServer::start(|asked| {
        let answer = Reply::to(&asked.query).address("203.0.113.10", 60).bytes();
        vec![Act::Wait(Duration::from_millis(300)), Act::Send(answer)]
    })
    .await;
    let scene = Scene::asking(&[&server]);
    let clients: Vec<_> = (0..50)
        .map(|_| {
            let client = scene.client();
            tokio::spawn(async move { client.ask("api.example.com.", RecordType::A).await })
        })
        .collect();
    for client in clients {
        assert_eq!(addresses(&client.await.unwrap()), [ip("203.0.113.10")]);
    }
    let counts = scene.handle.counts();
    assert_eq!(counts.asked, 50);
    // Whoever came after the first answer had it from the cache.
    assert_eq!(server.asked().len(), 1);
    assert_eq!(counts.exchanges, 1);
}

#[tokio::test]
async fn the_handle_resolves_and_flushes() {
    let server = DnsServer::answering(|asked| {
        let reply = Reply::to(&asked.query);
        match asked.query_type() {
            RecordType::A => reply.address("203.0.113.10", 60).bytes(),
            _ => reply.address("2600:1f14::10", 60).bytes(),
        }
    })
    .await;
    let scene = Scene::asking(&[&server]);
    let found = scene.handle.resolve("API.example.com").await.unwrap();
    assert_eq!(found, [ip("203.0.113.10"), ip("2600:1f14::10")]);
    assert_eq!(scene.learner.addresses(), found);
    assert_eq!(scene.handle.counts().entries, 2);

    scene.handle.flush();
    assert_eq!((scene.handle.counts().entries, scene.handle.counts().bytes), (0, 0));
    scene.handle.resolve("api.example.com").await.unwrap();
    assert_eq!(server.asked().len(), 4);
    assert!(scene.handle.resolve("not..a name").await.is_err());
}

fn without_ipv6(server: &DnsServer) -> Settings {
    Settings { ipv6: false, ..settings(&[server]) }
}
