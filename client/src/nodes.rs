//! The cluster's nodes: inviting, removing and draining them, and seeing how far that has come.

use std::collections::BTreeMap;

use skein_proto::{
    broker::{self, cluster_client::ClusterClient},
    ids::{NodeId, ShardId},
};

use crate::{
    client::{Client, Repeat},
    error::Error,
    topology::{NodeStanding, Topology},
};

/// What a new node needs to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// The id that it will have.
    pub node: NodeId,
    /// What it joins with, once: `skein-node run --join-token`.
    pub join_token: String,
}

impl Client {
    /// Invites a node to the cluster, to take the place of `replaces` if one is named: that one leaves as the new one
    /// gets its replicas, and may be dead.
    ///
    /// # Errors
    /// When there is no such node or another one takes its place already, when the cluster has as many nodes as it may,
    /// or does not answer. [`Error::OutcomeUnknown`] means that a node may be invited whose token nobody knows;
    /// [`Client::remove_node`] takes that back.
    pub async fn add_node(&self, replaces: Option<NodeId>) -> Result<Invitation, Error> {
        let request = broker::AddNodeRequest { replaces_node_id: replaces.map_or(0, NodeId::get) };
        let answer = self
            .call(Repeat::IfNotDone, None, |channel| async move {
                ClusterClient::new(channel).add_node(request).await
            })
            .await?;
        Ok(Invitation { node: NodeId::new(answer.node_id), join_token: answer.join_token })
    }

    /// Lets a node leave the cluster, or takes its invitation back. Returns once that is decided: its replicas then go
    /// one by one, and when none is left it is gone from the [`Topology`] and its process ends.
    ///
    /// # Errors
    /// When there is no such node, it is the only one, or the cluster does not answer.
    pub async fn remove_node(&self, node: NodeId) -> Result<(), Error> {
        let request = broker::RemoveNodeRequest { node_id: node.get() };
        self.call(Repeat::Always, None, |channel| async move {
            ClusterClient::new(channel).remove_node(request).await
        })
        .await
        .map(drop)
    }

    /// Says whether a node shall lead shards. Returns once that is decided: it then hands over what it leads.
    ///
    /// # Errors
    /// When there is no such node, or the cluster does not answer.
    pub async fn drain_node(&self, node: NodeId, drained: bool) -> Result<(), Error> {
        let request = broker::DrainNodeRequest { node_id: node.get(), drained };
        self.call(Repeat::Always, None, |channel| async move {
            ClusterClient::new(channel).drain_node(request).await
        })
        .await
        .map(drop)
    }

    /// The cluster, with each shard as its own leader sees it: only that one knows what is being done about its
    /// replicas; and the nodes as the catalog's leader has them. Where a leader does not answer, as any node sees it.
    ///
    /// # Errors
    /// When no node answers within the request timeout.
    pub async fn topology_of_leaders(&self) -> Result<Topology, Error> {
        let mut topology = self.topology().await?;
        let leaders: BTreeMap<NodeId, String> = topology
            .shards
            .iter()
            .filter_map(|shard| topology.leader_of(shard.id))
            .map(|node| (node.id, node.grpc_address.clone()))
            .collect();
        for (leader, address) in leaders {
            let Ok(view) = self.router().ask(&address).await else { continue };
            let leads_catalog =
                topology.shard(ShardId::CATALOG).is_some_and(|shard| shard.leader == Some(leader));
            if leads_catalog {
                topology.nodes.clone_from(&view.nodes);
            }
            for shard in view.shards {
                let own = topology.shards.iter_mut().find(|known| known.id == shard.id);
                if let Some(known) = own.filter(|_| shard.leader == Some(leader)) {
                    *known = shard;
                }
            }
        }
        Ok(topology)
    }
}

impl Topology {
    /// Whether every node that belongs to the cluster, and no other one, has a replica of every shard that counts, and
    /// every node that was invited has come.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let members: Vec<_> = self
            .nodes
            .iter()
            .filter(|node| node.standing == NodeStanding::Member)
            .map(|node| node.id)
            .collect();
        let is_moving = self.nodes.iter().any(|node| node.standing != NodeStanding::Member);
        let is_settled = |shard: &crate::Shard| {
            shard.leader.is_some() && shard.learners.is_empty() && shard.replicas == members
        };
        !is_moving && self.shards.iter().all(is_settled)
    }
}
