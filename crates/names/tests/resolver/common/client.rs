use std::net::SocketAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::SOON;

/// An application's stub resolver.
pub struct Client {
    resolver: SocketAddr,
}

impl Client {
    pub fn new(resolver: SocketAddr) -> Self {
        Self { resolver }
    }

    pub async fn ask(&self, name: &str, query_type: RecordType) -> Message {
        self.udp(&question(name, query_type, Some(1232))).await
    }

    pub async fn udp(&self, query: &Message) -> Message {
        let answer = self.udp_bytes(&query.to_vec().unwrap()).await;
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(answer.id, query.id);
        assert_eq!(answer.message_type, MessageType::Response);
        assert_eq!(answer.queries, query.queries);
        answer
    }

    pub async fn udp_bytes(&self, query: &[u8]) -> Vec<u8> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.resolver).await.unwrap();
        socket.send(query).await.unwrap();
        let mut answer = vec![0; 65535];
        let length = timeout(SOON, socket.recv(&mut answer)).await.expect("an answer").unwrap();
        answer.truncate(length);
        answer
    }

    pub async fn tcp(&self, query: &Message) -> Message {
        let mut stream = self.connect().await;
        send(&mut stream, &query.to_vec().unwrap()).await;
        Message::from_vec(&receive(&mut stream).await).unwrap()
    }

    pub async fn tcp_bytes(&self, query: &[u8]) -> Vec<u8> {
        let mut stream = self.connect().await;
        send(&mut stream, query).await;
        receive(&mut stream).await
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.resolver).await.unwrap()
    }
}

pub async fn send(stream: &mut TcpStream, message: &[u8]) {
    stream.write_u16(message.len().try_into().unwrap()).await.unwrap();
    stream.write_all(message).await.unwrap();
}

pub async fn receive(stream: &mut TcpStream) -> Vec<u8> {
    let length = timeout(SOON, stream.read_u16()).await.expect("an answer").unwrap();
    let mut message = vec![0; length.into()];
    timeout(SOON, stream.read_exact(&mut message)).await.expect("all of it").unwrap();
    message
}

/// With EDNS if there is a size for it.
pub fn question(name: &str, query_type: RecordType, edns: Option<u16>) -> Message {
    let mut message = Message::query();
    assert_eq!(message.op_code, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries = vec![Query::query(Name::from_ascii(name).unwrap(), query_type)];
    message.edns = edns.map(|size| {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        edns
    });
    message
}
