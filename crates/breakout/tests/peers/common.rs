use std::net::{SocketAddr, SocketAddrV4};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::addresses::{AGENT, GATEWAY, GATEWAY_PORT, SIGNALING};
use lab::traffic::stream::{Pace, https};
use lab::{Capture, Captured, Gateway, Host, Lab, LabError, Process, Record, SIGNALING_NET, Wiring};
use packet::protocol::{TCP, UDP};

pub const EF: u8 = 46;
/// Time for the last packets to reach a capture.
const SETTLE: Duration = Duration::from_millis(300);
const POLL: Duration = Duration::from_millis(100);

static TURN: RwLock<()> = RwLock::new(());

/// For a test that fills the machine: no other one runs meanwhile.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    // Another test's failure is no reason to fail here.
    TURN.write().unwrap_or_else(PoisonError::into_inner)
}

/// For a test that mostly waits.
pub fn shared() -> RwLockReadGuard<'static, ()> {
    TURN.read().unwrap_or_else(PoisonError::into_inner)
}

/// The `breakout` program.
pub fn exe() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_breakout"))
}

/// A script or scenario beside this file.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(name)
}

pub fn is_long() -> bool {
    std::env::var_os("BREAKOUT_LONG").is_some()
}

/// A program in PATH; `None`, said on standard error, if it is missing.
pub fn program(name: &str, package: &str) -> Option<PathBuf> {
    lab::find_program(name, &format!("Install it: apt install {package}.")).map_err(lab::skip).ok()
}

/// A lab that prints what its programs said when the test fails.
pub struct Scene(Lab);

impl Scene {
    /// The internet and its far ends, without gateway and daemon. `None`, said on standard error, if this user may not build one.
    pub fn new(wiring: Wiring) -> Option<Self> {
        if !lab::has_rights() {
            lab::skip("network namespaces need root");
            return None;
        }
        Some(Self(Lab::build(wiring).unwrap()))
    }

    /// Starts our own gateway, and the daemon with the built-in rules.
    pub fn raise(&mut self) {
        self.start_gateway(Gateway::Breakout, exe()).unwrap();
        self.start_daemon(exe(), "").unwrap();
    }

    /// Runs `breakout ARGUMENTS` on the agent.
    pub fn breakout(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(exe());
        command.args(arguments).env("BREAKOUT_STATE_DIR", self.directory.file("state"));
        ok(self.internet.agent.output(command))
    }

    pub fn status(&self) -> control::Status {
        serde_json::from_str(&said(&self.breakout(&["status", "--json"]))).unwrap()
    }

    /// The gateway that new flows go to.
    pub fn gateway(&self) -> control::Gateway {
        self.status().tunnel.used().cloned().expect("one is always used")
    }

    pub fn flows(&self) -> Vec<control::Flow> {
        let flows: control::Flows =
            serde_json::from_str(&said(&self.breakout(&["flows", "--json"]))).unwrap();
        flows.flows
    }

    /// How many packets were dropped for this reason.
    pub fn dropped(&self, reason: &str) -> u64 {
        self.status().drops.iter().find(|drops| drops.reason == reason).map_or(0, |drops| drops.packets)
    }

    /// Whether HTTPS to signaling works now, from a new connection.
    pub fn reaches_signaling(&self) -> Result<(), String> {
        let tls = self.identity.client.clone();
        let pace = Pace { requests: 3, pause: Duration::ZERO };
        let client = move || https(SocketAddr::from((SIGNALING, 443)), &tls, pace);
        let outcome = self.internet.agent.thread("https", client).unwrap().join().unwrap();
        match outcome.failure {
            None if outcome.answered == pace.requests => Ok(()),
            failure => Err(format!("{} of {} answered, {failure:?}", outcome.answered, outcome.sent)),
        }
    }

    /// The agent has IPv6 and a way out by it, to a router that hands nothing on. With iproute2.
    pub fn give_ipv6(&self) {
        for command in [
            "-6 address add 2001:db8:77::10/64 dev eth0 nodad",
            "-6 neighbour add 2001:db8:77::1 lladdr 02:00:00:00:00:01 dev eth0",
            "-6 route add default via 2001:db8:77::1",
        ] {
            let mut ip = Command::new("ip");
            ip.args(command.split(' '));
            said(&ok(self.internet.agent.output(ip)));
        }
    }

