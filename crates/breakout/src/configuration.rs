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

/// A file that has been parsed, checked and compiled.
pub struct Policy {
    pub config: Config,
    pub snapshot: Snapshot,
    pub warnings: Vec<Warning>,
}

/// What the tunnel is made of.
pub struct Keys {
    pub private: PrivateKey,
    pub preshared: Option<PresharedKey>,
}

pub fn read_policy(path: &Path) -> Result<Policy, Failure> {
    let text = read_text(path)?;
    let (config, warnings) = Config::parse(&text, &path.display().to_string())
        .map_err(|error| Failure::diagnostic(Exit::Usage, error))?;
    let snapshot = Snapshot::compile(&config);
    Ok(Policy { config, snapshot, warnings })
}

/// Reads the key files that a configuration names, relative to it.
pub fn read_keys(config: &Config, file: &Path) -> Result<Keys, Failure> {
    let private = key_file::private_key(&beside(file, &config.tunnel.private_key_file))?;
    let preshared = config
        .tunnel
        .preshared_key_file
        .as_ref()
        .map(|key| key_file::preshared_key(&beside(file, key)))
        .transpose()?;
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
