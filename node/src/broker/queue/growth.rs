//! A queue that is one of several partitions, which become more: from where on it has no messages of the keys that
//! moved.

use skein_proto::ids::Offset;

use super::Queue;
use crate::{
    broker::Outcome,
    planted::{Bug, is_planted},
};

/// How partitions became more, as one of those that were there has it.
///
/// What it has from `at` on was published by those who knew of all: messages of a key that went to a new partition all
/// lie before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    /// How many there were.
    pub from: u32,
    /// How many there are since.
    pub to: u32,
    /// The offset of the next message then.
    pub at: Offset,
}

impl Queue {
    /// How the partitions of which it is one became more, first to last.
    pub fn growths(&self) -> impl Iterator<Item = Growth> {
        self.growths.iter().copied()
    }

    /// The offset before which it may have messages of keys that now belong to a newer partition. Nothing when it has
    /// not heard of that one yet; zero when there are none.
    #[must_use]
    pub fn moved_before(&self, newer: u32) -> Option<Offset> {
        if self.settings.partitions <= newer {
            return None;
        }
        Some(self.growth_to(newer).map_or(Offset::ZERO, |growth| growth.at))
    }

    /// Whether a group is done with all messages of keys that now belong to a newer partition, so that it may get what
    /// that one has of them. Those that are scheduled for later take their place when they are due, and are not waited
    /// for.
    #[must_use]
    pub fn is_done_with_moved(&self, newer: u32, group: &str, now_ms: u64) -> bool {
        let Some(moved_before) = self.moved_before(newer) else { return false };
        let Some(group) = self.group_by_name(group) else { return true };
        let unacked = group.unacked_before(moved_before);
        let mut parts = unacked.flat_map(|range| {
            let waiting = self.waiting(range.first);
            waiting.take_while(move |part| part.range.first < range.end())
        });
        parts.all(|part| part.deliver_at_ms > now_ms)
    }

    /// How a partition came to be that is newer than this one; nothing for one that was there from the beginning.
    #[must_use]
    pub fn growth_to(&self, newer: u32) -> Option<Growth> {
        self.growths().find(|growth| (growth.from..growth.to).contains(&newer))
    }

    pub(super) fn note_growth(&mut self, to: u32) {
        let from = self.settings.partitions;
        if from > 0 && to > from {
            self.growths.push(Growth { from, to, at: self.next_offset });
        }
    }

    /// What becomes of a batch whose publisher chose this partition among fewer, if it did.
    pub(super) fn check_partitions(&self, known: u32) -> Option<Outcome> {
        let is_known = known == 0 || known == self.settings.partitions || is_planted(Bug::OldPartitionTakes);
        (!is_known).then_some(Outcome::PartitionsChanged)
    }
}
