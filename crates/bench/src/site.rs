//! One client, its far end and the wire between them, in namespaces of their own.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path as File, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use lab::addresses::{self, AGENT, AGENT_TUNNEL, GATEWAY, GATEWAY_PORT, MEDIA, ROUTER};
use lab::{
    Daemon, Directory, During, End, Foreign, Gateway, Host, Keys, LabError, Link, LinkKind, Process,
    WireGuard,
};
use routes::netlink::{Kind, Route};
use serde::de::DeserializeOwned;

use crate::flows::{self, Flows};
use crate::report::{Contender, Path};
use crate::scheduling::has_realtime_thread;
use crate::voice::{self, Calls, EF_TOS, OpenCalls};
use crate::{machine, throughput};

/// Where the agent roams to.
pub const AGENT_2: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 11);
/// What nobody captures.
const DIRECT: Ipv4Addr = addresses::WEB;
/// What only the tunnel reaches.
const FAR_TUNNEL: Ipv4Addr = addresses::GATEWAY_TUNNEL;

/// Echoes voice, on every path; of the bypass only what arrives marked EF.
const VOICE: u16 = 20_000;
/// Nobody's, but while packets are measured one by one.
const SMALL: u16 = 20_004;
const BULK: u16 = 47_000;
/// Inside the tunnel, for every client and every gateway; in bytes.
pub const MTU: u32 = 1420;
/// Asked after every client's own route.
const LAST_METRIC: u32 = 4096;
const WG: &str = "wg0";
const PATIENCE: Duration = Duration::from_secs(10);
/// Under this name `breakout status` has the kernel's fast path.
const FAST_PATH: &str = "kernel-fast-path";

