//! Publishing to a queue: a batch becomes blocks, unless it was published before or finds no room.

use std::collections::BTreeSet;

use skein_proto::ids::{Offset, ProducerId, Sequence};

use super::Queue;
use crate::{
    broker::{
        BatchRun, Block, BlockSpan, EachMessage, IdHash, Outcome, Properties, PublishedBatch, Retention,
        Routed,
        producers::{RoutedCheck, SequenceCheck},
    },
    offsets::{OffsetRange, OffsetSet},
};

/// Where and when a batch was published.
#[derive(Debug, Clone, Copy)]
pub(in crate::broker) struct Batch<'a> {
    pub(in crate::broker) index: u64,
    /// The core's time.
    pub(in crate::broker) time_ms: u64,
    /// The shard's elapsed time.
    pub(in crate::broker) elapsed_ms: u64,
    pub(in crate::broker) span: BlockSpan,
    pub(in crate::broker) count: u32,
    pub(in crate::broker) runs: &'a [BatchRun],
}

/// A batch whose messages are looked at one by one, and where it comes from.
#[derive(Debug, Clone, Copy)]
pub(in crate::broker) struct Each<'a> {
    pub(in crate::broker) producer: Option<(ProducerId, Sequence)>,
    pub(in crate::broker) routed: Option<Routed>,
    pub(in crate::broker) messages: &'a [EachMessage],
    /// How many partitions its publisher knew of; 0 when it did not choose one.
    pub(in crate::broker) partitions: u32,
}

/// What becomes of the offsets of messages that are not stored.
#[derive(Debug, Clone, Copy)]
enum Gaps {
    /// The next message takes them.
    Close,
    /// Nothing lies there, so that the publisher can tell the offsets of the others.
    Keep,
}

impl EachMessage {
    /// Its place, as sets have it.
    const fn offset(&self) -> Offset {
        Offset::new(self.place as u64)
    }
}

impl Queue {
    pub(in crate::broker) fn publish(
        &mut self,
        producer: Option<(ProducerId, Sequence)>,
        partitions: u32,
        batch: Batch<'_>,
    ) -> Outcome {
        self.used_at_ms = batch.time_ms;
        if let Some((id, sequence)) = producer
            && let Some(outcome) = self.check_sequence(id, sequence, batch.elapsed_ms)
        {
            return outcome;
        }
        // Only now: what was stored when there were fewer stays confirmed.
        if let Some(refused) = self.check_partitions(partitions) {
            return refused;
        }
        if !self.has_room(&batch) {
            return Outcome::QueueFull;
        }
        let first = self.next_offset;
        if let Some((id, sequence)) = producer {
            let published = PublishedBatch { first, count: batch.count };
            self.producers.record(id, sequence, published, batch.elapsed_ms);
        }
        self.append(&batch);
        Outcome::Published { first_offset: first, count: batch.count, duplicate: false }
    }

    /// Where a batch is that was appended before; nothing when [`Queue::publish`] would append it now.
    pub(in crate::broker) fn check_publish(
        &mut self,
        producer: Option<(ProducerId, Sequence)>,
        batch: &Batch<'_>,
    ) -> Result<Option<PublishedBatch>, Outcome> {
        if let Some((id, sequence)) = producer {
            match self.check_sequence(id, sequence, batch.elapsed_ms) {
                None => {}
                Some(Outcome::Published { first_offset: first, count, .. }) => {
                    return Ok(Some(PublishedBatch { first, count }));
                }
                Some(refused) => return Err(refused),
            }
        }
        if self.has_room(batch) { Ok(None) } else { Err(Outcome::QueueFull) }
    }

    /// By sequence, the places of what is stored of the newest batches that topics have routed here from a producer.
    pub fn routed_by(&self, producer: ProducerId) -> impl Iterator<Item = (Sequence, &OffsetSet)> {
        self.producers.routed_by(producer)
    }

