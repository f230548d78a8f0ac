//! Publishing to a queue: a batch becomes blocks, unless it was published before or finds no room.

use skein_proto::ids::{Offset, ProducerId, Sequence};

use super::Queue;
use crate::{
    broker::{
        BatchRun, Block, BlockSpan, Outcome, Properties, PublishedBatch, RoutedMessage,
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

/// Where a batch comes from that a topic routes here, and what of it.
#[derive(Debug, Clone, Copy)]
pub(in crate::broker) struct Routed<'a> {
    pub(in crate::broker) producer: Option<(ProducerId, Sequence)>,
    pub(in crate::broker) follows: Option<Sequence>,
    pub(in crate::broker) messages: &'a [RoutedMessage],
}

impl Queue {
    pub(in crate::broker) fn publish(
        &mut self,
        producer: Option<(ProducerId, Sequence)>,
        batch: Batch<'_>,
    ) -> Outcome {
        self.used_at_ms = batch.time_ms;
        if let Some((id, sequence)) = producer {
            match self.producers.check(id, sequence, batch.elapsed_ms) {
                SequenceCheck::Next => {}
                SequenceCheck::Duplicate(PublishedBatch { first, count }) => {
                    return Outcome::Published { first_offset: first, count, duplicate: true };
                }
                SequenceCheck::TooOld => return Outcome::SequenceTooOld,
                SequenceCheck::Gap { expected } => return Outcome::SequenceGap { expected },
            }
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

    /// Appends what a topic routes here and is not here yet.
    pub(in crate::broker) fn publish_routed(&mut self, routed: Routed<'_>, batch: Batch<'_>) -> Outcome {
        self.used_at_ms = batch.time_ms;
        let place = |message: &RoutedMessage| OffsetRange::new(Offset::new(message.place.into()), 1);
        let places: OffsetSet = routed.messages.iter().map(place).collect();
        let missing = match routed.producer {
            None => places,
            Some((id, sequence)) => {
                match self.producers.check_routed(id, sequence, routed.follows, &places, batch.elapsed_ms) {
                    RoutedCheck::Store(missing) => missing,
                    RoutedCheck::TooOld => return Outcome::SequenceTooOld,
                    RoutedCheck::Gap { expected } => return Outcome::SequenceGap { expected },
                }
            }
        };
        let first_offset = self.next_offset;
        if missing.is_empty() {
            return Outcome::Published { first_offset, count: 0, duplicate: true };
        }
        if !self.has_room(&batch) {
            return Outcome::QueueFull;
        }
        if let Some((id, sequence)) = routed.producer {
            self.producers.record_routed(id, sequence, &missing, batch.elapsed_ms);
        }
        self.append_messages(&batch, routed.messages, &missing);
        let count = u32::try_from(missing.len()).expect("no more than the messages of a batch");
        Outcome::Published { first_offset, count, duplicate: false }
    }

    /// Appends the messages at these places, as a block for each part that is to be treated alike.
    fn append_messages(&mut self, batch: &Batch<'_>, messages: &[RoutedMessage], places: &OffsetSet) {
        let mut position = batch.span.position;
        let mut last: Option<(BlockSpan, BatchRun)> = None;
        for message in messages {
            let RoutedMessage { place, length, properties, delay_ms } = *message;
            let start = position;
            position += length;
            if !places.contains(Offset::new(place.into())) {
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
        if let Some((span, run)) = last {
            self.push_run(batch, span, &run);
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
