//! What a group can deliver now, by priority.

use std::collections::BTreeMap;

use crate::offsets::{OffsetRange, OffsetRuns};

/// Messages with the attempts so far, the highest priority first and in each the lowest offset.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    /// None of them empty.
    by_priority: BTreeMap<u8, OffsetRuns<u32>>,
}

impl Lanes {
    pub(super) fn len(&self) -> u64 {
        self.by_priority.values().map(OffsetRuns::len).sum()
    }

    /// What comes next, with its attempts.
    pub(super) fn first(&self) -> Option<(OffsetRange, u32)> {
        let (range, &attempts) = self.by_priority.last_key_value()?.1.first()?;
        Some((range, attempts))
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
        if !range.is_empty() {
            self.by_priority.entry(priority).or_default().insert(range, attempts);
        }
    }

    /// Takes out messages of the run that comes next. Looks into its lane only, as [`Lanes::remove`] does not.
    pub(super) fn take_first(&mut self, range: OffsetRange) {
        if let Some(mut lane) = self.by_priority.last_entry() {
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