    /// What becomes of a batch that is not the next one of its producer.
    fn check_sequence(&mut self, id: ProducerId, sequence: Sequence, elapsed_ms: u64) -> Option<Outcome> {
        match self.producers.check(id, sequence, elapsed_ms) {
            SequenceCheck::Next => None,
            SequenceCheck::Duplicate(PublishedBatch { first, count }) => {
                Some(Outcome::Published { first_offset: first, count, duplicate: true })
            }
            SequenceCheck::TooOld => Some(Outcome::SequenceTooOld),
            SequenceCheck::Gap { expected } => Some(Outcome::SequenceGap { expected }),
        }
    }

    /// Appends those messages of a batch that are not here yet.
    pub(in crate::broker) fn publish_each(&mut self, each: Each<'_>, batch: Batch<'_>) -> Outcome {
        self.used_at_ms = batch.time_ms;
        self.forget_ids(batch.time_ms);
        let Each { producer, routed, messages, partitions } = each;
        let missing = match self.missing_places(each, batch.elapsed_ms) {
            Ok(missing) => missing,
            Err(outcome) => return outcome,
        };
        let first_offset = self.next_offset;
        if missing.is_empty() {
            return Outcome::Published { first_offset, count: 0, duplicate: true };
        }
        if let Some(refused) = self.check_partitions(partitions) {
            return refused;
        }
        let (new, ids) = self.without_known_ids(messages, &missing);
        let length =
            messages.iter().filter(|message| new.contains(message.offset())).map(|message| message.length);
        let span = BlockSpan { length: length.sum(), ..batch.span };
        let count = u32::try_from(new.len()).expect("no more than the messages of a batch");
        if count > 0 && !self.has_room(&Batch { count, span, ..batch }) {
            return Outcome::QueueFull;
        }
        if !self.ids.has_room(ids.len()) {
            return Outcome::TooManyIds;
        }
        ids.into_iter().for_each(|id| self.ids.insert(id, batch.time_ms));
        match (producer, routed) {
            (Some((id, sequence)), Some(_)) => {
                self.producers.record_routed(id, sequence, &missing, batch.elapsed_ms);
            }
            (Some((id, sequence)), None) => {
                let published = PublishedBatch { first: first_offset, count: batch.count };
                self.producers.record(id, sequence, published, batch.elapsed_ms);
            }
            (None, _) => {}
        }
        if routed.is_some() {
            self.append_messages(&batch, messages, &new, Gaps::Close);
            return Outcome::Published { first_offset, count, duplicate: count == 0 };
        }
        self.append_messages(&batch, messages, &new, Gaps::Keep);
        Outcome::Published { first_offset, count: batch.count, duplicate: count == 0 }
    }

    /// The places of a batch that are to be stored as far as its producer goes, or what becomes of it instead.
    fn missing_places(&mut self, each: Each<'_>, elapsed_ms: u64) -> Result<OffsetSet, Outcome> {
        let places: OffsetSet =
            each.messages.iter().map(|message| OffsetRange::new(message.offset(), 1)).collect();
        let Some((id, sequence)) = each.producer else { return Ok(places) };
        let Some(Routed { follows }) = each.routed else {
            return match self.check_sequence(id, sequence, elapsed_ms) {
                Some(outcome) => Err(outcome),
                None => Ok(places),
            };
        };
        match self.producers.check_routed(id, sequence, follows, &places, elapsed_ms) {
            RoutedCheck::Store(missing) => Ok(missing),
            RoutedCheck::TooOld => Err(Outcome::SequenceTooOld),
            RoutedCheck::Gap { expected } => Err(Outcome::SequenceGap { expected }),
        }
    }

    /// Those of these places whose messages have no id that the queue remembers, or that comes earlier in the batch;
    /// and the ids that they have.
    fn without_known_ids(
        &self,
        messages: &[EachMessage],
        places: &OffsetSet,
    ) -> (OffsetSet, BTreeSet<IdHash>) {
        if self.settings.dedup_window_ms.is_none() {
            return (places.clone(), BTreeSet::new());
        }
        let mut ids = BTreeSet::new();
        let mut new = OffsetSet::new();
        for message in messages.iter().filter(|message| places.contains(message.offset())) {
            if message.id.is_none_or(|id| !self.ids.contains(id) && ids.insert(id)) {
                new.insert(OffsetRange::new(message.offset(), 1));
            }
        }
        (new, ids)
    }

