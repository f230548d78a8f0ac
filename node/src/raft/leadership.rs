//! Who leads a shard, as this node knows. A leader that no majority has answered for as long as a lease lasts is not
//! one any more: others may have elected another. And if they have not, since they hear it although it does not hear
//! them, it keeps quiet, so that they do.

use std::{sync::Arc, time::Duration};

use openraft::{Instant as _, ServerState, async_runtime::watch::WatchReceiver as _, errors::Fatal};
use skein_proto::ids::{NodeId, ShardId};
use tokio::sync::{mpsc, watch};

use super::{group::GroupFailure, network::Transport, types::Raft};
use crate::{
    clock::Clock,
    planted::{Bug, is_planted},
};

/// A leader looks so many times in a lease whether a majority still answers.
const LOOKS_PER_LEASE: u32 = 4;

/// A leader that is cut off keeps quiet for so many leases, more than others need to elect one, and then makes itself
/// heard for the length of a look: all may be well again, and nobody else may have a majority.
const QUIET_LEASES: u32 = 3;

/// Who leads a shard, as this node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leadership {
    /// The newest term this node knows of.
    pub term: u64,
    /// The leader of that term, once known.
    pub leader: Option<NodeId>,
}

/// Follows who leads a group.
pub(super) struct LeadershipWatch {
    pub node: NodeId,
    pub shard: ShardId,
    pub raft: Raft,
    pub clock: Clock,
    /// After so long without an answer from a majority, followers may elect another leader.
    pub lease: Duration,
    /// Told when this node is to send no entries and no heartbeats.
    pub quiet: watch::Sender<bool>,
    /// Knows who was heard.
    pub transport: Arc<dyn Transport>,
}

impl LeadershipWatch {
    /// Runs until the group ends; an end that nobody asked for is a failure.
    pub(super) async fn run(
        self,
        leadership: watch::Sender<Leadership>,
        failures: mpsc::UnboundedSender<GroupFailure>,
    ) {
        let mut metrics = self.raft.server_metrics();
        let mut looks = tokio::time::interval(self.lease / LOOKS_PER_LEASE);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The term in which this node leads, and since when.
        let mut leads: Option<(u64, Duration)> = None;
        let mut cut_off_since: Option<Duration> = None;
        loop {
            let (term, leader) = {
                let metrics = metrics.borrow_watched();
                // openraft takes the leader from the vote, which a leader still has when it has died and is back.
                let leads_itself = metrics.state == ServerState::Leader;
                let leader = metrics.current_leader.map(NodeId::new);
                (metrics.vote.leader_id.term, leader.filter(|leader| *leader != self.node || leads_itself))
            };
            leads = match leads {
                _ if leader != Some(self.node) => None,
                Some((led, since)) if led == term => Some((led, since)),
                _ => Some((term, self.clock.monotonic())),
            };
            let is_cut_off = leads.is_some_and(|(_, since)| self.is_cut_off(since));
            cut_off_since = is_cut_off.then(|| cut_off_since.unwrap_or_else(|| self.clock.monotonic()));
            let is_quiet =
                cut_off_since.is_some_and(|since| self.keeps_quiet(since)) && !self.hears_majority();
            self.quiet.send_if_modified(|quiet| std::mem::replace(quiet, is_quiet) != is_quiet);
            let now = Leadership { term, leader: leader.filter(|_| !is_cut_off) };
            let changed = leadership.send_if_modified(|known| std::mem::replace(known, now) != now);
            if changed && is_cut_off {
                tracing::warn!(shard = %self.shard, term, "no majority answers; this node stops serving as leader");
            }
            tokio::select! {
                changed = metrics.changed() => if changed.is_err() { break },
                _ = looks.tick(), if leads.is_some() => {}
            }
        }
        let ended = self.raft.metrics().borrow_watched().running_state.clone();
        if let Err(fatal) = ended
            && !matches!(fatal, Fatal::Stopped)
        {
            // The node may be gone already, and then nobody needs to know.
            let _ = failures.send(GroupFailure { shard: self.shard, reason: fatal.to_string() });
        }
    }

    /// Whether it hears so many others that they are a majority with it: then it gets answers, if they hear it.
    fn hears_majority(&self) -> bool {
        let metrics = self.raft.metrics();
        let voters: Vec<_> =
            metrics.borrow_watched().membership_config.voter_ids().map(NodeId::new).collect();
        let now = self.clock.monotonic();
        let is_heard = |voter: &&NodeId| {
            let heard_at = self.transport.heard_at(**voter);
            **voter == self.node || heard_at.is_some_and(|at| now.saturating_sub(at) <= self.lease)
        };
        voters.iter().filter(is_heard).count() > voters.len() / 2
    }

    fn keeps_quiet(&self, cut_off_since: Duration) -> bool {
        let quiet = self.lease * QUIET_LEASES;
        let round = quiet + self.lease / LOOKS_PER_LEASE;
        let cut_off_for = self.clock.monotonic().saturating_sub(cut_off_since);
        let since_round_began = cut_off_for.as_nanos() % round.as_nanos().max(1);
        since_round_began < quiet.as_nanos()
    }

    /// Whether a leader, which leads since then, has no majority that answers.
    fn is_cut_off(&self, since: Duration) -> bool {
        if is_planted(Bug::CutOffLeaderStays) {
            return false;
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let unanswered = match &metrics.last_quorum_acked {
            // A majority of one is not asked.
            _ if metrics.membership_config.voter_ids().count() <= 1 => return false,
            Some(acked) => acked.elapsed(),
            None => self.clock.monotonic().saturating_sub(since),
        };
        unanswered > self.lease
    }
}
