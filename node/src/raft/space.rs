//! Gives the log's space back. The log knows where entries lie, the shards' states which parts of them some group may
//! still need: a segment with nothing of the kind is retired, one with little is rewritten first.
//!
//! Nothing is retired that a saved checkpoint refers to: what is needed is asked first, then every shard is
//! checkpointed, and only then segments go. What lost its last reader in between is met again in the next pass.

use std::{ops::ControlFlow, sync::Arc, thread, time::Duration};

use skein_proto::ids::ShardId;

use super::{
    group::{Group, GroupFailure},
    repair::Repairs,
    replica::Replica,
};
use crate::{
    broker::LivePart,
    log::{Log, LogFailure, Part, RewriteError, SegmentId, SegmentSurvey},
    tasks,
};

/// What a part takes in a segment besides its own bytes, about.
const PART_OVERHEAD_BYTES: u64 = 48;

/// Segments that are rewritten in one pass. Bounds how long checkpoints wait for it.
const REWRITES_PER_PASS_MAX: usize = 4;

/// How fast segments are rewritten, in bytes a second. Slow beside what a disk does, so that whoever waits for a
/// confirm hardly notices, and still faster than most clusters fill segments.
const REWRITE_BYTES_PER_S: u64 = 32 << 20;

/// Spare segments that are kept when nothing is written. More only hold disk space.
const IDLE_SPARES_MAX: usize = 1;

/// What is to become of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Keep,
    Rewrite,
    Retire,
}

/// Looks after the log's space.
pub(super) struct SpaceKeeper {
    log: Log,
    repairs: Repairs,
    /// Found and rewritten, but not retired: some checkpoint could not be saved then.
    plan: Option<Plan>,
}

/// What a pass found and is going to do.
#[derive(Debug, Default)]
struct Plan {
    retire: Vec<SegmentId>,
    rewrite: Vec<SegmentId>,
}

impl SpaceKeeper {
    pub(super) fn new(log: Log, repairs: Repairs) -> Self {
        Self { log, repairs, plan: None }
    }

    /// Finds out which segments can go, and rewrites what is worth it. Call [`finish`](Self::finish) when every shard
    /// has been checkpointed since.
    pub(super) async fn begin(&mut self, groups: &[Arc<Group>]) {
        if self.plan.is_some() {
            // What was rewritten once must not be written again and again.
            return;
        }
        let mut plan = self.judge(groups);
        plan.rewrite.truncate(REWRITES_PER_PASS_MAX);
        for segment in std::mem::take(&mut plan.rewrite) {
            if self.rewrite(segment, groups).await {
                plan.retire.push(segment);
            }
        }
        self.plan = Some(plan);
    }

    /// Retires what was found.
    pub(super) async fn finish(&mut self) -> Result<(), LogFailure> {
        let Some(plan) = self.plan.take().filter(|plan| !plan.retire.is_empty()) else { return Ok(()) };
        let log = self.log.clone();
        let retired = tasks::spawn_blocking(move || log.retire(&plan.retire)).await;
        retired.expect("retiring segments does not panic").map(drop)
    }

    /// Gives back what is only kept to be used again soon.
    pub(super) fn rest(&self) {
        self.log.trim_spares(IDLE_SPARES_MAX);
    }

    fn judge(&self, groups: &[Arc<Group>]) -> Plan {
        let segments = self.log.survey();
        let mut live_bytes = vec![0; segments.len()];
        for group in groups {
            add_live_bytes(group, &segments, &mut live_bytes);
        }
        let mut plan = Plan::default();
        for (segment, live_bytes) in segments.iter().zip(live_bytes) {
            match verdict(segment, live_bytes) {
                Verdict::Keep => {}
                Verdict::Rewrite => plan.rewrite.push(segment.id),
                Verdict::Retire => plan.retire.push(segment.id),
            }
        }
        plan
    }

    /// Whether the segment's live parts now lie elsewhere.
    async fn rewrite(&self, segment: SegmentId, groups: &[Arc<Group>]) -> bool {
        let log = self.log.clone();
        let replicas: Vec<_> = groups.iter().map(|group| Arc::clone(group.replica())).collect();
        let rewritten = tasks::spawn_blocking(move || {
            let mut live = |shard: ShardId, entries| live_parts(&replicas, shard, entries);
            log.rewrite(segment, &mut live, &mut |chunk_bytes| pace(chunk_bytes, REWRITE_BYTES_PER_S))
        });
        match rewritten.await.expect("rewriting a segment does not panic") {
            Ok(rewritten) => {
                tracing::info!(%segment, bytes = rewritten.bytes, "a segment with little left in it was rewritten");
                true
            }
            Err(RewriteError::Stopped) => false,
            Err(error) => {
                tracing::error!(%segment, %error, "a segment cannot be rewritten; it stays for now");
                if let Some((shard, index)) = error.damaged_entry() {
                    self.repairs.report(shard, index);
                }
                false
            }
        }
    }
}

/// Segments that hold what a snapshot brought, and that no state refers to yet, count as needed entirely.
fn add_live_bytes(group: &Group, segments: &[SegmentSurvey], live_bytes: &mut [u64]) {
    let (mut places, mut ranges) = (Vec::new(), Vec::new());
    for (place, segment) in segments.iter().enumerate() {
        let shares = segment.shards.iter().filter(|share| share.shard == group.shard());
        for range in shares.flat_map(|share| &share.entries) {
            places.push(place);
            ranges.push(range.clone());
        }
    }
    if group.has_staged_snapshot() {
        for place in places {
            live_bytes[place] = segments[place].file_bytes;
        }
        return;
    }
    for (place, live) in places.into_iter().zip(group.replica().live_in(&ranges)) {
        live_bytes[place] += live.bytes + live.parts * PART_OVERHEAD_BYTES;
    }
}

fn verdict(segment: &SegmentSurvey, live_bytes: u64) -> Verdict {
    if !segment.is_sealed || segment.has_raft_entries {
        Verdict::Keep
    } else if live_bytes == 0 {
        Verdict::Retire
    } else if live_bytes * 2 < segment.file_bytes {
        Verdict::Rewrite
    } else {
        Verdict::Keep
    }
}

fn live_parts(replicas: &[Arc<Replica>], shard: ShardId, entries: std::ops::Range<u64>) -> Vec<Part> {
    let replica = replicas.iter().find(|replica| replica.shard() == shard);
    let parts = replica.map(|replica| replica.live_parts(entries)).unwrap_or_default();
    parts.into_iter().map(|LivePart { index, position, length }| Part { index, position, length }).collect()
}

/// Called after each chunk that is read or written in the background, on a thread that may sleep: as long as it takes
/// to be no faster than `bytes_per_s`.
pub(super) fn pace(chunk_bytes: usize, bytes_per_s: u64) -> ControlFlow<()> {
    let nanos = (chunk_bytes as u64).saturating_mul(1_000_000_000) / bytes_per_s;
    thread::sleep(Duration::from_nanos(nanos));
    ControlFlow::Continue(())
}

/// Checkpoints every shard. False when one is being sent to another node and so stays as it was.
pub(super) async fn checkpoint_all(groups: &[Arc<Group>]) -> Result<bool, GroupFailure> {
    let mut all = true;
    for group in groups {
        all &= group.checkpoint().await?;
    }
    Ok(all)
}
