//! How leases end: their consumer settles them, or leaves, or their time is over.

use skein_proto::ids::Offset;

use super::Dispatcher;
use crate::{
    dispatch::{
        ConsumerId, GroupKey, Ready, Refusal, Returned, Settlements, Stored,
        consumer::{EndedLease, Lease},
    },
    offsets::{OffsetRange, OffsetSet},
};

impl Dispatcher {
    /// Ends leases whose messages are done.
    pub fn ack(&mut self, id: ConsumerId, range: OffsetRange) -> Settlements {
        self.settle(id, range, Settle::Finish)
    }

    /// Ends leases whose messages the core is to take back.
    pub fn nack(&mut self, id: ConsumerId, range: OffsetRange) -> Settlements {
        self.settle(id, range, Settle::Return)
    }

    /// Sets when leases end, by the steady clock.
    pub fn extend(&mut self, id: ConsumerId, range: OffsetRange, lease_until_ms: u64) -> Settlements {
        self.settle(id, range, Settle::Extend { until_ms: lease_until_ms })
    }

    /// Ends the leases whose time is over by the steady clock, and says which: the core is to take the messages back.
    pub fn expire(&mut self, steady_ms: u64) -> Vec<Returned> {
        let mut returned = Vec::new();
        while let Some(&(until_ms, id, first)) = self.lease_ends.first()
            && until_ms <= steady_ms
        {
            self.lease_ends.pop_first();
            let Some(consumer) = self.consumers.get_mut(&id) else {
                continue;
            };
            let Some(lease) = consumer.end(first) else {
                continue;
            };
            let key = consumer.key;
            if let Some(group) = self.groups.get_mut(&key) {
                group.leased.remove(lease.range);
            }
            push_returned(&mut returned, key, lease);
            self.offer_turn(id);
            self.offer_turn_to_active(key);
            self.forget_if_done(id);
        }
        returned
    }

    /// Hands nothing to a consumer any more. What it has seen it keeps, as one that is detached; others get the rest,
    /// as if it had never been delivered.
    pub fn leave(&mut self, id: ConsumerId, seen: &OffsetSet, stored: &dyn Stored) {
        let Some(consumer) = self.consumers.get_mut(&id) else { return };
        let key = consumer.key;
        let Some(group) = self.groups.get_mut(&key) else { return };
        let held: Vec<_> = consumer.leases().collect();
        for unseen in held.into_iter().flat_map(|range| seen.gaps(range).collect::<Vec<_>>()) {
            let mut reached = unseen.first;
            while let Some(EndedLease { whole, ended, kept }) =
                consumer.end_in(OffsetRange::between(reached, unseen.end()))
            {
                self.lease_ends.remove(&(whole.until_ms, id, whole.range.first));
                for part in kept.into_iter().flatten() {
                    self.lease_ends.insert((part.until_ms, id, part.range.first));
                }
                let Lease { range, attempt, .. } = ended;
                group.leased.remove(range);
                // Some of it may be freed by now, or wait to be moved to another queue.
                let open = stored.open_in(key, range);
                open.gaps(range).for_each(|done| group.finish(done));
                let ready = Ready { attempts: attempt.saturating_sub(1), not_before_ms: 0 };
                for left in open.iter() {
                    self.alarms.set(key, group.take_back(key.queue, left, ready, stored));
                }
                reached = range.end();
            }
        }
        self.work.insert(key);
        self.detach(id);
        self.offer_turn_to_active(key);
    }

    fn settle(&mut self, id: ConsumerId, range: OffsetRange, how: Settle) -> Settlements {
        let mut settlements = Vec::new();
        let Some(consumer) = self.consumers.get_mut(&id) else {
            refuse(&mut settlements, range, range.end());
            return settlements;
        };
        let key = consumer.key;
        let Some(group) = self.groups.get_mut(&key) else {
            return settlements;
        };
        let mut reached = range.first;
        while let Some(EndedLease { whole, ended, kept }) =
            consumer.end_in(OffsetRange::between(reached, range.end()))
        {
            self.lease_ends.remove(&(whole.until_ms, id, whole.range.first));
            for part in kept.into_iter().flatten() {
                self.lease_ends.insert((part.until_ms, id, part.range.first));
            }
            match how {
                Settle::Finish => {
                    group.leased.remove(ended.range);
                    group.finish(ended.range);
                }
                Settle::Return => group.leased.remove(ended.range),
                Settle::Extend { until_ms } => {
                    self.lease_ends.insert((until_ms, id, ended.range.first));
                    consumer.grant(Lease { until_ms, ..ended });
                }
            }
            refuse(&mut settlements, OffsetRange::between(reached, ended.range.first), group.fresh_from);
            settlements.push((ended.range, Ok(ended.attempt)));
            reached = ended.range.end();
        }
        refuse(&mut settlements, OffsetRange::between(reached, range.end()), group.fresh_from);
        if group.rules().by_key {
            // What follows may be for another consumer, also when this one takes no more.
            self.work.insert(key);
        }
        self.offer_turn(id);
        self.offer_turn_to_active(key);
        self.forget_if_done(id);
        settlements
    }
}

/// What a settlement does to leases.
#[derive(Debug, Clone, Copy)]
enum Settle {
    Finish,
    Return,
    Extend { until_ms: u64 },
}

/// Says why messages that a consumer does not hold cannot be settled.
fn refuse(settlements: &mut Settlements, range: OffsetRange, fresh_from: Offset) {
    let (delivered, fresh) = range.split_at(fresh_from);
    for (part, refusal) in [(delivered, Refusal::LeaseLost), (fresh, Refusal::NotDelivered)] {
        if !part.is_empty() {
            settlements.push((part, Err(refusal)));
        }
    }
}

pub(super) fn push_returned(returned: &mut Vec<Returned>, key: GroupKey, lease: Lease) {
    let Lease { range, attempt, .. } = lease;
    if let Some(last) = returned.last_mut()
        && (last.key, last.attempt, last.range.end()) == (key, attempt, range.first)
    {
        last.range.count += range.count;
        return;
    }
    returned.push(Returned { key, range, attempt });
}
