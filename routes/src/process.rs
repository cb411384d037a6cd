//! Who made a change.

use std::{fmt, fs};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub name: String,
}

impl Process {
    /// The process with this number, which is the port that the kernel gives to its first netlink socket. `None`: it has ended, or it is
    /// another socket's port.
    pub(crate) fn of_port(port: u32) -> Option<Self> {
        let name = fs::read(format!("/proc/{port}/comm")).ok()?;
        Some(Self { pid: port, name: printable(name.trim_ascii_end()) })
    }
}

/// What is no UTF-8, or could upset a terminal, is escaped.
pub(crate) fn printable(name: &[u8]) -> String {
    name.escape_ascii().to_string()
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}
