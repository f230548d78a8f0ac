//! A queue: its messages, its consumer groups and its producers.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use skein_proto::{
    ids::{GroupId, Offset, ProducerId, QueueId, Sequence},
    limits::QUEUE_GROUPS_MAX,
};

use super::{
    Block, BlockSlice, BlockSpan, Group, GroupStart, LivePart, Outcome, PublishedBatch, QueuePart,
    QueueRecord, Record, RecordKey, RestoreError, Return, Settings,
    blocks::Blocks,
    group::{GiveUp, TakenBack},
    live::LiveTally,
    producers::{Producers, SequenceCheck},
};
use crate::offsets::OffsetRange;

/// A named log of messages. Keeps a block until every group has acked all of its messages, and without groups for
/// ever; what went before the others leaves a hole between those that are kept.
#[derive(Debug)]
pub struct Queue {
    id: QueueId,
    name: String,
    settings: Settings,
    /// Everything before it is gone. The message here is kept, unless there are none.
    first_offset: Offset,
    next_offset: Offset,
    blocks: Blocks,
    groups: BTreeMap<GroupId, Group>,
    group_names: BTreeMap<String, GroupId>,
    next_group: GroupId,
    producers: Producers,
    /// Groups that were created, changed or forgotten since the last checkpoint.
    changed_groups: BTreeSet<GroupId>,
}

/// Where and when a batch was published.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batch {
    pub(super) index: u64,
    /// The core's time.
    pub(super) time_ms: u64,
    /// The shard's elapsed time.
    pub(super) elapsed_ms: u64,
    pub(super) span: BlockSpan,
    pub(super) count: u32,
}

impl Queue {
    pub(super) fn new(id: QueueId, name: String, settings: Settings) -> Self {
        Self {
            id,
            name,
            settings,
            first_offset: Offset::ZERO,
            next_offset: Offset::ZERO,
            blocks: Blocks::starting_at(0),
            groups: BTreeMap::new(),
            group_names: BTreeMap::new(),
            next_group: GroupId::new(1),
            producers: Producers::default(),
            changed_groups: BTreeSet::new(),
        }
    }

    /// Its id.
    #[must_use]
    pub const fn id(&self) -> QueueId {
        self.id
    }

    /// Its name in the catalog.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it behaves.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The offset of the oldest message that is kept; without messages, that of the next one.
    #[must_use]
    pub const fn first_offset(&self) -> Offset {
        self.first_offset
    }

    /// The offset of the next message.
    #[must_use]
    pub const fn next_offset(&self) -> Offset {
        self.next_offset
    }

    /// How many messages are kept.
    #[must_use]
    pub fn message_count(&self) -> u64 {
        let gone_in_front = self.blocks.front().map_or(0, |front| self.first_offset.since(front.first));
        self.blocks.sums().messages - gone_in_front
    }

    /// How many bytes the blocks have that hold kept messages.
    #[must_use]
    pub const fn kept_bytes(&self) -> u64 {
        self.blocks.sums().bytes
    }

    /// The blocks that hold kept messages, oldest first.
    pub fn blocks(&self) -> impl Iterator<Item = Block> {
        self.blocks.iter()
    }

