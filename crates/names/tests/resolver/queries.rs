//! What a client gets for queries that are not questions for one of the policy's names.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use super::common::{Client, DnsServer, LOOPBACK, Reply, SOON, Scene, TestPolicy, question, settings};
use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use names::Settings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

fn bytes(name: &str, query_type: RecordType) -> Vec<u8> {
    question(name, query_type, None).to_vec().unwrap()
}

/// The response code of the answer, and how many questions it repeats.
async fn outcome(client: &Client, query: &[u8]) -> (ResponseCode, usize) {
    let answer = client.udp_bytes(query).await;
    assert_eq!(answer[..2], query[..2], "the id");
    let answer = Message::from_vec(&answer).unwrap();
    (answer.response_code, answer.queries.len())
}

#[tokio::test]
async fn what_is_no_proper_question_is_an_error() {
    let server =
        DnsServer::answering(|asked| Reply::to(&asked.query).address("203.0.113.10", 60).bytes()).await;
    let scene = Scene::asking(&[&server]);
    let client = scene.client();
    let proper = bytes("api.example.com.", RecordType::A);

    let with = |at: usize, value: u8| {
        let mut query = proper.clone();
        query[at] = value;
        query
    };
    let another_class = |class| {
        let mut query = question("api.example.com.", RecordType::A, None);
        query.queries[0].query_class = class;
        query.to_vec().unwrap()
    };
    let mut newer = question("api.example.com.", RecordType::A, None);
    let mut edns = Edns::new();
    edns.set_version(1);
    newer.edns = Some(edns);
    for (what, query, expected) in [
        ("no question", with(5, 0), (ResponseCode::FormErr, 0)),
        ("two questions", with(5, 2), (ResponseCode::FormErr, 0)),
        ("a name that is cut", proper[..20].to_vec(), (ResponseCode::FormErr, 0)),
        ("a pointer", with(12, 0xc0), (ResponseCode::FormErr, 0)),
        ("a record that is not there", with(11, 1), (ResponseCode::FormErr, 1)),
        ("a header", proper[..12].to_vec(), (ResponseCode::FormErr, 0)),
        ("NOTIFY", with(2, 0x20), (ResponseCode::NotImp, 0)),
        ("UPDATE", with(2, 0x28), (ResponseCode::NotImp, 0)),
        ("CH", another_class(DNSClass::CH), (ResponseCode::Refused, 1)),
        ("class ANY", another_class(DNSClass::ANY), (ResponseCode::Refused, 1)),
        ("ANY", bytes("api.example.com.", RecordType::ANY), (ResponseCode::Refused, 1)),
        ("AXFR", bytes("example.com.", RecordType::AXFR), (ResponseCode::Refused, 1)),
        // BADVERS and BADSIG are the same number, 16.
        ("a later EDNS", newer.to_vec().unwrap(), (ResponseCode::BADSIG, 1)),
    ] {
        assert_eq!(outcome(&client, &query).await, expected, "{what}");
    }
    assert_eq!(scene.handle.counts().refused, 13);
    assert!(server.asked().is_empty());
    assert_eq!(outcome(&client, &proper).await, (ResponseCode::NoError, 1));
}

#[tokio::test]
async fn what_is_no_query_is_met_with_silence() {
    let scene = Scene::asking(&[]);
    let mut answer = bytes("api.example.com.", RecordType::A);
    answer[2] |= 0x80;
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(scene.handle.listening()[0]).await.unwrap();
    for silent in [&answer[..], &answer[..11], &[]] {
        socket.send(silent).await.unwrap();
    }
    // The next one is answered, and nothing came before it.
    let query = bytes("www.other.net.", RecordType::A);
    socket.send(&query).await.unwrap();
    let mut buffer = [0; 512];
    let length = timeout(SOON, socket.recv(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().id, Message::from_vec(&query).unwrap().id);
    let more = timeout(Duration::from_millis(200), socket.recv(&mut buffer)).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test]
async fn a_canary_does_not_exist() {
    let forward =
        DnsServer::answering(|asked| Reply::to(&asked.query).address("192.0.2.1", 60).bytes()).await;
    let scene = Scene::new(Settings { forward: vec![forward.address()], ..settings(&[]) });
    for name in names::CANARIES {
        for query_type in [RecordType::A, RecordType::AAAA] {
            let answer = scene.client().ask(&format!("{}.", name.to_uppercase()), query_type).await;
            assert_eq!((answer.response_code, answer.answers.len()), (ResponseCode::NXDomain, 0), "{name}");
        }
    }
    assert!(forward.asked().is_empty());
}

#[tokio::test]
async fn a_connection_may_ask_again_and_again() {
    let server =
        DnsServer::answering(|asked| Reply::to(&asked.query).address("203.0.113.10", 60).bytes()).await;
    let scene = Scene::asking(&[&server]);
    let mut stream = scene.client().connect().await;
    let (first, second) = (bytes("a.example.com.", RecordType::A), bytes("b.example.com.", RecordType::A));
    let framed = |query: &[u8]| [&u16::try_from(query.len()).unwrap().to_be_bytes(), query].concat();
    let both = [framed(&first), framed(&second)].concat();
    // In pieces that end where they should not.
    for piece in both.chunks(7) {
        stream.write_all(piece).await.unwrap();
        stream.flush().await.unwrap();
    }
    for query in [&first, &second] {
        let length = timeout(SOON, stream.read_u16()).await.unwrap().unwrap();
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await.unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!((answer.id, answer.answers.len()), (Message::from_vec(query).unwrap().id, 1));
    }
    // What cannot be a query ends the connection.
    stream.write_all(&[0, 3, 1, 2, 3]).await.unwrap();
    assert_eq!(timeout(SOON, stream.read(&mut [0; 16])).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn only_this_machine_is_answered() {
    // Which of this machine's addresses a packet to the internet would come from; none is sent.
    let local = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("203.0.113.1:53")?;
        socket.local_addr()
    });
    let Ok(local) = local.map(|address| address.ip()) else {
        return super::common::skip("this machine has no route to the internet");
    };
    // As a neighbour's query looks: neither from loopback nor from an address that is listened on.
    let listen = vec![SocketAddr::from(([0, 0, 0, 0], 0))];
    let scene = Scene::new(Settings { listen, ..settings(&[]) });
    let port = scene.handle.listening()[0].port();
    let socket = tokio::net::UdpSocket::bind((local, 0)).await.unwrap();
    socket.send_to(&bytes("api.example.com.", RecordType::A), (local, port)).await.unwrap();
    let mut stream = tokio::net::TcpStream::connect((local, port)).await.unwrap();
    assert_eq!(timeout(SOON, stream.read(&mut [0; 16])).await.unwrap().unwrap_or(0), 0);

    let neighbour = Client::new(SocketAddr::new(LOOPBACK, port));
    neighbour.ask("api.example.com.", RecordType::A).await;
    assert_eq!(scene.handle.counts().strangers, 2);
    assert_eq!(scene.handle.counts().asked, 1);
}

#[tokio::test]
async fn an_address_in_use_is_an_error_that_names_it() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let (sender, _receiver) = tokio::sync::mpsc::channel(1);
    let error = names::Resolver::bind(
        Settings { listen: vec![address], ..settings(&[]) },
        Arc::new(TestPolicy),
        sender,
    )
    .err();
    let error = error.unwrap();
    assert_eq!((error.address, error.protocol), (address, "UDP"));
    assert_eq!(error.source.kind(), std::io::ErrorKind::AddrInUse);
}
