use std::{fmt, ops::RangeInclusive};

/// A set of ports: ascending, disjoint ranges that do not touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ports(Vec<RangeInclusive<u16>>);

impl Ports {
    pub(crate) fn new(ranges: impl IntoIterator<Item = RangeInclusive<u16>>) -> Self {
        let mut ranges: Vec<_> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
        ranges.sort_unstable_by_key(|range| *range.start());

        let mut merged: Vec<RangeInclusive<u16>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if *range.start() <= last.end().saturating_add(1) => {
                    *last = *last.start()..=*last.end().max(range.end());
                }
                _ => merged.push(range),
            }
        }
        Self(merged)
    }

    pub(crate) fn ranges(&self) -> &[RangeInclusive<u16>] {
        &self.0
    }

    pub(crate) fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }

    /// Whether all of these ports lie in `others`, taken together.
    pub(crate) fn covered_by<'a>(&self, others: impl Iterator<Item = &'a Self>) -> bool {
        let union = Self::new(others.flat_map(|ports| ports.0.iter().cloned()));
        self.0.iter().all(|range| {
            union.0.iter().any(|cover| cover.start() <= range.start() && range.end() <= cover.end())
        })
    }
}

/// `443, 16384-65535`
impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(", ")?;
            }
            match (range.start(), range.end()) {
                (start, end) if start == end => write!(f, "{start}")?,
                (start, end) => write!(f, "{start}-{end}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_what_overlaps_or_touches() {
        let ports = Ports::new([443..=443, 16384..=65535, 5349..=5349, 60000..=65535, 444..=450]);
        assert_eq!(ports.to_string(), "443-450, 5349, 16384-65535");
        assert!(ports.contains(450) && ports.contains(65535) && !ports.contains(451));
    }

    #[test]
    fn is_covered_by_parts() {
        let whole = Ports::new([10..=20]);
        let (low, high) = (Ports::new([1..=14]), Ports::new([15..=30]));
        assert!(whole.covered_by([&low, &high].into_iter()));
        assert!(!whole.covered_by([&low].into_iter()));
        assert!(!whole.covered_by([].into_iter()));
    }
}
