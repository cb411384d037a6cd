use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::report::{Load, Path};
use crate::scenario::THROUGHPUT;
use crate::voice::INTERVAL;

/// What is measured; each can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Section {
    /// What the cipher allows on this machine.
    Ceiling,
    Throughput,
    /// What the client costs at 300 Mbit/s.
    FixedLoad,
    Voice,
    /// What it costs to carry one packet beside the tunnel.
    Forwarding,
    Idle,
    Roaming,
    Startup,
}

impl Section {
    /// In the order in which they are measured: the last ones disturb what stands.
    pub const ALL: [Self; 8] = [
        Self::Ceiling,
        Self::Throughput,
        Self::FixedLoad,
        Self::Voice,
        Self::Forwarding,
        Self::Idle,
        Self::Roaming,
        Self::Startup,
    ];

    /// What can be measured against a far end on another machine.
    pub const LIVE: [Self; 2] = [Self::Throughput, Self::Voice];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Ceiling => "ceiling",
            Self::Throughput => "throughput",
            Self::FixedLoad => "fixed-load",
            Self::Voice => "voice",
            Self::Forwarding => "forwarding",
            Self::Idle => "idle",
            Self::Roaming => "roaming",
            Self::Startup => "startup",
        }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Not one of the names that [`Section::name`] gives.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not measured: give ceiling, throughput, fixed-load, voice, forwarding, idle, roaming or startup"
)]
pub struct UnknownSection(String);

impl FromStr for Section {
    type Err = UnknownSection;

    fn from_str(name: &str) -> Result<Self, UnknownSection> {
        Self::ALL
            .into_iter()
            .find(|section| section.name() == name)
            .ok_or_else(|| UnknownSection(name.to_owned()))
    }
}

/// How much is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Plan {
    pub sections: Vec<Section>,
    /// How often each figure is measured, in turn with the others.
    pub rounds: u32,
    /// The throughput scenarios, by name.
    pub transfers: Vec<String>,
    /// Of one transfer, in seconds, without the first [`Plan::WARM_UP`].
    pub transfer_seconds: f64,
    /// Voice packets in each cell that is barred, over all its rounds.
    pub voice_samples: u32,
    /// Of voice that is not barred, in each round.
    pub voice_seconds: f64,
    /// How many calls at once.
    pub calls: Vec<u16>,
    pub loads: Vec<Load>,
    /// How long an idle client is watched, in seconds: all rounds together.
    pub idle_seconds: f64,
}

impl Default for Plan {
    fn default() -> Self {
        Self::full()
    }
}

impl Plan {
    /// A transfer's beginning that is not counted.
    pub const WARM_UP: Duration = Duration::from_millis(500);
    /// Between the start of a load and the first voice packet beside it: TCP has to find out how fast it can be.
    pub const fn lead(load: Load) -> Duration {
        match load {
            Load::Idle => Duration::ZERO,
            Load::Upload | Load::Download => Duration::from_millis(1000),
            Load::UdpUpload => Duration::from_millis(300),
        }
    }

    /// What bars are judged by.
    pub fn full() -> Self {
        Self {
            sections: Section::ALL.to_vec(),
            rounds: 5,
            transfers: THROUGHPUT.iter().map(|scenario| scenario.name.to_owned()).collect(),
            transfer_seconds: 2.0,
            voice_samples: 30_000,
            voice_seconds: 1.5,
            calls: vec![1, 10, 50],
            loads: Load::ALL.to_vec(),
            idle_seconds: 60.0,
        }
    }

    /// Within two minutes, for a first look. Roaming takes its time with clients that cannot.
    pub fn quick() -> Self {
        let sections = Section::ALL.into_iter().filter(|section| *section != Section::Roaming);
        Self {
            sections: sections.collect(),
            rounds: 2,
            transfers: ["tcp-up-1", "tcp-down-1"].map(str::to_owned).to_vec(),
            transfer_seconds: 1.0,
            voice_samples: 600,
            voice_seconds: 0.5,
            calls: vec![10],
            loads: vec![Load::Idle, Load::Upload],
            idle_seconds: 5.0,
        }
    }

    pub fn has(&self, section: Section) -> bool {
        self.sections.contains(&section)
    }

    pub fn transfer(&self) -> Duration {
        Duration::from_secs_f64(self.transfer_seconds)
    }

    /// Packets of each call in each round.
    pub fn packets(&self, calls: u16, load: Load, path: Path) -> u32 {
        if self.is_barred(calls, load, path) { self.all_packets(calls) } else { within(self.voice_seconds) }
    }

    /// As [`Plan::packets`], where there is one path only and nothing is barred: all samples, but for 12 s at most.
    pub fn packets_live(&self, calls: u16) -> u32 {
        self.all_packets(calls).min(within(12.0))
    }

    fn all_packets(&self, calls: u16) -> u32 {
        self.voice_samples.div_ceil(self.rounds.max(1) * u32::from(calls.max(1))).max(1)
    }

    /// Idle, what goes beside the tunnel is judged at every number of calls; under load everything is, with the most calls, since those
    /// have their samples soonest.
    pub fn is_barred(&self, calls: u16, load: Load, path: Path) -> bool {
        match load {
            Load::Idle => path != Path::Tunnel,
            Load::Upload | Load::Download => self.calls.iter().max() == Some(&calls),
            Load::UdpUpload => false,
        }
    }

    /// How many calls talk beside a load; nothing is barred beside datagrams, and few calls would tell no more than many.
    pub fn calls_beside(&self, load: Load) -> Vec<u16> {
        match load {
            Load::UdpUpload => self.calls.iter().copied().max().into_iter().collect(),
            Load::Idle | Load::Upload | Load::Download => self.calls.clone(),
        }
    }
}

/// Packets of one call in so many seconds.
fn within(seconds: f64) -> u32 {
    ((seconds / INTERVAL.as_secs_f64()).round() as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn barred_cells_get_all_their_samples() {
        let plan = Plan::full();
        let of_cell =
            |calls: u16, load, path| plan.packets(calls, load, path) * plan.rounds * u32::from(calls);
        for calls in [1, 10, 50] {
            for path in [Path::Direct, Path::DirectAgain, Path::BypassPump, Path::BypassFastPath] {
                assert_eq!(of_cell(calls, Load::Idle, path), 30_000);
            }
        }
        for path in [Path::Direct, Path::BypassPump, Path::BypassFastPath, Path::Tunnel] {
            assert_eq!(of_cell(50, Load::Upload, path), 30_000);
            assert_eq!(of_cell(50, Load::Download, path), 30_000);
            assert_eq!(of_cell(1, Load::Upload, path), 375);
        }
        assert_eq!(plan.packets(10, Load::Idle, Path::Tunnel), 75);
        assert_eq!((plan.packets_live(1), plan.packets_live(50)), (600, 120));
    }

    #[test]
    fn sections_are_called_by_their_names() {
        for section in Section::ALL {
            assert_eq!(section.name().parse(), Ok(section));
            assert_eq!(serde_json::to_value(section).unwrap(), section.name());
        }
        assert!("speed".parse::<Section>().is_err());
    }
}
