//! What a group gave up, until it is in the dead-letter queue.

use std::collections::BTreeMap;

use skein_proto::ids::{Offset, Sequence};

use crate::offsets::{OffsetRange, OffsetSet};

/// A message that was given up and waits to be moved to the dead-letter queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its number among the group's dead letters: 1, 2, 3, ...
    pub sequence: Sequence,
    /// Which message.
    pub offset: Offset,
    /// How it came to this.
    pub given_up: GivenUp,
}

/// How a message came to be given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GivenUp {
    /// How often it was delivered.
    pub attempts: u32,
    /// Why.
    pub reason: GiveUpReason,
    /// When, by the core's time.
    pub at_ms: u64,
}

/// Why a group gives a message up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveUpReason {
    /// It came back too often.
    MaxDeliveries,
    /// Nobody took it in time.
    Expired,
    /// The queue was full, and it was the oldest.
    Overflow,
    /// A consumer rejected it.
    Rejected,
}

/// Consecutive messages with consecutive dead-letter sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadLetterRun {
    /// The sequence of the first one.
    pub first_sequence: Sequence,
    /// Which messages.
    pub range: OffsetRange,
    /// How it came to this.
    pub given_up: GivenUp,
}

impl DeadLetterRun {
    /// Its messages, one by one.
    pub fn messages(self) -> impl Iterator<Item = DeadLetter> {
        let Self { first_sequence, range, given_up } = self;
        (0..range.count).map(move |n| DeadLetter {
            sequence: Sequence::new(first_sequence.get() + n),
            offset: range.first.plus(n),
            given_up,
        })
    }

    /// The messages of it that are in `part`.
    fn clip(self, part: OffsetRange) -> Self {
        let range = self.range.intersect(part);
        let skipped = range.first.since(self.range.first);
        Self { first_sequence: Sequence::new(self.first_sequence.get() + skipped), range, ..self }
    }
}

/// What waits to be moved to the dead-letter queue.
#[derive(Debug)]
pub(super) struct DeadLetters {
    by_sequence: BTreeMap<Sequence, (OffsetRange, GivenUp)>,
    pub(super) offsets: OffsetSet,
    pub(super) next: Sequence,
}

impl DeadLetters {
    pub(super) const fn starting_at(next: Sequence) -> Self {
        Self { by_sequence: BTreeMap::new(), offsets: OffsetSet::new(), next }
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = DeadLetterRun> {
        self.by_sequence.iter().map(|(&first_sequence, &(range, given_up))| DeadLetterRun {
            first_sequence,
            range,
            given_up,
        })
    }

    pub(super) fn push(&mut self, range: OffsetRange, given_up: GivenUp) {
        self.put(DeadLetterRun { first_sequence: self.next, range, given_up });
        self.next = Sequence::new(self.next.get() + range.count);
    }

    pub(super) fn put(&mut self, run: DeadLetterRun) {
        if !run.range.is_empty() {
            self.by_sequence.insert(run.first_sequence, (run.range, run.given_up));
            self.offsets.insert(run.range);
        }
    }

    pub(super) fn take_up_to(&mut self, up_to: Sequence) -> Vec<DeadLetterRun> {
        let mut taken = Vec::new();
        while let Some((&first_sequence, &(range, given_up))) = self.by_sequence.first_key_value()
            && first_sequence <= up_to
        {
            let count = (up_to.get() - first_sequence.get()).saturating_add(1);
            let run = DeadLetterRun { first_sequence, range, given_up };
            let (moved, rest) = range.split_at(OffsetRange::new(range.first, count).end());
            self.by_sequence.pop_first();
            self.offsets.remove(range);
            taken.push(run.clip(moved));
            self.put(run.clip(rest));
        }
        taken
    }

    /// Takes out messages that were acked after all. Rare, so that a walk through all runs is good enough.
    pub(super) fn remove(&mut self, range: OffsetRange) {
        if !self.offsets.intersects(range) {
            return;
        }
        let hit: Vec<_> = self.runs().filter(|run| !run.range.intersect(range).is_empty()).collect();
        for run in hit {
            self.by_sequence.remove(&run.first_sequence);
            self.offsets.remove(run.range);
            self.put(run.clip(OffsetRange::between(run.range.first, range.first)));
            self.put(run.clip(OffsetRange::between(range.end(), run.range.end())));
        }
    }

    pub(super) fn clear(&mut self) {
        self.by_sequence.clear();
        self.offsets.clear();
    }
}
