//! An agent's machine and what it sees of the world: one neighbour that is router, signaling and media at once, so that
//! whatever is not captured, or leaks, arrives there.

use std::{
    io::{ErrorKind, Read},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    path::Path,
    time::Duration,
};

use ipnet::IpNet;
use nix::sys::socket::{setsockopt, sockopt};
use policy::{Captured, Fail};
use routes::{Routes, Settings, State, Wanted, netlink::Netlink};

use super::{Neighbour, open_tun, run};

pub const MARK: u32 = 0xb0;
pub const TUN: &str = "tun0";
pub const TUN_V4: &str = "10.99.0.1";
pub const TUN_V6: &str = "fd99::1";
pub const SIGNALING: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];
/// Inside a prefix of signaling.
pub const MEDIA: [&str; 2] = ["203.0.113.70", "2001:db8:113:7::10"];
pub const UNRELATED: [&str; 2] = ["198.51.100.10", "2001:db8:51::10"];

pub struct World {
    pub neighbour: Neighbour,
    pub state: tempfile::TempDir,
}

impl World {
    pub async fn new() -> Self {
        let neighbour = Neighbour::new();
        let netlink = Netlink::new().unwrap();
        netlink.add_veth("wan0", "lan0", Some(neighbour.0.as_fd())).await.unwrap();
        run(["ip", "link", "set", "wan0", "addrgenmode", "none"]);
        let wan = netlink.link_index("wan0").await.unwrap();
        netlink.set_up(wan).await.unwrap();
        neighbour.enter(|| {
            run(["ip", "link", "set", "lan0", "addrgenmode", "none"]);
            run(["ip", "link", "set", "lan0", "up"]);
            while !run(["ip", "link", "show", "lan0"]).contains("state UP") {
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        while !netlink.link(wan).await.unwrap().running {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        netlink.add_address(wan, net("192.168.7.2/24")).await.unwrap();
        netlink.add_address(wan, net("fd07::2/64")).await.unwrap();
        netlink.add_address(wan, net("fe80::2/64")).await.unwrap();
        neighbour.enter(|| {
            run(["ip", "address", "add", "192.168.7.1/24", "dev", "lan0"]);
            run(["ip", "address", "add", "fd07::1/64", "dev", "lan0", "nodad"]);
            run(["ip", "address", "add", "fe80::1/64", "dev", "lan0", "nodad"]);
            for address in [SIGNALING, MEDIA, UNRELATED].concat() {
                run(["ip", "address", "add", address, "dev", "lo"]);
            }
            run(["ip", "route", "add", "10.99.0.0/24", "via", "192.168.7.2"]);
            run(["ip", "route", "add", "fd99::/64", "via", "fd07::2"]);
        });
        for (prefix, via) in [("0.0.0.0/0", "192.168.7.1"), ("::/0", "fd07::1")] {
            let route = routes::netlink::Route {
                via: Some(ip(via)),
                device: Some(wan),
                ..routes::netlink::Route::new(net(prefix))
            };
            netlink.add_route(&route).await.unwrap();
        }
        settle_addresses();
        neighbour.enter(settle_addresses);
        Self { neighbour, state: tempfile::tempdir().unwrap() }
    }

    /// All that a start does.
    pub async fn start(&self, wanted: &Wanted) -> Routes {
        let state = State::open(self.state.path()).unwrap();
        let routes = Routes::apply(state, settings(), wanted).await.unwrap();
        routes.let_go().await.unwrap();
        routes
    }

    pub async fn apply(&self) -> Routes {
        self.start(&wanted(captured())).await
    }

    /// A socket of the neighbour's.
    pub fn listen(&self, address: &str) -> UdpSocket {
        self.neighbour.enter(|| UdpSocket::bind(SocketAddr::new(ip(address), 5060)).unwrap())
    }
}

pub fn settings() -> Settings {
    Settings {
        tun: TUN.to_owned(),
        addresses: vec![net("10.99.0.1/32"), net("fd99::1/128")],
        mtu: 1420,
        mark: MARK.try_into().unwrap(),
    }
}

/// Without a kill switch and learned addresses.
pub fn wanted(captured: Vec<Captured>) -> Wanted {
    Wanted { captured, ..Wanted::default() }
}

pub fn captured() -> Vec<Captured> {
    vec![
        closed("203.0.113.0/24"),
        Captured { prefix: net("203.0.113.64/26"), fail: Fail::Direct },
        closed("2001:db8:113::/48"),
        Captured { prefix: net("2001:db8:113:7::/64"), fail: Fail::Direct },
    ]
}

pub fn closed(prefix: &str) -> Captured {
    Captured { prefix: net(prefix), fail: Fail::Closed }
}

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The agent's TUN.
pub struct Tun(std::fs::File);

impl Tun {
    pub fn open() -> Self {
        let fd = open_tun(TUN);
        // SAFETY: fcntl on an fd of ours, no memory passed.
        let set =
            unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&fd), libc::F_SETFL, libc::O_NONBLOCK) };
        assert_eq!(set, 0);
        Self(fd.into())
    }

    /// Closes the TUN and waits until it is gone: a child that another test is just starting has a copy of the file
    /// descriptor until its exec.
    pub async fn close(self) {
        drop(self);
        let netlink = Netlink::new().unwrap();
        while netlink.link_index(TUN).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Source and destination of the packets that have entered; the kernel's own multicasts are left out.
    pub fn entered(&mut self) -> Vec<(IpAddr, IpAddr)> {
        self.packets().iter().map(|packet| (packet.source, packet.destination)).collect()
    }

    /// The packets that have entered; the kernel's own multicasts are left out.
    pub fn packets(&mut self) -> Vec<Entered> {
        let mut found = Vec::new();
        let mut packet = [0; 2048];
        loop {
            let length = match self.0.read(&mut packet) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return found,
                Err(error) => panic!("{error}"),
            };
            let entered = Entered::read(&packet[..length]);
            if !entered.destination.is_multicast() {
                found.push(entered);
            }
        }
    }
}

/// A packet that has entered the TUN, without options or extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entered {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// IANA's number.
    pub protocol: u8,
    /// The destination port of TCP and UDP.
    pub port: u16,
}

