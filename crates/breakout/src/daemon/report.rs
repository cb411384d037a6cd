//! What the daemon tells about itself.

use std::time::Duration;

use control::{
    Drops, Failover, Feature, Flow, Flows, Gateway, Interface, MAX_FLOWS, PathCount, Rtp, Status, Tunnel,
    Underlay, Voice,
};
use dataplane::rtp::RtpReport;
use dataplane::{FlowReport, GatewayLeg, PumpError, TunnelReport};
use packet::protocol;
use policy::Path;

use super::{
    gateways::told,
    names,
    standing::{Standing, why},
    start::Running,
};

pub fn status(running: &Running) -> Result<Status, PumpError> {
    let tunnels = running.pump.tunnels()?;
    let underlay = running.machine.underlay();
    let leg = |at: usize| underlay.gateways.get(at).copied().unwrap_or_default();
    let standings: Vec<Standing> =
        tunnels.iter().enumerate().map(|(at, tunnel)| standing(running, at, tunnel, leg(at))).collect();
    let portal = running.portal.url().filter(|_| !running.portal.is_passed(&tunnels)).map(str::to_owned);
    let counters = running.pump.counters();
    let flows = running.pump.flows()?;
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        config: running.path.clone(),
        uptime_seconds: running.since.elapsed().as_secs(),
        interface: Interface {
            name: running.interface.clone(),
            addresses: running.loaded.config.interface.address.iter().map(ToString::to_string).collect(),
            mtu: *running.mtu.borrow(),
        },
        tunnel: Tunnel {
            prefer: running.loaded.config.tunnel.prefer.name().to_owned(),
            gateways: tunnels
                .into_iter()
                .enumerate()
                .map(|(at, tunnel)| gateway(running, at, tunnel, leg(at), &standings))
                .collect(),
            failover: running.failover.as_ref().map(|(when, failover)| Failover {
                from: running.gateway_name(failover.from),
                to: running.gateway_name(failover.to),
                cause: told(failover.cause).to_owned(),
                seconds_ago: when.elapsed().as_secs(),
                cut_flows: failover.cut_flows,
            }),
        },
        underlay: Underlay {
            v4: underlay.v4.map(|address| address.to_string()),
            v6: underlay.v6.map(|address| address.to_string()),
        },
        portal,
        paths: [Path::Tunnel, Path::Bypass, Path::Reject]
            .map(|path| path_count(path, counters.path(path)))
            .to_vec(),
        voice: vec![
            voice("out", flows.iter().filter_map(|flow| flow.out_rtp)),
            voice("in", flows.iter().filter_map(|flow| flow.in_rtp)),
        ],
        drops: counters
            .drops()
            .filter(|(_, packets)| *packets > 0)
            .map(|(reason, packets)| Drops {
                reason: reason.name().to_owned(),
                packets,
                meaning: reason.meaning().to_owned(),
            })
            .collect(),
        features: running
            .pump
            .features()?
            .into_iter()
            .chain(running.machine.features())
            .chain(names::feature(running))
            .map(|(name, on, why)| Feature { name: name.to_owned(), on, why })
            .collect(),
    })
}

pub fn flows(running: &Running) -> Result<Flows, PumpError> {
    let mut flows = running.pump.flows()?;
    let omitted = flows.len().saturating_sub(MAX_FLOWS);
    // The liveliest are shown first, and kept.
    flows.sort_by_key(|flow| flow.idle);
    flows.truncate(MAX_FLOWS);
    Ok(Flows { flows: flows.into_iter().map(|report| flow(running, report)).collect(), omitted })
}

fn standing(running: &Running, at: usize, tunnel: &TunnelReport, leg: GatewayLeg) -> Standing {
    let hindrance = if !is_known(running, at) {
        Some("its name has no address yet")
    } else if !leg.reachable {
        Some("there is no route to it")
    } else if tunnel.state == "down" {
        Some("it does not answer")
    } else {
        None
    };
    Standing {
        name: running.gateway_name(at),
        is_used: tunnel.is_used,
        hindrance,
        has_flows: tunnel.flows > 0,
        is_measured: tunnel.round_trip.is_some(),
    }
}

