//! Names that are none of the policy's go where they went before.

use super::common::{Act, DnsServer, Reply, Scene, question, settings};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use names::Settings;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::sethostname;

async fn forward(address: &'static str) -> DnsServer {
    DnsServer::answering(move |asked| Reply::to(&asked.query).address(address, 60).bytes()).await
}

fn relaying(servers: &[&DnsServer]) -> Scene {
    let forward = servers.iter().map(|server| server.address()).collect();
    Scene::new(Settings { forward, ..settings(&[]) })
}

#[tokio::test]
async fn nothing_is_changed_but_the_id_and_that_is_put_back() {
    // Records, case, flags and private addresses that we would not give out ourselves.
    let server = DnsServer::answering(|asked| {
        let mut reply = Reply::to(&asked.query).address("10.1.2.3", 86400).address("2600:1f14::1", 0);
        reply.0.metadata.authentic_data = true;
        [reply.bytes(), vec![7; 9]].concat()
    })
    .await;
    let scene = relaying(&[&server]);
    let query = question("wWw.Other.net.", RecordType::AAAA, Some(4096)).to_vec().unwrap();
    for tcp in [false, true] {
        let client = scene.client();
        let answer = if tcp { client.tcp_bytes(&query).await } else { client.udp_bytes(&query).await };
        let asked = server.asked().pop().unwrap();
        assert_eq!(asked.tcp, tcp);
        assert_eq!(asked.bytes[2..], query[2..]);
        let mut expected = Reply::to(&Message::from_vec(&query).unwrap()).address("10.1.2.3", 86400);
        expected = expected.address("2600:1f14::1", 0);
        expected.0.metadata.authentic_data = true;
        assert_eq!(answer, [expected.bytes(), vec![7; 9]].concat());
    }
    assert_eq!(scene.handle.counts().relayed, 2);
    assert!(scene.learner.learned().is_empty());
}

