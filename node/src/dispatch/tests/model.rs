//! Every message of two groups of one queue, each in the state that it must be in.

mod next;

use std::collections::{BTreeMap, BTreeSet};

use super::*;

pub(super) struct Model {
    dispatcher: Dispatcher,
    now: Now,
    stored: TestStored,
    groups: [Vec<State>; 2],
    rules: Rules,
    /// What each group owes its lower priorities, in hundredths of a message.
    owed_percent: [u32; 2],
    consumers: BTreeMap<ConsumerId, ModelConsumer>,
    slots: [Option<ConsumerId>; 6],
    next_consumer: u64,
}

struct ModelConsumer {
    group: usize,
    credit: Credit,
    detached: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Fresh,
    Ready {
        attempts: u32,
        not_before_ms: u64,
    },
    Leased {
        consumer: ConsumerId,
        until_ms: u64,
        attempt: u32,
    },
    /// On its way back to the core.
    Returning {
        attempt: u32,
    },
    Gone,
}

impl Model {
    /// The first group is new; the second was taken over from another leader.
    pub(super) fn new(special: bool, rules: Rules) -> Self {
        let stored = TestStored { special, ..scenarios::ALL_KEPT };
        let mut dispatcher = Dispatcher::new();
        let mut states = [vec![State::Fresh; 12], vec![State::Fresh; 12]];
        let mut ready = OffsetRuns::new();
        for (offset, attempts, not_before_ms) in [(0, 0, 0), (2, 1, 0), (3, 3, 20), (4, 1, 30), (6, 1, 30)] {
            ready.insert(range_of(offset, 1), Ready { attempts, not_before_ms });
            states[1][offset as usize] = State::Ready { attempts, not_before_ms };
        }
        for gone in [1, 5, 7] {
            states[1][gone] = State::Gone;
        }
        let next_offset = Offset::new(12);
        let start = |ready, fresh_from| GroupStart {
            rules,
            ready,
            fresh_from: Offset::new(fresh_from),
            next_offset,
            held_back_until_ms: 0,
            seek_count: 0,
        };
        dispatcher.add_group(key(0), start(OffsetRuns::new(), 0), &stored);
        dispatcher.add_group(key(1), start(ready, 8), &stored);
        let consumers = BTreeMap::new();
        Self {
            dispatcher,
            // Far apart: whoever takes one for the other is found out.
            now: Now { wall_ms: 0, steady_ms: 1 << 40 },
            stored,
            groups: states,
            rules,
            owed_percent: [0; 2],
            consumers,
            slots: [None; 6],
            next_consumer: 1,
        }
    }

    pub(super) fn step(&mut self, step: Step) {
        match step {
            Step::Append(count) => {
                for states in &mut self.groups {
                    states.extend(vec![State::Fresh; count as usize]);
                }
                let next_offset = Offset::new(self.groups[0].len() as u64);
                self.dispatcher.handle_appended(QUEUE, next_offset, &self.stored);
            }
            Step::Purge(count) => self.purge(count),
            Step::Add(slot, credit) => self.add(slot, credit),
            Step::SetCredit(slot, credit) => self.with(slot, |dispatcher, id, consumer| {
                consumer.credit = credit;
                dispatcher.set_credit(id, credit);
            }),
            Step::Detach(slot) => self.with(slot, |dispatcher, id, consumer| {
                consumer.detached = true;
                dispatcher.detach(id);
            }),
            Step::Leave(slot, seen) => self.leave(slot, seen),
            Step::Remove(slot) => self.remove(slot),
            Step::Ack(slot, range) => self.settle(slot, range, Dispatcher::ack, |_| State::Gone),
            Step::Nack(slot, range) => {
                self.settle(slot, range, Dispatcher::nack, |attempt| State::Returning { attempt });
            }
            Step::Extend(slot, range, ms) => {
                let until_ms = self.now.steady_ms + ms;
                let consumer = self.slots[slot].unwrap_or(ConsumerId::new(0));
                let held = self.dispatcher.held(consumer);
                let extend = |dispatcher: &mut Dispatcher, id, range| dispatcher.extend(id, range, until_ms);
                self.settle(slot, range, extend, |attempt| State::Leased { consumer, until_ms, attempt });
                assert_eq!(self.dispatcher.held(consumer), held, "splitting leases changed their bytes");
            }
            Step::Wait(ms) => {
                self.wait(ms);
                self.expire();
            }
            Step::SetClock(ms) => self.now.wall_ms += ms,
            Step::TakeBack(range, delay_ms) => self.take_back(range, delay_ms),
            Step::GiveUp(range) => self.give_up(range),
            Step::Poll => self.poll(),
        }
        self.check();
    }

