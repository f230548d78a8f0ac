//! A queue of the model: every message ever published, and which are kept.

mod each;

use std::collections::{BTreeMap, BTreeSet};

use skein_proto::ids::{GroupId, Offset, ProducerId, QueueId, Sequence};

use super::group::{ModelGroup, State, UNTOUCHED};
use crate::{
    broker::{
        BatchRun, Block, BlockSlice, BlockSpan, Command, GiveUpReason, IdHash, Outcome, Overflow, Position,
        Properties, PublishPart, PublishedBatch, Retention, Settings, Shard, Waiting,
    },
    offsets::OffsetRange,
};

pub(super) struct ModelQueue {
    name: String,
    settings: Settings,
    revision: u64,
    /// For each message ever published, the block it is in.
    messages: Vec<Block>,
    /// For each message ever published, whether its block is still there.
    kept: Vec<bool>,
    first: usize,
    /// What lies before it does not count towards the limits.
    length_floor: usize,
    groups: BTreeMap<GroupId, ModelGroup>,
    next_group: u32,
    /// For each producer, the offsets of all its batches.
    producers: BTreeMap<ProducerId, Vec<(Offset, u32)>>,
    /// For each producer, the places that were stored of each batch that was routed here.
    routed: BTreeMap<ProducerId, BTreeMap<Sequence, BTreeSet<u32>>>,
    /// When each id was stored for the last time.
    ids: BTreeMap<IdHash, u64>,
    /// The offset of the next message when there came to be more partitions than this number.
    partitions_since: BTreeMap<u32, Offset>,
}

impl ModelQueue {
    pub(super) fn new(name: &str, settings: &Settings, revision: u64) -> Self {
        Self {
            name: name.to_owned(),
            settings: settings.clone(),
            revision,
            messages: Vec::new(),
            kept: Vec::new(),
            first: 0,
            length_floor: 0,
            groups: BTreeMap::new(),
            next_group: 1,
            producers: BTreeMap::new(),
            routed: BTreeMap::new(),
            ids: BTreeMap::new(),
            partitions_since: BTreeMap::new(),
        }
    }

    pub(super) fn reopen(&mut self, name: &str, settings: &Settings, revision: u64, now_ms: u64) {
        if revision >= self.revision {
            name.clone_into(&mut self.name);
            let (from, to) = (self.settings.partitions, settings.partitions);
            for newer in (from..to).filter(|_| from > 0) {
                let at = Offset::new(self.messages.len() as u64);
                self.partitions_since.entry(newer).or_insert(at);
            }
            self.settings.clone_from(settings);
            self.revision = revision;
            self.forget_ids(now_ms);
            if settings.dead_letter_queue.is_none() {
                self.groups.values_mut().for_each(ModelGroup::drop_dead_letters);
            }
            self.free();
            self.enforce_limits(now_ms);
        }
    }