#[tokio::test]
async fn an_answer_to_another_query_is_not_passed_on() {
    let server = DnsServer::start(|asked| {
        let answer = Reply::to(&asked.query).address("192.0.2.1", 60).bytes();
        let mut wrong_id = answer.clone();
        wrong_id[1] ^= 1;
        let mut other = asked.query.clone();
        other.queries[0].name = "bank.example.net.".parse().unwrap();
        let wrong_name = Reply::to(&other).address("192.0.2.66", 60).bytes();
        vec![Act::Send(wrong_id), Act::Send(wrong_name), Act::Send(answer)]
    })
    .await;
    let scene = relaying(&[&server]);
    let answer = scene.client().ask("www.other.net.", RecordType::A).await;
    assert_eq!(answer.answers[0].data.ip_addr(), Some("192.0.2.1".parse().unwrap()));
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_is_dead_or_fails() {
    let dead = DnsServer::silent().await;
    let failing =
        DnsServer::answering(|asked| Reply::to(&asked.query).code(ResponseCode::ServFail).bytes()).await;
    let good = forward("192.0.2.1").await;
    for first in [&dead, &failing] {
        let scene = relaying(&[first, &good]);
        let answer = scene.client().ask("www.other.net.", RecordType::A).await;
        assert_eq!(answer.answers.len(), 1);
    }
    // Nobody else to ask: what it says is what there is to say.
    let scene = relaying(&[&failing]);
    let answer = scene.client().ask("www.other.net.", RecordType::A).await;
    assert_eq!(answer.response_code, ResponseCode::ServFail);
    assert_eq!(scene.handle.counts().failed, 0);
}

/// As the C library has it.
#[tokio::test]
async fn a_failure_leaves_the_first_server_the_first_one() {
    let failing = DnsServer::answering(|asked| match asked.name().as_str() {
        "broken.other.net." => Reply::to(&asked.query).code(ResponseCode::ServFail).bytes(),
        _ => Reply::to(&asked.query).address("192.0.2.1", 60).bytes(),
    })
    .await;
    let second = forward("192.0.2.2").await;
    let scene = relaying(&[&failing, &second]);
    let found = async |name: &str| scene.client().ask(name, RecordType::A).await.answers[0].data.ip_addr();
    let (first, other) = (Some("192.0.2.1".parse().unwrap()), Some("192.0.2.2".parse().unwrap()));
    assert_eq!(found("broken.other.net.").await, other);
    for _ in 0..3 {
        assert_eq!(found("www.other.net.").await, first);
    }
    assert_eq!((failing.asked().len(), second.asked().len()), (4, 1));
}

#[tokio::test]
async fn a_silent_server_costs_its_time_once() {
    let (dead, good) = (DnsServer::silent().await, forward("192.0.2.1").await);
    let scene = relaying(&[&dead, &good]);
    for _ in 0..4 {
        assert_eq!(scene.client().ask("www.other.net.", RecordType::A).await.answers.len(), 1);
    }
    assert_eq!((dead.asked().len(), good.asked().len()), (1, 4));
}

#[tokio::test]
async fn without_a_server_it_is_refused_and_without_an_answer_it_fails() {
    let scene = relaying(&[]);
    let answer = scene.client().ask("www.other.net.", RecordType::A).await;
    assert_eq!(answer.response_code, ResponseCode::Refused);

    let scene = relaying(&[&DnsServer::silent().await]);
    let answer = scene.client().ask("www.other.net.", RecordType::A).await;
    assert_eq!(answer.response_code, ResponseCode::ServFail);
    assert_eq!(scene.handle.counts().failed, 1);
}

#[tokio::test]
async fn servers_change_while_it_runs_and_are_never_ourselves() {
    let (one, other) = (forward("192.0.2.1").await, forward("192.0.2.2").await);
    let scene = relaying(&[&one]);
    let client = scene.client();
    assert_eq!(client.ask("www.other.net.", RecordType::A).await.answers.len(), 1);
    scene.handle.set_forward(vec![scene.handle.listening()[0], other.address()]);
    let answer = client.ask("www.other.net.", RecordType::A).await;
    assert_eq!(answer.answers[0].data.ip_addr(), Some("192.0.2.2".parse().unwrap()));
    scene.handle.set_forward(vec![scene.handle.listening()[0]]);
    let answer = client.ask("www.other.net.", RecordType::A).await;
    assert_eq!(answer.response_code, ResponseCode::Refused);
}

/// The C library goes on to these when a name has no answer, and a network says what it completes names with.
#[tokio::test]
async fn a_name_of_the_policys_that_the_search_list_completes_is_not_passed_on() {
    let server = forward("192.0.2.1").await;
    let scene = relaying(&[&server]);
    let client = scene.client();
    let code = async |name: &str| client.ask(name, RecordType::A).await.response_code;
    assert_eq!(code("api.example.com.corp.test.").await, ResponseCode::NoError);
    scene.handle.set_search(&["Corp.Test.".to_owned(), ".".to_owned(), "not..one".to_owned()]);
    let before = server.asked().len();
    for name in ["api.example.com.corp.test.", "EXAMPLE.com.corp.TEST.", "_sips._tcp.example.com.corp.test."]
    {
        assert_eq!(code(name).await, ResponseCode::NXDomain, "{name}");
    }
    assert_eq!(code(&format!("{}.corp.test.", names::CANARIES[0])).await, ResponseCode::NXDomain);
    assert_eq!(server.asked().len(), before);

    let others = ["corp.test.", "intranet.corp.test.", "example.com.other.test.", "example.com.xcorp.test."];
    for name in others {
        assert_eq!(code(name).await, ResponseCode::NoError, "{name}");
    }
    assert_eq!(server.asked().len(), before + others.len());

    // A program may have the list from before.
    scene.handle.set_search(&["home.test".to_owned()]);
    for name in ["api.example.com.home.test.", "api.example.com.corp.test."] {
        assert_eq!(code(name).await, ResponseCode::NXDomain, "{name}");
    }
    assert_eq!(server.asked().len(), before + others.len());
}

/// Where no list is given the C library takes the domain of the host's name, which a network may give (DHCP option 12), at any time.
#[tokio::test]
async fn neither_is_one_that_the_hosts_own_name_completes() {
    // The resolver's task runs in this thread.
    if let Err(error) = unshare(CloneFlags::CLONE_NEWUTS) {
        assert!(std::env::var_os("BREAKOUT_REQUIRE_ALL").is_none(), "no namespace of host names: {error}");
        return eprintln!("skipped, because the host's name cannot be another: {error}");
    }
    let server = forward("192.0.2.1").await;
    let scene = relaying(&[&server]);
    let client = scene.client();
    for (host, completed) in [
        ("pc", false),
        ("pc.other.test", false),
        ("pc.Evil.test.", true),
        ("pc.", false),
        ("evil.test", false),
    ] {
        sethostname(host).unwrap();
        let code = client.ask("api.example.com.evil.test.", RecordType::A).await.response_code;
        assert_eq!(code == ResponseCode::NXDomain, completed, "on {host}");
        assert_eq!(client.ask("www.evil.test.", RecordType::A).await.response_code, ResponseCode::NoError);
    }
}

/// A program that asks for one of these resolves by itself from then on, as far as anybody can tell.
#[tokio::test]
async fn a_server_of_dns_over_https_is_passed_on_and_counted() {
    let server = forward("192.0.2.1").await;
    let scene = relaying(&[&server]);
    let client = scene.client();
    assert!(scene.handle.doh().is_empty());
    for name in ["dns.google.", "Mozilla.Cloudflare-DNS.com.", "dns.google.", "www.google."] {
        assert_eq!(client.ask(name, RecordType::A).await.answers.len(), 1, "{name}");
    }
    assert_eq!(scene.handle.doh(), [("dns.google", 2), ("mozilla.cloudflare-dns.com", 1)]);
    assert_eq!((server.asked().len(), scene.handle.counts().relayed), (4, 4));
}
