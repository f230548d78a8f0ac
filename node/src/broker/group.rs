//! A consumer group: what is acked, what came back how often, and what was given up.

mod dead_letters;

use std::sync::Arc;

use skein_proto::ids::{GroupId, Offset, Sequence};

use self::dead_letters::DeadLetters;
pub use self::dead_letters::{DeadLetter, DeadLetterRun, GiveUpReason, GivenUp};
use super::{GroupRecord, Return};
use crate::offsets::{OffsetRange, OffsetRuns, OffsetSet};

/// A named reader of a queue.
#[derive(Debug)]
pub struct Group {
    id: GroupId,
    name: String,
    /// Everything before it is acked.
    acked_floor: Offset,
    /// What is acked above the floor; never touches it.
    acked: OffsetSet,
    /// Neither acked nor given up.
    returned: OffsetRuns<Returned>,
    dead_letters: DeadLetters,
    dead_lettered_total: u64,
    dropped_total: u64,
    /// How often it was moved.
    seek_count: u32,
    /// Which messages it wants. Read by those who deliver.
    filter: Option<Arc<[u8]>>,
}

/// What is known of a message that came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Returned {
    /// How often it was delivered.
    pub attempts: u32,
    /// Not to be delivered before this wall-clock time; 0 for at once.
    pub not_before_ms: u64,
}

/// What became of messages that came back, or that the group may not keep.
#[derive(Debug, Default)]
pub(super) struct TakenBack {
    /// To be delivered again.
    pub(super) redeliver: Vec<(OffsetRange, Returned)>,
    /// Not to be delivered again.
    pub(super) given_up: Vec<OffsetRange>,
    /// Some wait for the dead-letter queue.
    pub(super) has_dead_letters: bool,
    /// Given up without a dead-letter queue, and so acked.
    pub(super) dropped: Vec<OffsetRange>,
    /// Nothing below it is to be delivered any more, to no group.
    pub(super) dropped_below: Option<Offset>,
    /// The groups that gave something up because of that, which waits for the dead-letter queue.
    pub(super) dead_letter_groups: Vec<GroupId>,
}

/// When to give a message up, and what to do then.
#[derive(Debug, Clone, Copy)]
pub(super) struct GiveUp {
    pub(super) max_deliveries: u32,
    pub(super) has_dead_letter_queue: bool,
    /// The core's time.
    pub(super) now_ms: u64,
}

impl Group {
    /// A group that has everything before `start` behind it.
    pub(super) fn new(id: GroupId, name: String, start: Offset, filter: &[u8]) -> Self {
        Self {
            id,
            name,
            acked_floor: start,
            acked: OffsetSet::new(),
            returned: OffsetRuns::new(),
            dead_letters: DeadLetters::starting_at(Sequence::FIRST),
            dead_lettered_total: 0,
            dropped_total: 0,
            seek_count: 0,
            filter: shared(filter),
        }
    }

