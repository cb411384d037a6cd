use std::{
    net::{Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

/// Ranges in which rules of the same table look something up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub name: String,
    pub elements: Elements,
}

/// Ranges that do not overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elements {
    V4(Vec<RangeInclusive<Ipv4Addr>>),
    V6(Vec<RangeInclusive<Ipv6Addr>>),
    Ports(Vec<RangeInclusive<u16>>),
}

impl Elements {
    /// nft's number for the type (`enum datatypes`, nftables/datatype.h).
    pub(super) fn data_type(&self) -> u32 {
        match self {
            Self::V4(_) => 7,
            Self::V6(_) => 8,
            Self::Ports(_) => 13,
        }
    }

    /// Bytes.
    pub(super) fn key_length(&self) -> u32 {
        match self {
            Self::V4(_) => 4,
            Self::V6(_) => 16,
            Self::Ports(_) => 2,
        }
    }

    /// Each range's first key, and the one behind its last; `None` if the last is the highest there is.
    pub(super) fn ranges(&self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        match self {
            Self::V4(ranges) => {
                let key = |address: u32| address.to_be_bytes().to_vec();
                let behind = |last: &Ipv4Addr| last.to_bits().checked_add(1).map(key);
                ranges.iter().map(|range| (key(range.start().to_bits()), behind(range.end()))).collect()
            }
            Self::V6(ranges) => {
                let key = |address: u128| address.to_be_bytes().to_vec();
                let behind = |last: &Ipv6Addr| last.to_bits().checked_add(1).map(key);
                ranges.iter().map(|range| (key(range.start().to_bits()), behind(range.end()))).collect()
            }
            Self::Ports(ranges) => {
                let key = |port: u16| port.to_be_bytes().to_vec();
                let behind = |last: &u16| last.checked_add(1).map(key);
                ranges.iter().map(|range| (key(*range.start()), behind(range.end()))).collect()
            }
        }
    }
}
