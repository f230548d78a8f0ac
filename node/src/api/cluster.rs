//! What the cluster looks like from this node, and who is to lead in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use skein_proto::{
    ids::{NodeId, ShardId},
    node::{
        Node, NodeStanding, Shard, Topology, TransferLeaderRequest, TransferLeaderResponse,
        WatchClusterResponse,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tonic::Status;

use super::{Api, status};
use crate::{
    broker::Standing,
    raft::{Group, ReplicaSet},
    tasks,
};

/// Topologies that wait for the client to read them.
const RESPONSES_MAX: usize = 2;

impl Api {
    /// The cluster as this node sees it.
    pub(super) fn topology(&self) -> Topology {
        Topology {
            cluster_id: self.cluster_id.clone(),
            answering_node_id: self.node.get(),
            nodes: self.nodes(),
            shards: self.groups.iter().map(|group| self.shard(group)).collect(),
        }
    }

    fn nodes(&self) -> Vec<Node> {
        let members = self.connections.members();
        let members = members.borrow();
        let mut nodes: BTreeMap<NodeId, Node> = members
            .iter()
            .map(|(id, member)| {
                let node = Node {
                    node_id: id.get(),
                    grpc_address: member.clients.clone(),
                    http_address: member.http.clone(),
                    reachable: self.sightings.borrow().reachable.contains(id),
                    low_on_disk: self.is_low_on_disk(*id),
                    standing: NodeStanding::Member.into(),
                    ..Node::default()
                };
                (*id, node)
            })
            .collect();
        self.groups.catalog().replica().with_catalog(|catalog| {
            for (id, known) in catalog.nodes() {
                let node = nodes.entry(id).or_insert_with(|| Node { node_id: id.get(), ..Node::default() });
                let standing = match known.standing {
                    Standing::Invited => NodeStanding::Invited,
                    Standing::Member => NodeStanding::Member,
                    Standing::Leaving => NodeStanding::Leaving,
                };
                node.standing = standing.into();
                node.replaces_node_id = known.replaces.map_or(0, NodeId::get);
                node.drained = known.is_drained;
            }
        });
        nodes.into_values().collect()
    }

    fn shard(&self, group: &Group) -> Shard {
        let leadership = *group.leadership().borrow();
        let ReplicaSet { voters, learners, old_voters, is_changing } = group.replica_set();
        // Until a change has ended, those of before count as well, and those that come do not count alone.
        let (counting, others) = match is_changing {
            true => (
                old_voters.clone(),
                learners.into_iter().chain(voters.difference(&old_voters).copied()).collect(),
            ),
            false => (voters, learners),
        };
        let ids = |nodes: BTreeSet<NodeId>| nodes.into_iter().map(NodeId::get).collect();
        let behind = match leadership.leader == Some(self.node) {
            true => {
                let caught_up = group.caught_up();
                counting
                    .iter()
                    .copied()
                    .filter(|node| *node != self.node && !caught_up.contains(node))
                    .collect()
            }
            false => BTreeSet::new(),
        };
        Shard {
            shard_id: group.shard().get(),
            leader_node_id: leadership.leader.map_or(0, NodeId::get),
            term: leadership.term,
            replica_node_ids: ids(counting),
            applied_index: *group.replica().applied_index().borrow(),
            learner_node_ids: ids(others),
            behind_node_ids: ids(behind),
            activity: self.activities.borrow().get(&group.shard()).cloned().unwrap_or_default(),
        }
    }

    /// Lets another replica lead a shard that this node leads.
    pub(super) async fn transfer_leader(
        &self,
        request: TransferLeaderRequest,
    ) -> Result<TransferLeaderResponse, Status> {
        let TransferLeaderRequest { shard_id, node_id } = request;
        let transferred = self
            .group(ShardId::new(shard_id))?
            .transfer_to(NodeId::new(node_id), self.transport.as_ref())
            .await;
        let term = transferred.map_err(|error| status::from_transfer(error, shard_id, node_id))?;
        Ok(TransferLeaderResponse { term })
    }

    /// The topology now, and again whenever a leader changes or something about a node does.
    pub(super) fn watch_topology(
        self: Arc<Self>,
    ) -> BoxStream<'static, Result<WatchClusterResponse, Status>> {
        let (responses, stream) = mpsc::channel(RESPONSES_MAX);
        let leaders =
            self.groups.iter().map(|group| WatchStream::from_changes(group.leadership()).map(drop).boxed());
        let nodes = WatchStream::from_changes(self.sightings.clone()).map(drop).boxed();
        let disk = WatchStream::from_changes(self.disk.clone()).map(drop).boxed();
        let members = WatchStream::from_changes(self.connections.members()).map(drop).boxed();
        let mut changes = stream::select_all(leaders.chain([nodes, disk, members]));
        let mut stopping = self.stopping.clone();
        tasks::spawn(async move {
            loop {
                let response = WatchClusterResponse { topology: Some(self.topology()) };
                if responses.send(Ok(response)).await.is_err() {
                    return;
                }
                tokio::select! {
                    _ = changes.next() => {}
                    _ = stopping.wait_for(|stopping| *stopping) => return,
                    () = responses.closed() => return,
                }
            }
        });
        ReceiverStream::new(stream).boxed()
    }
}
