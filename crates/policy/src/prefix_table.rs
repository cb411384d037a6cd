//! Longest-prefix match: all prefixes, flattened into disjoint ranges that are searched by bisection.

use ipnet::IpNet;

/// Which prefix, and which set, a range of addresses belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) prefix: u32,
    pub(crate) set: u32,
}

/// The ranges of one address family, and an index whose size follows their number: it cuts the space between the first
/// and the last range into equal buckets, so that a search sees a few ranges only.
#[derive(Debug)]
pub(crate) struct PrefixTable<A> {
    ranges: Vec<Range<A>>,
    /// For each bucket the range that holds its first address; one more at the end.
    buckets: Vec<u32>,
    shift: u32,
}

/// From `start` up to the next range.
#[derive(Clone, Copy, Debug)]
struct Range<A> {
    start: A,
    owner: Option<Owner>,
}

impl<A: Copy + Ord + Into<u128> + TryFrom<u128>> PrefixTable<A> {
    /// Builds the table of one family from distinct prefixes, each with its set.
    pub(crate) fn new(prefixes: impl IntoIterator<Item = (IpNet, Owner)>) -> Self {
        let ranges: Vec<Range<A>> = flatten(prefixes.into_iter().collect())
            .into_iter()
            .filter_map(|(start, owner)| Some(Range { start: A::try_from(start).ok()?, owner }))
            .collect();
        let (buckets, shift) = index(&ranges);
        Self { ranges, buckets, shift }
    }

    pub(crate) fn lookup(&self, address: A) -> Option<Owner> {
        let offset = address.into().checked_sub(self.ranges.first()?.start.into())?;
        let last = self.buckets.len().checked_sub(2)?;
        let bucket = usize::try_from(offset >> self.shift).map_or(last, |bucket| bucket.min(last));
        let (&from, &to) = (self.buckets.get(bucket)?, self.buckets.get(bucket + 1)?);
        let ranges = self.ranges.get(from as usize..=to as usize)?;
        let at = ranges.partition_point(|range| range.start <= address).checked_sub(1)?;
        ranges.get(at)?.owner
    }

    /// The first and last address of each range with its owner, ascending.
    pub(crate) fn owned(&self) -> impl Iterator<Item = (A, A, Owner)> {
        let highest = u128::MAX >> (u128::BITS - 8 * size_of::<A>() as u32);
        let ends = self.ranges.iter().skip(1).map(|next| next.start.into() - 1).chain([highest]);
        self.ranges
            .iter()
            .zip(ends)
            .filter_map(|(range, end)| Some((range.start, A::try_from(end).ok()?, range.owner?)))
    }

    /// The sets that own at least one address.
    pub(crate) fn sets(&self) -> impl Iterator<Item = u32> {
        self.ranges.iter().filter_map(|range| Some(range.owner?.set))
    }
}

/// Range starts, ascending, each with the longest prefix from there on.
fn flatten(mut prefixes: Vec<(IpNet, Owner)>) -> Vec<(u128, Option<Owner>)> {
    prefixes.sort_unstable_by_key(|(net, _)| (first(net), net.prefix_len()));
    let mut ranges = Vec::with_capacity(2 * prefixes.len());
    let mut open: Vec<(u128, Owner)> = Vec::new();
    for (net, owner) in prefixes {
        close(&mut ranges, &mut open, Some(first(&net)));
        put(&mut ranges, first(&net), Some(owner));
        open.push((last(&net), owner));
    }
    close(&mut ranges, &mut open, None);
    ranges
}

/// Ends the open prefixes that lie wholly below `until` (all, if `None`); what follows each belongs to the one around it.
fn close(ranges: &mut Vec<(u128, Option<Owner>)>, open: &mut Vec<(u128, Owner)>, until: Option<u128>) {
    while let Some(&(end, _)) = open.last()
        && until.is_none_or(|until| end < until)
    {
        open.pop();
        if let Some(next) = end.checked_add(1) {
            put(ranges, next, open.last().map(|(_, owner)| *owner));
        }
    }
}

fn put(ranges: &mut Vec<(u128, Option<Owner>)>, start: u128, owner: Option<Owner>) {
    if ranges.last().is_some_and(|(last, _)| *last == start) {
        ranges.pop();
    }
    ranges.push((start, owner));
}

fn index<A: Copy + Ord + Into<u128>>(ranges: &[Range<A>]) -> (Vec<u32>, u32) {
    let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else { return (Vec::new(), 0) };
    let base = first.start.into();
    let span = last.start.into() - base;
    let bits = u128::BITS - span.leading_zeros();
    let shift = bits.saturating_sub(ranges.len().ilog2() + 1);

    let holding = |start: u128| ranges.partition_point(|range| range.start.into() <= start).saturating_sub(1);
    let buckets = (0..=span >> shift).map(|bucket| holding(base + (bucket << shift)));
    let end = std::iter::once(ranges.len() - 1);
    (buckets.chain(end).map(|at| at as u32).collect(), shift)
}

fn first(net: &IpNet) -> u128 {
    match net {
        IpNet::V4(net) => net.network().to_bits().into(),
        IpNet::V6(net) => net.network().to_bits(),
    }
}

fn last(net: &IpNet) -> u128 {
    match net {
        IpNet::V4(net) => net.broadcast().to_bits().into(),
        IpNet::V6(net) => net.broadcast().to_bits(),
    }
}
