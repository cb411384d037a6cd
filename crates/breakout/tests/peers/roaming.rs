//! The agent moves to another address, or to another network by another interface, while signaling and voice run.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lab::addresses::{AGENT, HOME, MEDIA, SIGNALING};
use lab::service::listen_tcp;
use lab::traffic::stream::connect;
use lab::traffic::voice::Call;
use lab::traffic::{EF_TOS, Ports};
use lab::{End, Link, LinkKind, Wiring};
use packet::protocol::TCP;

use crate::common::{Scene, alone, count, eventually, is_signaling, ok, said, watch};

const SIZE: u64 = 120_000_000;
const DOWNLOADS: (Ipv4Addr, u16) = (SIGNALING, 8061);
/// As long as nothing may arrive.
const GAP_MAX: Duration = Duration::from_secs(1);
/// A mapping whose address is gone is kept for 10 s, in case that comes back, and looked after every 30 s at the latest.
const MAPPING_ENDED: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_download_and_calls_go_on_when_the_address_changes() {
    roam(
        |_| (),
        "ip address del 192.168.77.10/24 dev eth0
         ip address add 192.168.77.11/24 dev eth0
         ip route replace default via 192.168.77.1",
    );
}

/// From the wire to the wireless network: another device, another gateway.
#[test]
fn a_download_and_calls_go_on_when_another_interface_takes_over() {
    roam(
        |scene| {
            let net = |address: &str| address.parse().unwrap();
            let (agent, router) = (&scene.internet.agent, &scene.internet.router);
            let near = End { host: agent, device: "wlan0", address: net("192.168.88.10/24") };
            let far = End { host: router, device: "lan1", address: net("192.168.88.1/24") };
            ok(Link::connect(LinkKind::Wire, near, far, 0));
            shell(scene, "ip route add default via 192.168.88.1 metric 600");
        },
        "ip link set eth0 down",
    );
}

fn roam(prepare: impl FnOnce(&Scene), moving: &str) {
    let _turn = alone();
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    prepare(&scene);
    let (wire, direct) = watch(&scene.internet.router, "wan0", || scene.reaches_signaling());
    direct.unwrap();
    assert!(
        count(&wire, |r| is_signaling(r) && r.protocol == TCP && r.source.ip() == HOME) > 0,
        "the control"
    );
    ok(listen_tcp(&scene.internet.signaling, DOWNLOADS.into(), send));
    scene.raise();

    let (wire, ()) = watch(&scene.internet.router, "wan0", || {
        let download = Download::start(&scene);
        let old_call = call(&scene, 500);
        eventually(PATIENCE, || {
            let calls = scene.flows().iter().filter(|flow| is_from(flow.mapping, AGENT)).count();
            match (download.arrived.load(Ordering::Relaxed) > SIZE / 10, calls > 0) {
                (true, true) => Ok(()),
                begun => Err(format!("download and call have begun: {begun:?}")),
            }
        });

        let moved = Instant::now();
        shell(&scene, moving);
        let voice = call(&scene, 100).join().unwrap();
        // A first packet may be on its way before anybody has been told of the change; ICE asks again.
        let lost = voice.sent - voice.answered;
        assert!(lost <= 1 && voice.answered > 100 && voice.failure.is_none(), "a new call lost {lost}");
        let arrivals = download.finish();
        let ended = arrivals.last().unwrap();
        assert!(*ended > moved + GAP_MAX, "the download was over too soon to tell");
        let gaps = arrivals.windows(2).filter(|pair| pair[1] > moved).map(|pair| pair[1] - pair[0]);
        let longest = gaps.max().unwrap();
        println!("the download paused for {longest:?}");
        assert!(longest < GAP_MAX, "the download paused for {longest:?}");
        old_call.join().unwrap();
    });
    assert_eq!(count(&wire, is_signaling), 0, "signaling in the clear");

    eventually(MAPPING_ENDED, || {
        let old: Vec<_> = scene.flows().into_iter().filter(|flow| is_from(flow.mapping, AGENT)).collect();
        if old.is_empty() { Ok(()) } else { Err(format!("the old address still has mappings: {old:?}")) }
    });
    scene.reaches_signaling().unwrap();
}

/// A download, and when each piece of it arrived.
struct Download {
    arrived: Arc<AtomicU64>,
    thread: JoinHandle<std::io::Result<Vec<Instant>>>,
}

impl Download {
    fn start(scene: &Scene) -> Self {
        let arrived = Arc::new(AtomicU64::new(0));
        let count = arrived.clone();
        let receive = move || {
            let mut stream = connect(DOWNLOADS.into())?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let (mut arrivals, mut bytes) = (Vec::new(), vec![0; 1 << 16]);
            loop {
                let read = stream.read(&mut bytes)?;
                if read == 0 {
                    return Ok(arrivals);
                }
                arrivals.push(Instant::now());
                count.fetch_add(read as u64, Ordering::Relaxed);
            }
        };
        Self { arrived, thread: ok(scene.internet.agent.thread("download", receive)) }
    }

    fn finish(self) -> Vec<Instant> {
        let arrivals = self.thread.join().unwrap().unwrap();
        assert_eq!(self.arrived.load(Ordering::Relaxed), SIZE);
        arrivals
    }
}

/// No faster than 25 MB/s, so that it lasts.
fn send(mut stream: lab::service::Connection) -> std::io::Result<()> {
    let chunk = vec![0xd5; 500_000];
    for _ in 0..SIZE / chunk.len() as u64 {
        stream.write_all(&chunk)?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn call(scene: &Scene, packets: u16) -> JoinHandle<lab::traffic::Outcome> {
    let to = SocketAddr::from((MEDIA, Ports::VOICE_EF));
    ok(scene.internet.agent.thread("call", move || Call { to, from: None, tos: EF_TOS, packets }.run()))
}

fn is_from(mapping: Option<SocketAddr>, address: Ipv4Addr) -> bool {
    mapping.is_some_and(|mapping| mapping.ip() == IpAddr::from(address))
}

fn shell(scene: &Scene, script: &str) {
    let mut shell = Command::new("sh");
    shell.args(["-ec", script]);
    said(&ok(scene.internet.agent.output(shell)));
}
