//! DNS servers behind the tunnel that are slow, dead, confused or lying.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::common::{Act, Asked, DnsServer, LOOPBACK, Reply, SOON, Scene, settings};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{DNSClass, RecordType};
use names::Settings;

const NO_REACHABLE_AUTHORITY: u16 = 22;
const NETWORK_ERROR: u16 = 23;
const TRUE: &str = "203.0.113.10";
const FALSE: &str = "203.0.113.66";

fn answer(asked: &Asked, address: &str) -> Vec<u8> {
    Reply::to(&asked.query).address(address, 60).bytes()
}

async fn truthful() -> DnsServer {
    DnsServer::answering(|asked| answer(asked, TRUE)).await
}

fn addresses(message: &Message) -> Vec<String> {
    message
        .answers
        .iter()
        .filter_map(|record| record.data.ip_addr())
        .map(|ip: IpAddr| ip.to_string())
        .collect()
}

fn extended(message: &Message) -> Option<u16> {
    match message.edns.as_ref()?.option(EdnsCode::Unknown(15))? {
        EdnsOption::Unknown(_, data) => Some(u16::from_be_bytes(*data.first_chunk::<2>()?)),
        _ => None,
    }
}

async fn ask(scene: &Scene) -> Message {
    scene.client().ask("api.example.com.", RecordType::A).await
}

#[tokio::test]
async fn a_query_is_hard_to_guess() {
    let server = truthful().await;
    let scene = Scene::asking(&[&server]);
    for number in 0..64 {
        scene.client().ask(&format!("a-long-enough-name-{number}.example.com."), RecordType::A).await;
    }
    let asked = server.asked();
    let ids: HashSet<_> = asked.iter().map(|asked| asked.query.id).collect();
    let ports: HashSet<_> = asked.iter().map(|asked| asked.from.port()).collect();
    let with_case = asked.iter().filter(|asked| {
        let name = asked.query.queries[0].name.to_ascii();
        name != name.to_lowercase() && name != name.to_uppercase()
    });
    assert_eq!(with_case.count(), 64);
    // 64 draws of 65536 and of 28232 are nearly all different.
    assert!(ids.len() > 58 && ports.len() > 54, "{} ids, {} ports", ids.len(), ports.len());
    assert!(
        asked.iter().all(|asked| asked.query.edns.as_ref().is_some_and(|edns| edns.max_payload() == 1232))
    );
    assert!(asked.iter().all(|asked| asked.query.recursion_desired && asked.from.ip() == LOOPBACK));
}

#[tokio::test]
async fn what_does_not_answer_the_query_is_ignored() {
    let server = DnsServer::start(|asked| {
        let wrong_id = {
            let mut bytes = answer(asked, FALSE);
            bytes[0] ^= 1;
            bytes
        };
        let not_an_answer = {
            let mut bytes = answer(asked, FALSE);
            bytes[2] &= 0x7f;
            bytes
        };
        let wrong_name = {
            let mut query = asked.query.clone();
            query.queries[0].name = "other.example.com.".parse().unwrap();
            Reply::to(&query).address(FALSE, 60).bytes()
        };
        let wrong_type = {
            let mut query = asked.query.clone();
            query.queries[0].query_type = RecordType::TXT;
            Reply::to(&query).address(FALSE, 60).bytes()
        };
        vec![
            Act::Send(wrong_id),
            Act::Send(not_an_answer),
            Act::Send(wrong_name),
            Act::Send(wrong_type),
            Act::Send(vec![0; 5]),
            Act::SendFromElsewhere(answer(asked, FALSE)),
            Act::Wait(Duration::from_millis(50)),
            Act::Send(answer(asked, TRUE)),
        ]
    })
    .await;
    let scene = Scene::asking(&[&server]);
    assert_eq!(addresses(&ask(&scene).await), [TRUE]);
    // The one from elsewhere never gets past the kernel.
    assert_eq!(scene.handle.counts().strays, 5);
    assert_eq!(scene.learner.addresses(), [TRUE.parse::<IpAddr>().unwrap()]);
}

