//! Which parts of the log's entries are still needed, and how much that is.

use std::ops::Range;

/// A part of an entry that some group may still need: the batch that a block refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LivePart {
    /// The entry's raft index.
    pub index: u64,
    /// Where the part begins, in bytes from the start of the entry's payload.
    pub position: u32,
    /// How many bytes it has.
    pub length: u32,
}

/// How much of some entries is still needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Live {
    /// The bytes of all parts.
    pub bytes: u64,
    /// How many parts there are.
    pub parts: u64,
}

/// Adds up what is needed for many ranges of raft indexes in one walk over the blocks. The ranges' borders cut the
/// indexes into slots; a range is then the difference of two sums, however many others overlap with it.
#[derive(Debug)]
pub(super) struct LiveTally {
    /// Rising. Slot `n` lies before border `n`; one more slot lies after the last border.
    borders: Vec<u64>,
    slots: Vec<Live>,
}

impl LiveTally {
    pub(super) fn new(ranges: &[Range<u64>]) -> Self {
        let mut borders: Vec<_> = ranges.iter().flat_map(|range| [range.start, range.end]).collect();
        borders.sort_unstable();
        borders.dedup();
        let slots = vec![Live::default(); borders.len() + 1];
        Self { borders, slots }
    }

    /// Whether no border parts the entries from `first` to `last`, so that they can be added as one.
    pub(super) fn is_one_slot(&self, first: u64, last: u64) -> bool {
        self.slot(first) == self.slot(last)
    }

    /// Adds what is needed of the entry at `index`, and of others in the same slot.
    pub(super) fn add(&mut self, index: u64, live: Live) {
        let slot = self.slot(index);
        self.slots[slot].add(live);
    }

    /// One answer for each range, in order.
    pub(super) fn answer(self, ranges: &[Range<u64>]) -> Vec<Live> {
        let mut sum = Live::default();
        let below: Vec<_> = self
            .slots
            .iter()
            .map(|&live| {
                sum.add(live);
                sum
            })
            .collect();
        let below = |border| below[self.borders.partition_point(|other| *other < border)];
        let within = |range: &Range<u64>| {
            if range.is_empty() {
                return Live::default();
            }
            let (all, before) = (below(range.end), below(range.start));
            Live { bytes: all.bytes - before.bytes, parts: all.parts - before.parts }
        };
        ranges.iter().map(within).collect()
    }

    fn slot(&self, index: u64) -> usize {
        self.borders.partition_point(|border| *border <= index)
    }
}

impl Live {
    const fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.parts += other.parts;
    }
}
