//! Voice, in the run in the lab.

use std::thread;
use std::time::Duration;

use lab::{During, LabError};

use crate::clock;
use crate::error::BenchError;
use crate::load::{self, Datagrams, Running};
use crate::machine::Busy;
use crate::metric;
use crate::plan::Section;
use crate::report::{Better, Key, Load, Path, Report};
use crate::run::{Bench, GIGA};
use crate::scenario::{DATAGRAM, FIXED};
use crate::schedule::{Lane, Talk};
use crate::usage::Usage;
use crate::voice::{Heard, INTERVAL, OpenCalls, Quality};

/// Between the last call's opening and the first packet: also for threads to start.
const LEAD: Duration = Duration::from_millis(50);
/// A load is cut when voice is over; this much longer it would last by itself.
const SPARE: Duration = Duration::from_secs(30);

const DATAGRAMS: Datagrams = Datagrams { payload: DATAGRAM, rate: FIXED };

impl Bench<'_> {
    pub(crate) fn voice(&mut self, load: Load, loaded: usize, talks: &[Talk]) -> Result<(), BenchError> {
        let length: Duration =
            talks.iter().map(|talk| INTERVAL * talk.packets + 2 * Duration::from_secs(1)).sum();
        let site = self.site(loaded)?;
        let client = site.client().name().to_owned();
        let running =
            load::start(Some(&site.agent), site.bulk(Path::Tunnel), load, DATAGRAMS, length + SPARE)?;
        let beside = Beside { load, tier: self.sites.tier(loaded), running: running.as_ref() };
        for talk in talks {
            if let Err(error) = self.talk(&beside, talk) {
                let what = format!("voice, load {load}: {}", self.talk_name(talk));
                self.report.fail(self.round, what, &error);
            }
        }
        let Some(running) = running else { return Ok(()) };
        let rate = running.finish()?;
        let path =
            Some(if loaded == self.sites.without_fast_path() { Path::BypassPump } else { Path::Tunnel });
        let key = Key { load: Some(load), path, client, ..Key::new(Section::Voice, "load") };
        self.report.record(self.round, &key, metric::LOAD_RATE, "Gbit/s", Better::Neither, rate / GIGA);
        Ok(())
    }

    fn talk(&mut self, beside: &Beside<'_>, talk: &Talk) -> Result<(), BenchError> {
        let load = beside.load;
        let what = || format!("talk, {} calls, load {load}", talk.calls);
        let open = |lane: &Lane| self.site(lane.site)?.open_calls(lane.path, talk.calls, talk.packets);
        let open = talk.lanes.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let pids: Vec<Option<u32>> = talk.lanes.iter().map(|lane| self.carrier(*lane)).collect();
        let usage = |pid: &Option<u32>| pid.map(Usage::of).transpose();
        let before = pids.iter().map(usage).collect::<Result<Vec<_>, _>>().during(what)?;
        let (busy, moved_before) = (Busy::watch(), beside.moved());

        let heard = talk_at_once(&open, talk.calls).during(what)?;

        let ((seconds, used), moved_after) = (busy.so_far(), beside.moved());
        beside.running.map_or(Ok(()), Running::check)?;
        let after = pids.iter().map(usage).collect::<Result<Vec<_>, _>>().during(what)?;
        for ((lane, open), heard) in talk.lanes.iter().zip(&open).zip(&heard) {
            self.check_heard(*lane, open, heard)?;
        }
        let switches = |index: usize| Some(((*after.get(index)?)? - (*before.get(index)?)?).switches());
        for (index, (lane, heard)) in talk.lanes.iter().zip(&heard).enumerate() {
            if let Some(switches) = switches(index).filter(|_| load == Load::Idle) {
                self.site(lane.site)?.check_mover(lane.path, switches, heard.sent)?;
            }
        }
        for (index, (lane, heard)) in talk.lanes.iter().zip(&heard).enumerate() {
            let key = self.voice_key(*lane, beside, talk.calls);
            if let Some((before, after)) = moved_before.zip(moved_after) {
                let rate = (after - before) as f64 * 8.0 / seconds / GIGA;
                self.report.record(self.round, &key, metric::LOAD_RATE, "Gbit/s", Better::Neither, rate);
            }
            record_quality(&mut self.report, self.round, &key, &Quality::new(heard, 0));
            if load != Load::Idle || heard.sent == 0 {
                continue;
            }
            let sent = heard.sent as f64;
            if let Some(switches) = switches(index).map(|switches| switches as f64) {
                let mut record = |name, unit, value| {
                    self.report.record(self.round, &key, name, unit, Better::Lower, value)
                };
                record(metric::SWITCHES_PER_PACKET, "1/packet", switches / sent);
                record(metric::SWITCHES_PER_SECOND, "1/s", switches / seconds);
            }
            // Of lanes that talk at once, nobody can say which one it was.
            if talk.lanes.len() == 1 {
                let micros = (used - self.quiet * seconds).max(0.0) * 1e6 / sent;
                self.report.record(self.round, &key, metric::MACHINE_CPU, "µs/packet", Better::Lower, micros);
            }
        }
        Ok(())
    }

    /// That what came back had gone the way whose name it bears.
    fn check_heard(&self, lane: Lane, open: &OpenCalls, heard: &Heard) -> Result<(), LabError> {
        let site = self.site(lane.site)?;
        let ports = open.ports().during(|| format!("see where calls by {} came from", lane.path))?;
        site.check_way(lane.path, site.voice(lane.path), &ports, heard.samples.len() as u64)
    }

    /// Whose wake-ups a lane is: nobody's on the bare path.
    fn carrier(&mut self, lane: Lane) -> Option<u32> {
        let is_ours = matches!(lane.path, Path::BypassPump | Path::BypassFastPath);
        if is_ours { self.all.get_mut(lane.site)?.pid() } else { None }
    }

    fn voice_key(&self, lane: Lane, heard: &Beside<'_>, calls: u16) -> Key {
        let client = self.all.get(lane.site).map(|site| site.client().name().to_owned()).unwrap_or_default();
        let (load, path) = (Some(heard.load), Some(lane.path));
        let is_bare = matches!(lane.path, Path::Direct | Path::DirectAgain);
        let beside = heard.tier.filter(|_| is_bare && heard.load != Load::Idle);
        Key { load, path, beside, client, ..Key::new(Section::Voice, format!("calls-{calls}")) }
    }
}

