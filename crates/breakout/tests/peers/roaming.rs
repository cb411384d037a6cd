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
use lab::traffic::{EF_TOS, Outcome, Ports};
use lab::{End, Gateway, Link, LinkKind, Record, Wiring};
use packet::protocol::TCP;

use crate::common::{Scene, alone, count, eventually, exe, is_signaling, ok, said, shared, watch};

const SIZE: u64 = 120_000_000;
/// The agent's in the wireless network.
const WIRELESS: Ipv4Addr = Ipv4Addr::new(192, 168, 88, 10);
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
    roam(add_wireless, "ip link set eth0 down");
}

#[test]
fn calls_go_on_where_they_began_when_the_machine_is_docked() {
    dock("");
}

#[test]
fn calls_that_the_pump_moves_go_on_where_they_began_when_the_machine_is_docked() {
    dock("[dataplane]\nfast_path = \"off\"\n");
}

/// The cable leads to another network, whose router takes the wireless one's addresses for forged. The wireless one stays for a while.
fn dock(more: &str) {
    let _turn = shared();
    let Some(mut scene) = Scene::new(Wiring::default()) else { return };
    add_wireless(&scene);
    ok(scene.internet.router.sysctl("net/ipv4/conf/lan0/rp_filter", "1"));
    shell(&scene, "ip link set eth0 down");
    ok(scene.start_gateway(Gateway::Breakout, exe()));
    ok(scene.start_daemon(exe(), more));

    let (cable, (wireless, ())) = watch(&scene.internet.router, "lan0", || {
        watch(&scene.internet.router, "lan1", || {
            let long = call(&scene, 500);
            let own = call_from(&scene, Some(WIRELESS), 200);
            eventually(PATIENCE, || {
                let flows = scene.flows();
                let live =
                    flows.iter().filter(|flow| is_from(flow.mapping, WIRELESS) && flow.out_packets > 20);
                if live.count() == 2 { Ok(()) } else { Err(format!("{flows:?}")) }
            });

            shell(&scene, "ip link set eth0 up; ip route add default via 192.168.77.1 metric 100");
            eventually(PATIENCE, || {
                let way = scene.status().underlay.v4;
                if way.as_deref() == Some(&AGENT.to_string()) {
                    Ok(())
                } else {
                    Err(format!("{way:?} is the way out"))
                }
            });
            let new = call(&scene, 50).join().unwrap();
            assert!(new.sent == new.answered && new.failure.is_none(), "{new:?}");
            scene.reaches_signaling().unwrap();
            let own = own.join().unwrap();
            assert!(own.sent == own.answered && own.failure.is_none(), "{own:?}");

            shell(&scene, "ip link set wlan0 down");
            let long = long.join().unwrap();
            let lost = long.sent - long.answered;
            assert!(lost < 50, "{lost} packets were lost: {long:?}");
        })
    });
    let to_media =
        |record: &Record, from: Ipv4Addr| record.destination.ip() == MEDIA && record.source.ip() == from;
    assert_eq!(count(&cable, |record| to_media(record, WIRELESS)), 0, "that network drops them");
    let (own_and_long, new) =
        (count(&wireless, |r| to_media(r, WIRELESS)), count(&cable, |r| to_media(r, AGENT)));
    assert!(own_and_long > 300 && new > 150, "{own_and_long} by the old network, {new} by the new one");
}

fn add_wireless(scene: &Scene) {
    let (agent, router) = (&scene.internet.agent, &scene.internet.router);
    let net = |address: &str| address.parse().unwrap();
    let near = End { host: agent, device: "wlan0", address: net("192.168.88.10/24") };
    let far = End { host: router, device: "lan1", address: net("192.168.88.1/24") };
    ok(Link::connect(LinkKind::Wire, near, far, 0));
    shell(scene, "ip route add default via 192.168.88.1 metric 600");
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

fn call(scene: &Scene, packets: u16) -> JoinHandle<Outcome> {
    call_from(scene, None, packets)
}

fn call_from(scene: &Scene, from: Option<Ipv4Addr>, packets: u16) -> JoinHandle<Outcome> {
    let to = SocketAddr::from((MEDIA, Ports::VOICE_EF));
    ok(scene.internet.agent.thread("call", move || Call { to, from, tos: EF_TOS, packets }.run()))
}

fn is_from(mapping: Option<SocketAddr>, address: Ipv4Addr) -> bool {
    mapping.is_some_and(|mapping| mapping.ip() == IpAddr::from(address))
}

fn shell(scene: &Scene, script: &str) {
    let mut shell = Command::new("sh");
    shell.args(["-ec", script]);
    said(&ok(scene.internet.agent.output(shell)));
}
