use std::{io, path::PathBuf};

use crate::{netlink, nft};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("Breakout is running already{}; stop it with `breakout down`", pid(.0))]
    Running(Option<i32>),
    #[error("cannot use the state directory: {}: {source}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error(
        "{} does not say what to undo: {source}; `breakout panic-off` removes what is known without it, then see to \
         rp_filter of the interfaces by hand and delete it",
        path.display()
    )]
    Journal { path: PathBuf, source: serde_json::Error },
    #[error(
        "{} was written by another version of Breakout (it is {found}, this one knows {known}); run that one's \
         `breakout down`, or `breakout panic-off`",
        path.display()
    )]
    JournalVersion { path: PathBuf, found: u32, known: u32 },
    #[error(
        "{} is about another network namespace, {theirs}, and this is {own}: run it there; each namespace needs a state \
         directory of its own",
        path.display()
    )]
    JournalNamespace { path: PathBuf, theirs: String, own: String },
    #[error("cannot use the kernel setting {}: {source}", path.display())]
    Sysctl { path: PathBuf, source: io::Error },
    #[error(
        "routing table {table} is used by something else: it has {found}; remove that with `ip route` or give it a \
         table of its own"
    )]
    TableTaken { table: u32, found: String },
    #[error("the TUN interface {0} is gone; start Breakout again")]
    TunGone(String),
    #[error("cannot raise the kill switch: {0}; leave `kill_switch` out of [routes] to go without")]
    KillSwitch(nft::Error),
    #[error(
        "cannot change /etc/resolv.conf: {0}; if it is immutable `chattr -i /etc/resolv.conf` lifts that; without `dns` in \
         [tunnel] it is let be"
    )]
    ResolvConf(io::Error),
    #[error("cannot take our entry from resolvconf: {0}; `resolvconf -d lo.breakout` does it by hand")]
    Resolvconf(io::Error),
    #[error(
        "systemd-resolved or resolvconf does not take back within {0} s what it was told; what is left is noted"
    )]
    DnsSilent(u64),
    #[error("cannot remove the firewall's table: {0}")]
    Firewall(nft::Error),
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
