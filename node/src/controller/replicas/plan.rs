//! Decides the next step that brings a shard's replicas to where the catalog wants them. Pure: what is known goes in,
//! one step comes out.
//!
//! A replica is added before it counts, counts once it has caught up, and is taken away when those that stay carry the
//! shard without it. No step leaves the shard without a majority that is there and up to date.

use std::{collections::BTreeSet, fmt};

use skein_proto::ids::NodeId;

use crate::raft::ReplicaSet;

/// What is known when the next step is decided. This node leads the shard.
#[derive(Debug, Clone)]
pub(super) struct Known<'a> {
    /// This node.
    pub leader: NodeId,
    /// Who has a replica.
    pub replicas: &'a ReplicaSet,
    /// The nodes that are to have one.
    pub wanted: &'a BTreeSet<NodeId>,
    /// Leaving nodes, each with the one that takes its place.
    pub replaced: &'a [(NodeId, NodeId)],
    /// Nodes that must keep their replica of this shard for now, although they leave: other shards are not done with
    /// them yet, and they must hear from this one what is wanted.
    pub held: &'a BTreeSet<NodeId>,
    /// Nodes that shall lead nothing.
    pub drained: &'a BTreeSet<NodeId>,
    /// The nodes that have been there for a while.
    pub steady: &'a BTreeSet<NodeId>,
    /// Those of them whose replica has nearly all of the log. The leader is one.
    pub fit: &'a BTreeSet<NodeId>,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: all is as it should be.
    Settled,
    /// Nothing, until something changes.
    Wait(Reason),
    /// Give a node a replica.
    Add(NodeId),
    /// Let these replicas count, and no others.
    SetVoters(BTreeSet<NodeId>),
    /// Take away a replica that does not count.
    Drop(NodeId),
    /// Let another one lead, since this node is to have no replica.
    HandOver(NodeId),
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// A replica is being brought up to date.
    CatchesUp(NodeId),
    /// A node that is to have a replica is not there, or has not been for long.
    NotThere(NodeId),
    /// A node cannot go before the one that takes its place has a replica that counts.
    BeforeReplacement { leaving: NodeId, by: NodeId },
    /// Without this node, too few of those that stay would be there and up to date.
    TooFewOthers(NodeId),
    /// With this node, too few of all would be.
    TooFewWith(NodeId),
    /// Other shards have a replica on this node, which leaves them first.
    LastOfAll(NodeId),
}

impl Step {
    /// What is done, or waited for, in words; nothing when all is as it should be.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Settled => String::new(),
            Self::Wait(reason) => reason.to_string(),
            Self::Add(node) => format!("gives node {node} a replica"),
            Self::SetVoters(voters) => {
                let voters: Vec<_> = voters.iter().map(NodeId::to_string).collect();
                format!("lets the replicas of nodes {} count", voters.join(", "))
            }
            Self::Drop(node) => format!("takes the replica of node {node} away"),
            Self::HandOver(node) => format!("hands over to node {node}"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CatchesUp(node) => write!(f, "brings node {node} up to date"),
            Self::NotThere(node) => write!(f, "waits for node {node} to be there"),
            Self::BeforeReplacement { leaving, by } => {
                write!(f, "keeps the replica of node {leaving} until node {by} has one")
            }
            Self::TooFewOthers(node) => {
                write!(f, "keeps the replica of node {node}: without it too few others are up and up to date")
            }
            Self::LastOfAll(node) => {
                write!(f, "keeps the replica of node {node} until no other shard has one there")
            }
            Self::TooFewWith(node) => {
                write!(f, "does not let node {node} count: with it too few of all are up and up to date")
            }
        }
    }
}

