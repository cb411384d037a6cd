use std::{
    collections::HashSet,
    hash::Hash,
    net::{Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

/// What rules of the same table look something up in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub name: String,
    pub elements: Elements,
}

/// Ranges that do not overlap, or single addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elements {
    V4(Vec<RangeInclusive<Ipv4Addr>>),
    V6(Vec<RangeInclusive<Ipv6Addr>>),
    Ports(Vec<RangeInclusive<u16>>),
    /// Can be changed while packets are looked up in it, which sets of ranges cannot.
    SingleV4(Vec<Ipv4Addr>),
    SingleV6(Vec<Ipv6Addr>),
}

impl Elements {
    /// nft's number for the type (`enum datatypes`, nftables/datatype.h).
    pub(super) fn data_type(&self) -> u32 {
        match self {
            Self::V4(_) | Self::SingleV4(_) => 7,
            Self::V6(_) | Self::SingleV6(_) => 8,
            Self::Ports(_) => 13,
        }
    }

    /// Bytes.
    pub(super) fn key_length(&self) -> u32 {
        match self {
            Self::V4(_) | Self::SingleV4(_) => 4,
            Self::V6(_) | Self::SingleV6(_) => 16,
            Self::Ports(_) => 2,
        }
    }

    pub(super) fn are_ranges(&self) -> bool {
        match self {
            Self::V4(_) | Self::V6(_) | Self::Ports(_) => true,
            Self::SingleV4(_) | Self::SingleV6(_) => false,
        }
    }

    /// The single addresses that are not in `other`.
    pub(super) fn without(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::SingleV4(these), Self::SingleV4(others)) => Self::SingleV4(difference(these, others)),
            (Self::SingleV6(these), Self::SingleV6(others)) => Self::SingleV6(difference(these, others)),
            _ => self.clone(),
        }
    }

    /// Each range's first key, and the one behind its last; `None` if the last is the highest there is, or the first alone.
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
            Self::SingleV4(addresses) => {
                addresses.iter().map(|address| (address.octets().to_vec(), None)).collect()
            }
            Self::SingleV6(addresses) => {
                addresses.iter().map(|address| (address.octets().to_vec(), None)).collect()
            }
        }
    }
}

fn difference<A: Copy + Eq + Hash>(these: &[A], others: &[A]) -> Vec<A> {
    let others: HashSet<&A> = others.iter().collect();
    these.iter().filter(|address| !others.contains(address)).copied().collect()
}
