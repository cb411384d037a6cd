use clap::Args;
use policy::{REGIONS, Region};
use serde::Serialize;

use super::format::columns;
use crate::{
    exit::{self, Exit},
    failure::Failure,
    output,
};

/// List the regions of Genesys Cloud, for `[genesys] region`
///
/// With each come the domains that it puts into the set genesys-signaling: the region's own, then aliases that Genesys does
/// not publish. A domain stands for all names below it.
#[derive(Args, Debug)]
#[command(after_help = exit::HELP)]
pub struct Regions {
    /// Print one JSON object: regions, each with region and domains
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Listed {
    regions: Vec<Domains>,
}

#[derive(Serialize)]
struct Domains {
    region: &'static str,
    domains: &'static [&'static str],
}

impl Regions {
    pub fn run(self) -> Result<Exit, Failure> {
        if self.json {
            let regions = REGIONS.map(|Region { name: region, domains }| Domains { region, domains });
            output::json(&Listed { regions: regions.into() })?;
            return Ok(Exit::Ok);
        }
        let rows: Vec<Vec<String>> =
            REGIONS.iter().map(|region| vec![region.name.to_owned(), region.domains.join(", ")]).collect();
        output::text(&columns(&rows))?;
        Ok(Exit::Ok)
    }
}
