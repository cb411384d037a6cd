mod whole_file;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
};

use bench::{Client, Load, Plan, Report, Section, live};
use clap::{Args, Subcommand};

use crate::{exit::Exit, failure::Failure, output};
use whole_file::WholeFile;

/// Measure throughput, voice, start-up and idle cost, beside other WireGuard clients if wanted
///
/// Builds an agent, a gateway and far ends out of network namespaces, one set for each client, and measures in turn: no
/// packet leaves this machine. With --live it measures against `breakout bench --serve` on another machine instead.
/// Takes about half an hour against two other clients; --quick two minutes.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, after_help = concat!(
    "Exit status:\n",
    "  0  measured; compare: nothing that counts is worse or gone\n",
    "  1  a step failed, and the report says which; compare: something that counts is worse or gone\n",
    "  2  the command line or a report cannot be used\n",
    "  3  the bench could not run; what is missing is said"
))]
pub struct Bench {
    #[command(subcommand)]
    command: Option<Other>,
    #[command(flatten)]
    measure: Measure,
}

#[derive(Subcommand, Debug)]
enum Other {
    /// Say what got better or worse beyond the noise
    Compare {
        /// What `bench --json` wrote before
        before: PathBuf,
        /// What it wrote after
        after: PathBuf,
    },
}

#[derive(Args, Debug)]
struct Measure {
    /// Take about two minutes, for a first look
    #[arg(long)]
    quick: bool,
    /// Measure only this: ceiling, throughput, fixed-load, voice, forwarding, idle,
    /// roaming, startup
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    only: Vec<Section>,
    /// Measure this client too: wireguard-go, gotatun or boringtun-cli, with =PATH if it is not in PATH
    #[arg(long, value_name = "CLIENT", conflicts_with = "live")]
    against: Vec<Client>,
    /// The far end of every tunnel: breakout, wireguard-go, gotatun or boringtun-cli
    #[arg(long, value_name = "PROGRAM", default_value = "breakout", conflicts_with = "live")]
    gateway: lab::Gateway,
    /// How often each figure is measured
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Voice packets in each cell that a bar is about, over all rounds
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    samples: Option<u32>,
    /// How many calls talk at once, in turn; 1, 10 and 50 unless given
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=500))]
    calls: Vec<u16>,
    /// What goes through the tunnel beside them, in turn: idle, upload, download, udp-upload; all of these unless given,
    /// with --live the first three
    #[arg(long, value_name = "LOAD", value_delimiter = ',')]
    loads: Vec<Load>,
    /// Write everything that was measured, with raw distributions; docs/bench.md has the schema
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page to show
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Measure against a far end on another machine, by whatever path this machine's routes give it
    #[arg(long, requires = "target")]
    live: bool,
    /// The far end for --live: HOST or HOST:PORT
    #[arg(long, value_name = "HOST", requires = "live")]
    target: Option<String>,
    /// Be the far end for --live, until Ctrl-C
    #[arg(long, conflicts_with_all = ["live", "quick", "only", "against", "rounds", "samples",
        "calls", "loads", "json", "html"])]
    serve: bool,
    /// Where --serve listens, TCP and UDP; unless given, port 47000 of any address
    #[arg(long, value_name = "ADDRESS", requires = "serve")]
    listen: Option<SocketAddr>,
}

impl Bench {
    pub fn run(self) -> Result<Exit, Failure> {
        match self.command {
            Some(Other::Compare { before, after }) => compare(&before, &after),
            None if self.measure.serve => serve(self.measure.listen),
            None => self.measure.run(),
        }
    }
}

impl Measure {
    fn run(self) -> Result<Exit, Failure> {
        let report = match &self.target {
            Some(target) => {
                let target = resolve(target)?;
                let files = self.files()?;
                let plan = self.live_plan()?;
                let live = live::Live { target, plan, version: version(), command: command() };
                files.write(live::run(&live).map_err(could_not_run)?)?
            }
            None => {
                // Before anything else: a user namespace can only be entered while there is one thread.
                lab::enter().map_err(could_not_run)?;
                lab::clean_up_on_signals().map_err(could_not_run)?;
                let files = self.files()?;
                let exe = std::env::current_exe()
                    .map_err(|error| Failure::system("cannot find this program's own file").because(error))?;
                let options = bench::Options {
                    plan: self.plan(),
                    exe,
                    version: version(),
                    gateway: self.gateway,
                    against: self.against,
                    command: command(),
                };
                files.write(bench::run(&options).map_err(could_not_run)?)?
            }
        };
        output::text(&report.to_string())?;
        Ok(if report.failed.is_empty() { Exit::Ok } else { Exit::No })
    }

