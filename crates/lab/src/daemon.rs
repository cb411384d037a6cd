use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::gateway::Keys;
use crate::internet::SIGNALING_NET;
use crate::internet::addresses::{AGENT_TUNNEL, GATEWAY, GATEWAY_PORT};
use crate::{Directory, Host, LabError, Process};

/// `breakout up`, running on a host.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    exe: PathBuf,
    config: PathBuf,
    state: PathBuf,
}

/// Until the daemon says that packets can move, and until it is gone after it was told to go.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where the daemon keeps its state, lock and control socket.
const STATE_DIR: &str = "BREAKOUT_STATE_DIR";

impl Daemon {
    /// Starts the daemon on `host` with the configuration file `config`; packets can move when this returns.
    pub fn start(host: &Host, exe: &Path, config: &Path, directory: &Directory) -> Result<Self, LabError> {
        let state = directory.file("state");
        let mut command = Command::new(exe);
        command.arg("up").arg("--config").arg(config).env(STATE_DIR, &state);
        let mut process = Process::spawn(host, "breakout up", command, &directory.file("daemon.log"))?;
        process.wait_for_line("breakout is up", PATIENCE)?;
        Ok(Self { process, exe: exe.to_owned(), config: config.to_owned(), state })
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub fn exe(&self) -> &Path {
        &self.exe
    }

    /// Its exit status and last words, if it has ended by itself.
    pub fn ended(&mut self) -> Result<Option<String>, LabError> {
        let status = self.process.wait(Duration::ZERO)?;
        Ok(status.map(|status| format!("{status}; it said:\n{}", self.process.last_words())))
    }

    /// The configuration file it runs with.
    pub fn config(&self) -> &Path {
        &self.config
    }

    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// A `breakout` command that talks to this daemon, such as `status`; to be run in any host.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.exe);
        command.args(arguments).env(STATE_DIR, &self.state);
        command
    }

    /// Ends it as a service manager would, and waits for it.
    pub fn stop(mut self) -> Result<(), LabError> {
        self.end(Signal::SIGTERM)
    }

    /// Ends it without a chance to put anything back, and waits for it.
    pub fn kill(mut self) -> Result<(), LabError> {
        self.end(Signal::SIGKILL)
    }

    fn end(&mut self, signal: Signal) -> Result<(), LabError> {
        if self.process.wait(Duration::ZERO)?.is_some() {
            return Ok(());
        }
        self.process.signal(signal)?;
        match self.process.wait(PATIENCE)? {
            Some(_) => Ok(()),
            None => Err(self.process.overdue(&format!("its end after {signal}"), PATIENCE)),
        }
    }
}

/// Writes the agent's keys and a configuration for the lab's internet: signaling is [`SIGNALING_NET`], media the built-in set, and nobody is
/// asked about captive portals. `more` is added at the end.
pub fn write_config(keys: &Keys, directory: &Directory, more: &str) -> Result<PathBuf, LabError> {
    directory.write("agent.key", &keys.agent.to_base64())?;
    directory.write("agent.psk", &keys.preshared.to_base64())?;
    directory.write(
        "breakout.toml",
        &format!(
            r#"[network]
portal_check = ""

[interface]
address = ["{AGENT_TUNNEL}/32"]

[tunnel]
private_key_file = "agent.key"
peer_public_key = "{}"
preshared_key_file = "agent.psk"
endpoint = "{GATEWAY}:{GATEWAY_PORT}"
keepalive = 25

[sets.genesys-signaling]
cidrs = ["{SIGNALING_NET}"]
{more}"#,
            keys.gateway.public_key()
        ),
    )
}
