//! Hands out messages, and keeps the leases on them.

mod resume;
mod settle;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use skein_proto::{
    ids::{Offset, QueueId},
    limits::GROUP_CONSUMERS_MAX,
};

pub use self::resume::Resumption;
use self::settle::push_returned;
use super::{
    AddConsumerError, ConsumerId, Credit, Delivery, Expired, GroupCounts, GroupKey, GroupStart, Now, Ready,
    Returned, Rules, Stored,
    alarms::AlarmClock,
    consumer::Consumer,
    group::{Group, waiting_parts},
    round::Round,
};
use crate::{
    offsets::OffsetRange,
    planted::{Bug, is_planted},
};

/// All groups and consumers of one shard.
#[derive(Debug, Default)]
pub struct Dispatcher {
    groups: BTreeMap<GroupKey, Group>,
    consumers: BTreeMap<ConsumerId, Consumer>,
    /// The groups for which something may be handed out: all others are left alone.
    work: BTreeSet<GroupKey>,
    /// When each lease ends, by the steady clock.
    lease_ends: BTreeSet<(u64, ConsumerId, Offset)>,
    alarms: AlarmClock,
    /// Until when each group is held back, by the steady clock, should nobody come back before.
    holds: BTreeSet<(u64, GroupKey)>,
    /// Those that were held back, and whose end nobody has asked for.
    released: Vec<GroupKey>,
}

impl Dispatcher {
    /// A dispatcher without groups.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins to deliver for a group. One that it knows already is left as it is.
    #[expect(clippy::needless_pass_by_value, reason = "a start is made for one group and used once")]
    pub fn add_group(&mut self, key: GroupKey, start: GroupStart, stored: &dyn Stored) {
        if self.groups.contains_key(&key) {
            return;
        }
        let mut group = Group::new(&start);
        for (range, &ready) in start.ready.iter() {
            let alarms = group.take_back(key.queue, range, ready, stored);
            self.alarms.set(key, alarms);
        }
        let alarms = group.sort(key.queue, stored);
        self.alarms.set(key, alarms);
        if group.held_back_until_ms > 0 {
            self.holds.insert((group.held_back_until_ms, key));
        }
        self.groups.insert(key, group);
    }

    /// Takes note of how a queue behaves from now on.
    pub fn change_queue(&mut self, queue: QueueId, rules: Rules, stored: &dyn Stored) {
        let keys: Vec<_> = self.groups.range(GroupKey::all_of(queue)).map(|(key, _)| *key).collect();
        for key in keys {
            let Some(group) = self.groups.get_mut(&key) else { continue };
            let alarms = group.change_rules(queue, rules, stored);
            let consumers: Vec<_> = group.consumers.iter().copied().collect();
            self.alarms.set(key, alarms);
            self.choose_active(key);
            for id in consumers {
                self.offer_turn(id);
            }
        }
    }

    /// Forgets a group with its consumers, and says who they were.
    pub fn remove_group(&mut self, key: GroupKey) -> Vec<ConsumerId> {
        let Some(group) = self.groups.remove(&key) else {
            return Vec::new();
        };
        self.work.remove(&key);
        self.holds.remove(&(group.held_back_until_ms, key));
        for id in &group.consumers {
            let Some(mut consumer) = self.consumers.remove(id) else {
                continue;
            };
            for lease in consumer.end_all() {
                self.lease_ends.remove(&(lease.until_ms, *id, lease.range.first));
            }
        }
        group.consumers.into_iter().collect()
    }

    /// Forgets all groups of a queue with their consumers, and says who they were.
    pub fn remove_queue(&mut self, queue: QueueId) -> Vec<ConsumerId> {
        let keys: Vec<_> = self.groups.range(GroupKey::all_of(queue)).map(|(key, _)| *key).collect();
        keys.into_iter().flat_map(|key| self.remove_group(key)).collect()
    }

    /// Takes note of the end of a queue.
    pub fn handle_appended(&mut self, queue: QueueId, next_offset: Offset, stored: &dyn Stored) {
        for (&key, group) in self.groups.range_mut(GroupKey::all_of(queue)) {
            if next_offset > group.next_offset {
                group.next_offset = next_offset;
                self.work.insert(key);
                self.alarms.set(key, group.sort(queue, stored));
            }
        }
    }

