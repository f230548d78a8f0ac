//! A consumer group as its dispatcher sees it: what can be delivered, and whose turn it is.

use std::collections::BTreeSet;

use skein_proto::ids::{Offset, QueueId};

use super::{
    ConsumerId, GroupStart, Ready, Rules, Stored, Waiting, consumer::Consumer, lanes::Lanes, turns::Turns,
};
use crate::offsets::{OffsetRange, OffsetRuns, OffsetSet};

/// One consumer group. Every offset below `next_offset` is in exactly one state: leased, ready, delayed, fresh, or
/// none of the dispatcher's business (acked, given up, or on its way back to the core).
#[derive(Debug)]
pub(super) struct Group {
    rules: Rules,
    /// How often the core had moved the group when this began.
    pub(super) seek_count: u32,
    /// Everything from here on was never delivered, and may be in order.
    pub(super) fresh_from: Offset,
    pub(super) next_offset: Offset,
    /// Nothing is delivered before.
    pub(super) held_back_until_ms: u64,
    ready: Lanes,
    /// Deliverable later.
    delayed: OffsetRuns<Ready>,
    pub(super) leased: OffsetSet,
    /// All consumers, those that only keep leases included.
    pub(super) consumers: BTreeSet<ConsumerId>,
    /// How many of them take messages.
    pub(super) attached_count: usize,
    /// Those that may take messages. May contain some that cannot, which are skipped.
    pub(super) turns: Turns,
    /// Which one; only where it is only one.
    pub(super) active: Option<ConsumerId>,
}

/// Messages that could be delivered together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Work {
    pub(super) range: OffsetRange,
    /// The attempt that their delivery will be.
    pub(super) attempt: u32,
}

/// When messages want to be looked at again.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    /// Those that can be delivered then.
    pub(super) delays: Vec<(u64, OffsetRange)>,
    /// Those that may wait no longer then.
    pub(super) expiries: Vec<(u64, OffsetRange)>,
}

impl Group {
    /// A group that has nothing to deliver yet but what is fresh.
    pub(super) fn new(start: &GroupStart) -> Self {
        Self {
            rules: start.rules,
            seek_count: start.seek_count,
            fresh_from: start.fresh_from,
            next_offset: start.next_offset.max(start.fresh_from),
            held_back_until_ms: start.held_back_until_ms,
            ready: Lanes::new(start.rules.lower_percent),
            delayed: OffsetRuns::new(),
            leased: OffsetSet::new(),
            consumers: BTreeSet::new(),
            attached_count: 0,
            turns: Turns::default(),
            active: None,
        }
    }

    pub(super) const fn rules(&self) -> Rules {
        self.rules
    }

