//! What the dispatcher has handed to one consumer and its stream has not yet sent: references, not bodies.
//!
//! An outbox holds what its consumer has leased, so that the consumer's credit bounds it. One whose stream stalls is
//! dropped within a lease's time.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::{
    broker::BlockSlice,
    dispatch::{ConsumerId, Delivery},
};

/// One delivery, and where its messages lie.
#[derive(Debug, Clone)]
pub struct OutboxItem {
    /// Which messages, in which attempt.
    pub delivery: Delivery,
    /// Where they are.
    pub slice: BlockSlice,
    /// Which of them the group wants; nothing for all.
    pub filter: Option<Arc<[u8]>>,
}

impl OutboxItem {
    /// Takes the next one in, where it is of the same consumer and attempt and its messages lie right behind: they are
    /// read and sent as one. False when they do not.
    pub(super) fn join(&mut self, next: &Self) -> bool {
        let (here, there) = (&self.delivery, &next.delivery);
        let is_next = (here.consumer, here.key, here.attempt, here.end())
            == (there.consumer, there.key, there.attempt, there.first);
        let is_whole = |slice: &BlockSlice| (slice.skip, slice.take) == (0, slice.block_count);
        let (block, behind) = (&self.slice, &next.slice);
        let is_behind = (block.index, block.position + block.length) == (behind.index, behind.position);
        let joins = is_next && is_behind && is_whole(block) && is_whole(behind) && self.filter == next.filter;
        if joins {
            self.delivery.count += there.count;
            self.delivery.bytes += there.bytes;
            self.slice.length += behind.length;
            self.slice.block_count += behind.block_count;
            self.slice.take += behind.take;
        }
        joins
    }
}

/// The delivery task's end.
pub(super) struct OutboxSender(mpsc::UnboundedSender<OutboxItem>);

/// The consumer's end. Dropping it tells the delivery task that the consumer is gone and what it holds is free,
/// wherever in its making or its use that happens.
pub struct Outbox {
    consumer: ConsumerId,
    items: mpsc::UnboundedReceiver<OutboxItem>,
    gone: Option<mpsc::UnboundedSender<ConsumerId>>,
}

pub(super) fn outbox(
    consumer: ConsumerId,
    gone: mpsc::UnboundedSender<ConsumerId>,
) -> (OutboxSender, Outbox) {
    let (sender, items) = mpsc::unbounded_channel();
    (OutboxSender(sender), Outbox { consumer, items, gone: Some(gone) })
}

impl OutboxSender {
    pub(super) fn push(&self, item: OutboxItem) {
        // Fails when the outbox was dropped a moment ago: the delivery task is about to hear of it, and to take back
        // what it holds.
        let _ = self.0.send(item);
    }
}

impl Outbox {
    /// Waits for deliveries and takes up to `items_max` of what is there into `items`. Returns how many; 0 when the
    /// shard's leader has stopped serving.
    pub async fn receive(&mut self, items: &mut Vec<OutboxItem>, items_max: usize) -> usize {
        self.items.recv_many(items, items_max).await
    }

    /// Takes what waits right now. False when nothing does.
    pub fn take_waiting(&mut self, items: &mut Vec<OutboxItem>) -> bool {
        let taken = self.items.try_recv();
        let any = taken.is_ok();
        items.extend(taken);
        any
    }

    /// From here on, what was handed out stays leased when the outbox is dropped.
    pub(super) fn keep_leases(&mut self) {
        self.gone = None;
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        if let Some(gone) = &self.gone {
            // Fails when the delivery task has ended, and every lease with it.
            let _ = gone.send(self.consumer);
        }
    }
}

#[cfg(test)]
mod tests {
    use skein_proto::ids::{GroupId, Offset, QueueId};

    use super::*;
    use crate::dispatch::GroupKey;

    /// A message of 10 bytes that is a block, at this offset and position.
    fn item(first: u64, position: u32) -> OutboxItem {
        let key = GroupKey { queue: QueueId::new(1), group: GroupId::new(1) };
        let (consumer, block_first) = (ConsumerId::new(1), Offset::new(first));
        let delivery = Delivery { consumer, key, first: block_first, count: 1, attempt: 1, bytes: 10 };
        let (published_at_ms, skip, take, block_count) = (5, 0, 1, 1);
        let slice = BlockSlice {
            index: 7,
            position,
            length: 10,
            block_first,
            block_count,
            published_at_ms,
            skip,
            take,
        };
        OutboxItem { delivery, slice, filter: None }
    }

    #[test]
    fn only_what_lies_right_behind_is_read_and_sent_with_it() {
        let mut joined = item(0, 100);
        assert!(joined.join(&item(1, 110)) && joined.join(&item(2, 120)));
        assert_eq!((joined.delivery.count, joined.delivery.bytes), (3, 30));
        let BlockSlice { position, length, block_count, take, .. } = joined.slice;
        assert_eq!((position, length, block_count, take), (100, 30, 3, 3));

        let change = |change: &dyn Fn(&mut OutboxItem)| {
            let mut next = item(3, 130);
            change(&mut next);
            next
        };
        let others = [
            item(4, 130),
            item(3, 131),
            change(&|next| next.delivery.consumer = ConsumerId::new(2)),
            change(&|next| next.delivery.attempt = 2),
            change(&|next| next.slice.index = 8),
            change(&|next| (next.slice.skip, next.slice.block_count) = (1, 2)),
            change(&|next| next.filter = Some(Arc::new([1]))),
        ];
        for other in others {
            assert!(!joined.clone().join(&other), "{other:?}");
        }
        assert!(joined.join(&item(3, 130)));
    }

    #[test]
    fn whoever_drops_an_outbox_is_gone_unless_it_keeps_its_leases() {
        let (gone, mut told) = mpsc::unbounded_channel();
        let (sender, receiver) = outbox(ConsumerId::new(1), gone.clone());
        drop(receiver);
        assert_eq!(told.try_recv(), Ok(ConsumerId::new(1)));
        drop(sender);

        let (_sender, mut receiver) = outbox(ConsumerId::new(2), gone);
        receiver.keep_leases();
        drop(receiver);
        assert!(told.try_recv().is_err());
    }
}
