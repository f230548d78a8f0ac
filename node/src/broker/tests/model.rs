//! The core once more, as simply as can be: everything is kept, message by message.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use skein_proto::ids::{GroupId, Offset, ProducerId, QueueId, Sequence};

use crate::{
    broker::{
        Block, BlockSlice, BlockSpan, Command, DeadLetter, GroupStart, Live, LivePart, Outcome, Return,
        Settings, Shard,
    },
    offsets::OffsetRange,
};

#[derive(Default)]
pub(super) struct Model {
    time_ms: u64,
    queues: BTreeMap<QueueId, ModelQueue>,
    closed: BTreeSet<QueueId>,
}

struct ModelQueue {
    name: String,
    settings: Settings,
    /// For each message ever published, the block it is in.
    messages: Vec<Block>,
    /// For each message ever published, whether its block is still there.
    kept: Vec<bool>,
    first: usize,
    groups: BTreeMap<GroupId, ModelGroup>,
    next_group: u32,
    /// For each producer, the offsets of all its batches.
    producers: BTreeMap<ProducerId, Vec<(Offset, u32)>>,
}

struct ModelGroup {
    name: String,
    /// For each message ever published.
    states: Vec<State>,
    next_dead_letter: u64,
    dead_lettered_total: u64,
    dropped_total: u64,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    Open { attempts: u32, not_before_ms: u64 },
    GivenUp(DeadLetter),
    Acked,
}

const UNTOUCHED: State = State::Open { attempts: 0, not_before_ms: 0 };

impl Model {
    pub(super) fn apply(&mut self, index: u64, time_ms: u64, commands: &[Command]) -> Vec<Outcome> {
        self.time_ms = self.time_ms.max(time_ms);
        commands.iter().map(|command| self.apply_one(index, command)).collect()
    }

    fn apply_one(&mut self, index: u64, command: &Command) -> Outcome {
        let time_ms = self.time_ms;
        let id = match command {
            Command::OpenQueue { queue, .. } if self.closed.contains(queue) => return Outcome::QueueNotFound,
            Command::OpenQueue { queue, name, settings } => {
                let opened = self.queues.entry(*queue).or_insert_with(|| ModelQueue::new(settings));
                opened.name.clone_from(name);
                opened.settings.clone_from(settings);
                return Outcome::Opened;
            }
            Command::CloseQueue { queue } => {
                self.closed.insert(*queue);
                return self.queues.remove(queue).map_or(Outcome::QueueNotFound, |_| Outcome::Closed);
            }
            Command::PurgeQueue { queue }
            | Command::Publish { queue, .. }
            | Command::CreateGroup { queue, .. }
            | Command::DeleteGroup { queue, .. }
            | Command::Settle { queue, .. }
            | Command::DeadLettersMoved { queue, .. } => queue,
        };
        let Some(queue) = self.queues.get_mut(id) else {
            return Outcome::QueueNotFound;
        };
        let outcome = queue.apply(index, time_ms, command);
        let floors = queue.groups.values().map(|group| group.floor(queue.messages.len()));
        queue.first = floors.min().map_or(queue.first, |floor| floor.max(queue.first));
        queue.free();
        outcome
    }

    /// All kept blocks.
    fn blocks(&self) -> impl Iterator<Item = Block> {
        self.queues.values().flat_map(ModelQueue::blocks)
    }

    fn live_parts(&self, entries: &Range<u64>) -> Vec<LivePart> {
        let inside = self.blocks().filter(|block| entries.contains(&block.index));
        let mut parts: Vec<_> = inside
            .map(|Block { index, span: BlockSpan { position, length }, .. }| LivePart {
                index,
                position,
                length,
            })
            .collect();
        parts.sort();
        parts
    }

    fn live_in(&self, entries: &Range<u64>) -> Live {
        let parts = self.live_parts(entries);
        Live { bytes: parts.iter().map(|part| u64::from(part.length)).sum(), parts: parts.len() as u64 }
    }

    /// Compares everything that can be read, and of what is needed of the log, these entries.
    pub(super) fn check(&self, shard: &Shard, entries: &[Range<u64>]) {
        assert_eq!(shard.time_ms(), self.time_ms);
        let ids: Vec<_> = shard.queues().map(|queue| queue.id()).collect();
        assert_eq!(ids, self.queues.keys().copied().collect::<Vec<_>>());
        let expected: Vec<_> = entries.iter().map(|range| self.live_in(range)).collect();
        assert_eq!(shard.live_in(entries), expected);
        for range in entries.iter().chain([&(0..u64::MAX)]) {
            assert_eq!(shard.live_parts(range.clone()), self.live_parts(range), "{range:?}");
            let next = self.blocks().map(|block| block.index).filter(|&index| index >= range.start).min();
            assert_eq!(shard.next_live_index(range.start), next);
        }
        for (&id, queue) in &self.queues {
            queue.check(id, shard);
        }
    }
}