    pub(super) fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
        self.ready.set_lower_percent(rules.lower_percent);
    }

    /// Whether it may be this consumer's turn. Where only one is active, it waits until nobody else holds anything.
    pub(super) fn may_take(&self, id: ConsumerId, consumer: &Consumer) -> bool {
        !self.rules.single_active || (self.active == Some(id) && self.leased.len() == consumer.held().0)
    }

    /// What is to be delivered next: what is sorted or came back before what is fresh.
    pub(super) fn next_work(&self) -> Option<Work> {
        if let Some((range, attempts)) = self.ready.first() {
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
            self.ready.take_first(range);
        }
        self.leased.insert(range);
    }

    /// Leases what nobody holds of a range that an earlier leader delivered, up to so many messages. Gives the parts,
    /// and their attempts.
    pub(super) fn resume(&mut self, range: OffsetRange, count_max: u32) -> Vec<Work> {
        let range = range.intersect(OffsetRange::between(Offset::ZERO, self.next_offset));
        if !range.is_empty() && range.end() > self.fresh_from {
            // That leader delivered in order: what lies before it may have been delivered as well.
            self.ready.insert(OffsetRange::between(self.fresh_from, range.end()), 0, 0);
            self.fresh_from = range.end();
        }
        let mut left = u64::from(count_max);
        let mut free = Vec::new();
        for (run, attempts) in self.ready.overlapping(range) {
            let taken = OffsetRange::new(run.first, run.count.min(left));
            if taken.is_empty() {
                break;
            }
            left -= taken.count;
            free.push(Work { range: taken, attempt: attempts.saturating_add(1) });
        }
        for work in &free {
            // They may be in any lane.
            self.ready.remove(work.range);
            self.leased.insert(work.range);
        }
        free
    }

    /// Makes messages deliverable again, as far as they were delivered.
    pub(super) fn take_back(
        &mut self,
        queue: QueueId,
        range: OffsetRange,
        ready: Ready,
        stored: &dyn Stored,
    ) -> Alarms {
        let delivered = OffsetRange::between(Offset::ZERO, self.fresh_from);
        // Never what somebody holds: no message has two holders.
        let free: Vec<_> = self.leased.gaps(range.intersect(delivered)).collect();
        let mut alarms = Alarms::default();
        for part in free {
            self.ready.remove(part);
            self.delayed.remove(part);
            self.place(queue, part, ready, stored, &mut alarms);
        }
        alarms
    }

    /// Sorts what is fresh, unless it may be delivered in order.
    pub(super) fn sort(&mut self, queue: QueueId, stored: &dyn Stored) -> Alarms {
        let mut alarms = Alarms::default();
        if !stored.is_ordinary(queue) {
            let fresh = OffsetRange::between(self.fresh_from, self.next_offset);
            self.fresh_from = self.next_offset;
            self.place(queue, fresh, Ready { attempts: 0, not_before_ms: 0 }, stored, &mut alarms);
        }
        alarms
    }

    /// Sorts everything anew that nobody holds, since the queue's settings have changed.
    pub(super) fn sort_again(&mut self, queue: QueueId, stored: &dyn Stored) -> Alarms {
        let mut alarms = self.sort(queue, stored);
        let all = OffsetRange::between(Offset::ZERO, self.fresh_from);
        for (range, _) in self.ready.overlapping(all) {
            note_expiries(queue, range, stored, &mut alarms);
        }
        for (range, _) in self.delayed.iter() {
            note_expiries(queue, range, stored, &mut alarms);
        }
        alarms
    }

    /// Makes the delayed messages of a range deliverable whose time has come. Others of it may have gone meanwhile.
    pub(super) fn release(&mut self, queue: QueueId, range: OffsetRange, now_ms: u64, stored: &dyn Stored) {
        let delayed = self.delayed.overlapping(range).map(|(part, &ready)| (part, ready));
        let due: Vec<_> = delayed.filter(|(_, ready)| ready.not_before_ms <= now_ms).collect();
        for (part, Ready { attempts, .. }) in due {
            self.delayed.remove(part);
            for Waiting { range, priority, .. } in waiting_parts(queue, part, stored) {
                self.ready.insert(range, attempts, priority);
            }
        }
    }

    /// Takes out the messages of a range that nobody holds, and says which.
    pub(super) fn expire(&mut self, range: OffsetRange) -> Vec<OffsetRange> {
        let ready = self.ready.overlapping(range).into_iter().map(|(part, _)| part);
        let delayed = self.delayed.overlapping(range).map(|(part, _)| part);
        let expired: Vec<_> = ready.chain(delayed).collect();
        self.ready.remove(range);
        self.delayed.remove(range);
        expired
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

    /// Puts messages where they belong: with those that can be delivered, or those that wait.
    fn place(
        &mut self,
        queue: QueueId,
        range: OffsetRange,
        ready: Ready,
        stored: &dyn Stored,
        alarms: &mut Alarms,
    ) {
        for Waiting { range, deliver_at_ms, expires_at_ms, priority } in waiting_parts(queue, range, stored) {
            let not_before_ms = ready.not_before_ms.max(deliver_at_ms);
            if not_before_ms == 0 {
                self.ready.insert(range, ready.attempts, priority);
            } else {
                self.delayed.insert(range, Ready { not_before_ms, ..ready });
                alarms.delays.push((not_before_ms, range));
            }
            alarms.expiries.extend(expires_at_ms.map(|at_ms| (at_ms, range)));
        }
    }
}

fn note_expiries(queue: QueueId, range: OffsetRange, stored: &dyn Stored, alarms: &mut Alarms) {
    for Waiting { range, expires_at_ms, .. } in waiting_parts(queue, range, stored) {
        alarms.expiries.extend(expires_at_ms.map(|at_ms| (at_ms, range)));
    }
}

/// The parts of a range that wait for the same; without what is not kept, where that matters.
pub(super) fn waiting_parts(queue: QueueId, range: OffsetRange, stored: &dyn Stored) -> Vec<Waiting> {
    if stored.is_ordinary(queue) {
        return vec![Waiting::ordinary(range)];
    }
    let mut parts: Vec<Waiting> = Vec::new();
    let mut from = range.first;
    while let Some(next) = stored.waiting(queue, from)
        && next.range.first < range.end()
    {
        from = next.range.end();
        let part = Waiting { range: next.range.intersect(range), ..next };
        match parts.last_mut() {
            Some(last) if last.range.end() == part.range.first && part.waits_as(last) => {
                last.range.count += part.range.count;
            }
            _ => parts.push(part),
        }
    }
    parts
}
