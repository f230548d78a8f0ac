//! What the cluster looks like: its nodes, its shards and who leads them.

use skein_proto::{
    broker,
    ids::{NodeId, ShardId},
};

/// The cluster, as the nodes that were asked see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// Chosen when the cluster was formed, never changed.
    pub cluster_id: String,
    /// The nodes, by id.
    pub nodes: Vec<Node>,
    /// The shards, by id; the first is the catalog.
    pub shards: Vec<Shard>,
}

/// One broker process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Never used again for another node.
    pub id: NodeId,
    /// `host:port` for clients.
    pub grpc_address: String,
    /// `host:port` of metrics and health.
    pub http_address: String,
    /// The node that answered has a live connection to it, or is it.
    pub reachable: bool,
    /// Its disk is nearly full: it takes no publishes for the shards it leads.
    pub low_on_disk: bool,
    /// Whether it belongs to the cluster.
    pub standing: NodeStanding,
    /// The node whose place it takes, as long as that one is not gone.
    pub replaces: Option<NodeId>,
    /// It shall lead no shards.
    pub drained: bool,
}

/// Whether a node belongs to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeStanding {
    /// It may join and has not yet.
    Invited,
    /// It has, or is being given, a replica of every shard.
    Member,
    /// Its replicas are being taken away.
    Leaving,
}

impl NodeStanding {
    /// What it is called in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Invited => "invited",
            Self::Member => "member",
            Self::Leaving => "leaving",
        }
    }
}

/// One Raft group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// 0 is the catalog.
    pub id: ShardId,
    /// None while there is no leader.
    pub leader: Option<NodeId>,
    /// The Raft term that the leader belongs to.
    pub term: u64,
    /// The nodes that keep a copy that counts, by id.
    pub replicas: Vec<NodeId>,
    /// Those whose copy is being brought up to date, and does not count yet.
    pub learners: Vec<NodeId>,
    /// The newest entry that the node that answered has applied.
    pub applied_index: u64,
    /// What is being done about its replicas, or waited for; empty when nothing is, or the node that answered does not
    /// lead it. [`Client::topology_of_leaders`](crate::Client::topology_of_leaders) asks those that do.
    pub activity: String,
    /// Replicas that lack more than a little of the log, or have not been heard; known to the leader alone, as above.
    pub behind: Vec<NodeId>,
}

impl Topology {
    /// The node of this id.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// The shard of this id.
    #[must_use]
    pub fn shard(&self, id: ShardId) -> Option<&Shard> {
        self.shards.iter().find(|shard| shard.id == id)
    }

    /// The node that leads a shard, as far as is known.
    #[must_use]
    pub fn leader_of(&self, shard: ShardId) -> Option<&Node> {
        self.node(self.shard(shard)?.leader?)
    }

    /// Takes over a newer view. Nodes hear of elections at different times: what is known of a later term stays, and
    /// so does a known leader where the other node only has not heard of it. Says whether anything changed that
    /// decides where streams go.
    pub(crate) fn learn(&mut self, mut view: Self) -> bool {
        if view.cluster_id == self.cluster_id {
            for shard in &mut view.shards {
                if let Some(known) = self.shard(shard.id)
                    && (known.term > shard.term || known.term == shard.term && shard.leader.is_none())
                {
                    shard.leader = known.leader;
                    shard.term = known.term;
                }
            }
        }
        let changed = !self.routes_like(&view);
        *self = view;
        changed
    }

    fn routes_like(&self, other: &Self) -> bool {
        let leaders = |topology: &Self| -> Vec<_> {
            topology.shards.iter().map(|shard| (shard.id, shard.leader, shard.term)).collect()
        };
        self.cluster_id == other.cluster_id && self.nodes == other.nodes && leaders(self) == leaders(other)
    }
}

impl From<broker::Topology> for Topology {
    fn from(wire: broker::Topology) -> Self {
        let mut nodes: Vec<_> = wire.nodes.into_iter().map(Node::from).collect();
        let mut shards: Vec<_> = wire.shards.into_iter().map(Shard::from).collect();
        nodes.sort_by_key(|node| node.id);
        shards.sort_by_key(|shard| shard.id);
        Self { cluster_id: wire.cluster_id, nodes, shards }
    }
}