impl Known<'_> {
    /// The next step.
    pub(super) fn next(&self) -> Step {
        let ReplicaSet { voters, learners, is_changing, .. } = self.replicas;
        if *is_changing {
            return Step::SetVoters(voters.clone());
        }
        if let Some(learner) = learners.iter().find(|learner| !self.wanted.contains(learner)) {
            return Step::Drop(*learner);
        }
        let steps = [self.promote(), self.remove(), self.add()];
        let mut waits = Vec::new();
        for step in steps.into_iter().flatten() {
            match step {
                Step::Wait(reason) => waits.push(reason),
                step => return step,
            }
        }
        waits.first().map_or(Step::Settled, |reason| Step::Wait(*reason))
    }

    /// Lets a replica count that has caught up, in the place of the one that it replaces.
    fn promote(&self) -> Option<Step> {
        let ReplicaSet { voters, learners, .. } = self.replicas;
        let mut wait = None;
        for &learner in learners {
            if !self.fit.contains(&learner) {
                wait.get_or_insert(self.why_unfit(learner));
                continue;
            }
            let mut replaced =
                self.replaced.iter().filter(|(gone, by)| *by == learner && *gone != self.leader);
            if let Some((gone, _)) =
                replaced.find(|(gone, _)| voters.contains(gone) && self.held.contains(gone))
            {
                wait.get_or_insert(Reason::LastOfAll(*gone));
                continue;
            }
            let mut target = voters.clone();
            target.insert(learner);
            // The leader leaves in a step of its own, since it has to hand over first.
            let gives_way =
                |voter: &NodeId| *voter != self.leader && self.replaced.contains(&(*voter, learner));
            target.retain(|voter| !gives_way(voter));
            if self.carry(&target) {
                return Some(Step::SetVoters(target));
            }
            wait.get_or_insert(Reason::TooFewWith(learner));
        }
        wait.map(Step::Wait)
    }

    /// Takes away the replica of a node that is to have none.
    fn remove(&self) -> Option<Step> {
        let voters = &self.replicas.voters;
        let mut wait = None;
        for &leaving in voters.iter().filter(|voter| !self.wanted.contains(voter)) {
            let by = self.replaced.iter().find(|(gone, _)| *gone == leaving).map(|(_, by)| *by);
            if let Some(by) = by.filter(|by| !voters.contains(by)) {
                wait.get_or_insert(Reason::BeforeReplacement { leaving, by });
                continue;
            }
            let mut target = voters.clone();
            target.remove(&leaving);
            let can_lead = |node: &&NodeId| self.wanted.contains(node) && self.fit.contains(node);
            let successor = target.iter().filter(can_lead).min_by_key(|node| self.drained.contains(node));
            match successor {
                Some(successor) if leaving == self.leader => return Some(Step::HandOver(*successor)),
                // A leader that goes would not hear when the others are done.
                _ if self.held.contains(&leaving) => drop(wait.get_or_insert(Reason::LastOfAll(leaving))),
                Some(_) if self.carry(&target) => return Some(Step::SetVoters(target)),
                _ => drop(wait.get_or_insert(Reason::TooFewOthers(leaving))),
            }
        }
        wait.map(Step::Wait)
    }

    /// Gives a node a replica that has none: one after the other, so that a shard is copied once at a time.
    fn add(&self) -> Option<Step> {
        let ReplicaSet { voters, learners, .. } = self.replicas;
        if let Some(learner) = learners.iter().find(|learner| self.steady.contains(learner)) {
            return Some(Step::Wait(Reason::CatchesUp(*learner)));
        }
        let has_one = |node: &NodeId| voters.contains(node) || learners.contains(node);
        let missing: Vec<_> = self.wanted.iter().copied().filter(|node| !has_one(node)).collect();
        let there = missing.iter().find(|node| self.steady.contains(node));
        let there = there.map(|node| Step::Add(*node));
        there.or_else(|| Some(Step::Wait(Reason::NotThere(*missing.first()?))))
    }

    /// Whether a majority of these is there and up to date.
    fn carry(&self, voters: &BTreeSet<NodeId>) -> bool {
        voters.intersection(self.fit).count() > voters.len() / 2
    }

    fn why_unfit(&self, node: NodeId) -> Reason {
        if self.steady.contains(&node) { Reason::CatchesUp(node) } else { Reason::NotThere(node) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{
        collection::{btree_set, vec},
        prelude::*,
    };

    use super::*;

    fn set(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId::new).collect()
    }

    /// The next step of a shard that node 1 leads.
    fn next(voters: &[u64], learners: &[u64], wanted: &[u64], replaced: &[(u64, u64)], fit: &[u64]) -> Step {
        let replicas = ReplicaSet { voters: set(voters), learners: set(learners), ..ReplicaSet::default() };
        let replaced: Vec<_> =
            replaced.iter().map(|(gone, by)| (NodeId::new(*gone), NodeId::new(*by))).collect();
        let (wanted, fit) = (set(wanted), set(fit));
        let steady: BTreeSet<_> = fit.iter().copied().chain(set(&[9])).collect();
        let leader = NodeId::new(1);
        let (drained, held) = (&set(&[2]), &set(&[7]));
        Known {
            leader,
            replicas: &replicas,
            wanted: &wanted,
            replaced: &replaced,
            held,
            drained,
            steady: &steady,
            fit: &fit,
        }
        .next()
    }

    #[test]
    fn a_node_joins_once_it_has_caught_up() {
        let node = NodeId::new;
        assert_eq!(next(&[1, 2, 3], &[], &[1, 2, 3], &[], &[1, 2, 3]), Step::Settled);
        assert_eq!(next(&[1, 2, 3], &[], &[1, 2, 3, 9], &[], &[1, 2, 3]), Step::Add(node(9)));
        let catches_up = Step::Wait(Reason::CatchesUp(node(9)));
        assert_eq!(next(&[1, 2, 3], &[9], &[1, 2, 3, 9], &[], &[1, 2, 3]), catches_up);
        let voters = Step::SetVoters(set(&[1, 2, 3, 9]));
        assert_eq!(next(&[1, 2, 3], &[9], &[1, 2, 3, 9], &[], &[1, 2, 3, 9]), voters);
        // Two of four are no majority.
        let too_few = Step::Wait(Reason::TooFewWith(node(9)));
        assert_eq!(next(&[1, 2, 3], &[9], &[1, 2, 3, 9], &[], &[1, 9]), too_few);
        let not_there = Step::Wait(Reason::NotThere(node(4)));
        assert_eq!(next(&[1, 2, 3], &[], &[1, 2, 3, 4], &[], &[1, 2, 3]), not_there);
        // One that went away while it caught up holds nobody else up.
        assert_eq!(next(&[1], &[4], &[1, 4, 9], &[], &[1]), Step::Add(node(9)));
    }

    #[test]
    fn a_dead_node_makes_way_for_the_one_that_takes_its_place() {
        let node = NodeId::new;
        let replaced = [(3, 9)];
        assert_eq!(next(&[1, 2, 3], &[], &[1, 2, 9], &replaced, &[1, 2]), Step::Add(node(9)));
        let kept = Step::Wait(Reason::CatchesUp(node(9)));
        assert_eq!(next(&[1, 2, 3], &[9], &[1, 2, 9], &replaced, &[1, 2]), kept);
        let swapped = Step::SetVoters(set(&[1, 2, 9]));
        assert_eq!(next(&[1, 2, 3], &[9], &[1, 2, 9], &replaced, &[1, 2, 9]), swapped);
        // Of three, with another one down as well: what is confirmed is on two that are there.
        assert_eq!(next(&[1, 2, 3], &[9], &[1, 2, 9], &replaced, &[1, 9]), swapped);
        // The leader itself is replaced: it stays until the other one counts, hands over, and goes.
        let both = Step::SetVoters(set(&[1, 2, 3, 9]));
        assert_eq!(next(&[1, 2, 3], &[9], &[2, 3, 9], &[(1, 9)], &[1, 2, 3, 9]), both);
        assert_eq!(next(&[1, 2, 3, 9], &[], &[2, 3, 9], &[(1, 9)], &[1, 2, 3, 9]), Step::HandOver(node(3)));
        // Node 2 is drained, and better than none.
        assert_eq!(next(&[1, 2], &[], &[2], &[], &[1, 2]), Step::HandOver(node(2)));
    }

    #[test]
    fn who_is_held_keeps_its_replica() {
        let kept = Step::Wait(Reason::LastOfAll(NodeId::new(7)));
        assert_eq!(next(&[1, 2, 7], &[], &[1, 2], &[], &[1, 2, 7]), kept);
        // Also for the one that takes its place, which has caught up: with both, there would be four.
        assert_eq!(next(&[1, 2, 7], &[9], &[1, 2, 9], &[(7, 9)], &[1, 2, 9]), kept);
        // One that leads hands over all the same.
        let replicas = ReplicaSet { voters: set(&[1, 2]), ..ReplicaSet::default() };
        let (wanted, both, none) = (set(&[2]), set(&[1, 2]), BTreeSet::new());
        let known = Known {
            leader: NodeId::new(1),
            replicas: &replicas,
            wanted: &wanted,
            replaced: &[],
            held: &both,
            drained: &none,
            steady: &both,
            fit: &both,
        };
        assert_eq!(known.next(), Step::HandOver(NodeId::new(2)));
        // Others come and go meanwhile.
        assert_eq!(next(&[1, 3, 7], &[], &[1, 9], &[], &[1, 3, 7]), Step::SetVoters(set(&[1, 7])));
    }

    #[test]
    fn a_node_leaves_when_the_others_do_without_it() {
        let node = NodeId::new;
        assert_eq!(next(&[1, 2, 3], &[], &[1, 2], &[], &[1, 2, 3]), Step::SetVoters(set(&[1, 2])));
        // With one of the two that stay down, the other one could confirm nothing.
        let kept = Step::Wait(Reason::TooFewOthers(node(3)));
        assert_eq!(next(&[1, 2, 3], &[], &[1, 2], &[], &[1, 3]), kept);
        assert_eq!(next(&[1, 2], &[], &[1], &[], &[1]), Step::SetVoters(set(&[1])));
        assert_eq!(next(&[1, 2], &[4], &[1, 2], &[], &[1, 2]), Step::Drop(node(4)));
        assert_eq!(next(&[1], &[], &[9], &[], &[1]), Step::Add(node(9)));
    }

    /// A made-up cluster in which one shard is brought to where it belongs.
    struct World {
        replicas: ReplicaSet,
        leader: NodeId,
        up: BTreeSet<NodeId>,
        /// Looks that a new replica still needs to catch up.
        behind: BTreeMap<NodeId, u8>,
    }

    impl World {
        fn fit(&self) -> BTreeSet<NodeId> {
            let has_one = self.replicas.voters.union(&self.replicas.learners);
            has_one
                .copied()
                .filter(|node| self.up.contains(node) && !self.behind.contains_key(node))
                .collect()
        }

        /// Takes one step and checks it. False when there is nothing to do.
        fn step(
            &mut self,
            wanted: &BTreeSet<NodeId>,
            replaced: &[(NodeId, NodeId)],
            stops_half: bool,
        ) -> bool {
            self.behind.retain(|node, looks| {
                *looks -= u8::from(self.up.contains(node));
                *looks > 0
            });
            let fit = self.fit();
            let carries = |voters: &BTreeSet<NodeId>| voters.intersection(&fit).count() > voters.len() / 2;
            let (drained, held) = (&BTreeSet::new(), &BTreeSet::new());
            let (leader, replicas, steady) = (self.leader, &self.replicas, &self.up);
            let known = Known { leader, replicas, wanted, replaced, held, drained, steady, fit: &fit };
            match known.next() {
                Step::Settled => return false,
                Step::Wait(_) => return !self.behind.is_empty(),
                Step::Add(node) => {
                    assert!(wanted.contains(&node) && self.replicas.learners.insert(node));
                    self.behind.insert(node, 3);
                }
                Step::Drop(node) => {
                    assert!(self.replicas.learners.remove(&node));
                    self.behind.remove(&node);
                }
                Step::HandOver(node) => {
                    assert!(fit.contains(&node) && self.replicas.voters.contains(&node));
                    self.leader = node;
                }
                Step::SetVoters(voters) if self.replicas.is_changing => {
                    assert_eq!(voters, self.replicas.voters, "what was begun is ended");
                    (self.replicas.is_changing, self.replicas.old_voters) = (false, BTreeSet::new());
                }
                Step::SetVoters(voters) => {
                    assert!(carries(&voters), "{voters:?} of {fit:?}");
                    assert!(voters.contains(&leader), "a leader hands over before it goes");
                    let comes: Vec<_> = voters.difference(&self.replicas.voters).collect();
                    let goes: Vec<_> = self.replicas.voters.difference(&voters).collect();
                    assert!(comes.iter().all(|node| fit.contains(node)), "{comes:?} of {fit:?}");
                    assert!(comes.len() <= 1 && goes.len() <= 1 + comes.len());
                    for gone in goes {
                        // Not before the one that takes its place counts.
                        let by = replaced.iter().find(|(of, _)| of == gone).map(|(_, by)| by);
                        assert!(!wanted.contains(gone) && by.is_none_or(|by| voters.contains(by)));
                    }
                    self.replicas.learners.retain(|node| !voters.contains(node));
                    if stops_half {
                        self.replicas.is_changing = true;
                        self.replicas.old_voters = self.replicas.voters.clone();
                    }
                    self.replicas.voters = voters;
                }
            }
            true
        }
    }

    proptest! {
        /// However the wishes and the living change: no step takes a majority away that is there, none lets a replica
        /// count that has not caught up, and when all that are wanted are there, the steps end with them.
        #[test]
        fn steps_keep_a_majority_and_end_where_they_should(
            start in btree_set(1..8_u64, 1..5),
            rounds in vec((btree_set(1..8_u64, 1..6), btree_set(1..8_u64, 0..7), any::<[bool; 8]>()), 1..5),
        ) {
            let as_set = |ids: &BTreeSet<u64>| ids.iter().copied().map(NodeId::new).collect::<BTreeSet<_>>();
            let mut world = World {
                replicas: ReplicaSet { voters: as_set(&start), ..ReplicaSet::default() },
                leader: NodeId::new(*start.first().unwrap()),
                up: BTreeSet::new(),
                behind: BTreeMap::new(),
            };
            let last = rounds.len() - 1;
            for (place, (wanted, up, choices)) in rounds.iter().enumerate() {
                let wanted = as_set(wanted);
                // Some of those that go have left their places to some of those that come.
                let goes = world.replicas.voters.difference(&wanted).copied();
                let replaced: Vec<_> = goes.zip(wanted.difference(&world.replicas.voters).copied()).collect();
                let replaced = &replaced[..replaced.len().min(choices.iter().filter(|choice| **choice).count())];
                world.up = as_set(up);
                if place == last {
                    let all = wanted.iter().chain(&world.replicas.voters).chain(&world.replicas.old_voters);
                    world.up.extend(all.copied().collect::<Vec<_>>());
                }
                // A leader is one that a majority elects.
                let is_carried = |world: &World, voters: &BTreeSet<NodeId>| {
                    voters.intersection(&world.fit()).count() > voters.len() / 2
                };
                let old = &world.replicas.old_voters;
                let can_go_on = is_carried(&world, &world.replicas.voters)
                    && (old.is_empty() || is_carried(&world, old));
                if !can_go_on {
                    continue;
                }
                let electable = world.fit();
                world.leader = *world.replicas.voters.intersection(&electable).next().unwrap();
                let mut steps = 0;
                while world.step(&wanted, replaced, place != last && choices[steps % choices.len()]) {
                    steps += 1;
                    prop_assert!(steps < 200, "it does not end");
                }
                if place == last {
                    prop_assert_eq!(&world.replicas.voters, &wanted);
                    prop_assert!(world.replicas.learners.is_empty() && !world.replicas.is_changing);
                }
            }
        }
    }
}
