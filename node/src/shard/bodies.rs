//! Reads the bodies that the core refers to out of the log.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::{Bytes, BytesMut};
use skein_proto::ids::{Offset, QueueId, ShardId};

use crate::{
    batch,
    broker::{BlockSlice, Shard},
    log::{KeptEntry, Log, Part, ReadError},
    offsets::OffsetRange,
    planted::{Bug, is_planted},
    raft::Group,
    tasks,
};

/// How much a stream reads from disk at once, in bytes: messages published one after the other lie near each other.
const READ_AHEAD_BYTES: usize = 256 << 10;

/// How many such reads are remembered for all streams of a shard: consumers of a group read side by side, and what is
/// not delivered in order, as with keys and priorities, goes back and forth between a few places. 4 MiB, unless entries
/// are larger than a read.
const READS_MAX: usize = 16;

/// A batch smaller than this that came from disk is copied: it would keep all that was read with it in memory for as
/// long as it waits to be sent.
const COPIED_BYTES_MAX: usize = READ_AHEAD_BYTES / 4;

/// Reads one shard's messages. Cheap to clone.
#[derive(Clone)]
pub struct Bodies {
    log: Log,
    group: Arc<Group>,
    reads: Arc<Mutex<VecDeque<Read>>>,
}

/// Entries that were read from disk together, by index.
type Read = Arc<Vec<KeptEntry>>;

/// Reads one stream's messages.
pub struct BodyReader {
    bodies: Bodies,
    /// The entries that it used last.
    ahead: Read,
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
        Self { log, group, reads: Arc::default() }
    }

    /// A reader for one stream, which remembers the entry it read last.
    #[must_use]
    pub fn reader(&self) -> BodyReader {
        BodyReader { bodies: self.clone(), ahead: Arc::default() }
    }

    /// The entry at `index` and some of those after it, from disk, unless they were read lately.
    async fn read_entries(&self, index: u64) -> Result<Read, BodyError> {
        let recent = self.with_reads(|reads| {
            let place = reads.iter().position(|read| place_of(read, index).is_some())?;
            let read = reads.remove(place)?;
            reads.push_front(Arc::clone(&read));
            Some(read)
        });
        if let Some(read) = recent {
            return Ok(read);
        }
        let read = self.read(index, move |log, shard| log.read_kept(shard, index, READ_AHEAD_BYTES)).await?;
        let read = Arc::new(read);
        self.with_reads(|reads| {
            reads.push_front(Arc::clone(&read));
            reads.truncate(READS_MAX);
        });
        Ok(read)
    }

    fn with_reads<T>(&self, act: impl FnOnce(&mut VecDeque<Read>) -> T) -> T {
        act(&mut self.reads.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One block, wherever it lies.
    async fn read_part(&self, part: Part) -> Result<Bytes, BodyError> {
        self.read(part.index, move |log, shard| log.read_part(shard, part)).await
    }

    /// Reads on a thread that may block. What is damaged is repaired from another replica, and read again.
    async fn read<T: Send + 'static>(
        &self,
        index: u64,
        read: impl Fn(&Log, ShardId) -> Result<T, ReadError> + Clone + Send + 'static,
    ) -> Result<T, BodyError> {
        let shard = self.group.shard();
        let mut is_repaired = false;
        loop {
            let (log, read) = (self.log.clone(), read.clone());
            let result = tasks::spawn_blocking(move || read(&log, shard)).await;
            let error = match result.expect("reading the log does not panic") {
                Ok(found) => return Ok(found),
                Err(ReadError::Purged { .. } | ReadError::NotFound { .. }) => {
                    return Err(BodyError::Gone { shard, index });
                }
                Err(error) => error,
            };
            // What the disk cannot read is as good as damaged: the others have it. Where the whole disk is gone, the
            // node ends at its next write, while this waits.
            let damaged = match &error {
                ReadError::Io { .. } => Some(index),
                other => other.damaged_index(),
            };
            let Some(damaged) = damaged.filter(|_| !is_repaired) else {
                return Err(error.into());
            };
            self.group.repairs().report(shard, damaged);
            is_repaired = self.group.repairs().wait(shard, damaged).await;
            if !is_repaired {
                return Err(error.into());
            }
        }
    }

    /// The blocks of a slice that the core still keeps.
    fn kept(&self, queue: QueueId, slice: &BlockSlice) -> Vec<BlockSlice> {
        let first = slice.block_first.plus(u64::from(slice.skip));
        let range = OffsetRange::new(first, slice.take.into());
        let locate = |shard: &mut Shard| Some(shard.queue(queue)?.locate_kept(range));
        let kept = self.group.replica().with_messages(locate).unwrap_or_default();
        kept.into_iter().filter(|block| block.index == slice.index).collect()
    }
}

