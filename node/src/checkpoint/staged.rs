//! Another node's state of a shard, put together beside the checkpoint and then, all at once, in its place.
//!
//! A shard has two trees. Which of them is the checkpoint is one key, and changing it is what takes a state over.

use skein_proto::ids::ShardId;

use super::{Changing, Checkpoint, CheckpointError, POSITION_KEY, StoredRecord, steps::BATCH_RECORDS_MAX};

/// The tree that says which of a shard's trees is its checkpoint.
pub(super) const SLOTS_TREE: &str = "slots";

/// One of a shard's two trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    /// The one that counts as long as nothing says otherwise.
    A,
    /// The other one.
    B,
}

impl Slot {
    pub(super) fn read(slots: &sled::Tree, shard: ShardId) -> sled::Result<Self> {
        let is_b = slots.get(shard.get().to_be_bytes())?.is_some_and(|name| name == Self::B.name());
        Ok(if is_b { Self::B } else { Self::A })
    }

    pub(super) fn tree_name(self, shard: ShardId) -> String {
        format!("shard-{shard}-{}", self.name())
    }

    fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

/// A state that is being received.
pub struct Staged {
    db: sled::Db,
    tree: sled::Tree,
    slot: Slot,
    shard: ShardId,
}

impl Staged {
    /// Adds records. They need not be durable yet.
    ///
    /// # Errors
    /// When sled cannot write them.
    pub fn add(&self, records: &[StoredRecord]) -> Result<(), CheckpointError> {
        for records in records.chunks(BATCH_RECORDS_MAX) {
            let mut batch = sled::Batch::default();
            for (key, value) in records {
                batch.insert(&key[..], &value[..]);
            }
            let added = self.tree.apply_batch(batch);
            added.map_err(|source| CheckpointError::Save { shard: self.shard, source })?;
        }
        Ok(())
    }

    /// Notes where the state stands, and waits until all of it is on disk.
    ///
    /// # Errors
    /// When sled cannot write or flush.
    pub fn finish(&self, position: &[u8]) -> Result<(), CheckpointError> {
        let finish = || {
            self.tree.insert(POSITION_KEY, position)?;
            self.db.flush()
        };
        finish().map(drop).map_err(|source| CheckpointError::Save { shard: self.shard, source })
    }
}

/// A state that another one has taken the place of. It can be read until it is cleared.
#[must_use]
pub struct Retired {
    tree: sled::Tree,
    shard: ShardId,
}

impl Retired {
    /// Gives its space back. The next state that is staged does so as well.
    ///
    /// # Errors
    /// When sled cannot do that.
    pub fn clear(self) -> Result<(), CheckpointError> {
        self.tree.clear().map_err(|source| CheckpointError::Save { shard: self.shard, source })
    }
}

impl Checkpoint {
    /// Begins to put another state together. What was left of an earlier attempt is removed.
    ///
    /// # Errors
    /// When sled cannot do that.
    pub fn stage(&self) -> Result<Staged, CheckpointError> {
        let slot = self.current().0.other();
        let stage = || {
            let tree = self.db.open_tree(slot.tree_name(self.shard))?;
            tree.clear()?;
            Ok(tree)
        };
        let tree = stage().map_err(|source| CheckpointError::Save { shard: self.shard, source })?;
        Ok(Staged { db: self.db.clone(), tree, slot, shard: self.shard })
    }

    /// Puts a finished state in place of this one, all or nothing, and waits until that is on disk. A save that began
    /// before would write where the old state stands into the new one, so there must be none.
    ///
    /// # Errors
    /// When sled cannot write or flush.
    ///
    /// # Panics
    /// When the state is another shard's, or was staged before the last one that was adopted.
    pub fn adopt(&self, staged: Staged, _: &Changing) -> Result<Retired, CheckpointError> {
        let Staged { tree, slot, shard, .. } = staged;
        let mut current = self.current();
        assert_eq!((shard, slot), (self.shard, current.0.other()), "a state is adopted where it was staged");
        let switch = || {
            self.slots.insert(shard.get().to_be_bytes(), slot.name())?;
            self.db.flush()
        };
        switch().map_err(|source| CheckpointError::Save { shard, source })?;
        let (_, tree) = std::mem::replace(&mut *current, (slot, tree));
        Ok(Retired { tree, shard })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Checkpoints;
    use super::*;

    fn put(key: &[u8], value: &[u8]) -> (Vec<u8>, Option<Vec<u8>>) {
        (key.to_vec(), Some(value.to_vec()))
    }

    #[test]
    fn an_adopted_state_replaces_the_checkpoint_also_after_a_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let shard = ShardId::new(3);
        {
            let checkpoint = Checkpoints::open(dir.path()).unwrap().shard(shard).unwrap();
            let clone = checkpoint.clone();
            checkpoint.save(b"old", vec![put(b"a", b"1")]).unwrap();
            for (kept, key, position) in [(b"a", b"b", b"one"), (b"b", b"c", b"two")] {
                let staged = checkpoint.stage().unwrap();
                staged.add(&[(key.to_vec(), b"1".to_vec())]).unwrap();
                staged.finish(position).unwrap();
                let before = clone.reader();
                let retired = checkpoint.adopt(staged, &checkpoint.try_change().unwrap()).unwrap();
                assert_eq!(
                    before.get(kept).unwrap().as_deref(),
                    Some(&b"1"[..]),
                    "whoever reads it, reads it on"
                );
                assert_eq!(clone.reader().get(kept).unwrap(), None);
                retired.clear().unwrap();
                assert_eq!(clone.load().0.as_deref(), Some(&position[..]));
            }
        }
        let (position, records) = Checkpoints::reopen(dir.path()).shard(shard).unwrap().load();
        assert_eq!(position.as_deref(), Some(&b"two"[..]));
        assert_eq!(records, vec![(b"c".to_vec(), b"1".to_vec())]);
    }

    #[test]
    fn a_state_that_was_not_adopted_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let shard = ShardId::new(3);
        let checkpoint = Checkpoints::open(dir.path()).unwrap().shard(shard).unwrap();
        checkpoint.save(b"old", vec![put(b"a", b"1")]).unwrap();
        let given_up = checkpoint.stage().unwrap();
        given_up.add(&[(b"z".to_vec(), b"9".to_vec())]).unwrap();
        drop(given_up);
        assert_eq!(checkpoint.load().0.as_deref(), Some(&b"old"[..]));
        let staged = checkpoint.stage().unwrap();
        staged.finish(b"new").unwrap();
        checkpoint.adopt(staged, &checkpoint.try_change().unwrap()).unwrap().clear().unwrap();
        assert!(checkpoint.load().1.is_empty());
    }
}
