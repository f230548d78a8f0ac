//! A consumer group as its dispatcher sees it: what can be delivered, and whose turn it is.

use std::collections::{BTreeSet, VecDeque};

use skein_proto::ids::Offset;

use super::{ConsumerId, GroupStart, Ready};
use crate::offsets::{OffsetRange, OffsetRuns, OffsetSet};

/// One consumer group. Every offset below `next_offset` is in exactly one state: leased, ready, delayed, fresh, or
/// none of the dispatcher's business (acked, given up, or on its way back to the core).
#[derive(Debug)]
pub(super) struct Group {
    pub(super) lease_ms: u32,
    /// Everything from here on was never delivered.
    pub(super) fresh_from: Offset,
    pub(super) next_offset: Offset,
    /// Nothing is delivered before.
    pub(super) held_back_until_ms: u64,
    /// Deliverable now, with the attempts so far.
    ready: OffsetRuns<u32>,
    /// Deliverable later.
    delayed: OffsetRuns<Ready>,
    pub(super) leased: OffsetSet,
    /// All consumers, those that only keep leases included.
    pub(super) consumers: BTreeSet<ConsumerId>,
    /// How many of them take messages.
    pub(super) attached_count: usize,
    /// Those that may take messages, in the order of their turns. May contain some that cannot, which are skipped.
    pub(super) turns: VecDeque<ConsumerId>,
}

/// Messages that could be delivered together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Work {
    pub(super) range: OffsetRange,
    /// The attempt that their delivery will be.
    pub(super) attempt: u32,
}

impl Group {
    /// A group, and when its delayed messages want to be asked for.
    pub(super) fn new(start: &GroupStart) -> (Self, Vec<(u64, Offset)>) {
        let mut group = Self {
            lease_ms: start.lease_ms,
            fresh_from: start.fresh_from,
            next_offset: start.next_offset.max(start.fresh_from),
            held_back_until_ms: start.held_back_until_ms,
            ready: OffsetRuns::new(),
            delayed: OffsetRuns::new(),
            leased: OffsetSet::new(),
            consumers: BTreeSet::new(),
            attached_count: 0,
            turns: VecDeque::new(),
        };
        let delays = start.ready.iter().flat_map(|(range, &ready)| group.take_back(range, ready)).collect();
        (group, delays)
    }

    /// What is to be delivered next: what came back before what is fresh.
    pub(super) fn next_work(&self) -> Option<Work> {
        if let Some((range, &attempts)) = self.ready.first() {
            return Some(Work { range, attempt: attempts.saturating_add(1) });
        }
        let range = OffsetRange::between(self.fresh_from, self.next_offset);
        (!range.is_empty()).then_some(Work { range, attempt: 1 })
    }

    /// How many messages are deliverable now.
    pub(super) fn ready_count(&self) -> u64 {
        self.ready.len() + self.next_offset.since(self.fresh_from)
    }

    pub(super) const fn delayed_count(&self) -> u64 {
        self.delayed.len()
    }

    /// Takes note that the first messages of the next work, `range`, were delivered.
    pub(super) fn lease(&mut self, range: OffsetRange) {
        if range.first == self.fresh_from {
            self.fresh_from = range.end();
        } else {
            self.ready.remove(range);
        }
        self.leased.insert(range);
    }

    /// Leases what nobody holds of a range that an earlier leader delivered, up to so many messages. Gives the parts,
    /// and their attempts.
    pub(super) fn resume(&mut self, range: OffsetRange, count_max: u32) -> Vec<Work> {
        let range = range.intersect(OffsetRange::between(Offset::ZERO, self.next_offset));
        if !range.is_empty() && range.end() > self.fresh_from {
            // That leader delivered in order: what lies before it may have been delivered as well.
            self.ready.insert(OffsetRange::between(self.fresh_from, range.end()), 0);
            self.fresh_from = range.end();
        }
        let mut left = u64::from(count_max);
        let mut free = Vec::new();
        for (run, &attempts) in self.ready.overlapping(range) {
            let run = run.intersect(range);
            let taken = OffsetRange::new(run.first, run.count.min(left));
            if taken.is_empty() {
                break;
            }
            left -= taken.count;
            free.push(Work { range: taken, attempt: attempts.saturating_add(1) });
        }
        for work in &free {
            self.lease(work.range);
        }
        free
    }

    /// Makes messages deliverable again. Says when delayed ones want to be asked for.
    pub(super) fn take_back(&mut self, range: OffsetRange, ready: Ready) -> Vec<(u64, Offset)> {
        let delivered = OffsetRange::between(Offset::ZERO, self.fresh_from);
        // Never what somebody holds: no message has two holders.
        let free: Vec<_> = self.leased.gaps(range.intersect(delivered)).collect();
        let mut delays = Vec::new();
        for part in free {
            self.ready.remove(part);
            self.delayed.remove(part);
            if ready.not_before_ms == 0 {
                self.ready.insert(part, ready.attempts);
            } else {
                self.delayed.insert(part, ready);
                delays.push((ready.not_before_ms, part.first));
            }
        }
        delays
    }

    /// Makes the delayed run that holds `offset` deliverable, if its time has come.
    pub(super) fn release(&mut self, offset: Offset, now_ms: u64) {
        if let Some((range, &Ready { attempts, not_before_ms })) = self.delayed.get(offset)
            && not_before_ms <= now_ms
        {
            self.delayed.remove(range);
            self.ready.insert(range, attempts);
        }
    }

    /// Forgets messages of the next work, which are not kept: those below `kept_from`, and in any case the first.
    pub(super) fn drop_missing(&mut self, first: Offset, kept_from: Offset) {
        if kept_from > first {
            self.purge(kept_from);
        } else if first == self.fresh_from {
            self.fresh_from = first.plus(1);
        } else {
            self.ready.remove(OffsetRange::new(first, 1));
        }
    }

    /// Forgets what can be delivered below an offset. Leases go on: their acks are welcome, and change nothing.
    pub(super) fn purge(&mut self, below: Offset) {
        let purged = OffsetRange::between(Offset::ZERO, below);
        self.ready.remove(purged);
        self.delayed.remove(purged);
        self.fresh_from = self.fresh_from.max(below);
        self.next_offset = self.next_offset.max(below);
    }
}