    /// What passes on the agent's wire, as the access router sees it, while `body` runs.
    pub fn on_wire<T>(&self, body: impl FnOnce() -> T) -> (Captured, T) {
        watch(&self.internet.router, "lan0", body)
    }

    /// What passes on the gateway's wire: tunnel datagrams, and what it decrypted and sends on.
    pub fn behind_gateway<T>(&self, body: impl FnOnce() -> T) -> (Captured, T) {
        watch(&self.internet.gateway, "eth0", body)
    }
}

impl Deref for Scene {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.0
    }
}

impl DerefMut for Scene {
    fn deref_mut(&mut self) -> &mut Lab {
        &mut self.0
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let Ok(entries) = std::fs::read_dir(self.directory.path()) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|extension| extension == "log") {
                eprintln!("--- {}\n{}", path.display(), std::fs::read_to_string(&path).unwrap_or_default());
            }
        }
    }
}

/// What passes on `device` while `body` runs. Panics if anything escaped the capture: absence from it would prove nothing.
pub fn watch<T>(host: &Host, device: &str, body: impl FnOnce() -> T) -> (Captured, T) {
    let capture = Capture::start(host, device).unwrap();
    let result = body();
    sleep(SETTLE);
    let captured = capture.finish().unwrap();
    assert_eq!(captured.lost, 0, "the capture on {device} was too slow");
    (captured, result)
}

/// Waits until a program has its socket. Many say so only when they end, since their output goes to a file.
pub fn wait_for_socket(process: &mut Process, host: &Host, protocol: u8, at: SocketAddrV4) {
    let table = if protocol == TCP { "tcp" } else { "udp" };
    // As the kernel prints it: the address in the machine's byte order.
    let local = format!(": {:08X}:{:04X} ", u32::from_ne_bytes(at.ip().octets()), at.port());
    let is_there = |_: &str| {
        let table = ok(host.run(move || std::fs::read_to_string(format!("/proc/thread-self/net/{table}"))));
        table.unwrap().contains(&local)
    };
    ok(process.wait_until(&format!("its socket {at}"), Duration::from_secs(10), is_there));
}

/// The standard output of a command that has to succeed.
pub fn said(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Tries until `attempt` gives something. Panics with the last reason when `patience` is over.
pub fn eventually<T>(patience: Duration, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match attempt() {
            Ok(found) => return found,
            Err(why) if started.elapsed() > patience => panic!("not within {patience:?}: {why}"),
            Err(_) => sleep(POLL),
        }
    }
}

/// Whether a packet is between the agent and signaling, and not inside the tunnel.
pub fn is_signaling(record: &Record) -> bool {
    [record.source, record.destination].iter().any(|end| match end.ip() {
        std::net::IpAddr::V4(address) => SIGNALING_NET.contains(&address),
        std::net::IpAddr::V6(_) => false,
    })
}

/// Whether a packet on the agent's wire is the tunnel's, on any port of the gateway's.
pub fn is_tunnel(record: &Record) -> bool {
    record.protocol == UDP && (record.source.ip() == GATEWAY || record.destination.ip() == GATEWAY)
}

pub fn count(captured: &Captured, wanted: impl Fn(&Record) -> bool) -> usize {
    captured.records.iter().filter(|record| wanted(record)).count()
}

/// Panics if the agent's wire shows signaling in the clear, or shows no tunnel at all.
#[track_caller]
pub fn assert_hidden(wire: &Captured) {
    let leaked: Vec<&Record> = wire.records.iter().filter(|record| is_signaling(record)).take(5).collect();
    assert!(leaked.is_empty(), "signaling in the clear: {leaked:#?}");
    assert!(wire.records.iter().any(is_tunnel), "nothing went to {GATEWAY}:{GATEWAY_PORT}");
}

/// The positive control of [`assert_hidden`]: the same traffic without the daemon.
#[track_caller]
pub fn assert_shown(wire: &Captured, protocol: u8) {
    assert!(protocol == TCP || protocol == UDP);
    let shown = count(wire, |r| is_signaling(r) && r.protocol == protocol && r.source.ip() == AGENT);
    assert!(shown > 0, "signaling that went directly was not captured, so its absence would prove nothing");
}

/// A failed step of the lab ends a test.
pub fn ok<T>(result: Result<T, LabError>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}
