//! The only user of sled: each shard's state as key-value records, saved atomically and flushed before the log that
//! it replaces is let go.
//!
//! Everything here can be rebuilt from the log or from peers; nothing here is confirmed to anybody.

mod staged;
mod steps;

use std::{
    ops::Bound,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use skein_proto::ids::ShardId;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use staged::Slot;
pub use staged::{Retired, Staged};

/// sled's page cache. Records are written once and read at start, so it needs hardly any.
const CACHE_BYTES: u64 = 8 << 20;

/// Key of a shard's position; records' keys are never empty, and never begin with this byte alone.
const POSITION_KEY: &[u8] = b"";

/// Why a checkpoint could not be opened, read or saved.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The store does not open.
    #[error("the checkpoint store {path} does not open")]
    Open {
        /// Where it is.
        path: PathBuf,
        /// What sled says.
        source: sled::Error,
    },
    /// A read failed.
    #[error("reading the checkpoint of shard {shard} failed")]
    Read {
        /// The shard.
        shard: ShardId,
        /// What sled says.
        source: sled::Error,
    },
    /// A write or flush failed. It is not tried again: what a failed flush left on disk is unknown.
    #[error("saving the checkpoint of shard {shard} failed")]
    Save {
        /// The shard.
        shard: ShardId,
        /// What sled says.
        source: sled::Error,
    },
}

/// The checkpoints of all shards of a node.
pub struct Checkpoints {
    db: sled::Db,
    /// Which of a shard's two trees is its checkpoint.
    slots: sled::Tree,
}

/// One shard's checkpoint. Cheap to clone.
#[derive(Clone)]
pub struct Checkpoint {
    db: sled::Db,
    slots: sled::Tree,
    current: Arc<Mutex<(Slot, sled::Tree)>>,
    shard: ShardId,
    /// Readers need it to stay as it is, savers change it.
    gate: Arc<RwLock<()>>,
}

/// Reads single records of a checkpoint as it is now and as it is saved again, but not of one that
/// [takes its place](Checkpoint::adopt).
pub struct CheckpointReader {
    tree: sled::Tree,
    shard: ShardId,
}

impl CheckpointReader {
    /// Reads a record; `None` when there is no such one.
    ///
    /// # Errors
    /// When sled cannot read it.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, CheckpointError> {
        let value =
            self.tree.get(key).map_err(|source| CheckpointError::Read { shard: self.shard, source })?;
        Ok(value.map(|bytes| bytes.to_vec()))
    }
}

/// The right to change a checkpoint: while it is held, nobody reads it from end to end and nobody else changes it.
pub struct Changing(
    #[expect(dead_code, reason = "what matters is that it is held")] OwnedRwLockWriteGuard<()>,
);

/// Key and value.
pub type StoredRecord = (Vec<u8>, Vec<u8>);

impl Checkpoints {
    /// Opens the store, making it if there is none.
    ///
    /// # Errors
    /// When sled cannot open it.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let db = sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            .mode(sled::Mode::LowSpace)
            // We flush when it matters; a timer would only add writes.
            .flush_every_ms(None)
            .open()
            .and_then(|db| Ok((db.open_tree(staged::SLOTS_TREE)?, db)));
        let (slots, db) = db.map_err(|source| CheckpointError::Open { path: path.to_owned(), source })?;
        Ok(Self { db, slots })
    }

    /// One shard's part of the store.
    ///
    /// # Errors
    /// When sled cannot open it.
    pub fn shard(&self, shard: ShardId) -> Result<Checkpoint, CheckpointError> {
        let open = || {
            let slot = Slot::read(&self.slots, shard)?;
            let tree = self.db.open_tree(slot.tree_name(shard))?;
            steps::finish(&self.db, &tree, shard)?;
            Ok((slot, tree))
        };
        let current = open().map_err(|source| CheckpointError::Read { shard, source })?;
        Ok(Checkpoint {
            db: self.db.clone(),
            slots: self.slots.clone(),
            current: Arc::new(Mutex::new(current)),
            shard,
            gate: Arc::default(),
        })
    }
}