    pub(super) fn apply(&mut self, index: u64, now_ms: u64, command: &Command) -> Outcome {
        let outcome = match command {
            Command::OpenQueue { .. } | Command::CloseQueue { .. } | Command::PublishTogether { .. } => {
                unreachable!("done by the model")
            }
            Command::PurgeQueue { .. } => {
                let messages = self.message_count();
                self.first = self.messages.len();
                self.kept.fill(false);
                self.groups.values_mut().for_each(|group| group.states.fill(State::Acked));
                Outcome::Purged { messages }
            }
            Command::Publish { producer, count, block, runs, partitions, .. } => {
                self.publish((*producer, *partitions), *count, *block, runs, (index, now_ms))
            }
            Command::PublishEach { producer, block, messages, routed, partitions, .. } => {
                self.publish_each((*producer, *partitions), *routed, *block, messages, (index, now_ms))
            }
            Command::CreateGroup { name, start, filter, .. } => self.create_group(name, *start, filter),
            Command::UpdateGroup { group, filter, .. } => match self.groups.get_mut(group) {
                Some(group) => {
                    group.filter.clone_from(filter);
                    Outcome::GroupUpdated
                }
                None => Outcome::GroupNotFound,
            },
            Command::SeekGroup { group, to, .. } => self.seek_group(*group, *to),
            Command::DeleteGroup { group, .. } => {
                self.groups.remove(group).map_or(Outcome::GroupNotFound, |_| Outcome::GroupDeleted)
            }
            Command::Settle { group, acks, returns, expired, seek_count, .. } => {
                let Some(group) = self.groups.get_mut(group) else {
                    return Outcome::GroupNotFound;
                };
                if group.seek_count == *seek_count {
                    acks.iter().for_each(|range| group.ack(*range));
                    returns.iter().for_each(|back| group.take_back(*back, &self.settings, now_ms));
                    let reason = GiveUpReason::Expired;
                    expired.iter().for_each(|range| group.give_up(*range, reason, &self.settings, now_ms));
                }
                Outcome::Settled
            }
            Command::Trim { .. } => {
                self.forget_ids(now_ms);
                self.enforce_limits(now_ms);
                Outcome::Trimmed
            }
            Command::DeadLettersMoved { group, up_to, .. } => {
                let Some(group) = self.groups.get_mut(group) else {
                    return Outcome::GroupNotFound;
                };
                group.dead_letters_moved(*up_to);
                Outcome::DeadLettersMoved
            }
        };
        self.free();
        outcome
    }

    fn publish(
        &mut self,
        (producer, partitions): (Option<(ProducerId, Sequence)>, u32),
        count: u32,
        span: BlockSpan,
        runs: &[BatchRun],
        (index, now_ms): (u64, u64),
    ) -> Outcome {
        let first = Offset::new(self.messages.len() as u64);
        if let Some(outcome) = self.not_next(producer) {
            return outcome;
        }
        if ![0, self.settings.partitions].contains(&partitions) {
            return Outcome::PartitionsChanged;
        }
        if !self.has_room(count.into(), span.length.into()) {
            return Outcome::QueueFull;
        }
        if let Some((id, _)) = producer {
            self.producers.entry(id).or_default().push((first, count));
        }
        let whole = [BatchRun { count, length: span.length, properties: Properties::default(), delay_ms: 0 }];
        let mut position = span.position;
        let mut spans = Vec::new();
        for &run in if runs.is_empty() { &whole } else { runs } {
            spans.push((position, run));
            position += run.length;
        }
        self.append(&spans, (index, now_ms));
        Outcome::Published { first_offset: first, count, duplicate: false }
    }

    /// What becomes of a batch that is not the producer's next one.
    /// Where a batch is that was published before, or why it would not be.
    pub(super) fn check_publish(
        &mut self,
        producer: Option<(ProducerId, Sequence)>,
        part: &PublishPart,
    ) -> Result<Option<PublishedBatch>, Outcome> {
        match self.not_next(producer) {
            Some(Outcome::Published { first_offset: first, count, .. }) => {
                Ok(Some(PublishedBatch { first, count }))
            }
            Some(refused) => Err(refused),
            None if self.has_room(part.count.into(), part.block.length.into()) => Ok(None),
            None => Err(Outcome::QueueFull),
        }
    }

    fn not_next(&mut self, producer: Option<(ProducerId, Sequence)>) -> Option<Outcome> {
        let (id, sequence) = producer?;
        let batches = self.producers.entry(id).or_default();
        let expected = Sequence::new(batches.len() as u64 + 1);
        if sequence > expected {
            return Some(Outcome::SequenceGap { expected });
        }
        let &(first_offset, count) = batches.get(sequence.get() as usize - 1)?;
        Some(Outcome::Published { first_offset, count, duplicate: true })
    }

    /// Appends blocks, each with where it begins.
    fn append(&mut self, spans: &[(u32, BatchRun)], at: (u64, u64)) {
        self.append_with_holes(spans, &[], at);
    }

