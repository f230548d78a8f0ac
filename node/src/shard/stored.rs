//! What the dispatcher wants to know of the core: the messages that are stored, and where groups stand.

use skein_proto::ids::{Offset, QueueId};

use crate::{
    broker::{self, Queue, Settings, Shard},
    dispatch::{GroupKey, GroupStart, Ready, Rules, Stored, Waiting},
    offsets::{OffsetRange, OffsetRuns, OffsetSet},
};

/// The messages of a shard. A block's messages are taken to be of one size: the bytes that a consumer holds are then
/// right for whole blocks, and never off by more than a block.
pub(super) struct StoredMessages<'a>(pub(super) &'a Shard);

impl Stored for StoredMessages<'_> {
    fn fit(&self, queue: QueueId, first: Offset, count_max: u32, bytes_max: u64) -> Option<(u32, u64)> {
        let slice = self.0.locate(queue, first, count_max)?;
        let message_bytes = u64::from(slice.length).div_ceil(u64::from(slice.block_count)).max(1);
        let fitting = u32::try_from(bytes_max / message_bytes).unwrap_or(u32::MAX);
        let count = slice.take.min(fitting).max(1);
        Some((count, u64::from(count) * message_bytes))
    }

    fn kept_from(&self, queue: QueueId) -> Option<Offset> {
        self.0.queue(queue).map(Queue::first_offset)
    }

    fn open_in(&self, key: GroupKey, range: OffsetRange) -> OffsetSet {
        let Some(queue) = self.0.queue(key.queue) else { return OffsetSet::default() };
        let kept = range.intersect(OffsetRange::between(queue.first_offset(), range.end()));
        queue.group(key.group).into_iter().flat_map(|group| group.open_in(kept)).collect()
    }

    fn is_ordinary(&self, queue: QueueId) -> bool {
        self.0.queue(queue).is_none_or(Queue::is_ordinary)
    }

    fn visit_waiting(&self, queue: QueueId, from: Offset, visit: &mut dyn FnMut(Waiting) -> bool) {
        let Some(queue) = self.0.queue(queue) else { return };
        for broker::Waiting { range, deliver_at_ms, expires_at_ms, priority, key_slot } in queue.waiting(from)
        {
            if !visit(Waiting { range, deliver_at_ms, expires_at_ms, priority, key_slot }) {
                return;
            }
        }
    }
}

/// How the groups of a queue deliver.
pub(super) const fn rules(settings: &Settings) -> Rules {
    Rules {
        lease_ms: settings.lease_ms,
        single_active: settings.single_active_consumer,
        lower_percent: settings.lower_priority_percent,
        by_key: settings.order_by_key,
    }
}

/// Where a group stands by the replicated state.
pub(super) fn group_start(shard: &Shard, key: GroupKey, held_back_until_ms: u64) -> Option<GroupStart> {
    let queue = shard.queue(key.queue)?;
    let group = queue.group(key.group)?;
    let mut ready = OffsetRuns::default();
    for (range, returned) in group.deliverable().iter() {
        ready.insert(range, Ready { attempts: returned.attempts, not_before_ms: returned.not_before_ms });
    }
    let (fresh_from, next_offset) = (group.untouched_from(), queue.next_offset());
    let is_done = ready.is_empty() && fresh_from == next_offset;
    Some(GroupStart {
        rules: rules(queue.settings()),
        ready,
        fresh_from,
        next_offset,
        held_back_until_ms: if is_done { 0 } else { held_back_until_ms },
        seek_count: group.seek_count(),
    })
}
