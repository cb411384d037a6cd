use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::report::{Load, Path};
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
    Idle,
    Roaming,
    Startup,
}

impl Section {
    /// In the order in which they are measured: the last ones disturb what stands.
    pub const ALL: [Self; 7] = [
        Self::Ceiling,
        Self::Throughput,
        Self::FixedLoad,
        Self::Voice,
        Self::Idle,
        Self::Roaming,
        Self::Startup,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Ceiling => "ceiling",
            Self::Throughput => "throughput",
            Self::FixedLoad => "fixed-load",
            Self::Voice => "voice",
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
#[error("`{0}` is not measured: give ceiling, throughput, fixed-load, voice, idle, roaming or startup")]
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
    /// Of one transfer, in seconds, without the first [`Plan::WARM_UP`].
    pub transfer_seconds: f64,
    /// Voice packets in each cell, over all its rounds, unless [`Plan::packets`] says fewer.
    pub voice_samples: u32,
    /// How many calls at once.
    pub calls: Vec<u16>,
    /// How long an idle client is watched, in seconds.
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
    /// Between the start of a load and the first voice packet beside it.
    pub const LOAD_LEAD: Duration = Duration::from_millis(1000);

    /// Of voice, over all rounds, where the number of samples does not matter more.
    pub const LONGEST_CELL: Duration = Duration::from_secs(60);

    /// What bars are judged by.
    pub fn full() -> Self {
        Self {
            sections: Section::ALL.to_vec(),
            rounds: 5,
            transfer_seconds: 3.0,
            voice_samples: 30_000,
            calls: vec![1, 10, 50],
            idle_seconds: 60.0,
        }
    }

    /// About two minutes, for a first look.
    pub fn quick() -> Self {
        Self {
            rounds: 2,
            transfer_seconds: 0.5,
            voice_samples: 1000,
            calls: vec![10],
            idle_seconds: 5.0,
            ..Self::full()
        }
    }

    pub fn has(&self, section: Section) -> bool {
        self.sections.contains(&section)
    }

    pub fn transfer(&self) -> Duration {
        Duration::from_secs_f64(self.transfer_seconds)
    }

    /// Packets of each call in each round. The idle bypass is judged at one call too, so it and what it is compared with get all their
    /// samples, however long that takes; elsewhere a cell ends after [`Plan::LONGEST_CELL`], which is 30 000 packets of ten calls.
    pub fn packets(&self, calls: u16, load: Load, path: Option<Path>) -> u32 {
        let rounds = self.rounds.max(1);
        let wanted = self.voice_samples.div_ceil(rounds * u32::from(calls.max(1))).max(1);
        if load == Load::Idle && matches!(path, Some(Path::Direct | Path::DirectAgain | Path::Bypass)) {
            return wanted;
        }
        let most = (Self::LONGEST_CELL / rounds).as_millis() / INTERVAL.as_millis();
        wanted.min(u32::try_from(most).unwrap_or(u32::MAX)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn barred_cells_get_all_their_samples() {
        let plan = Plan::full();
        let of_cell =
            |calls: u16, load, path| plan.packets(calls, load, Some(path)) * plan.rounds * u32::from(calls);
        for calls in [1, 10, 50] {
            assert_eq!(of_cell(calls, Load::Idle, Path::Bypass), 30_000);
            assert_eq!(of_cell(calls, Load::Idle, Path::DirectAgain), 30_000);
        }
        assert_eq!(of_cell(10, Load::Upload, Path::Bypass), 30_000);
        assert_eq!(of_cell(1, Load::Upload, Path::Bypass), 3000);
        assert_eq!(plan.packets(1, Load::Idle, None), 600);
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
