//! Which message is to be delivered next, by the state that each of them is in.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::{Model, State};

/// What is delivered first: by priority, what came back or is sorted before what is neither, and by offset.
type Rank = (Reverse<u8>, bool, u64);

impl Model {
    /// The message that is to be delivered next, and the attempt that it will be. What came back goes before what is
    /// fresh where all is ordinary, and elsewhere only a higher priority does, or what lower ones are owed.
    pub(super) fn next_work(&self, group: usize) -> Option<(u64, u32)> {
        let keyless = self.next_without_key(group);
        let keyed = self.next_with_key(group);
        keyless.into_iter().chain(keyed).min()
    }

    fn next_without_key(&self, group: usize) -> Option<(u64, u32)> {
        let due = self.due(group, |offset| self.slot(offset) == 0);
        let highest = due.iter().min()?;
        let lower = due.iter().filter(|due| due.0.0 > highest.0.0).min_by_key(|due| due.0.2);
        let lower_percent = self.rules.lower_percent;
        let is_owed = lower_percent > 0 && self.owed_percent[group] + lower_percent >= 100;
        let &((_, _, offset), attempt) = lower.filter(|_| is_owed).unwrap_or(highest);
        Some((offset, attempt))
    }

    /// The first message whose key nothing holds up: no other one is with a consumer, on its way back, or held back.
    fn next_with_key(&self, group: usize) -> Option<(u64, u32)> {
        let mut firsts: BTreeMap<u16, (u64, u32)> = BTreeMap::new();
        for ((_, _, offset), attempt) in self.due(group, |offset| self.slot(offset) != 0) {
            let first = firsts.entry(self.slot(offset)).or_insert((offset, attempt));
            *first = (*first).min((offset, attempt));
        }
        for (offset, state) in (0..).zip(&self.groups[group]).skip(self.stored.first as usize) {
            let holds_up = match *state {
                State::Leased { .. } | State::Returning { .. } => true,
                State::Ready { attempts, not_before_ms } => {
                    attempts > 0
                        && not_before_ms.max(self.stored.waits(offset).deliver_at_ms) > self.now.wall_ms
                }
                State::Fresh | State::Gone => false,
            };
            if holds_up {
                firsts.remove(&self.slot(offset));
            }
        }
        firsts.into_values().min()
    }

    fn slot(&self, offset: u64) -> u16 {
        if self.rules.by_key { self.stored.waits(offset).key_slot } else { 0 }
    }

    /// Takes note that a message is delivered, of which lower priorities have their share.
    pub(super) fn note_share(&mut self, group: usize, offset: u64) {
        if self.slot(offset) != 0 {
            return;
        }
        let priority = |offset| self.stored.waits(offset).priority;
        let others = self
            .due(group, |other| self.slot(other) == 0)
            .into_iter()
            .map(|((_, _, other), _)| priority(other));
        let priorities: BTreeSet<_> = others.collect();
        let is_highest = priorities.last() == Some(&priority(offset));
        let owed_percent = &mut self.owed_percent[group];
        if !is_highest {
            *owed_percent -= 100 - self.rules.lower_percent;
        } else if priorities.len() > 1 {
            *owed_percent += self.rules.lower_percent;
        }
    }

    /// What can be delivered, and the attempt that it will be, by what is usually first.
    fn due(&self, group: usize, wanted: impl Fn(u64) -> bool) -> Vec<(Rank, u32)> {
        let due = |(offset, state): (u64, &State)| {
            let waits = self.stored.waits(offset);
            match *state {
                State::Fresh if waits.deliver_at_ms <= self.now.wall_ms => {
                    let is_last = !self.stored.special && !self.rules.by_key;
                    Some(((Reverse(waits.priority), is_last, offset), 1))
                }
                State::Ready { attempts, not_before_ms }
                    if not_before_ms.max(waits.deliver_at_ms) <= self.now.wall_ms =>
                {
                    Some(((Reverse(waits.priority), false, offset), attempts + 1))
                }
                _ => None,
            }
        };
        (0..).zip(&self.groups[group]).filter(|(offset, _)| wanted(*offset)).filter_map(due).collect()
    }
}