    /// Appends blocks, and leaves offsets free that never had a message.
    fn append_with_holes(&mut self, spans: &[(u32, BatchRun)], holes: &[usize], (index, now_ms): (u64, u64)) {
        let nothing = |offset: usize| Block {
            index,
            first: Offset::new(offset as u64),
            published_at_ms: now_ms,
            span: BlockSpan { position: 0, length: 0 },
            count: 1,
            properties: Properties::default(),
        };
        let is_hole = |offset: usize| holes.contains(&offset);
        for &(position, run) in spans {
            while is_hole(self.messages.len()) {
                self.messages.push(nothing(self.messages.len()));
            }
            let first = Offset::new(self.messages.len() as u64);
            let mut properties = run.properties;
            if run.delay_ms > 0 {
                properties.deliver_at_ms = properties.deliver_at_ms.max(now_ms + run.delay_ms);
            }
            let span = BlockSpan { position, length: run.length };
            let block = Block { index, first, published_at_ms: now_ms, span, count: run.count, properties };
            self.messages.extend(vec![block; run.count as usize]);
        }
        while is_hole(self.messages.len()) {
            self.messages.push(nothing(self.messages.len()));
        }
        for offset in self.kept.len()..self.messages.len() {
            self.kept.push(!is_hole(offset));
            for group in self.groups.values_mut() {
                group.states.push(if is_hole(offset) { State::Acked } else { UNTOUCHED });
            }
        }
        if !holes.is_empty() && (self.groups.is_empty() || self.settings.retention == Retention::Limits) {
            self.first = self.next_kept(self.first).unwrap_or(self.messages.len());
            self.length_floor = self.length_floor.max(self.first);
        }
        self.enforce_limits(now_ms);
    }

    fn has_room(&self, count: u64, bytes: u64) -> bool {
        let (kept_messages, kept_bytes) = self.counted();
        let Settings { max_messages, max_bytes, overflow, .. } = self.settings;
        overflow == Overflow::DropOldest
            || (max_messages.is_none_or(|max| kept_messages + count <= max)
                && max_bytes.is_none_or(|max| kept_bytes + bytes <= max))
    }

    /// Messages and bytes that count towards the limits.
    fn counted(&self) -> (u64, u64) {
        let messages = (self.length_floor..self.messages.len()).filter(|&offset| self.is_kept(offset));
        let bytes = self.blocks().filter(|block| block.end().get() > self.length_floor as u64);
        (messages.count() as u64, bytes.map(|block| u64::from(block.span.length)).sum())
    }

    fn enforce_limits(&mut self, now_ms: u64) {
        let floor = self.too_old(now_ms).max(self.too_much());
        if floor <= self.length_floor {
            return;
        }
        let range =
            OffsetRange::new(Offset::new(self.length_floor as u64), (floor - self.length_floor) as u64);
        self.length_floor = floor;
        let retention = self.settings.retention;
        for group in self.groups.values_mut() {
            match retention {
                Retention::UntilAcked => {
                    group.give_up(range, GiveUpReason::Overflow, &self.settings, now_ms);
                }
                Retention::Limits => {
                    let unacked = group.states[..floor].iter().filter(|state| **state != State::Acked);
                    group.dropped_total += unacked.count() as u64;
                    group.states[..floor].fill(State::Acked);
                }
            }
        }
        if self.groups.is_empty() || retention == Retention::Limits {
            self.first = self.next_kept(floor).unwrap_or(self.messages.len());
            for (kept, block) in self.kept.iter_mut().zip(&self.messages) {
                *kept &= block.end().get() > self.first as u64;
            }
        }
        self.free();
    }

    fn too_old(&self, now_ms: u64) -> usize {
        if let Some(max_age_ms) = self.settings.max_age_ms
            && self.settings.retention == Retention::Limits
        {
            let is_young = |&offset: &usize| self.messages[offset].published_at_ms + max_age_ms > now_ms;
            let young = (0..self.messages.len()).filter(|&offset| self.kept[offset]).find(is_young);
            return young.unwrap_or(self.messages.len());
        }
        let mut floor = self.length_floor;
        if let Some(ttl_ms) = self.settings.message_ttl_ms
            && self.settings.retention == Retention::UntilAcked
            && self.groups.is_empty()
        {
            while let Some(offset) = self.next_kept(floor)
                && self.messages[offset]
                    .properties
                    .expires_at_ms(self.messages[offset].published_at_ms, Some(ttl_ms))
                    .is_some_and(|at_ms| at_ms <= now_ms)
            {
                floor = self.messages[offset].end().get() as usize;
            }
        }
        floor
    }

