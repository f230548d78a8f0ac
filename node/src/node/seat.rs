//! Who this node is when it starts: what its data directory says, or the cluster that it joined.

use skein_proto::ids::NodeId;

use crate::{
    config::Config,
    datadir::Owner,
    peer::{Identity, Members},
};

/// Who this node is when it starts.
pub(super) struct Seat {
    pub(super) node: NodeId,
    /// Nothing while its cluster is yet to be formed.
    pub(super) owner: Option<Owner>,
    /// The nodes that it knows before the catalog tells it more.
    pub(super) members: Members,
}

impl Seat {
    pub(super) fn new(config: &Config, owner: Option<Owner>) -> Self {
        let mut members = config.members.clone();
        let joined = owner.as_ref().filter(|owner| owner.has_joined()).map(Owner::node);
        if let Some(node) = joined {
            // It may be listed as the node whose place it took.
            members.retain(|_, member| member.grpc != config.advertised.grpc);
            members.insert(node, config.advertised.clone());
        }
        let node = joined.or(config.node).expect("a node that did not join is configured with an id");
        Self { node, owner, members }
    }

    pub(super) fn identity(&self, config: &Config) -> Identity {
        let joined = self.owner.as_ref().filter(|owner| owner.has_joined());
        Identity {
            node: self.node,
            cluster_id: joined.map(|owner| owner.cluster_id.clone()),
            formed: joined.is_some(),
            shard_count: joined.map_or(config.shard_count, |owner| owner.shards),
            members: config.members.clone(),
            roster: None,
        }
    }
}