/// What voice is heard beside.
struct Beside<'a> {
    load: Load,
    /// That the daemon has whose tunnel is full.
    tier: Option<Path>,
    running: Option<&'a Running>,
}

impl Beside<'_> {
    /// By the load so far, in bytes.
    fn moved(&self) -> Option<u64> {
        self.running.map(Running::moved)
    }
}

/// The packets of all lanes lie evenly over the interval, none at another's time.
fn talk_at_once(lanes: &[OpenCalls], calls: u16) -> std::io::Result<Vec<Heard>> {
    let begin = clock::now_ns() + LEAD.as_nanos() as u64;
    let apart = INTERVAL.as_nanos() as u64 / (u64::from(calls.max(1)) * lanes.len().max(1) as u64);
    thread::scope(|scope| {
        let talks: Vec<_> =
            (0..).zip(lanes).map(|(n, lane)| scope.spawn(move || lane.talk(begin + n * apart))).collect();
        let panicked = |_| std::io::Error::other("a voice thread panicked");
        talks.into_iter().map(|talk| talk.join().map_err(panicked)?).collect()
    })
}

/// Records what some calls sounded like.
pub fn record_quality(report: &mut Report, round: usize, key: &Key, quality: &Quality) {
    use Better::{Higher, Lower, Neither};
    let us = |ns: u64| ns as f64 / 1e3;
    let (round_trip, one_way) = (&quality.delays.round_trip, &quality.delays.one_way);
    let late = &quality.delays.late;
    let at = |histogram: &hdrhistogram::Histogram<u64>, part| us(histogram.value_at_quantile(part));
    let mut record =
        |name: &str, unit: &str, better, value| report.record(round, key, name, unit, better, value);
    // Of packets that never came back there is no delay, not one of 0.
    if !round_trip.is_empty() {
        record(metric::RTT_P50, "µs", Lower, us(quality.round_trip(0.5)));
        record(metric::RTT_P99, "µs", Lower, us(quality.round_trip(0.99)));
        record(metric::RTT_P999, "µs", Lower, us(quality.round_trip(0.999)));
        record(metric::RTT_MAX, "µs", Neither, us(round_trip.max()));
        record(metric::ONE_WAY_P50, "µs", Lower, at(one_way, 0.5));
        record(metric::ONE_WAY_P99, "µs", Lower, at(one_way, 0.99));
        record(metric::ONE_WAY_P999, "µs", Lower, at(one_way, 0.999));
        record(metric::ONE_WAY_MAX, "µs", Neither, us(one_way.max()));
        record(metric::THERE_P50, "µs", Neither, at(&quality.delays.there, 0.5));
        record(metric::JITTER, "µs", Lower, quality.jitter_ms * 1e3);
    }
    record(metric::LATE_P50, "µs", Neither, at(late, 0.5));
    record(metric::LATE_P99, "µs", Neither, at(late, 0.99));
    record(metric::SENT, "packets", Neither, quality.sent as f64);
    record(metric::LOSS, "%", Lower, quality.loss * 100.0);
    record(metric::REORDERED, "packets", Lower, quality.reordered as f64);
    record(metric::MOS, "", Higher, quality.mos);
    record(metric::GENESYS_MOS, "", Higher, quality.genesys_mos);
    report.record_delays(round, key, metric::ROUND_TRIP, round_trip);
    report.record_delays(round, key, metric::ONE_WAY, one_way);
}
