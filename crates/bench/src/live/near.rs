use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lab::During;

use crate::error::BenchError;
use crate::load::Datagrams;
use crate::plan::{Plan, Section};
use crate::progress::Progress;
use crate::report::{Better, Contender, Key, Load, Metric, Mode, Report, SCHEMA};
use crate::talk::record_quality;
use crate::throughput::{Direction, Protocol, Transfer};
use crate::voice::{Calls, EF_TOS, INTERVAL, Quality, clock_offset};
use crate::{clock, load, machine, metric, scheduling};

/// What [`run`] shall do.
#[derive(Clone, Debug)]
pub struct Live {
    pub target: SocketAddr,
    pub plan: Plan,
    pub version: String,
    pub command: Vec<String>,
}

const TRANSFERS: [Step; 6] = [
    Step::Transfer("tcp-up-1", Protocol::Tcp, Direction::Up, 1),
    Step::Transfer("tcp-down-1", Protocol::Tcp, Direction::Down, 1),
    Step::Transfer("tcp-up-4", Protocol::Tcp, Direction::Up, 4),
    Step::Transfer("tcp-down-4", Protocol::Tcp, Direction::Down, 4),
    Step::Transfer("udp-up", Protocol::Udp(DATAGRAMS.payload), Direction::Up, 1),
    Step::Transfer("udp-down", Protocol::Udp(DATAGRAMS.payload), Direction::Down, 1),
];
/// What a datagram transfer offers at most: unlike TCP it does not give way to others on a real network.
const DATAGRAMS: Datagrams = Datagrams { payload: 1200, rate: 20_000_000 };
/// A load is cut when voice is over; this much longer it would last by itself.
const SPARE: Duration = Duration::from_secs(20);
/// Whatever way packets to the target take; in the place of a client's name.
const CLIENT: &str = "as routed";

/// What is measured in one go.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Its name, and how many streams it has.
    Transfer(&'static str, Protocol, Direction, u16),
    /// So many calls beside a load.
    Talk(u16, Load),
}

/// Measures round trips and throughput to a far end by whatever path this machine's routes give its address. A step that fails ends the run,
/// and is noted in the report.
///
/// # Errors
/// If nothing at all could be measured.
pub fn run(live: &Live) -> Result<Report, BenchError> {
    let begun = Instant::now();
    let plan = &live.plan;
    let steps = steps(plan);
    let all = (0..plan.rounds as usize).flat_map(|round| steps.iter().map(move |step| (round, *step)));
    let length = steps.iter().map(|step| step.length(plan)).sum::<Duration>() * plan.rounds;
    let mut progress = Progress::new(steps.len() * plan.rounds as usize, length);
    let mut report = Report {
        schema: SCHEMA,
        mode: Mode::Live,
        taken_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        seconds: 0.0,
        version: live.version.clone(),
        command: live.command.clone(),
        machine: machine::describe(),
        realtime: scheduling::realtime_is_permitted(),
        plan: plan.clone(),
        contenders: vec![Contender {
            client: CLIENT.to_owned(),
            version: format!("breakout {}", live.version),
            gateway: live.target.to_string(),
            gateway_version: String::new(),
            mtu: 0,
            realtime: false,
            features: serde_json::Value::Null,
        }],
        notes: Vec::new(),
        cells: Vec::new(),
        failed: Vec::new(),
        bars: Vec::new(),
    };
    for (round, step) in all {
        progress.step(&step.name(), step.length(plan));
        let taken = match step {
            Step::Transfer(name, protocol, direction, streams) => {
                transfer(live, (name, protocol, direction, streams), round, &mut report)
            }
            Step::Talk(calls, load) => talk(live, calls, load, round, &mut report),
        };
        let Err(error) = taken else { continue };
        if report.cells.is_empty() {
            return Err(error);
        }
        report.fail(round, step.name(), &error);
        break;
    }
    report.notes.push(format!(
        "Packets went to {} by whatever path this machine's routes give it. The load beside voice goes to the same far end; \
         datagrams are offered at {} Mbit/s.",
        live.target,
        DATAGRAMS.rate / 1_000_000
    ));
    report.notes.extend(clocks(&report));
    report.fill_rounds();
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(report)
}

