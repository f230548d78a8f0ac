//! The memory that pages of queues' blocks may take, on all shards of a node together, and where the others are read
//! again: in their shard's checkpoint.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use skein_proto::ids::{QueueId, ShardId};

use super::{codec, replica::Replica};
use crate::{
    broker::{PageRecord, QueuePart, Record, RecordKey, SavedPages, Spill},
    checkpoint::{Checkpoint, CheckpointReader},
};

/// What all shards of a node share.
#[derive(Debug)]
pub struct PageMemory {
    bytes_max: u64,
    taken_bytes: Mutex<BTreeMap<ShardId, u64>>,
}

impl PageMemory {
    /// So much, but for each queue's newest page.
    #[must_use]
    pub fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { bytes_max, taken_bytes: Mutex::default() })
    }

    /// What the pages of all shards took when each of them last had a checkpoint.
    #[must_use]
    pub fn taken_bytes(&self) -> u64 {
        self.lock().values().sum()
    }

    /// How a shard that is about to be loaded spills what the others leave no room for.
    pub(super) fn spill_loading(&self, shard: ShardId, checkpoint: &Checkpoint) -> Spill {
        let taken = self.lock();
        let others_bytes = taken.iter().filter(|(other, _)| **other != shard).map(|(_, bytes)| bytes).sum();
        let keep_bytes = self.bytes_max.saturating_sub(others_bytes);
        Spill { pages: pages_of(shard, checkpoint), keep_bytes }
    }

    /// Takes note of what a shard takes.
    pub(super) fn note(&self, shard: ShardId, bytes: u64) {
        self.lock().insert(shard, bytes);
    }

    /// Lets a shard whose checkpoint was just saved spill what it has above its share, where all together take too
    /// much.
    pub(super) fn spill(&self, replica: &Replica, checkpoint: &Checkpoint) {
        let shard = replica.shard();
        replica.with_messages(|messages| {
            let bytes = messages.page_bytes();
            let keep_bytes = self.share(shard, bytes);
            if bytes > keep_bytes {
                let left = messages.spill(&Spill { pages: pages_of(shard, checkpoint), keep_bytes });
                self.note(shard, left);
            }
        });
    }

    /// Takes note of what a shard takes, and says how much of it may stay.
    fn share(&self, shard: ShardId, bytes: u64) -> u64 {
        let mut taken = self.lock();
        taken.insert(shard, bytes);
        let all_bytes: u64 = taken.values().sum();
        if all_bytes <= self.bytes_max {
            return bytes;
        }
        let share = u128::from(bytes) * u128::from(self.bytes_max) / u128::from(all_bytes);
        u64::try_from(share).expect("no more than the most that there may be")
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ShardId, u64>> {
        self.taken_bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pages_of(shard: ShardId, checkpoint: &Checkpoint) -> Arc<dyn SavedPages> {
    Arc::new(CheckpointPages { shard, reader: checkpoint.reader() })
}

/// A checkpoint, as far as pages are read from it.
struct CheckpointPages {
    shard: ShardId,
    reader: CheckpointReader,
}

impl fmt::Debug for CheckpointPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckpointPages").field("shard", &self.shard).finish_non_exhaustive()
    }
}

impl SavedPages for CheckpointPages {
    fn read(&self, queue: QueueId, page: u64) -> PageRecord {
        let shard = self.shard;
        let key = codec::encode_key(RecordKey::Queue { queue, part: QueuePart::Page(page) });
        let what = || format!("page {page} of queue {queue} in the checkpoint of shard {shard}");
        let stored =
            self.reader.get(&key).unwrap_or_else(|error| panic!("{} is unreadable: {error}", what()));
        let stored = stored.unwrap_or_else(|| panic!("{} is missing", what()));
        match codec::decode_record(&key, &stored) {
            Ok((_, Record::Page(page))) => page,
            other => panic!("{} is {other:?}", what()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_shards_take_is_shared_out_once_it_is_too_much() {
        let memory = PageMemory::new(100);
        let [one, two, three] = [1, 2, 3].map(ShardId::new);
        assert_eq!(memory.share(one, 60), 60);
        assert_eq!(memory.share(two, 30), 30);
        assert_eq!(memory.share(two, 140), 70, "of 200");
        assert_eq!(memory.taken_bytes(), 200);
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = crate::checkpoint::Checkpoints::open(dir.path()).unwrap();
        let keeps = |shard| memory.spill_loading(shard, &checkpoints.shard(shard).unwrap()).keep_bytes;
        assert_eq!((keeps(one), keeps(two), keeps(three)), (0, 40, 0));
    }
}
