//! One group's turn in a poll: its consumers take messages in turns until nobody can take more.

use std::collections::{BTreeMap, BTreeSet};

use skein_proto::ids::Offset;

use super::{
    ConsumerId, Delivery, GroupKey, Stored,
    alarms::AlarmClock,
    consumer::{Consumer, Lease},
    group::{Group, Work},
};
use crate::{
    offsets::OffsetRange,
    planted::{Bug, is_planted},
};

/// One group's turn in a poll.
pub(super) struct Round<'a> {
    pub(super) key: GroupKey,
    pub(super) steady_ms: u64,
    pub(super) stored: &'a dyn Stored,
    pub(super) group: &'a mut Group,
    pub(super) consumers: &'a mut BTreeMap<ConsumerId, Consumer>,
    pub(super) alarms: &'a mut AlarmClock,
    pub(super) lease_ends: &'a mut BTreeSet<(u64, ConsumerId, Offset)>,
}

impl Round<'_> {
    pub(super) fn hand_out(&mut self, deliveries: &mut Vec<Delivery>) {
        // Not said anew after each delivery: shares of what is left would become ever smaller.
        let mut share = fair_share(self.group);
        // Consumers for which the next message is too large, while they hold others. Each is asked again after the
        // message went to somebody else.
        let mut passed = Vec::new();
        while let Some(work) = self.next_work() {
            let Some(id) = self.group.turns.pop_front() else {
                break;
            };
            let Some(consumer) = self.consumers.get_mut(&id) else {
                continue;
            };
            consumer.in_turn = false;
            if !consumer.takes_more() || !self.group.may_take(id, consumer) {
                continue;
            }
            let count_max = share.min(consumer.messages_left());
            match self.deliver(id, work, count_max) {
                Attempt::Delivered(delivery) => {
                    deliveries.push(delivery);
                    if passed.is_empty() {
                        self.deliver_those_behind(delivery, share, deliveries);
                    }
                    for id in passed.drain(..) {
                        self.wait_for_turn(id);
                    }
                    self.wait_for_turn(id);
                }
                Attempt::TooLarge => passed.push(id),
                Attempt::Missing => {
                    self.keep_turn(id);
                    // The queue was closed: the next events say so.
                    let Some(kept_from) = self.stored.kept_from(self.key.queue) else {
                        break;
                    };
                    // The core frees what all groups have acked without saying so: not to wait for an event.
                    self.group.drop_missing(work.range.first, kept_from);
                    share = fair_share(self.group);
                }
            }
        }
        for id in passed {
            self.wait_for_turn(id);
        }
    }

    /// What is to be delivered next, having looked further ahead when need be.
    fn next_work(&mut self) -> Option<Work> {
        let work = self.group.next_work();
        if work.is_some() || !self.group.could_look_further() {
            return work;
        }
        self.alarms.set(self.key, self.group.sort(self.key.queue, self.stored));
        self.group.next_work()
    }

    fn deliver(&mut self, id: ConsumerId, work: Work, count_max: u32) -> Attempt {
        let consumer =
            self.consumers.get_mut(&id).expect("a consumer is looked up before it is delivered to");
        let count_max = u32::try_from(work.range.count).unwrap_or(u32::MAX).min(count_max);
        let fit = self.stored.fit(self.key.queue, work.range.first, count_max, consumer.bytes_left());
        let Some((count, bytes)) = fit.filter(|&(count, _)| count > 0) else {
            return Attempt::Missing;
        };
        if bytes > consumer.bytes_left() && !consumer.holds_nothing() {
            return Attempt::TooLarge;
        }
        let range = OffsetRange::new(work.range.first, u64::from(count));
        let lease_ms = self.group.rules().lease_ms;
        let lease_ms = if is_planted(Bug::LeaseCutShort) { lease_ms / 1_000 } else { lease_ms };
        let until_ms = self.steady_ms.saturating_add(u64::from(lease_ms));
        self.group.lease(range);
        let attempt = work.attempt;
        let lease = Lease { range, until_ms, attempt, bytes };
        // Neighbours are mostly settled together.
        if !consumer.grant_behind(lease) {
            consumer.grant(lease);
            self.lease_ends.insert((until_ms, id, range.first));
        }
        Attempt::Delivered(Delivery {
            consumer: id,
            key: self.key,
            first: range.first,
            count,
            attempt,
            bytes,
        })
    }

    /// Gives a consumer the messages right behind one that it got, up to its share. Where keys matter, each is
    /// delivered alone; those that one consumer has together are sent, acked and freed together.
    fn deliver_those_behind(&mut self, mut last: Delivery, share: u32, deliveries: &mut Vec<Delivery>) {
        if !self.group.rules().by_key {
            return;
        }
        let mut left = share.saturating_sub(last.count);
        while left > 0
            && let Some(work) = self.next_work()
            && (work.range.first, work.attempt) == (last.end(), last.attempt)
            && let Some(consumer) =
                self.consumers.get(&last.consumer).filter(|consumer| consumer.takes_more())
            && let count_max = left.min(consumer.messages_left())
            && let Attempt::Delivered(delivery) = self.deliver(last.consumer, work, count_max)
        {
            left -= delivery.count;
            deliveries.push(delivery);
            last = delivery;
        }
    }

    /// Leaves a consumer first in turn, which took nothing.
    fn keep_turn(&mut self, id: ConsumerId) {
        if let Some(consumer) = self.consumers.get_mut(&id) {
            consumer.in_turn = true;
            self.group.turns.push_front(id, consumer.priority);
        }
    }

    fn wait_for_turn(&mut self, id: ConsumerId) {
        if let Some(consumer) = self.consumers.get_mut(&id)
            && consumer.takes_more()
        {
            consumer.in_turn = true;
            self.group.turns.push_back(id, consumer.priority);
        }
    }
}

/// What came of offering messages to a consumer.
enum Attempt {
    Delivered(Delivery),
    /// The consumer holds others, and has too few bytes left for even one.
    TooLarge,
    /// The message is not kept.
    Missing,
}

/// How many messages a consumer gets at a time, so that something is left for the others.
fn fair_share(group: &Group) -> u32 {
    let takers = group.turns.sharer_count().max(1);
    let share = group.ready_count().div_ceil(takers as u64);
    u32::try_from(share).unwrap_or(u32::MAX)
}
