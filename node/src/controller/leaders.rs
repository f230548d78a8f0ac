//! Spreads leaders over the nodes: away from those that shall lead none at once, and evenly once the cluster has been
//! quiet for a while. Each node gives away what it has too much of; only the one that leads most does so at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use skein_proto::ids::{NodeId, ShardId};

use super::steady::Steady;
use crate::{
    broker::Standing,
    clock::Clock,
    raft::{Groups, Transport},
};

/// How often leaders are counted.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Leaders are evened out when none has changed, and those that are to lead have been there, for this long.
const QUIET_FOR: Duration = Duration::from_secs(15);

/// A node that shall lead none gives its leaders to those that have been there for this long.
const STEADY_AFTER: Duration = Duration::from_secs(1);

/// Spreads leaders.
pub struct LeaderBalance {
    /// This node.
    pub node: NodeId,
    /// This node's replicas.
    pub groups: Arc<Groups>,
    /// Raft calls to the others.
    pub transport: Arc<dyn Transport>,
    /// Who has been there for how long.
    pub steady: Steady,
    /// The time.
    pub clock: Clock,
}

/// Who leads what.
type Leaders = BTreeMap<ShardId, Option<NodeId>>;

impl LeaderBalance {
    /// Runs for the node's life.
    pub async fn run(self) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut known = Leaders::new();
        let mut quiet_since = self.clock.monotonic();
        loop {
            ticks.tick().await;
            let leaders = self.leaders();
            if leaders != known {
                (known, quiet_since) = (leaders, self.clock.monotonic());
            }
            let (may_lead, is_drained) = self.may_lead();
            if is_drained {
                self.give_all(&may_lead).await;
            } else if self.clock.monotonic().saturating_sub(quiet_since) >= QUIET_FOR {
                self.even_out(&may_lead).await;
            }
        }
    }

    fn leaders(&self) -> Leaders {
        self.groups.iter().map(|group| (group.shard(), group.leadership().borrow().leader)).collect()
    }

    /// The nodes that may lead, and whether this one may not.
    fn may_lead(&self) -> (BTreeSet<NodeId>, bool) {
        self.groups.catalog().replica().with_catalog(|catalog| {
            let may =
                catalog.nodes().filter(|(_, node)| node.standing == Standing::Member && !node.is_drained);
            let is_drained = catalog.nodes().any(|(id, node)| id == self.node && node.is_drained);
            (may.map(|(id, _)| id).collect(), is_drained)
        })
    }

    async fn give_all(&self, may_lead: &BTreeSet<NodeId>) {
        for group in self.groups.iter().filter(|group| group.is_leader()) {
            let to = self.successors(group.shard(), may_lead, STEADY_AFTER);
            let leaders = self.leaders();
            if let Some(to) = to.into_iter().min_by_key(|node| (count(&leaders, *node), *node)) {
                self.give(group.shard(), to, "this node shall lead none").await;
            }
        }
    }

    async fn even_out(&self, may_lead: &BTreeSet<NodeId>) {
        // Each move makes the difference smaller; there are no more of them than shards.
        for _ in 0..self.leaders().len() {
            let leaders = self.leaders();
            if leaders.values().any(Option::is_none) {
                return;
            }
            let successors = |shard| self.successors(shard, may_lead, QUIET_FOR);
            let Some((shard, to)) = next_move(self.node, &leaders, may_lead, successors) else { return };
            if !self.give(shard, to, "it leads fewest").await {
                return;
            }
        }
    }

    /// The other nodes that could lead a shard of this node's at once.
    fn successors(
        &self,
        shard: ShardId,
        may_lead: &BTreeSet<NodeId>,
        steady_for: Duration,
    ) -> BTreeSet<NodeId> {
        let Some(group) = self.groups.get(shard) else { return BTreeSet::new() };
        let steady = self.steady.for_at_least(steady_for);
        let voters = group.replica_set().voters;
        let caught_up = group.caught_up().into_iter();
        let fit = caught_up.filter(|node| {
            *node != self.node && may_lead.contains(node) && steady.contains(node) && voters.contains(node)
        });
        fit.collect()
    }

    async fn give(&self, shard: ShardId, to: NodeId, why: &str) -> bool {
        let Some(group) = self.groups.get(shard) else { return false };
        match group.transfer_to(to, self.transport.as_ref()).await {
            Ok(_) => {
                tracing::info!(%shard, %to, why, "let another node lead");
                true
            }
            Err(error) => {
                tracing::warn!(%shard, %to, why, %error, "another node does not lead");
                false
            }
        }
    }
}