#[tokio::test]
async fn records_that_were_not_asked_for_are_left_out() {
    let server = DnsServer::answering(|asked| {
        let mut reply = Reply::to(&asked.query)
            .address(TRUE, 60)
            .address_at("bank.example.net.".parse().unwrap(), FALSE, 60)
            .address("2600:1f14::66", 60);
        let extra = Reply::to(&asked.query).address("203.0.113.67", 60).0.answers;
        reply.0.additionals = extra;
        reply.bytes()
    })
    .await;
    let scene = Scene::asking(&[&server]);
    let answer = ask(&scene).await;
    assert_eq!(addresses(&answer), [TRUE]);
    assert!(answer.additionals.is_empty() && answer.authorities.is_empty());
    assert_eq!(scene.learner.addresses(), [TRUE.parse::<IpAddr>().unwrap()]);
}

#[tokio::test]
async fn a_server_that_does_not_keep_case_is_asked_without() {
    let server = DnsServer::answering(|asked| {
        let mut query = asked.query.clone();
        query.queries[0].name = query.queries[0].name.to_lowercase();
        Reply::to(&query).address(TRUE, 60).bytes()
    })
    .await;
    let scene = Scene::asking(&[&server]);
    assert_eq!(addresses(&ask(&scene).await), [TRUE]);
    let asked = server.asked();
    let last = asked.last().unwrap().query.queries[0].name.to_ascii();
    assert_eq!(last, last.to_lowercase());
    assert_ne!(asked[0].from.port(), asked[asked.len() - 1].from.port());
}

#[tokio::test]
async fn a_truncated_answer_is_asked_for_by_tcp() {
    let server = DnsServer::answering(|asked| {
        if asked.tcp {
            return answer(asked, TRUE);
        }
        Reply::to(&asked.query).address(FALSE, 60).truncated().bytes()
    })
    .await;
    let scene = Scene::asking(&[&server]);
    assert_eq!(addresses(&ask(&scene).await), [TRUE]);
    assert_eq!(server.asked().iter().map(|asked| asked.tcp).collect::<Vec<_>>(), [false, true]);
}

#[tokio::test]
async fn a_server_that_truncates_by_tcp_too_is_an_error() {
    let server = DnsServer::answering(|asked| Reply::to(&asked.query).truncated().bytes()).await;
    let scene = Scene::asking(&[&server]);
    let answer = ask(&scene).await;
    assert_eq!((answer.response_code, extended(&answer)), (ResponseCode::ServFail, Some(NETWORK_ERROR)));
}

