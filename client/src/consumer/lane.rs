//! One consumer's part of one queue or partition: what has come from it, and the task that talks to its leader.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use skein_proto::ids::ShardId;
use tokio::{sync::Notify, task::JoinHandle, time};

use super::{
    CLOSE_TIMEOUT, ConsumerBuilder,
    delivery::{BatchCursor, Delivery, DeliveryBatch},
    inbox::Inbox,
    session::Session,
};
use crate::error::ConsumeError;

#[derive(Debug)]
pub(super) struct Lane {
    shared: Arc<Shared>,
    /// What is left of the batch that single messages are taken from.
    current: Option<BatchCursor>,
    /// How often everything had been lost when that batch was taken.
    current_losses: u64,
    /// None once somebody waits for its end.
    session: Option<JoinHandle<()>>,
}

/// What the consumer, its deliveries and its session share.
#[derive(Debug)]
pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    /// How often everything that was delivered was lost. Written and, with the batches, read under the inbox's lock.
    pub(super) losses: AtomicU64,
    /// Notified when the consumer ends.
    pub(super) closing: Notify,
    /// How many partitions there are, as far as the node has told; 0 for a queue that is none.
    pub(super) partitions: AtomicU32,
    /// Which of them this is.
    pub(super) partition: Option<u32>,
}

impl Lane {
    pub(super) fn start(settings: ConsumerBuilder, partition: Option<u32>, shard: ShardId) -> Self {
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            losses: AtomicU64::new(0),
            closing: Notify::new(),
            partitions: AtomicU32::new(0),
            partition,
        });
        let session = Session::new(settings, shard, Arc::clone(&shared));
        Self { shared, current: None, current_losses: 0, session: Some(tokio::spawn(session.run())) }
    }

    pub(super) fn partitions_told(&self) -> u32 {
        self.shared.partitions.load(Ordering::Relaxed)
    }

    pub(super) fn poll_delivery(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Delivery, ConsumeError>>> {
        loop {
            self.forget_lost();
            if let Some(delivery) = self.current.as_mut().and_then(BatchCursor::next) {
                let delivery = delivery.map_err(ConsumeError::from);
                if delivery.is_err() {
                    self.current = None;
                    self.begin_close();
                }
                return Poll::Ready(Some(delivery));
            }
            self.current = match std::task::ready!(self.poll_inbox(cx)) {
                Some(Ok(batch)) => Some(BatchCursor::new(batch)),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            };
        }
    }

    pub(super) fn poll_batch(
        &mut self,
        cx: &Context<'_>,
    ) -> Poll<Option<Result<DeliveryBatch, ConsumeError>>> {
        self.forget_lost();
        if let Some(rest) = self.current.take().and_then(BatchCursor::into_rest) {
            return Poll::Ready(Some(Ok(rest)));
        }
        self.poll_inbox(cx)
    }

    pub(super) fn begin_close(&self) {
        let rest = self.current.as_ref().and_then(BatchCursor::rest);
        let waker = self.shared.lock().close(rest);
        wake(waker);
        self.shared.closing.notify_one();
    }

    /// Waits for the end of the stream, but not longer than for the answers to acks.
    pub(super) async fn ended(&mut self) {
        if let Some(session) = self.session.take() {
            // Bounded inside by the same timeout; what is unanswered then has been told to those who wait for it.
            let _ = time::timeout(CLOSE_TIMEOUT, session).await;
        }
    }

    fn poll_inbox(&mut self, cx: &Context<'_>) -> Poll<Option<Result<DeliveryBatch, ConsumeError>>> {
        let (polled, losses) = {
            let mut inbox = self.shared.lock();
            (inbox.poll_batch(cx.waker()), self.shared.losses.load(Ordering::Relaxed))
        };
        self.current_losses = losses;
        polled.map(|batch| {
            batch.map(|batch| batch.map(|batch| DeliveryBatch::new(batch, Arc::clone(&self.shared), losses)))
        })
    }

    /// What is left of a batch is delivered again when the stream was lost for good that it came on.
    fn forget_lost(&mut self) {
        if self.shared.losses.load(Ordering::Relaxed) != self.current_losses {
            self.current = None;
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.begin_close();
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes whoever is to be woken, when no lock is held any more.
pub(super) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
