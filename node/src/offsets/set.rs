//! A set of offsets that stores a run of them once.

use skein_proto::ids::Offset;

use super::{OffsetRange, OffsetRuns};

/// Offsets, kept as disjoint ranges that do not touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OffsetSet(OffsetRuns<()>);

impl OffsetSet {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self(OffsetRuns::new())
    }

    /// How many offsets are in the set.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether no offset is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many ranges there are, which is what memory and time are proportional to.
    #[must_use]
    pub fn range_count(&self) -> usize {
        self.0.run_count()
    }

    /// Whether `offset` is in the set.
    #[must_use]
    pub fn contains(&self, offset: Offset) -> bool {
        self.0.get(offset).is_some()
    }

    /// Whether any offset of `range` is in the set.
    #[must_use]
    pub fn intersects(&self, range: OffsetRange) -> bool {
        self.overlapping(range).next().is_some()
    }

    /// The lowest offset from `from` on that is not in the set.
    #[must_use]
    pub fn first_gap(&self, from: Offset) -> Offset {
        self.0.get(from).map_or(from, |(range, ())| range.end())
    }

    /// The offset after the highest one in the set.
    #[must_use]
    pub fn end(&self) -> Option<Offset> {
        self.0.end()
    }

    /// All ranges, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = OffsetRange> {
        self.0.iter().map(|(range, ())| range)
    }

    /// The parts of `range` that are in the set, lowest first.
    pub fn overlapping(&self, range: OffsetRange) -> impl Iterator<Item = OffsetRange> {
        self.0.overlapping(range).map(|(part, ())| part)
    }

    /// The parts of `range` that are not in the set, lowest first.
    pub fn gaps(&self, range: OffsetRange) -> impl Iterator<Item = OffsetRange> {
        self.0.gaps(range)
    }

    /// Puts all offsets of `range` into the set.
    pub fn insert(&mut self, range: OffsetRange) {
        self.0.insert(range, ());
    }

    /// Takes all offsets of `range` out of the set.
    pub fn remove(&mut self, range: OffsetRange) {
        self.0.remove(range);
    }

    /// Takes all offsets out of the set.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl FromIterator<OffsetRange> for OffsetSet {
    fn from_iter<I: IntoIterator<Item = OffsetRange>>(ranges: I) -> Self {
        Self(ranges.into_iter().map(|range| (range, ())).collect())
    }
}