    fn too_much(&self) -> usize {
        let mut floor = self.length_floor;
        if self.settings.overflow == Overflow::RejectPublish {
            return floor;
        }
        let (messages, bytes) = self.counted();
        let over = |kept: u64, max: Option<u64>| max.map_or(0, |max| kept.saturating_sub(max));
        let mut messages = over(messages, self.settings.max_messages);
        let mut bytes = over(bytes, self.settings.max_bytes);
        while bytes > 0
            && let Some(offset) = self.next_kept(floor)
            && let Some(newest) = (0..self.messages.len()).rfind(|&offset| self.is_kept(offset))
            && self.messages[offset].end() < self.messages[newest].end()
        {
            let block = self.messages[offset];
            messages = messages.saturating_sub(block.end().get() - offset as u64);
            bytes = bytes.saturating_sub(block.span.length.into());
            floor = block.end().get() as usize;
        }
        while messages > 0
            && let Some(offset) = self.next_kept(floor)
        {
            messages -= 1;
            floor = offset + 1;
        }
        floor
    }

    fn resolve(&self, position: Position) -> Result<usize, Outcome> {
        let end = self.messages.len();
        let place = match position {
            Position::First => self.length_floor,
            Position::Next => end,
            Position::Offset(offset) if offset.get() > end as u64 => {
                return Err(Outcome::PositionAfterEnd { next_offset: Offset::new(end as u64) });
            }
            Position::Offset(offset) => offset.get() as usize,
            Position::Time(time_ms) => (0..end)
                .filter(|&offset| self.kept[offset])
                .find(|&offset| self.messages[offset].published_at_ms >= time_ms)
                .unwrap_or(end),
        };
        Ok(place.max(self.length_floor))
    }

    fn create_group(&mut self, name: &str, start: Position, filter: &[u8]) -> Outcome {
        if let Some((&group, _)) = self.groups.iter().find(|(_, group)| group.name == name) {
            return Outcome::GroupCreated { group, created: false };
        }
        let start = match self.resolve(start) {
            Ok(start) => start,
            Err(refused) => return refused,
        };
        let mut created = ModelGroup::new(name, filter);
        created.begin(start, &self.kept);
        let group = GroupId::new(self.next_group);
        self.next_group += 1;
        self.groups.insert(group, created);
        Outcome::GroupCreated { group, created: true }
    }

    fn seek_group(&mut self, id: GroupId, to: Position) -> Outcome {
        let to = match self.resolve(to) {
            Ok(to) => to,
            Err(refused) => return refused,
        };
        let Some(group) = self.groups.get_mut(&id) else {
            return Outcome::GroupNotFound;
        };
        if group.has_dead_letters() {
            return Outcome::DeadLettersPending;
        }
        group.begin(to, &self.kept);
        group.seek_count += 1;
        Outcome::GroupMoved { offset: Offset::new(group.floor() as u64) }
    }

    /// Lets go of the blocks of which no group needs any message.
    fn free(&mut self) {
        if self.settings.retention == Retention::UntilAcked && !self.groups.is_empty() {
            let floors = self.groups.values().map(ModelGroup::floor);
            self.first = floors.min().map_or(self.first, |floor| floor.max(self.first));
            for (kept, block) in self.kept.iter_mut().zip(&self.messages) {
                let mut messages = block.first.get() as usize..block.end().get() as usize;
                let is_needed =
                    |message: usize| self.groups.values().any(|group| group.states[message] != State::Acked);
                *kept &= messages.any(is_needed);
            }
        }
        self.length_floor = self.length_floor.max(self.first);
    }

    pub(super) fn blocks(&self) -> impl Iterator<Item = Block> {
        let kept = self.messages.iter().zip(&self.kept).filter(|(_, kept)| **kept);
        let mut blocks: Vec<_> = kept.map(|(block, _)| *block).collect();
        blocks.dedup();
        blocks.into_iter()
    }

