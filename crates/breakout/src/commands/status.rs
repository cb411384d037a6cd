use clap::Args;
use control::{Command, Failover, Gateway, Reply, Tunnel};

use super::{ask, format};
use crate::{
    exit::{self, Exit},
    failure::Failure,
    output,
    state::StateDir,
};

/// Show the tunnel, what went which way, what was refused and why, and which features are on
#[derive(Args, Debug)]
#[command(after_help = exit::HELP)]
pub struct Status {
    /// Print one JSON object; docs/control.md has the schema
    #[arg(long)]
    json: bool,
}

impl Status {
    pub fn run(self) -> Result<Exit, Failure> {
        let status = match ask::daemon(&StateDir::from_environment(), Command::Status)? {
            Reply::Status(status) => status,
            other => return Err(ask::unexpected(&other)),
        };
        output::answer(&*status, self.json, table)
    }
}

fn table(status: &control::Status) -> String {
    let control::Status { interface, tunnel, underlay, .. } = status;
    let mut out = format!(
        "breakout {} (pid {}), up {}, {}\n\n",
        status.version,
        status.pid,
        format::duration(status.uptime_seconds as f64),
        status.config.display()
    );

    out += &format!(
        "interface   {}  {}  mtu {}\n",
        interface.name,
        interface.addresses.join(", "),
        interface.mtu
    );
    match tunnel.gateways.as_slice() {
        [only] => out += &one_gateway(only),
        several => out += &(gateways(tunnel) + &several.iter().map(gateway).collect::<String>()),
    }
    let source = |address: &Option<String>| address.clone().unwrap_or_else(|| "none".to_owned());
    out += &format!("underlay    IPv4 {}, IPv6 {}\n", source(&underlay.v4), source(&underlay.v6));
    if let Some(url) = &status.portal {
        out += &format!("            a captive portal is in the way: open {url} in a browser\n");
    }
    out.push('\n');

    let mut paths =
        vec![["path", "packets out", "bytes out", "packets in", "bytes in"].map(str::to_owned).to_vec()];
    paths.extend(status.paths.iter().map(|count| {
        vec![
            count.path.clone(),
            count.out_packets.to_string(),
            format::bytes(count.out_bytes),
            count.in_packets.to_string(),
            format::bytes(count.in_bytes),
        ]
    }));
    out += &format::columns(&paths);

    if status.voice.iter().any(|voice| voice.streams > 0) {
        let mut voice =
            vec![["voice", "streams", "packets", "lost", "worst jitter"].map(str::to_owned).to_vec()];
        voice.extend(status.voice.iter().map(|count| {
            vec![
                count.direction.clone(),
                count.streams.to_string(),
                count.packets.to_string(),
                format::loss(count.lost, count.packets),
                format::jitter(count.jitter_us),
            ]
        }));
        out += &format!("\n{}", format::columns(&voice));
    }

    if !status.drops.is_empty() {
        let mut drops = vec![vec!["dropped".to_owned(), "packets".to_owned(), "what".to_owned()]];
        drops.extend(
            status
                .drops
                .iter()
                .map(|drop| vec![drop.reason.clone(), drop.packets.to_string(), drop.meaning.clone()]),
        );
        out += &format!("\n{}", format::columns(&drops));
    }

    if !status.features.is_empty() {
        let mut features = vec![vec!["feature".to_owned(), "is".to_owned(), "why".to_owned()]];
        features.extend(status.features.iter().map(|feature| {
            let state = if feature.on { "on" } else { "off" };
            vec![feature.name.clone(), state.to_owned(), feature.why.clone()]
        }));
        out += &format!("\n{}", format::columns(&features));
    }
    out
}

fn one_gateway(gateway: &Gateway) -> String {
    format!("tunnel      {}, gateway {} at {}\n", gateway.state, gateway.public_key, endpoint(gateway))
        + &details(gateway)
}

fn gateways(Tunnel { prefer, gateways, failover }: &Tunnel) -> String {
    let used = gateways.iter().find(|gateway| gateway.used);
    let (state, name) = used.map_or(("down", "none"), |used| (used.state.as_str(), used.name.as_str()));
    let mut out = format!("tunnel      {state}, by {name} of {} gateways, by {prefer}\n", gateways.len());
    if let Some(Failover { from, to, cause, seconds_ago, cut_flows }) = failover {
        let connections = if *cut_flows == 1 { "connection was" } else { "connections were" };
        out += &format!(
            "            from {from} to {to} {} ago: {cause}; {cut_flows} {connections} reset\n",
            format::duration(*seconds_ago as f64)
        );
    }
    out
}

fn gateway(gateway: &Gateway) -> String {
    let used = if gateway.used { "used" } else { "not used" };
    format!("gateway     {}, {used}: {}\n", gateway.name, gateway.why)
        + &format!("            {}, {} at {}\n", gateway.state, gateway.public_key, endpoint(gateway))
        + &details(gateway)
}

fn endpoint(gateway: &Gateway) -> String {
    gateway.endpoint.map_or_else(|| "no address yet".to_owned(), |endpoint| endpoint.to_string())
}

fn details(gateway: &Gateway) -> String {
    let round_trip =
        gateway.round_trip_ms.map_or_else(String::new, |time| format!(", round trip {time:.1} ms"));
    let flows = if gateway.flows == 1 { "1 flow".to_owned() } else { format!("{} flows", gateway.flows) };
    let mut out = format!(
        "            last handshake {}, last heard {}{round_trip}; {flows}, sent {}, received {}\n",
        ago(gateway.last_handshake_seconds),
        ago(gateway.last_received_seconds),
        format::bytes(gateway.sent_bytes),
        format::bytes(gateway.received_bytes)
    );
    out += &format!("            path mtu {}, {}\n", gateway.path_mtu, gateway.path_mtu_known);
    if let Some(trouble) = &gateway.trouble {
        out += &format!("            {trouble}\n");
    }
    out
}

fn ago(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "never".to_owned(), |seconds| format!("{} ago", format::duration(seconds)))
}
