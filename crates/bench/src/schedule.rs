//! The order of a run: what is measured where and when, so that whatever is compared is measured close together, and how long it takes.

use std::time::Duration;

use crate::plan::{Plan, Section};
use crate::report::{Load, Path};
use crate::scenario::{FIXED_LOAD, Scenario, THROUGHPUT};
use crate::voice::INTERVAL;
use crate::{forwarding, machine, roaming};

/// Which sites there are: the clients' (ours first), the bare one, and, if the kernel's fast path is on, ours again without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sites {
    pub clients: usize,
    pub has_fast_path: bool,
}

/// A path at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    /// Its index.
    pub site: usize,
    pub path: Path,
}

/// Calls on some lanes at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Talk {
    /// On each lane.
    pub calls: u16,
    /// Of each call.
    pub packets: u32,
    pub lanes: Vec<Lane>,
}

/// What is measured in one go.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Ceiling,
    Transfer {
        section: Section,
        scenario: Scenario,
        lane: Lane,
    },
    /// What the machine does by itself.
    Quiet,
    /// Talks one after another, while the tunnel of the site `loaded` is filled.
    Voice {
        load: Load,
        loaded: usize,
        talks: Vec<Talk>,
    },
    PingPong(Lane),
    PacketRate(Lane),
    Idle,
    Roaming(Lane),
    Startup(Lane),
}

/// A step in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// From 0; 0 too for what is measured once.
    pub round: usize,
    pub step: Step,
}

/// Up to this many calls on each lane, lanes are measured at the same time: packets are still a fraction of a millisecond apart.
const MOST_AT_ONCE: u16 = 10;

impl Sites {
    pub const fn bare(self) -> usize {
        self.clients
    }

    pub const fn without_fast_path(self) -> usize {
        self.clients + 1
    }

    fn direct(self) -> Lane {
        Lane { site: self.bare(), path: Path::Direct }
    }

    fn direct_again(self) -> Lane {
        Lane { site: self.bare(), path: Path::DirectAgain }
    }

    /// Ours, in each tier that exists.
    fn bypasses(self) -> Vec<Lane> {
        let pump = |site| Lane { site, path: Path::BypassPump };
        if !self.has_fast_path {
            return vec![pump(0)];
        }
        vec![Lane { site: 0, path: Path::BypassFastPath }, pump(self.without_fast_path())]
    }

    fn tunnels(self) -> impl Iterator<Item = Lane> {
        (0..self.clients).map(|site| Lane { site, path: Path::Tunnel })
    }

    /// What no tunnel carries.
    fn beside(self) -> Vec<Lane> {
        [self.direct()].into_iter().chain(self.bypasses()).chain([self.direct_again()]).collect()
    }
}

/// All steps in their order.
pub fn schedule(plan: &Plan, sites: Sites) -> Vec<Turn> {
    let mut turns = Vec::new();
    for section in Section::ALL.into_iter().filter(|section| plan.has(*section)) {
        match section {
            // In the rounds of throughput, where there are any.
            Section::Ceiling if plan.has(Section::Throughput) => {}
            Section::Voice => turns.push(Turn { round: 0, step: Step::Quiet }),
            Section::Idle => {
                turns.push(Turn { round: 0, step: Step::Idle });
                continue;
            }
            _ => {}
        }
        for round in 0..plan.rounds as usize {
            let steps = one_round(plan, sites, section, round);
            turns.extend(steps.into_iter().map(|step| Turn { round, step }));
        }
    }
    turns
}

fn one_round(plan: &Plan, sites: Sites, section: Section, round: usize) -> Vec<Step> {
    match section {
        Section::Ceiling if plan.has(Section::Throughput) => Vec::new(),
        Section::Ceiling => vec![Step::Ceiling],
        Section::Throughput => throughput(plan, sites),
        Section::FixedLoad => FIXED_LOAD
            .iter()
            .flat_map(|scenario| sites.tunnels().map(|lane| (*scenario, lane)))
            .map(|(scenario, lane)| Step::Transfer { section, scenario, lane })
            .collect(),
        Section::Voice => voice(plan, sites, round),
        Section::Forwarding => {
            let lanes = rotated(sites.beside(), round);
            lanes.iter().flat_map(|lane| [Step::PingPong(*lane), Step::PacketRate(*lane)]).collect()
        }
        Section::Idle => Vec::new(),
        Section::Roaming => carried(sites).map(Step::Roaming).collect(),
        Section::Startup => carried(sites).map(Step::Startup).collect(),
    }
}