impl ModelQueue {
    fn new(settings: &Settings) -> Self {
        Self {
            name: String::new(),
            settings: settings.clone(),
            messages: Vec::new(),
            kept: Vec::new(),
            first: 0,
            groups: BTreeMap::new(),
            next_group: 1,
            producers: BTreeMap::new(),
        }
    }

    fn apply(&mut self, index: u64, time_ms: u64, command: &Command) -> Outcome {
        match command {
            Command::OpenQueue { .. } | Command::CloseQueue { .. } => unreachable!("done by the model"),
            Command::PurgeQueue { .. } => {
                let messages = self.message_count();
                self.first = self.messages.len();
                self.kept.fill(false);
                for group in self.groups.values_mut() {
                    group.states.fill(State::Acked);
                }
                Outcome::Purged { messages }
            }
            Command::Publish { producer, count, block, .. } => {
                let first = Offset::new(self.messages.len() as u64);
                self.publish(
                    *producer,
                    Block { index, first, published_at_ms: time_ms, span: *block, count: *count },
                )
            }
            Command::CreateGroup { name, start, .. } => self.create_group(name, *start),
            Command::DeleteGroup { group, .. } => {
                self.groups.remove(group).map_or(Outcome::GroupNotFound, |_| Outcome::GroupDeleted)
            }
            Command::Settle { group, acks, returns, .. } => {
                let Some(group) = self.groups.get_mut(group) else {
                    return Outcome::GroupNotFound;
                };
                for &range in acks {
                    group.in_range(range).for_each(|(_, state)| *state = State::Acked);
                }
                for &back in returns {
                    group.take_back(back, &self.settings);
                }
                Outcome::Settled
            }
            Command::DeadLettersMoved { group, up_to, .. } => {
                let Some(group) = self.groups.get_mut(group) else {
                    return Outcome::GroupNotFound;
                };
                for state in &mut group.states {
                    if matches!(state, State::GivenUp(letter) if letter.sequence <= *up_to) {
                        *state = State::Acked;
                        group.dead_lettered_total += 1;
                    }
                }
                Outcome::DeadLettersMoved
            }
        }
    }

    fn publish(&mut self, producer: Option<(ProducerId, Sequence)>, block: Block) -> Outcome {
        if let Some((id, sequence)) = producer {
            let batches = self.producers.entry(id).or_default();
            let expected = Sequence::new(batches.len() as u64 + 1);
            if sequence > expected {
                return Outcome::SequenceGap { expected };
            }
            if let Some(&(first_offset, count)) = batches.get(sequence.get() as usize - 1) {
                return Outcome::Published { first_offset, count, duplicate: true };
            }
            batches.push((block.first, block.count));
        }
        self.messages.extend(vec![block; block.count as usize]);
        self.kept.resize(self.messages.len(), true);
        for group in self.groups.values_mut() {
            group.states.resize(self.messages.len(), UNTOUCHED);
        }
        Outcome::Published { first_offset: block.first, count: block.count, duplicate: false }
    }

    fn create_group(&mut self, name: &str, start: GroupStart) -> Outcome {
        if let Some((&group, _)) = self.groups.iter().find(|(_, group)| group.name == name) {
            return Outcome::GroupCreated { group, created: false };
        }
        let mut states = vec![UNTOUCHED; self.messages.len()];
        let acked = match start {
            GroupStart::First => self.first,
            GroupStart::Next => self.messages.len(),
        };
        states[..acked].fill(State::Acked);
        for (state, _) in states.iter_mut().zip(&self.kept).filter(|(_, kept)| !**kept) {
            *state = State::Acked;
        }
        let group = GroupId::new(self.next_group);
        self.next_group += 1;
        let name = name.to_owned();
        let created =
            ModelGroup { name, states, next_dead_letter: 1, dead_lettered_total: 0, dropped_total: 0 };
        self.groups.insert(group, created);
        Outcome::GroupCreated { group, created: true }
    }

    /// Lets go of the blocks of which no group needs any message.
    fn free(&mut self) {
        if self.groups.is_empty() {
            return;
        }
        for (kept, block) in self.kept.iter_mut().zip(&self.messages) {
            let mut messages = block.first.get() as usize..block.end().get() as usize;
            let is_needed =
                |message: usize| self.groups.values().any(|group| group.states[message] != State::Acked);
            *kept &= messages.any(is_needed);
        }
    }

    fn blocks(&self) -> impl Iterator<Item = Block> {
        let mut blocks: Vec<_> = self
            .messages
            .iter()
            .zip(&self.kept)
            .filter(|(_, kept)| **kept)
            .map(|(block, _)| *block)
            .collect();
        blocks.dedup();
        blocks.into_iter()
    }

