use std::{fmt, str::FromStr};

/// A differentiated services code point, 0–63 (RFC 2474).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dscp(u8);

/// The TOS or traffic-class byte: DSCP in the upper six bits, ECN (RFC 3168) in the lower two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tos(pub u8);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no DSCP: give a name (ef, af11–af43, cs0–cs7, va, le) or a number from 0 to 63")]
pub struct ParseDscpError(String);

impl Dscp {
    pub const DEFAULT: Self = Self(0);
    pub const CS3: Self = Self(24);
    pub const AF41: Self = Self(34);
    pub const EF: Self = Self(46);

    /// `None` above 63.
    pub const fn new(value: u8) -> Option<Self> {
        if value < 64 { Some(Self(value)) } else { None }
    }

    pub const fn value(self) -> u8 {
        self.0
    }

    /// AF41, AF42 or AF43: interactive video (RFC 4594).
    pub const fn is_af4x(self) -> bool {
        matches!(self.0, 34 | 36 | 38)
    }
}

impl Tos {
    pub const fn dscp(self) -> Dscp {
        Dscp(self.0 >> 2)
    }

    pub const fn with_dscp(self, dscp: Dscp) -> Self {
        Self(dscp.0 << 2 | self.0 & 3)
    }
}

/// A name in any case, or a number from 0 to 63.
impl FromStr for Dscp {
    type Err = ParseDscpError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = text.to_ascii_lowercase();
        let value = match name.as_bytes() {
            b"ef" => Some(46),
            b"va" => Some(44),
            b"le" => Some(1),
            [b'c', b's', class @ b'0'..=b'7'] => Some((class - b'0') * 8),
            // RFC 2597 §6.
            [b'a', b'f', class @ b'1'..=b'4', drop @ b'1'..=b'3'] => {
                Some((class - b'0') * 8 + (drop - b'0') * 2)
            }
            [b'0'..=b'9', ..] => name.parse().ok(),
            _ => None,
        };
        value.and_then(Self::new).ok_or_else(|| ParseDscpError(text.to_owned()))
    }
}

/// The name where there is one, else the number.
impl fmt::Display for Dscp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (class, low) = (self.0 / 8, self.0 % 8);
        let name = match (class, low) {
            (5, 6) => "ef".to_owned(),
            (5, 4) => "va".to_owned(),
            (0, 1) => "le".to_owned(),
            (_, 0) => format!("cs{class}"),
            (1..=4, 2 | 4 | 6) => format!("af{class}{}", low / 2),
            _ => self.0.to_string(),
        };
        f.pad(&name)
    }
}
