//! The data directory: taken by one process, and bound for good to one node of one cluster.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use skein_proto::ids::NodeId;

use crate::disk::{self, DirLock, Disk};

/// The file that says whose directory this is.
const IDENTITY_FILE: &str = "node.json";

/// The layout of the directory. A node refuses one that it does not know.
const FORMAT: u32 = 1;

/// A data directory that this process holds.
pub struct DataDir {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    _lock: DirLock,
}

/// Whose directory it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    format: u32,
    node_id: u64,
    /// The cluster.
    pub cluster_id: String,
    /// Message shards of the cluster.
    pub shards: u32,
    /// Every node has joined; see [`crate::formation`].
    pub formed: bool,
}

/// Why a data directory is refused.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The file system says no.
    #[error("data_dir {dir}: cannot {doing}")]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the operating system says.
        source: io::Error,
    },
    /// Another process has it.
    #[error("data_dir {dir} is in use by another process; stop that one first, or write another data_dir")]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The identity is unreadable.
    #[error(
        "{file} does not say whose directory this is; restore it from a backup, or replace \
        this node by a new one"
    )]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A newer version wrote it.
    #[error(
        "data_dir {dir} has format {found}, and this version knows {FORMAT}; run the version that wrote \
        it, or a newer one"
    )]
    Newer {
        /// The directory.
        dir: PathBuf,
        /// The format it has.
        found: u32,
    },
    /// It belongs to another node.
    #[error(
        "data_dir {dir} belongs to node {owner}, and this is node {node}; write that node's own data_dir"
    )]
    OtherNode {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        owner: u64,
        /// Who we are.
        node: NodeId,
    },
    /// The cluster has another number of shards.
    #[error(
        "data_dir {dir} belongs to a cluster of {found} shards, and the configuration says {configured}; \
         write cluster.shards = {found}"
    )]
    OtherShards {
        /// The directory.
        dir: PathBuf,
        /// What the cluster was formed with.
        found: u32,
        /// What the configuration says.
        configured: u32,
    },
}

impl DataDir {
    /// Takes the directory for this process, making it if there is none.
    ///
    /// # Errors
    /// See [`DataDirError`].
    pub fn open(dir: &Path, disk: Arc<dyn Disk>) -> Result<Self, DataDirError> {
        let failed = |doing| move |source| DataDirError::Io { dir: dir.to_owned(), doing, source };
        disk.create_dir_all(dir).map_err(failed("make it"))?;
        let lock = disk
            .lock_dir(dir)
            .map_err(failed("lock it"))?
            .ok_or_else(|| DataDirError::InUse { dir: dir.to_owned() })?;
        Ok(Self { dir: dir.to_owned(), disk, _lock: lock })
    }

    /// Whose directory it is; `None` for a fresh one.
    ///
    /// # Errors
    /// When it belongs to somebody else, or says something that cannot be read.
    pub fn owner(&self, node: NodeId, shard_count: u32) -> Result<Option<Owner>, DataDirError> {
        let file = self.dir.join(IDENTITY_FILE);
        let text = match disk::read_text(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(DataDirError::Io {
                    dir: self.dir.clone(),
                    doing: "read node.json in it",
                    source,
                });
            }
        };
        let owner: Owner =
            serde_json::from_str(&text).map_err(|source| DataDirError::Unreadable { file, source })?;
        let dir = self.dir.clone();
        if owner.format != FORMAT {
            return Err(DataDirError::Newer { dir, found: owner.format });
        }
        if owner.node_id != node.get() {
            return Err(DataDirError::OtherNode { dir, owner: owner.node_id, node });
        }
        if owner.shards != shard_count {
            return Err(DataDirError::OtherShards { dir, found: owner.shards, configured: shard_count });
        }
        Ok(Some(owner))
    }

    /// Writes down whose directory it is, durably.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn claim(&self, owner: &Owner) -> Result<(), DataDirError> {
        let text = serde_json::to_string_pretty(owner).expect("an owner is plain data");
        disk::replace_text(self.disk.as_ref(), &self.dir, IDENTITY_FILE, &text).map_err(|source| {
            DataDirError::Io { dir: self.dir.clone(), doing: "write node.json in it", source }
        })
    }

    /// Where the log lies.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Where the checkpoints lie.
    #[must_use]
    pub fn checkpoint(&self) -> PathBuf {
        self.dir.join("checkpoint")
    }
}

impl Owner {
    /// A node of a cluster that is being formed.
    #[must_use]
    pub fn new(node: NodeId, cluster_id: String, shards: u32) -> Self {
        Self { format: FORMAT, node_id: node.get(), cluster_id, shards, formed: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn a_directory_is_bound_to_its_node_and_cluster_and_to_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let (one, two) = (NodeId::new(1), NodeId::new(2));
        let held = DataDir::open(dir.path(), Arc::clone(&disk)).unwrap();
        assert_eq!(held.owner(one, 8).unwrap(), None);
        assert!(matches!(DataDir::open(dir.path(), Arc::clone(&disk)), Err(DataDirError::InUse { .. })));

        let owner = Owner::new(one, "c0ffee".to_owned(), 8);
        held.claim(&owner).unwrap();
        drop(held);
        let again = DataDir::open(dir.path(), disk).unwrap();
        assert_eq!(again.owner(one, 8).unwrap(), Some(owner));
        assert!(matches!(again.owner(two, 8), Err(DataDirError::OtherNode { owner: 1, .. })));
        assert!(matches!(again.owner(one, 9), Err(DataDirError::OtherShards { found: 8, .. })));
    }
}
