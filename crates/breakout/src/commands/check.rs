use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use clap::Args;
use miette::{Diagnostic, JSONReportHandler};
use serde::Serialize;
use serde_json::Value;

use super::format::columns;
use crate::{
    configuration::{self, Policy},
    exit::{self, Exit},
    failure::Failure,
    output,
};

/// Say whether a configuration can be used
///
/// Looks for syntax, unknown keys, sets that are empty or overlap, rules that can never match, and the key files:
/// all that `up` would refuse, each with its line, what was found, and the remedy. Says which gateways there are and
/// which names would be asked for through the tunnel. Changes nothing.
#[derive(Args, Debug)]
#[command(after_help = exit::HELP)]
pub struct Check {
    file: PathBuf,
    /// Print one JSON object: valid, then errors and warnings as miette renders them, then prefer, gateways, dns and domains
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Checked {
    valid: bool,
    errors: Vec<Value>,
    warnings: Vec<Value>,
    #[serde(flatten)]
    tunnel: Tunnel,
}

/// Where the tunnel leads, and for whom.
#[derive(Default, Serialize)]
struct Tunnel {
    /// `order` or `round-trip`; null in what cannot be used.
    prefer: Option<&'static str>,
    gateways: Vec<Gateway>,
    #[serde(flatten)]
    names: Names,
}

#[derive(Serialize)]
struct Gateway {
    name: String,
    endpoint: String,
}

/// The names that are asked for through the tunnel, and where.
#[derive(Default, Serialize)]
struct Names {
    dns: Vec<IpAddr>,
    domains: Vec<Domain>,
}

#[derive(Serialize)]
struct Domain {
    domain: String,
    set: String,
}

impl Check {
    pub fn run(self) -> Result<Exit, Failure> {
        // A file that cannot be read is no answer to the question.
        configuration::read_text(&self.file)?;
        let (warnings, outcome) = check(&self.file);
        let exit = if outcome.is_ok() { Exit::Ok } else { Exit::No };
        if self.json {
            output::json(&Checked {
                valid: outcome.is_ok(),
                errors: outcome.as_ref().err().iter().map(|failure| rendered(&*failure.report)).collect(),
                warnings: warnings.iter().map(|warning| rendered(warning)).collect(),
                tunnel: outcome.unwrap_or_default(),
            })?;
            return Ok(exit);
        }
        for warning in warnings {
            eprintln!("{:?}", miette::Report::new(warning));
        }
        match outcome {
            Ok(tunnel) => output::text(&format!("{} can be used\n{}", self.file.display(), tunnel.lines()))?,
            Err(failure) => eprintln!("{:?}", failure.report),
        }
        Ok(exit)
    }
}

fn check(file: &Path) -> (Vec<policy::Warning>, Result<Tunnel, Failure>) {
    match configuration::read_policy(file) {
        Ok(policy) => {
            let tunnel = configuration::read_keys(&policy.config, file).map(|_| Tunnel::of(&policy));
            (policy.warnings, tunnel)
        }
        Err(failure) => (Vec::new(), Err(failure)),
    }
}

impl Tunnel {
    fn of(policy: &Policy) -> Self {
        let policy::Tunnel { gateways, prefer, .. } = &policy.config.tunnel;
        let shown = |gateway: &policy::Gateway| Gateway {
            name: gateway.name.clone(),
            endpoint: gateway.endpoint.to_string(),
        };
        Self {
            prefer: Some(prefer.name()),
            gateways: gateways.iter().map(shown).collect(),
            names: Names::of(policy),
        }
    }

    fn lines(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .gateways
            .iter()
            .map(|Gateway { name, endpoint }| vec![format!("  {name}"), endpoint.clone()])
            .collect();
        let gateways = match self.prefer {
            Some(prefer) if rows.len() > 1 => format!("gateways, by {prefer}:\n{}", columns(&rows)),
            _ => String::new(),
        };
        gateways + &self.names.lines()
    }
}

impl Names {
    fn of(Policy { config, snapshot, .. }: &Policy) -> Self {
        let domain = |(domain, set): (&str, &str)| Domain { domain: domain.to_owned(), set: set.to_owned() };
        Self { dns: config.tunnel.dns.clone(), domains: snapshot.domains().map(domain).collect() }
    }

    /// Nothing where there are none.
    fn lines(&self) -> String {
        if self.domains.is_empty() {
            return String::new();
        }
        let servers: Vec<String> = self.dns.iter().map(IpAddr::to_string).collect();
        let rows: Vec<Vec<String>> = self
            .domains
            .iter()
            .map(|Domain { domain, set }| vec![format!("  {domain}"), set.clone()])
            .collect();
        format!("names asked for through the tunnel, at {}:\n{}", servers.join(", "), columns(&rows))
    }
}

fn rendered(diagnostic: &dyn Diagnostic) -> Value {
    let mut json = String::new();
    match JSONReportHandler::new().render_report(&mut json, diagnostic) {
        Ok(()) => serde_json::from_str(&json).unwrap_or(Value::String(json)),
        Err(_) => Value::String(diagnostic.to_string()),
    }
}