fn throughput(plan: &Plan, sites: Sites) -> Vec<Step> {
    let mut steps = Vec::new();
    if plan.has(Section::Ceiling) {
        steps.push(Step::Ceiling);
    }
    for scenario in
        THROUGHPUT.iter().filter(|scenario| plan.transfers.iter().any(|name| name == scenario.name))
    {
        let direct = scenario.has_direct().then(|| sites.direct());
        let lanes = direct.into_iter().chain(sites.tunnels());
        let section = Section::Throughput;
        steps.extend(lanes.map(|lane| Step::Transfer { section, scenario: *scenario, lane }));
    }
    steps
}

fn voice(plan: &Plan, sites: Sites, round: usize) -> Vec<Step> {
    let talk = |calls: u16, load, lanes: Vec<Lane>| {
        let packets = lanes.iter().map(|lane| plan.packets(calls, load, lane.path)).max().unwrap_or(0);
        Talk { calls, packets, lanes }
    };
    let mut steps = Vec::new();
    for load in &plan.loads {
        if *load == Load::Idle {
            for calls in &plan.calls {
                let beside = rotated(sites.beside(), round);
                let mut talks: Vec<Talk> = if *calls <= MOST_AT_ONCE {
                    vec![talk(*calls, *load, beside)]
                } else {
                    beside.into_iter().map(|lane| talk(*calls, *load, vec![lane])).collect()
                };
                talks.extend(sites.tunnels().map(|lane| talk(*calls, *load, vec![lane])));
                let each = |talk| Step::Voice { load: *load, loaded: 0, talks: vec![talk] };
                steps.extend(talks.into_iter().map(each));
            }
            continue;
        }
        for loaded in (0..sites.clients).chain(sites.has_fast_path.then(|| sites.without_fast_path())) {
            let mut talks = Vec::new();
            for calls in &plan.calls {
                let lanes = beside_load(sites, loaded, plan.is_barred(*calls, *load, Path::DirectAgain));
                talks.extend(rotated(lanes, round).into_iter().map(|lane| talk(*calls, *load, vec![lane])));
            }
            steps.push(Step::Voice { load: *load, loaded, talks });
        }
    }
    steps
}

/// What is heard while the tunnel of a site is full.
fn beside_load(sites: Sites, loaded: usize, is_barred: bool) -> Vec<Lane> {
    let bypass = sites.bypasses().into_iter().filter(|lane| lane.site == loaded);
    let tunnel = sites.tunnels().filter(|lane| lane.site == loaded);
    let direct = (loaded == 0).then(|| sites.direct());
    let again = (loaded == 0 && is_barred).then(|| sites.direct_again());
    direct.into_iter().chain(bypass).chain(tunnel).chain(again).collect()
}

/// What clients carry: ours beside its tunnel too.
fn carried(sites: Sites) -> impl Iterator<Item = Lane> {
    let ours = sites.bypasses().into_iter().filter(|lane| lane.site == 0);
    ours.chain(sites.tunnels())
}

/// No lane always follows the same one.
fn rotated(mut lanes: Vec<Lane>, by: usize) -> Vec<Lane> {
    let by = by % lanes.len().max(1);
    lanes.rotate_left(by);
    lanes
}

