//! One client, its far end and the wire between them, in namespaces of their own.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path as File, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use lab::{
    Daemon, Directory, During, End, Foreign, Gateway, Host, Keys, LabError, Link, LinkKind, Process,
    WireGuard,
};
use routes::netlink::{Kind, Route};

use crate::report::{Contender, Path};
use crate::{machine, throughput, voice};

/// The agent and the far end share one wire. Media lies in the real, built-in range.
pub mod addresses {
    use std::net::Ipv4Addr;

    pub const AGENT: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 10);
    /// Where the agent roams to.
    pub const AGENT_2: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 11);
    pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
    pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
    /// What the bypass reaches.
    pub const MEDIA: Ipv4Addr = Ipv4Addr::new(52, 129, 96, 10);
    /// What nobody captures.
    pub const DIRECT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);
    pub const AGENT_TUNNEL: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
    /// What only the tunnel reaches.
    pub const FAR_TUNNEL: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 254);
}
use addresses::{AGENT, AGENT_TUNNEL, DIRECT, FAR_TUNNEL, GATEWAY, MEDIA, ROUTER};

const GATEWAY_PORT: u16 = 51820;
/// Echoes voice, on every path.
const VOICE: u16 = 20_000;
/// Echoes what arrives marked EF, and nothing else.
const MARKED: u16 = 20_002;
const BULK: u16 = 47_000;
/// Inside the tunnel, for every client and every gateway; in bytes.
const MTU: u32 = 1420;
/// Asked after every client's own route.
const LAST_METRIC: u32 = 4096;
const WG: &str = "wg0";
const PATIENCE: Duration = Duration::from_secs(10);

/// The program that is measured on the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Client {
    Breakout,
    Foreign { kind: Foreign, program: PathBuf },
}

/// Not a client that can be measured.
#[derive(Debug, thiserror::Error)]
pub enum UnknownClient {
    #[error(
        "`{0}` is no client: give wireguard-go, gotatun or boringtun-cli, with =PATH if it is not in PATH"
    )]
    Name(String),
    #[error(transparent)]
    Missing(#[from] LabError),
    #[error("{} is no file", .0.display())]
    NoFile(PathBuf),
}

impl Client {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Breakout => "breakout",
            Self::Foreign { kind, .. } => kind.name(),
        }
    }
}

impl FromStr for Client {
    type Err = UnknownClient;

