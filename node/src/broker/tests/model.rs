//! The core once more, as simply as can be: everything is kept, message by message.

mod group;
mod queue;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use skein_proto::ids::{ProducerId, QueueId, Sequence};

use self::queue::ModelQueue;
use crate::broker::{Block, BlockSpan, Command, Live, LivePart, Outcome, PublishPart, PublishedBatch, Shard};

#[derive(Default)]
pub(super) struct Model {
    time_ms: u64,
    queues: BTreeMap<QueueId, ModelQueue>,
    closed: BTreeSet<QueueId>,
}

impl Model {
    pub(super) fn apply(&mut self, index: u64, time_ms: u64, commands: &[Command]) -> Vec<Outcome> {
        self.time_ms = self.time_ms.max(time_ms);
        commands.iter().map(|command| self.apply_one(index, command)).collect()
    }

    fn apply_one(&mut self, index: u64, command: &Command) -> Outcome {
        let time_ms = self.time_ms;
        let id = match command {
            Command::OpenQueue { queue, .. } if self.closed.contains(queue) => return Outcome::QueueNotFound,
            Command::OpenQueue { queue, name, settings, revision } => {
                match self.queues.get_mut(queue) {
                    Some(open) => open.reopen(name, settings, *revision, time_ms),
                    None => drop(self.queues.insert(*queue, ModelQueue::new(name, settings, *revision))),
                }
                return Outcome::Opened;
            }
            Command::CloseQueue { queue } => {
                self.closed.insert(*queue);
                return self.queues.remove(queue).map_or(Outcome::QueueNotFound, |_| Outcome::Closed);
            }
            Command::PurgeQueue { queue }
            | Command::Publish { queue, .. }
            | Command::PublishEach { queue, .. }
            | Command::CreateGroup { queue, .. }
            | Command::UpdateGroup { queue, .. }
            | Command::SeekGroup { queue, .. }
            | Command::DeleteGroup { queue, .. }
            | Command::Settle { queue, .. }
            | Command::Trim { queue }
            | Command::DeadLettersMoved { queue, .. } => queue,
            Command::PublishTogether { producer, parts } => {
                return self.publish_together(index, *producer, parts);
            }
        };
        match self.queues.get_mut(id) {
            Some(queue) => queue.apply(index, time_ms, command),
            None => Outcome::QueueNotFound,
        }
    }

    fn publish_together(
        &mut self,
        index: u64,
        producer: Option<(ProducerId, Sequence)>,
        parts: &[PublishPart],
    ) -> Outcome {
        let mut known = Vec::new();
        for (place, part) in parts.iter().enumerate() {
            let queue = self.queues.get_mut(&part.queue);
            match queue.map_or(Err(Outcome::QueueNotFound), |queue| queue.check_publish(producer, part)) {
                Ok(before) => known.push(before),
                Err(because) => return Outcome::RefusedTogether { place, because: Box::new(because) },
            }
        }
        let duplicate = known.iter().any(Option::is_some);
        if let Some(place) = known.iter().position(Option::is_none).filter(|_| duplicate) {
            return Outcome::RefusedTogether { place, because: Box::new(Outcome::SequenceTooOld) };
        }
        let time_ms = self.time_ms;
        let batches = parts.iter().zip(known).map(|(part, before)| {
            if duplicate {
                return before.unwrap();
            }
            let PublishPart { queue, count, block, runs } = part.clone();
            let publish = Command::Publish { queue, producer, count, block, runs, partitions: 0 };
            match self.queues.get_mut(&queue).unwrap().apply(index, time_ms, &publish) {
                Outcome::Published { first_offset: first, count, .. } => PublishedBatch { first, count },
                outcome => panic!("{outcome:?}"),
            }
        });
        Outcome::PublishedTogether { batches: batches.collect(), duplicate }
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