    /// All groups, by id.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values()
    }

    /// The group with this id.
    #[must_use]
    pub fn group(&self, id: GroupId) -> Option<&Group> {
        self.groups.get(&id)
    }

    /// The group with this name.
    #[must_use]
    pub fn group_by_name(&self, name: &str) -> Option<&Group> {
        self.group(*self.group_names.get(name)?)
    }

    /// Where the message at `first` is stored, with up to `count_max` messages of the same block. Nothing when the
    /// message is not kept or `count_max` is 0.
    #[must_use]
    pub fn locate(&self, first: Offset, count_max: u32) -> Option<BlockSlice> {
        if first < self.first_offset || count_max == 0 {
            return None;
        }
        let block = self.blocks.find(first)?;
        let skip =
            u32::try_from(first.since(block.first)).expect("an offset inside a block, which counts in u32");
        Some(BlockSlice {
            index: block.index,
            position: block.span.position,
            length: block.span.length,
            block_first: block.first,
            block_count: block.count,
            published_at_ms: block.published_at_ms,
            skip,
            take: count_max.min(block.count - skip),
        })
    }

    /// The offset of the first message from `from` on that is kept.
    #[must_use]
    pub fn next_kept(&self, from: Offset) -> Option<Offset> {
        let from = from.max(self.first_offset);
        Some(self.blocks.first_ending_after(from)?.first.max(from))
    }

    /// The parts of these entries that hold kept messages.
    pub(super) fn live_parts(&self, entries: Range<u64>) -> impl Iterator<Item = LivePart> {
        self.blocks.in_entries(entries).map(
            |Block { index, span: BlockSpan { position, length }, .. }| LivePart { index, position, length },
        )
    }

    /// What the blocks take in memory.
    #[cfg(test)]
    pub(super) fn block_memory_bytes(&self) -> usize {
        self.blocks.memory_bytes()
    }

    /// Adds all that is kept to the tally.
    pub(super) fn tally_live(&self, tally: &mut LiveTally) {
        self.blocks.tally_live(tally);
    }

    pub(super) fn reopen(&mut self, name: &str, settings: &Settings) {
        name.clone_into(&mut self.name);
        self.settings.clone_from(settings);
    }

    pub(super) fn publish(&mut self, producer: Option<(ProducerId, Sequence)>, batch: Batch) -> Outcome {
        if let Some((id, sequence)) = producer {
            match self.producers.check(id, sequence, batch.elapsed_ms) {
                SequenceCheck::Next => {}
                SequenceCheck::Duplicate(PublishedBatch { first, count }) => {
                    return Outcome::Published { first_offset: first, count, duplicate: true };
                }
                SequenceCheck::TooOld => return Outcome::SequenceTooOld,
                SequenceCheck::Gap { expected } => return Outcome::SequenceGap { expected },
            }
            let published = PublishedBatch { first: self.next_offset, count: batch.count };
            self.producers.record(id, sequence, published, batch.elapsed_ms);
        }
        let first = self.next_offset;
        if batch.count > 0 {
            let Batch { index, time_ms: published_at_ms, span, count, .. } = batch;
            let block = Block { index, first, published_at_ms, span, count };
            self.next_offset = block.end();
            self.blocks.push(block);
        }
        Outcome::Published { first_offset: first, count: batch.count, duplicate: false }
    }

    /// Deletes all messages, and says how many there were.
    pub(super) fn purge(&mut self) -> u64 {
        let messages = self.message_count();
        for group in self.groups.values_mut() {
            group.skip_to(self.next_offset);
            self.changed_groups.insert(group.id());
        }
        self.first_offset = self.next_offset;
        self.blocks.drop_below(self.first_offset);
        messages
    }

    pub(super) fn create_group(&mut self, name: &str, start: GroupStart) -> Outcome {
        if let Some(&group) = self.group_names.get(name) {
            return Outcome::GroupCreated { group, created: false };
        }
        if self.groups.len() >= QUEUE_GROUPS_MAX {
            return Outcome::TooManyGroups;
        }
        let id = self.next_group;
        self.next_group = GroupId::new(id.get() + 1);
        let kept = OffsetRange::between(self.first_offset, self.next_offset);
        let mut group = Group::new(id, name.to_owned(), start, kept);
        // What is gone never reaches the group, and must not be waited for.
        for hole in self.blocks.gaps(kept) {
            group.ack(hole, self.next_offset);
        }
        self.groups.insert(id, group);
        self.group_names.insert(name.to_owned(), id);
        self.changed_groups.insert(id);
        self.free_acked();
        Outcome::GroupCreated { group: id, created: true }
    }

    pub(super) fn delete_group(&mut self, id: GroupId) -> Outcome {
        let Some(group) = self.groups.remove(&id) else {
            return Outcome::GroupNotFound;
        };
        self.group_names.remove(group.name());
        self.changed_groups.insert(id);
        self.free_acked();
        // It may have been the only one to need any of what is left.
        self.free_holes([OffsetRange::between(self.first_offset, self.next_offset)]);
        Outcome::GroupDeleted
    }

    /// Ends deliveries; nothing when there is no such group.
    pub(super) fn settle(
        &mut self,
        id: GroupId,
        acks: &[OffsetRange],
        returns: &[Return],
    ) -> Option<TakenBack> {
        let give_up = GiveUp {
            max_deliveries: self.settings.max_deliveries,
            has_dead_letter_queue: self.settings.dead_letter_queue.is_some(),
        };
        let next_offset = self.next_offset;
        let taken = self.change_group(id, |group| {
            for &range in acks {
                group.ack(range, next_offset);
            }
            let mut taken = TakenBack::default();
            for &back in returns {
                group.take_back(back, next_offset, give_up, &mut taken);
            }
            taken
        })?;
        self.free_holes(acks.iter().chain(&taken.dropped).copied());
        Some(taken)
    }

    pub(super) fn dead_letters_moved(&mut self, id: GroupId, up_to: Sequence) -> Outcome {
        let next_offset = self.next_offset;
        match self.change_group(id, |group| group.dead_letters_moved(up_to, next_offset)) {
            Some(moved) => {
                self.free_holes(moved);
                Outcome::DeadLettersMoved
            }
            None => Outcome::GroupNotFound,
        }
    }

    /// Everything, for a snapshot.
    pub(super) fn records(&self) -> impl Iterator<Item = (RecordKey, Record)> {
        let groups =
            self.groups.values().map(|group| (QueuePart::Group(group.id()), Record::Group(group.record())));
        let pages = self.blocks.pages().map(|(number, page)| (QueuePart::Page(number), Record::Page(page)));
        let producers =
            self.producers.records().map(|(id, record)| (QueuePart::Producer(id), Record::Producer(record)));
        let parts = [(QueuePart::Head, self.head())].into_iter().chain(groups).chain(pages).chain(producers);
        parts.map(|(part, record)| (self.key(part), record))
    }

    /// What changed since the last call; nothing for what is gone.
    pub(super) fn take_changes(&mut self) -> Vec<(RecordKey, Option<Record>)> {
        let mut parts = vec![(QueuePart::Head, Some(self.head()))];
        for id in std::mem::take(&mut self.changed_groups) {
            let record = self.groups.get(&id).map(|group| Record::Group(group.record()));
            parts.push((QueuePart::Group(id), record));
        }
        let (gone, written) = self.blocks.take_changes();
        // First: a page that is gone may have come again.
        parts.extend(gone.into_iter().map(|number| (QueuePart::Page(number), None)));
        parts.extend(
            written.into_iter().map(|(number, page)| (QueuePart::Page(number), Some(Record::Page(page)))),
        );
        let producers = self.producers.take_changes();
        parts.extend(producers.map(|(id, record)| (QueuePart::Producer(id), record.map(Record::Producer))));
        parts.into_iter().map(|(part, record)| (self.key(part), record)).collect()
    }

    /// The keys of all records that a checkpoint may have of this queue.
    pub(super) fn saved_keys(&self) -> impl Iterator<Item = RecordKey> {
        let groups = self.groups.keys().chain(&self.changed_groups).copied().map(QueuePart::Group);
        let pages = self.blocks.saved_pages().map(QueuePart::Page);
        let producers = self.producers.ids().map(QueuePart::Producer);
        [QueuePart::Head].into_iter().chain(groups).chain(pages).chain(producers).map(|part| self.key(part))
    }

    pub(super) fn restore_head(id: QueueId, record: QueueRecord) -> Result<Self, RestoreError> {
        if record.first_offset > record.next_offset {
            let key = RecordKey::Queue { queue: id, part: QueuePart::Head };
            return Err(RestoreError::Contradiction { key, what: "the queue begins after its end" });
        }
        Ok(Self {
            first_offset: record.first_offset,
            next_offset: record.next_offset,
            blocks: Blocks::starting_at(record.next_block),
            next_group: record.next_group,
            ..Self::new(id, record.name, record.settings)
        })
    }

    pub(super) fn restore_part(&mut self, part: QueuePart, record: Record) -> Result<(), RestoreError> {
        let key = self.key(part);
        let contradiction = |what| RestoreError::Contradiction { key, what };
        match (part, record) {
            (QueuePart::Group(id), Record::Group(record)) => {
                let group = Group::restore(id, record);
                let acked_to = group.untouched_from();
                if group.acked_floor() < self.first_offset
                    || acked_to > self.next_offset
                    || id >= self.next_group
                {
                    return Err(contradiction("the group lies outside the queue"));
                }
                if !group.has_true_floor() {
                    return Err(contradiction("the group has acked the message at its floor"));
                }
                self.group_names.insert(group.name().to_owned(), id);
                self.groups.insert(id, group);
            }
            (QueuePart::Page(number), Record::Page(page)) => {
                self.blocks.restore_page(number, &page).map_err(contradiction)?;
            }
            (QueuePart::Producer(id), Record::Producer(record)) => self.producers.restore(id, &record),
            _ => return Err(RestoreError::Misplaced(key)),
        }
        Ok(())
    }

    /// Checks what can only be checked when all parts are there.
    pub(super) fn finish_restore(&mut self, message_count: u64) -> Result<(), RestoreError> {
        self.blocks.drop_below(self.first_offset);
        self.check_blocks(message_count)
            .map_err(|what| RestoreError::Contradiction { key: self.key(QueuePart::Head), what })
    }

    fn check_blocks(&self, message_count: u64) -> Result<(), &'static str> {
        if self.blocks.back().is_some_and(|back| back.end() > self.next_offset) {
            return Err("the queue has blocks after its end");
        }
        let first_kept = self.blocks.front().map_or(self.next_offset, |front| front.first);
        if first_kept > self.first_offset || self.message_count() != message_count {
            return Err("blocks are missing");
        }
        if self.groups.values().map(Group::acked_floor).min().is_some_and(|floor| floor != self.first_offset)
        {
            return Err("the queue does not begin at the lowest floor of its groups");
        }
        let mut holes = self.blocks.gaps(OffsetRange::between(self.first_offset, self.next_offset));
        let is_needed = |hole: OffsetRange| self.groups.values().any(|group| !group.has_acked(hole));
        if holes.any(is_needed) {
            return Err("a group needs a block that is missing");
        }
        Ok(())
    }

    fn change_group<T>(&mut self, id: GroupId, change: impl FnOnce(&mut Group) -> T) -> Option<T> {
        let group = self.groups.get_mut(&id)?;
        let floor_before = group.acked_floor();
        let result = change(group);
        let holds_queue = floor_before == self.first_offset && group.acked_floor() > floor_before;
        self.changed_groups.insert(id);
        // Any other group's floor cannot be the lowest one, so that nothing is freed.
        if holds_queue {
            self.free_acked();
        }
        Some(result)
    }

    /// Frees what lies below all groups' floors. Without groups everything is kept for the first one.
    fn free_acked(&mut self) {
        if let Some(floor) = self.groups.values().map(Group::acked_floor).min()
            && floor > self.first_offset
        {
            self.first_offset = floor;
            self.blocks.drop_below(floor);
        }
    }

    /// Frees the blocks between others that all groups have acked, of those that these ranges touch.
    fn free_holes(&mut self, acked: impl IntoIterator<Item = OffsetRange>) {
        if self.groups.is_empty() {
            return;
        }
        let kept = OffsetRange::between(self.first_offset, self.next_offset);
        for range in acked {
            let range = range.intersect(kept);
            if range.is_empty() || self.groups.values().any(|group| group.acked_end() <= range.first) {
                continue;
            }
            for free in self.acked_by_all(self.whole_blocks(range)) {
                self.blocks.drop_inside(free);
            }
        }
    }

    /// The range, and whatever else is in the blocks that its ends are in.
    fn whole_blocks(&self, range: OffsetRange) -> OffsetRange {
        let first = self.blocks.find(range.first).map_or(range.first, |block| block.first);
        let last = Offset::new(range.end().get() - 1);
        let end = self.blocks.find(last).map_or(range.end(), |block| block.end());
        OffsetRange::between(first, end)
    }

    /// The parts of `range` that every group has acked.
    fn acked_by_all(&self, range: OffsetRange) -> Vec<OffsetRange> {
        let mut parts = vec![range];
        for group in self.groups.values() {
            parts = parts.into_iter().flat_map(|part| group.acked_in(part)).collect();
            if parts.is_empty() {
                break;
            }
        }
        parts
    }

    fn head(&self) -> Record {
        Record::Queue(QueueRecord {
            name: self.name.clone(),
            settings: self.settings.clone(),
            first_offset: self.first_offset,
            next_offset: self.next_offset,
            message_count: self.message_count(),
            next_block: self.blocks.next_number(),
            next_group: self.next_group,
        })
    }

    const fn key(&self, part: QueuePart) -> RecordKey {
        RecordKey::Queue { queue: self.id, part }
    }
}
