//! How much of its log a group lets go: what every replica has, and what is too old to be kept for those that lag.

use std::sync::atomic::Ordering;

use super::{Group, GroupFailure, replica_ids};
use crate::{
    clock::Clock,
    log::SegmentId,
    raft::{
        codec::{self, EntryHead},
        types::Body,
    },
};

impl Group {
    /// Lets raft forget the part of the log that the checkpoint covers: as far as every replica has it, and all that
    /// lies in segments before `kept`. Replicas that lack some of that are sent a snapshot.
    ///
    /// # Errors
    /// When the group has failed.
    pub(in crate::raft) async fn purge(&self, kept: SegmentId, clock: &Clock) -> Result<(), GroupFailure> {
        let metrics = self.metrics();
        let Some(saved) = metrics.snapshot.as_ref().map(|id| id.index()) else { return Ok(()) };
        let replicated = self.saved.replica.replicated_index();
        let too_old = self.saved.log.last_index_before(self.shard, kept);
        let upto = saved.min(too_old.map_or(replicated, |too_old| too_old.max(replicated)));
        if metrics.purged.is_some_and(|purged| purged.index() >= upto) {
            return Ok(());
        }
        if self.purge_asked.swap(upto, Ordering::Relaxed) == upto && self.is_leader() {
            // A leader that is about to send what is to go, to a node that is away, puts purging off until some other
            // follower has got further. Nobody would in a shard that nobody writes to.
            return self.write_without_commands(clock.wall_ms()).await;
        }
        self.raft.trigger().purge_log(upto).await.map_err(|fatal| self.failure(&fatal))
    }

    /// As leader, notes how much of the log every replica has on disk; the next entry tells the others.
    pub fn update_replicated_index(&self) {
        let metrics = self.metrics();
        let Some(followers) = &metrics.replication else { return };
        let committed = metrics.local_committed.as_ref().map_or(0, |id| id.index());
        let everywhere = replica_ids(&metrics)
            .filter(|replica| *replica != self.node.get())
            .map(|replica| followers.get(&replica).and_then(Option::as_ref).map_or(0, |id| id.index()))
            .fold(committed, u64::min);
        self.replicated_index.fetch_max(everywhere, Ordering::Relaxed);
    }

    /// As leader, writes an entry without commands, which tells every replica how much of the log all of them have on
    /// disk. A shard that nobody writes to would otherwise never learn, and its last entries would hold every shard's
    /// log back.
    ///
    /// # Errors
    /// When the group has failed.
    pub async fn tell_replicated_index(&self, leader_time_ms: u64) -> Result<(), GroupFailure> {
        self.update_replicated_index();
        let replicated_index = self.replicated_index.load(Ordering::Relaxed);
        // While a replica is down there is nothing new, and an entry would only be one more that it lacks, holding back
        // the segment it lies in.
        if replicated_index <= self.saved.replica.replicated_index() {
            return Ok(());
        }
        self.write_without_commands(leader_time_ms).await
    }

    async fn write_without_commands(&self, leader_time_ms: u64) -> Result<(), GroupFailure> {
        let replicated_index = self.replicated_index.load(Ordering::Relaxed);
        let body = Body(codec::encode_entry(EntryHead { leader_time_ms, replicated_index }, &[]));
        self.raft.client_write_ff(body, None).await.map_err(|fatal| self.failure(&fatal))
    }
}
