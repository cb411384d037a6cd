use std::fmt;

use packet::{Dscp, protocol};

use crate::{Facts, Mark, Path, ports::Ports};

/// One line of the policy.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) name: String,
    /// Indices of the sets it is for.
    pub(crate) to: Vec<usize>,
    pub(crate) protocols: Protocols,
    /// `None`: all, and also packets that have none.
    pub(crate) ports: Option<Ports>,
    pub(crate) when: When,
    pub(crate) path: Path,
    pub(crate) mark: Mark,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Always,
    Ef,
    EfOrWebrtc,
}

/// A set of protocol classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Protocols(u8);

/// Why a rule does not apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mismatch {
    Protocol,
    Port,
    When,
}

impl Rule {
    /// Whether the rule applies to packets whose destination lies in one of its sets.
    pub(crate) fn check(&self, facts: &Facts) -> Result<(), Mismatch> {
        if !self.protocols.contains(Protocols::of(facts.protocol)) {
            return Err(Mismatch::Protocol);
        }
        if let Some(ports) = &self.ports
            && !facts.port.is_some_and(|port| ports.contains(port))
        {
            return Err(Mismatch::Port);
        }
        if !self.when.holds(facts) {
            return Err(Mismatch::When);
        }
        Ok(())
    }
}

impl When {
    fn holds(self, facts: &Facts) -> bool {
        match self {
            Self::Always => true,
            Self::Ef => facts.dscp == Dscp::EF,
            Self::EfOrWebrtc => facts.dscp == Dscp::EF || facts.content.is_webrtc(),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Ef => "ef",
            Self::EfOrWebrtc => "ef-or-webrtc",
        }
    }
}

impl Protocols {
    pub(crate) const TCP: Self = Self(1);
    pub(crate) const UDP: Self = Self(2);
    /// ICMP and ICMPv6.
    pub(crate) const ICMP: Self = Self(4);
    /// What has no class of its own.
    pub(crate) const OTHER: Self = Self(8);
    pub(crate) const ANY: Self = Self(15);
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const CLASSES: [Self; 4] = [Self::TCP, Self::UDP, Self::ICMP, Self::OTHER];

    pub(crate) fn of(number: u8) -> Self {
        match number {
            protocol::TCP => Self::TCP,
            protocol::UDP => Self::UDP,
            protocol::ICMP | protocol::ICMPV6 => Self::ICMP,
            _ => Self::OTHER,
        }
    }

    pub(crate) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// `tcp, udp`
impl fmt::Display for Protocols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ANY {
            return f.write_str("any");
        }
        let names = [(Self::TCP, "tcp"), (Self::UDP, "udp"), (Self::ICMP, "icmp")];
        let mut separator = "";
        for (_, name) in names.into_iter().filter(|(class, _)| self.contains(*class)) {
            write!(f, "{separator}{name}")?;
            separator = ", ";
        }
        Ok(())
    }
}
