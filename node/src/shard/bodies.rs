//! Reads the bodies that the core refers to out of the log.

use std::sync::Arc;

use bytes::Bytes;
use skein_proto::ids::{QueueId, ShardId};

use crate::{
    batch,
    broker::BlockSlice,
    log::{Log, ReadError},
    raft::Group,
    tasks,
};

/// A batch of less than one part in this many of its entry is copied out of it.
const SMALL_PART: usize = 4;

/// Reads one shard's messages. Cheap to clone.
#[derive(Clone)]
pub struct Bodies {
    log: Log,
    group: Arc<Group>,
}

/// Reads one stream's messages.
pub struct BodyReader {
    bodies: Bodies,
    /// The entry that was read from disk last: batches that were published together lie in one.
    last: Option<(u64, Bytes)>,
}

/// Why messages could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The log could not read the entry.
    #[error(transparent)]
    Log(#[from] ReadError),
    /// The entry is not in the log: its queue was purged or deleted meanwhile.
    #[error("entry {index} of shard {shard} is no longer in the log")]
    Gone {
        /// The shard.
        shard: ShardId,
        /// The entry.
        index: u64,
    },
    /// The core keeps the messages, but the log does not have them.
    #[error("entry {index} of shard {shard}, which holds messages that are kept, is not in the log")]
    Lost {
        /// The shard.
        shard: ShardId,
        /// The entry.
        index: u64,
    },
    /// The entry does not hold what the core says it holds.
    #[error("entry {index} of shard {shard} does not hold the batch it should")]
    Mismatch {
        /// The shard.
        shard: ShardId,
        /// The entry.
        index: u64,
    },
}

impl Bodies {
    pub(super) fn new(log: Log, group: Arc<Group>) -> Self {
        Self { log, group }
    }

    /// A reader for one stream, which remembers the entry it read last.
    #[must_use]
    pub fn reader(&self) -> BodyReader {
        BodyReader { bodies: self.clone(), last: None }
    }

    /// The entry that holds the slice, and whether it had to be read from disk.
    async fn entry(&self, slice: &BlockSlice) -> Result<(Bytes, bool), BodyError> {
        let (shard, index) = (self.group.shard(), slice.index);
        let range = index..index + 1;
        if let Some(entries) = self.log.read_cached(shard, range.clone(), usize::MAX) {
            return Ok((entries.into_iter().next().ok_or(BodyError::Gone { shard, index })?.payload, false));
        }
        let log = self.log.clone();
        let read = tasks::spawn_blocking(move || log.read(shard, range, usize::MAX)).await;
        let entries = match read.expect("reading the log does not panic") {
            Err(ReadError::Purged { .. } | ReadError::NotFound { .. }) => Vec::new(),
            entries => entries?,
        };
        let entry = entries.into_iter().next();
        Ok((entry.ok_or(BodyError::Gone { shard, index })?.payload, true))
    }

    /// Whether the core still keeps the messages of a slice.
    fn is_kept(&self, queue: QueueId, slice: &BlockSlice) -> bool {
        let first = slice.block_first.plus(u64::from(slice.skip));
        let located = self.group.replica().with_messages(|shard| shard.locate(queue, first, 1));
        located.is_some_and(|located| located.index == slice.index)
    }
}

impl BodyReader {
    /// The batch that a slice names, in its wire form.
    ///
    /// # Errors
    /// See [`BodyError`].
    pub async fn read(&mut self, queue: QueueId, slice: &BlockSlice) -> Result<Bytes, BodyError> {
        let (shard, index) = (self.bodies.group.shard(), slice.index);
        let entry = match &self.last {
            Some((last, entry)) if *last == index => entry.clone(),
            _ => self.read_entry(queue, slice).await?,
        };
        let start = slice.position as usize;
        let end = start + slice.length as usize;
        if end > entry.len() {
            return Err(BodyError::Mismatch { shard, index });
        }
        let block = entry.slice(start..end);
        let batch = if slice.take == slice.block_count {
            block
        } else {
            batch::cut(&block, slice.skip, slice.take).ok_or(BodyError::Mismatch { shard, index })?
        };
        // A small part is copied, since it would keep the whole entry in memory for as long as it waits to be sent.
        let is_small = batch.len() * SMALL_PART < entry.len();
        Ok(if is_small && self.last.is_some() { Bytes::copy_from_slice(&batch) } else { batch })
    }

    async fn read_entry(&mut self, queue: QueueId, slice: &BlockSlice) -> Result<Bytes, BodyError> {
        let (entry, is_cold) = match self.bodies.entry(slice).await {
            Err(BodyError::Gone { shard, index }) if self.bodies.is_kept(queue, slice) => {
                return Err(BodyError::Lost { shard, index });
            }
            entry => entry?,
        };
        self.last = is_cold.then(|| (slice.index, entry.clone()));
        Ok(entry)
    }
}
