//! Hands a shard's leadership over, to whomever is asked for or to whoever has most of the log.

use std::{collections::BTreeSet, time::Duration};

use futures::future::join_all;
use openraft::{Instant as _, RaftMetrics, async_runtime::watch::WatchReceiver as _};
use skein_proto::ids::NodeId;
use tokio::time;

use super::{group::Group, network::Transport, pause::Paused, types::TypeConfig};

/// Entries that a replica may lack and still be handed leadership: nobody leads until it has them.
const LACKING_ENTRIES_MAX: u64 = 1_024;

/// ... and bytes of them, about.
const LACKING_BYTES_MAX: u64 = 16 << 20;

/// A replica that was handed leadership leads within this, or somebody else does.
const TAKEN_WITHIN: Duration = Duration::from_secs(3);

/// What is under way when leadership is handed over is waited for this long.
const QUIET_WITHIN: Duration = Duration::from_millis(100);

/// Why another node does not lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// This node does not lead.
    #[error("this node does not lead the shard")]
    NotLeader,
    /// The other one has no replica.
    #[error("it has no replica of the shard")]
    NotAReplica,
    /// The other one is down, or catching up.
    #[error(
        "it lacks {entries} entries of the shard's log, and may lack {LACKING_ENTRIES_MAX}, and as many bytes as go \
         with a few large ones"
    )]
    Behind {
        /// How many.
        entries: u64,
    },
    /// The other one does not answer, or not in time, is starting, or has a damaged log.
    #[error("it does not answer, or not in time, that it could")]
    NotFit,
    /// The other one was asked, and did nothing.
    #[error("it did not take over within {TAKEN_WITHIN:?}, or another one was faster")]
    NotTaken,
}

impl Group {
    /// The other replicas that have nearly all of the log, as far as this node, which leads, has heard, and that answer
    /// in time: whoever hears them too late would get no answers in time either, if it led.
    #[must_use]
    pub fn caught_up(&self) -> BTreeSet<NodeId> {
        let metrics = self.raft().metrics().borrow_watched().clone();
        let answering = self.answering(&metrics);
        let others = metrics.replication.iter().flatten().map(|(id, matched)| (NodeId::new(*id), matched));
        let others = others.filter(|(node, _)| *node != self.node() && answering.contains(node));
        // One that was never heard may have nothing, however little there is.
        let heard = others.filter_map(|(node, matched)| Some((node, matched.as_ref()?.index())));
        let last = metrics.last_log_index.unwrap_or_default();
        let caught_up = heard.filter(|(_, matched)| {
            last.saturating_sub(*matched) <= LACKING_ENTRIES_MAX
                && self.log_bytes_after(*matched) <= LACKING_BYTES_MAX
        });
        caught_up.map(|(node, _)| node).collect()
    }

    /// The replicas that answer this node, which leads, in time.
    fn answering(&self, metrics: &RaftMetrics<TypeConfig>) -> BTreeSet<NodeId> {
        let in_time = metrics.heartbeat.iter().flatten().filter(|(_, answered)| {
            answered.as_ref().is_some_and(|answered| answered.elapsed() <= self.lease)
        });
        in_time.map(|(id, _)| NodeId::new(*id)).collect()
    }

    /// Which of these nodes say that their replica could lead, as far as they answer.
    pub async fn fit_among(&self, nodes: &BTreeSet<NodeId>, transport: &dyn Transport) -> BTreeSet<NodeId> {
        let shard = self.shard();
        let others = nodes.iter().copied().filter(|node| *node != self.node());
        let asked = others.map(|node| async move {
            let standings = transport.standings(node, vec![shard]).await.ok()?;
            standings.iter().any(|(answered, _)| *answered == shard).then_some(node)
        });
        let own = self.standing().await.map(|_| self.node()).filter(|own| nodes.contains(own));
        join_all(asked).await.into_iter().chain([own]).flatten().collect()
    }

