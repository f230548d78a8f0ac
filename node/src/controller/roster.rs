//! Keeps this node's idea of who belongs to the cluster as the catalog says, and the catalog's as the cluster is: the
//! nodes that formed it are noted, and those that have left are forgotten.

use std::{sync::Arc, time::Duration};

use skein_proto::ids::NodeId;
use tokio::sync::watch;

use crate::{
    broker::{CatalogCommand, ClusterNode, NodeAddresses, NodeCommand, Standing},
    peer::{Connections, Identity, Members, Roster},
    raft::{Groups, Proposed, Transport},
};

/// How often is looked whether a leaving node has left, and after a proposal that failed.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Keeps the roster.
pub struct RosterKeeper {
    /// This node's replicas.
    pub groups: Arc<Groups>,
    /// The ways to the others.
    pub connections: Arc<Connections>,
    /// Raft calls to the others.
    pub transport: Arc<dyn Transport>,
    /// What this node tells its peers.
    pub identity: watch::Sender<Identity>,
    /// The nodes that the configuration lists, or that formed the cluster: reached where it says.
    pub configured: Members,
    /// This node formed the cluster, together with those.
    pub is_founder: bool,
}

impl RosterKeeper {
    /// Runs for the node's life.
    pub async fn run(self) {
        let catalog = self.groups.catalog();
        let mut applied = catalog.replica().applied_index();
        let mut known: Vec<(NodeId, ClusterNode)> = Vec::new();
        loop {
            // Most changes of the catalog are of queues, and none of them is worth a copy.
            let changed = catalog.replica().with_catalog(|catalog| {
                let is_known = catalog.nodes().eq(known.iter().map(|(id, node)| (*id, node)));
                let nodes = || catalog.nodes().map(|(id, node)| (id, node.clone())).collect();
                (!is_known).then(|| (nodes(), catalog.next_node()))
            });
            if let Some((nodes, next)) = changed {
                known = nodes;
                self.learn(&known, next);
            }
            if catalog.is_leader() {
                self.tell().await;
            }
            // An error means that the node is stopping.
            let changed = tokio::time::timeout(LOOK_EVERY, applied.changed()).await;
            if changed.is_ok_and(|changed| changed.is_err()) {
                return;
            }
        }
    }

    fn learn(&self, nodes: &[(NodeId, ClusterNode)], next: NodeId) {
        let joined = nodes.iter().filter(|(_, node)| node.standing != Standing::Invited);
        self.connections.set_members(joined.map(|(id, node)| (*id, self.addresses(*id, node))).collect());
        let roster = Roster { nodes: nodes.iter().map(|(id, _)| *id).collect(), next };
        self.identity.send_if_modified(|identity| identity.roster.replace(roster.clone()) != Some(roster));
    }

    /// Where a node is reached: one that formed the cluster where the configuration says, if it lists it, since that is
    /// where its addresses are changed; one that joined, where it said.
    fn addresses(&self, id: NodeId, node: &ClusterNode) -> NodeAddresses {
        let is_founder = node.token.is_empty();
        self.configured.get(&id).filter(|_| is_founder).unwrap_or(&node.addresses).clone()
    }

    /// Tells the catalog what it does not know yet. This node leads it.
    async fn tell(&self) {
        let catalog = self.groups.catalog();
        let (is_founded, leaving) = catalog.replica().with_catalog(|catalog| {
            let leaving = catalog.nodes().filter(|(_, node)| node.standing == Standing::Leaving);
            (catalog.next_node() > NodeId::new(1), leaving.map(|(id, _)| id).collect::<Vec<_>>())
        });
        if !is_founded && self.is_founder {
            let nodes = self.configured.clone().into_iter().collect();
            self.propose(NodeCommand::Found { nodes }).await;
        }
        for node in leaving {
            if self.has_left(node).await {
                tracing::info!(%node, "no shard has a replica on the node any more: it has left the cluster");
                self.propose(NodeCommand::Forget { node }).await;
            }
        }
    }

    /// Whether no shard has a replica on a node, by what a majority of each has agreed on up to now. What this node has
    /// heard of a shard may be old, or nothing yet, and a node that is forgotten is refused by all others.
    async fn has_left(&self, node: NodeId) -> bool {
        for group in self.groups.iter() {
            if !group.catch_up(self.transport.as_ref()).await {
                return false;
            }
            let agreed = group.agreed_replicas();
            if agreed.is_empty() || agreed.contains(&node) {
                return false;
            }
        }
        true
    }

    async fn propose(&self, command: NodeCommand) {
        let proposed = Proposed::catalog(&CatalogCommand::Node(command));
        if let Err(error) = self.groups.catalog().propose(proposed).await {
            // It is told again as long as the catalog does not know.
            tracing::debug!(%error, "the catalog was not told about nodes");
        }
    }
}
