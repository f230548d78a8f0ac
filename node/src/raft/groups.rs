//! All raft groups of this node: opened from the data directory, checkpointed in the background, closed together.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use skein_proto::ids::{NodeId, ShardId};
use tokio::sync::mpsc;

use super::{
    group::{Group, GroupError, GroupFailure, GroupParts, Timers},
    load::{self, LoadError},
    network::Transport,
    replica::Replica,
};
use crate::{
    checkpoint::{CheckpointError, Checkpoints},
    clock::Clock,
    log::Log,
};

/// A checkpoint is saved after this many bytes of applied entries: a restart replays at most about as much.
const CHECKPOINT_EVERY_BYTES: u64 = 64 << 20;

/// ... or after this long, if anything was applied.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);

/// ... or after the node's log grew by this much, whichever shard it was for: segments are freed together.
const TRIM_EVERY_LOG_BYTES: u64 = 256 << 20;

/// How often the groups are looked after.
const UPKEEP_EVERY: Duration = Duration::from_millis(500);

/// What the groups of a node are made of.
pub struct GroupsParts {
    /// This node.
    pub node: NodeId,
    /// Message shards; the catalog comes on top.
    pub shard_count: u32,
    /// Timers of every group.
    pub timers: Timers,
    /// The node's log.
    pub log: Log,
    /// Calls to peers.
    pub transport: Arc<dyn Transport>,
    /// The time.
    pub clock: Clock,
    /// Where a group's failure is told; the node must then stop.
    pub failures: mpsc::UnboundedSender<GroupFailure>,
}

/// Why the groups could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenGroupsError {
    /// The checkpoint store.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A checkpoint.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// openraft.
    #[error(transparent)]
    Group(#[from] GroupError),
}

/// All raft groups of this node.
pub struct Groups {
    groups: BTreeMap<ShardId, Arc<Group>>,
    log: Log,
    clock: Clock,
}

/// When a group was checkpointed last.
#[derive(Clone, Copy)]
struct Saved {
    at: Duration,
    /// Written to the node's log by then.
    log_bytes: u64,
}

impl Groups {
    /// Opens every shard: its checkpoint, then the log's rest.
    ///
    /// # Errors
    /// See [`OpenGroupsError`].
    pub async fn open(parts: GroupsParts, checkpoint_dir: &Path) -> Result<Self, OpenGroupsError> {
        let checkpoints = Checkpoints::open(checkpoint_dir)?;
        let mut groups = BTreeMap::new();
        for shard in (0..=parts.shard_count).map(ShardId::new) {
            let checkpoint = checkpoints.shard(shard)?;
            let (machine, position) = load::machine(shard, &checkpoint.load()?)?;
            let replica = Arc::new(Replica::new(shard, machine, position));
            let group = Group::start(GroupParts {
                node: parts.node,
                timers: parts.timers,
                log: parts.log.clone(),
                replica,
                checkpoint,
                transport: Arc::clone(&parts.transport),
                clock: parts.clock.clone(),
                failures: parts.failures.clone(),
            })
            .await?;
            groups.insert(shard, Arc::new(group));
        }
        Ok(Self { groups, log: parts.log, clock: parts.clock })
    }

    /// One shard's group, if this node hosts it.
    #[must_use]
    pub fn get(&self, shard: ShardId) -> Option<&Arc<Group>> {
        self.groups.get(&shard)
    }

    /// The catalog's group.
    ///
    /// # Panics
    /// Never: every node hosts the catalog.
    #[must_use]
    pub fn catalog(&self) -> &Arc<Group> {
        self.get(ShardId::CATALOG).expect("every node hosts the catalog")
    }

    /// All groups, the catalog first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.groups.values()
    }

    /// Checkpoints and trims every group for as long as it is polled; returns only with a failure.
    pub async fn upkeep(&self) -> GroupFailure {
        let mut saved: BTreeMap<ShardId, Saved> = BTreeMap::new();
        let mut ticks = tokio::time::interval(UPKEEP_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            for group in self.groups.values() {
                let now = Saved { at: self.clock.monotonic(), log_bytes: self.log.stats().bytes_written };
                let last = saved.entry(group.shard()).or_insert(now);
                if let Err(failure) = self.look_after(group, last, now).await {
                    return failure;
                }
            }
        }
    }

    async fn look_after(&self, group: &Group, last: &mut Saved, now: Saved) -> Result<(), GroupFailure> {
        group.update_replicated_index();
        let log_has_moved = now.log_bytes - last.log_bytes >= TRIM_EVERY_LOG_BYTES;
        let has_grown = group.replica().bytes_since_checkpoint() >= CHECKPOINT_EVERY_BYTES;
        if log_has_moved && group.is_leader() {
            group.tell_replicated_index(self.clock.wall_ms()).await?;
        }
        if log_has_moved || has_grown || now.at - last.at >= CHECKPOINT_EVERY {
            group.checkpoint().await?;
            *last = now;
        }
        Ok(())
    }

    /// Stops every group.
    pub async fn shutdown(&self) {
        for group in self.groups.values() {
            group.shutdown().await;
        }
    }
}
