//! Which messages a consumer holds: delivered to it, and not settled.

use std::ops::Range;

use rangemap::RangeSet;
use skein_proto::{limits, node::OffsetRange};

/// Ranges that are kept: no more messages than this are delivered to one consumer and not settled. Of more, some were
/// dropped by whoever took them, and their leases have run out.
const RANGES_MAX: usize = limits::CREDIT_MESSAGES_MAX as usize;

/// A set of offsets.
#[derive(Debug, Default, Clone)]
pub(super) struct Held(RangeSet<u64>);

impl Held {
    pub(super) fn of(ranges: &[OffsetRange]) -> Self {
        Self(ranges.iter().map(offsets).filter(|range| !range.is_empty()).collect())
    }

    pub(super) fn insert(&mut self, range: &OffsetRange) {
        let range = offsets(range);
        if !range.is_empty() {
            self.0.insert(range);
        }
        if self.0.len() > RANGES_MAX
            && let Some(lowest) = self.0.first().cloned()
        {
            self.0.remove(lowest);
        }
    }

    /// Forgets what the other one has.
    pub(super) fn subtract(&mut self, other: &Self) {
        other.0.iter().for_each(|range| self.0.remove(range.clone()));
    }

    /// Forgets what the other one has not.
    pub(super) fn retain(&mut self, other: &Self) {
        self.0 = self.0.intersection(&other.0).collect();
    }

    pub(super) fn remove(&mut self, range: &OffsetRange) {
        let range = offsets(range);
        if !range.is_empty() {
            self.0.remove(range);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all of a range is held.
    pub(super) fn has_all(&self, range: &OffsetRange) -> bool {
        self.0.gaps(&offsets(range)).next().is_none()
    }

    /// The parts of a range that are held, and those that are not.
    pub(super) fn split(&self, range: &OffsetRange) -> (Vec<OffsetRange>, Vec<OffsetRange>) {
        let whole = offsets(range);
        if whole.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let within = |part: &Range<u64>| part.start.max(whole.start)..part.end.min(whole.end);
        let held = self.0.overlapping(&whole).map(|part| message(within(part)));
        let missing = self.0.gaps(&whole).map(message);
        (held.collect(), missing.collect())
    }

    /// All of it, as a node is told; of too many ranges the newest.
    pub(super) fn ranges(&self) -> Vec<OffsetRange> {
        let mut ranges: Vec<_> =
            self.0.iter().rev().take(limits::RESUME_RANGES_MAX).cloned().map(message).collect();
        ranges.reverse();
        ranges
    }
}

fn offsets(range: &OffsetRange) -> Range<u64> {
    range.first..range.first.saturating_add(u64::from(range.count))
}

/// Ranges are no longer than what a node can have delivered, which its credit bounds.
fn message(range: Range<u64>) -> OffsetRange {
    OffsetRange { first: range.start, count: u32::try_from(range.end - range.start).unwrap_or(u32::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, count: u32) -> OffsetRange {
        OffsetRange { first, count }
    }

    #[test]
    fn a_range_is_split_into_what_is_held_and_what_is_not() {
        let mut held = Held::of(&[range(5, 5), range(20, 1)]);
        held.insert(&range(10, 2));
        held.remove(&range(6, 1));
        assert_eq!(held.ranges(), [range(5, 1), range(7, 5), range(20, 1)]);
        assert!(held.has_all(&range(8, 4)) && !held.has_all(&range(8, 5)));
        let (kept, missing) = held.split(&range(4, 5));
        assert_eq!((kept, missing), (vec![range(5, 1), range(7, 2)], vec![range(4, 1), range(6, 1)]));
        assert_eq!(held.split(&range(7, 0)), (Vec::new(), Vec::new()));
        held.retain(&Held::of(&[range(0, 6), range(9, 20)]));
        assert_eq!(held.ranges(), [range(5, 1), range(9, 3), range(20, 1)]);
        held.subtract(&Held::of(&[range(0, 10), range(11, 3)]));
        assert_eq!(held.ranges(), [range(10, 1), range(20, 1)]);
    }

    #[test]
    fn what_nobody_settles_is_forgotten_in_the_end() {
        let mut held = Held::default();
        for message in 0..RANGES_MAX as u64 + 2 {
            held.insert(&range(message * 2, 1));
        }
        assert!(!held.has_all(&range(2, 1)) && held.has_all(&range(4, 1)));
    }
}