fn is_known(running: &Running, at: usize) -> bool {
    running.loaded.endpoints.get(at).is_some_and(Option::is_some)
}

fn gateway(
    running: &Running,
    at: usize,
    tunnel: TunnelReport,
    leg: GatewayLeg,
    standings: &[Standing],
) -> Gateway {
    let config = &running.loaded.config.tunnel;
    Gateway {
        name: running.gateway_name(at),
        public_key: config
            .gateways
            .get(at)
            .map_or_else(String::new, |gateway| tunnel::PublicKey(gateway.public_key.0).to_string()),
        endpoint: Some(tunnel.endpoint).filter(|_| is_known(running, at)),
        reachable: leg.reachable,
        state: tunnel.state.to_owned(),
        used: tunnel.is_used,
        why: why(config.prefer, standings, at),
        flows: tunnel.flows,
        round_trip_ms: tunnel.round_trip.map(milliseconds),
        last_handshake_seconds: tunnel.last_handshake.map(seconds),
        last_received_seconds: tunnel.last_received.map(seconds),
        sent_bytes: tunnel.sent_bytes,
        received_bytes: tunnel.received_bytes,
        path_mtu: tunnel.path_mtu,
        path_mtu_known: tunnel.path_mtu_known,
        trouble: tunnel.trouble,
    }
}

fn flow(running: &Running, report: FlowReport) -> Flow {
    let several = running.loaded.config.tunnel.gateways.len() > 1;
    Flow {
        protocol: protocol_name(report.tuple.protocol),
        source: report.tuple.source,
        destination: report.tuple.destination,
        path: report.path.name().to_owned(),
        gateway: report.gateway.filter(|_| several).map(|at| running.gateway_name(at)),
        rule: report.rule,
        mapping: report.mapping,
        mark: report.mark,
        out_packets: report.out_packets,
        out_bytes: report.out_bytes,
        in_packets: report.in_packets,
        in_bytes: report.in_bytes,
        idle_seconds: seconds(report.idle),
        in_kernel: report.in_kernel,
        out_rtp: report.out_rtp.map(rtp),
        in_rtp: report.in_rtp.map(rtp),
    }
}

fn rtp(report: RtpReport) -> Rtp {
    Rtp {
        ssrc: report.ssrc,
        packets: report.packets,
        lost: report.lost,
        strays: report.strays,
        jitter_us: report.jitter.map(microseconds),
        clock_rate: report.clock_rate,
        dscp: report.dscp.to_string(),
    }
}

fn voice(direction: &str, streams: impl Iterator<Item = RtpReport>) -> Voice {
    let mut voice =
        Voice { direction: direction.to_owned(), streams: 0, packets: 0, lost: 0, jitter_us: None };
    for stream in streams {
        voice.streams += 1;
        voice.packets += u64::from(stream.packets);
        voice.lost += u64::from(stream.lost);
        voice.jitter_us = voice.jitter_us.max(stream.jitter.map(microseconds));
    }
    voice
}

fn path_count(path: Path, count: dataplane::PathCount) -> PathCount {
    PathCount {
        path: path.name().to_owned(),
        out_packets: count.out_packets,
        out_bytes: count.out_bytes,
        in_packets: count.in_packets,
        in_bytes: count.in_bytes,
    }
}

fn protocol_name(number: u8) -> String {
    protocol::name(number).map_or_else(|| number.to_string(), str::to_owned)
}

fn microseconds(duration: Duration) -> u64 {
    duration.as_micros() as u64
}

/// To the microsecond.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// To the millisecond: more would be noise in JSON.
fn seconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1000.0
}