    /// `NAME` or `NAME=PATH`, for `--against`.
    fn from_str(text: &str) -> Result<Self, UnknownClient> {
        let (name, path) = text.split_once('=').map_or((text, None), |(name, path)| (name, Some(path)));
        let kind = Foreign::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| UnknownClient::Name(name.to_owned()))?;
        let program = match path.map(PathBuf::from) {
            None => kind.find()?,
            Some(path) => path.canonicalize().map_err(|_| UnknownClient::NoFile(path))?,
        };
        Ok(Self::Foreign { kind, program })
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A client on an agent, its gateway on the far end, and what answers there. All of it is gone when this is dropped.
#[derive(Debug)]
pub struct Site {
    // In the order in which they are to end.
    running: Option<Running>,
    _gateway: Process,
    _wire: Link,
    pub agent: Host,
    pub far: Host,
    client: Client,
    gateway: Gateway,
    keys: Keys,
    directory: Directory,
    exe: PathBuf,
}

#[derive(Debug)]
enum Running {
    Daemon(Daemon),
    Program(Process),
}

impl Site {
    /// Builds it; the client can move packets when this returns. `exe` is the `breakout` program.
    pub fn build(client: Client, gateway: Gateway, exe: &File) -> Result<Self, LabError> {
        let directory = Directory::new()?;
        let keys = Keys::generate()?;
        let agent = Host::new("agent")?;
        let far = Host::new("far")?;
        let near = End { host: &agent, device: "eth0", address: net(AGENT, 24) };
        let wire = Link::connect(
            LinkKind::Wire,
            near,
            End { host: &far, device: "eth0", address: net(ROUTER, 24) },
            0,
        )?;
        for host in [&agent, &far] {
            host.up("lo")?;
        }
        for address in [GATEWAY, MEDIA, DIRECT] {
            far.add_address("eth0", net(address, 32))?;
        }
        agent.add_route(net(Ipv4Addr::UNSPECIFIED, 0), ROUTER.into())?;
        close_clear_way(&agent)?;

        let process = start_gateway(&far, gateway, &keys, exe, &directory)?;
        for address in [DIRECT, MEDIA, FAR_TUNNEL] {
            voice::serve(&far, at(address, VOICE))?;
        }
        for address in [MEDIA, FAR_TUNNEL] {
            voice::serve_marked(&far, at(address, MARKED))?;
        }
        for address in [DIRECT, FAR_TUNNEL] {
            throughput::serve(&far, at(address, BULK))?;
        }
        let mut site = Self {
            running: None,
            _gateway: process,
            _wire: wire,
            agent,
            far,
            client,
            gateway,
            keys,
            directory,
            exe: exe.to_owned(),
        };
        site.start_client()?;
        Ok(site)
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The client's process, if it is running.
    pub fn pid(&mut self) -> Option<u32> {
        self.running.as_mut().map(|running| match running {
            Running::Daemon(daemon) => daemon.process().pid(),
            Running::Program(process) => process.pid(),
        })
    }

    /// Starts the client; it can move packets when this returns.
    pub fn start_client(&mut self) -> Result<(), LabError> {
        self.running = Some(match &self.client {
            Client::Breakout => {
                let config = self.write_config()?;
                Running::Daemon(Daemon::start(&self.agent, &self.exe, &config, &self.directory)?)
            }
            Client::Foreign { kind, program } => {
                let process = WireGuard {
                    private_key: self.keys.agent.clone(),
                    listen_port: None,
                    peer: self.keys.gateway.public_key(),
                    preshared_key: Some(self.keys.preshared.clone()),
                    endpoint: Some(at(GATEWAY, GATEWAY_PORT)),
                    allowed_ips: vec![net(FAR_TUNNEL, 32)],
                    keepalive: Some(25),
                    address: net(AGENT_TUNNEL, 32),
                }
                .start_program(&self.agent, *kind, program, WG, &self.directory)?;
                set_mtu(&self.agent, WG)?;
                Running::Program(process)
            }
        });
        Ok(())
    }

    /// Ends the client, with a chance to put things back.
    pub fn stop_client(&mut self) -> Result<(), LabError> {
        match self.running.take() {
            Some(Running::Daemon(daemon)) => daemon.stop(),
            Some(Running::Program(mut process)) => {
                process.signal(nix::sys::signal::Signal::SIGTERM)?;
                process.wait(PATIENCE).map(drop)
            }
            None => Ok(()),
        }
    }

    /// Who echoes voice on this path.
    pub fn voice(&self, path: Path) -> SocketAddr {
        at(far_address(path), VOICE)
    }

    /// Who echoes what this path has carried and no other.
    pub fn marked(&self, path: Path) -> SocketAddr {
        at(far_address(path), MARKED)
    }

    /// Who moves data; not on the bypass.
    pub fn bulk(&self, path: Path) -> SocketAddr {
        at(far_address(path), BULK)
    }

    /// What it is, for the report.
    pub fn describe(&self) -> Result<Contender, LabError> {
        let (program, features) = match &self.client {
            Client::Breakout => (&self.exe, self.features()?),
            Client::Foreign { program, .. } => (program, serde_json::Value::Null),
        };
        let gateway_program = match self.gateway {
            Gateway::Breakout => self.exe.clone(),
            Gateway::Foreign(kind) => kind.find()?,
        };
        Ok(Contender {
            client: self.client.name().to_owned(),
            version: machine::version_of(program),
            gateway: self.gateway.name().to_owned(),
            gateway_version: machine::version_of(&gateway_program),
            mtu: MTU,
            features,
        })
    }

    fn features(&self) -> Result<serde_json::Value, LabError> {
        let Some(Running::Daemon(daemon)) = &self.running else { return Ok(serde_json::Value::Null) };
        let output = self.agent.output(daemon.command(&["status", "--json"]))?;
        let status: serde_json::Value =
            serde_json::from_slice(&output.stdout).during(|| "read `breakout status --json`".to_owned())?;
        Ok(status.get("features").cloned().unwrap_or_default())
    }

    fn write_config(&self) -> Result<PathBuf, LabError> {
        self.directory.write("agent.key", &self.keys.agent.to_base64())?;
        self.directory.write("agent.psk", &self.keys.preshared.to_base64())?;
        self.directory.write(
            "breakout.toml",
            &format!(
                r#"[interface]
address = ["{AGENT_TUNNEL}/32"]
mtu = {MTU}

[tunnel]
private_key_file = "agent.key"
peer_public_key = "{}"
preshared_key_file = "agent.psk"
endpoint = "{GATEWAY}:{GATEWAY_PORT}"
keepalive = 25

[sets.genesys-signaling]
cidrs = ["{FAR_TUNNEL}/32"]

[[rules]]
name = "media"
to = "genesys-media"
protocol = "udp"
when = "ef-or-webrtc"
path = "bypass"
dscp = "ef"

[[rules]]
name = "signaling"
to = "genesys-signaling"
protocol = "any"
path = "tunnel"
"#,
                self.keys.gateway.public_key()
            ),
        )
    }
}

fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    (address, port).into()
}

fn net(address: Ipv4Addr, prefix_len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(address, prefix_len))
}