    /// Delivers messages again that the core took back. Any of them that a consumer holds, or that were never
    /// delivered, are left as they are.
    pub fn handle_returned(
        &mut self,
        key: GroupKey,
        range: OffsetRange,
        attempts: u32,
        not_before_ms: u64,
        stored: &dyn Stored,
    ) {
        let Some(group) = self.groups.get_mut(&key) else {
            return;
        };
        let alarms = group.take_back(key.queue, range, Ready { attempts, not_before_ms }, stored);
        self.alarms.set(key, alarms);
        self.work.insert(key);
    }

    /// Lets messages be that the core took back and gave up: those behind them are to come.
    pub fn handle_given_up(&mut self, key: GroupKey, range: OffsetRange) {
        if let Some(group) = self.groups.get_mut(&key) {
            group.finish(range);
            self.work.insert(key);
        }
    }

    /// Delivers nothing below an offset any more. What consumers hold, they keep until they settle it.
    pub fn handle_purged(&mut self, queue: QueueId, below: Offset) {
        for (&key, group) in self.groups.range_mut(GroupKey::all_of(queue)) {
            group.purge(below);
            self.work.insert(key);
        }
    }

    /// Lets a consumer take messages of a group.
    ///
    /// # Errors
    /// When there is no such group, or it has [`GROUP_CONSUMERS_MAX`] consumers.
    ///
    /// # Panics
    /// When the id was given to a consumer before that is still known.
    pub fn add_consumer(
        &mut self,
        key: GroupKey,
        id: ConsumerId,
        credit: Credit,
        priority: i32,
    ) -> Result<(), AddConsumerError> {
        let group = self.groups.get_mut(&key).ok_or(AddConsumerError::NoGroup)?;
        if group.attached_count >= GROUP_CONSUMERS_MAX {
            return Err(AddConsumerError::TooMany);
        }
        let previous = self.consumers.insert(id, Consumer::new(key, credit, priority));
        assert!(previous.is_none(), "a consumer id was used twice");
        group.attached_count += 1;
        group.consumers.insert(id);
        self.choose_active(key);
        self.offer_turn(id);
        Ok(())
    }

    /// Sets how much a consumer holds at most. What it holds above that, it keeps.
    pub fn set_credit(&mut self, id: ConsumerId, credit: Credit) {
        if let Some(consumer) = self.consumers.get_mut(&id) {
            consumer.credit = credit;
            self.offer_turn(id);
        }
    }

    /// Forgets a consumer, and says what it held: the core is to take it back.
    pub fn remove_consumer(&mut self, id: ConsumerId) -> Vec<Returned> {
        let Some(mut consumer) = self.consumers.remove(&id) else {
            return Vec::new();
        };
        let key = consumer.key;
        let mut returned = Vec::new();
        for lease in consumer.end_all() {
            self.lease_ends.remove(&(lease.until_ms, id, lease.range.first));
            if let Some(group) = self.groups.get_mut(&key) {
                group.leased.remove(lease.range);
            }
            push_returned(&mut returned, key, lease);
        }
        if let Some(group) = self.groups.get_mut(&key) {
            group.consumers.remove(&id);
            group.attached_count -= usize::from(!consumer.detached);
            if let Some(before) = consumer.before
                && group.back.get(&before) == Some(&id)
            {
                group.back.remove(&before);
            }
            if consumer.in_turn {
                group.turns.remove(id, consumer.priority);
            }
        }
        self.choose_active(key);
        returned
    }

    /// Hands nothing to a consumer any more; it keeps its leases until they are settled or expire, and is forgotten
    /// with the last one.
    pub fn detach(&mut self, id: ConsumerId) {
        let Some(consumer) = self.consumers.get_mut(&id) else {
            return;
        };
        if !consumer.detached {
            consumer.detached = true;
            if let Some(group) = self.groups.get_mut(&consumer.key) {
                group.attached_count -= 1;
                if std::mem::take(&mut consumer.in_turn) {
                    group.turns.remove(id, consumer.priority);
                }
            }
            let key = consumer.key;
            self.choose_active(key);
        }
        self.forget_if_done(id);
    }