    /// With enough credit everything is delivered; with everything settled all credit is back.
    pub(super) fn settle_everything(&mut self) {
        let all = range_of(0, u64::MAX);
        self.take_back(all, None);
        self.wait(1_000);
        self.expire();
        self.take_back(all, None);
        for slot in 0..self.slots.len() {
            self.remove(slot);
            self.take_back(all, None);
            self.add(slot, Credit { messages: 10_000, bytes: 1 << 40 });
        }
        let rounds = if self.rules.by_key { self.groups[0].len() } else { 1 };
        for _ in 0..rounds {
            self.poll();
            for slot in 0..self.slots.len() {
                self.settle(slot, all, Dispatcher::ack, |_| State::Gone);
            }
        }
        for state in self.groups.iter().flatten() {
            assert!(matches!(state, State::Gone), "{state:?} is left over");
        }
        self.check();
        assert_eq!(self.dispatcher.lease_ends_count(), 0);
        for id in self.consumers.keys() {
            assert_eq!(self.dispatcher.held(*id), Some((0, 0)), "credit leaked");
        }
    }

    fn with(&mut self, slot: usize, act: impl FnOnce(&mut Dispatcher, ConsumerId, &mut ModelConsumer)) {
        if let Some(id) = self.slots[slot]
            && let Some(consumer) = self.consumers.get_mut(&id)
        {
            act(&mut self.dispatcher, id, consumer);
        }
    }

    fn add(&mut self, slot: usize, credit: Credit) {
        let group = slot % 2;
        let id = ConsumerId::new(self.next_consumer);
        self.next_consumer += 1;
        self.remove(slot);
        self.slots[slot] = Some(id);
        self.consumers.insert(id, ModelConsumer { group, credit, detached: false });
        self.dispatcher.add_consumer(key(group as u32), id, credit, 0).unwrap();
    }

    fn leave(&mut self, slot: usize, seen: OffsetRange) {
        let Some(id) = self.slots[slot] else { return };
        self.dispatcher.leave(id, &[seen].into_iter().collect(), &self.stored);
        if let Some(consumer) = self.consumers.get_mut(&id) {
            consumer.detached = true;
        }
        for (offset, state) in (0..).zip(&mut self.groups[slot % 2]) {
            if let State::Leased { consumer, attempt, .. } = *state
                && consumer == id
                && !seen.contains(Offset::new(offset))
            {
                let is_purged = offset < self.stored.first;
                let ready = State::Ready { attempts: attempt - 1, not_before_ms: 0 };
                *state = if is_purged { State::Gone } else { ready };
            }
        }
    }

    fn remove(&mut self, slot: usize) {
        let Some(id) = self.slots[slot].take() else { return };
        let returned = self.dispatcher.remove_consumer(id);
        self.end_leases(&returned, |consumer, _| consumer == id);
        self.consumers.remove(&id);
    }

    fn expire(&mut self) {
        let steady_ms = self.now.steady_ms;
        let returned = self.dispatcher.expire(steady_ms);
        self.end_leases(&returned, |_, until_ms| until_ms <= steady_ms);
    }

    fn wait(&mut self, ms: u64) {
        self.now.wall_ms += ms;
        self.now.steady_ms += ms;
    }

    /// Exactly the leases that `ends` were returned.
    fn end_leases(&mut self, returned: &[Returned], ends: impl Fn(ConsumerId, u64) -> bool) {
        let mut listed = BTreeMap::new();
        for &Returned { key, range, attempt } in returned {
            for offset in range.first.get()..range.end().get() {
                assert_eq!(listed.insert((key.group.get() as usize, offset as usize), attempt), None);
            }
        }
        for (group, states) in self.groups.iter_mut().enumerate() {
            for (offset, state) in states.iter_mut().enumerate() {
                if let State::Leased { consumer, until_ms, attempt } = *state
                    && ends(consumer, until_ms)
                {
                    assert_eq!(listed.remove(&(group, offset)), Some(attempt));
                    *state = State::Returning { attempt };
                }
            }
        }
        assert!(listed.is_empty(), "{listed:?} was not leased");
    }

