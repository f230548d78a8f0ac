//! Where records lie in one segment: entries, which follow one another, and kept parts of older ones, which do not.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
};

use skein_proto::ids::ShardId;

/// How many ranges of indexes are told apart in what a segment keeps of older entries. Two segments' worth of remains
/// of a shard are usually as many ranges; the more there are, the less a segment is asked for what it does not have.
const KEPT_RANGES_MAX: usize = 8;

/// Where a segment's records lie, by shard.
pub(super) type SegmentPositions = BTreeMap<ShardId, ShardPositions>;

/// Where one shard's records lie in one segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ShardPositions {
    pub(super) entries: Positions,
    pub(super) kept: KeptPositions,
}

/// Where a record starts in its segment, and how long its payload is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) offset: u32,
    pub(super) payload_bytes: u32,
}

/// Positions of consecutive entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Positions {
    pub(super) first: u64,
    pub(super) list: VecDeque<Position>,
}

impl Positions {
    pub(super) fn get(&self, index: u64) -> Option<Position> {
        self.list.get(usize::try_from(index.checked_sub(self.first)?).ok()?).copied()
    }

    pub(super) fn end(&self) -> u64 {
        self.first.saturating_add(self.list.len() as u64)
    }

    /// Adds the entry that follows; any, when there is none before it.
    pub(super) fn push(&mut self, index: u64, position: Position) {
        if self.list.is_empty() {
            self.first = index;
        }
        assert_eq!(self.end(), index, "the outline was asked first");
        self.list.push_back(position);
    }

    /// Adds an entry in place of what was there from its index on; in place of everything, when it does not follow.
    pub(super) fn replace(&mut self, index: u64, position: Position) {
        self.truncate(index);
        if self.end() != index {
            self.clear();
        }
        self.push(index, position);
    }

    pub(super) fn truncate(&mut self, first_removed: u64) {
        let kept = first_removed.saturating_sub(self.first);
        self.list.truncate(usize::try_from(kept).unwrap_or(usize::MAX));
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
    }

    /// How many bytes the payloads have.
    pub(super) fn payload_bytes(&self) -> u64 {
        self.list.iter().map(|position| u64::from(position.payload_bytes)).sum()
    }
}

/// Positions of kept parts, by the index of the entry that they are of: one record for each, the last that was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct KeptPositions {
    list: Vec<(u64, Position)>,
}

impl KeptPositions {
    pub(super) fn insert(&mut self, index: u64, position: Position) {
        match self.list.binary_search_by_key(&index, |(index, _)| *index) {
            Ok(at) => self.list[at].1 = position,
            // Nearly always at the end: they come by rising index.
            Err(at) => self.list.insert(at, (index, position)),
        }
    }

    /// All of them, by rising index, from this index on.
    pub(super) fn from(&self, index: u64) -> impl Iterator<Item = (u64, Position)> {
        let at = self.list.partition_point(|(kept, _)| *kept < index);
        self.list[at..].iter().copied()
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (u64, Position)> {
        self.list.iter().copied()
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }
}

/// Which indexes a segment may have kept parts of: a few ranges that hold them all, and others too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct KeptRanges {
    /// Rising, and not touching.
    list: Vec<Range<u64>>,
}

impl KeptRanges {
    pub(super) fn of(positions: &KeptPositions) -> Self {
        let mut ranges = Self::default();
        positions.iter().for_each(|(index, _)| ranges.insert(index));
        ranges
    }

    pub(super) fn contains(&self, index: u64) -> bool {
        let at = self.list.partition_point(|range| range.end <= index);
        self.list.get(at).is_some_and(|range| range.start <= index)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.list.iter().cloned()
    }

    pub(super) fn insert(&mut self, index: u64) {
        let at = self.list.partition_point(|range| range.end < index);
        match self.list.get_mut(at) {
            Some(range) if range.start <= index && index <= range.end => range.end = range.end.max(index + 1),
            Some(range) if index + 1 == range.start => range.start = index,
            _ => self.list.insert(at, index..index + 1),
        }
        if let Some(next) = self.list.get(at + 1).cloned()
            && next.start <= self.list[at].end
        {
            self.list[at].end = next.end;
            self.list.remove(at + 1);
        }
        if self.list.len() > KEPT_RANGES_MAX {
            self.join_nearest();
        }
    }

    fn join_nearest(&mut self) {
        let gap = |at: &usize| self.list[at + 1].start - self.list[*at].end;
        if let Some(at) = (0..self.list.len() - 1).min_by_key(gap) {
            self.list[at].end = self.list[at + 1].end;
            self.list.remove(at + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_hold_all_that_was_inserted(indexes in prop::collection::vec(0u64..300, 0..100)) {
            let mut ranges = KeptRanges::default();
            for index in &indexes {
                ranges.insert(*index);
                prop_assert!(ranges.list.len() <= KEPT_RANGES_MAX);
                prop_assert!(ranges.list.is_sorted_by(|one, next| one.end < next.start));
            }
            prop_assert!(indexes.iter().all(|index| ranges.contains(*index)));
            let ends = ranges.list.iter().flat_map(|range| [range.start, range.end - 1]);
            prop_assert!(ends.collect::<Vec<_>>().iter().all(|index| indexes.contains(index)));
        }
    }

    #[test]
    fn runs_stay_apart_while_there_is_room() {
        let mut ranges = KeptRanges::default();
        (10..20).chain(50..60).chain([20]).for_each(|index| ranges.insert(index));
        assert_eq!(ranges.list, [10..21, 50..60]);
    }
}
