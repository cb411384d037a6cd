use clap::Args;
use control::{Command, Flow, Reply, Rtp};

use super::{ask, format};
use crate::{
    exit::{self, Exit},
    failure::Failure,
    output,
    state::StateDir,
};

/// Show each pinned flow: its path, the rule that chose it, its external endpoint, its mark
#[derive(Args, Debug)]
#[command(after_help = exit::HELP)]
pub struct Flows {
    /// Print one JSON object; docs/control.md has the schema
    #[arg(long)]
    json: bool,
}

impl Flows {
    pub fn run(self) -> Result<Exit, Failure> {
        let flows = match ask::daemon(&StateDir::from_environment(), Command::Flows)? {
            Reply::Flows(flows) => flows,
            other => return Err(ask::unexpected(&other)),
        };
        output::answer(&flows, self.json, table)
    }
}

fn table(flows: &control::Flows) -> String {
    let heads = [
        "proto",
        "source",
        "destination",
        "path",
        "rule",
        "mapping",
        "mark",
        "moved by",
        "out",
        "in",
        "idle",
        "voice out",
        "voice in",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(flows.flows.iter().map(row));
    let mut out = format::columns(&rows);
    if flows.omitted > 0 {
        out += &format!("and {} more\n", flows.omitted);
    }
    out
}

fn row(flow: &Flow) -> Vec<String> {
    vec![
        flow.protocol.clone(),
        flow.source.to_string(),
        flow.destination.to_string(),
        flow.gateway.as_ref().map_or_else(|| flow.path.clone(), |gateway| format!("{} {gateway}", flow.path)),
        flow.rule.clone(),
        flow.mapping.map_or_else(|| "-".to_owned(), |mapping| mapping.to_string()),
        flow.mark.clone(),
        if flow.in_kernel { "kernel" } else { "pump" }.to_owned(),
        flow.out_packets.to_string(),
        flow.in_packets.to_string(),
        format::duration(flow.idle_seconds),
        quality(flow.out_rtp.as_ref()),
        quality(flow.in_rtp.as_ref()),
    ]
}

/// `3 lost (0.2 %), jitter 1.9 ms`.
fn quality(rtp: Option<&Rtp>) -> String {
    rtp.map_or_else(
        || "-".to_owned(),
        |rtp| {
            let lost = format::loss(rtp.lost.into(), rtp.packets.into());
            format!("{lost} lost, jitter {}", format::jitter(rtp.jitter_us))
        },
    )
}
