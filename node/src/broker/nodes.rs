//! The catalog's nodes: who belongs to the cluster, who was invited to it, and who is to leave it.

use std::collections::{BTreeMap, BTreeSet};

use skein_proto::{ids::NodeId, limits::CLUSTER_NODES_MAX};

/// A node as the catalog knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterNode {
    /// Whether it belongs to the cluster.
    pub standing: Standing,
    /// Where it is reached; empty until it has joined.
    pub addresses: NodeAddresses,
    /// What it joins with; empty for a node that formed the cluster.
    pub token: String,
    /// The name of the data directory that joined with the token; empty while none has.
    pub directory: String,
    /// The node whose place it takes, as long as that one is not gone.
    pub replaces: Option<NodeId>,
    /// It shall lead no shards.
    pub is_drained: bool,
}

/// Whether a node belongs to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It may join, and has not yet.
    Invited,
    /// It has, or is to have, a replica of every shard.
    Member,
    /// It is to have none, and is then forgotten.
    Leaving,
}

/// Where a node is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// host:port for other nodes.
    pub grpc: String,
    /// host:port for health checks and metrics.
    pub http: String,
    /// host:port that clients are told.
    pub clients: String,
}

/// One change of the cluster's nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeCommand {
    /// Notes the nodes that formed the cluster, unless nodes are known.
    Found {
        /// The nodes.
        nodes: Vec<(NodeId, NodeAddresses)>,
    },
    /// Gives out an id for a node that may join.
    Invite {
        /// What it joins with, not used before.
        token: String,
        /// The node whose place it takes.
        replaces: Option<NodeId>,
    },
    /// Lets an invited node in.
    Join {
        /// What it was invited with.
        token: String,
        /// The name of its data directory: no other one may join with the same token.
        directory: String,
        /// Where it is reached.
        addresses: NodeAddresses,
    },
    /// Takes back an invitation, or lets a member leave.
    Remove {
        /// The node.
        node: NodeId,
    },
    /// Notes that a leaving node has no replica any more.
    Forget {
        /// The node.
        node: NodeId,
    },
    /// Says whether a node shall lead shards.
    Drain {
        /// The node.
        node: NodeId,
        /// It shall not.
        is_drained: bool,
    },
}

/// What became of a [`NodeCommand`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeOutcome {
    /// It was done.
    Changed,
    /// It was so already.
    Unchanged,
    /// A node may join under this id.
    Invited(NodeId),
    /// The node has joined under this id.
    Joined(NodeId),
    /// There is no such node.
    NotFound,
    /// The nodes that formed the cluster are not noted yet.
    NotFounded,
    /// This one takes its place already.
    BeingReplaced {
        /// By whom.
        by: NodeId,
        /// That one has joined.
        has_joined: bool,
    },
    /// The cluster has as many nodes as it may.
    TooMany,
    /// It is the only one.
    LastNode,
    /// Nobody was invited with this token, or the invitation was taken back.
    TokenUnknown,
    /// Another data directory has joined with this token.
    TokenUsed {
        /// As this node.
        by: NodeId,
    },
    /// Another node is reached at this address.
    AddressTaken {
        /// That node.
        by: NodeId,
    },
}

#[derive(Debug)]
pub(super) struct Nodes {
    nodes: BTreeMap<NodeId, ClusterNode>,
    next: NodeId,
    /// Came, changed or went since the last checkpoint.
    changed: BTreeSet<NodeId>,
}

impl ClusterNode {
    fn new(standing: Standing, addresses: NodeAddresses) -> Self {
        let (token, directory) = (String::new(), String::new());
        Self { standing, addresses, token, directory, replaces: None, is_drained: false }
    }
}

impl Nodes {
    pub(super) const fn new() -> Self {
        Self { nodes: BTreeMap::new(), next: NodeId::new(1), changed: BTreeSet::new() }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeId, &ClusterNode)> {
        self.nodes.iter().map(|(id, node)| (*id, node))
    }

    pub(super) const fn next_id(&self) -> NodeId {
        self.next
    }

    pub(super) fn apply(&mut self, command: &NodeCommand) -> NodeOutcome {
        match command {
            NodeCommand::Found { nodes } => self.found(nodes),
            NodeCommand::Invite { token, replaces } => self.invite(token, *replaces),
            NodeCommand::Join { token, directory, addresses } => self.join(token, directory, addresses),
            NodeCommand::Remove { node } => self.remove(*node),
            NodeCommand::Forget { node } => self.forget(*node),
            NodeCommand::Drain { node, is_drained } => self.drain(*node, *is_drained),
        }
    }