impl BodyReader {
    /// The batch that a slice names, in its wire form.
    ///
    /// # Errors
    /// See [`BodyError`].
    pub async fn read(&mut self, queue: QueueId, slice: &BlockSlice) -> Result<Bytes, BodyError> {
        let (shard, index) = (self.bodies.group.shard(), slice.index);
        let block = match self.block(slice).await {
            Err(BodyError::Gone { shard, index }) => match &self.bodies.kept(queue, slice)[..] {
                kept if kept.iter().map(|block| block.take).sum::<u32>() < slice.take => {
                    return Err(BodyError::Gone { shard, index });
                }
                [_] => return Err(BodyError::Lost { shard, index }),
                // Blocks that lay side by side, and were since kept each for itself.
                blocks => match self.concatenated(blocks).await {
                    Err(BodyError::Gone { .. }) => return Err(BodyError::Lost { shard, index }),
                    all => all?,
                },
            },
            block => block?,
        };
        if slice.take == slice.block_count {
            return Ok(block);
        }
        let skip =
            if is_planted(Bug::NeighbourDelivered) { slice.skip.saturating_sub(1) } else { slice.skip };
        batch::cut(&block, skip, slice.take).ok_or(BodyError::Mismatch { shard, index })
    }

    /// What is left of a slice that is gone as a whole, since some of its blocks are not kept any more: the offsets of
    /// each part's first message and how many they are, with their batch.
    ///
    /// # Errors
    /// See [`BodyError`].
    pub async fn read_left(
        &mut self,
        queue: QueueId,
        slice: &BlockSlice,
    ) -> Result<Vec<(Offset, u32, Bytes)>, BodyError> {
        let mut left = Vec::new();
        for block in self.bodies.kept(queue, slice) {
            let first = block.block_first.plus(u64::from(block.skip));
            match self.read(queue, &block).await {
                Ok(batch) => left.push((first, block.take, batch)),
                Err(BodyError::Gone { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(left)
    }

    /// Whole blocks, one behind the other.
    async fn concatenated(&mut self, blocks: &[BlockSlice]) -> Result<Bytes, BodyError> {
        let mut all = BytesMut::new();
        for block in blocks {
            all.extend_from_slice(&self.block(block).await?);
        }
        Ok(all.freeze())
    }

    /// The whole block of a slice.
    async fn block(&mut self, slice: &BlockSlice) -> Result<Bytes, BodyError> {
        let BlockSlice { index, position, length, .. } = *slice;
        let shard = self.bodies.group.shard();
        if let Some(entry) = self.bodies.log.read_kept_cached(shard, index)
            && let Some(block) = entry.parts.get(position, length)
        {
            return Ok(block);
        }
        if place_of(&self.ahead, index).is_none() {
            self.ahead = self.bodies.read_entries(index).await?;
        }
        let entry = place_of(&self.ahead, index).map(|place| &self.ahead[place]);
        let block = match entry.and_then(|entry| entry.parts.get(position, length)) {
            Some(block) => block,
            // Another copy of the entry has it.
            None => self.bodies.read_part(Part { index, position, length }).await?,
        };
        Ok(if block.len() < COPIED_BYTES_MAX { Bytes::copy_from_slice(&block) } else { block })
    }
}

fn place_of(read: &[KeptEntry], index: u64) -> Option<usize> {
    read.binary_search_by_key(&index, |entry| entry.index).ok()
}
