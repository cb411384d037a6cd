use std::io;
use std::net::SocketAddr;

/// Why a question for one of the policy's names is answered SERVFAIL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("no DNS server behind the tunnel answered in time")]
    Silent,
    /// A socket's error: no tunnel, no route, nobody listening.
    #[error("the DNS server {server} could not be asked: {why}")]
    Network { server: SocketAddr, why: String },
    #[error("no DNS server behind the tunnel has an address of the tunnel's own family")]
    NoServer,
    /// SERVFAIL, REFUSED or another error, or a referral to other servers.
    #[error("the DNS server {server} answered: {code}")]
    Refused { server: SocketAddr, code: String },
    #[error("the DNS server {0} sent an answer that cannot be read")]
    Malformed(SocketAddr),
    /// DNS rebinding. How many there are.
    #[error(
        "all addresses of the name ({0}) are private or loopback, and no prefix in the `cidrs` of its set holds them"
    )]
    Blocked(usize),
    /// SRV, NAPTR or URI.
    #[error(
        "all records of the name lead to names that are not the policy's, or to ports that no rule takes; add those to `domains`, or to a rule"
    )]
    Elsewhere,
    #[error("the name's CNAME records run in a circle, or are too many")]
    Chain,
    #[error("too many names are being asked for at once")]
    Busy,
    /// The daemon said no, or did not say anything in time.
    #[error("the name's addresses could not be routed into the tunnel")]
    NotLearned,
    /// To nobody but who asks in advance.
    #[error("the name's IPv6 addresses are not known yet")]
    NotAll,
    #[error("{0:?} is no host name")]
    NotAName(String),
    #[error("the system gives no random numbers")]
    NoRandom,
}

impl Failure {
    /// Extended DNS Error. RFC 8914 §4
    pub fn extended(&self) -> u16 {
        const OTHER: u16 = 0;
        const BLOCKED: u16 = 15;
        const NO_REACHABLE_AUTHORITY: u16 = 22;
        const NETWORK_ERROR: u16 = 23;

        match self {
            Self::Silent | Self::NoServer | Self::Refused { .. } => NO_REACHABLE_AUTHORITY,
            Self::Network { .. } | Self::Malformed(_) => NETWORK_ERROR,
            Self::Blocked(_) | Self::Elsewhere => BLOCKED,
            Self::Chain
            | Self::Busy
            | Self::NotLearned
            | Self::NotAll
            | Self::NotAName(_)
            | Self::NoRandom => OTHER,
        }
    }
}

/// An address that the resolver was to listen on cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for DNS queries on {address} ({protocol})")]
pub struct BindError {
    pub address: SocketAddr,
    /// `UDP` or `TCP`.
    pub protocol: &'static str,
    pub source: io::Error,
}
