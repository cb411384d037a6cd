//! Against a DNS server that others wrote.

use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::common::{LOOPBACK, SOON, Scene, question, settings, skip};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, RecordType};
use names::Settings;

struct Dnsmasq {
    address: SocketAddr,
    process: Child,
}

impl Dnsmasq {
    /// `None`, said on standard output, if there is none.
    fn start() -> Option<Self> {
        let address = UdpSocket::bind((LOOPBACK, 0)).and_then(|socket| socket.local_addr()).unwrap();
        let many = (1..=100).map(|last| format!("--host-record=many.example.com,203.0.113.{last}"));
        // Where Debian puts it is in root's PATH only.
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let process = Command::new("dnsmasq")
            .env("PATH", path)
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--pid-file",
                "--no-resolv",
                "--no-hosts",
            ])
            .args(["--bind-interfaces", "--listen-address=127.0.0.1", &format!("--port={}", address.port())])
            .args(["--local-ttl=120", "--local=/example.com/", "--edns-packet-max=1232"])
            .args([
                "--host-record=api.example.com,203.0.113.10,2600:1f14::10",
                "--cname=www.example.com,api.example.com",
            ])
            .args(["--txt-record=api.example.com,hello", "--host-record=rebind.example.com,10.0.0.1"])
            .args(["--host-record=plain.other.net,192.168.1.1"])
            .args(many)
            .stderr(Stdio::null())
            .spawn();
        match process {
            Ok(process) => Some(Self { address, process }),
            Err(error) => {
                skip(&format!("dnsmasq cannot be run ({error}); apt install dnsmasq-base"));
                None
            }
        }
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

#[tokio::test]
async fn dnsmasq_is_understood() {
    let Some(dnsmasq) = Dnsmasq::start() else { return };
    let upstreams = vec![dnsmasq.address];
    let scene = Scene::new(Settings {
        upstreams: upstreams.clone(),
        forward: upstreams,
        ipv6: true,
        ..settings(&[])
    });
    let client = scene.client();
    // It takes a moment to listen.
    let began = Instant::now();
    while client.ask("api.example.com.", RecordType::A).await.response_code != ResponseCode::NoError {
        assert!(began.elapsed() < SOON, "dnsmasq does not answer");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    for (name, query_type, code, expected) in [
        ("api.example.com.", RecordType::AAAA, ResponseCode::NoError, &["2600:1f14::10"][..]),
        ("www.example.com.", RecordType::A, ResponseCode::NoError, &["203.0.113.10"]),
        ("gone.example.com.", RecordType::A, ResponseCode::NXDomain, &[]),
        ("rebind.example.com.", RecordType::A, ResponseCode::ServFail, &[]),
        // Not one of the policy's.
        ("plain.other.net.", RecordType::A, ResponseCode::NoError, &["192.168.1.1"]),
    ] {
        let answer = client.ask(name, query_type).await;
        let found: Vec<_> = answer.answers.iter().filter_map(|record| record.data.ip_addr()).collect();
        let expected: Vec<std::net::IpAddr> = expected.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!((answer.response_code, found), (code, expected), "{name}");
    }
    let text = client.ask("api.example.com.", RecordType::TXT).await;
    assert!(matches!(&text.answers[0].data, RData::TXT(text) if text.to_string().contains("hello")));

    // 100 addresses do not fit into 1232 bytes: it is asked again by TCP, and so are we.
    let many = client.tcp(&question("many.example.com.", RecordType::A, None)).await;
    assert_eq!(many.answers.len(), 64, "as many as are taken from one answer");
}