fn count(leaders: &Leaders, node: NodeId) -> usize {
    leaders.values().filter(|leader| **leader == Some(node)).count()
}

/// A shard that this node leads, and who shall lead it instead: when this node leads most of all, and at least two more
/// than the one that leads fewest.
fn next_move(
    node: NodeId,
    leaders: &Leaders,
    may_lead: &BTreeSet<NodeId>,
    successors: impl Fn(ShardId) -> BTreeSet<NodeId>,
) -> Option<(ShardId, NodeId)> {
    let own = count(leaders, node);
    let leads_more = |other: &&NodeId| (count(leaders, **other), node) > (own, **other);
    if may_lead.iter().filter(|other| **other != node).any(|other| leads_more(&other)) {
        return None;
    }
    let mut by_count: Vec<_> = may_lead.iter().map(|other| (count(leaders, *other), *other)).collect();
    by_count.sort_unstable();
    let fewer = by_count.into_iter().filter(|(count, other)| *other != node && own >= count + 2);
    let led = leaders.iter().filter(|(_, leader)| **leader == Some(node)).map(|(shard, _)| *shard);
    let led: Vec<_> = led.map(|shard| (shard, successors(shard))).collect();
    // Whoever leads fewest may be down, or behind.
    let can_lead =
        |to: NodeId| led.iter().find(|(_, successors)| successors.contains(&to)).map(|(shard, _)| *shard);
    fewer.into_iter().find_map(|(_, to)| Some((can_lead(to)?, to)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaders(of: &[u64]) -> Leaders {
        (0..).map(ShardId::new).zip(of.iter().map(|node| Some(NodeId::new(*node)))).collect()
    }

    fn moves(node: u64, of: &[u64], may_lead: &[u64]) -> Option<(u32, u64)> {
        moves_among(node, of, may_lead, may_lead)
    }

    fn moves_among(node: u64, of: &[u64], may_lead: &[u64], are_there: &[u64]) -> Option<(u32, u64)> {
        let as_set = |nodes: &[u64]| nodes.iter().copied().map(NodeId::new).collect::<BTreeSet<_>>();
        let successors = as_set(are_there);
        let moved = next_move(NodeId::new(node), &leaders(of), &as_set(may_lead), |_| successors.clone());
        moved.map(|(shard, to)| (shard.get(), to.get()))
    }

    #[test]
    fn a_node_that_is_down_does_not_keep_the_others_uneven() {
        assert_eq!(moves_among(1, &[1, 1, 1, 1, 2], &[1, 2, 3], &[1, 2]), Some((0, 2)));
        assert_eq!(moves_among(1, &[1, 1, 1, 1], &[1, 2, 3], &[1, 3]), Some((0, 3)));
        assert_eq!(moves_among(1, &[1, 1, 1, 2, 2], &[1, 2, 3], &[1, 2]), None);
    }

    #[test]
    fn only_who_leads_most_gives_away_and_only_what_evens_out() {
        assert_eq!(moves(1, &[1, 2, 3, 1, 2, 3, 1, 2, 3], &[1, 2, 3]), None);
        assert_eq!(moves(1, &[1, 2, 3, 1], &[1, 2, 3]), None, "one more is even enough");
        assert_eq!(moves(1, &[1, 2, 1, 1, 2], &[1, 2, 3]), Some((0, 3)));
        assert_eq!(moves(2, &[1, 2, 1, 1, 2], &[1, 2, 3]), None);
        // Of two that lead as many, the lower one begins.
        assert_eq!(moves(1, &[1, 2, 1, 2], &[1, 2, 3]), Some((0, 3)));
        assert_eq!(moves(2, &[1, 2, 1, 2], &[1, 2, 3]), None);
        assert_eq!(moves(1, &[1, 2, 1, 2], &[1, 2]), None, "who may not lead is given nothing");
    }

    #[test]
    fn moves_end_with_every_node_within_one_of_the_others() {
        let nodes = [1, 2, 3, 4, 5];
        let mut of = vec![2; 9];
        for _ in 0..20 {
            for node in nodes {
                if let Some((shard, to)) = moves(node, &of, &nodes) {
                    of[shard as usize] = to;
                }
            }
        }
        let counts: Vec<_> =
            nodes.iter().map(|node| of.iter().filter(|leader| *leader == node).count()).collect();
        assert!(counts.iter().all(|count| (1..=2).contains(count)), "{counts:?}");
    }
}