fn steps(plan: &Plan) -> Vec<Step> {
    let transfers = TRANSFERS.into_iter().filter(|_| plan.has(Section::Throughput));
    let loads = plan.loads.iter().filter(|_| plan.has(Section::Voice));
    let talks =
        loads.flat_map(|load| plan.calls_beside(*load).into_iter().map(|calls| Step::Talk(calls, *load)));
    transfers.chain(talks).collect()
}

impl Step {
    fn name(self) -> String {
        match self {
            Self::Transfer(name, ..) => format!("throughput {name}"),
            Self::Talk(calls, load) => format!("voice, {calls} calls, load {load}"),
        }
    }

    fn length(self, plan: &Plan) -> Duration {
        match self {
            Self::Transfer(..) => Plan::WARM_UP + plan.transfer(),
            Self::Talk(calls, load) => Plan::lead(load) + INTERVAL * plan.packets_live(calls),
        }
    }
}

fn transfer(
    live: &Live,
    (name, protocol, direction, streams): (&str, Protocol, Direction, u16),
    round: usize,
    report: &mut Report,
) -> Result<(), BenchError> {
    let rate = (protocol != Protocol::Tcp).then_some(DATAGRAMS.rate);
    let duration = live.plan.transfer();
    let moved = Transfer { to: live.target, protocol, direction, streams, duration, rate }
        .run()
        .during(|| format!("{name} with {}", live.target))?;
    let key = key(Section::Throughput, name, None);
    report.record(round, &key, metric::RATE, "Gbit/s", Better::Higher, moved.bit_rate() / 1e9);
    Ok(())
}

fn talk(live: &Live, calls: u16, load: Load, round: usize, report: &mut Report) -> Result<(), BenchError> {
    let packets = live.plan.packets_live(calls);
    // Opening the calls and waiting for the last answers takes time too.
    let most = INTERVAL * packets + SPARE;
    let loading = load::start(None, live.target, load, DATAGRAMS, most)?;
    let heard = Calls { to: live.target, calls, packets, tos: EF_TOS }
        .run()
        .during(|| format!("voice with {}", live.target));
    let key = key(Section::Voice, &format!("calls-{calls}"), Some(load));
    if let Some(loading) = loading {
        let rate = loading.finish()?;
        report.record(round, &key, metric::LOAD_RATE, "Gbit/s", Better::Neither, rate / 1e9);
    }
    let heard = heard?;
    // The far end's wall clock, against the clock of this end.
    let offset = clock_offset(&heard.samples);
    if let Some((offset, error)) = offset {
        let ahead = offset - (clock::wall_ns() as i64 - clock::now_ns() as i64);
        for (name, ns) in [(metric::CLOCK_OFFSET, ahead as f64), (metric::CLOCK_ERROR, error as f64)] {
            report.record(round, &key, name, "µs", Better::Neither, ns / 1e3);
        }
    }
    record_quality(report, round, &key, &Quality::new(&heard, offset.unwrap_or_default().0));
    Ok(())
}

/// By what the far end's clock differs, and what that means for one-way delays.
fn clocks(report: &Report) -> Option<String> {
    let all = |name: &str| -> Vec<f64> {
        let metrics = report.section(Section::Voice).filter_map(|cell| cell.metrics.get(name));
        metrics.flat_map(Metric::values).collect()
    };
    let (offsets, errors) = (all(metric::CLOCK_OFFSET), all(metric::CLOCK_ERROR));
    let error = errors.into_iter().reduce(f64::max)?;
    let (least, most) =
        (offsets.iter().copied().reduce(f64::min)?, offsets.iter().copied().reduce(f64::max)?);
    Some(format!(
        "Round trips are exact. The far end's clock was {least:+.0} to {most:+.0} µs ahead of this machine's, taking it that the fastest \
         packet of each measurement took as long there as back; one-way delays are corrected by that, and may be wrong by up to {error:.0} µs."
    ))
}

/// Without a path: nobody here knows which one it was.
fn key(section: Section, scenario: &str, load: Option<Load>) -> Key {
    Key { load, client: CLIENT.to_owned(), ..Key::new(section, scenario) }
}