impl From<broker::Node> for Node {
    fn from(wire: broker::Node) -> Self {
        Self {
            id: NodeId::new(wire.node_id),
            reachable: wire.reachable,
            low_on_disk: wire.low_on_disk,
            standing: match wire.standing() {
                broker::NodeStanding::Invited => NodeStanding::Invited,
                broker::NodeStanding::Leaving => NodeStanding::Leaving,
                broker::NodeStanding::Member | broker::NodeStanding::Unspecified => NodeStanding::Member,
            },
            replaces: node_id(wire.replaces_node_id),
            drained: wire.drained,
            grpc_address: wire.grpc_address,
            http_address: wire.http_address,
        }
    }
}

impl From<broker::Shard> for Shard {
    fn from(wire: broker::Shard) -> Self {
        Self {
            id: ShardId::new(wire.shard_id),
            leader: node_id(wire.leader_node_id),
            term: wire.term,
            replicas: wire.replica_node_ids.into_iter().map(NodeId::new).collect(),
            learners: wire.learner_node_ids.into_iter().map(NodeId::new).collect(),
            activity: wire.activity,
            behind: wire.behind_node_ids.into_iter().map(NodeId::new).collect(),
            applied_index: wire.applied_index,
        }
    }
}

/// A node id in a field where 0 means that there is none.
pub(crate) fn node_id(raw: u64) -> Option<NodeId> {
    (raw != 0).then(|| NodeId::new(raw))
}

/// Nodes and shards of which all is well, for tests.
#[cfg(test)]
pub(crate) mod samples {
    use super::*;

    pub(crate) fn node(id: u64) -> Node {
        Node {
            id: NodeId::new(id),
            grpc_address: format!("node-{id}:7101"),
            http_address: String::new(),
            reachable: true,
            low_on_disk: false,
            standing: NodeStanding::Member,
            replaces: None,
            drained: false,
        }
    }

    /// On nodes 1, 2 and 3.
    pub(crate) fn shard(id: ShardId, leader: Option<u64>, term: u64) -> Shard {
        Shard {
            id,
            leader: leader.map(NodeId::new),
            term,
            replicas: [1, 2, 3].map(NodeId::new).to_vec(),
            learners: Vec::new(),
            applied_index: 0,
            activity: String::new(),
            behind: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(leader: u64, term: u64) -> Topology {
        let shard = samples::shard(ShardId::new(1), (leader != 0).then_some(leader), term);
        Topology { cluster_id: "c".into(), nodes: [1, 2, 3].map(samples::node).to_vec(), shards: vec![shard] }
    }

    #[test]
    fn later_terms_win_and_known_leaders_stay() {
        // (known leader and term, seen leader and term, leader and term after, changed)
        let cases = [
            ((1, 5), (2, 6), (2, 6), true),
            ((1, 5), (2, 4), (1, 5), false),
            ((1, 5), (0, 5), (1, 5), false),
            ((1, 5), (0, 6), (0, 6), true),
            ((0, 5), (3, 5), (3, 5), true),
            ((0, 6), (1, 5), (0, 6), false),
        ];
        for (known, seen, after, changed) in cases {
            let mut topology = view(known.0, known.1);
            assert_eq!(topology.learn(view(seen.0, seen.1)), changed, "{known:?} {seen:?}");
            assert_eq!(topology, view(after.0, after.1), "{known:?} {seen:?}");
        }
    }

    #[test]
    fn another_cluster_replaces_everything() {
        let mut topology = view(1, 5);
        let other = Topology { cluster_id: "other".into(), ..view(2, 1) };
        assert!(topology.learn(other.clone()));
        assert_eq!(topology, other);
    }

    #[test]
    fn progress_alone_changes_no_route() {
        let mut topology = view(1, 5);
        let mut later = view(1, 5);
        later.shards[0].applied_index = 9;
        assert!(!topology.learn(later));
        assert_eq!(topology.shards[0].applied_index, 9);
    }

    #[test]
    fn the_leader_has_an_address() {
        let topology = view(2, 1);
        assert_eq!(topology.leader_of(ShardId::new(1)).unwrap().grpc_address, "node-2:7101");
        assert!(topology.leader_of(ShardId::new(9)).is_none());
        assert!(view(0, 1).leader_of(ShardId::new(1)).is_none());
    }
}
