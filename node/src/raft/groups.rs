//! All raft groups of this node: opened from the data directory, checkpointed in the background, closed together.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use skein_proto::ids::{NodeId, ShardId};
use tokio::sync::mpsc;

use super::{
    group::{Group, GroupError, GroupFailure, GroupParts, Timers},
    load::{self, LoadError},
    network::Transport,
    pages::PageMemory,
    repair::{Repairer, Repairs},
    replica::Replica,
    scrub::{Scrubbing, scrub},
    space::{SpaceKeeper, checkpoint_all},
};
use crate::{
    checkpoint::{CheckpointError, Checkpoints},
    clock::Clock,
    log::{Log, LogFailure},
    tasks,
    telemetry::Histogram,
};

/// A checkpoint is saved after this many bytes of applied entries: a restart replays at most about as much.
const CHECKPOINT_EVERY_BYTES: u64 = 64 << 20;

/// ... or after this long, if anything was applied.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);

/// The log's space is looked after when it has grown by this many segments, whichever shards it was for ...
const SPACE_EVERY_SEGMENTS: u64 = 4;

/// ... and this often, if anything was applied. Every shard is then checkpointed.
const SPACE_EVERY: Duration = CHECKPOINT_EVERY;

/// When the log has grown by less than this between two such times, nobody is told anything that frees a segment.
const TELL_BYTES: u64 = 1 << 20;

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
    /// How much of the log is kept for replicas that lag, in bytes, whatever they lack of it. One that is further
    /// behind is sent a snapshot.
    pub lag_bytes_max: u64,
    /// Bytes of memory for pages of queues' blocks.
    pub page_memory_bytes: u64,
    /// How the log is scrubbed.
    pub scrubbing: Scrubbing,
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

/// Why the groups cannot be looked after any more: the node must stop.
#[derive(Debug, thiserror::Error)]
pub enum UpkeepFailure {
    /// A group stopped.
    #[error(transparent)]
    Group(#[from] GroupFailure),
    /// The log could not be written.
    #[error(transparent)]
    Log(#[from] LogFailure),
}

/// All raft groups of this node.
pub struct Groups {
    groups: BTreeMap<ShardId, Arc<Group>>,
    log: Log,
    lag_bytes_max: u64,
    clock: Clock,
    repairs: Repairs,
    confirm_times: Arc<Histogram>,
    memory: Arc<PageMemory>,
}

/// When something was done last.
#[derive(Clone, Copy)]
struct LastTime {
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
        let repairs = Repairs::default();
        let memory = PageMemory::new(parts.page_memory_bytes);
        let confirm_times = Arc::new(Histogram::default());
        for (shard, index) in parts.log.damaged() {
            repairs.report(shard, index);
        }
        let GroupsParts { log, transport, node, .. } = &parts;
        let repairer = Repairer::new(repairs.clone(), log.clone(), Arc::clone(transport), *node);
        let repairer = Arc::new(repairer);
        tasks::spawn(Arc::clone(&repairer).run());
        let mut groups = BTreeMap::new();
        for shard in (0..=parts.shard_count).map(ShardId::new) {
            let checkpoint = checkpoints.shard(shard)?;
            let (machine, position) = load::machine(shard, &checkpoint, &memory)?;
            let replica = Arc::new(Replica::new(shard, machine, position));
            repairer.add_replica(&replica);
            let group = Group::start(GroupParts {
                node: parts.node,
                timers: parts.timers,
                log: parts.log.clone(),
                replica,
                checkpoint,
                memory: Arc::clone(&memory),
                transport: Arc::clone(&parts.transport),
                clock: parts.clock.clone(),
                confirm_times: Arc::clone(&confirm_times),
                repairs: repairs.clone(),
                failures: parts.failures.clone(),
            })
            .await?;
            let group = Arc::new(group);
            repairer.add_group(&group);
            groups.insert(shard, group);
        }
        tasks::spawn(scrub(parts.log.clone(), repairs.clone(), parts.scrubbing, parts.clock.clone()));
        let GroupsParts { log, lag_bytes_max, clock, .. } = parts;
        Ok(Self { groups, log, lag_bytes_max, clock, repairs, confirm_times, memory })
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

    /// The memory that pages of queues' blocks take.
    #[must_use]
    pub fn page_memory(&self) -> &PageMemory {
        &self.memory
    }

    /// How long entries took from being proposed here to being applied here, on disk on a majority.
    #[must_use]
    pub fn confirm_times(&self) -> &Histogram {
        &self.confirm_times
    }

    /// The damaged entries of this node.
    #[must_use]
    pub fn repairs(&self) -> &Repairs {
        &self.repairs
    }

    /// Checkpoints every group and looks after the log's space for as long as it is polled; returns only with a
    /// failure.
    pub async fn upkeep(&self) -> UpkeepFailure {
        let mut space = SpaceKeeper::new(self.log.clone(), self.repairs.clone());
        let mut last = self.now();
        let mut ticks = tokio::time::interval(UPKEEP_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(failure) = self.look_after(&mut space, &mut last).await {
                return failure;
            }
        }
    }

    async fn look_after(&self, space: &mut SpaceKeeper, last: &mut LastTime) -> Result<(), UpkeepFailure> {
        for group in self.groups.values() {
            group.update_replicated_index();
            if group.replica().bytes_since_checkpoint() >= CHECKPOINT_EVERY_BYTES {
                group.checkpoint().await?;
            }
        }
        let now = self.now();
        let grown_bytes = now.log_bytes - last.log_bytes;
        let has_grown = grown_bytes >= SPACE_EVERY_SEGMENTS * self.log.segment_bytes();
        if has_grown || now.at - last.at >= SPACE_EVERY {
            *last = now;
            if grown_bytes >= TELL_BYTES {
                self.tell_replicated_indexes().await?;
            }
            self.free_space(space).await?;
            if grown_bytes == 0 {
                space.rest();
            }
        }
        Ok(())
    }

    /// A shard that nobody writes to would otherwise never learn that all replicas have its entries.
    async fn tell_replicated_indexes(&self) -> Result<(), GroupFailure> {
        for group in self.groups.values().filter(|group| group.is_leader()) {
            group.tell_replicated_index(self.clock.wall_ms()).await?;
        }
        Ok(())
    }

    async fn free_space(&self, space: &mut SpaceKeeper) -> Result<(), UpkeepFailure> {
        let groups: Vec<_> = self.groups.values().cloned().collect();
        space.begin(&groups).await;
        let all_saved = checkpoint_all(&groups).await?;
        self.purge(&groups).await?;
        if all_saved {
            space.finish().await?;
        }
        Ok(())
    }

    /// Replicas that lag are waited for, as long as what they lack lies in the newest part of the log. It is the log
    /// that is bounded, and not what they lack: a few entries of a shard hold back whole segments.
    async fn purge(&self, groups: &[Arc<Group>]) -> Result<(), GroupFailure> {
        let kept = self.log.oldest_within(self.lag_bytes_max);
        for group in groups {
            group.purge(kept, &self.clock).await?;
        }
        Ok(())
    }

    fn now(&self) -> LastTime {
        LastTime { at: self.clock.monotonic(), log_bytes: self.log.stats().bytes_written }
    }

    /// Stops every group.
    pub async fn shutdown(&self) {
        for group in self.groups.values() {
            group.shutdown().await;
        }
    }
}
