//! Brings the replicas of the shards that this node leads to where the catalog wants them, step by step. What to do is
//! decided in [`plan`].

mod plan;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use skein_proto::ids::{NodeId, ShardId};
use tokio::sync::watch;

use self::plan::{Known, Step};
use super::steady::Steady;
use crate::{
    broker::{ClusterNode, NodeAddresses, Standing},
    raft::{Group, Groups, LACKING_ENTRIES_MAX, MembershipError},
};

/// How often shards are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A node that comes and goes is left alone: it must have been there for this long.
const STEADY_AFTER: Duration = Duration::from_secs(2);

/// What is being done about shards, in words; nothing for those that are as they should be.
pub type Activities = BTreeMap<ShardId, String>;

/// Keeps replicas.
pub struct ReplicaKeeper {
    /// This node.
    pub node: NodeId,
    /// This node's replicas.
    pub groups: Arc<Groups>,
    /// Who has been there for how long.
    pub steady: Steady,
    /// Where is told what is being done.
    pub activities: watch::Sender<Activities>,
}

/// Who is to have replicas.
struct Wishes {
    wanted: BTreeSet<NodeId>,
    replaced: Vec<(NodeId, NodeId)>,
}

impl ReplicaKeeper {
    /// Runs for the node's life.
    pub async fn run(self) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Some(wishes) = self.wishes() else { continue };
            let steady = self.steady.for_at_least(STEADY_AFTER);
            let led = self.groups.iter().filter(|group| group.is_leader());
            let steps: Vec<_> = led
                .map(|group| (group, self.next(group, &wishes, &steady)))
                .filter(|(_, step)| *step != Step::Settled)
                .collect();
            let describe = |(group, step): &(&Arc<Group>, Step)| (group.shard(), step.describe());
            self.tell(steps.iter().map(describe).collect());
            // One shard after the other is copied, so that a new node is not flooded.
            let mut is_copying =
                steps.iter().any(|(_, step)| matches!(step, Step::Wait(plan::Reason::CatchesUp(_))));
            for (group, step) in steps {
                if matches!(step, Step::Add(_)) && std::mem::replace(&mut is_copying, true) {
                    continue;
                }
                self.take(group, step).await;
            }
        }
    }

    fn tell(&self, activities: Activities) {
        self.activities.send_if_modified(|told| {
            let has_changed = *told != activities;
            *told = activities;
            has_changed
        });
    }

    /// Nothing while this node's catalog does not know the cluster's nodes.
    fn wishes(&self) -> Option<Wishes> {
        self.groups.catalog().replica().with_catalog(|catalog| {
            let nodes: Vec<(NodeId, &ClusterNode)> = catalog.nodes().collect();
            let members = nodes.iter().filter(|(_, node)| node.standing == Standing::Member);
            let wanted: BTreeSet<_> = members.map(|(id, _)| *id).collect();
            let replaced = nodes.iter().filter(|(id, _)| wanted.contains(id));
            let replaced = replaced.filter_map(|(id, node)| Some((node.replaces?, *id))).collect();
            (!wanted.is_empty()).then_some(Wishes { wanted, replaced })
        })
    }

    fn next(&self, group: &Group, wishes: &Wishes, steady: &BTreeSet<NodeId>) -> Step {
        let replicas = group.replica_set();
        if !replicas.is_changing && replicas.learners.is_empty() && replicas.voters == wishes.wanted {
            return Step::Settled;
        }
        let lags = group.follower_lags().into_iter();
        let caught_up = lags.filter(|(node, lag)| *lag <= LACKING_ENTRIES_MAX && steady.contains(node));
        let fit = caught_up.map(|(node, _)| node).chain([self.node]).collect();
        let known = Known {
            leader: self.node,
            replicas: &replicas,
            wanted: &wishes.wanted,
            replaced: &wishes.replaced,
            steady,
            fit: &fit,
        };
        known.next()
    }

    async fn take(&self, group: &Group, step: Step) {
        let shard = group.shard();
        let what = step.describe();
        let taken = match step {
            Step::Settled | Step::Wait(_) => return,
            Step::Add(node) => group.add_learner(node, &self.address(node)).await,
            Step::SetVoters(voters) => group.set_voters(&voters).await,
            Step::Drop(node) => group.drop_learner(node).await,
            Step::HandOver(node) => group
                .transfer_to(node)
                .await
                .map(drop)
                .map_err(|error| MembershipError::Refused(error.to_string())),
        };
        match taken {
            Ok(()) => tracing::info!(%shard, "{what}"),
            // It is looked at again soon, by whoever leads then.
            Err(error) => tracing::warn!(%shard, %error, "tried in vain: {what}"),
        }
    }

    /// Only for people who read raft's records: nodes are reached where the catalog says.
    fn address(&self, node: NodeId) -> String {
        self.groups
            .catalog()
            .replica()
            .with_catalog(|catalog| {
                let known = catalog.nodes().find(|(id, _)| *id == node);
                known.map(|(_, ClusterNode { addresses: NodeAddresses { grpc, .. }, .. })| grpc.clone())
            })
            .unwrap_or_default()
    }
}