/// The program that is measured on the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Client {
    /// With the kernel's fast path as the machine allows it.
    Breakout,
    /// The pump alone.
    BreakoutWithoutFastPath,
    /// Nothing: the bare path.
    Nobody,
    Foreign {
        kind: Foreign,
        program: PathBuf,
    },
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
            Self::Breakout | Self::BreakoutWithoutFastPath => "breakout",
            Self::Nobody => "",
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
    _gateway: Option<Process>,
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

        voice::serve(&far, at(DIRECT, VOICE))?;
        throughput::serve(&far, at(DIRECT, BULK))?;
        let process = match client {
            Client::Nobody => None,
            _ => Some(gateway.start(&far, &keys, exe, &directory, MTU)?),
        };
        if process.is_some() {
            voice::serve_marked(&far, at(MEDIA, VOICE))?;
            voice::serve(&far, at(FAR_TUNNEL, VOICE))?;
            throughput::serve(&far, at(FAR_TUNNEL, BULK))?;
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
            Client::Nobody => return Ok(()),
            Client::Breakout | Client::BreakoutWithoutFastPath => {
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
                self.agent.set_mtu(WG, MTU)?;
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

    /// Who echoes voice on this path. On the bypass that is what was sent without a mark and the daemon has marked, and nothing else.
    pub fn voice(&self, path: Path) -> SocketAddr {
        at(far_address(path), VOICE)
    }

    /// Opens calls by a path; `packets` of each.
    pub fn open_calls(&self, path: Path, calls: u16, packets: u32) -> Result<OpenCalls, LabError> {
        let what = || format!("open {calls} calls by {path} of {}", self.client);
        let calls = Calls { to: self.voice(path), calls, packets, tos: tos(path) };
        let thread = self.agent.thread("open", move || calls.open())?;
        thread.join().map_err(|_| "its thread panicked".to_owned()).during(what)?.during(what)
    }

    /// Holds what went from these ports of the agent to `to` against what the daemon says it did with it: all of `packets` by this path, in this
    /// tier. Where there is no daemon, nothing but the path that is meant leads there.
    pub fn check_way(&self, path: Path, to: SocketAddr, ports: &[u16], packets: u64) -> Result<(), LabError> {
        let is_ours = matches!(path, Path::BypassPump | Path::BypassFastPath | Path::Tunnel);
        if !is_ours || self.daemon().is_none() {
            return Ok(());
        }
        let flows: Flows = self.ask("flows")?;
        flows::check(&flows.flows, path, to, ports, packets)
            .during(|| format!("measure {path} and nothing else"))
    }

    /// That the kernel moved them, of so many packets by this path for which the daemon ran so often, if it is to have done so. To be asked while
    /// the daemon has nothing else to do.
    pub fn check_mover(&self, path: Path, switches: u64, packets: u64) -> Result<(), LabError> {
        if path != Path::BypassFastPath || self.daemon().is_none() {
            return Ok(());
        }
        flows::check_mover(switches, packets).during(|| format!("measure {path} and nothing else"))
    }

    /// A port that nobody has.
    pub fn small(&self, path: Path) -> SocketAddr {
        at(far_address(path), SMALL)
    }

    /// Who moves data; not on the bypass.
    pub fn bulk(&self, path: Path) -> SocketAddr {
        at(far_address(path), BULK)
    }

    /// What it is, for the report.
    pub fn describe(&mut self) -> Result<Contender, LabError> {
        let realtime = self.pid().is_some_and(has_realtime_thread);
        let (program, features) = match &self.client {
            Client::Foreign { program, .. } => (program, serde_json::Value::Null),
            _ => (&self.exe, self.features()?),
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
            realtime,
            features,
        })
    }

    /// Whether the daemon says that established flows of the bypass stay in the kernel.
    pub fn has_fast_path(&self) -> Result<bool, LabError> {
        let features = self.features()?;
        let mut all = features.as_array().into_iter().flatten();
        Ok(all.any(|feature| {
            feature.get("name").is_some_and(|name| name == FAST_PATH)
                && feature.get("on").is_some_and(|on| on == true)
        }))
    }

    fn features(&self) -> Result<serde_json::Value, LabError> {
        if self.daemon().is_none() {
            return Ok(serde_json::Value::Null);
        }
        let status: serde_json::Value = self.ask("status")?;
        Ok(status.get("features").cloned().unwrap_or_default())
    }

    fn daemon(&self) -> Option<&Daemon> {
        match &self.running {
            Some(Running::Daemon(daemon)) => Some(daemon),
            _ => None,
        }
    }

    /// What `breakout COMMAND --json` says.
    fn ask<T: DeserializeOwned>(&self, command: &str) -> Result<T, LabError> {
        let what = || format!("read `breakout {command} --json`");
        let daemon = self.daemon().ok_or("no daemon runs").during(what)?;
        let output = self.agent.output(daemon.command(&[command, "--json"]))?;
        serde_json::from_slice(&output.stdout).during(what)
    }

    fn write_config(&self) -> Result<PathBuf, LabError> {
        // Only a daemon that has the fast path knows the key.
        let dataplane = match self.client {
            Client::BreakoutWithoutFastPath => "[dataplane]\nfast_path = \"off\"\n",
            _ => "",
        };
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

{dataplane}
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
        Path::BypassPump | Path::BypassFastPath => MEDIA,
        Path::Tunnel => FAR_TUNNEL,
    }
}

/// What voice is sent with: on the bypass without a mark, so that the mark that arrives is the daemon's.
pub const fn tos(path: Path) -> u8 {
    match path {
        Path::BypassPump | Path::BypassFastPath => 0,
        Path::Direct | Path::DirectAgain | Path::Tunnel => EF_TOS,
    }
}

/// Without this route, the far end would answer on its tunnel address over the wire, and a tunnel that is not there would be measured.
fn close_clear_way(agent: &Host) -> Result<(), LabError> {
    agent.network("close the way around the tunnel", async |netlink| {
        let route = Route { kind: Kind::Prohibit, metric: LAST_METRIC, ..Route::new(net(FAR_TUNNEL, 32)) };
        netlink.add_route(&route).await
    })
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
