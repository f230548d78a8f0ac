//! What a group can deliver now, by priority.

use std::collections::{BTreeMap, btree_map::Entry};

use crate::{
    offsets::{OffsetRange, OffsetRuns},
    planted::{Bug, is_planted},
};

/// Messages with the attempts so far, the highest priority first and in each the lowest offset. Lower priorities can
/// have a share of their own: while they wait, every so many messages the one with the lowest offset of them is next.
#[derive(Debug)]
pub(super) struct Lanes {
    /// None of them empty.
    by_priority: BTreeMap<u8, OffsetRuns<u32>>,
    /// The share of lower priorities.
    lower_percent: u32,
    /// What lower priorities have not had of their share, in hundredths of a message. Less than 100.
    owed_percent: u32,
}

impl Lanes {
    pub(super) const fn new(lower_percent: u32) -> Self {
        Self { by_priority: BTreeMap::new(), lower_percent, owed_percent: 0 }
    }

    /// Gives lower priorities another share. They are owed nothing from before.
    pub(super) fn set_lower_percent(&mut self, percent: u32) {
        if percent != self.lower_percent {
            self.lower_percent = percent;
            self.owed_percent = 0;
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.by_priority.values().map(OffsetRuns::len).sum()
    }

    /// What comes next, with its attempts.
    pub(super) fn first(&self) -> Option<(OffsetRange, u32)> {
        let (range, &attempts) = self.by_priority.get(&self.next_priority()?)?.first()?;
        let count_max = if self.lower_percent == 0 || self.by_priority.len() < 2 {
            u64::MAX
        } else {
            // One of the lower ones, or as many as there are before it.
            (100 - self.lower_percent)
                .saturating_sub(self.owed_percent)
                .div_ceil(self.lower_percent)
                .max(1)
                .into()
        };
        Some((OffsetRange::new(range.first, range.count.min(count_max)), attempts))
    }

    /// The priority of what comes next.
    fn next_priority(&self) -> Option<u8> {
        let (&highest, _) = self.by_priority.last_key_value()?;
        if self.lower_percent == 0 || self.owed_percent < 100 - self.lower_percent {
            return Some(highest);
        }
        let lower = self.by_priority.range(..highest);
        let oldest = lower.min_by_key(|(_, lane)| lane.first().map(|(range, _)| range.first));
        Some(oldest.map_or(highest, |(&priority, _)| priority))
    }

    /// The parts of a range that can be delivered, lowest offsets first.
    pub(super) fn overlapping(&self, range: OffsetRange) -> Vec<(OffsetRange, u32)> {
        let parts = self.by_priority.values().flat_map(|lane| lane.overlapping(range));
        let mut parts: Vec<_> = parts.map(|(part, &attempts)| (part, attempts)).collect();
        parts.sort_unstable_by_key(|(part, _)| part.first);
        parts
    }

    /// Adds messages, none of which may be there already.
    pub(super) fn insert(&mut self, range: OffsetRange, attempts: u32, priority: u8) {
        let priority = if is_planted(Bug::PriorityIgnored) { 0 } else { priority };
        if !range.is_empty() {
            self.by_priority.entry(priority).or_default().insert(range, attempts);
        }
    }

    /// Takes out messages of the run that comes next. Looks into its lane only, as [`Lanes::remove`] does not.
    pub(super) fn take_first(&mut self, range: OffsetRange) {
        let Some(priority) = self.next_priority() else { return };
        let is_highest = self.by_priority.last_key_value().is_some_and(|(&highest, _)| highest == priority);
        if !is_highest {
            self.owed_percent -= 100 - self.lower_percent;
        } else if self.by_priority.len() > 1 {
            // Never more than what makes the lower ones come next.
            let count = u32::try_from(range.count).unwrap_or(u32::MAX);
            self.owed_percent += count.saturating_mul(self.lower_percent);
        }
        if let Entry::Occupied(mut lane) = self.by_priority.entry(priority) {
            lane.get_mut().remove(range);
            if lane.get().is_empty() {
                lane.remove();
            }
        }
    }

    pub(super) fn remove(&mut self, range: OffsetRange) {
        self.by_priority.retain(|_, lane| {
            lane.remove(range);
            !lane.is_empty()
        });
    }
}
