use std::net::{IpAddr, SocketAddr};

use packet::protocol;

use crate::internet::SIGNALING_NET;
use crate::internet::addresses::{AGENT, AGENT_TUNNEL, GATEWAY, GATEWAY_PORT};
use crate::{Capture, Captured, Internet, LabError, Record};

/// The three captures that tell which way a packet went.
#[derive(Debug)]
pub struct Captures {
    lan: Capture,
    wan: Capture,
    gateway: Capture,
}

/// What was captured where, from before the first packet to after the last.
#[derive(Debug)]
pub struct Wires {
    /// The access router's side of the agent's wire.
    pub lan: Captured,
    /// Behind the access router's NAT.
    pub wan: Captured,
    /// The gateway's only wire: tunnel datagrams, and what it decrypted and sends on.
    pub gateway: Captured,
}

impl Captures {
    pub fn start(internet: &Internet) -> Result<Self, LabError> {
        Ok(Self {
            lan: Capture::start(&internet.router, "lan0")?,
            wan: Capture::start(&internet.router, "wan0")?,
            gateway: Capture::start(&internet.gateway, "eth0")?,
        })
    }

    pub fn finish(self) -> Result<Wires, LabError> {
        Ok(Wires { lan: self.lan.finish()?, wan: self.wan.finish()?, gateway: self.gateway.finish()? })
    }
}

impl Wires {
    /// Packets of which it cannot be said what they were. If there are any, what was not seen may have been there all the same.
    pub fn missed(&self) -> u64 {
        [&self.lan, &self.wan, &self.gateway].iter().map(|wire| wire.lost + wire.unparsed).sum()
    }

    /// Packets to or from signaling, of any protocol, on either side of the access router: each is a leak.
    pub fn signaling_in_clear(&self) -> Vec<&Record> {
        let router = self.lan.records.iter().chain(&self.wan.records);
        router.filter(|record| is_signaling(record.source) || is_signaling(record.destination)).collect()
    }

    /// How many packets left the agent with its address inside the tunnel as source.
    pub fn tunnel_source_in_clear(&self) -> usize {
        let is_leak = |record: &&Record| !record.outgoing && record.source.ip() == AGENT_TUNNEL;
        self.lan.records.iter().filter(is_leak).count()
    }

    /// How many WireGuard datagrams passed between agent and gateway.
    pub fn tunnel_datagrams(&self) -> usize {
        let gateway = SocketAddr::from((GATEWAY, GATEWAY_PORT));
        let is_between = |record: &&Record| {
            record.protocol == protocol::UDP
                && (record.source.ip() == AGENT && record.destination == gateway
                    || record.source == gateway && record.destination.ip() == AGENT)
        };
        self.lan.records.iter().filter(is_between).count()
    }
}

fn is_signaling(address: SocketAddr) -> bool {
    matches!(address.ip(), IpAddr::V4(v4) if SIGNALING_NET.contains(&v4))
}
