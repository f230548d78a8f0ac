//! Keeps this node's idea of who belongs to the cluster as the catalog says, and the catalog's as the cluster is: the
//! nodes that formed it are noted, and those that have left are forgotten.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use skein_proto::ids::NodeId;
use tokio::sync::watch;

use crate::{
    broker::{CatalogCommand, ClusterNode, NodeAddresses, NodeCommand, Standing},
    peer::{Connections, Identity, Member, Members, Roster},
    raft::{Groups, Proposed},
};

/// How often is looked whether a leaving node has left, and after a proposal that failed.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Keeps the roster.
pub struct RosterKeeper {
    /// This node's replicas.
    pub groups: Arc<Groups>,
    /// The ways to the others.
    pub connections: Arc<Connections>,
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
        let mut revision = None;
        loop {
            let known = catalog.replica().with_catalog(|catalog| {
                let newest = Some(catalog.revision());
                (revision != newest).then(|| {
                    revision = newest;
                    let nodes: Vec<_> = catalog.nodes().map(|(id, node)| (id, node.clone())).collect();
                    (nodes, catalog.next_node())
                })
            });
            if let Some((nodes, next)) = known.filter(|(nodes, _)| !nodes.is_empty()) {
                self.learn(&nodes, next);
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
        self.connections.set_members(joined.map(|(id, node)| (*id, self.member(*id, node))).collect());
        let roster = Roster { nodes: nodes.iter().map(|(id, _)| *id).collect(), next };
        self.identity.send_if_modified(|identity| identity.roster.replace(roster.clone()) != Some(roster));
    }

    /// Where a node is reached: where the configuration says, if it says anything. Addresses of those that formed the
    /// cluster are changed there.
    fn member(&self, id: NodeId, node: &ClusterNode) -> Member {
        let NodeAddresses { grpc, http, clients } = node.addresses.clone();
        let told = || Member { grpc, http, clients };
        self.configured.get(&id).cloned().unwrap_or_else(told)
    }

    /// Tells the catalog what it does not know yet. This node leads it.
    async fn tell(&self) {
        let catalog = self.groups.catalog();
        let (is_founded, leaving) = catalog.replica().with_catalog(|catalog| {
            let leaving = catalog.nodes().filter(|(_, node)| node.standing == Standing::Leaving);
            (catalog.next_node() > NodeId::new(1), leaving.map(|(id, _)| id).collect::<Vec<_>>())
        });
        if !is_founded && self.is_founder {
            let addresses = |member: &Member| {
                let Member { grpc, http, clients } = member.clone();
                NodeAddresses { grpc, http, clients }
            };
            let nodes = self.configured.iter().map(|(id, member)| (*id, addresses(member))).collect();
            self.propose(NodeCommand::Found { nodes }).await;
        }
        if leaving.is_empty() {
            return;
        }
        let still_used: BTreeSet<NodeId> = self
            .groups
            .iter()
            .map(|group| group.replica_set())
            .flat_map(|replicas| {
                replicas.old_voters.into_iter().chain(replicas.voters).chain(replicas.learners)
            })
            .collect();
        for node in leaving.into_iter().filter(|node| !still_used.contains(node)) {
            tracing::info!(%node, "no shard has a replica on the node any more: it has left the cluster");
            self.propose(NodeCommand::Forget { node }).await;
        }
    }

    async fn propose(&self, command: NodeCommand) {
        let proposed = Proposed::catalog(&CatalogCommand::Node(command));
        if let Err(error) = self.groups.catalog().propose(proposed).await {
            // It is told again as long as the catalog does not know.
            tracing::debug!(%error, "the catalog was not told about nodes");
        }
    }
}
