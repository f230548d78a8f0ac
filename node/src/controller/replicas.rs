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

use self::plan::{Known, Reason, Step};
use super::steady::Steady;
use crate::{
    broker::{ClusterNode, Standing},
    raft::{Group, Groups, MembershipError, Transport},
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
    /// Raft calls to the others.
    pub transport: Arc<dyn Transport>,
    /// Who has been there for how long.
    pub steady: Steady,
    /// Where is told what is being done.
    pub activities: watch::Sender<Activities>,
}

/// Who is to have replicas.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wishes {
    wanted: BTreeSet<NodeId>,
    /// Leaving nodes, each with the one that takes its place.
    replaced: Vec<(NodeId, NodeId)>,
    /// Nodes that shall lead nothing.
    drained: BTreeSet<NodeId>,
}

impl ReplicaKeeper {
    /// Runs for the node's life.
    pub async fn run(self) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Some(wishes) = self.wishes() else { continue };
            let led = self.groups.iter().filter(|group| group.is_leader());
            let steps: Vec<_> = led
                .map(|group| (group, self.next(group, &wishes)))
                .filter(|(_, step)| *step != Step::Settled)
                .collect();
            let describe = |(group, step): &(&Arc<Group>, Step)| (group.shard(), step.describe());
            self.tell(steps.iter().map(describe).collect());
            // One shard after the other is copied, so that a new node is not flooded.
            let mut is_copying =
                steps.iter().any(|(_, step)| matches!(step, Step::Wait(Reason::CatchesUp(_))));
            for (group, step) in steps {
                let is_put_off = matches!(step, Step::Add(_)) && std::mem::replace(&mut is_copying, true);
                if !is_put_off && self.is_still_right(group, &step).await && self.take(group, step).await {
                    // What is done is done; what comes next is told when it is known.
                    self.activities.send_if_modified(|told| told.remove(&group.shard()).is_some());
                }
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
        let wishes =
            self.groups.catalog().replica().with_catalog(|catalog| Wishes::of(&catalog.nodes().collect()));
        (!wishes.wanted.is_empty()).then_some(wishes)
    }

    /// Whether a step is what should be done also by what is known now, which another step may have taken seconds to
    /// become, and by what the catalog's leader knows.
    async fn is_still_right(&self, group: &Group, step: &Step) -> bool {
        if matches!(step, Step::Wait(_)) || !self.groups.catalog().catch_up(self.transport.as_ref()).await {
            return false;
        }
        let is_same = |wishes: Wishes| self.next(group, &wishes) == *step;
        group.is_leader() && self.wishes().is_some_and(is_same)
    }

    /// The nodes that have a replica of any other shard than the catalog, as far as this node knows: all of them while
    /// it has not heard of some. They must hear from the catalog what is wanted, so they leave that last.
    fn used_by_others(&self) -> BTreeSet<NodeId> {
        let mut used = BTreeSet::new();
        for group in self.groups.iter().filter(|group| group.shard() != ShardId::CATALOG) {
            let replicas = group.replica_set();
            if replicas.voters.is_empty() {
                return self.groups.catalog().replica_set().voters;
            }
            used.extend(replicas.voters.into_iter().chain(replicas.old_voters).chain(replicas.learners));
        }
        used
    }

    fn next(&self, group: &Group, wishes: &Wishes) -> Step {
        let replicas = group.replica_set();
        if !replicas.is_changing && replicas.learners.is_empty() && replicas.voters == wishes.wanted {
            return Step::Settled;
        }
        let steady = self.steady.for_at_least(STEADY_AFTER);
        let held = if group.shard() == ShardId::CATALOG { self.used_by_others() } else { BTreeSet::new() };
        let fit: BTreeSet<_> = group.caught_up().intersection(&steady).copied().chain([self.node]).collect();
        let known = Known {
            leader: self.node,
            replicas: &replicas,
            wanted: &wishes.wanted,
            replaced: &wishes.replaced,
            held: &held,
            drained: &wishes.drained,
            steady: &steady,
            fit: &fit,
        };
        known.next()
    }

    /// Takes a step. False when it was taken in vain.
    async fn take(&self, group: &Group, step: Step) -> bool {
        let shard = group.shard();
        let what = step.describe();
        let taken = match step {
            Step::Settled | Step::Wait(_) => return false,
            Step::Add(node) => group.add_learner(node, &self.address(node)).await,
            Step::SetVoters(voters) => self.set_voters(group, &voters).await,
            Step::Drop(node) => group.drop_learner(node).await,
            Step::HandOver(node) => {
                let handed_over = group.transfer_to(node, self.transport.as_ref()).await;
                handed_over.map(drop).map_err(|error| MembershipError::Refused(error.to_string()))
            }
        };
        match taken {
            Ok(()) => {
                tracing::info!(%shard, "{what}");
                true
            }
            Err(error) => {
                // It is looked at again soon, by whoever leads then.
                tracing::warn!(%shard, %error, "tried in vain: {what}");
                false
            }
        }
    }

    /// A change that no majority of those to come can agree to would leave the shard stuck, so they are asked first.
    async fn set_voters(&self, group: &Group, voters: &BTreeSet<NodeId>) -> Result<(), MembershipError> {
        let fit = group.fit_among(voters, self.transport.as_ref()).await;
        if fit.len() <= voters.len() / 2 {
            let reason = format!("only {} of {} say that they could lead", fit.len(), voters.len());
            return Err(MembershipError::Refused(reason));
        }
        group.set_voters(voters).await
    }

    /// Only for people who read raft's records: nodes are reached where the catalog says.
    fn address(&self, node: NodeId) -> String {
        let address = self.groups.catalog().replica().with_catalog(|catalog| {
            catalog.nodes().find(|(id, _)| *id == node).map(|(_, known)| known.addresses.grpc.clone())
        });
        address.unwrap_or_default()
    }
}

impl Wishes {
    fn of(nodes: &BTreeMap<NodeId, &ClusterNode>) -> Self {
        let mut wishes = Self::default();
        for (id, node) in nodes {
            if node.standing == Standing::Member {
                wishes.wanted.insert(*id);
                // Who takes the place of a replacement that is lost itself takes that of the one before it.
                let mut replaced = node.replaces;
                while let Some(gone) = replaced.filter(|gone| !wishes.replaced.contains(&(*gone, *id))) {
                    wishes.replaced.push((gone, *id));
                    replaced = nodes.get(&gone).and_then(|gone| gone.replaces);
                }
            }
            if node.is_drained {
                wishes.drained.insert(*id);
            }
        }
        wishes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::NodeAddresses;

    #[test]
    fn who_replaces_a_replacement_replaces_the_first_one() {
        let node = |standing, replaces: Option<u64>| ClusterNode {
            standing,
            addresses: NodeAddresses::default(),
            token: String::new(),
            directory: String::new(),
            replaces: replaces.map(NodeId::new),
            is_drained: false,
        };
        let id = NodeId::new;
        let nodes = [
            (id(1), node(Standing::Member, None)),
            (id(3), node(Standing::Leaving, None)),
            (id(4), node(Standing::Leaving, Some(3))),
            (id(5), node(Standing::Member, Some(4))),
            (id(6), node(Standing::Invited, Some(1))),
        ];
        let wishes = Wishes::of(&nodes.iter().map(|(id, node)| (*id, node)).collect());
        assert_eq!(wishes.wanted, [id(1), id(5)].into());
        assert_eq!(wishes.replaced, [(id(4), id(5)), (id(3), id(5))]);
    }
}