    /// Lets a replica lead, and waits until it does. Gives the term in which it does.
    ///
    /// # Errors
    /// See [`TransferError`]. Whoever leads then is known from [`Group::leadership`].
    pub async fn transfer_to(&self, to: NodeId, transport: &dyn Transport) -> Result<u64, TransferError> {
        let mut leadership = self.leadership();
        let now = *leadership.borrow();
        if now.leader == Some(to) {
            return Ok(now.term);
        }
        let metrics = self.raft().metrics().borrow_watched().clone();
        let answering = self.answering(&metrics);
        let Some(followers) = metrics.replication.filter(|_| self.is_leader()) else {
            return Err(TransferError::NotLeader);
        };
        let matched = followers.get(&to.get()).filter(|_| self.voters().contains(&to));
        let matched = matched.ok_or(TransferError::NotAReplica)?.as_ref().map(|id| id.index());
        let end = |last: Option<u64>| last.map_or(0, |last| last + 1);
        let entries = end(metrics.last_log_index).saturating_sub(end(matched));
        if !answering.contains(&to) {
            return Err(TransferError::NotFit);
        }
        if !self.caught_up().contains(&to) {
            return Err(TransferError::Behind { entries });
        }
        // While it is asked to lead, nobody does: only who answers that it could is asked.
        if !self.fit_among(&[to].into(), transport).await.contains(&to) {
            return Err(TransferError::NotFit);
        }
        let _paused = self.quiesce(to).await;
        let asked = self.raft().trigger().transfer_leader(to.get()).await;
        asked.map_err(|_| TransferError::NotLeader)?;
        // What waits meanwhile waits no longer than until anybody leads.
        let taken = leadership.wait_for(|now| now.leader.is_some_and(|leader| leader != self.node()));
        match time::timeout(TAKEN_WITHIN, taken).await {
            Ok(Ok(now)) if now.leader == Some(to) => Ok(now.term),
            _ => Err(TransferError::NotTaken),
        }
    }

    /// Hands leadership to the follower that has most of the log, if this node leads and there is one; of those that
    /// answer in time, if any does. Waits until this node does not lead any more, and returns whom it asked.
    pub async fn hand_over(&self) -> Option<NodeId> {
        let to = self.nearest_follower()?;
        let mut leadership = self.leadership();
        let _paused = self.quiesce(to).await;
        self.raft().trigger().transfer_leader(to.get()).await.ok()?;
        // An error means that the group has stopped, and leads no more.
        let _ = leadership.wait_for(|now| now.leader.is_some_and(|leader| leader != self.node())).await;
        Some(to)
    }

    /// Asks the follower that has most of the log to lead, whatever is under way. Returns whom it asked.
    pub(super) async fn hand_over_at_once(&self) -> Option<NodeId> {
        let to = self.nearest_follower()?;
        self.raft().trigger().transfer_leader(to.get()).await.ok()?;
        Some(to)
    }

    fn nearest_follower(&self) -> Option<NodeId> {
        let metrics = self.raft().metrics().borrow_watched().clone();
        let (voters, answering) = (self.voters(), self.answering(&metrics));
        let followers = metrics.replication?;
        let (&to, matched) = followers
            .iter()
            .filter(|(id, _)| **id != self.node().get() && voters.contains(&NodeId::new(**id)))
            .max_by_key(|(id, matched)| {
                (answering.contains(&NodeId::new(**id)), matched.as_ref().map(|id| id.index()))
            })?;
        matched.as_ref()?;
        Some(NodeId::new(to))
    }

    /// Proposes nothing new, and waits until what is under way is done and another replica has all of it, up to
    /// [`QUIET_WITHIN`]: nobody confirms anything between the moment when this node ceases to lead and the one when
    /// the other has written what it lacks. What comes meanwhile is kept until the other leads, and refused then.
    async fn quiesce(&self, to: NodeId) -> Paused<'_> {
        let paused = self.pause().begin();
        let is_quiet = async {
            paused.wait_idle().await;
            let has_all = |metrics: &RaftMetrics<TypeConfig>| {
                let matched =
                    metrics.replication.as_ref().and_then(|followers| followers.get(&to.get())?.as_ref());
                metrics.replication.is_none() || matched.map(|id| id.index()) >= metrics.last_log_index
            };
            let mut metrics = self.raft().metrics();
            while !has_all(&metrics.borrow_watched()) && metrics.changed().await.is_ok() {}
        };
        // When it does not become quiet, the other one catches up afterwards.
        let _ = time::timeout(QUIET_WITHIN, is_quiet).await;
        paused
    }
}
