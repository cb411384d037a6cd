//! WireGuard programs by other authors, as gateway or as client, configured through their own socket.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use tunnel::{PresharedKey, PrivateKey, PublicKey};

use crate::process::find_program;
use crate::{Directory, During, Host, LabError, Process};

/// A WireGuard implementation that is not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Foreign {
    WireguardGo,
    Gotatun,
    BoringtunCli,
}

impl Foreign {
    pub const ALL: [Self; 3] = [Self::WireguardGo, Self::Gotatun, Self::BoringtunCli];

    pub const fn name(self) -> &'static str {
        match self {
            Self::WireguardGo => "wireguard-go",
            Self::Gotatun => "gotatun",
            Self::BoringtunCli => "boringtun-cli",
        }
    }

    /// Its program in PATH.
    pub fn find(self) -> Result<PathBuf, LabError> {
        let remedy = match self {
            Self::WireguardGo => "Install it: apt install wireguard-go.",
            Self::Gotatun => "Install it: cargo install gotatun-cli.",
            Self::BoringtunCli => "Install it: cargo install boringtun-cli.",
        };
        find_program(self.name(), remedy)
    }
}

/// What an interface of a WireGuard program shall be.
#[derive(Clone, Debug)]
pub struct WireGuard {
    pub private_key: PrivateKey,
    pub listen_port: Option<u16>,
    pub peer: PublicKey,
    pub preshared_key: Option<PresharedKey>,
    pub endpoint: Option<SocketAddr>,
    /// What the peer may send, and what is routed to it.
    pub allowed_ips: Vec<IpNet>,
    /// Seconds.
    pub keepalive: Option<u16>,
    pub address: IpNet,
}

const PATIENCE: Duration = Duration::from_secs(10);
/// Where these programs have their sockets.
const SOCKETS: &str = "/var/run/wireguard";

impl WireGuard {
    /// Starts `program` in `host` with an interface called `device`, and routes the allowed addresses into it.
    pub fn start(
        &self,
        host: &Host,
        program: Foreign,
        device: &str,
        directory: &Directory,
    ) -> Result<Process, LabError> {
        self.start_program(host, program, &program.find()?, device, directory)
    }

    /// As [`WireGuard::start`], from the program file `file`, which need not lie in PATH.
    pub fn start_program(
        &self,
        host: &Host,
        program: Foreign,
        file: &Path,
        device: &str,
        directory: &Directory,
    ) -> Result<Process, LabError> {
        let mut command = Command::new(file);
        command.arg("-f");
        if program != Foreign::WireguardGo {
            command.arg("--disable-drop-privileges");
        }
        command.arg(device);
        hide_sockets(host)?;
        let log = directory.file(&format!("{}-{}.log", host.name(), program.name()));
        let mut process = Process::spawn(host, program.name(), command, &log)?;
        let socket = Path::new(SOCKETS).join(format!("{device}.sock"));
        let awaited = format!("its socket {}", socket.display());
        process.wait_until(&awaited, PATIENCE, |_| connect(host, &socket).is_ok())?;
        self.configure(host, program, &socket)?;
        host.add_address(device, self.address)?;
        host.up(device)?;
        for prefix in self.allowed_ips.iter().filter(|prefix| !self.address.contains(*prefix)) {
            host.add_device_route(*prefix, device)?;
        }
        Ok(process)
    }

    fn configure(&self, host: &Host, program: Foreign, socket: &Path) -> Result<(), LabError> {
        let (socket, request) = (socket.to_owned(), self.to_request());
        let answer = host
            .run(move || -> io::Result<String> {
                let mut stream = UnixStream::connect(socket)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.write_all(request.as_bytes())?;
                stream.shutdown(Shutdown::Write)?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                Ok(answer)
            })?
            .during(|| format!("configure {program}"))?;
        match answer.trim() {
            "errno=0" => Ok(()),
            refusal => Err(refusal.to_owned()).during(|| format!("configure {program}")),
        }
    }

    /// The `set` operation of the cross-platform interface (wireguard.com/xplatform).
    fn to_request(&self) -> String {
        let mut request = format!("set=1\nprivate_key={}\n", hex(&self.private_key.to_base64()));
        let mut line = |key: &str, value: String| request.push_str(&format!("{key}={value}\n"));
        if let Some(port) = self.listen_port {
            line("listen_port", port.to_string());
        }
        line("replace_peers", "true".to_owned());
        line("public_key", hex(&self.peer.to_string()));
        if let Some(key) = &self.preshared_key {
            line("preshared_key", hex(&key.to_base64()));
        }
        if let Some(endpoint) = self.endpoint {
            line("endpoint", endpoint.to_string());
        }
        if let Some(seconds) = self.keepalive {
            line("persistent_keepalive_interval", seconds.to_string());
        }
        for prefix in &self.allowed_ips {
            line("allowed_ip", prefix.to_string());
        }
        request.push('\n');
        request
    }
}

/// Gives the host a socket directory of its own, so that neither another host's nor the machine's interfaces of that name are in the way.
fn hide_sockets(host: &Host) -> Result<(), LabError> {
    let own = Path::new(SOCKETS).join(".lab");
    let marker = own.clone();
    if host.run(move || marker.exists())? {
        return Ok(());
    }
    let run = Path::new(SOCKETS).parent().map(Path::canonicalize);
    let run = run.and_then(Result::ok).unwrap_or_else(|| PathBuf::from("/run"));
    host.cover(&run)?;
    host.run(move || std::fs::create_dir_all(own))?.during(|| format!("make {SOCKETS}"))
}

fn connect(host: &Host, socket: &Path) -> Result<(), LabError> {
    let path = socket.to_owned();
    host.run(move || UnixStream::connect(path).map(drop))?.during(|| "connect".to_owned())
}

/// The interface wants keys in base 16.
fn hex(base64: &str) -> String {
    let bytes = STANDARD.decode(base64).unwrap_or_default();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_written_as_the_interface_wants_them() {
        let private_key: PrivateKey = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=".parse().unwrap();
        let config = WireGuard {
            peer: private_key.public_key(),
            private_key,
            listen_port: Some(51820),
            preshared_key: None,
            endpoint: Some("198.18.0.2:51820".parse().unwrap()),
            allowed_ips: vec!["10.99.0.1/32".parse().unwrap()],
            keepalive: None,
            address: "10.99.0.254/24".parse().unwrap(),
        };
        assert_eq!(
            config.to_request(),
            "set=1\n\
             private_key=77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a\n\
             listen_port=51820\n\
             replace_peers=true\n\
             public_key=8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a\n\
             endpoint=198.18.0.2:51820\n\
             allowed_ip=10.99.0.1/32\n\n"
        );
    }
}
