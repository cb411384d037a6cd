//! Who keeps the agent's /etc/resolv.conf: nobody, resolvconf or systemd-resolved, the real ones, from Debian's packages.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lab::{Host, Process};

use crate::common::{Scene, ok, program, said};

const PATIENCE: Duration = Duration::from_secs(20);
/// What the C library completes names with.
const SEARCH: &str = "search corp.example\n";
const BUS: &str = "/run/dbus/system_bus_socket";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    Nobody,
    Resolvconf,
    Resolved,
}

impl Keeper {
    pub const ALL: [Self; 3] = [Self::Nobody, Self::Resolvconf, Self::Resolved];

    /// As `status` says how names are led to the daemon.
    pub fn mode(self) -> &'static str {
        match self {
            Self::Nobody => "/etc/resolv.conf",
            Self::Resolvconf => "resolvconf",
            Self::Resolved => "systemd-resolved",
        }
    }

    /// Gives the agent an /etc and a /run of its own where names are asked for at `server`. Answers with what has to run for
    /// that; `None`, said on standard error, if something is missing.
    pub fn install(self, scene: &Scene, server: Ipv4Addr) -> Option<Vec<Process>> {
        let agent = &scene.internet.agent;
        let package = match self {
            Self::Nobody => None,
            Self::Resolvconf => Some(package("openresolv")?),
            Self::Resolved => {
                program("dbus-daemon", "dbus-daemon")?;
                Some(package("systemd-resolved")?)
            }
        };
        let etc = scene.directory.file("etc");
        write_etc(&etc);
        match self {
            Self::Nobody => {
                let own = format!(
                    "# the machine's own\nnameserver {server}\n{SEARCH}options timeout:1 attempts:1\n"
                );
                fs::write(etc.join("resolv.conf"), own).unwrap();
            }
            Self::Resolvconf => {
                fs::write(etc.join("resolvconf.conf"), "resolv_conf=/etc/resolv.conf\n").unwrap();
            }
            Self::Resolved => write_resolved(&etc, server),
        }
        ok(agent.show_instead(Path::new("/etc"), &etc));
        ok(agent.cover(Path::new("/run")));
        Some(match (self, package) {
            (Self::Resolvconf, Some(package)) => {
                install_beside(agent, &package);
                let told =
                    format!("printf 'nameserver {server}\\n{SEARCH}' | /usr/sbin/resolvconf -a eth0.dhcp");
                shell(agent, &told);
                Vec::new()
            }
            (Self::Resolved, Some(package)) => start_resolved(scene, &package),
            _ => Vec::new(),
        })
    }
}

/// What the agent's C library finds for a name; empty: nothing.
pub fn getent(scene: &Scene, name: &str) -> String {
    let mut getent = Command::new("getent");
    getent.args(["ahostsv4", name]);
    let output = ok(scene.internet.agent.output(getent));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn write_etc(etc: &Path) {
    fs::create_dir(etc).unwrap();
    fs::set_permissions(etc, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(etc.join("nsswitch.conf"), "hosts: dns\npasswd: files\ngroup: files\n").unwrap();
    for file in ["passwd", "group"] {
        fs::copy(Path::new("/etc").join(file), etc.join(file)).unwrap();
    }
}

fn write_resolved(etc: &Path, server: Ipv4Addr) {
    let append = |file: &str, line: &str| {
        let text = fs::read_to_string(etc.join(file)).unwrap();
        fs::write(etc.join(file), text + line).unwrap();
    };
    append("passwd", "systemd-resolve:x:982:982::/:/usr/sbin/nologin\n");
    append("group", "systemd-resolve:x:982:\n");
    fs::create_dir(etc.join("systemd")).unwrap();
    let settings = format!(
        "[Resolve]\nDNS={server}\nDomains=corp.example\nFallbackDNS=\nLLMNR=no\nMulticastDNS=no\nDNSSEC=no\n"
    );
    fs::write(etc.join("systemd/resolved.conf"), settings).unwrap();
    symlink("../run/systemd/resolve/stub-resolv.conf", etc.join("resolv.conf")).unwrap();
    fs::write(etc.join("bus.conf"), CONFIG).unwrap();
}

const CONFIG: &str = r#"<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="method_call"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"#;

fn start_resolved(scene: &Scene, package: &Path) -> Vec<Process> {
    let agent = &scene.internet.agent;
    shell(agent, "mkdir /run/dbus /run/systemd");
    let mut bus = Command::new("dbus-daemon");
    bus.args(["--nofork", "--config-file=/etc/bus.conf"]);
    let mut bus = ok(Process::spawn(agent, "dbus-daemon", bus, &scene.directory.file("bus.log")));
    ok(bus.wait_until("its socket", PATIENCE, |_| ok(agent.run(|| Path::new(BUS).exists()))));

    let program = ["usr/lib", "lib"].map(|lib| package.join(lib).join("systemd/systemd-resolved"));
    let program = program.iter().find(|program| program.exists()).unwrap();
    let log = scene.directory.file("resolved.log");
    let daemon = with_libraries(package, program);
    let mut daemon = ok(Process::spawn(agent, "systemd-resolved", daemon, &log));
    ok(daemon.wait_until("its answer on D-Bus", PATIENCE, |_| {
        let mut control = with_libraries(package, &package.join("usr/bin/resolvectl"));
        control.arg("status");
        ok(agent.output(control)).status.success()
    }));
    vec![daemon, bus]
}

/// A program of the package's, with the library of the same version.
fn with_libraries(package: &Path, program: &Path) -> Command {
    let libraries = package.join(format!("usr/lib/{}-linux-gnu/systemd", std::env::consts::ARCH));
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", libraries);
    command
}

/// The package's programs where they look for each other.
fn install_beside(agent: &Host, package: &Path) {
    for directory in ["sbin", "lib"] {
        let lower = format!("lowerdir={}:/usr/{directory}", package.join(directory).display());
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "-o", &lower, "overlay", &format!("/usr/{directory}")]);
        said(&ok(agent.output(mount)));
    }
}

fn shell(agent: &Host, script: &str) {
    let mut shell = Command::new("sh");
    shell.args(["-ec", script]);
    said(&ok(agent.output(shell)));
}

/// The files of a Debian package that `./do peers` has unpacked beside the programs of others.
fn package(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let beside = |directory: PathBuf| Some(directory.parent()?.join("debian").join(name));
    let found = std::env::split_paths(&path).filter_map(beside).find(|package| package.is_dir());
    if found.is_none() {
        lab::skip(format!("the package {name} is not unpacked (./do peers)"));
    }
    found
}
