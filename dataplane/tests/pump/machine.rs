//! A machine with a running pump in a namespace of its own, and a far end in another.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};
use std::{fs, thread};

use dataplane::{
    DropReason, Gateway, Handle, Mtu, Offload, OnGateway, OwnAddress, Prefer, Pump, Setup, Tun, Underlay,
};
use packet::OuterDscp;
use policy::{Config, FastPathUse, Snapshot};
use tunnel::{Peer, PeerConfig, PrivateKey};

pub const WIFI_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 77, 10));
pub const MEDIA_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(52, 129, 96, 10));
pub const DEAD_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(52, 129, 96, 11));
pub const SIGNALING_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10));

pub const FWMARK: u32 = 0x77;
pub const GATEWAY_PORT: u16 = 51_820;

/// One family's addresses.
#[derive(Clone, Copy)]
pub struct Family {
    pub tun: IpAddr,
    pub wifi: IpAddr,
    pub media: IpAddr,
    /// A media address where nobody listens.
    pub dead: IpAddr,
    pub signaling: IpAddr,
}

pub const V4: Family = Family {
    tun: IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1)),
    wifi: WIFI_V4,
    media: MEDIA_V4,
    dead: DEAD_V4,
    signaling: SIGNALING_V4,
};
pub const V6: Family = Family {
    tun: v6(0x99, 1),
    wifi: v6(0x77, 10),
    media: v6(0x96, 10),
    dead: v6(0x96, 11),
    signaling: v6(0x113, 10),
};

pub const CONFIG: &str = r#"
[interface]
address = ["10.99.0.1/32", "2001:db8:99::1/128"]
[tunnel]
private_key_file = "agent.key"
peer_public_key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
endpoint = "192.168.77.1:51820"
[sets.genesys-media]
cidrs = ["52.129.96.0/20", "2001:db8:96::/64"]
[sets.genesys-signaling]
cidrs = ["203.0.113.0/24", "2001:db8:113::/64"]
"#;

/// The test's thread is in the machine's namespace. The tunnel is down, for want of a route to its gateway.
pub struct Machine {
    pub pump: Handle,
    /// Its name.
    pub tun: String,
    pub far: FarEnd,
}

/// The tunnel's two ends, and how the near one marks what it sends.
pub struct Tunnel {
    pub agent: PrivateKey,
    pub gateway: PrivateKey,
    pub outer_dscp: OuterDscp,
}

impl Machine {
    /// `None`, with the reason told, where it cannot be made.
    pub fn new() -> Option<Self> {
        Self::with(&Tunnel::new(OuterDscp::ZERO))
    }

    pub fn with(tunnel: &Tunnel) -> Option<Self> {
        Self::with_setup(tunnel, |_| {})
    }

    /// `gateways` gets the one that is always there.
    pub fn with_gateways(
        tunnel: &Tunnel,
        mtu: Mtu,
        gateways: impl FnOnce(Gateway) -> (Vec<Gateway>, OnGateway),
    ) -> Option<Self> {
        Self::with_setup(tunnel, |setup| {
            setup.mtu = mtu;
            let first = setup.gateways.remove(0);
            (setup.gateways, setup.on_gateway) = gateways(first);
        })
    }

    /// `change` gets what the pump is to be started with.
    pub fn with_setup(tunnel: &Tunnel, change: impl FnOnce(&mut Setup)) -> Option<Self> {
        namespace()?;
        let far = FarEnd::start();
        let thread = far.thread;
        ip(&format!("link add wifi type veth peer name wan netns {thread}"));
        ip("link set lo up");
        ip("link set wifi up");
        far.run(|| {
            // Every closed port answers, however often.
            fs::write("/proc/sys/net/ipv4/icmp_ratemask", "0").unwrap();
            ip("link set lo up");
            ip("link set wan up");
            wait_for_carrier("wan");
            ip("address add 192.168.77.1/24 dev wan");
            ip("address add 2001:db8:77::1/64 dev wan nodad");
            for address in
                ["52.129.96.10/32", "52.129.96.11/32", "2001:db8:96::10/128", "2001:db8:96::11/128"]
            {
                ip(&format!("address add {address} dev lo"));
            }
            for address in ["2001:db8:77::1", "2001:db8:96::10", "2001:db8:96::11"] {
                wait_for_local(address);
            }
        });
        wait_for_carrier("wifi");
        ip("address add 192.168.77.10/24 dev wifi");
        ip("address add 2001:db8:77::10/64 dev wifi nodad");
        ip("route add default via 192.168.77.1");
        wait_for_local("2001:db8:77::10");
        ip("route add default via 2001:db8:77::1");
        let (pump, tun) = start_pump(tunnel, change);
        Some(Self { pump, tun, far })
    }

    pub fn far_socket(&self, address: IpAddr, port: u16) -> UdpSocket {
        let socket = self.far.run(move || UdpSocket::bind((address, port)).unwrap());
        crate::marked::prepare(&socket, Duration::from_secs(5));
        socket
    }

    pub fn drops(&self, reason: DropReason) -> u64 {
        self.pump.counters().drops().find(|(counted, _)| *counted == reason).unwrap().1
    }
}

impl Tunnel {
    pub fn new(outer_dscp: OuterDscp) -> Self {
        let key = || PrivateKey::generate().unwrap();
        Self { agent: key(), gateway: key(), outer_dscp }
    }

