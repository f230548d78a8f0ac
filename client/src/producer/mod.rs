//! Publishing a stream of messages: many in flight, confirmed in order, over failures without loss or duplicate.

mod batcher;
mod confirm;
mod session;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use skein_proto::limits;
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{self, Instant},
};

pub use self::confirm::Confirm;
use self::{
    batcher::{Batcher, Limits, Refused},
    session::{Destination, Session},
};
use crate::{
    client::Client,
    error::{ConfirmError, Error, SendError, TrySendError},
    message::{EncodableMessage, Message},
};

/// Unconfirmed bytes unless set otherwise. What 1 GB/s of messages needs to bridge 8 ms of confirm latency.
const WINDOW_BYTES: usize = 8 << 20;

/// Unconfirmed messages unless set otherwise. What a million messages a second need to bridge a failover of 60 ms.
const WINDOW_MESSAGES: usize = 65_536;

/// Bytes of a batch unless set otherwise. Beyond it, batches cost latency and save nothing.
const BATCH_BYTES: usize = 256 << 10;

/// Messages of a batch unless set otherwise.
const BATCH_MESSAGES: usize = 4_096;

/// Time from [`Producer::send`] to the outcome unless set otherwise. Bridges the restart of a cluster.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the node has to end the stream once everything is confirmed. Nothing depends on it any more.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Settings of a [`Producer`] that is not built yet.
#[derive(Debug, Clone)]
pub struct ProducerBuilder {
    client: Client,
    destination: Destination,
    limits: Limits,
    delivery_timeout: Duration,
}

impl ProducerBuilder {
    pub(crate) fn new(client: Client, queue: String) -> Self {
        let limits = Limits {
            window_bytes: WINDOW_BYTES,
            window_messages: WINDOW_MESSAGES,
            batch_bytes: BATCH_BYTES,
            batch_messages: BATCH_MESSAGES,
            message_bytes: limits::MESSAGE_BYTES_MAX_CEILING,
        };
        let destination = Destination { name: queue, mandatory: false };
        Self { client, destination, limits, delivery_timeout: DELIVERY_TIMEOUT }
    }

    /// How many unconfirmed bytes there may be before [`Producer::send`] waits; 8 MiB unless set. One message always
    /// has room.
    #[must_use]
    pub fn window_bytes(mut self, bytes: usize) -> Self {
        self.limits.window_bytes = bytes;
        self
    }

    /// How many unconfirmed messages there may be before [`Producer::send`] waits; 65,536 unless set, at least 1.
    #[must_use]
    pub fn window_messages(mut self, messages: usize) -> Self {
        self.limits.window_messages = messages.max(1);
        self
    }

    /// The largest batch, in bytes; 256 KiB unless set, at most 4 MiB. A larger message travels alone.
    #[must_use]
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.limits.batch_bytes = bytes.clamp(1, limits::BATCH_BYTES_MAX);
        self
    }

    /// The largest batch, in messages; 4,096 unless set, at most 16,384.
    #[must_use]
    pub fn batch_messages(mut self, messages: usize) -> Self {
        self.limits.batch_messages = messages.clamp(1, limits::BATCH_MESSAGES_MAX);
        self
    }

    /// How long a message may wait for its confirm; 60 s unless set. Measured in steps of a twentieth, at most 250 ms.
    /// See [`Producer`] for what happens then.
    #[must_use]
    pub fn delivery_timeout(mut self, timeout: Duration) -> Self {
        self.delivery_timeout = timeout;
        self
    }

    /// For a topic: a batch with a message that no queue gets is refused with
    /// [`Reason::NotRouted`](crate::Reason::NotRouted), all of it. Otherwise such a message is dropped and confirmed.
    #[must_use]
    pub fn mandatory(mut self) -> Self {
        self.destination.mandatory = true;
        self
    }

    /// Looks the queue or topic up and starts the producer.
    ///
    /// # Errors
    /// When neither a queue nor a topic of that name exists, or the cluster does not answer.
    pub async fn build(self) -> Result<Producer, Error> {
        let shard = self.client.shard_to_publish_to(&self.destination.name).await?;
        let shared = Arc::new(Shared {
            batcher: Mutex::new(Batcher::new(self.limits, self.delivery_timeout)),
            room: Notify::new(),
        });
        let session =
            Session::new(self.client, self.destination, shard, Arc::clone(&shared), self.delivery_timeout);
        Ok(Producer { shared, session: Some(tokio::spawn(session.run())) })
    }
}