const fn far_address(path: Path) -> Ipv4Addr {
    match path {
        Path::Direct | Path::DirectAgain => DIRECT,
        Path::Bypass => MEDIA,
        Path::Tunnel => FAR_TUNNEL,
    }
}

/// Without this route, the far end would answer on its tunnel address over the wire, and a tunnel that is not there would be measured.
fn close_clear_way(agent: &Host) -> Result<(), LabError> {
    agent.network("close the way around the tunnel", async |netlink| {
        let route = Route { kind: Kind::Prohibit, metric: LAST_METRIC, ..Route::new(net(FAR_TUNNEL, 32)) };
        netlink.add_route(&route).await
    })
}

fn set_mtu(host: &Host, device: &'static str) -> Result<(), LabError> {
    host.network(&format!("set the MTU of {device}"), async move |netlink| {
        let index = netlink.link_index(device).await?;
        netlink.set_mtu(index, MTU).await
    })
}

fn start_gateway(
    far: &Host,
    gateway: Gateway,
    keys: &Keys,
    exe: &File,
    directory: &Directory,
) -> Result<Process, LabError> {
    if let Gateway::Foreign(kind) = gateway {
        let process = WireGuard {
            private_key: keys.gateway.clone(),
            listen_port: Some(GATEWAY_PORT),
            peer: keys.agent.public_key(),
            preshared_key: Some(keys.preshared.clone()),
            endpoint: None,
            allowed_ips: vec![net(AGENT_TUNNEL, 32)],
            keepalive: None,
            address: net(FAR_TUNNEL, 24),
        }
        .start(far, kind, WG, directory)?;
        set_mtu(far, WG)?;
        return Ok(process);
    }
    directory.write("gateway.key", &keys.gateway.to_base64())?;
    directory.write("gateway.psk", &keys.preshared.to_base64())?;
    let config = directory.write(
        "gateway.toml",
        &format!(
            r#"[interface]
address = ["{FAR_TUNNEL}/24"]
listen_port = {GATEWAY_PORT}
mtu = {MTU}
private_key_file = "gateway.key"

[[peers]]
public_key = "{}"
preshared_key_file = "gateway.psk"
allowed_ips = ["{AGENT_TUNNEL}/32"]
"#,
            keys.agent.public_key()
        ),
    )?;
    let mut command = Command::new(exe);
    command.arg("gateway").arg("--config").arg(config);
    let mut process = Process::spawn(far, "breakout gateway", command, &directory.file("gateway.log"))?;
    process.wait_for_line("gateway is up", PATIENCE)?;
    Ok(process)
}

/// Gives the agent another address and takes the one it had.
pub fn roam(agent: &Host, from: Ipv4Addr, to: Ipv4Addr) -> Result<(), LabError> {
    agent.network(&format!("roam from {from} to {to}"), async move |netlink| {
        let index = netlink.link_index("eth0").await?;
        netlink.delete_address(index, net(from, 24)).await?;
        netlink.add_address(index, net(to, 24)).await?;
        let via = Some(IpAddr::from(ROUTER));
        netlink.add_route(&Route { via, ..Route::new(net(Ipv4Addr::UNSPECIFIED, 0)) }).await
    })
}
