//! A queue: its messages, its consumer groups and its producers.

mod append;
mod growth;
mod kept;
mod saved;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use skein_proto::{
    ids::{GroupId, Offset, QueueId, Sequence},
    limits::QUEUE_GROUPS_MAX,
};

pub(super) use self::append::{Batch, Each};
pub use self::growth::Growth;
use super::{
    Block, BlockSlice, BlockSpan, GiveUpReason, Group, LivePart, Outcome, Position, Properties, Return,
    Settings, blocks::Blocks, group::TakenBack, live::LiveTally, producers::Producers, recent_ids::RecentIds,
};
use crate::{
    offsets::OffsetRange,
    planted::{Bug, is_planted},
};

/// A named log of messages. Keeps a block until every group has acked all of its messages, and without groups for ever,
/// or else for as long as its limits say; what went before the others leaves a hole between those that are kept.
#[derive(Debug)]
pub struct Queue {
    id: QueueId,
    name: String,
    settings: Settings,
    settings_revision: u64,
    /// Everything before it is gone. The message here is kept, unless there are none.
    first_offset: Offset,
    /// Every group has acked or given up what lies before it, and it does not count towards the limits; it is kept only
    /// to be moved to the dead-letter queue.
    length_floor: Offset,
    /// When anybody last published to it or settled anything, by the core's time.
    used_at_ms: u64,
    next_offset: Offset,
    blocks: Blocks,
    groups: BTreeMap<GroupId, Group>,
    group_names: BTreeMap<String, GroupId>,
    next_group: GroupId,
    producers: Producers,
    /// Of messages that were published lately.
    ids: RecentIds,
    /// How the partitions of which it is one became more, first to last.
    growths: Vec<Growth>,
    /// Groups that were created, changed or forgotten since the last checkpoint.
    changed_groups: BTreeSet<GroupId>,
}

/// Kept messages that follow each other and wait for the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Which messages.
    pub range: OffsetRange,
    /// Not to be delivered before this wall-clock time; 0 for at once.
    pub deliver_at_ms: u64,
    /// May wait until then, and no longer.
    pub expires_at_ms: Option<u64>,
    /// Of the messages that wait, those with the highest go first.
    pub priority: u8,
    /// Messages with the same key have the same; 0 where the order of keys does not matter.
    pub key_slot: u16,
}

/// How deliveries end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settlement<'a> {
    pub(super) acks: &'a [OffsetRange],
    pub(super) returns: &'a [Return],
    pub(super) expired: &'a [OffsetRange],
    /// How often the group had been moved when they began.
    pub(super) seek_count: u32,
}

