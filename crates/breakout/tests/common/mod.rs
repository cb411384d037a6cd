//! Running the real program.
#![allow(dead_code, clippy::unwrap_used, clippy::panic, reason = "each test file uses its part of these")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// RFC 7748 §6.1: Alice's private and public keys, and Bob's public one.
pub const PRIVATE: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
pub const PUBLIC: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
pub const PEER: &str = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=";

pub struct Place(tempfile::TempDir);

pub struct Outcome {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Place {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// A key file as it should be.
    pub fn write_key(&self, name: &str) -> PathBuf {
        let path = self.write(name, &format!("{PRIVATE}\n"));
        set_mode(&path, 0o600);
        path
    }

    /// A usable configuration with its key; `more` is added at the end.
    pub fn write_config(&self, more: &str) -> PathBuf {
        self.write_key("agent.key");
        self.write("agent.toml", &config(more))
    }

    /// Runs `breakout` here.
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        self.run_with(arguments, &[])
    }

    /// With these variables in its environment.
    pub fn run_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Outcome {
        let output = Command::new(env!("CARGO_BIN_EXE_breakout"))
            .args(arguments)
            .current_dir(self.0.path())
            .env("BREAKOUT_STATE_DIR", self.state())
            .env_remove("RUST_LOG")
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        Outcome {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Outcome {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.stdout, self.stderr))
    }

    #[track_caller]
    pub fn assert(&self, status: i32, stderr: &str) {
        assert_eq!(self.status, status, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        // miette wraps lines at the terminal's width.
        let flat: String =
            self.stderr.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ");
        assert!(flat.contains(stderr), "no `{stderr}` in: {}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }
}

pub fn config(more: &str) -> String {
    format!(
        r#"[interface]
address = ["10.99.0.1/32"]
[tunnel]
private_key_file = "agent.key"
peer_public_key = "{PEER}"
endpoint = "198.18.0.2:51820"
[sets.genesys-signaling]
cidrs = ["203.0.113.0/24"]
{more}"#
    )
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

pub fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}
