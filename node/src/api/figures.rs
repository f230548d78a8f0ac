//! What is measured of queues and groups, told by the node that leads their shard.

use std::time::Duration;

use skein_proto::node::{Group, Queue};

use super::Api;
use crate::broker;

/// Figures of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueFigures {
    /// Its name.
    pub name: String,
    /// Messages that it keeps.
    pub messages: u64,
    /// Bytes of the batches that hold them.
    pub bytes: u64,
    /// Its groups.
    pub groups: Vec<GroupFigures>,
}

/// Figures of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupFigures {
    /// Its name.
    pub name: String,
    /// Messages that it has not acked.
    pub unacked_messages: u64,
    /// Bytes of the batches that hold them.
    pub unacked_bytes: u64,
    /// Since when the oldest of them waits; nothing when all are acked.
    pub oldest_unacked_age: Option<Duration>,
    /// Messages that consumers hold.
    pub leased_messages: u64,
    /// Messages that are not due yet.
    pub delayed_messages: u64,
    /// Messages that came back and are not acked.
    pub returned_messages: u64,
    /// Consumers that are connected.
    pub consumers: u32,
    /// Messages moved to the dead-letter queue.
    pub dead_lettered_total: u64,
    /// Messages given up and dropped.
    pub dropped_total: u64,
}

impl Api {
    /// The queues whose shards this node leads, up to `count_max` of them, those with the longest backlog first.
    pub async fn busiest_queues(&self, count_max: usize) -> Vec<QueueFigures> {
        let mut backlogs = Vec::new();
        for group in self.groups.iter().skip(1).filter(|group| group.is_leader()) {
            group.replica().with_messages(|shard| {
                backlogs.extend(shard.queues().map(|queue| (backlog(queue), queue.name().to_owned())));
            });
        }
        backlogs.sort_unstable_by(|(left, left_name), (right, right_name)| {
            right.cmp(left).then_with(|| left_name.cmp(right_name))
        });
        let now_ms = self.clock.wall_ms();
        let mut queues = Vec::new();
        for (_, name) in backlogs.into_iter().take(count_max) {
            if let Some(queue) = self.known_queue(&name) {
                queues.push(QueueFigures::new(self.describe(&queue).await, now_ms));
            }
        }
        queues
    }
}

impl QueueFigures {
    fn new(queue: Queue, now_ms: u64) -> Self {
        let counts = queue.counts.unwrap_or_default();
        let groups = counts.groups.into_iter().map(|group| GroupFigures::new(group, now_ms));
        Self { name: queue.name, messages: counts.messages, bytes: counts.bytes, groups: groups.collect() }
    }
}

impl GroupFigures {
    fn new(group: Group, now_ms: u64) -> Self {
        let oldest_at_ms = (group.oldest_unacked_at_ms != 0).then_some(group.oldest_unacked_at_ms);
        Self {
            name: group.name,
            unacked_messages: group.unacked_messages,
            unacked_bytes: group.unacked_bytes,
            oldest_unacked_age: oldest_at_ms.map(|at_ms| Duration::from_millis(now_ms.saturating_sub(at_ms))),
            leased_messages: group.leased_messages,
            delayed_messages: group.delayed_messages,
            returned_messages: group.returned_messages,
            consumers: group.consumers,
            dead_lettered_total: group.dead_lettered_total,
            dropped_total: group.dropped_total,
        }
    }
}

/// How many messages the slowest group has before it; without groups, all that are kept.
fn backlog(queue: &broker::Queue) -> u64 {
    let unacked = queue.groups().map(|group| group.unacked_count(queue.next_offset()));
    unacked.max().unwrap_or_else(|| queue.message_count())
}