    fn found(&mut self, nodes: &[(NodeId, NodeAddresses)]) -> NodeOutcome {
        if self.next != NodeId::new(1) {
            return NodeOutcome::Unchanged;
        }
        for (id, addresses) in nodes {
            self.insert(*id, ClusterNode::new(Standing::Member, addresses.clone()));
        }
        NodeOutcome::Changed
    }

    fn invite(&mut self, token: &str, replaces: Option<NodeId>) -> NodeOutcome {
        if self.nodes.is_empty() {
            return NodeOutcome::NotFounded;
        }
        if let Some(replaced) = replaces {
            if !self.nodes.get(&replaced).is_some_and(|node| node.standing != Standing::Invited) {
                return NodeOutcome::NotFound;
            }
            if let Some(by) = self.replacement(replaced) {
                let has_joined = self.nodes.get(&by).is_some_and(|node| node.standing != Standing::Invited);
                return NodeOutcome::BeingReplaced { by, has_joined };
            }
        }
        // The place of one that leaves anyway is not free.
        let takes_place = replaces.is_some_and(|replaced| self.is_member(replaced));
        if !takes_place && self.count() >= CLUSTER_NODES_MAX {
            return NodeOutcome::TooMany;
        }
        let id = self.next;
        let invited = ClusterNode::new(Standing::Invited, NodeAddresses::default());
        self.insert(id, ClusterNode { token: token.to_owned(), replaces, ..invited });
        NodeOutcome::Invited(id)
    }

    fn join(&mut self, token: &str, directory: &str, addresses: &NodeAddresses) -> NodeOutcome {
        let invited = self.iter().find(|(_, node)| !node.token.is_empty() && node.token == token);
        let Some((id, node)) = invited else { return NodeOutcome::TokenUnknown };
        let replaces = node.replaces;
        if node.standing != Standing::Invited {
            // It asks again when it did not hear the answer.
            let is_same = node.directory == directory;
            return if is_same { NodeOutcome::Joined(id) } else { NodeOutcome::TokenUsed { by: id } };
        }
        let taken = self.iter().find(|(other, node)| {
            Some(*other) != replaces && *other != id && node.addresses.grpc == addresses.grpc
        });
        if let Some((by, _)) = taken {
            return NodeOutcome::AddressTaken { by };
        }
        self.change(id, |node| {
            node.standing = Standing::Member;
            node.addresses = addresses.clone();
            directory.clone_into(&mut node.directory);
        });
        if let Some(replaced) = replaces {
            self.change(replaced, |node| node.standing = Standing::Leaving);
        }
        NodeOutcome::Joined(id)
    }

    fn remove(&mut self, id: NodeId) -> NodeOutcome {
        match self.nodes.get(&id).map(|node| node.standing) {
            None => NodeOutcome::NotFound,
            Some(Standing::Leaving) => NodeOutcome::Unchanged,
            Some(Standing::Invited) => self.delete(id),
            Some(Standing::Member) => {
                let members = self.nodes.values().filter(|node| node.standing == Standing::Member);
                if members.count() <= 1 {
                    return NodeOutcome::LastNode;
                }
                self.change(id, |node| node.standing = Standing::Leaving)
            }
        }
    }

    fn forget(&mut self, id: NodeId) -> NodeOutcome {
        match self.nodes.get(&id).map(|node| node.standing) {
            Some(Standing::Leaving) => self.delete(id),
            Some(_) => NodeOutcome::Unchanged,
            None => NodeOutcome::NotFound,
        }
    }

    fn drain(&mut self, id: NodeId, is_drained: bool) -> NodeOutcome {
        match self.nodes.get(&id) {
            None => NodeOutcome::NotFound,
            Some(node) if node.is_drained == is_drained => NodeOutcome::Unchanged,
            Some(_) => self.change(id, |node| node.is_drained = is_drained),
        }
    }

    /// The node that takes, or is to take, this one's place.
    fn replacement(&self, replaced: NodeId) -> Option<NodeId> {
        self.iter().find(|(_, node)| node.replaces == Some(replaced)).map(|(id, _)| id)
    }

    /// How many nodes the cluster has, or is to have.
    fn count(&self) -> usize {
        let stays = |(_, node): &(NodeId, &ClusterNode)| match node.standing {
            Standing::Member => true,
            Standing::Invited => !node.replaces.is_some_and(|replaced| self.is_member(replaced)),
            Standing::Leaving => false,
        };
        self.iter().filter(stays).count()
    }

