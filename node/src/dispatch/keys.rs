//! What a group can deliver of messages with keys: of each key one at a time, in order.

use std::collections::{BTreeMap, BTreeSet};

use skein_proto::ids::Offset;

use crate::{
    offsets::OffsetRange,
    planted::{Bug, is_planted},
};

/// How many messages of a queue that is ordered by key are looked at ahead of those that are settled, unless they have
/// to be watched anyway for when they are due or expire. Should that many of a few keys wait, others wait behind them.
/// Each takes some 60 bytes.
pub(super) const LOOKAHEAD_MESSAGES_MAX: u64 = 100_000;

/// Messages in lines, one for each slot that keys fall into.
#[derive(Debug, Default)]
pub(super) struct KeyLines {
    waiting: BTreeMap<Offset, Waits>,
    /// The same ones, line by line.
    lines: BTreeSet<(u16, Offset)>,
    /// The first of each line that nothing holds up.
    open: BTreeSet<Offset>,
    /// Messages that hold up their line: with a consumer, on their way back from one, or held back after that.
    out: BTreeMap<Offset, u16>,
    /// How many of them each line has. None of them 0.
    out_counts: BTreeMap<u16, u32>,
}

#[derive(Debug, Clone, Copy)]
struct Waits {
    slot: u16,
    attempts: u32,
}

impl KeyLines {
    /// How many messages wait in all lines.
    pub(super) fn len(&self) -> u64 {
        self.waiting.len() as u64
    }

    /// What comes next, with its attempts.
    pub(super) fn first(&self) -> Option<(Offset, u32)> {
        let &first = self.open.first()?;
        Some((first, self.waiting.get(&first)?.attempts))
    }

    /// The messages of a range that wait, with their attempts.
    pub(super) fn overlapping(&self, range: OffsetRange) -> impl Iterator<Item = (Offset, u32)> {
        self.waiting.range(offsets(range)).map(|(&offset, waits)| (offset, waits.attempts))
    }

    /// The messages of a range that wait and could go now, with their attempts.
    pub(super) fn open_in(&self, range: OffsetRange) -> impl Iterator<Item = (Offset, u32)> {
        let open = self.open.range(offsets(range));
        open.filter_map(|&offset| Some((offset, self.waiting.get(&offset)?.attempts)))
    }

    /// Puts messages into their line, where they wait. Whichever of them held it up does so no more.
    pub(super) fn insert(&mut self, slot: u16, range: OffsetRange, attempts: u32) {
        self.close(slot);
        for offset in each(range) {
            self.let_go(offset);
            self.waiting.insert(offset, Waits { slot, attempts });
            self.lines.insert((slot, offset));
        }
        self.open(slot);
    }

    /// Lets messages hold up their line, whether they wait there or not.
    pub(super) fn hold(&mut self, slot: u16, range: OffsetRange) {
        self.close(slot);
        for offset in each(range) {
            self.waiting.remove(&offset);
            self.lines.remove(&(slot, offset));
            if !is_planted(Bug::KeyNotHeld) && self.out.insert(offset, slot).is_none() {
                *self.out_counts.entry(slot).or_default() += 1;
            }
        }
        self.open(slot);
    }

    /// Takes a waiting message out, which holds up its line from now on. False when it does not wait.
    pub(super) fn take(&mut self, offset: Offset) -> bool {
        let Some(&Waits { slot, .. }) = self.waiting.get(&offset) else { return false };
        self.hold(slot, OffsetRange::new(offset, 1));
        true
    }

    /// The messages of a range that hold up their lines do so no more: they are done.
    pub(super) fn finish(&mut self, range: OffsetRange) {
        while let Some((&offset, &slot)) = self.out.range(offsets(range)).next() {
            self.let_go(offset);
            self.open(slot);
        }
    }

    /// Takes out the messages of a range that wait.
    pub(super) fn remove(&mut self, range: OffsetRange) {
        while let Some((&offset, &Waits { slot, .. })) = self.waiting.range(offsets(range)).next() {
            self.close(slot);
            self.waiting.remove(&offset);
            self.lines.remove(&(slot, offset));
            self.open(slot);
        }
    }

    /// The first message of a line is not to go.
    fn close(&mut self, slot: u16) {
        if let Some(first) = self.first_of(slot) {
            self.open.remove(&first);
        }
    }

    /// The first message of a line may go, if nothing holds it up.
    fn open(&mut self, slot: u16) {
        if let Some(first) = self.first_of(slot)
            && !self.out_counts.contains_key(&slot)
        {
            self.open.insert(first);
        }
    }

    fn first_of(&self, slot: u16) -> Option<Offset> {
        let line = (slot, Offset::ZERO)..=(slot, Offset::new(u64::MAX));
        self.lines.range(line).next().map(|&(_, offset)| offset)
    }

    fn let_go(&mut self, offset: Offset) {
        let Some(slot) = self.out.remove(&offset) else { return };
        if let Some(count) = self.out_counts.get_mut(&slot) {
            *count -= 1;
            if *count == 0 {
                self.out_counts.remove(&slot);
            }
        }
    }
}

fn offsets(range: OffsetRange) -> std::ops::Range<Offset> {
    range.first..range.end().max(range.first)
}

fn each(range: OffsetRange) -> impl Iterator<Item = Offset> {
    (0..range.count).map(move |n| range.first.plus(n))
}
