//! What becomes of a dead node's shards: the replicas that are left find out which of them has most of the log, and
//! that one stands for election at once, instead of all of them waiting for their timers.
//!
//! It stands as if the dead leader had handed over to it, which voters grant although that leader's lease goes on. Safe
//! as any election is: votes are written down, and a shorter log gets none. But it makes the lease worthless for
//! reading, which is why every read asks a majority.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc, time::Duration};

use futures::future;
use skein_proto::ids::{NodeId, ShardId};
use tokio::{sync::mpsc, time};

use super::{group::Group, groups::Groups, network::Transport, wire::Standing};
use crate::{log::EntryId, tasks};

/// A replica that does not say within this where it stands is not waited for.
const ASK_TIMEOUT: Duration = Duration::from_millis(25);

/// Every replica has its turn, this long after the one before it: plenty for an election on a machine that has other
/// things to do as well.
const TURN: Duration = Duration::from_millis(60);

/// They ask one another until two rounds say the same: what the dead leader has sent may still be coming in, and two
/// that compare logs that grow may each think that it has the longest one, or that the other has.
const ROUNDS_MAX: u32 = 6;

/// ... with this long between them.
const ROUND_PAUSE: Duration = Duration::from_millis(2);

/// One that was voted for has so long to lead.
const VOTED_PAUSE: Duration = Duration::from_millis(300);

/// How often one stands before it leaves the shard to the timers. The turns become longer each time.
const ATTEMPTS_MAX: u32 = 3;

/// Finds successors.
pub struct Succession {
    node: NodeId,
    groups: Arc<Groups>,
    transport: Arc<dyn Transport>,
}

impl Succession {
    /// For this node's replicas.
    #[must_use]
    pub fn new(node: NodeId, groups: Arc<Groups>, transport: Arc<dyn Transport>) -> Self {
        Self { node, groups, transport }
    }

    /// Sees to the shards of each node that is said to have died, for as long as it is polled.
    pub async fn run(self, mut deaths: mpsc::Receiver<NodeId>) {
        let this = Arc::new(self);
        while let Some(dead) = deaths.recv().await {
            tasks::spawn(Arc::clone(&this).succeed(dead));
        }
    }

    async fn succeed(self: Arc<Self>, dead: NodeId) {
        let mut orphans = self.orphans(dead).await;
        if orphans.is_empty() {
            return;
        }
        tracing::info!(%dead, shards = orphans.len(), "looking for new leaders of a dead node's shards");
        let mut others = self.ask_others(dead, &orphans).await;
        for _ in 1..ROUNDS_MAX {
            time::sleep(ROUND_PAUSE).await;
            let has_grown = look_again(&mut orphans).await;
            let before = std::mem::replace(&mut others, self.ask_others(dead, &orphans).await);
            if !has_grown && others == before {
                break;
            }
        }
        for orphan in orphans {
            let Orphan { group, standing, .. } = &orphan;
            let living = group.voters().into_iter().filter(|voter| ![self.node, dead].contains(voter));
            // Whoever did not answer is taken to stand where this replica does.
            let stands = |node: NodeId| others.get(&node)?.get(&group.shard());
            let last_of = |node| stands(node).map_or(standing.last, |standing| standing.last);
            let others: Vec<_> = living.map(|node| (node, last_of(node))).collect();
            let turn = Turn::new((self.node, standing.last), &others);
            tasks::spawn(campaign(orphan, turn));
        }
    }

    /// The shards that a dead node led, as far as this node knows, and where its own replicas of them stand.
    async fn orphans(&self, dead: NodeId) -> Vec<Orphan> {
        let mut orphans = Vec::new();
        for group in self.groups.iter() {
            let led = *group.leadership().borrow();
            // One that is being brought up to date has no say yet.
            if led.leader != Some(dead) || !group.voters().contains(&self.node) {
                continue;
            }
            if let Some(standing) = group.standing().await {
                orphans.push(Orphan { group: Arc::clone(group), term: led.term, standing });
            }
        }
        orphans
    }

    /// Where the replicas of the other living nodes stand.
    async fn ask_others(
        &self,
        dead: NodeId,
        orphans: &[Orphan],
    ) -> BTreeMap<NodeId, BTreeMap<ShardId, Standing>> {
        let mut questions: BTreeMap<NodeId, Vec<ShardId>> = BTreeMap::new();
        for Orphan { group, .. } in orphans {
            for voter in group.voters().into_iter().filter(|voter| ![self.node, dead].contains(voter)) {
                questions.entry(voter).or_default().push(group.shard());
            }
        }
        let answers = questions.into_iter().map(|(node, shards)| async move {
            let answer = time::timeout(ASK_TIMEOUT, self.transport.standings(node, shards)).await;
            Some((node, answer.ok()?.ok()?.into_iter().collect()))
        });
        future::join_all(answers).await.into_iter().flatten().collect()
    }
}

/// A shard whose leader is dead.
struct Orphan {
    group: Arc<Group>,
    /// In which it led.
    term: u64,
    /// Where this node's replica stands since.
    standing: Standing,
}