/// It takes the connection and says nothing.
#[tokio::test]
async fn a_server_that_falls_silent_by_tcp_leaves_it_to_the_next_and_has_an_end() {
    let silent = DnsServer::start(|asked| {
        vec![if asked.tcp { Act::Wait(SOON) } else { Act::Send(Reply::to(&asked.query).truncated().bytes()) }]
    })
    .await;
    let living = truthful().await;
    assert_eq!(addresses(&ask(&Scene::asking(&[&silent, &living])).await), [TRUE]);

    let began = Instant::now();
    let answer = ask(&Scene::asking(&[&silent])).await;
    assert_eq!(answer.response_code, ResponseCode::ServFail);
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

/// An answer for other names, of another type, and of another class is as good as none.
#[tokio::test]
async fn a_server_that_answers_with_something_else_has_not_found_the_name() {
    let server = DnsServer::answering(|asked| {
        let mut reply = Reply::to(&asked.query).address_at("bank.example.net.".parse().unwrap(), FALSE, 60);
        let mut other_class = Reply::to(&asked.query).address(FALSE, 60).0.answers.remove(0);
        other_class.dns_class = DNSClass::CH;
        reply.0.answers.push(other_class);
        reply.bytes()
    })
    .await;
    let scene = Scene::asking(&[&server]);
    let answer = ask(&scene).await;
    assert!(answer.answers.is_empty(), "{answer:?}");
    assert!(scene.learner.learned().is_empty());
}

#[tokio::test]
async fn a_dead_server_is_passed_over() {
    let (dead, living) = (DnsServer::silent().await, truthful().await);
    let scene = Scene::asking(&[&dead, &living]);
    assert_eq!(addresses(&ask(&scene).await), [TRUE]);
    // The one that answered is asked first from now on.
    let before = dead.asked().len();
    scene.client().ask("www.example.com.", RecordType::A).await;
    assert_eq!(dead.asked().len(), before);
}

#[tokio::test]
async fn a_slow_server_is_waited_for() {
    let server = DnsServer::start(|asked| {
        let late = if asked.before == 0 { Duration::from_millis(1500) } else { SOON };
        vec![Act::Wait(late), Act::Send(answer(asked, TRUE))]
    })
    .await;
    let scene = Scene::asking(&[&server]);
    assert_eq!(addresses(&ask(&scene).await), [TRUE]);
}

#[tokio::test]
async fn servers_that_all_are_dead_end_in_an_error() {
    let (one, other) = (DnsServer::silent().await, DnsServer::silent().await);
    let scene = Scene::asking(&[&one, &other]);
    let began = Instant::now();
    let answer = ask(&scene).await;
    assert!(began.elapsed() >= Duration::from_secs(4));
    assert_eq!(
        (answer.response_code, extended(&answer)),
        (ResponseCode::ServFail, Some(NO_REACHABLE_AUTHORITY))
    );
    assert!(one.asked().len() >= 2 && !other.asked().is_empty());
}

#[tokio::test]
async fn a_server_that_refuses_garbles_or_refers_leaves_it_to_the_next() {
    let garble = |asked: &Asked| {
        let mut bytes = answer(asked, FALSE);
        bytes.truncate(bytes.len() - 3);
        bytes
    };
    type Answer = Box<dyn Fn(&Asked) -> Vec<u8> + Send + Sync>;
    let bad: [Answer; 5] = [
        Box::new(|asked| Reply::to(&asked.query).code(ResponseCode::ServFail).bytes()),
        Box::new(|asked| Reply::to(&asked.query).code(ResponseCode::Refused).bytes()),
        Box::new(|asked| Reply::to(&asked.query).code(ResponseCode::FormErr).bytes()),
        Box::new(|asked| Reply::to(&asked.query).referral("com.").bytes()),
        Box::new(garble),
    ];
    for (number, bad) in bad.into_iter().enumerate() {
        let (bad, good) = (DnsServer::answering(bad).await, truthful().await);
        let scene = Scene::asking(&[&bad, &good]);
        assert_eq!(addresses(&ask(&scene).await), [TRUE], "{number}");

        let alone = Scene::asking(&[&bad]);
        let began = Instant::now();
        let answer = ask(&alone).await;
        assert_eq!(answer.response_code, ResponseCode::ServFail, "{number}");
        assert!(extended(&answer).is_some());
        assert!(began.elapsed() < Duration::from_secs(4), "it said no, which is known at once");
    }
}

#[tokio::test]
async fn nobody_listening_and_no_address_of_that_family_are_known_at_once() {
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (upstream, code) in
        [(closed, NETWORK_ERROR), (SocketAddr::from(([0u16; 8], 53)), NO_REACHABLE_AUTHORITY)]
    {
        let scene = Scene::new(Settings { upstreams: vec![upstream], ..settings(&[]) });
        let began = Instant::now();
        let answer = ask(&scene).await;
        assert_eq!((answer.response_code, extended(&answer)), (ResponseCode::ServFail, Some(code)));
        assert!(began.elapsed() < Duration::from_secs(4));
    }
}

#[tokio::test]
async fn too_many_names_at_once_are_refused_at_once() {
    let server = DnsServer::silent().await;
    let scene = Scene::asking(&[&server]);
    let mut clients = Vec::new();
    for number in 0..300 {
        let client = scene.client();
        clients.push(tokio::spawn(async move {
            let began = Instant::now();
            let answer = client.ask(&format!("{number}.example.com."), RecordType::A).await;
            assert_eq!(answer.response_code, ResponseCode::ServFail);
            (extended(&answer).unwrap(), began.elapsed())
        }));
        if number % 50 == 0 {
            // More at once than a socket's buffer holds would be lost.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let mut busy = 0;
    for client in clients {
        let (code, time) = client.await.unwrap();
        if code == NO_REACHABLE_AUTHORITY {
            assert!(time >= Duration::from_secs(4));
        } else {
            busy += 1;
        }
    }
    // On a busy machine, some come when the first are over.
    assert!(busy <= 300 - 256);
    assert!(busy > 0 || scene.handle.counts().exchanges == 300);
}
