use packet::{Dscp, Tos};
use serde::Serialize;

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    Tunnel,
    Bypass,
    Reject,
}

impl Path {
    /// As in a configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Bypass => "bypass",
            Self::Reject => "reject",
        }
    }
}

/// Which rule of a snapshot decided; [`crate::Snapshot::rule_name`] names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleId(pub(crate) u16);

/// What a rule does to the DSCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    Keep,
    /// Given to packets marked neither EF nor AF4x.
    Voice(Dscp),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub path: Path,
    pub rule: RuleId,
    pub mark: Mark,
}

impl Mark {
    /// The TOS a packet leaves with; ECN is kept.
    pub fn apply(self, tos: Tos) -> Tos {
        match self {
            Self::Voice(dscp) if tos.dscp() != Dscp::EF && !tos.dscp().is_af4x() => tos.with_dscp(dscp),
            Self::Keep | Self::Voice(_) => tos,
        }
    }
}
