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

    /// Whose tunnels carry the load, in turn. Of datagrams only ours: no bar is about others there, and a run is long enough.
    fn loaded(self, load: Load) -> Vec<usize> {
        let all = (0..self.clients).chain(self.has_fast_path.then(|| self.without_fast_path()));
        all.filter(|site| load != Load::UdpUpload || self.tier(*site).is_some()).collect()
    }

    /// The tier that a site's daemon has; another's client has none.
    pub fn tier(self, site: usize) -> Option<Path> {
        self.bypasses().into_iter().find(|lane| lane.site == site).map(|lane| lane.path)
    }

    /// What is heard beside the full tunnel of a site: a tier, and at the same moment what it is judged by.
    fn beside_load(self, loaded: usize, is_barred: bool) -> Vec<Lane> {
        let Some(path) = self.tier(loaded) else { return Vec::new() };
        let again = is_barred.then(|| self.direct_again());
        [self.direct(), Lane { site: loaded, path }].into_iter().chain(again).collect()
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
        Section::Throughput => throughput(plan, sites, round),
        Section::FixedLoad => {
            let lanes = |scenario: Scenario| {
                let lanes = rotated(sites.tunnels().collect(), round).into_iter();
                lanes.map(move |lane| Step::Transfer { section, scenario, lane })
            };
            FIXED_LOAD.into_iter().flat_map(lanes).collect()
        }
        Section::Voice => voice(plan, sites, round),
        Section::Forwarding => {
            let lanes = rotated(sites.beside(), round);
            lanes.iter().flat_map(|lane| [Step::PingPong(*lane), Step::PacketRate(*lane)]).collect()
        }
        Section::Idle => Vec::new(),
        Section::Roaming => rotated(carried(sites), round).into_iter().map(Step::Roaming).collect(),
        Section::Startup => rotated(carried(sites), round).into_iter().map(Step::Startup).collect(),
    }
}

fn throughput(plan: &Plan, sites: Sites, round: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    if plan.has(Section::Ceiling) {
        steps.push(Step::Ceiling);
    }
    for scenario in
        THROUGHPUT.iter().filter(|scenario| plan.transfers.iter().any(|name| name == scenario.name))
    {
        let direct = scenario.has_direct().then(|| sites.direct());
        let lanes = rotated(direct.into_iter().chain(sites.tunnels()).collect(), round).into_iter();
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
                let beside = together(*calls, rotated(sites.beside(), round));
                let tunnels = rotated(sites.tunnels().collect(), round).into_iter();
                let each = beside.into_iter().chain(tunnels.map(|lane| vec![lane]));
                let talks = each.map(|lanes| vec![talk(*calls, *load, lanes)]);
                steps.extend(talks.map(|talks| Step::Voice { load: *load, loaded: 0, talks }));
            }
            continue;
        }
        for loaded in rotated(sites.loaded(*load), round) {
            let mut talks = Vec::new();
            for calls in plan.calls_beside(*load) {
                let is_barred = plan.is_barred(calls, *load, Path::DirectAgain);
                let mut each = together(calls, rotated(sites.beside_load(loaded, is_barred), round));
                each.extend(sites.tunnels().filter(|lane| lane.site == loaded).map(|lane| vec![lane]));
                talks.extend(rotated(each, round).into_iter().map(|lanes| talk(calls, *load, lanes)));
            }
            steps.push(Step::Voice { load: *load, loaded, talks });
        }
    }
    steps
}

/// Which lanes talk at the same time.
fn together(calls: u16, lanes: Vec<Lane>) -> Vec<Vec<Lane>> {
    if lanes.is_empty() || calls > MOST_AT_ONCE {
        return lanes.into_iter().map(|lane| vec![lane]).collect();
    }
    vec![lanes]
}

/// What clients carry: ours beside its tunnel too, in each tier.
fn carried(sites: Sites) -> Vec<Lane> {
    sites.bypasses().into_iter().chain(sites.tunnels()).collect()
}

