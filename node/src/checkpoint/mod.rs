//! The only user of sled: each shard's state as key-value records, saved atomically and flushed before the log that
//! it replaces is let go.
//!
//! Everything here can be rebuilt from the log or from peers; nothing here is confirmed to anybody.

use std::path::{Path, PathBuf};

use skein_proto::ids::ShardId;

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
}

/// One shard's checkpoint. Cheap to clone.
#[derive(Clone)]
pub struct Checkpoint {
    db: sled::Db,
    tree: sled::Tree,
    shard: ShardId,
}

/// What a shard's checkpoint holds.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Where the state stands; absent before the first checkpoint.
    pub position: Option<Vec<u8>>,
    /// The state's records by key.
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
}

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
            .map_err(|source| CheckpointError::Open { path: path.to_owned(), source })?;
        Ok(Self { db })
    }

    /// One shard's part of the store.
    ///
    /// # Errors
    /// When sled cannot open it.
    pub fn shard(&self, shard: ShardId) -> Result<Checkpoint, CheckpointError> {
        let tree = self
            .db
            .open_tree(format!("shard-{shard}"))
            .map_err(|source| CheckpointError::Read { shard, source })?;
        Ok(Checkpoint { db: self.db.clone(), tree, shard })
    }
}

impl Checkpoint {
    /// Reads the whole checkpoint.
    ///
    /// # Errors
    /// When sled cannot read it.
    pub fn load(&self) -> Result<Loaded, CheckpointError> {
        let mut loaded = Loaded::default();
        for item in self.tree.iter() {
            let (key, value) = item.map_err(|source| CheckpointError::Read { shard: self.shard, source })?;
            if key == POSITION_KEY {
                loaded.position = Some(value.to_vec());
            } else {
                loaded.records.push((key.to_vec(), value.to_vec()));
            }
        }
        Ok(loaded)
    }

    /// Reads where the state stands; `None` before the first checkpoint.
    ///
    /// # Errors
    /// When sled cannot read it.
    pub fn position(&self) -> Result<Option<Vec<u8>>, CheckpointError> {
        let position = self.tree.get(POSITION_KEY);
        let position = position.map_err(|source| CheckpointError::Read { shard: self.shard, source })?;
        Ok(position.map(|bytes| bytes.to_vec()))
    }

    /// Puts another checkpoint in place of this one, all or nothing, and waits until it is on disk.
    ///
    /// # Errors
    /// As [`Self::save`], and when sled cannot read what is to be replaced.
    pub fn replace(&self, with: &Loaded) -> Result<(), CheckpointError> {
        let old = self.load()?.records.into_iter().map(|(key, _)| (key, None));
        let new = with.records.iter().map(|(key, value)| (key.clone(), Some(value.clone())));
        self.save(with.position.as_deref().unwrap_or_default(), old.chain(new).collect())
    }

    /// Saves changed records and the position they lead to, all or nothing, and waits until they are on disk.
    /// `None` deletes a record.
    ///
    /// # Errors
    /// When sled cannot write or flush. What is on disk is then either the old checkpoint or the new one.
    ///
    /// # Panics
    /// When a record's key is empty.
    pub fn save(
        &self,
        position: &[u8],
        records: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    ) -> Result<(), CheckpointError> {
        let mut batch = sled::Batch::default();
        batch.insert(POSITION_KEY, position);
        for (key, record) in records {
            assert_ne!(key, POSITION_KEY, "a record's key is never empty");
            match record {
                Some(record) => batch.insert(key, record),
                None => batch.remove(key),
            }
        }
        let save = || {
            self.tree.apply_batch(batch)?;
            self.db.flush()
        };
        save().map(drop).map_err(|source| CheckpointError::Save { shard: self.shard, source })
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
        let store = Checkpoints::open(dir.path()).unwrap();
        let loaded = store.shard(shard).unwrap().load().unwrap();
        assert_eq!(loaded.position.as_deref(), Some(&b"two"[..]));
        assert_eq!(loaded.records, vec![(b"b".to_vec(), b"2".to_vec()), (b"c".to_vec(), b"3".to_vec())]);
        assert!(store.shard(ShardId::new(4)).unwrap().load().unwrap().position.is_none());
    }
}