    /// A far end at this address, as the near one knows it.
    pub fn to(&self, gateway: &PrivateKey, endpoint: IpAddr) -> Gateway {
        let peer = PeerConfig {
            private_key: self.agent.clone(),
            peer_public_key: gateway.public_key(),
            preshared_key: None,
            keepalive: None,
            index: 1,
            mtu: 1420,
        };
        let peer = Peer::new(peer, Instant::now());
        Gateway { peer, endpoint: SocketAddr::new(endpoint, GATEWAY_PORT) }
    }
}

/// The physical side with this IPv4 address.
pub fn underlay(v4: Option<IpAddr>) -> Underlay {
    let (mut underlay, all) = (Underlay::default(), v4.into_iter().chain([V6.wifi]));
    for address in all {
        match address {
            IpAddr::V4(v4) => underlay.v4 = Some(v4),
            IpAddr::V6(v6) => underlay.v6 = Some(v6),
        }
        underlay.addresses.push(own(address));
    }
    underlay
}

/// An address whose packets leave as the routes say.
pub fn own(ip: IpAddr) -> OwnAddress {
    OwnAddress { ip, device: None }
}

/// Puts this thread into a network namespace of its own. `None`, with the reason told, where that cannot be.
pub fn namespace() -> Option<()> {
    // SAFETY: takes no pointers.
    if unsafe { libc::geteuid() } != 0 {
        skip("making network namespaces needs root");
        return None;
    }
    if Command::new("ip").arg("-V").output().is_err() {
        skip("the program ip (iproute2) is missing");
        return None;
    }
    enter_namespace();
    Some(())
}

pub fn skip(why: &str) {
    assert!(std::env::var_os("BREAKOUT_REQUIRE_ALL").is_none(), "skipped, because {why}");
    eprintln!("skipped, because {why}");
}

/// How many descriptors this process may open.
pub fn descriptors() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for the kernel to fill.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur as usize
}

const fn v6(network: u16, host: u16) -> IpAddr {
    // Hosts are written in hexadecimal as they would be in decimal: 10 is ::10.
    let host = host / 10 * 16 + host % 10;
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, network, 0, 0, 0, 0, host))
}

/// The name is the TUN's.
fn start_pump(tunnel: &Tunnel, change: impl FnOnce(&mut Setup)) -> (Handle, String) {
    let tun = Tun::open(None).unwrap();
    let name = tun.name().to_owned();
    ip(&format!("link set {name} mtu 1420 up"));
    ip(&format!("address add 10.99.0.1/32 dev {name}"));
    ip(&format!("address add 2001:db8:99::1/128 dev {name} nodad"));
    wait_for_local("2001:db8:99::1");
    for prefix in ["52.129.96.0/20", "203.0.113.0/24", "2001:db8:96::/64", "2001:db8:113::/64"] {
        ip(&format!("route add {prefix} dev {name} table 100"));
    }
    for family in ["-4", "-6"] {
        ip(&format!("{family} rule add not fwmark {FWMARK} table 100 priority 100"));
    }
    let (config, _) = Config::parse(CONFIG, "test.toml").unwrap();
    let mut setup = Setup {
        tun,
        addresses: vec![V4.tun, V6.tun],
        mtu: Mtu::Fixed(1420),
        gateways: vec![tunnel.to(&tunnel.gateway, Ipv4Addr::new(192, 168, 77, 1).into())],
        prefer: Prefer::Order,
        snapshot: Arc::new(Snapshot::compile(&config)),
        fwmark: FWMARK,
        underlay: underlay(Some(WIFI_V4)),
        offload: Offload { tun: true, udp: true },
        fast_path: FastPathUse::Auto,
        outer_dscp: tunnel.outer_dscp,
        on_gateway: Box::new(|_| {}),
        on_exit: Box::new(|result| result.unwrap()),
    };
    change(&mut setup);
    (Pump::start(setup).unwrap(), name)
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a namespace of its own.
pub struct FarEnd {
    jobs: Sender<Job>,
    pub thread: libc::pid_t,
}

impl FarEnd {
    pub fn start() -> Self {
        let ((jobs, inbox), (ready, started)) = (channel::<Job>(), channel());
        thread::spawn(move || {
            enter_namespace();
            // SAFETY: takes no arguments.
            ready.send(unsafe { libc::gettid() }).unwrap();
            inbox.into_iter().for_each(|job| job());
        });
        Self { jobs, thread: started.recv().unwrap() }
    }

    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (reply, answer) = channel();
        self.jobs.send(Box::new(move || reply.send(job()).unwrap())).unwrap();
        answer.recv().unwrap()
    }
}

/// Gives this thread, and those it will start, a network namespace of its own, which ends with them.
fn enter_namespace() {
    // SAFETY: takes no pointers.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", std::io::Error::last_os_error());
    for name in ["all", "default"] {
        fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "2").unwrap();
    }
}

/// IPv6 does not use a link before it runs, which the kernel notes a moment after both ends are up.
pub fn wait_for_carrier(link: &str) {
    let begun = Instant::now();
    while !ip(&format!("-oneline link show {link}")).contains("state UP") {
        assert!(begun.elapsed() < Duration::from_secs(5), "{link} does not come up");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The kernel takes packets to an IPv6 address a moment after it was added.
pub fn wait_for_local(address: &str) {
    let begun = Instant::now();
    let local = format!("local {address} dev ");
    while !ip("-6 route show table local").contains(&local) {
        assert!(begun.elapsed() < Duration::from_secs(5), "{address} does not become local");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Runs `ip` in this thread's namespace; returns what it printed.
pub fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
