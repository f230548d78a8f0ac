//! What kind of cluster a test wants.

use crate::{mount::DiskKind, network::Network};

/// Nodes of a cluster, unless a test says otherwise: the fewest that survive the loss of one.
const NODES: u64 = 3;

/// Shards of a cluster, unless a test says otherwise. The default of the design.
const SHARDS: u32 = 8;

/// A part of a node's configuration that leaves no memory for where messages lie: all of it is read from checkpoints.
pub const NO_PAGE_MEMORY: &str = "[runtime]\npage_memory_bytes = 0\n";

/// What kind of cluster a test wants.
#[derive(Debug, Clone)]
pub struct Setup {
    /// How many nodes, numbered from 1.
    pub node_count: u64,
    /// Message shards.
    pub shards: u32,
    /// More lines for every node's configuration: whole sections other than `listen` and `cluster`.
    pub settings: String,
    /// What each node's data directory lies on.
    pub disk: DiskKind,
    /// Nodes hear each other through [`Links`](crate::links::Links), which can be cut.
    pub links: bool,
    /// Nodes run on a [`Machine`](crate::machine::Machine) that can be changed.
    pub machines: bool,
    /// Nodes have hosts of their own, on a [`Network`] that loses packets when it is told to.
    pub network: bool,
    /// What nodes find in their environment, besides what this process has.
    pub variables: Vec<(&'static str, &'static str)>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            node_count: NODES,
            shards: SHARDS,
            settings: String::new(),
            disk: DiskKind::Shared,
            links: false,
            machines: false,
            network: false,
            variables: Vec::new(),
        }
    }
}

impl Setup {
    /// Why there can be no such cluster here. `None` when there can.
    #[must_use]
    pub fn unavailable(&self) -> Option<String> {
        self.disk.unavailable().or_else(|| self.network.then(Network::unavailable).flatten())
    }
}
