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
    use super::*;

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
