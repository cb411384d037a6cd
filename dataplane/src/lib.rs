//! The pump: an engine without I/O (flows, NAT, verdicts → actions), the Linux I/O around it, and the gateway's own pump.

mod buffers;
mod clock;
mod counters;
mod direction;
pub mod engine;
pub mod fast_path;
mod fit;
pub mod gateway;
mod io;
mod lock;
pub mod offload;
mod path_mtu;
mod pump;
mod report;
mod rest;
pub mod rtp;
mod sealed;
mod tun_writer;
mod underlay;
mod wire;

/// Packets that are handled together: one more sendmmsg or recvmmsg each 64 packets is under 1 % of their cost, and at 1420 B a batch is 75 µs of
/// cipher (1.2 GB/s). Where packets may be larger, bytes bound it too.
pub(crate) const BATCH: usize = 64;

pub use counters::{Counters, DropReason, PathCount};
pub use direction::Direction;
pub use io::tun::Tun;
pub use path_mtu::tunnel_mtu;
pub use pump::{
    Failover, FailoverCause, Gateway, GatewayEvent, Handle, MAX_GATEWAYS, Mtu, Offload, OnGateway, Prefer,
    Pump, PumpError, Setup,
};
pub use report::{Feature, FlowReport, TunnelReport};
pub use underlay::{GatewayLeg, OwnAddress, Underlay};
