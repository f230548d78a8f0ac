//! The states that a stopped node saved, for whoever looks at its data.

use std::{collections::BTreeMap, ops::Range, path::Path};

use skein_proto::ids::ShardId;

use super::{
    load::{self, LoadError},
    pages::PageMemory,
    replica::Replica,
};
use crate::checkpoint::{CheckpointError, Checkpoints};

/// The states of shards, as their checkpoints have them.
pub struct SavedStates {
    replicas: BTreeMap<ShardId, Replica>,
}

/// Why they cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SavedStatesError {
    /// The store.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// What is in it.
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl SavedStates {
    /// Reads the checkpoints of these shards. The store may be written to: give it a copy.
    ///
    /// # Errors
    /// When the store or a checkpoint cannot be read.
    pub fn load(dir: &Path, shards: impl Iterator<Item = ShardId>) -> Result<Self, SavedStatesError> {
        let checkpoints = Checkpoints::open(dir)?;
        // The store may be gone when they are asked.
        let memory = PageMemory::new(u64::MAX);
        let mut replicas = BTreeMap::new();
        for shard in shards {
            let (machine, position) = load::machine(shard, &checkpoints.shard(shard)?, &memory)?;
            replicas.insert(shard, Replica::new(shard, machine, position));
        }
        Ok(Self { replicas })
    }

    /// The last entry that the shard's checkpoint covers.
    #[must_use]
    pub fn applied_index(&self, shard: ShardId) -> Option<u64> {
        Some(self.replicas.get(&shard)?.applied().0?.index)
    }

    /// How many bytes of messages in these ranges of a shard's entries some group still needed.
    #[must_use]
    pub fn live_bytes(&self, shard: ShardId, ranges: &[Range<u64>]) -> u64 {
        let live = self.replicas.get(&shard).map(|replica| replica.live_in(ranges)).unwrap_or_default();
        live.iter().map(|live| live.bytes).sum()
    }
}
