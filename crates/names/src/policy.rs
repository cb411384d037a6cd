use std::net::IpAddr;

/// What the resolver asks the policy. Names are lowercase, without trailing dot.
pub trait Policy: Send + Sync {
    /// Whether a name is one of the policy's.
    fn has(&self, name: &str) -> bool;
    /// Whether a name is one of the policy's, and what goes to this port of its addresses is led into the TUN.
    fn takes(&self, name: &str, transport: Transport, port: u16) -> bool;
    /// Whether the configuration has this address for a name of its own: that one may be private.
    fn expects(&self, name: &str, address: IpAddr) -> bool;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}
