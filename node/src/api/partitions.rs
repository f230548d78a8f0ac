//! Queues that consist of partitions: what is asked of all of them, and when a new one may deliver what its keys bring.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::future;
use skein_proto::{
    ids::Offset,
    node::{
        CreateGroupResponse, GetGroupResponse, GetQueueResponse, Group as GroupInfo, PurgeQueueResponse,
        Queue as QueueInfo, QueueCounts, SeekGroupResponse, UpdateGroupResponse,
    },
    partitions,
};
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tonic::Status;

use super::{Api, names::QueueRef, status};
use crate::{
    broker::{Command, Group, Outcome, Position, Queue},
    planted::{Bug, is_planted},
};

/// How often a partition that waits for others looks whether they have come far enough.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// ... and not so often that looking takes more than one part in so many of the time.
const LOOKS_SHARE: u32 = 10;

/// How long who publishes waits until a partition has heard of those that were created with it or are to come after it,
/// which takes milliseconds ...
const HEAR_WAIT_MAX: Duration = Duration::from_secs(2);

/// ... and how often it asks.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// How often a call begins anew because there come to be more partitions.
pub(super) const GROWTHS_MAX: u32 = 8;

/// How long this node's replica of an older partition's shard may lag behind its leader's, before that is asked again.
const HEARD_WAIT_MAX: Duration = Duration::from_secs(1);

impl Api {
    /// The names of a queue's partitions; nothing when it has none.
    pub(super) async fn partition_names(&self, queue: &str) -> Option<Vec<String>> {
        if self.known_destination(queue).is_none() && self.known_partitions(queue).is_none() {
            self.catch_up_catalog().await;
        }
        let count = self.known_partitions(queue)?;
        Some((0..count).map(|partition| partitions::name(queue, partition)).collect())
    }

    /// How many partitions a queue has, as far as this node knows; nothing when it has none.
    pub(super) fn known_partitions(&self, queue: &str) -> Option<u32> {
        self.groups.catalog().replica().with_catalog(|catalog| catalog.partitions(queue))
    }

    /// How many partitions there are of the queue that this is one of; 0 when it is none.
    pub(super) fn partitions_with(&self, queue: &QueueRef) -> u32 {
        queue.as_partition().and_then(|(whole, _)| self.known_partitions(whole)).unwrap_or_default()
    }

    /// Lets a publisher wait who spreads messages over more partitions than this one, which this node leads, has heard
    /// of. Who spreads them over fewer is not refused before the log says so: what it sends may have been stored
    /// before.
    pub(super) fn check_partitions(&self, queue: &QueueRef, known: u32) -> Result<(), Status> {
        let partitions = self
            .group(queue.shard)?
            .replica()
            .with_messages(|shard| shard.queue(queue.id).map_or(0, |queue| queue.settings().partitions));
        if known <= partitions { Ok(()) } else { Err(status::not_heard_yet(&queue.name)) }
    }

    /// Makes sure that a partition which came later, and which this node leads, has the groups that those before it
    /// have: whoever reads all of them misses nothing of this one. Groups are created in all of them from then on.
    pub(super) async fn ensure_groups_of_older(&self, queue: &QueueRef) -> Result<(), Status> {
        let Some((whole, newer)) = queue.as_partition() else { return Ok(()) };
        let Some(first) = self.known_queue(&partitions::name(whole, 0)).filter(|_| newer > 0) else {
            return Ok(());
        };
        if is_planted(Bug::NewPartitionForgets) {
            return Ok(());
        }
        // What went to one that had not grown yet would come to lie behind what is taken here.
        if !self.all_older(whole, newer, |older| older.moved_before(newer).is_some()) {
            return Err(status::not_heard_yet(&queue.name));
        }
        let here = self.group(queue.shard)?.replica();
        // One at a time: who deletes a group finds it here, or nobody is about to create it.
        let _creating = self.creating_groups_of_older.lock().await;
        if here.with_messages(|shard| {
            shard.queue(queue.id).is_some_and(|queue| queue.next_offset() > Offset::ZERO)
        }) {
            // It has had them since before its first message; what has become of them since was done to all.
            return Ok(());
        }
        if self.groups_lacking(queue, &first, newer)?.is_empty() {
            return Ok(());
        }
        // They may have been deleted, which this node has not heard of.
        if !self.has_heard_of_older(queue).await {
            return Err(status::not_heard_yet(&queue.name));
        }
        for (name, filter) in self.groups_lacking(queue, &first, newer)? {
            let create = Command::CreateGroup { queue: queue.id, name, start: Position::First, filter };
            match self.propose(queue, create).await? {
                Outcome::GroupCreated { .. } => {}
                outcome => return Err(status::from_outcome(&outcome, &queue.name)),
            }
        }
        Ok(())
    }