    /// Its number in the queue.
    #[must_use]
    pub const fn id(&self) -> GroupId {
        self.id
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Everything before it is acked.
    #[must_use]
    pub const fn acked_floor(&self) -> Offset {
        self.acked_floor
    }

    /// How many messages below `next_offset`, the end of the queue, are not acked.
    #[must_use]
    pub fn unacked_count(&self, next_offset: Offset) -> u64 {
        next_offset.since(self.acked_floor) - self.acked.len()
    }

    /// What lies before `end` and is not acked.
    pub(super) fn unacked_before(&self, end: Offset) -> impl Iterator<Item = OffsetRange> {
        self.acked.gaps(OffsetRange::between(self.acked_floor, end.max(self.acked_floor)))
    }

    /// How many messages came back and are to be delivered again.
    #[must_use]
    pub const fn returned_count(&self) -> u64 {
        self.returned.len()
    }

    /// How many messages went to the dead-letter queue.
    #[must_use]
    pub const fn dead_lettered_total(&self) -> u64 {
        self.dead_lettered_total
    }

    /// How many messages were given up without a dead-letter queue.
    #[must_use]
    pub const fn dropped_total(&self) -> u64 {
        self.dropped_total
    }

    /// How often it was moved: what was delivered before the last time is void.
    #[must_use]
    pub const fn seek_count(&self) -> u32 {
        self.seek_count
    }

    /// Which messages it wants, as the command that set it said; nothing for all.
    #[must_use]
    pub const fn filter(&self) -> Option<&Arc<[u8]>> {
        self.filter.as_ref()
    }

    /// The messages that wait to be moved to the dead-letter queue, in order of sequence.
    pub fn dead_letters(&self) -> impl Iterator<Item = DeadLetter> {
        self.dead_letters.runs().flat_map(DeadLetterRun::messages)
    }

    /// How many messages wait to be moved to the dead-letter queue.
    #[must_use]
    pub const fn dead_letter_count(&self) -> u64 {
        self.dead_letters.offsets.len()
    }

    /// The offset from which on nothing was ever acked or returned: all of it is deliverable, in its first attempt as
    /// far as the group knows.
    #[must_use]
    pub fn untouched_from(&self) -> Offset {
        let ends = [self.acked.end(), self.returned.end(), self.dead_letters.offsets.end()];
        ends.into_iter().flatten().fold(self.acked_floor, Offset::max)
    }

    /// Everything below [`Group::untouched_from`] that is neither acked nor given up, with what is known of it. What
    /// never came back has 0 attempts.
    #[must_use]
    pub fn deliverable(&self) -> OffsetRuns<Returned> {
        let touched = OffsetRange::between(self.acked_floor, self.untouched_from());
        let unacked = self.acked.gaps(touched);
        let mut deliverable: OffsetRuns<_> =
            unacked.map(|range| (range, Returned { attempts: 0, not_before_ms: 0 })).collect();
        for range in self.dead_letters.offsets.iter() {
            deliverable.remove(range);
        }
        for (range, &returned) in self.returned.iter() {
            deliverable.insert(range, returned);
        }
        deliverable
    }

    /// Nothing is acked from here on.
    pub(super) fn acked_end(&self) -> Offset {
        self.acked.end().unwrap_or(self.acked_floor)
    }

    /// The parts of `range` that are acked, lowest first.
    pub fn acked_in(&self, range: OffsetRange) -> impl Iterator<Item = OffsetRange> {
        let (below, above) = range.split_at(self.acked_floor);
        (!below.is_empty()).then_some(below).into_iter().chain(self.acked.overlapping(above))
    }

    /// The parts of `range` that are given up and wait to be moved, lowest first.
    pub fn given_up_in(&self, range: OffsetRange) -> impl Iterator<Item = OffsetRange> {
        self.dead_letters.offsets.overlapping(range)
    }

    /// Whether the floor is where it belongs: at the first message that is not acked.
    pub(super) fn has_true_floor(&self) -> bool {
        self.acked.iter().next().is_none_or(|range| range.first > self.acked_floor)
    }

    /// Whether all of `range` is acked.
    pub(super) fn has_acked(&self, range: OffsetRange) -> bool {
        let (_, above) = range.split_at(self.acked_floor);
        above.is_empty() || self.acked.first_gap(above.first) >= above.end()
    }

    pub(super) fn ack(&mut self, range: OffsetRange, next_offset: Offset) {
        let range = range.intersect(OffsetRange::between(self.acked_floor, next_offset));
        if range.is_empty() {
            return;
        }
        self.returned.remove(range);
        self.dead_letters.remove(range);
        if range.first == self.acked_floor {
            self.acked_floor = range.end();
            self.acked.remove(range);
        } else {
            self.acked.insert(range);
        }
        let floor = self.acked.first_gap(self.acked_floor);
        self.acked.remove(OffsetRange::between(self.acked_floor, floor));
        self.acked_floor = floor;
    }

    /// Takes messages back: to be delivered again, or given up.
    pub(super) fn take_back(
        &mut self,
        back: Return,
        next_offset: Offset,
        give_up: GiveUp,
        taken: &mut TakenBack,
    ) {
        let range = back.range.intersect(OffsetRange::between(self.acked_floor, next_offset));
        for (range, returned) in self.merge_attempts(back, range) {
            let is_worn = returned.attempts >= give_up.max_deliveries;
            if is_worn || back.rejected {
                let reason = if back.rejected { GiveUpReason::Rejected } else { GiveUpReason::MaxDeliveries };
                self.give_up_part(range, returned.attempts, reason, next_offset, give_up, taken);
            } else {
                self.returned.insert(range, returned);
                taken.redeliver.push((range, returned));
            }
        }
    }

    /// Gives up what is neither acked nor given up of a range.
    pub(super) fn give_up(
        &mut self,
        range: OffsetRange,
        reason: GiveUpReason,
        next_offset: Offset,
        give_up: GiveUp,
        taken: &mut TakenBack,
    ) {
        let range = range.intersect(OffsetRange::between(self.acked_floor, next_offset));
        // As if it came back from no delivery: what is known of earlier ones counts.
        let back = Return { range, attempt: 0, not_before_ms: 0, rejected: false };
        for (range, returned) in self.merge_attempts(back, range) {
            self.give_up_part(range, returned.attempts, reason, next_offset, give_up, taken);
        }
    }

    fn give_up_part(
        &mut self,
        range: OffsetRange,
        attempts: u32,
        reason: GiveUpReason,
        next_offset: Offset,
        give_up: GiveUp,
        taken: &mut TakenBack,
    ) {
        taken.given_up.push(range);
        if give_up.has_dead_letter_queue {
            self.returned.remove(range);
            self.dead_letters.push(range, GivenUp { attempts, reason, at_ms: give_up.now_ms });
            taken.has_dead_letters = true;
        } else {
            self.ack(range, next_offset);
            self.dropped_total += range.count;
            taken.dropped.push(range);
        }
    }

    /// Acks the dead letters up to a sequence, and says which messages they are.
    pub(super) fn dead_letters_moved(&mut self, up_to: Sequence, next_offset: Offset) -> Vec<OffsetRange> {
        let moved = self.dead_letters.take_up_to(up_to);
        for run in &moved {
            self.dead_lettered_total += run.range.count;
            self.ack(run.range, next_offset);
        }
        moved.into_iter().map(|run| run.range).collect()
    }

    /// Drops what waits to be moved to a dead-letter queue that is not named any more.
    pub(super) fn drop_dead_letters(&mut self, next_offset: Offset) {
        let waiting: Vec<_> = self.dead_letters.offsets.iter().collect();
        for range in waiting {
            self.dropped_total += range.count;
            self.ack(range, next_offset);
        }
    }

    /// Leaves everything behind that is in the queue.
    pub(super) fn skip_to(&mut self, next_offset: Offset) {
        self.acked_floor = next_offset;
        self.acked.clear();
        self.returned.clear();
        self.dead_letters.clear();
    }

    pub(super) fn set_filter(&mut self, filter: &[u8]) {
        self.filter = shared(filter);
    }

    /// Goes on from elsewhere, as if nothing from there on had ever been delivered.
    pub(super) fn seek(&mut self, to: Offset) {
        self.skip_to(to);
        self.seek_count += 1;
    }

    /// Counts as dropped what is not acked below `below`, and acks it.
    pub(super) fn drop_below(&mut self, below: Offset, next_offset: Offset) {
        let range = OffsetRange::between(self.acked_floor, below);
        self.dropped_total += self.acked.gaps(range).map(|gap| gap.count).sum::<u64>();
        self.ack(range, next_offset);
    }

    pub(super) fn record(&self) -> GroupRecord {
        GroupRecord {
            name: self.name.clone(),
            acked_floor: self.acked_floor,
            acked: self.acked.iter().collect(),
            returned: self.returned.iter().map(|(range, &returned)| (range, returned)).collect(),
            dead_letters: self.dead_letters.runs().collect(),
            next_dead_letter: self.dead_letters.next,
            dead_lettered_total: self.dead_lettered_total,
            dropped_total: self.dropped_total,
            seek_count: self.seek_count,
            filter: self.filter.as_deref().unwrap_or_default().to_vec(),
        }
    }

    pub(super) fn restore(id: GroupId, record: GroupRecord) -> Self {
        let mut dead_letters = DeadLetters::starting_at(record.next_dead_letter);
        for run in record.dead_letters {
            dead_letters.put(run);
        }
        Self {
            id,
            name: record.name,
            acked_floor: record.acked_floor,
            acked: record.acked.into_iter().collect(),
            returned: record.returned.into_iter().collect(),
            dead_letters,
            dead_lettered_total: record.dead_lettered_total,
            dropped_total: record.dropped_total,
            seek_count: record.seek_count,
            filter: shared(&record.filter),
        }
    }

    /// The parts of `range` that are neither acked nor given up.
    pub fn open_in(&self, range: OffsetRange) -> impl Iterator<Item = OffsetRange> {
        self.acked.gaps(range).flat_map(|part| self.dead_letters.offsets.gaps(part))
    }

    /// The parts of `range` that are neither acked nor given up, with what is known of them after this return. An older
    /// return that arrives late changes nothing.
    fn merge_attempts(&self, back: Return, range: OffsetRange) -> Vec<(OffsetRange, Returned)> {
        let new = Returned { attempts: back.attempt, not_before_ms: back.not_before_ms };
        let mut merged = Vec::new();
        for part in self.open_in(range) {
            let mut reached = part.first;
            for (known_part, &known) in self.returned.overlapping(part) {
                let returned = if known.attempts > new.attempts { known } else { new };
                merged.push((OffsetRange::between(reached, known_part.first), new));
                merged.push((known_part, returned));
                reached = known_part.end();
            }
            merged.push((OffsetRange::between(reached, part.end()), new));
        }
        merged.retain(|(part, _)| !part.is_empty());
        merged
    }
}

fn shared(filter: &[u8]) -> Option<Arc<[u8]>> {
    (!filter.is_empty()).then(|| filter.into())
}
