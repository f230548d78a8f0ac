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
    /// Why no node should be taken down now, since another one is needed; nothing when any one may go. To be asked of
    /// [`Client::topology_of_leaders`].
    #[must_use]
    pub fn why_all_are_needed(&self) -> Option<String> {
        let members = || self.nodes.iter().filter(|node| node.standing == NodeStanding::Member);
        if let Some(down) = members().find(|node| !node.reachable) {
            return Some(format!("node {} is down", down.id));
        }
        if let Some(low) = members().find(|node| node.low_on_disk) {
            return Some(format!("node {} is low on disk", low.id));
        }
        if let Some(shard) = self.shards.iter().find(|shard| shard.leader.is_none()) {
            return Some(format!("shard {} has no leader", shard.id));
        }
        if let Some(shard) = self.shards.iter().find(|shard| !shard.activity.is_empty()) {
            return Some(format!("shard {}: {}", shard.id, shard.activity));
        }
        if let Some((shard, node)) = self.shards.iter().find_map(|shard| Some((shard, shard.behind.first()?)))
        {
            return Some(format!("node {node} has yet to catch up with shard {}", shard.id));
        }
        let alone = self.shards.iter().find(|shard| shard.replicas.len() < 3)?;
        Some(format!("shard {} has fewer than three replicas", alone.id))
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::samples;

    fn whole() -> Topology {
        let shard = samples::shard(ShardId::CATALOG, Some(1), 1);
        Topology { cluster_id: "c".into(), nodes: [1, 2, 3].map(samples::node).to_vec(), shards: vec![shard] }
    }

    #[test]
    fn any_node_may_go_when_all_are_well_and_none_otherwise() {
        assert_eq!(whole().why_all_are_needed(), None);
        type Change = fn(&mut Topology);
        let unwell: [(Change, &str); 6] = [
            (|topology| topology.nodes[1].reachable = false, "node 2 is down"),
            (|topology| topology.nodes[2].low_on_disk = true, "node 3 is low on disk"),
            (|topology| topology.shards[0].leader = None, "shard 0 has no leader"),
            (
                |topology| topology.shards[0].activity = "gives node 4 a replica".into(),
                "shard 0: gives node 4 a replica",
            ),
            (
                |topology| topology.shards[0].behind.push(NodeId::new(2)),
                "node 2 has yet to catch up with shard 0",
            ),
            (|topology| topology.shards[0].replicas.truncate(2), "shard 0 has fewer than three replicas"),
        ];
        for (change, why) in unwell {
            let mut topology = whole();
            change(&mut topology);
            assert_eq!(topology.why_all_are_needed().as_deref(), Some(why));
        }
    }

    #[test]
    fn a_cluster_is_settled_when_every_member_has_every_replica_and_nobody_is_on_the_way() {
        assert!(whole().is_settled());
        for standing in [NodeStanding::Invited, NodeStanding::Leaving] {
            let mut topology = whole();
            topology.nodes[2].standing = standing;
            assert!(!topology.is_settled());
        }
        let mut topology = whole();
        topology.shards[0].learners.push(NodeId::new(3));
        assert!(!topology.is_settled());
    }
}
