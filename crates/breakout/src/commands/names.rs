use clap::Args;
use control::{Command, DohServer, LearnedAddress, Reply, Resolver};

use super::{ask, format};
use crate::{
    exit::{self, Exit},
    failure::Failure,
    output,
    state::StateDir,
};

/// Show how the policy's names are resolved, and the addresses that they were found to have
#[derive(Args, Debug)]
#[command(after_help = exit::HELP)]
pub struct Names {
    /// Print one JSON object; docs/control.md has the schema
    #[arg(long)]
    json: bool,
}

impl Names {
    pub fn run(self) -> Result<Exit, Failure> {
        let names = match ask::daemon(&StateDir::from_environment(), Command::Names)? {
            Reply::Names(names) => names,
            other => return Err(ask::unexpected(&other)),
        };
        output::answer(&names, self.json, table)
    }
}

fn table(names: &control::Names) -> String {
    let mut out = match &names.resolver {
        None => "names are resolved as ever: there is no `dns` in [tunnel]\n".to_owned(),
        Some(resolver) => resolver_lines(resolver),
    };
    if names.addresses.is_empty() {
        return out;
    }
    let mut rows = vec![["address", "name", "set", "known", "for"].map(str::to_owned).to_vec()];
    rows.extend(names.addresses.iter().map(|LearnedAddress { address, name, set, known, seconds_left }| {
        let left = format::duration(*seconds_left as f64);
        vec![address.to_string(), name.clone(), set.clone(), known.clone(), left]
    }));
    out += &format!("\n{}", format::columns(&rows));
    out
}

fn resolver_lines(resolver: &Resolver) -> String {
    let Resolver { mode, why, listening, tunnel_dns, others, asked, failed, handed_on, doh } = resolver;
    let list = |servers: &[std::net::SocketAddr]| match servers {
        [] => "nobody".to_owned(),
        servers => servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let out = format!(
        "resolver    by way of {mode}: {why}; it listens on {}\n\
         our names   asked of {} through the tunnel: {asked} questions, {failed} without an answer\n\
         others      asked of {} as before: {handed_on} questions\n",
        list(listening),
        list(tunnel_dns),
        list(others)
    );
    if doh.is_empty() {
        return out;
    }
    let servers: Vec<String> =
        doh.iter().map(|DohServer { name, questions }| format!("{name} ({questions})")).collect();
    out + &format!(
        "over HTTPS  these servers were asked for: {}; a program that resolves by itself there reaches\n            \
         signaling directly: set the browser's policy (docs/names.md)\n",
        servers.join(", ")
    )
}
