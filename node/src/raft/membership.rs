//! Which nodes have a replica of a shard, and how that is changed: one step at a time, each agreed on by a majority of
//! those that have one before and of those that have one after it.

use std::{collections::BTreeSet, time::Duration};

use openraft::{BasicNode, ChangeMembers, async_runtime::watch::WatchReceiver as _};
use skein_proto::ids::NodeId;
use tokio::time;

use super::{group::Group, network::Transport};

/// A change that is not agreed on within this is looked at again: a majority may be gone.
const CHANGE_WAIT_MAX: Duration = Duration::from_secs(5);

/// What a shard's leader has applied is applied here within this, or not waited for.
const APPLY_WAIT_MAX: Duration = Duration::from_secs(1);

/// The nodes that have a replica of a shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplicaSet {
    /// Those that elect, and that a majority is counted of.
    pub voters: BTreeSet<NodeId>,
    /// Those that are being brought up to date.
    pub learners: BTreeSet<NodeId>,
    /// While a change of the voters is under way, those of before.
    pub old_voters: BTreeSet<NodeId>,
    /// A change of the voters has begun and not ended: `voters` are those that it leads to.
    pub is_changing: bool,
}

/// Why a shard's replicas were not changed.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// This node does not lead, another change is under way, or openraft sees no sense in it.
    #[error("{0}")]
    Refused(String),
    /// Nobody knows yet whether it was.
    #[error("no majority agreed to it within {CHANGE_WAIT_MAX:?}")]
    Unknown,
}

impl Group {
    /// The nodes that have a replica, as far as this node knows: the newest change may not be agreed on yet.
    #[must_use]
    pub fn replica_set(&self) -> ReplicaSet {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let configs = membership.get_joint_config();
        let ids = |ids: &BTreeSet<u64>| ids.iter().copied().map(NodeId::new).collect();
        ReplicaSet {
            voters: configs.last().map(ids).unwrap_or_default(),
            old_voters: configs.iter().rev().skip(1).flatten().copied().map(NodeId::new).collect(),
            learners: membership.learner_ids().map(NodeId::new).collect(),
            is_changing: configs.len() > 1,
        }
    }

    /// Waits until this replica has everything that was confirmed before the call, as its leader says. False when that
    /// does not answer, or this replica is far behind.
    pub async fn catch_up(&self, transport: &dyn Transport) -> bool {
        let Some(leader) = self.leadership().borrow().leader else { return false };
        let index = match leader == self.node() {
            true => self.read_index().await,
            false => transport.read_index(leader, self.shard()).await.ok(),
        };
        let Some(index) = index else { return false };
        time::timeout(APPLY_WAIT_MAX, self.replica().wait_applied(index)).await.is_ok()
    }

    /// The nodes that have a replica, whether or not it counts, by the newest change that this replica has applied: it
    /// is agreed on. Empty when this replica has applied nothing.
    #[must_use]
    pub fn agreed_replicas(&self) -> BTreeSet<NodeId> {
        let (_, membership) = self.replica().applied();
        membership.nodes().map(|(id, _)| NodeId::new(*id)).collect()
    }

    /// Lets a node have a replica that is brought up to date and does not count yet.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn add_learner(&self, node: NodeId, address: &str) -> Result<(), MembershipError> {
        let nodes = [(node.get(), BasicNode::new(address))].into();
        self.change_membership(ChangeMembers::AddNodes(nodes)).await
    }

    /// Takes away a replica that does not count.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn drop_learner(&self, node: NodeId) -> Result<(), MembershipError> {
        self.change_membership(ChangeMembers::RemoveNodes([node.get()].into())).await
    }

    /// Lets these replicas count and no others; those that did and do not any more are taken away.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn set_voters(&self, voters: &BTreeSet<NodeId>) -> Result<(), MembershipError> {
        let voters = voters.iter().map(|node| node.get()).collect();
        self.change_membership(ChangeMembers::ReplaceAllVoters(voters)).await
    }

    async fn change_membership(&self, change: ChangeMembers<u64, BasicNode>) -> Result<(), MembershipError> {
        let changed = self.raft().change_membership(change, false);
        match time::timeout(CHANGE_WAIT_MAX, changed).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(refused)) => Err(MembershipError::Refused(refused.to_string())),
            Err(_) => Err(MembershipError::Unknown),
        }
    }
}