/// Nothing always follows the same.
fn rotated<T>(mut all: Vec<T>, by: usize) -> Vec<T> {
    let by = by % all.len().max(1);
    all.rotate_left(by);
    all
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
                let lead = if *load == Load::Idle { Duration::ZERO } else { Plan::lead(*load) + short };
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
        let is_full = matches!(load, Load::Upload | Load::Download);
        let loses = is_full && self.lanes.iter().any(|lane| lane.path == Path::Tunnel);
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
                let Step::Voice { load, loaded, talks } = turn.step else { continue };
                for talk in talks {
                    for lane in talk.lanes {
                        let packets = talk.packets * u32::from(talk.calls);
                        let cell = (load, talk.calls, lane.path, lane.site, loaded);
                        *cells.entry(cell).or_insert(0) += packets;
                    }
                }
            }
            let barred =
                cells.iter().filter(|((load, calls, path, ..), _)| plan.is_barred(*calls, *load, *path));
            let counts: Vec<u32> = barred.map(|(_, packets)| *packets).collect();
            let (tiers, tunnels) = (sites.bypasses().len(), 3);
            assert_eq!(counts.len(), 3 * (2 + tiers) + 2 * (3 * tiers + tunnels));
            assert!(counts.iter().all(|packets| *packets >= 30_000), "{cells:?}");
            let (idle, tcp) = (3 * (2 + tiers + tunnels), 2 * (3 * (2 * tiers + tunnels) + tiers));
            assert_eq!(cells.len(), idle + tcp + 2 * tiers + 1, "and beside datagrams");
        }
    }

    #[test]
    fn each_tier_is_heard_beside_the_direct_path_that_it_is_judged_by() {
        for sites in [TODAY, BOTH_TIERS] {
            let mut tiers = Vec::new();
            for turn in schedule(&Plan::full(), sites) {
                let Step::Voice { load, loaded, talks } = turn.step else { continue };
                let tier = sites.tier(loaded).filter(|_| load != Load::Idle);
                let Some(tier) = tier else { continue };
                for calls in Plan::full().calls_beside(load) {
                    let of = |talk: &&Talk| talk.calls == calls;
                    let heard = talks.iter().filter(of).flat_map(|talk| talk.lanes.clone());
                    let paths: Vec<Path> = heard.map(|lane| lane.path).collect();
                    assert!([tier, Path::Direct].iter().all(|path| paths.contains(path)), "{paths:?}");
                    let is_barred = calls == 50 && load != Load::UdpUpload;
                    assert_eq!(paths.contains(&Path::DirectAgain), is_barred, "{paths:?}");
                }
                tiers.push((turn.round, load, tier));
            }
            assert_eq!(tiers.len(), 5 * 3 * sites.bypasses().len());
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

    #[test]
    fn clients_take_turns_at_being_first_in_every_section() {
        let turns = schedule(&Plan::full(), BOTH_TIERS);
        for section in
            [Section::Throughput, Section::FixedLoad, Section::Voice, Section::Roaming, Section::Startup]
        {
            let first = |round: usize| {
                let sites =
                    turns.iter().filter(|turn| turn.round == round).filter_map(|turn| match &turn.step {
                        Step::Transfer { section: of, lane, .. } if *of == section => Some(lane.site),
                        Step::Voice { loaded, load: Load::Upload, .. } if section == Section::Voice => {
                            Some(*loaded)
                        }
                        Step::Roaming(lane) if section == Section::Roaming => Some(lane.site),
                        Step::Startup(lane) if section == Section::Startup => Some(lane.site),
                        _ => None,
                    });
                sites.take(1).collect::<Vec<_>>()
            };
            let firsts: std::collections::BTreeSet<Vec<usize>> = (0..5).map(first).collect();
            assert!(firsts.len() >= 3, "{section}: {firsts:?}");
        }
    }

    #[test]
    fn both_tiers_start_and_roam() {
        let paths = |step: fn(&Step) -> Option<Lane>| -> Vec<Path> {
            let turns = schedule(&Plan::full(), BOTH_TIERS);
            let first = turns.iter().filter(|turn| turn.round == 0);
            first.filter_map(|turn| Some(step(&turn.step)?.path)).collect()
        };
        let all = [Path::BypassFastPath, Path::BypassPump, Path::Tunnel, Path::Tunnel, Path::Tunnel];
        assert_eq!(paths(|step| if let Step::Startup(lane) = step { Some(*lane) } else { None }), all);
        assert_eq!(paths(|step| if let Step::Roaming(lane) = step { Some(*lane) } else { None }), all);
    }
}
