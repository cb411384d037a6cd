use std::{io, path::PathBuf};

use crate::netlink;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("Breakout is running already{}; stop it with `breakout down`", pid(.0))]
    Running(Option<i32>),
    #[error("cannot use the state directory: {}: {source}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error(
        "{} does not say what to undo: {source}; see to rp_filter of the interfaces by hand, then delete it",
        path.display()
    )]
    Journal { path: PathBuf, source: serde_json::Error },
    #[error("cannot use the kernel setting {}: {source}", path.display())]
    Sysctl { path: PathBuf, source: io::Error },
    #[error(
        "routing table {table} is used by something else: it has {found}; remove that with `ip route` or give it a \
         table of its own"
    )]
    TableTaken { table: u32, found: String },
    #[error("the TUN interface {0} is gone; start Breakout again")]
    TunGone(String),
    #[error("{}", with_remedy(.0))]
    Netlink(#[from] netlink::Error),
}

fn pid(pid: &Option<i32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" as process {pid}"))
}

fn with_remedy(error: &netlink::Error) -> String {
    match error.errno() {
        Some(libc::EPERM) => format!("{error}; run it as root or with CAP_NET_ADMIN"),
        _ => error.to_string(),
    }
}