    fn is_kept(&self, offset: usize) -> bool {
        offset >= self.first && self.kept.get(offset).is_some_and(|kept| *kept)
    }

    fn message_count(&self) -> u64 {
        (0..self.messages.len()).filter(|&offset| self.is_kept(offset)).count() as u64
    }

    fn check(&self, id: QueueId, shard: &Shard) {
        let queue = shard.queue(id).unwrap();
        assert_eq!((queue.name(), queue.settings()), (self.name.as_str(), &self.settings));
        assert_eq!(queue.first_offset().get(), self.first as u64);
        assert_eq!(queue.next_offset().get(), self.messages.len() as u64);
        for offset in 0..=self.messages.len() {
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
            let next = (offset..self.messages.len()).find(|&offset| self.is_kept(offset));
            assert_eq!(
                queue.next_kept(Offset::new(offset as u64)),
                next.map(|offset| Offset::new(offset as u64))
            );
        }
        assert_eq!(queue.message_count(), self.message_count());
        let kept: Vec<_> = self.blocks().collect();
        assert_eq!(queue.kept_bytes(), kept.iter().map(|block| u64::from(block.span.length)).sum::<u64>());
        assert_eq!(queue.blocks().collect::<Vec<_>>(), kept);
        let groups: Vec<_> = queue.groups().map(|group| group.id()).collect();
        assert_eq!(groups, self.groups.keys().copied().collect::<Vec<_>>());
        for (&id, group) in &self.groups {
            assert_eq!(queue.group_by_name(&group.name).map(|group| group.id()), Some(id));
            group.check(queue.group(id).unwrap());
        }
    }
}

impl ModelGroup {
    fn floor(&self, end: usize) -> usize {
        self.states.iter().position(|state| *state != State::Acked).unwrap_or(end)
    }

    fn in_range(&mut self, range: OffsetRange) -> impl Iterator<Item = (Offset, &mut State)> {
        let states = (0..).map(Offset::new).zip(&mut self.states);
        states.filter(move |(offset, _)| range.contains(*offset))
    }

    fn take_back(&mut self, back: Return, settings: &Settings) {
        let mut next_dead_letter = self.next_dead_letter;
        let mut dropped = 0;
        for (offset, state) in self.in_range(back.range) {
            let State::Open { attempts: known, .. } = *state else {
                continue;
            };
            if known <= back.attempt {
                *state = State::Open { attempts: back.attempt, not_before_ms: back.not_before_ms };
            }
            let attempts = known.max(back.attempt);
            if attempts < settings.max_deliveries {
                continue;
            }
            if settings.dead_letter_queue.is_some() {
                *state = State::GivenUp(DeadLetter {
                    sequence: Sequence::new(next_dead_letter),
                    offset,
                    attempts,
                });
                next_dead_letter += 1;
            } else {
                *state = State::Acked;
                dropped += 1;
            }
        }
        self.next_dead_letter = next_dead_letter;
        self.dropped_total += dropped;
    }

    fn check(&self, group: &crate::broker::Group) {
        let end = self.states.len();
        let count =
            |wanted: fn(&State) -> bool| self.states.iter().filter(|state| wanted(state)).count() as u64;
        assert_eq!(group.acked_floor().get(), self.floor(end) as u64);
        assert_eq!(group.unacked_count(Offset::new(end as u64)), count(|state| *state != State::Acked));
        assert_eq!(
            group.returned_count(),
            count(|state| matches!(state, State::Open { attempts, .. } if *attempts > 0))
        );
        assert_eq!(group.dead_letter_count(), count(|state| matches!(state, State::GivenUp(_))));
        assert_eq!(
            (group.dead_lettered_total(), group.dropped_total()),
            (self.dead_lettered_total, self.dropped_total)
        );
        let mut letters: Vec<_> = self
            .states
            .iter()
            .filter_map(|state| if let State::GivenUp(letter) = state { Some(*letter) } else { None })
            .collect();
        letters.sort_by_key(|letter| letter.sequence);
        assert_eq!(group.dead_letters().collect::<Vec<_>>(), letters);
        let deliverable = group.deliverable();
        for (offset, &state) in (0..).map(Offset::new).zip(&self.states) {
            let found = deliverable.get(offset).map(|(_, returned)| State::Open {
                attempts: returned.attempts,
                not_before_ms: returned.not_before_ms,
            });
            let expected = matches!(state, State::Open { .. }).then_some(state);
            if offset >= group.untouched_from() {
                assert_eq!((found, expected), (None, Some(UNTOUCHED)));
            } else {
                assert_eq!(found, expected, "at {offset}");
            }
        }
    }
}