impl Queue {
    pub(super) fn new(
        id: QueueId,
        name: String,
        settings: Settings,
        settings_revision: u64,
        opened_at_ms: u64,
    ) -> Self {
        Self {
            id,
            name,
            settings,
            settings_revision,
            first_offset: Offset::ZERO,
            length_floor: Offset::ZERO,
            used_at_ms: opened_at_ms,
            next_offset: Offset::ZERO,
            blocks: Blocks::starting_at(0),
            groups: BTreeMap::new(),
            group_names: BTreeMap::new(),
            next_group: GroupId::new(1),
            producers: Producers::default(),
            ids: RecentIds::default(),
            growths: Vec::new(),
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

    /// The catalog's revision when it took its settings.
    #[must_use]
    pub const fn settings_revision(&self) -> u64 {
        self.settings_revision
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

    /// Where the messages of a range that are kept are stored, block by block.
    #[must_use]
    pub fn locate_kept(&self, range: OffsetRange) -> Vec<BlockSlice> {
        let mut slices = Vec::new();
        let mut from = range.first;
        while let Some(first) = self.next_kept(from).filter(|first| *first < range.end()) {
            let count_max = u32::try_from(range.end().since(first)).unwrap_or(u32::MAX);
            let Some(slice) = self.locate(first, count_max) else { break };
            from = first.plus(u64::from(slice.take));
            slices.push(slice);
        }
        slices
    }

    /// The offset of the first message from `from` on that is kept.
    #[must_use]
    pub fn next_kept(&self, from: Offset) -> Option<Offset> {
        let from = from.max(self.first_offset);
        Some(self.blocks.first_ending_after(from)?.first.max(from))
    }

    /// When anybody last published to it or settled anything, by the core's time.
    #[must_use]
    pub const fn used_at_ms(&self) -> u64 {
        self.used_at_ms
    }

    /// Whether all messages that are kept may be delivered at once, in order, and whenever it suits.
    #[must_use]
    pub const fn is_ordinary(&self) -> bool {
        self.blocks.sums().special_blocks == 0 && self.settings.message_ttl_ms.is_none()
    }

    /// The kept messages from `from` on, block by block, and what they wait for.
    pub fn waiting(&self, from: Offset) -> impl Iterator<Item = Waiting> {
        let from = from.max(self.first_offset);
        self.blocks.ending_after(from).map(move |block| {
            let Properties { deliver_at_ms, priority, key_slot, .. } = block.properties;
            let queue_ttl_ms = self.settings.message_ttl_ms;
            Waiting {
                range: OffsetRange::between(block.first.max(from), block.end()),
                deliver_at_ms,
                expires_at_ms: block.properties.expires_at_ms(block.published_at_ms, queue_ttl_ms),
                priority,
                key_slot,
            }
        })
    }

    /// How many bytes the blocks have that hold messages which the group has before it.
    #[must_use]
    pub fn unacked_bytes(&self, group: &Group) -> u64 {
        self.blocks.sums_from(group.acked_floor()).bytes
    }

    /// When the oldest message was published that the group has before it.
    #[must_use]
    pub fn oldest_unacked_at_ms(&self, group: &Group) -> Option<u64> {
        Some(self.blocks.first_ending_after(group.acked_floor())?.published_at_ms)
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

    /// Takes a name and settings, unless they are older than those it has. Gives what had to be let go of.
    pub(super) fn reopen(
        &mut self,
        name: &str,
        settings: &Settings,
        revision: u64,
        now_ms: u64,
    ) -> TakenBack {
        if revision < self.settings_revision {
            return TakenBack::default();
        }
        name.clone_into(&mut self.name);
        self.note_growth(settings.partitions);
        self.settings.clone_from(settings);
        self.settings_revision = revision;
        self.forget_ids(now_ms);
        self.drop_unmovable();
        self.free_all_acked();
        self.enforce_limits(now_ms)
    }

    /// Deletes all messages, and says how many there were.
    pub(super) fn purge(&mut self) -> u64 {
        let messages = self.message_count();
        for group in self.groups.values_mut() {
            group.skip_to(self.next_offset);
            self.changed_groups.insert(group.id());
        }
        self.first_offset = self.next_offset;
        self.length_floor = self.next_offset;
        self.blocks.drop_below(self.first_offset);
        messages
    }

    pub(super) fn create_group(&mut self, name: &str, start: Position, filter: &[u8]) -> Outcome {
        if let Some(&group) = self.group_names.get(name) {
            return Outcome::GroupCreated { group, created: false };
        }
        if self.groups.len() >= QUEUE_GROUPS_MAX {
            return Outcome::TooManyGroups;
        }
        let start = match self.resolve(start) {
            Ok(start) => start,
            Err(refused) => return refused,
        };
        let id = self.next_group;
        self.next_group = GroupId::new(id.get() + 1);
        let mut group = Group::new(id, name.to_owned(), start, filter);
        self.ack_holes(&mut group);
        self.groups.insert(id, group);
        self.group_names.insert(name.to_owned(), id);
        self.changed_groups.insert(id);
        self.free_acked();
        Outcome::GroupCreated { group: id, created: true }
    }

    /// Lets a group want other messages.
    pub(super) fn update_group(&mut self, id: GroupId, filter: &[u8]) -> Outcome {
        match self.change_group(id, |group| group.set_filter(filter)) {
            Some(()) => Outcome::GroupUpdated,
            None => Outcome::GroupNotFound,
        }
    }

    /// Lets a group go on from elsewhere.
    pub(super) fn seek_group(&mut self, id: GroupId, to: Position) -> Outcome {
        let to = match self.resolve(to) {
            Ok(to) => to,
            Err(refused) => return refused,
        };
        let Some(mut group) = self.groups.remove(&id) else {
            return Outcome::GroupNotFound;
        };
        // What it gave up and has not moved yet would be given up for nothing, or delivered as well.
        let outcome = if group.dead_letter_count() > 0 {
            Outcome::DeadLettersPending
        } else {
            if !is_planted(Bug::SeekIgnored) {
                group.seek(to);
            }
            self.ack_holes(&mut group);
            self.changed_groups.insert(id);
            Outcome::GroupMoved { offset: group.acked_floor() }
        };
        self.groups.insert(id, group);
        self.free_all_acked();
        outcome
    }

    /// The offset that a position stands for.
    fn resolve(&self, position: Position) -> Result<Offset, Outcome> {
        let next_offset = self.next_offset;
        let offset = match position {
            Position::First => self.length_floor,
            Position::Next => next_offset,
            Position::Offset(offset) if offset > next_offset => {
                return Err(Outcome::PositionAfterEnd { next_offset });
            }
            Position::Offset(offset) => offset,
            Position::Time(time_ms) => self.published_from(time_ms),
        };
        Ok(offset.max(self.length_floor))
    }

    /// The first kept message that was published at this time or later; without one, the next message.
    #[must_use]
    pub fn published_from(&self, time_ms: u64) -> Offset {
        self.blocks.first_published_from(time_ms).map_or(self.next_offset, |block| block.first)
    }

    /// What is gone never reaches the group, and must not be waited for.
    fn ack_holes(&self, group: &mut Group) {
        for hole in self.blocks.gaps(OffsetRange::between(group.acked_floor(), self.next_offset)) {
            group.ack(hole, self.next_offset);
        }
    }

    pub(super) fn delete_group(&mut self, id: GroupId) -> Outcome {
        let Some(group) = self.groups.remove(&id) else {
            return Outcome::GroupNotFound;
        };
        self.group_names.remove(group.name());
        self.changed_groups.insert(id);
        // It may have been the only one to need any of what is left.
        self.free_all_acked();
        Outcome::GroupDeleted
    }

    /// Ends deliveries; nothing when there is no such group.
    pub(super) fn settle(
        &mut self,
        id: GroupId,
        settlement: Settlement<'_>,
        now_ms: u64,
    ) -> Option<TakenBack> {
        let Settlement { acks, returns, expired, seek_count } = settlement;
        self.used_at_ms = now_ms;
        let give_up = self.give_up_rule(now_ms);
        let next_offset = self.next_offset;
        if self.groups.get(&id)?.seek_count() != seek_count {
            // They were delivered before the group was moved.
            return Some(TakenBack::default());
        }
        let taken = self.change_group(id, |group| {
            for &range in acks {
                group.ack(range, next_offset);
            }
            let mut taken = TakenBack::default();
            for &back in returns {
                group.take_back(back, next_offset, give_up, &mut taken);
            }
            for &range in expired {
                group.give_up(range, GiveUpReason::Expired, next_offset, give_up, &mut taken);
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
}