    fn is_member(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.standing == Standing::Member)
    }

    fn insert(&mut self, id: NodeId, node: ClusterNode) {
        self.nodes.insert(id, node);
        self.next = self.next.max(NodeId::new(id.get() + 1));
        self.changed.insert(id);
    }

    fn change(&mut self, id: NodeId, change: impl FnOnce(&mut ClusterNode)) -> NodeOutcome {
        let Some(node) = self.nodes.get_mut(&id) else { return NodeOutcome::NotFound };
        change(node);
        self.changed.insert(id);
        NodeOutcome::Changed
    }

    fn delete(&mut self, id: NodeId) -> NodeOutcome {
        let gone = self.nodes.remove(&id);
        self.changed.insert(id);
        if let Some(replacement) = self.replacement(id) {
            // The one whose place it was to take, if that one is still there.
            let replaces = gone.and_then(|gone| gone.replaces);
            self.change(replacement, |node| node.replaces = replaces);
        }
        NodeOutcome::Changed
    }

    pub(super) fn take_changes(&mut self) -> Vec<(NodeId, Option<ClusterNode>)> {
        let changed = std::mem::take(&mut self.changed).into_iter();
        changed.map(|id| (id, self.nodes.get(&id).cloned())).collect()
    }

    pub(super) fn restore_next(&mut self, next: NodeId) {
        self.next = self.next.max(next);
    }

    pub(super) fn restore(&mut self, id: NodeId, node: ClusterNode) {
        self.insert(id, node);
        self.changed.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(name: &str) -> NodeAddresses {
        let at = |port: u16| format!("{name}:{port}");
        NodeAddresses { grpc: at(7101), http: at(7201), clients: at(7101) }
    }

    fn founded(count: u64) -> Nodes {
        let mut nodes = Nodes::new();
        let founders = (1..=count).map(|id| (NodeId::new(id), addresses(&format!("node-{id}")))).collect();
        assert_eq!(nodes.apply(&NodeCommand::Found { nodes: founders }), NodeOutcome::Changed);
        nodes
    }

    fn invite(nodes: &mut Nodes, token: &str, replaces: Option<u64>) -> NodeOutcome {
        nodes.apply(&NodeCommand::Invite { token: token.to_owned(), replaces: replaces.map(NodeId::new) })
    }

    fn join(nodes: &mut Nodes, token: &str, directory: &str, name: &str) -> NodeOutcome {
        let (token, directory) = (token.to_owned(), directory.to_owned());
        nodes.apply(&NodeCommand::Join { token, directory, addresses: addresses(name) })
    }

    fn standings(nodes: &Nodes) -> Vec<(u64, Standing)> {
        nodes.iter().map(|(id, node)| (id.get(), node.standing)).collect()
    }

    #[test]
    fn who_is_invited_joins_once_and_may_ask_again() {
        let mut nodes = Nodes::new();
        assert_eq!(invite(&mut nodes, "early", None), NodeOutcome::NotFounded);
        let mut nodes = founded(3);
        let (four, unknown) = (NodeId::new(4), NodeOutcome::TokenUnknown);
        assert_eq!(
            join(&mut nodes, "", "dir", "node-4"),
            unknown,
            "founders have no token that others could use"
        );
        assert_eq!(invite(&mut nodes, "secret", None), NodeOutcome::Invited(four));
        assert_eq!(join(&mut nodes, "guess", "dir", "node-4"), unknown);
        let two = NodeId::new(2);
        assert_eq!(join(&mut nodes, "secret", "dir", "node-2"), NodeOutcome::AddressTaken { by: two });
        assert_eq!(join(&mut nodes, "secret", "dir", "node-4"), NodeOutcome::Joined(four));
        assert_eq!(join(&mut nodes, "secret", "dir", "node-4"), NodeOutcome::Joined(four));
        assert_eq!(join(&mut nodes, "secret", "empty", "node-4"), NodeOutcome::TokenUsed { by: four });
        assert_eq!(nodes.iter().find(|(id, _)| *id == four).unwrap().1.addresses, addresses("node-4"));
    }

    #[test]
    fn a_replaced_node_leaves_and_its_id_is_not_given_again() {
        let mut nodes = founded(3);
        let (three, four) = (NodeId::new(3), NodeId::new(4));
        assert_eq!(invite(&mut nodes, "a", Some(9)), NodeOutcome::NotFound);
        assert_eq!(invite(&mut nodes, "a", Some(3)), NodeOutcome::Invited(four));
        assert_eq!(
            invite(&mut nodes, "b", Some(3)),
            NodeOutcome::BeingReplaced { by: four, has_joined: false }
        );
        // Taken back, and given anew.
        assert_eq!(nodes.apply(&NodeCommand::Remove { node: four }), NodeOutcome::Changed);
        let five = NodeId::new(5);
        assert_eq!(invite(&mut nodes, "b", Some(3)), NodeOutcome::Invited(five));
        // It may well run where the other one ran.
        assert_eq!(join(&mut nodes, "b", "dir", "node-3"), NodeOutcome::Joined(five));
        let member = Standing::Member;
        assert_eq!(standings(&nodes), [(1, member), (2, member), (3, Standing::Leaving), (5, member)]);
        assert_eq!(nodes.apply(&NodeCommand::Forget { node: three }), NodeOutcome::Changed);
        assert_eq!(nodes.apply(&NodeCommand::Forget { node: three }), NodeOutcome::NotFound);
        assert_eq!(standings(&nodes), [(1, member), (2, member), (5, member)]);
        assert!(nodes.iter().all(|(_, node)| node.replaces.is_none()));
        assert_eq!(invite(&mut nodes, "c", None), NodeOutcome::Invited(NodeId::new(6)));
    }

    #[test]
    fn who_takes_the_place_of_a_replacement_takes_that_of_the_one_before_it() {
        let mut nodes = founded(3);
        let (three, four, five) = (NodeId::new(3), NodeId::new(4), NodeId::new(5));
        invite(&mut nodes, "a", Some(3));
        join(&mut nodes, "a", "dir", "node-4");
        assert_eq!(
            invite(&mut nodes, "b", Some(3)),
            NodeOutcome::BeingReplaced { by: four, has_joined: true }
        );
        assert_eq!(invite(&mut nodes, "b", Some(4)), NodeOutcome::Invited(five));
        join(&mut nodes, "b", "dir", "node-5");
        assert_eq!(nodes.apply(&NodeCommand::Forget { node: four }), NodeOutcome::Changed);
        let replaces = |nodes: &Nodes| nodes.iter().find(|(id, _)| *id == five).unwrap().1.replaces;
        assert_eq!(replaces(&nodes), Some(three), "which is still there");
        nodes.apply(&NodeCommand::Forget { node: three });
        assert_eq!(replaces(&nodes), None);
    }

    #[test]
    fn a_cluster_grows_to_its_limit_and_shrinks_to_one_node() {
        let mut nodes = founded(1);
        for id in 2..=CLUSTER_NODES_MAX as u64 {
            assert_eq!(invite(&mut nodes, &id.to_string(), None), NodeOutcome::Invited(NodeId::new(id)));
        }
        assert_eq!(invite(&mut nodes, "more", None), NodeOutcome::TooMany);
        let joined = join(&mut nodes, "2", "dir", "node-2");
        assert_eq!(joined, NodeOutcome::Joined(NodeId::new(2)));
        assert_eq!(invite(&mut nodes, "other", Some(2)), NodeOutcome::Invited(NodeId::new(8)));
        let mut remove = |id| nodes.apply(&NodeCommand::Remove { node: NodeId::new(id) });
        assert_eq!(remove(1), NodeOutcome::Changed);
        assert_eq!(remove(1), NodeOutcome::Unchanged);
        assert_eq!(remove(2), NodeOutcome::LastNode);
        assert_eq!(remove(99), NodeOutcome::NotFound);
        // The first one leaves, and has left its place to one that is invited.
        assert_eq!(invite(&mut nodes, "in its place", Some(1)), NodeOutcome::Invited(NodeId::new(9)));
        assert_eq!(invite(&mut nodes, "more", None), NodeOutcome::TooMany);
    }

    #[test]
    fn only_who_leaves_is_forgotten_and_whoever_formed_the_cluster_is_noted_once() {
        let mut nodes = founded(3);
        assert_eq!(nodes.apply(&NodeCommand::Forget { node: NodeId::new(1) }), NodeOutcome::Unchanged);
        let others = vec![(NodeId::new(7), addresses("other"))];
        assert_eq!(nodes.apply(&NodeCommand::Found { nodes: others }), NodeOutcome::Unchanged);
        let drain = |is_drained| NodeCommand::Drain { node: NodeId::new(2), is_drained };
        assert_eq!(nodes.apply(&drain(true)), NodeOutcome::Changed);
        assert_eq!(nodes.apply(&drain(true)), NodeOutcome::Unchanged);
        assert!(nodes.iter().any(|(id, node)| id.get() == 2 && node.is_drained));
        assert_eq!(nodes.apply(&drain(false)), NodeOutcome::Changed);
    }
}
