//! Who leads a shard, as this node knows. A leader that no majority has answered for as long as a lease lasts is not
//! one any more: others may have elected another. And if they have not, since they hear it although it does not hear
//! them, or hears them too late, it keeps quiet, so that they do.

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

/// For so many leases a leader that is cut off, and hears that a majority is there, takes it that they will answer.
const ANSWER_LEASES: u32 = 1;

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
        let mut trouble = Trouble::default();
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
            let now = self.clock.monotonic();
            trouble.note(now, is_cut_off, || self.hears_majority());
            let is_quiet = trouble.keeps_quiet(now, self.lease);
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

/// What a leader that is cut off knows of it. All times are of the monotonic clock.
#[derive(Debug, Default)]
struct Trouble {
    cut_off_since: Option<Duration>,
    /// Since when it has heard, nevertheless, that a majority is there.
    hears_since: Option<Duration>,
}

impl Trouble {
    fn note(&mut self, now: Duration, is_cut_off: bool, hears_majority: impl FnOnce() -> bool) {
        self.cut_off_since = is_cut_off.then(|| self.cut_off_since.unwrap_or(now));
        let hears = is_cut_off && hears_majority();
        self.hears_since = hears.then(|| self.hears_since.unwrap_or(now));
    }

    /// Whether it is to keep quiet. Not at once while it hears a majority: all may be well again, and then it leads on.
    /// But those whom it hears may answer later than it waits, always.
    fn keeps_quiet(&self, now: Duration, lease: Duration) -> bool {
        let Some(cut_off_since) = self.cut_off_since else { return false };
        let begun = self.hears_since.map_or(cut_off_since, |hears_since| hears_since + lease * ANSWER_LEASES);
        let quiet = lease * QUIET_LEASES;
        let round = quiet + lease / LOOKS_PER_LEASE;
        now.checked_sub(begun)
            .is_some_and(|since| since.as_nanos() % round.as_nanos().max(1) < quiet.as_nanos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_millis(1_000);

    /// When it keeps quiet, in looks of a quarter of a lease, by what it hears then.
    fn quiet(looks: u32, is_cut_off: impl Fn(u32) -> bool, hears: impl Fn(u32) -> bool) -> Vec<u32> {
        let mut trouble = Trouble::default();
        let keeps_quiet = |look: &u32| {
            let now = LEASE / LOOKS_PER_LEASE * *look;
            trouble.note(now, is_cut_off(*look), || hears(*look));
            trouble.keeps_quiet(now, LEASE)
        };
        (0..looks).filter(keeps_quiet).collect()
    }

    #[test]
    fn a_leader_that_hears_nobody_keeps_quiet_and_speaks_now_and_then() {
        let expected: Vec<_> = (3..15).chain(16..20).collect();
        assert_eq!(quiet(20, |look| look >= 3, |_| false), expected);
        assert_eq!(quiet(20, |_| false, |_| false), [0; 0]);
    }

    #[test]
    fn a_leader_that_hears_a_majority_again_speaks_at_once() {
        assert_eq!(quiet(12, |look| (3..9).contains(&look), |look| look >= 7), [3, 4, 5, 6]);
    }

    #[test]
    fn a_leader_that_is_answered_too_late_keeps_quiet_in_the_end() {
        let expected: Vec<_> = (7..19).chain(20..24).collect();
        assert_eq!(quiet(24, |look| look >= 3, |_| true), expected);
    }
}
