//! Publishing a stream of messages: many in flight, confirmed in order, over failures without loss or duplicate.

mod batcher;
mod confirm;
mod lane;
mod session;
mod spread;

use std::{sync::Arc, time::Duration};

use skein_proto::limits;

pub use self::confirm::Confirm;
use self::{
    batcher::{Limits, Refused},
    lane::Lane,
    session::Destination,
    spread::Spread,
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
        let destination = Destination { name: queue, ..Destination::default() };
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
        let Self { client, destination, limits, delivery_timeout } = self;
        let settings = (limits, delivery_timeout);
        if let Some(partitions) = client.partitions_of(&destination.name).await? {
            let spread = Spread::start(client, destination.name, partitions, settings).await?;
            return Ok(Producer { way: Way::Partitions(spread) });
        }
        let shard = client.shard_to_publish_to(&destination.name).await?;
        Ok(Producer { way: Way::One(Lane::start(client, destination, shard, settings, None)) })
    }
}

/// Publishes messages to one queue, or to a topic. What is published to a topic is confirmed when every queue that gets
/// it has it; the offsets of such confirms mean nothing.
///
/// Of a partitioned queue, messages with the same key go to the same partition, and keep their order also when there
/// come to be more partitions. Those without a key go to any, or by their id to the same one where they have one.
/// Windows and offsets are those of each partition.
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
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// To a queue, or to a topic.
    One(Lane),
    /// To the partitions of a queue.
    Partitions(Arc<Spread>),
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
        match &self.way {
            Way::One(lane) => lane.flush().await,
            Way::Partitions(spread) => spread.flush().await,
        }
    }

    /// Flushes, and ends the stream.
    ///
    /// # Errors
    /// The first failure since the last flush.
    pub async fn close(self) -> Result<(), ConfirmError> {
        self.begin_close();
        let flushed = self.flush().await;
        match &self.way {
            Way::One(lane) => lane.ended().await,
            Way::Partitions(spread) => spread.ended().await,
        }
        flushed
    }

    fn offer(&self, message: &EncodableMessage) -> Result<Confirm, Refused> {
        match &self.way {
            Way::One(lane) => lane.offer(message),
            Way::Partitions(spread) => spread.offer(message),
        }
    }

    async fn wait_for_room(&self, message: &EncodableMessage) {
        match &self.way {
            Way::One(lane) => lane.wait_for_room(message).await,
            Way::Partitions(spread) => spread.wait_for_room(message).await,
        }
    }

    fn begin_close(&self) {
        match &self.way {
            Way::One(lane) => lane.begin_close(),
            Way::Partitions(spread) => spread.begin_close(),
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        // A single lane sees to its end by itself.
        if let Way::Partitions(spread) = &self.way {
            spread.finish_later();
        }
    }
}
