//! Publishing to a queue: a batch becomes blocks, unless it was published before or finds no room.

use skein_proto::ids::{ProducerId, Sequence};

use super::Queue;
use crate::broker::{
    BatchRun, Block, BlockSpan, Outcome, Properties, PublishedBatch, producers::SequenceCheck,
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

    /// Appends a batch, as a block for each part of it that is to be treated alike.
    fn append(&mut self, batch: &Batch<'_>) {
        let Batch { index, time_ms: published_at_ms, span, count, runs, .. } = *batch;
        let mut push = |span, count, properties| {
            if count > 0 {
                let first = self.next_offset;
                let block = Block { index, first, published_at_ms, span, count, properties };
                self.next_offset = block.end();
                self.blocks.push(block);
            }
        };
        if runs.is_empty() {
            return push(span, count, Properties::default());
        }
        let mut position = span.position;
        for run in runs {
            let mut properties = run.properties;
            if run.delay_ms > 0 {
                let due_ms = published_at_ms.saturating_add(run.delay_ms);
                properties.deliver_at_ms = properties.deliver_at_ms.max(due_ms);
            }
            push(BlockSpan { position, length: run.length }, run.count, properties);
            position += run.length;
        }
    }
}