    /// The groups that the first partition has and this one, which came later, has not: names and filters, as this
    /// node's replicas know.
    fn groups_lacking(
        &self,
        queue: &QueueRef,
        first: &QueueRef,
        newer: u32,
    ) -> Result<Vec<(String, Vec<u8>)>, Status> {
        let groups: Vec<_> = self.group(first.shard)?.replica().with_messages(|shard| {
            let first = shard.queue(first.id).filter(|first| first.growth_to(newer).is_some());
            let groups = first.into_iter().flat_map(|first| first.groups());
            let filter = |group: &Group| group.filter().map(|filter| filter.to_vec()).unwrap_or_default();
            groups.map(|group| (group.name().to_owned(), filter(group))).collect()
        });
        Ok(self.group(queue.shard)?.replica().with_messages(|shard| {
            let here = shard.queue(queue.id);
            let is_missing = |name: &str| here.is_none_or(|queue| queue.group_by_name(name).is_none());
            groups.into_iter().filter(|(name, _)| is_missing(name)).collect()
        }))
    }

    /// Waits until a group is done with what older partitions had of the keys that belong to this one now. Everybody
    /// who comes later would get messages of a key before those that were published before them.
    pub(super) async fn wait_for_older_partitions(&self, queue: &QueueRef, group: &str) {
        loop {
            let begun = self.clock.monotonic();
            // Asking the leaders costs more than looking here, and is of use only when all looks done here.
            if self.are_older_partitions_done(queue, group)
                && self.has_heard_of_older(queue).await
                && self.are_older_partitions_done(queue, group)
            {
                return;
            }
            let took = self.clock.monotonic().saturating_sub(begun);
            time::sleep(LOOK_AGAIN_AFTER.max(took * LOOKS_SHARE)).await;
        }
    }

    /// Whether a partition came later than others, whose keys it may have taken over.
    pub(super) fn came_later(&self, queue: &QueueRef) -> bool {
        let Some((whole, newer)) = queue.as_partition() else { return false };
        !self.all_older(whole, newer, |older| {
            older.moved_before(newer).is_some() && older.growth_to(newer).is_none()
        })
    }

    /// Brings this node's replicas of the older partitions' shards to where their leaders are now. False when one of
    /// them cannot be asked.
    async fn has_heard_of_older(&self, queue: &QueueRef) -> bool {
        if is_planted(Bug::OlderNotAsked) {
            return true;
        }
        let Some((whole, newer)) = partitions::parse(&queue.name) else { return true };
        let older = (0..newer).filter_map(|older| self.known_queue(&partitions::name(whole, older)));
        let shards: BTreeSet<_> = older.map(|older| older.shard).collect();
        let heard = shards.into_iter().map(|shard| async move {
            let group = self.groups.get(shard)?;
            let index = self.read_index(group).await?;
            let applied = group.replica().wait_applied(index);
            time::timeout(HEARD_WAIT_MAX, applied).await.ok().map(drop)
        });
        future::join_all(heard).await.iter().all(Option::is_some)
    }

    /// Looked up in this node's replicas of their shards. One that lags behind may call done what is not: it may not
    /// have heard of the group, or of its having been moved back.
    pub(super) fn are_older_partitions_done(&self, queue: &QueueRef, group: &str) -> bool {
        let Some((whole, newer)) = queue.as_partition() else { return true };
        if is_planted(Bug::NewPartitionHurries) {
            return true;
        }
        let now_ms = self.clock.wall_ms();
        self.all_older(whole, newer, |older| older.is_done_with_moved(newer, group, now_ms))
    }

    /// Whether something holds for each partition before this one, as far as this node knows. It does not for one that
    /// nothing is known of.
    fn all_older(&self, whole: &str, newer: u32, holds: impl Fn(&Queue) -> bool) -> bool {
        (0..newer).all(|older| {
            let name = partitions::name(whole, older);
            self.with_known_queue(&name, |older| older.is_some_and(&holds)).unwrap_or_default()
        })
    }
}

/// Tells the consumers of a partition when there are more of them.
pub(super) struct MorePartitions {
    /// 0 for a queue that is no partition.
    pub(super) known: u32,
    api: Arc<Api>,
    queue: QueueRef,
    catalog_applied: watch::Receiver<u64>,
}

impl MorePartitions {
    pub(super) fn of(api: &Arc<Api>, queue: &QueueRef) -> Self {
        Self {
            catalog_applied: api.groups.catalog().replica().applied_index(),
            known: api.partitions_with(queue),
            api: Arc::clone(api),
            queue: queue.clone(),
        }
    }