impl Step {
    /// About how long it takes.
    pub fn length(&self, plan: &Plan) -> Duration {
        let seconds = Duration::from_secs_f64;
        let short = seconds(0.2);
        match self {
            Self::Ceiling => plan.transfer(),
            Self::Transfer { .. } => Plan::WARM_UP + plan.transfer() + short,
            Self::Quiet => machine::QUIET,
            Self::Voice { load, talks, .. } => {
                let lead = if *load == Load::Idle { Duration::ZERO } else { Plan::LOAD_LEAD + short };
                let length = |talk: &Talk| INTERVAL * talk.packets + short + talk.patience(*load);
                lead + talks.iter().map(length).sum::<Duration>()
            }
            Self::PingPong(_) => forwarding::PING_PONG + short,
            Self::PacketRate(_) => forwarding::PACKET_RATE + short,
            Self::Idle => seconds(plan.idle_seconds + 1.0),
            Self::Roaming(_) => roaming::BEFORE * 2 + seconds(0.5),
            Self::Startup(_) => seconds(0.5),
        }
    }
}

impl Talk {
    /// Lost packets are waited for; a full tunnel loses some.
    fn patience(&self, load: Load) -> Duration {
        let loses = load != Load::Idle && self.lanes.iter().any(|lane| lane.path == Path::Tunnel);
        if loses { Duration::from_secs(1) } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TODAY: Sites = Sites { clients: 3, has_fast_path: false };
    const BOTH_TIERS: Sites = Sites { clients: 3, has_fast_path: true };

    fn length(plan: &Plan, sites: Sites) -> Duration {
        schedule(plan, sites).iter().map(|turn| turn.step.length(plan)).sum()
    }

    #[test]
    fn a_run_against_two_others_takes_as_long_as_is_said() {
        let minutes = |plan, sites| length(plan, sites).as_secs_f64() / 60.0;
        let full = Plan::full();
        assert!(minutes(&full, TODAY) < 33.0, "{}", minutes(&full, TODAY));
        assert!(minutes(&full, BOTH_TIERS) < 35.0, "{}", minutes(&full, BOTH_TIERS));
        let quick = Plan::quick();
        assert!(minutes(&quick, TODAY) < 2.0, "{}", minutes(&quick, TODAY));
        assert!(minutes(&quick, BOTH_TIERS) < 2.0, "{}", minutes(&quick, BOTH_TIERS));
    }

    #[test]
    fn every_barred_cell_is_pooled_of_as_many_packets_as_bars_want() {
        let plan = Plan::full();
        for sites in [TODAY, BOTH_TIERS] {
            let mut cells = std::collections::BTreeMap::new();
            for turn in schedule(&plan, sites) {
                let Step::Voice { load, talks, .. } = turn.step else { continue };
                for talk in talks {
                    for lane in talk.lanes {
                        let packets = talk.packets * u32::from(talk.calls);
                        *cells.entry((load, talk.calls, lane.path, lane.site)).or_insert(0) += packets;
                    }
                }
            }
            let barred =
                cells.iter().filter(|((load, calls, path, _), _)| plan.is_barred(*calls, *load, *path));
            let counts: Vec<u32> = barred.map(|(_, packets)| *packets).collect();
            let (tiers, tunnels) = (sites.bypasses().len(), 3);
            assert_eq!(counts.len(), 3 * (2 + tiers) + 2 * (2 + tiers + tunnels));
            assert!(counts.iter().all(|packets| *packets >= 30_000), "{cells:?}");
            assert_eq!(cells.len(), 3 * (2 + tiers + tunnels) + 2 * (3 * (1 + tiers + tunnels) + 1));
        }
    }

    #[test]
    fn tiers_are_told_apart_where_there_are_two() {
        let path = |lane: &Lane| lane.path;
        assert_eq!(TODAY.bypasses().iter().map(path).collect::<Vec<_>>(), [Path::BypassPump]);
        assert_eq!(
            BOTH_TIERS.bypasses(),
            [Lane { site: 0, path: Path::BypassFastPath }, Lane { site: 4, path: Path::BypassPump }]
        );
    }

    #[test]
    fn lanes_take_turns_at_being_first() {
        let firsts: Vec<Path> = (0..3).map(|round| rotated(TODAY.beside(), round)[0].path).collect();
        assert_eq!(firsts, [Path::Direct, Path::BypassPump, Path::DirectAgain]);
    }
}
