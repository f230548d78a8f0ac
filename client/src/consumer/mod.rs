//! Consuming a queue as a member of a group: messages come by credit, and are acked in ranges.

mod acks;
mod delivery;
mod held;
mod inbox;
mod session;

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::Stream;
use skein_proto::limits;
use tokio::{sync::Notify, task::JoinHandle, time};

pub use self::{
    acks::Settled,
    delivery::{BatchMessages, Delivery, DeliveryBatch},
};
use self::{delivery::BatchCursor, inbox::Inbox, session::Session};
use crate::{
    client::Client,
    error::{ConsumeError, Error},
};

/// Unsettled messages unless set otherwise. Enough for 100k messages a second at 10 ms from delivery to ack.
const CREDIT_MESSAGES: u32 = 1_000;

/// Unsettled bytes unless set otherwise. What the largest batches need to keep one on its way.
const CREDIT_BYTES: u64 = 8 << 20;

/// How long acks that were not answered yet are waited for when a consumer ends. What is not acked by then is
/// delivered again.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings of a [`Consumer`] that is not built yet.
#[derive(Debug, Clone)]
pub struct ConsumerBuilder {
    client: Client,
    queue: String,
    group: String,
    credit_messages: u32,
    credit_bytes: u64,
    priority: i32,
}

impl ConsumerBuilder {
    pub(crate) fn new(client: Client, queue: String, group: String) -> Self {
        Self {
            client,
            queue,
            group,
            credit_messages: CREDIT_MESSAGES,
            credit_bytes: CREDIT_BYTES,
            priority: 0,
        }
    }

    /// How many messages may be delivered and not settled at a time; 1,000 unless set, at most 131,072.
    #[must_use]
    pub fn credit_messages(mut self, messages: u32) -> Self {
        self.credit_messages = messages.clamp(1, limits::CREDIT_MESSAGES_MAX);
        self
    }

    /// How many bytes may be delivered and not settled at a time; 8 MiB unless set. One message is always delivered.
    #[must_use]
    pub fn credit_bytes(mut self, bytes: u64) -> Self {
        self.credit_bytes = bytes.max(1);
        self
    }

    /// Consumers of a group with a higher priority are served first; the others get messages while those can take no
    /// more. 0 unless set.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Looks the queue up and subscribes in the background. A group that does not exist is created, and starts at the
    /// oldest message.
    ///
    /// # Errors
    /// When the queue does not exist, or the cluster does not answer.
    pub async fn build(self) -> Result<Consumer, Error> {
        let shard = self.client.shard_of(&self.queue).await?;
        let (inbox, closing) = (Mutex::new(Inbox::default()), Notify::new());
        let shared = Arc::new(Shared { inbox, losses: AtomicU64::new(0), closing });
        let session = Session::new(self, shard, Arc::clone(&shared));
        Ok(Consumer { shared, current: None, current_losses: 0, session: Some(tokio::spawn(session.run())) })
    }
}

/// Takes messages of one queue for one consumer group.
///
/// A message is leased to this consumer from the moment the node sends it, and delivered again, perhaps to another
/// consumer, unless it is acked before its lease runs out ([`Delivery::extend`] prolongs it). Dropping a [`Delivery`]
/// does nothing: its lease runs out, or ends with the consumer.
///
/// When the connection or the node is lost, the consumer subscribes again and goes on with what it holds: acks that
/// wait are sent then. What could not be resumed, because it was delivered to somebody else meanwhile, is discarded
/// where it was not taken yet; where it was, its ack fails with
/// [`SettleError::LeaseLost`](crate::SettleError::LeaseLost).
///
/// It is a [`Stream`]; it ends after an error, which is one that does not go away by waiting. Dropping it sends the
/// acks that wait and gives everything else back; [`Consumer::close`] waits for that.
///
/// ```no_run
/// # async fn run(client: skein_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let mut consumer = client.consumer("orders", "mail").credit_messages(100).build().await?;
/// while let Some(delivery) = consumer.next().await {
///     let delivery = delivery?;
///     if delivery.message.body.is_empty() {
///         delivery.nack();
///     } else {
///         delivery.ack();
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Consumer {
    shared: Arc<Shared>,
    /// What is left of the batch that single messages are taken from.
    current: Option<BatchCursor>,
    /// How often everything had been lost when that batch was taken.
    current_losses: u64,
    /// None once [`Consumer::close`] waits for it.
    session: Option<JoinHandle<()>>,
}

/// What the consumer, its deliveries and its session share.
#[derive(Debug)]
struct Shared {
    inbox: Mutex<Inbox>,
    /// How often everything that was delivered was lost. Written and, with the batches, read under the inbox's lock.
    losses: AtomicU64,
    /// Notified when the consumer ends.
    closing: Notify,
}

impl Consumer {
    /// The next message; None after an error.
    ///
    /// Cancel safe: no message is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<Delivery, ConsumeError>> {
        std::future::poll_fn(|cx| self.poll_delivery(cx)).await
    }

    /// The next messages that came together, with consecutive offsets; None after an error. Cheaper than one at a
    /// time, where there are many small ones.
    ///
    /// Cancel safe: no message is lost when the future is dropped.
    pub async fn next_batch(&mut self) -> Option<Result<DeliveryBatch, ConsumeError>> {
        std::future::poll_fn(|cx| self.poll_batch(cx)).await
    }

    /// Sends the acks that wait, gives back what is not settled, and ends the stream. Waits up to 5 s for the answer
    /// to the acks.
    pub async fn close(mut self) {
        self.begin_close();
        if let Some(session) = self.session.take() {
            // Bounded inside by the same timeout; what is unanswered then has been told to those who wait for it.
            let _ = time::timeout(CLOSE_TIMEOUT, session).await;
        }
    }

    fn poll_delivery(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Delivery, ConsumeError>>> {
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

    fn poll_batch(&mut self, cx: &Context<'_>) -> Poll<Option<Result<DeliveryBatch, ConsumeError>>> {
        self.forget_lost();
        if let Some(rest) = self.current.take().and_then(BatchCursor::into_rest) {
            return Poll::Ready(Some(Ok(rest)));
        }
        self.poll_inbox(cx)
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

    fn begin_close(&self) {
        let waker = self.shared.lock().close();
        wake(waker);
        self.shared.closing.notify_one();
    }
}

impl Stream for Consumer {
    type Item = Result<Delivery, ConsumeError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_delivery(cx)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.begin_close();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes whoever is to be woken, when no lock is held any more.
fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