    /// Waits until there are more, and says how many there are then.
    pub(super) async fn next(&mut self) -> u32 {
        while self.known > 0 && self.catalog_applied.changed().await.is_ok() {
            let now = self.api.partitions_with(&self.queue);
            if now > self.known {
                self.known = now;
                return now;
            }
        }
        std::future::pending().await
    }
}

/// Asks a partition again that has not heard yet how many there are, and has done nothing.
pub(super) async fn until_heard<T, F>(ask: impl Fn() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    let deadline = Instant::now() + HEAR_WAIT_MAX;
    loop {
        match ask().await {
            Err(status) if status::is_not_heard_yet(&status) && Instant::now() < deadline => {
                time::sleep(ASK_AGAIN_AFTER).await;
            }
            answer => return answer,
        }
    }
}

/// What is answered for a partitioned queue, by what was answered for each of its partitions.
pub(super) trait OfAll: Sized {
    /// Whether it answers a call that changes something.
    const IS_CHANGE: bool = true;

    fn of_all(queue: &str, answers: Vec<Self>) -> Self;

    /// What is said when a partition did not answer like those before it: that nothing was done is not true any more.
    fn refused(partition: &str, refused: Status, before: &[Self]) -> Status {
        if Self::IS_CHANGE && !before.is_empty() { status::partly_done(partition, refused) } else { refused }
    }
}

impl OfAll for GetQueueResponse {
    const IS_CHANGE: bool = false;

    fn of_all(queue: &str, answers: Vec<Self>) -> Self {
        Self { queue: describe(queue, answers.into_iter().filter_map(|answer| answer.queue)) }
    }
}

impl OfAll for PurgeQueueResponse {
    fn of_all(_: &str, answers: Vec<Self>) -> Self {
        Self { purged_messages: answers.iter().map(|answer| answer.purged_messages).sum() }
    }
}

impl OfAll for CreateGroupResponse {
    fn of_all(_: &str, answers: Vec<Self>) -> Self {
        Self { created: answers.iter().any(|answer| answer.created) }
    }
}

impl OfAll for UpdateGroupResponse {
    fn of_all(_: &str, answers: Vec<Self>) -> Self {
        Self { group: answers.into_iter().filter_map(|answer| answer.group).reduce(added) }
    }
}

impl OfAll for GetGroupResponse {
    const IS_CHANGE: bool = false;

    fn of_all(_: &str, answers: Vec<Self>) -> Self {
        Self { group: answers.into_iter().filter_map(|answer| answer.group).reduce(added) }
    }
}

impl OfAll for SeekGroupResponse {
    fn of_all(_: &str, _: Vec<Self>) -> Self {
        Self { offset: 0 }
    }
}

/// A partitioned queue, by its partitions.
pub(super) fn describe(queue: &str, partitions: impl Iterator<Item = QueueInfo>) -> Option<QueueInfo> {
    let mut settings = None;
    let mut counts = QueueCounts::default();
    let mut groups: BTreeMap<String, GroupInfo> = BTreeMap::new();
    for partition in partitions {
        settings = settings.or(partition.settings);
        let QueueCounts { messages, bytes, groups: of_partition, .. } = partition.counts.unwrap_or_default();
        counts.messages += messages;
        counts.bytes += bytes;
        for group in of_partition {
            let sum = match groups.remove(&group.name) {
                Some(sum) => added(sum, group),
                None => GroupInfo { acked_floor: 0, ..group },
            };
            groups.insert(sum.name.clone(), sum);
        }
    }
    counts.groups = groups.into_values().collect();
    settings.map(|settings| QueueInfo {
        name: queue.to_owned(),
        settings: Some(settings),
        counts: Some(counts),
        ..QueueInfo::default()
    })
}

/// One group in two partitions. There is no floor of both.
fn added(one: GroupInfo, other: GroupInfo) -> GroupInfo {
    let oldest =
        [one.oldest_unacked_at_ms, other.oldest_unacked_at_ms].into_iter().filter(|at_ms| *at_ms != 0);
    GroupInfo {
        name: one.name,
        acked_floor: 0,
        unacked_messages: one.unacked_messages + other.unacked_messages,
        leased_messages: one.leased_messages + other.leased_messages,
        consumers: one.consumers + other.consumers,
        returned_messages: one.returned_messages + other.returned_messages,
        dead_lettered_total: one.dead_lettered_total + other.dead_lettered_total,
        dropped_total: one.dropped_total + other.dropped_total,
        unacked_bytes: one.unacked_bytes + other.unacked_bytes,
        oldest_unacked_at_ms: oldest.min().unwrap_or_default(),
        filter: one.filter.or(other.filter),
        delayed_messages: one.delayed_messages + other.delayed_messages,
    }
}
