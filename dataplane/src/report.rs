use std::net::SocketAddr;
use std::time::Duration;

use packet::FiveTuple;
use policy::Path;

use crate::rtp::RtpReport;

/// One pinned flow, as `breakout flows` shows it.
#[derive(Clone, Debug)]
pub struct FlowReport {
    pub tuple: FiveTuple,
    pub path: Path,
    pub rule: String,
    /// Of a tunnel flow: the place of its gateway among [`Setup::gateways`](crate::Setup::gateways).
    pub gateway: Option<usize>,
    /// The external endpoint of a bypass flow.
    pub mapping: Option<SocketAddr>,
    /// The DSCP given to packets marked neither EF nor AF4x, by name, or `keep`.
    pub mark: String,
    pub out_packets: u64,
    pub out_bytes: u64,
    pub in_packets: u64,
    pub in_bytes: u64,
    /// Whether the kernel moves its packets; otherwise the pump does.
    pub in_kernel: bool,
    pub idle: Duration,
    /// Of a bypass flow that carries RTP.
    pub out_rtp: Option<RtpReport>,
    pub in_rtp: Option<RtpReport>,
}

#[derive(Clone, Debug)]
pub struct TunnelReport {
    /// `idle`, `connecting`, `up` or `down`.
    pub state: &'static str,
    pub endpoint: SocketAddr,
    /// Where a handshake was completed last.
    pub proven: Option<SocketAddr>,
    /// Whether new flows go to this gateway.
    pub is_used: bool,
    /// Pinned to this gateway.
    pub flows: usize,
    /// Of the last handshake that this end began.
    pub round_trip: Option<Duration>,
    pub last_handshake: Option<Duration>,
    pub last_received: Option<Duration>,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// The largest packet in the tunnel, and the largest that its path carries, in bytes.
    pub mtu: u16,
    pub path_mtu: u16,
    /// How the path's is known, in a phrase.
    pub path_mtu_known: String,
    /// What the peer's silence or its answers suggest, in a sentence with a remedy.
    pub trouble: Option<String>,
}

/// An optional feature of kernel and device: name, whether it is used, why.
pub type Feature = (&'static str, bool, String);
