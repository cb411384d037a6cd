//! nftables over nfnetlink: whole `inet` tables, each installed in one atomic batch.
//!
//! Needs Linux 5.2 for `nat` chains of the `inet` family, 5.12 for owned tables.

mod encode;
mod socket;

use std::io;

use ipnet::IpNet;

use socket::Socket;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this kernel has no nf_tables; load the module nf_tables or use a kernel that has it")]
    Unsupported,
    #[error("cannot open a netfilter netlink socket: {0}")]
    Socket(io::Error),
    #[error("cannot talk to nf_tables: {0}")]
    Exchange(io::Error),
    #[error("nf_tables refused to {action}: {source}")]
    Refused { action: String, source: io::Error },
    #[error("nf_tables gave no answer when asked to {action}")]
    Unanswered { action: String },
}

/// A table of the `inet` family: IPv4 and IPv6.
#[derive(Clone, Debug)]
pub struct Table {
    pub name: String,
    pub chains: Vec<Chain>,
}

/// A base chain.
#[derive(Clone, Debug)]
pub struct Chain {
    pub name: String,
    pub kind: ChainKind,
    pub hook: Hook,
    /// Smaller is asked first: raw −300, filter 0, srcnat 100 (`enum nf_ip_hook_priorities`, linux/netfilter_ipv4.h).
    pub priority: i32,
    pub policy: Policy,
    /// Each rule is a list of conditions that must all hold, then what is done.
    pub rules: Vec<Vec<Expr>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    Filter,
    Nat,
}

/// `enum nf_inet_hooks`, linux/netfilter.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// What becomes of packets that no rule judged (`NF_DROP`, `NF_ACCEPT`, linux/netfilter.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Drop = 0,
    Accept = 1,
}

/// A condition or an action of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// `iifname`; names longer than 15 bytes match nothing.
    InInterface(String),
    /// `iifname !=`
    NotInInterface(String),
    /// `oifname`
    OutInterface(String),
    /// `meta l4proto`: an IANA protocol number.
    Protocol(u8),
    /// `meta mark`
    Mark(u32),
    /// `ip saddr` or `ip6 saddr`
    Source(IpNet),
    /// `ip daddr` or `ip6 daddr`
    Destination(IpNet),
    /// `tcp dport` or `udp dport`: must follow [`Expr::Protocol`].
    DestinationPort(u16),
    /// `ct state established,related`
    Established,
    Counter,
    Accept,
    Drop,
    /// In a `nat` chain at postrouting.
    Masquerade,
}

/// A table that lives as long as this value: the kernel removes it with the socket that owns it, however the process
/// ends (`NFT_TABLE_F_OWNER`).
#[derive(Debug)]
pub struct Owned {
    _socket: Socket,
}

impl Table {
    /// Installs the table, in place of one of the same name, in the calling thread's network namespace.
    /// It stays until [`remove`].
    pub fn install(&self) -> Result<(), Error> {
        Socket::open()?.commit(&encode::install(self, false))
    }

    /// Installs the table until the returned guard is dropped. Others can read it but not change it.
    /// Fails with EEXIST if there is a table of this name.
    pub fn install_owned(&self) -> Result<Owned, Error> {
        let socket = Socket::open()?;
        socket.commit(&encode::install(self, true))?;
        Ok(Owned { _socket: socket })
    }
}

/// Removes the table `name` of the `inet` family. Fails with ENOENT if there is none.
pub fn remove(name: &str) -> Result<(), Error> {
    Socket::open()?.commit(&encode::remove(name))
}