    fn is_kept(&self, offset: usize) -> bool {
        offset >= self.first && self.kept.get(offset).is_some_and(|kept| *kept)
    }

    fn next_kept(&self, from: usize) -> Option<usize> {
        (from..self.messages.len()).find(|&offset| self.is_kept(offset))
    }

    fn message_count(&self) -> u64 {
        (0..self.messages.len()).filter(|&offset| self.is_kept(offset)).count() as u64
    }

    pub(super) fn check(&self, id: QueueId, shard: &Shard) {
        let queue = shard.queue(id).unwrap();
        assert_eq!((queue.name(), queue.settings()), (self.name.as_str(), &self.settings));
        assert_eq!(queue.settings_revision(), self.revision);
        for newer in 0..4 {
            let since = self.partitions_since.get(&newer).copied().unwrap_or(Offset::ZERO);
            assert_eq!(queue.moved_before(newer), (newer < self.settings.partitions).then_some(since));
        }
        assert_eq!(queue.first_offset().get(), self.first as u64);
        assert_eq!(queue.next_offset().get(), self.messages.len() as u64);
        for offset in 0..=self.messages.len() {
            self.check_message(id, shard, offset);
        }
        assert_eq!(queue.message_count(), self.message_count());
        let kept: Vec<_> = self.blocks().collect();
        assert_eq!(queue.kept_bytes(), kept.iter().map(|block| u64::from(block.span.length)).sum::<u64>());
        let is_ordinary = kept.iter().all(|block| block.properties.are_ordinary());
        assert_eq!(queue.is_ordinary(), is_ordinary && self.settings.message_ttl_ms.is_none());
        assert_eq!(queue.blocks().collect::<Vec<_>>(), kept);
        let groups: Vec<_> = queue.groups().map(|group| group.id()).collect();
        assert_eq!(groups, self.groups.keys().copied().collect::<Vec<_>>());
        for (&id, model) in &self.groups {
            assert_eq!(queue.group_by_name(&model.name).map(|group| group.id()), Some(id));
            let group = queue.group(id).unwrap();
            model.check(group);
            let before_it: Vec<_> =
                kept.iter().filter(|block| block.end().get() > model.floor() as u64).collect();
            let bytes: u64 = before_it.iter().map(|block| u64::from(block.span.length)).sum();
            assert_eq!(queue.unacked_bytes(group), bytes);
            let oldest_at_ms = before_it.first().map(|block| block.published_at_ms);
            assert_eq!(queue.oldest_unacked_at_ms(group), oldest_at_ms);
        }
    }

    fn check_message(&self, id: QueueId, shard: &Shard, offset: usize) {
        let queue = shard.queue(id).unwrap();
        let kept = self.messages.get(offset).filter(|_| self.is_kept(offset));
        let expected = kept.map(|block| {
            let skip = offset as u32 - block.first.get() as u32;
            BlockSlice {
                index: block.index,
                position: block.span.position,
                length: block.span.length,
                block_first: block.first,
                block_count: block.count,
                published_at_ms: block.published_at_ms,
                skip,
                take: (block.count - skip).min(2),
            }
        });
        assert_eq!(shard.locate(id, Offset::new(offset as u64), 2), expected);
        let next = self.next_kept(offset);
        assert_eq!(
            queue.next_kept(Offset::new(offset as u64)),
            next.map(|offset| Offset::new(offset as u64))
        );
        let waiting = next.map(|next| {
            let block = self.messages[next];
            let ttl_ms = self.settings.message_ttl_ms;
            Waiting {
                range: OffsetRange::between(Offset::new(next as u64), block.end()),
                deliver_at_ms: block.properties.deliver_at_ms,
                expires_at_ms: block.properties.expires_at_ms(block.published_at_ms, ttl_ms),
                priority: block.properties.priority,
                key_slot: block.properties.key_slot,
            }
        });
        assert_eq!(queue.waiting(Offset::new(offset as u64)).next(), waiting);
    }
}