    /// Forgets ids that have been remembered for long enough.
    pub(in crate::broker) fn forget_ids(&mut self, now_ms: u64) {
        self.ids.forget(self.settings.dedup_window_ms.unwrap_or_default(), now_ms);
    }

    /// Appends the messages at these places, as a block for each part that is to be treated alike.
    fn append_messages(
        &mut self,
        batch: &Batch<'_>,
        messages: &[EachMessage],
        places: &OffsetSet,
        gaps: Gaps,
    ) {
        let mut position = batch.span.position;
        let mut last: Option<(BlockSpan, BatchRun)> = None;
        let mut holes: Vec<OffsetRange> = Vec::new();
        for message in messages {
            let EachMessage { length, properties, delay_ms, .. } = *message;
            let start = position;
            position += length;
            if !places.contains(message.offset()) {
                if let Gaps::Keep = gaps {
                    last.take().into_iter().for_each(|(span, run)| self.push_run(batch, span, &run));
                    match holes.last_mut() {
                        Some(OffsetRange { first, count }) if first.plus(*count) == self.next_offset => {
                            *count += 1;
                        }
                        _ => holes.push(OffsetRange::new(self.next_offset, 1)),
                    }
                    self.next_offset = self.next_offset.plus(1);
                }
                continue;
            }
            match &mut last {
                Some((span, run))
                    if span.position + span.length == start
                        && (run.properties, run.delay_ms) == (properties, delay_ms) =>
                {
                    span.length += length;
                    run.count += 1;
                }
                last => {
                    let span = BlockSpan { position: start, length };
                    let run = BatchRun { count: 1, length, properties, delay_ms };
                    if let Some((span, run)) = last.replace((span, run)) {
                        self.push_run(batch, span, &run);
                    }
                }
            }
        }
        last.into_iter().for_each(|(span, run)| self.push_run(batch, span, &run));
        self.pass_over(&holes);
    }

    /// Nobody waits for offsets at which there never was a message.
    fn pass_over(&mut self, holes: &[OffsetRange]) {
        if holes.is_empty() {
            return;
        }
        for group in self.groups.values_mut() {
            holes.iter().for_each(|hole| group.ack(*hole, self.next_offset));
            self.changed_groups.insert(group.id());
        }
        if self.groups.is_empty() || self.settings.retention == Retention::Limits {
            self.first_offset = self.next_kept(self.first_offset).unwrap_or(self.next_offset);
            self.length_floor = self.length_floor.max(self.first_offset);
        } else {
            self.free_acked();
        }
    }

    /// Appends a batch, as a block for each part of it that is to be treated alike.
    fn append(&mut self, batch: &Batch<'_>) {
        let Batch { span, count, runs, .. } = *batch;
        if runs.is_empty() {
            let whole =
                BatchRun { count, length: span.length, properties: Properties::default(), delay_ms: 0 };
            return self.push_run(batch, span, &whole);
        }
        let mut position = span.position;
        for run in runs {
            self.push_run(batch, BlockSpan { position, length: run.length }, run);
            position += run.length;
        }
    }

    fn push_run(&mut self, batch: &Batch<'_>, span: BlockSpan, run: &BatchRun) {
        let BatchRun { count, mut properties, delay_ms, .. } = *run;
        if count == 0 {
            return;
        }
        let Batch { index, time_ms: published_at_ms, .. } = *batch;
        if delay_ms > 0 {
            let due_ms = published_at_ms.saturating_add(delay_ms);
            properties.deliver_at_ms = properties.deliver_at_ms.max(due_ms);
        }
        let block = Block { index, first: self.next_offset, published_at_ms, span, count, properties };
        self.next_offset = block.end();
        self.blocks.push(block);
    }
}
