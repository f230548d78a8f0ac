//! The data directory: taken by one process, and bound for good to one node of one cluster.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use skein_proto::ids::NodeId;

use crate::{
    disk::{self, DirLock, Disk},
    random::random_name,
};

/// The file that says whose directory this is.
const IDENTITY_FILE: &str = "node.json";

/// The file with the name of a directory that is to join a cluster.
const NAME_FILE: &str = "joining.json";

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
    /// The id that the configuration had for the node when it joined a cluster that existed, and was given another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    configured_id: Option<u64>,
    /// It joined a cluster that existed.
    #[serde(default)]
    joined: bool,
    /// It was removed from its cluster.
    #[serde(default)]
    removed: bool,
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
        "data_dir {dir} belongs to {owner}, and the configuration says {configured}; write that node's own data_dir"
    )]
    OtherNode {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        owner: String,
        /// Who we are.
        configured: String,
    },
    /// Its node is none any more.
    #[error(
        "data_dir {dir} belongs to node {node}, which was removed from its cluster and cannot come back; to let this \
         machine join again, delete the directory, run `skein cluster add`, and start with the token that it prints"
    )]
    Removed {
        /// The directory.
        dir: PathBuf,
        /// The node.
        node: u64,
    },
    /// There is data in it, and nothing says whose.
    #[error(
        "data_dir {dir} has no node.json but a log of some node: a node can join a cluster only with an empty \
         directory; restore node.json, or write another data_dir"
    )]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
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
    pub fn owner(&self, node: Option<NodeId>, shard_count: u32) -> Result<Option<Owner>, DataDirError> {
        let file = self.dir.join(IDENTITY_FILE);
        let Some(text) = self.read(&file, "read node.json in it")? else { return Ok(None) };
        let owner: Owner =
            serde_json::from_str(&text).map_err(|source| DataDirError::Unreadable { file, source })?;
        let dir = self.dir.clone();
        if owner.format != FORMAT {
            return Err(DataDirError::Newer { dir, found: owner.format });
        }
        if owner.removed {
            return Err(DataDirError::Removed { dir, node: owner.node_id });
        }
        let configured_id = if owner.joined { owner.configured_id } else { Some(owner.node_id) };
        if configured_id != node.map(NodeId::get) {
            let configured = node.map_or_else(|| "no node_id".to_owned(), |node| format!("node_id = {node}"));
            return Err(DataDirError::OtherNode { dir, owner: owner.describe(), configured });
        }
        // Whoever joined was told.
        if owner.shards != shard_count && !owner.joined {
            return Err(DataDirError::OtherShards { dir, found: owner.shards, configured: shard_count });
        }
        Ok(Some(owner))
    }

    /// The name of a directory that is to join a cluster, drawn once: with the token that one directory has joined
    /// with, no other one can.
    ///
    /// # Errors
    /// When the file system fails, or there is a log or a checkpoint in it.
    pub fn name(&self) -> Result<String, DataDirError> {
        if self.log().exists() || self.checkpoint().exists() {
            return Err(DataDirError::NotEmpty { dir: self.dir.clone() });
        }
        let file = self.dir.join(NAME_FILE);
        if let Some(text) = self.read(&file, "read joining.json in it")? {
            return serde_json::from_str(&text).map_err(|source| DataDirError::Unreadable { file, source });
        }
        let name = random_name();
        self.write(NAME_FILE, &format!("{name:?}\n"), "write joining.json in it")?;
        Ok(name)
    }

    fn read(&self, file: &Path, doing: &'static str) -> Result<Option<String>, DataDirError> {
        match disk::read_text(file) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DataDirError::Io { dir: self.dir.clone(), doing, source }),
        }
    }

    fn write(&self, file: &str, text: &str, doing: &'static str) -> Result<(), DataDirError> {
        disk::replace_text(self.disk.as_ref(), &self.dir, file, text).map_err(|source| DataDirError::Io {
            dir: self.dir.clone(),
            doing,
            source,
        })
    }

    /// Writes down whose directory it is, durably.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn claim(&self, owner: &Owner) -> Result<(), DataDirError> {
        let text = serde_json::to_string_pretty(owner).expect("an owner is plain data");
        self.write(IDENTITY_FILE, &text, "write node.json in it")
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
        Self {
            format: FORMAT,
            node_id: node.get(),
            configured_id: None,
            joined: false,
            removed: false,
            cluster_id,
            shards,
            formed: false,
        }
    }

    /// A node that joined a cluster, where the configuration had another id for it, or none.
    #[must_use]
    pub fn joined(node: NodeId, configured: Option<NodeId>, cluster_id: String, shards: u32) -> Self {
        let configured_id = configured.map(NodeId::get);
        Self { configured_id, joined: true, formed: true, ..Self::new(node, cluster_id, shards) }
    }

    /// The node.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        NodeId::new(self.node_id)
    }

    /// Whether the node joined a cluster that others had formed.
    #[must_use]
    pub const fn has_joined(&self) -> bool {
        self.joined
    }

    /// The same when it was removed from its cluster.
    #[must_use]
    pub fn removed(self) -> Self {
        Self { removed: true, ..self }
    }

    fn describe(&self) -> String {
        match (self.joined, self.configured_id) {
            (true, Some(id)) => format!("node {}, which was configured as node_id = {id}", self.node_id),
            (true, None) => format!("node {}, which joined without a node_id", self.node_id),
            (false, _) => format!("node {}", self.node_id),
        }
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
        let (one, two) = (Some(NodeId::new(1)), Some(NodeId::new(2)));
        let held = DataDir::open(dir.path(), Arc::clone(&disk)).unwrap();
        assert_eq!(held.owner(one, 8).unwrap(), None);
        assert!(matches!(DataDir::open(dir.path(), Arc::clone(&disk)), Err(DataDirError::InUse { .. })));

        let owner = Owner::new(NodeId::new(1), "c0ffee".to_owned(), 8);
        held.claim(&owner).unwrap();
        drop(held);
        let again = DataDir::open(dir.path(), disk).unwrap();
        assert_eq!(again.owner(one, 8).unwrap(), Some(owner));
        assert!(matches!(again.owner(two, 8), Err(DataDirError::OtherNode { .. })));
        assert!(matches!(again.owner(None, 8), Err(DataDirError::OtherNode { .. })));
        assert!(matches!(again.owner(one, 9), Err(DataDirError::OtherShards { found: 8, .. })));
    }

    #[test]
    fn a_directory_joins_under_one_name_and_is_of_no_use_once_its_node_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::open(dir.path(), Arc::new(RealDisk)).unwrap();
        let name = held.name().unwrap();
        assert_eq!(held.name().unwrap(), name);
        std::fs::create_dir(held.log()).unwrap();
        assert!(matches!(held.name(), Err(DataDirError::NotEmpty { .. })));
        let configured = Some(NodeId::new(3));
        let owner = Owner::joined(NodeId::new(4), configured, "c0ffee".to_owned(), 8);
        held.claim(&owner).unwrap();
        // It may be configured for another number of shards: it was told the cluster's.
        assert_eq!(held.owner(configured, 9).unwrap(), Some(owner.clone()));
        let refused = held.owner(Some(NodeId::new(4)), 8).unwrap_err().to_string();
        assert!(refused.contains("belongs to node 4, which was configured as node_id = 3"), "{refused}");
        held.claim(&owner.removed()).unwrap();
        assert!(matches!(held.owner(configured, 8), Err(DataDirError::Removed { node: 4, .. })));
    }
}