impl Entered {
    fn read(packet: &[u8]) -> Self {
        let v4 = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
        let v6 = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
        let (source, destination, protocol, header) = if packet[0] >> 4 == 4 {
            (v4(12), v4(16), packet[9], usize::from(packet[0] & 15) * 4)
        } else {
            (v6(8), v6(24), packet[6], 40)
        };
        let port = packet[header + 2..header + 4].try_into().unwrap();
        Self { source, destination, protocol, port: u16::from_be_bytes(port) }
    }
}

/// Sends one datagram from an agent's socket, bound to `source` if given, with `mark`.
pub fn send(source: Option<&str>, mark: u32, destination: &str) -> std::io::Result<()> {
    let destination = ip(destination);
    let any = if destination.is_ipv4() { "0.0.0.0" } else { "::" };
    let socket = UdpSocket::bind(SocketAddr::new(ip(source.unwrap_or(any)), 0))?;
    setsockopt(&socket, sockopt::Mark, &mark)?;
    socket.send_to(b"OPTIONS", SocketAddr::new(destination, 5060)).map(drop)
}

/// Sends one datagram from a socket that the routing table has no say in.
pub fn send_from_device(mark: u32, destination: &str, port: u16) -> std::io::Result<()> {
    let any = if ip(destination).is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    setsockopt(&socket, sockopt::Mark, &mark)?;
    setsockopt(&socket, sockopt::BindToDevice, &"wan0".into())?;
    socket.send_to(b"OPTIONS", SocketAddr::new(ip(destination), port)).map(drop)
}

/// Waits until the kernel has made up its mind about all IPv6 addresses of this namespace.
pub fn settle_addresses() {
    while !run(["ip", "-6", "address", "show", "tentative"]).is_empty() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a datagram has come, with time for the neighbours to find each other.
pub fn arrived(socket: &UdpSocket) -> bool {
    received_within(socket, Duration::from_secs(5))
}

/// Whether none has come; the control beside each use shows that one would have.
pub fn silent(socket: &UdpSocket) -> bool {
    !received_within(socket, Duration::from_millis(300))
}

fn received_within(socket: &UdpSocket, time: Duration) -> bool {
    socket.set_read_timeout(Some(time)).unwrap();
    socket.recv(&mut [0; 64]).is_ok()
}

/// A snapshot once the kernel has come to rest: it settles a new link's state some time later.
pub fn settled_snapshot() -> String {
    let mut last = snapshot();
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let now = snapshot();
        if now == last {
            return now;
        }
        last = now;
    }
}

/// Links, addresses, routes, rules, firewall and sysctls, as text.
pub fn snapshot() -> String {
    let mut text = String::new();
    for command in [["link", "show"], ["address", "show"]] {
        text += &run(["ip", "-details", command[0], command[1]]);
    }
    for family in ["-4", "-6"] {
        text += &run(["ip", family, "route", "show", "table", "all"]);
        text += &run(["ip", family, "rule", "show"]);
    }
    if super::has("nft") {
        text += &run(["nft", "list", "ruleset"]);
    }
    let mut names: Vec<_> = std::fs::read_dir("/proc/sys/net/ipv4/conf")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    for name in names {
        for (family, key) in [("ipv4", "rp_filter"), ("ipv4", "src_valid_mark"), ("ipv6", "disable_ipv6")] {
            let path = Path::new("/proc/sys/net").join(family).join("conf").join(&name).join(key);
            text += &format!("{} {}", path.display(), std::fs::read_to_string(&path).unwrap());
        }
    }
    text
}

pub fn rp_filter(interface: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"))
        .unwrap()
        .trim()
        .to_owned()
}

pub fn set_rp_filter(interface: &str, value: u8) {
    std::fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"), value.to_string()).unwrap();
}
