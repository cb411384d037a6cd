//! A machine with the fast path in a namespace of its own, and a far end in another.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use dataplane::Direction;
use dataplane::fast_path::{EntryId, FastPath, Flow, Statistics};
use packet::Dscp;
use policy::Mark;

use crate::machine::{Family, FarEnd, ip, namespace, wait_for_carrier};
use crate::marked;
use crate::tun::{Offload, Tun, index};

pub const PATIENCE: Duration = Duration::from_secs(10);
const FWMARK: u32 = 0x77;

/// How machine and far end are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    Veth,
    /// VLAN interfaces on a veth.
    Vlan,
    /// Here, an interface that sends by a veth.
    On(&'static str),
    /// TUNs, between which a thread carries whole packets: no link header, and no checksum or segment left to be made.
    Tun,
}

/// This thread is in the machine's namespace. Its interfaces are `tun` and `wifi`, the far end's is `wan`.
pub struct Network {
    pub far: FarEnd,
    pub tun: Tun,
    pub fast_path: FastPath,
    wire: Wire,
    _relay: Option<Relay>,
}

/// An application on the TUN's address, its partner, and the mapping between them.
pub struct Call {
    pub app: UdpSocket,
    pub far: UdpSocket,
    /// Holds the external port, as the pump's would.
    pub reserved: UdpSocket,
    pub internal: SocketAddr,
    pub external: SocketAddr,
    pub remote: SocketAddr,
}

impl Network {
    /// `None`, with the reason told, where it cannot be made.
    pub fn new(wire: Wire) -> Option<Self> {
        namespace()?;
        let far = FarEnd::start();
        let relay = connect(wire, &far)?;
        ip("link set lo up");
        ip("link set wifi up");
        far.run(move || {
            ip("link set lo up");
            ip("link set wan up");
            // A TUN runs at once, and never says more than that its state is unknown.
            if wire != Wire::Tun {
                wait_for_carrier("wan");
            }
            ip("address add 192.168.77.1/24 dev wan");
            ip("address add 2001:db8:77::1/64 dev wan nodad");
            for address in ["52.129.96.10/32", "52.129.96.11/32", "2001:db8:96::10/128"] {
                ip(&format!("address add {address} dev lo"));
            }
        });
        if wire != Wire::Tun {
            wait_for_carrier("wifi");
        }
        ip("address add 192.168.77.10/24 dev wifi");
        ip("address add 2001:db8:77::10/64 dev wifi nodad");
        let tun = Tun::open("tun", Offload::On).unwrap();
        ip("link set tun mtu 1420 up");
        ip("address add 10.99.0.1/32 dev tun");
        ip("address add 2001:db8:99::1/128 dev tun nodad");
        for prefix in ["52.129.96.0/20", "2001:db8:96::/64"] {
            ip(&format!("route add {prefix} dev tun"));
        }
        let mut fast_path = FastPath::open(tun.index, 64).unwrap();
        fast_path.attach(index("wifi")).unwrap();
        Some(Self { far, tun, fast_path, wire, _relay: relay })
    }

    /// A call whose external port differs from the internal one.
    pub fn call(&self, family: Family) -> Call {
        self.call_between(SocketAddr::new(family.tun, 5000), SocketAddr::new(family.wifi, 6000), family)
    }

    pub fn call_between(&self, internal: SocketAddr, external: SocketAddr, family: Family) -> Call {
        let app = open(internal);
        let reserved = if internal == external { app.try_clone().unwrap() } else { open(external) };
        let remote = SocketAddr::new(family.media, 15_000 + internal.port());
        let far = self.far_socket(remote);
        Call { app, far, reserved, internal, external, remote }
    }

    pub fn far_socket(&self, address: SocketAddr) -> UdpSocket {
        self.far.run(move || open(address))
    }

    /// The call's flow, over the wire's next hop.
    pub fn flow(&self, call: &Call) -> Flow {
        let router: IpAddr =
            if call.remote.is_ipv4() { "192.168.77.1" } else { "2001:db8:77::1" }.parse().unwrap();
        Flow {
            internal: call.internal,
            external: call.external,
            remote: call.remote,
            interface: index("wifi"),
            next_hop: (self.wire != Wire::Tun).then_some(router),
            fwmark: FWMARK,
            mtu: 1400,
            mark: Mark::Voice(Dscp::EF),
            life: Duration::from_secs(300),
            rtp: Default::default(),
        }
    }

    /// Installs the call with both directions live.
    pub fn hand_over(&mut self, call: &Call) -> EntryId {
        let id = self.fast_path.install(&self.flow(call)).unwrap();
        self.settle(id);
        id
    }

    pub fn settle(&self, id: EntryId) {
        for direction in [Direction::Outbound, Direction::Inbound] {
            assert!(self.fast_path.settle(id, direction, Duration::MAX, None));
        }
    }

    pub fn statistics(&self, id: EntryId) -> Statistics {
        self.fast_path.statistics(id).unwrap()
    }
}

pub fn open(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    marked::prepare(&socket, PATIENCE);
    socket
}

/// Makes `wifi` here and `wan` at the far end. `None` where this kernel does not know the kind.
fn connect(wire: Wire, far: &FarEnd) -> Option<Option<Relay>> {
    let thread = far.thread;
    match wire {
        Wire::Veth => {
            ip(&format!("link add wifi type veth peer name wan netns {thread}"));
        }
        Wire::Vlan => {
            ip(&format!("link add under type veth peer name under netns {thread}"));
            let made = std::process::Command::new("ip")
                .args("link add link under name wifi type vlan id 5".split(' '))
                .output()
                .unwrap();
            if !made.status.success() {
                eprintln!("left out: this kernel makes no VLAN interfaces");
                return None;
            }
            ip("link set under up");
            far.run(|| {
                ip("link add link under name wan type vlan id 5");
                ip("link set under up");
            });
        }
        Wire::On(kind) => {
            ip(&format!("link add under type veth peer name wan netns {thread}"));
            ip("link set under up");
            match kind {
                "bridge" => {
                    ip("link add wifi type bridge");
                    ip("link set under master wifi");
                }
                _ => drop(ip(&format!("link add link under name wifi type {kind}"))),
            }
        }
        Wire::Tun => {
            let here = Tun::open("wifi", Offload::Off).unwrap();
            let there = far.run(|| Tun::open("wan", Offload::Off).unwrap());
            return Some(Some(Relay::start(here, there)));
        }
    }
    Some(None)
}

/// Carries packets between two TUNs.
struct Relay {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    fn start(a: Tun, b: Tun) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let carry = |from: Tun, to: Tun| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Some(record) = from.read(Duration::from_millis(20)) {
                        // An interface that is not up yet takes nothing.
                        let _ = to.write(&record);
                    }
                }
            })
        };
        let threads = vec![carry(a.try_clone(), b.try_clone()), carry(b, a)];
        Self { stop, threads }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}