    fn plan(&self) -> Plan {
        let plan = if self.quick { Plan::quick() } else { Plan::full() };
        Plan {
            sections: if self.only.is_empty() { plan.sections.clone() } else { self.only.clone() },
            rounds: self.rounds.unwrap_or(plan.rounds),
            voice_samples: self.samples.unwrap_or(plan.voice_samples),
            calls: each_once(&self.calls).unwrap_or(plan.calls),
            loads: each_once(&self.loads).unwrap_or(plan.loads),
            ..plan
        }
    }

    fn live_plan(&self) -> Result<Plan, Failure> {
        if let Some(section) = self.only.iter().find(|section| !Section::LIVE.contains(section)) {
            let measured = Section::LIVE.map(Section::name).join(" and ");
            return Err(Failure::usage(format!("`{section}` cannot be measured with --live"))
                .remedy(format!(
                    "against a far end elsewhere {measured} can be: leave --live out, or --only {section}"
                ))
                .into());
        }
        let plan = self.plan();
        let sections =
            plan.sections.iter().copied().filter(|section| Section::LIVE.contains(section)).collect();
        // Datagrams do not give way to others on a real network.
        let is_wanted = |load: &Load| *load != Load::UdpUpload || self.loads.contains(load);
        let loads = plan.loads.iter().copied().filter(is_wanted).collect();
        Ok(Plan { sections, loads, ..plan })
    }

    /// Looked at first: a path that cannot be written shall not be found out after the measurement.
    fn files(&self) -> Result<Files, Failure> {
        let at = |path: &Option<PathBuf>| {
            let path = path.as_deref();
            path.map(|path| WholeFile::at(path).map_err(|error| cannot_write(path, error))).transpose()
        };
        Ok(Files { json: at(&self.json)?, html: at(&self.html)? })
    }
}

/// In order; `None` of none.
fn each_once<T: Copy + Ord>(given: &[T]) -> Option<Vec<T>> {
    let each: BTreeSet<T> = given.iter().copied().collect();
    (!each.is_empty()).then(|| each.into_iter().collect())
}

struct Files {
    json: Option<WholeFile>,
    html: Option<WholeFile>,
}

impl Files {
    fn write(&self, report: Report) -> Result<Report, Failure> {
        let write = |file: &WholeFile, content: &[u8]| {
            file.write(content).map_err(|error| cannot_write(file.path(), error))
        };
        if let Some(file) = &self.json {
            let rendered = serde_json::to_vec(&report)
                .map_err(|error| Failure::system("cannot render the report as JSON").because(error))?;
            write(file, &rendered)?;
        }
        if let Some(file) = &self.html {
            write(file, bench::html::page(&report).as_bytes())?;
        }
        Ok(report)
    }
}

fn cannot_write(path: &Path, error: std::io::Error) -> Failure {
    Failure::system(format!("cannot write {}", path.display())).because(error).into()
}

fn compare(before: &Path, after: &Path) -> Result<Exit, Failure> {
    let read = |path| Report::read(path).map_err(|error| Failure::usage("cannot compare").because(error));
    let comparison = bench::compare(&read(before)?, &read(after)?);
    output::text(&comparison.to_string())?;
    Ok(if comparison.is_worse() { Exit::No } else { Exit::Ok })
}

fn serve(address: Option<SocketAddr>) -> Result<Exit, Failure> {
    let any = |ip: IpAddr| SocketAddr::new(ip, live::PORT);
    let any_v4 = any(Ipv4Addr::UNSPECIFIED.into());
    let far = match address {
        Some(address) => live::serve(address),
        // There may be no IPv6.
        None => live::serve(any(Ipv6Addr::UNSPECIFIED.into())).or_else(|_| live::serve(any_v4)),
    };
    let far = far.map_err(|error| {
        Failure::system(format!("cannot listen on {}, TCP and UDP", address.unwrap_or(any_v4)))
            .because(error)
            .remedy("another program may have the port: give another one with --listen")
    })?;
    output::text(&format!(
        "the bench's far end is up: TCP and UDP {}, at most {} transfers at once, until Ctrl-C\n",
        far.address,
        live::MOST_TRANSFERS
    ))?;
    loop {
        std::thread::park();
    }
}

fn resolve(target: &str) -> Result<SocketAddr, Failure> {
    let unresolved = |error: std::io::Error| -> Failure {
        Failure::usage(format!("cannot find --target {target}"))
            .because(error)
            .remedy("give HOST or HOST:PORT, where `breakout bench --serve` runs")
            .into()
    };
    let with_port = target.to_socket_addrs();
    let mut found = with_port.or_else(|_| (target, live::PORT).to_socket_addrs()).map_err(unresolved)?;
    found.next().ok_or_else(|| unresolved(std::io::Error::other("the name has no address")))
}

fn version() -> String {
    env!("BREAKOUT_VERSION").to_owned()
}

fn command() -> Vec<String> {
    let rest = std::env::args().skip(1);
    std::iter::once("breakout".to_owned()).chain(rest).collect()
}

fn could_not_run(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::system("the bench could not run").because(error).into()
}