    /// Takes out the messages whose time is over and that nobody holds: the core is to give them up.
    pub fn take_expired(&mut self, now: Now, stored: &dyn Stored) -> Vec<Expired> {
        let mut expired = Vec::new();
        if is_planted(Bug::ExpiredDelivered) {
            return expired;
        }
        while let Some(&(at_ms, key, first, count)) = self.alarms.expiries.first()
            && at_ms <= now.wall_ms
        {
            self.alarms.expiries.pop_first();
            let Some(group) = self.groups.get_mut(&key) else { continue };
            let held_back_for_ms = group.held_back_until_ms.saturating_sub(now.steady_ms);
            if held_back_for_ms > 0 {
                // Somebody may hold them, and is about to say so.
                self.alarms.expiries.insert((now.wall_ms + held_back_for_ms, key, first, count));
                continue;
            }
            for part in waiting_parts(key.queue, OffsetRange::new(first, count), false, stored) {
                match part.expires_at_ms {
                    Some(at_ms) if at_ms <= now.wall_ms => {
                        let parts = group.expire(part.range).into_iter();
                        expired.extend(parts.map(|range| Expired { key, range }));
                        // What comes next may be small enough for somebody for whom these were too large.
                        self.work.insert(key);
                    }
                    // The queue lets them wait longer than it did.
                    Some(at_ms) => {
                        self.alarms.expiries.insert((at_ms, key, part.range.first, part.range.count));
                    }
                    None => {}
                }
            }
        }
        expired
    }

    /// Hands out all that can be, and appends it to `deliveries`. The consumers' credits bound how much that is.
    pub fn poll(&mut self, now: Now, stored: &dyn Stored, deliveries: &mut Vec<Delivery>) {
        self.release_due(now.wall_ms, stored);
        while let Some(&(at_ms, key)) = self.holds.first()
            && at_ms <= now.steady_ms
        {
            self.holds.pop_first();
            if let Some(group) = self.groups.get_mut(&key) {
                group.held_back_until_ms = 0;
                self.work.insert(key);
                self.released.push(key);
            }
        }
        while let Some(key) = self.work.pop_first() {
            if let Some(group) = self.groups.get_mut(&key).filter(|group| group.held_back_until_ms == 0) {
                let mut round = Round {
                    key,
                    steady_ms: now.steady_ms,
                    stored,
                    group,
                    consumers: &mut self.consumers,
                    alarms: &mut self.alarms,
                    lease_ends: &mut self.lease_ends,
                };
                round.hand_out(deliveries);
            }
        }
    }

    /// In how many milliseconds to call [`Dispatcher::expire`] and [`Dispatcher::poll`], should nothing else happen
    /// before.
    #[must_use]
    pub fn due_in_ms(&self, now: Now) -> Option<u64> {
        let lease_end = self.lease_ends.first().map(|&(until_ms, ..)| until_ms);
        let hold = self.holds.first().map(|&(at_ms, _)| at_ms);
        let delay = self.alarms.delays.first().map(|&(at_ms, ..)| at_ms);
        let expiry = self.alarms.expiries.first().map(|&(at_ms, ..)| at_ms);
        let steady = [lease_end, hold].into_iter().flatten().map(|at_ms| at_ms.saturating_sub(now.steady_ms));
        let wall = [delay, expiry].into_iter().flatten().map(|at_ms| at_ms.saturating_sub(now.wall_ms));
        steady.chain(wall).min()
    }

    /// How busy a group is; all zero for one that is not known.
    #[must_use]
    pub fn counts(&self, key: GroupKey) -> GroupCounts {
        self.groups.get(&key).map_or_else(GroupCounts::default, |group| GroupCounts {
            leased: group.leased.len(),
            consumers: u32::try_from(group.attached_count).unwrap_or(u32::MAX),
            ready: group.ready_count(),
            delayed: group.delayed_count(),
        })
    }

    /// How often the core had moved a group when what is delivered now was handed out.
    #[must_use]
    pub fn seek_count(&self, key: GroupKey) -> u32 {
        self.groups.get(&key).map_or(0, |group| group.seek_count)
    }