#[cfg(test)]
impl Checkpoints {
    /// Opens a store that was closed in this process a moment ago: sled's own threads may hold its lock for a little
    /// longer.
    fn reopen(path: &Path) -> Self {
        for _ in 0..1_000 {
            match Self::open(path) {
                Err(CheckpointError::Open { source: sled::Error::Io(error), .. })
                    if error.to_string().contains("could not acquire lock") => {}
                opened => return opened.unwrap(),
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("{} is locked", path.display());
    }
}

impl Checkpoint {
    /// The state's records, in the order of their keys. Each is read when it is asked for: all of them are more than
    /// the state that they make.
    pub fn records(&self) -> impl Iterator<Item = Result<StoredRecord, CheckpointError>> + use<> {
        let shard = self.shard;
        self.tree().range::<&[u8], _>((Bound::Excluded(POSITION_KEY), Bound::Unbounded)).map(move |item| {
            let (key, value) = item.map_err(|source| CheckpointError::Read { shard, source })?;
            Ok((key.to_vec(), value.to_vec()))
        })
    }

    /// Reads where the state stands; `None` before the first checkpoint.
    ///
    /// # Errors
    /// When sled cannot read it.
    pub fn position(&self) -> Result<Option<Vec<u8>>, CheckpointError> {
        let position = self.tree().get(POSITION_KEY);
        let position = position.map_err(|source| CheckpointError::Read { shard: self.shard, source })?;
        Ok(position.map(|bytes| bytes.to_vec()))
    }

    /// Reads single records.
    #[must_use]
    pub fn reader(&self) -> CheckpointReader {
        CheckpointReader { tree: self.tree(), shard: self.shard }
    }

    /// Reads records in the order of their keys, from the one after `after` on: up to `bytes_max` of them, but at least
    /// one; none at the end.
    ///
    /// # Errors
    /// When sled cannot read them.
    pub fn read_after(
        &self,
        after: Option<&[u8]>,
        bytes_max: usize,
    ) -> Result<Vec<StoredRecord>, CheckpointError> {
        let after = Bound::Excluded(after.unwrap_or(POSITION_KEY));
        let mut records = Vec::new();
        let mut bytes = 0;
        for item in self.tree().range::<&[u8], _>((after, Bound::Unbounded)) {
            let (key, value) = item.map_err(|source| CheckpointError::Read { shard: self.shard, source })?;
            bytes += key.len() + value.len();
            if bytes > bytes_max && !records.is_empty() {
                break;
            }
            records.push((key.to_vec(), value.to_vec()));
        }
        Ok(records)
    }

    /// Keeps the checkpoint as it is for as long as the guard lives; waits for a save that has begun.
    pub async fn hold(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.gate).read_owned().await
    }

    /// The right to change the checkpoint, unless somebody has it or [holds](Self::hold) the checkpoint.
    #[must_use]
    pub fn try_change(&self) -> Option<Changing> {
        Arc::clone(&self.gate).try_write_owned().ok().map(Changing)
    }

    /// Waits for the right to change the checkpoint.
    pub async fn change(&self) -> Changing {
        Changing(Arc::clone(&self.gate).write_owned().await)
    }

    /// Saves changed records and the position they lead to, all or nothing, and waits until they are on disk.
    /// `None` deletes a record. The right to [change](Self::try_change) the checkpoint keeps readers from half of it.
    ///
    /// # Errors
    /// When sled cannot write or flush. What is there at the next start is then either the old checkpoint or the new
    /// one.
    ///
    /// # Panics
    /// When a record's key is empty.
    pub fn save(
        &self,
        position: &[u8],
        records: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    ) -> Result<(), CheckpointError> {
        assert!(records.iter().all(|(key, _)| key != POSITION_KEY), "a record's key is never empty");
        steps::change(&self.db, &self.tree(), self.shard, records, position)
            .map_err(|source| CheckpointError::Save { shard: self.shard, source })
    }

    /// Where the state stands, and all records.
    #[cfg(test)]
    fn load(&self) -> (Option<Vec<u8>>, Vec<StoredRecord>) {
        (self.position().unwrap(), self.records().map(Result::unwrap).collect())
    }

    fn tree(&self) -> sled::Tree {
        self.current().1.clone()
    }

    fn current(&self) -> MutexGuard<'_, (Slot, sled::Tree)> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_checkpoint_is_read_back_after_a_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let shard = ShardId::new(3);
        {
            let checkpoint = Checkpoints::open(dir.path()).unwrap().shard(shard).unwrap();
            let put = |key: &[u8], value: &[u8]| (key.to_vec(), Some(value.to_vec()));
            checkpoint.save(b"one", vec![put(b"a", b"1"), put(b"b", b"2")]).unwrap();
            checkpoint.save(b"two", vec![(b"a".to_vec(), None), put(b"c", b"3")]).unwrap();
        }
        let store = Checkpoints::reopen(dir.path());
        let (position, records) = store.shard(shard).unwrap().load();
        assert_eq!(position.as_deref(), Some(&b"two"[..]));
        assert_eq!(records, vec![(b"b".to_vec(), b"2".to_vec()), (b"c".to_vec(), b"3".to_vec())]);
        assert!(store.shard(ShardId::new(4)).unwrap().position().unwrap().is_none());
    }

    #[test]
    fn records_are_read_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoints::open(dir.path()).unwrap().shard(ShardId::new(1)).unwrap();
        let put = |key: &[u8]| (key.to_vec(), Some(vec![0; 10]));
        checkpoint.save(b"here", vec![put(b"a"), put(b"b"), put(b"c")]).unwrap();
        let mut keys = Vec::new();
        let mut after = None;
        loop {
            let piece = checkpoint.read_after(after.as_deref(), 1).unwrap();
            let Some((key, _)) = piece.last() else { break };
            assert_eq!(piece.len(), 1, "one record is more than a byte");
            keys.extend(piece.iter().map(|(key, _)| key.clone()));
            after = Some(key.clone());
        }
        assert_eq!(keys, [b"a", b"b", b"c"]);
        assert_eq!(checkpoint.read_after(None, 22).unwrap().len(), 2);
    }
}