/// Publishes messages to one queue, or to a topic. What is published to a topic is confirmed when every queue that gets
/// it has it; the offsets of such confirms mean nothing.
///
/// Messages gather into batches by themselves: the first message of an idle producer goes at once, and while batches
/// are in flight what follows is gathered into larger ones. Messages sent from one task keep their order.
///
/// A batch is kept until it is confirmed. When the connection or the node is lost, the producer reconnects and sends
/// everything unconfirmed again; the cluster stores each message once.
///
/// What is not confirmed within the delivery timeout fails: as [`ConfirmError::NotAccepted`] if it never left this
/// machine, otherwise as [`ConfirmError::OutcomeUnknown`] together with everything else that was sent and not yet
/// confirmed. What follows then is deduplicated on its own, and may overtake what was given up.
///
/// When the queue is gone, or takes no more because it is full ([`Reason::QueueFull`](crate::Reason::QueueFull)),
/// everything that waits fails at once: nothing overtakes what was refused, and whoever publishes learns of it soon.
///
/// Dropping a producer publishes what it has taken in the background, as long as the runtime lives and the delivery
/// timeout allows; [`Producer::close`] waits for it.
///
/// ```no_run
/// # async fn run(client: skein_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use skein_client::Message;
///
/// let producer = client.producer("orders").build().await?;
/// let first = producer.send(Message::new("one")).await?;
/// let second = producer.send(Message::new("two")).await?;
/// assert!(first.await? < second.await?);
/// producer.close().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Producer {
    shared: Arc<Shared>,
    /// None once [`Producer::close`] waits for it.
    session: Option<JoinHandle<()>>,
}

/// What the producer and its session share.
#[derive(Debug)]
struct Shared {
    batcher: Mutex<Batcher>,
    /// Notified when the window has room, and when the producer is closed.
    room: Notify,
}

impl Producer {
    /// Takes a message, waiting for room in the window, and returns a future of its offset. The message is on its way
    /// whether that future is awaited or not.
    ///
    /// # Errors
    /// When the message is too large for the cluster, or the producer is closed.
    pub async fn send(&self, message: impl Into<Message>) -> Result<Confirm, SendError> {
        let message = EncodableMessage::new(message.into());
        loop {
            match self.offer(&message) {
                Ok(confirm) => return Ok(confirm),
                Err(Refused::For(error)) => return Err(error),
                Err(Refused::Full) => self.wait_for_room(&message).await,
            }
        }
    }

    /// Takes a message if the window has room.
    ///
    /// # Errors
    /// When it has not, the message is too large for the cluster, or the producer is closed.
    pub fn try_send(&self, message: impl Into<Message>) -> Result<Confirm, TrySendError> {
        let message = EncodableMessage::new(message.into());
        self.offer(&message).map_err(|refused| match refused {
            Refused::Full => TrySendError::Full(Box::new(message.into_message())),
            Refused::For(error) => TrySendError::Refused(error),
        })
    }

    /// Waits until everything taken so far is confirmed or has failed.
    ///
    /// # Errors
    /// The first failure since the last flush.
    pub async fn flush(&self) -> Result<(), ConfirmError> {
        let last = self.shared.lock().last_outcome();
        if let Some(last) = last {
            last.wait().await;
        }
        self.shared.lock().take_first_failure().map_or(Ok(()), Err)
    }

    /// Flushes, and ends the stream.
    ///
    /// # Errors
    /// The first failure since the last flush.
    pub async fn close(mut self) -> Result<(), ConfirmError> {
        self.begin_close();
        let flushed = self.flush().await;
        if let Some(session) = self.session.take() {
            // Everything is settled by now; an orderly end of the stream is only good manners.
            let _ = time::timeout(CLOSE_TIMEOUT, session).await;
        }
        flushed
    }

    fn offer(&self, message: &EncodableMessage) -> Result<Confirm, Refused> {
        let (confirm, waker) = {
            let mut batcher = self.shared.lock();
            let confirm = batcher.push(message, Instant::now)?;
            (confirm, batcher.waker_if_sendable())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(confirm)
    }

    async fn wait_for_room(&self, message: &EncodableMessage) {
        let mut room = std::pin::pin!(self.shared.room.notified());
        // From here on no notification is missed; so look again before waiting.
        room.as_mut().enable();
        if !self.shared.lock().has_room(message) {
            room.await;
        }
    }

    fn begin_close(&self) {
        let waker = self.shared.lock().close();
        if let Some(waker) = waker {
            waker.wake();
        }
        self.shared.room.notify_waiters();
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.begin_close();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Batcher> {
        self.batcher.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