    /// Whether anybody takes messages of a queue, or holds any.
    #[must_use]
    pub fn is_in_use(&self, queue: QueueId) -> bool {
        self.groups.range(GroupKey::all_of(queue)).any(|(_, group)| !group.consumers.is_empty())
    }

    /// The group that a consumer takes messages of, or took them before it was detached.
    #[must_use]
    pub fn group_of(&self, id: ConsumerId) -> Option<GroupKey> {
        self.consumers.get(&id).map(|consumer| consumer.key)
    }

    /// The messages and bytes that count against a consumer's credit.
    #[cfg(test)]
    pub(super) fn held(&self, id: ConsumerId) -> Option<(u64, u64)> {
        self.consumers.get(&id).map(Consumer::held)
    }

    #[cfg(test)]
    pub(super) fn lease_ends_count(&self) -> usize {
        self.lease_ends.len()
    }

    /// Puts a consumer that can take messages at the end of its group's turns.
    fn offer_turn(&mut self, id: ConsumerId) {
        let Some(consumer) = self.consumers.get_mut(&id) else {
            return;
        };
        if !consumer.takes_more() {
            return;
        }
        let Some(group) = self.groups.get_mut(&consumer.key) else {
            return;
        };
        if !group.may_take(id, consumer) {
            return;
        }
        if !consumer.in_turn {
            consumer.in_turn = true;
            group.turns.push_back(id, consumer.priority);
        }
        if group.next_work().is_some() {
            self.work.insert(consumer.key);
        }
    }

    /// Sees to it that where only one consumer takes messages, it is the one with the highest priority, and of those
    /// the one that has come first.
    fn choose_active(&mut self, key: GroupKey) {
        let Some(group) = self.groups.get_mut(&key) else { return };
        group.active = None;
        if group.rules().single_active {
            let attached = group.consumers.iter().filter_map(|id| Some((*id, self.consumers.get(id)?)));
            let attached = attached.filter(|(_, consumer)| !consumer.detached);
            let first = attached.min_by_key(|&(id, consumer)| (Reverse(consumer.priority), id));
            group.active = first.map(|(id, _)| id);
        }
        self.offer_turn_to_active(key);
    }

    /// Whoever held something may have been the last one that the active consumer had to wait for.
    fn offer_turn_to_active(&mut self, key: GroupKey) {
        if let Some(id) = self.groups.get(&key).and_then(|group| group.active) {
            self.offer_turn(id);
        }
    }

    fn release_due(&mut self, now_ms: u64, stored: &dyn Stored) {
        while let Some(&(at_ms, key, first, count)) = self.alarms.delays.first()
            && at_ms <= now_ms
        {
            self.alarms.delays.pop_first();
            if let Some(group) = self.groups.get_mut(&key) {
                group.release(key.queue, OffsetRange::new(first, count), now_ms, stored);
                self.work.insert(key);
            }
        }
    }

    fn forget_if_done(&mut self, id: ConsumerId) {
        if self.consumers.get(&id).is_some_and(|consumer| consumer.detached && consumer.holds_nothing()) {
            self.remove_consumer(id);
        }
    }
}

/// The parts of a leased range that are kept, a block each at most, and their bytes. The lease on the others ends:
/// nobody needs them any more.
fn kept_parts(
    group: &mut Group,
    queue: QueueId,
    range: OffsetRange,
    stored: &dyn Stored,
) -> Vec<(OffsetRange, u64)> {
    let mut parts = Vec::new();
    let mut rest = range;
    while !rest.is_empty() {
        let count_max = u32::try_from(rest.count).unwrap_or(u32::MAX);
        match stored.fit(queue, rest.first, count_max, u64::MAX).filter(|&(count, _)| count > 0) {
            Some((count, bytes)) => {
                let (part, after) = rest.split_at(rest.first.plus(u64::from(count)));
                parts.push((part, bytes));
                rest = after;
            }
            None => {
                let kept_from = stored.kept_from(queue).unwrap_or(rest.end());
                let (missing, after) = rest.split_at(kept_from.max(rest.first.plus(1)));
                group.leased.remove(missing);
                group.finish(missing);
                rest = after;
            }
        }
    }
    parts
}
