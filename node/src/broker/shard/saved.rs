//! A shard as records: what a checkpoint or a snapshot holds of it, and back; and which of it memory keeps besides.

use std::collections::BTreeMap;

use super::{
    super::{QueuePart, Record, RecordKey, RestoreError, ShardRecord, Spill},
    ClosedQueues, Queue, Shard,
};

impl Shard {
    /// The whole state, in key order, for a snapshot.
    pub fn records(&self) -> impl Iterator<Item = (RecordKey, Record)> {
        [(RecordKey::Shard, self.head())].into_iter().chain(self.queues().flat_map(Queue::records))
    }

    /// What changed since the last call, or since the state was restored, in key order; nothing for what is gone.
    pub fn take_changes(&mut self) -> Vec<(RecordKey, Option<Record>)> {
        let mut changes: BTreeMap<_, _> =
            std::mem::take(&mut self.gone).into_iter().map(|key| (key, None)).collect();
        if std::mem::take(&mut self.head_changed) {
            changes.insert(RecordKey::Shard, Some(self.head()));
        }
        for id in std::mem::take(&mut self.changed_queues) {
            if let Some(queue) = self.queues.get_mut(&id) {
                changes.extend(queue.take_changes());
            }
        }
        changes.into_iter().collect()
    }

    /// What the pages of all queues take in memory that could be spilled.
    #[must_use]
    pub fn page_bytes(&self) -> u64 {
        self.queues.values().map(|queue| queue.page_bytes()).sum()
    }

    /// Lets go of the memory of pages that the newest checkpoint has, where all together take too much. Each queue
    /// keeps its share. Gives what is left.
    pub fn spill(&mut self, spill: &Spill) -> u64 {
        let bytes: Vec<_> = self.queues.values().map(|queue| queue.page_bytes()).collect();
        let all_bytes: u64 = bytes.iter().sum();
        if all_bytes <= spill.keep_bytes {
            return all_bytes;
        }
        let left = self.queues.values_mut().zip(bytes).map(|(queue, bytes)| {
            let share = u128::from(bytes) * u128::from(spill.keep_bytes) / u128::from(all_bytes);
            let keep_bytes = u64::try_from(share).expect("a part of what all may keep");
            queue.spill(bytes, &Spill { keep_bytes, ..spill.clone() })
        });
        left.sum()
    }

    /// The state that these records are of. They come in key order.
    ///
    /// # Errors
    /// When they are not the records of a shard, or not all of them.
    pub fn restore(records: impl Iterator<Item = (RecordKey, Record)>) -> Result<Self, RestoreError> {
        Self::restore_within(None, records)
    }

    /// The same, and pages that memory has no room for are spilled as they come.
    ///
    /// # Errors
    /// As above.
    pub fn restore_within(
        spill: Option<&Spill>,
        records: impl Iterator<Item = (RecordKey, Record)>,
    ) -> Result<Self, RestoreError> {
        let mut page_bytes = 0;
        let mut shard = Self::new();
        let mut message_counts = BTreeMap::new();
        for (key, record) in records {
            match (key, record) {
                (RecordKey::Shard, Record::Shard(record)) => {
                    shard.time_ms = record.time_ms;
                    shard.replicated_index = record.replicated_index;
                    shard.elapsed_ms = record.elapsed_ms;
                    shard.closed_queues = ClosedQueues::restore(&record.closed_queues)
                        .map_err(|what| RestoreError::Contradiction { key, what })?;
                }
                (RecordKey::Queue { queue, part: QueuePart::Head }, Record::Queue(record)) => {
                    message_counts.insert(queue, record.message_count);
                    shard.queues.insert(queue, Box::new(Queue::restore_head(queue, record)?));
                    shard.note_aging(queue);
                }
                (RecordKey::Queue { queue, part }, record) => {
                    let queue = shard.queues.get_mut(&queue).ok_or(RestoreError::Orphan(key))?;
                    queue.restore_part(part, record)?;
                    if let (Some(spill), QueuePart::Page(_)) = (spill, part) {
                        page_bytes = queue.spill_restored(spill, page_bytes);
                    }
                }
                _ => return Err(RestoreError::Misplaced(key)),
            }
        }
        for (queue, message_count) in shard.queues.values_mut().zip(message_counts.into_values()) {
            queue.finish_restore(message_count)?;
        }
        if let Some(spill) = spill {
            // What was looked at to check it.
            shard.spill(spill);
        }
        Ok(shard)
    }

    fn head(&self) -> Record {
        Record::Shard(ShardRecord {
            time_ms: self.time_ms,
            replicated_index: self.replicated_index,
            elapsed_ms: self.elapsed_ms,
            closed_queues: self.closed_queues.record(),
        })
    }
}
