//! nftables over nfnetlink: whole `inet` tables, each installed in one atomic batch.
//!
//! Needs Linux 5.2 for `nat` chains of the `inet` family, 5.12 for owned tables.

mod encode;
mod set;
mod socket;
mod watch;

use std::io;

use ipnet::IpNet;

pub use set::{Elements, Set};
pub use watch::Watch;

pub(crate) use socket::Socket;

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub name: String,
    /// At most 127 bytes; for whoever lists the table.
    pub comment: Option<String>,
    pub sets: Vec<Set>,
    pub chains: Vec<Chain>,
}

/// A base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// `oif`: by index. A later interface can have it, be it made with that one or moved here from another namespace.
    OutIndex(u32),
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
    /// `ip daddr @SET` or `ip6 daddr @SET`: in a set of the table's with addresses of this family.
    DestinationInV4(String),
    DestinationInV6(String),
    /// `ip saddr @SET` or `ip6 saddr @SET`.
    SourceInV4(String),
    SourceInV6(String),
    /// `fib saddr type != local`: the source is no address of this machine's.
    SourceNotLocal,
    /// `tcp flags rst`: must follow [`Expr::Protocol`].
    IsReset,
    /// `tcp dport @SET` or `udp dport @SET`: must follow [`Expr::Protocol`].
    DestinationPortIn(String),
    /// `ct state established,related`
    Established,
    Counter,
    Accept,
    Drop,
    /// Dropped, with a TCP reset to the sender: must follow [`Expr::Protocol`], in an `Output` or `Forward` chain.
    Reset,
    /// Dropped, with an ICMP error (administratively prohibited) to the sender; in an `Output` or `Forward` chain.
    Prohibit,
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
        self.install_by(&Socket::open()?)
    }

    /// As [`Table::install`], by a socket whose port number says in the kernel's notices that it was ours.
    pub(crate) fn install_by(&self, socket: &Socket) -> Result<(), Error> {
        socket.commit(&encode::install(self, false))
    }

    /// Makes this table of `installed`, which is there, in place. `false`, and nothing is done, if more is different than which
    /// single addresses are in sets.
    pub(crate) fn install_over(&self, installed: &Self, socket: &Socket) -> Result<bool, Error> {
        let differs = |(old, new): &(&Set, &Set)| old.elements != new.elements;
        let pairs = || installed.sets.iter().zip(&self.sets);
        let is_alike = self.chains == installed.chains
            && (&self.name, &self.comment) == (&installed.name, &installed.comment)
            && self.sets.len() == installed.sets.len()
            && pairs().all(|(old, new)| old.name == new.name)
            && pairs()
                .filter(differs)
                .all(|(old, new)| !old.elements.are_ranges() && !new.elements.are_ranges());
        if !is_alike {
            return Ok(false);
        }
        let changes: Vec<_> =
            pairs().filter(differs).map(|(old, new)| encode::SetChange::between(old, new)).collect();
        socket.commit(&encode::change_sets(&self.name, &changes)).map(|()| true)
    }

    /// Installs the table until the returned guard is dropped. Others can read it but not change it.
    /// Fails with EEXIST if there is a table of this name.
    pub fn install_owned(&self) -> Result<Owned, Error> {
        let socket = Socket::open()?;
        socket.commit(&encode::install(self, true))?;
        Ok(Owned { _socket: socket })
    }
}

/// Removes the table `name` of the `inet` family; whether there was one.
pub fn remove(name: &str) -> Result<bool, Error> {
    remove_by(name, &Socket::open()?)
}

pub(crate) fn remove_by(name: &str, socket: &Socket) -> Result<bool, Error> {
    match socket.commit(&encode::remove(name)) {
        Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        removed => removed.map(|()| true),
    }
}

/// Whether there is a table `name` of the `inet` family. A kernel without nf_tables has none.
pub fn exists(name: &str) -> Result<bool, Error> {
    match Socket::open().and_then(|socket| socket.has(name)) {
        Err(Error::Unsupported) => Ok(false),
        answer => answer,
    }
}
