//! A configuration file and what it names, read from the disk.

use std::{
    fs,
    path::{Path, PathBuf},
};

use policy::{Config, Snapshot, Warning};
use tunnel::{PresharedKey, PrivateKey};

use crate::{exit::Exit, failure::Failure, key_file};

/// Larger than any sensible configuration.
const MAX_LENGTH: u64 = 16 * 1024 * 1024;

/// The sets and rules that are built in. Genesys publishes no list of signaling addresses, so that documentation's own
/// range (RFC 5737) stands for them. The rest is never used.
const BUILT_IN: &str = r#"
[interface]
address = ["192.0.2.1/32"]
[tunnel]
private_key_file = "none"
peer_public_key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
endpoint = "192.0.2.2:51820"
[sets.genesys-signaling]
cidrs = ["203.0.113.0/24"]
"#;

/// A file that has been parsed, checked and compiled.
pub struct Policy {
    pub config: Config,
    pub snapshot: Snapshot,
    pub warnings: Vec<Warning>,
}

/// What the tunnel is made of.
pub struct Keys {
    pub private: PrivateKey,
    /// With each gateway, in the configuration's order.
    pub preshared: Vec<Option<PresharedKey>>,
}

pub fn read_policy(path: &Path) -> Result<Policy, Failure> {
    parse(&read_text(path)?, &path.display().to_string())
}

pub fn built_in_policy() -> Result<Policy, Failure> {
    parse(BUILT_IN, "built in")
}

/// Parses, checks and compiles a configuration's text; `name` is the file's in messages.
pub fn parse(text: &str, name: &str) -> Result<Policy, Failure> {
    let (config, warnings) =
        Config::parse(text, name).map_err(|error| Failure::diagnostic(Exit::Usage, error))?;
    let snapshot = Snapshot::compile(&config);
    Ok(Policy { config, snapshot, warnings })
}

/// Reads the key files that a configuration names, relative to it.
pub fn read_keys(config: &Config, file: &Path) -> Result<Keys, Failure> {
    let private = key_file::private_key(&beside(file, &config.tunnel.private_key_file))?;
    let files = config.tunnel.gateways.iter().map(|gateway| &gateway.preshared_key_file);
    let read = |key: &PathBuf| key_file::preshared_key(&beside(file, key));
    let preshared = files.map(|key| key.as_ref().map(read).transpose()).collect::<Result<_, Failure>>()?;
    Ok(Keys { private, preshared })
}

pub fn read_text(path: &Path) -> Result<String, Failure> {
    let failed =
        |error| Failure::usage(format!("cannot read the configuration {}", path.display())).because(error);
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > MAX_LENGTH {
        return Err(Failure::usage(format!(
            "{} has {length} bytes: this is no configuration",
            path.display()
        ))
        .into());
    }
    Ok(fs::read_to_string(path).map_err(failed)?)
}

/// A name in a file means what it means beside that file.
pub fn beside(file: &Path, name: &Path) -> PathBuf {
    file.parent().unwrap_or_else(|| Path::new("")).join(name)
}