    fn settle(
        &mut self,
        slot: usize,
        range: OffsetRange,
        call: impl Fn(&mut Dispatcher, ConsumerId, OffsetRange) -> super::super::Settlements,
        becomes: impl Fn(u32) -> State,
    ) {
        let Some(id) = self.slots[slot] else { return };
        let settlements = call(&mut self.dispatcher, id, range);
        let group = slot % 2;
        let known = self.dispatcher.held(id).is_some() || self.holds(id) > 0;
        let mut reached = range.first;
        for (part, result) in settlements {
            assert_eq!(part.first, reached, "the parts do not make up the whole");
            reached = part.end();
            for offset in part.first.get()..part.end().get().min(500) {
                let state = self.groups[group].get_mut(offset as usize);
                let expected = match state.as_deref() {
                    Some(&State::Leased { consumer, attempt, .. }) if consumer == id => Ok(attempt),
                    None | Some(State::Fresh) if known => Err(Refusal::NotDelivered),
                    _ => Err(Refusal::LeaseLost),
                };
                // Whatever is purged counts as delivered, fresh or not.
                let purged = offset < self.stored.first && expected == Err(Refusal::NotDelivered);
                // So does what was sorted, be it delivered or not.
                let is_sorted = self.stored.special || self.rules.by_key;
                let sorted = is_sorted && state.is_some() && expected == Err(Refusal::NotDelivered);
                let expected = if purged || sorted { Err(Refusal::LeaseLost) } else { expected };
                assert_eq!(result, expected, "at {offset}");
                if let (Ok(attempt), Some(state)) = (result, state) {
                    *state = becomes(attempt);
                }
            }
        }
        assert_eq!(reached, range.end());
    }

    fn purge(&mut self, count: u64) {
        let first = (self.stored.first + count).min(self.groups[0].len() as u64);
        self.stored.first = first;
        for state in self.groups.iter_mut().flat_map(|states| &mut states[..first as usize]) {
            if !matches!(state, State::Leased { .. }) {
                *state = State::Gone;
            }
        }
        self.dispatcher.handle_purged(QUEUE, Offset::new(first));
    }

    fn take_back(&mut self, range: OffsetRange, delay_ms: Option<u64>) {
        let not_before_ms = delay_ms.map_or(0, |delay_ms| self.now.wall_ms + delay_ms);
        for (group, states) in self.groups.iter_mut().enumerate() {
            // Messages that follow each other come back together.
            let mut returned = OffsetRuns::new();
            for (offset, state) in (0..).zip(states) {
                let State::Returning { attempt } = *state else {
                    continue;
                };
                if offset < self.stored.first {
                    *state = State::Gone;
                } else if range.contains(Offset::new(offset)) {
                    *state = State::Ready { attempts: attempt, not_before_ms };
                    returned.insert(range_of(offset, 1), attempt);
                }
            }
            for (range, &attempt) in returned.iter() {
                let key = key(group as u32);
                self.dispatcher.handle_returned(key, range, attempt, not_before_ms, &self.stored);
            }
        }
    }

    fn give_up(&mut self, range: OffsetRange) {
        for (group, states) in self.groups.iter_mut().enumerate() {
            for (offset, state) in (0..).zip(states) {
                if matches!(state, State::Returning { .. }) && range.contains(Offset::new(offset)) {
                    *state = State::Gone;
                    self.dispatcher.handle_given_up(key(group as u32), range_of(offset, 1));
                }
            }
        }
    }

    fn poll(&mut self) {
        let mut deliveries = Vec::new();
        let expired = self.dispatcher.take_expired(self.now, &self.stored);
        self.expire_messages(&expired);
        self.dispatcher.poll(self.now, &self.stored, &mut deliveries);
        let mut takers: Vec<_> = deliveries.iter().map(|delivery| delivery.consumer).collect();
        for delivery in deliveries {
            self.deliver(delivery);
        }
        takers.sort_unstable();
        takers.dedup();
        for id in takers {
            let credit = self.consumers[&id].credit;
            let (messages, bytes) = self.dispatcher.held(id).unwrap();
            assert!(messages <= u64::from(credit.messages), "{messages} messages for {credit:?}");
            assert!(bytes <= credit.bytes || messages == 1, "{bytes} bytes for {credit:?}");
        }
        for group in 0..self.groups.len() {
            self.check_nothing_left(group);
        }
    }

