use std::fmt;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use ipnet::Ipv4Net;
use tunnel::{PresharedKey, PrivateKey};

use crate::internet::addresses::{AGENT_TUNNEL, GATEWAY_PORT, GATEWAY_TUNNEL};
use crate::wireguard::{Foreign, WireGuard};
use crate::{Directory, During, Host, LabError, Process};

/// Which program is the tunnel's far end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gateway {
    /// `breakout gateway`.
    #[default]
    Breakout,
    Foreign(Foreign),
}

/// The keys of one tunnel.
#[derive(Clone, Debug)]
pub struct Keys {
    pub agent: PrivateKey,
    pub gateway: PrivateKey,
    pub preshared: PresharedKey,
}

const PATIENCE: Duration = Duration::from_secs(10);
/// A foreign gateway's interface.
const DEVICE: &str = "wg0";

impl Keys {
    pub fn generate() -> Result<Self, LabError> {
        let key = || PrivateKey::generate().during(|| "make a key".to_owned());
        let preshared = PresharedKey::generate().during(|| "make a key".to_owned())?;
        Ok(Self { agent: key()?, gateway: key()?, preshared })
    }
}

impl Gateway {
    pub const ALL: [Self; 4] = [
        Self::Breakout,
        Self::Foreign(Foreign::WireguardGo),
        Self::Foreign(Foreign::Gotatun),
        Self::Foreign(Foreign::BoringtunCli),
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Breakout => "breakout",
            Self::Foreign(foreign) => foreign.name(),
        }
    }

    /// Starts it on `host`, with an interface of `mtu` bytes; it answers when this returns. `exe` is the `breakout` program.
    pub fn start(
        self,
        host: &Host,
        keys: &Keys,
        exe: &Path,
        directory: &Directory,
        mtu: u32,
    ) -> Result<Process, LabError> {
        let Self::Foreign(program) = self else {
            return start_our_own(host, "gateway", keys, exe, directory, mtu);
        };
        let interface = WireGuard {
            private_key: keys.gateway.clone(),
            listen_port: Some(GATEWAY_PORT),
            peer: keys.agent.public_key(),
            preshared_key: Some(keys.preshared.clone()),
            endpoint: None,
            allowed_ips: vec![Ipv4Net::from(AGENT_TUNNEL).into()],
            keepalive: None,
            address: Ipv4Net::new_assert(GATEWAY_TUNNEL, 24).into(),
        };
        let process = interface.start(host, program, DEVICE, directory)?;
        host.set_mtu(DEVICE, mtu)?;
        Ok(process)
    }
}

/// Starts `breakout gateway`; its files are called `name`.
pub fn start_our_own(
    host: &Host,
    name: &str,
    keys: &Keys,
    exe: &Path,
    directory: &Directory,
    mtu: u32,
) -> Result<Process, LabError> {
    directory.write(&format!("{name}.key"), &keys.gateway.to_base64())?;
    directory.write(&format!("{name}.psk"), &keys.preshared.to_base64())?;
    let config = directory.write(
        &format!("{name}.toml"),
        &format!(
            r#"[interface]
address = ["{GATEWAY_TUNNEL}/24"]
listen_port = {GATEWAY_PORT}
mtu = {mtu}
private_key_file = "{name}.key"

[[peers]]
public_key = "{}"
preshared_key_file = "{name}.psk"
allowed_ips = ["{AGENT_TUNNEL}/32"]
"#,
            keys.agent.public_key()
        ),
    )?;
    let mut command = Command::new(exe);
    command.arg("gateway").arg("--config").arg(config);
    let mut process =
        Process::spawn(host, "breakout gateway", command, &directory.file(&format!("{name}.log")))?;
    process.wait_for_line("gateway is up", PATIENCE)?;
    Ok(process)
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Not one of the names that [`Gateway::name`] gives.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no gateway: give breakout, wireguard-go, gotatun or boringtun-cli")]
pub struct UnknownGateway(String);

impl FromStr for Gateway {
    type Err = UnknownGateway;

    fn from_str(name: &str) -> Result<Self, UnknownGateway> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| UnknownGateway(name.to_owned()))
    }
}