/// Notes where this node's replicas stand now. Whether that is elsewhere than before.
async fn look_again(orphans: &mut [Orphan]) -> bool {
    let mut has_grown = false;
    for Orphan { group, standing, .. } in orphans {
        // One that may not lead any more finds out when it is to stand.
        if let Some(now) = group.standing().await {
            has_grown |= std::mem::replace(standing, now) != now;
        }
    }
    has_grown
}

/// When one stands among those who might.
#[derive(Debug, Clone, Copy)]
struct Turn {
    /// How many of the others should lead rather than this one: the longest log first, then the lowest node.
    rank: u32,
    /// How many of the others are lower nodes. Two may think that they have the longest log, since logs grow while
    /// they ask; no two have the same seat.
    seat: u32,
    of: u32,
}

impl Turn {
    fn new(own: (NodeId, Option<EntryId>), others: &[(NodeId, Option<EntryId>)]) -> Self {
        let order =
            |(node, last): (NodeId, Option<EntryId>)| (last.map(|id| (id.term, id.index)), Reverse(node));
        let mut turn = Self { rank: 0, seat: 0, of: 1 };
        for other in others {
            turn.rank += u32::from(order(*other) > order(own));
            turn.seat += u32::from(other.0 < own.0);
            turn.of += 1;
        }
        turn
    }

    /// When one makes an attempt, counted from the beginning: first by rank, then by seat, in rounds each of which
    /// takes twice as long as the one before.
    fn at(self, attempt: u32) -> Duration {
        match attempt {
            0 => TURN * self.rank,
            _ => TURN * (self.of * ((1 << attempt) - 1) + self.seat),
        }
    }

    /// How long one waits before an attempt.
    fn pause(self, attempt: u32) -> Duration {
        let before = attempt.checked_sub(1).map_or(Duration::ZERO, |before| self.at(before));
        self.at(attempt).saturating_sub(before)
    }
}

/// Stands for election, when it is its turn, until somebody leads.
async fn campaign(orphan: Orphan, turn: Turn) {
    let Orphan { group, term: dead_term, .. } = orphan;
    let mut leadership = group.leadership();
    let mut voted_in = dead_term;
    let mut attempt = 0;
    let mut pause = turn.pause(attempt);
    while attempt <= ATTEMPTS_MAX {
        let led = leadership.wait_for(|now| now.term > dead_term && now.leader.is_some());
        if time::timeout(pause, led).await.is_ok() {
            return;
        }
        let Some(Standing { vote, .. }) = group.standing().await else { return };
        if vote.node != group.node() && vote.term > voted_in {
            // It has this replica's vote, and is about to lead: to stand now would only depose it.
            voted_in = vote.term;
            pause = VOTED_PAUSE;
            continue;
        }
        if attempt < ATTEMPTS_MAX {
            group.stand(vote).await;
        }
        attempt += 1;
        pause = turn.pause(attempt);
    }
    tracing::info!(shard = %group.shard(), "nobody was elected at once; the timers will see to it");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn replica(node: u64, term: u64, index: u64) -> (NodeId, Option<EntryId>) {
        (NodeId::new(node), Some(EntryId { term, index }))
    }

    fn rank(own: (NodeId, Option<EntryId>), others: &[(NodeId, Option<EntryId>)]) -> u32 {
        Turn::new(own, others).rank
    }

    #[test]
    fn no_two_stand_at_the_same_time() {
        // Whatever their logs; and from the second round on also when each thinks that it has the longest one.
        for ranks in [[0, 1, 2], [2, 0, 1], [1, 2, 0], [0, 0, 0]] {
            let mut stands = BTreeSet::new();
            for (seat, rank) in (0..).zip(ranks) {
                let turn = Turn { rank, seat, of: 3 };
                let first = if ranks == [0, 0, 0] { 1 } else { 0 };
                for attempt in first..ATTEMPTS_MAX {
                    let pauses: Duration = (0..=attempt).map(|attempt| turn.pause(attempt)).sum();
                    assert!(stands.insert(pauses), "{ranks:?}, seat {seat}, attempt {attempt}");
                }
            }
            let stands: Vec<_> = stands.into_iter().collect();
            assert!(stands.windows(2).all(|pair| pair[1] - pair[0] >= TURN), "{ranks:?}: {stands:?}");
        }
        assert_eq!(Turn { rank: 0, seat: 2, of: 3 }.at(0), Duration::ZERO, "the first one does not wait");
    }

    #[test]
    fn the_longest_log_leads_then_the_lowest_node() {
        assert_eq!(rank(replica(3, 2, 10), &[replica(1, 2, 9), replica(2, 1, 99)]), 0);
        assert_eq!(rank(replica(3, 2, 10), &[replica(1, 2, 10), replica(2, 2, 11)]), 2);
        assert_eq!(rank(replica(1, 2, 10), &[replica(3, 2, 10)]), 0);
        assert_eq!(rank((NodeId::new(1), None), &[replica(3, 0, 0), (NodeId::new(2), None)]), 1);
        assert_eq!(rank(replica(1, 2, 10), &[]), 0);
    }
}