    fn deliver(&mut self, delivery: Delivery) {
        let Delivery { consumer: id, key, first, count, attempt, bytes } = delivery;
        let group = key.group.get() as usize;
        let consumer = &self.consumers[&id];
        assert!(consumer.group == group && !consumer.detached);
        assert!(count > 0);
        assert_eq!(Some(first.get()), self.next_work(group).map(|(offset, _)| offset), "out of order");
        for offset in first.get()..first.get() + u64::from(count) {
            assert_eq!(self.next_work(group), Some((offset, attempt)));
            self.note_share(group, offset);
            let until_ms = self.now.steady_ms + u64::from(LEASE_MS);
            self.groups[group][offset as usize] = State::Leased { consumer: id, until_ms, attempt };
        }
        let offsets = first.get()..first.get() + u64::from(count);
        assert_eq!(bytes, offsets.map(TestStored::size).sum::<u64>());
    }

    /// Exactly those that nobody holds and whose time is over were given up.
    fn expire_messages(&mut self, expired: &[Expired]) {
        let mut listed = BTreeSet::new();
        for Expired { key, range } in expired {
            for offset in range.first.get()..range.end().get() {
                assert!(listed.insert((key.group.get() as usize, offset)), "given up twice");
            }
        }
        for (group, states) in self.groups.iter_mut().enumerate() {
            for (offset, state) in (0..).zip(states) {
                let waits = matches!(state, State::Fresh | State::Ready { .. });
                let is_over =
                    self.stored.waits(offset).expires_at_ms.is_some_and(|at_ms| at_ms <= self.now.wall_ms);
                if waits && is_over {
                    assert!(listed.remove(&(group, offset)), "{offset} may not wait any longer");
                    *state = State::Gone;
                }
            }
        }
        assert!(listed.is_empty(), "{listed:?} could wait");
    }

    /// After a poll nobody could take the next message.
    fn check_nothing_left(&self, group: usize) {
        let Some((offset, _)) = self.next_work(group) else {
            return;
        };
        for (&id, consumer) in &self.consumers {
            if consumer.group != group || consumer.detached {
                continue;
            }
            let (messages, bytes) = self.dispatcher.held(id).unwrap();
            let takes = messages < u64::from(consumer.credit.messages)
                && (messages == 0 || bytes + TestStored::size(offset) <= consumer.credit.bytes);
            assert!(!takes, "{id:?} could take {offset}");
        }
    }

    fn holds(&self, id: ConsumerId) -> u64 {
        let held = |state: &&State| matches!(state, State::Leased { consumer, .. } if *consumer == id);
        self.groups.iter().flatten().filter(held).count() as u64
    }

    fn check(&self) {
        for (&id, consumer) in &self.consumers {
            let held = self.dispatcher.held(id);
            if consumer.detached && self.holds(id) == 0 {
                assert_eq!(held, None, "a detached consumer is remembered without leases");
                continue;
            }
            let (messages, bytes) = held.unwrap();
            assert_eq!(messages, self.holds(id));
            assert!(messages > 0 || bytes == 0, "credit leaked");
        }
        for (group, states) in self.groups.iter().enumerate() {
            let counts = self.dispatcher.counts(key(group as u32));
            let leased = states.iter().filter(|state| matches!(state, State::Leased { .. })).count() as u64;
            let waiting =
                states.iter().filter(|state| matches!(state, State::Fresh | State::Ready { .. })).count()
                    as u64;
            let attached = self
                .consumers
                .values()
                .filter(|consumer| consumer.group == group && !consumer.detached)
                .count();
            assert_eq!((counts.leased, counts.ready + counts.delayed), (leased, waiting));
            assert_eq!(counts.consumers, attached as u32);
        }
        // Those whose time has come are not waited for any more, or not yet seen by a poll.
        let later = |at_ms: u64| at_ms.checked_sub(self.now.wall_ms).filter(|&in_ms| in_ms > 0);
        let states = self.groups.iter().flat_map(|states| (0..).zip(states));
        let deadlines = states.flat_map(|(offset, state)| {
            let waits = self.stored.waits(offset);
            let expires = waits.expires_at_ms.and_then(later);
            match *state {
                State::Leased { until_ms, .. } => [until_ms.checked_sub(self.now.steady_ms), None],
                State::Ready { not_before_ms, .. } => {
                    [later(not_before_ms.max(waits.deliver_at_ms)), expires]
                }
                State::Fresh => [later(waits.deliver_at_ms), expires],
                _ => [None, None],
            }
        });
        if let Some(earliest) = deadlines.flatten().min() {
            let deadline = self.dispatcher.due_in_ms(self.now);
            assert!(
                deadline.is_some_and(|deadline| deadline <= earliest),
                "{deadline:?} is after {earliest}"
            );
        }
    }
}
