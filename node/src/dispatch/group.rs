//! A consumer group as its dispatcher sees it: what can be delivered, and whose turn it is.

use std::collections::{BTreeMap, BTreeSet};

use skein_proto::ids::{Offset, QueueId};

use super::{
    ConsumerId, GroupStart, Ready, Rules, Stored, Waiting,
    alarms::Alarms,
    consumer::Consumer,
    keys::{KeyLines, LOOKAHEAD_MESSAGES_MAX},
    lanes::Lanes,
    turns::Turns,
};
use crate::{
    offsets::{OffsetRange, OffsetRuns, OffsetSet},
    planted::{Bug, is_planted},
};

/// One consumer group. Every offset below `next_offset` is in exactly one state: leased, ready, in its key's line,
/// delayed, fresh, or none of the dispatcher's business (acked, given up, or on its way back to the core).
#[derive(Debug)]
pub(super) struct Group {
    rules: Rules,
    /// How often the core had moved the group when this began.
    pub(super) seek_count: u32,
    /// Everything from here on was never delivered, and may be in order, or is to be sorted first.
    pub(super) fresh_from: Offset,
    pub(super) next_offset: Offset,
    /// Nothing is delivered before.
    pub(super) held_back_until_ms: u64,
    /// Those that have come back, by who they were, ...
    pub(super) back: BTreeMap<ConsumerId, ConsumerId>,
    /// ... and how many there were with an earlier leader, as those say.
    pub(super) back_expected: usize,
    ready: Lanes,
    /// Those whose order by key matters.
    keys: KeyLines,
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

impl Group {
    /// A group that has nothing to deliver yet but what is fresh.
    pub(super) fn new(start: &GroupStart) -> Self {
        Self {
            rules: start.rules,
            seek_count: start.seek_count,
            fresh_from: start.fresh_from,
            next_offset: start.next_offset.max(start.fresh_from),
            held_back_until_ms: start.held_back_until_ms,
            back: BTreeMap::new(),
            back_expected: 0,
            ready: Lanes::new(start.rules.lower_percent),
            keys: KeyLines::default(),
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

    /// Whether it may be this consumer's turn. Where only one is active, it waits until nobody else holds anything.
    pub(super) fn may_take(&self, id: ConsumerId, consumer: &Consumer) -> bool {
        !self.rules.single_active
            || is_planted(Bug::AllActive)
            || (self.active == Some(id) && self.leased.len() == consumer.held().0)
    }

    /// What is to be delivered next: what is sorted or came back before what is fresh.
    pub(super) fn next_work(&self) -> Option<Work> {
        let ready = self.ready.first();
        if let Some((first, attempts)) = self.keys.first()
            && ready.is_none_or(|(range, _)| first < range.first)
        {
            return Some(Work { range: OffsetRange::new(first, 1), attempt: attempts.saturating_add(1) });
        }
        if let Some((range, attempts)) = ready {
            return Some(Work { range, attempt: attempts.saturating_add(1) });
        }
        let range = OffsetRange::between(self.fresh_from, self.next_offset);
        (!range.is_empty() && !self.rules.by_key).then_some(Work { range, attempt: 1 })
    }

    /// Whether there are messages that could be sorted, and were not.
    pub(super) fn could_look_further(&self) -> bool {
        self.rules.by_key && self.fresh_from < self.next_offset
    }

    /// How many messages are deliverable now, or will be once those before them are settled.
    pub(super) fn ready_count(&self) -> u64 {
        self.ready.len() + self.keys.len() + self.next_offset.since(self.fresh_from)
    }

    pub(super) const fn delayed_count(&self) -> u64 {
        self.delayed.len()
    }

    /// Takes note that the first messages of the next work, `range`, were delivered.
    pub(super) fn lease(&mut self, range: OffsetRange) {
        if range.first == self.fresh_from {
            self.fresh_from = range.end();
        } else if !self.keys.take(range.first) {
            self.ready.take_first(range);
        }
        self.leased.insert(range);
    }

    /// Takes note that messages are done: those that follow with the same key are to come.
    pub(super) fn finish(&mut self, range: OffsetRange) {
        self.keys.finish(range);
    }

    /// Leases what nobody holds of a range that an earlier leader delivered, up to so many messages. Gives the parts,
    /// and their attempts. Of a key that is only the first one: what comes before it was not done after all.
    pub(super) fn resume(&mut self, range: OffsetRange, count_max: u32) -> Vec<Work> {
        // Where keys matter, what was not looked at yet has to be looked at before anybody gets it.
        let end = if self.rules.by_key { self.fresh_from } else { self.next_offset };
        let range = range.intersect(OffsetRange::between(Offset::ZERO, end));
        if !range.is_empty() && range.end() > self.fresh_from {
            // That leader delivered in order: what lies before it may have been delivered as well.
            self.ready.insert(OffsetRange::between(self.fresh_from, range.end()), 0, 0);
            self.fresh_from = range.end();
        }
        let mut left = u64::from(count_max);
        let mut free = Vec::new();
        let keyed =
            self.keys.open_in(range).map(|(offset, attempts)| (OffsetRange::new(offset, 1), attempts));
        for (run, attempts) in self.ready.overlapping(range).into_iter().chain(keyed) {
            let taken = OffsetRange::new(run.first, run.count.min(left));
            if taken.is_empty() {
                break;
            }
            left -= taken.count;
            free.push(Work { range: taken, attempt: attempts.saturating_add(1) });
        }
        for work in &free {
            // They may be in any lane.
            if !self.keys.take(work.range.first) {
                self.ready.remove(work.range);
            }
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
            self.keys.remove(part);
            self.place(queue, part, ready, stored, &mut alarms);
        }
        alarms
    }

    /// Sorts what is fresh, unless it may be delivered in order; no more than is needed where only keys matter.
    pub(super) fn sort(&mut self, queue: QueueId, stored: &dyn Stored) -> Alarms {
        let room = LOOKAHEAD_MESSAGES_MAX.saturating_sub(self.keys.len());
        let mut alarms = Alarms::default();
        let end = match (stored.is_ordinary(queue), self.rules.by_key) {
            (true, false) => self.fresh_from,
            (true, true) => self.next_offset.min(OffsetRange::new(self.fresh_from, room).end()),
            (false, _) => self.next_offset,
        };
        let fresh = OffsetRange::between(self.fresh_from, end);
        if !fresh.is_empty() {
            self.fresh_from = end;
            self.place(queue, fresh, Ready { attempts: 0, not_before_ms: 0 }, stored, &mut alarms);
        }
        alarms
    }

    /// Behaves by other rules from now on, also with what waits already.
    pub(super) fn change_rules(&mut self, queue: QueueId, rules: Rules, stored: &dyn Stored) -> Alarms {
        let is_resorted = rules.by_key != self.rules.by_key;
        self.rules = rules;
        self.ready.set_lower_percent(rules.lower_percent);
        let mut alarms = Alarms::default();
        let all = OffsetRange::between(Offset::ZERO, self.fresh_from);
        if is_resorted {
            let keyed =
                self.keys.overlapping(all).map(|(offset, attempts)| (OffsetRange::new(offset, 1), attempts));
            let waiting: Vec<_> = self.ready.overlapping(all).into_iter().chain(keyed).collect();
            self.ready.remove(all);
            self.keys = KeyLines::default();
            self.hold_up_keys(queue, stored);
            for (range, attempts) in waiting {
                self.place(queue, range, Ready { attempts, not_before_ms: 0 }, stored, &mut alarms);
            }
        } else {
            for (range, _) in self.ready.overlapping(all) {
                note_expiries(queue, range, stored, &mut alarms);
            }
            for (offset, _) in self.keys.overlapping(all) {
                note_expiries(queue, OffsetRange::new(offset, 1), stored, &mut alarms);
            }
        }
        for (range, _) in self.delayed.iter() {
            note_expiries(queue, range, stored, &mut alarms);
        }
        let Alarms { delays, expiries } = self.sort(queue, stored);
        alarms.delays.extend(delays);
        alarms.expiries.extend(expiries);
        alarms
    }

    /// What consumers hold, and what they gave back that is delayed, holds up its key.
    fn hold_up_keys(&mut self, queue: QueueId, stored: &dyn Stored) {
        if !self.rules.by_key {
            return;
        }
        let returned = self.delayed.iter().filter(|(_, ready)| ready.attempts > 0).map(|(range, _)| range);
        for range in self.leased.iter().chain(returned).collect::<Vec<_>>() {
            for part in
                waiting_parts(queue, range, true, stored).into_iter().filter(|part| part.key_slot != 0)
            {
                self.keys.hold(part.key_slot, part.range);
            }
        }
    }

    /// Makes the delayed messages of a range deliverable whose time has come. Others of it may have gone meanwhile.
    pub(super) fn release(&mut self, queue: QueueId, range: OffsetRange, now_ms: u64, stored: &dyn Stored) {
        let delayed = self.delayed.overlapping(range).map(|(part, &ready)| (part, ready));
        let due: Vec<_> = delayed.filter(|(_, ready)| ready.not_before_ms <= now_ms).collect();
        for (part, Ready { attempts, .. }) in due {
            self.delayed.remove(part);
            for part in waiting_parts(queue, part, self.rules.by_key, stored) {
                self.make_ready(&part, attempts);
            }
        }
    }

    /// Takes out the messages of a range that nobody holds, and says which.
    pub(super) fn expire(&mut self, range: OffsetRange) -> Vec<OffsetRange> {
        let delayed: Vec<_> = self.delayed.overlapping(range).map(|(part, _)| part).collect();
        for &part in &delayed {
            self.keys.finish(part);
        }
        let ready = self.ready.overlapping(range).into_iter().map(|(part, _)| part);
        let keyed = self.keys.overlapping(range).map(|(offset, _)| OffsetRange::new(offset, 1));
        let expired = ready.chain(keyed).chain(delayed).collect();
        self.ready.remove(range);
        self.keys.remove(range);
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
            self.keys.remove(OffsetRange::new(first, 1));
        }
    }

    /// Forgets what can be delivered below an offset. Leases go on: their acks are welcome, and change nothing.
    pub(super) fn purge(&mut self, below: Offset) {
        let purged = OffsetRange::between(Offset::ZERO, below);
        self.ready.remove(purged);
        self.delayed.remove(purged);
        self.keys.remove(purged);
        self.keys.finish(purged);
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
        for part in waiting_parts(queue, range, self.rules.by_key, stored) {
            let Waiting { range, deliver_at_ms, expires_at_ms, key_slot, .. } = part;
            let deliver_at_ms = if is_planted(Bug::DeliveredEarly) { 0 } else { deliver_at_ms };
            let not_before_ms = ready.not_before_ms.max(deliver_at_ms);
            if not_before_ms == 0 {
                self.make_ready(&part, ready.attempts);
            } else {
                self.delayed.insert(range, Ready { not_before_ms, ..ready });
                alarms.delays.push((not_before_ms, range));
                if key_slot != 0 && ready.attempts > 0 {
                    // What its key has after it waits for it. What is yet to be delivered only takes its place when it
                    // is due.
                    self.keys.hold(key_slot, range);
                }
            }
            alarms.expiries.extend(expires_at_ms.map(|at_ms| (at_ms, range)));
        }
    }

    fn make_ready(&mut self, part: &Waiting, attempts: u32) {
        match part.key_slot {
            0 => self.ready.insert(part.range, attempts, part.priority),
            slot => self.keys.insert(slot, part.range, attempts),
        }
    }
}

fn note_expiries(queue: QueueId, range: OffsetRange, stored: &dyn Stored, alarms: &mut Alarms) {
    for Waiting { range, expires_at_ms, .. } in waiting_parts(queue, range, false, stored) {
        alarms.expiries.extend(expires_at_ms.map(|at_ms| (at_ms, range)));
    }
}

/// The parts of a range that wait for the same, and have the same key if asked; without what is not kept, where that
/// matters.
pub(super) fn waiting_parts(
    queue: QueueId,
    range: OffsetRange,
    by_key: bool,
    stored: &dyn Stored,
) -> Vec<Waiting> {
    if stored.is_ordinary(queue) && !by_key {
        return vec![Waiting::ordinary(range)];
    }
    let mut parts: Vec<Waiting> = Vec::new();
    stored.visit_waiting(queue, range.first, &mut |next| {
        if next.range.first >= range.end() {
            return false;
        }
        let key_slot = if by_key { next.key_slot } else { 0 };
        let part = Waiting { range: next.range.intersect(range), key_slot, ..next };
        match parts.last_mut() {
            Some(last) if last.range.end() == part.range.first && part.waits_as(last) => {
                last.range.count += part.range.count;
            }
            _ => parts.push(part),
        }
        next.range.end() < range.end()
    });
    parts
}
