//! Consuming a queue as a member of a group: messages come by credit, and are acked in ranges.

mod acks;
mod delivery;
mod held;
mod inbox;
mod lane;
mod ranges;
mod session;

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, future};
use skein_proto::{ids::ShardId, limits, partitions};

use self::lane::Lane;
pub use self::{
    acks::Settled,
    delivery::{BatchMessages, Delivery, DeliveryBatch},
};
use crate::{
    client::Client,
    error::{ConsumeError, Error},
    position::Position,
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
        let Some(partitions) = self.client.partitions_of(&self.queue).await? else {
            let shard = self.client.shard_of(&self.queue).await?;
            return Ok(Consumer { lanes: vec![Lane::start(self, None, shard)], turn: 0, whole: None });
        };
        // In all of them, before anything of it is delivered: a partition that came later waits for those before it.
        self.client.create_group(&self.queue, &self.group, Position::First).await?;
        let whole = Self {
            credit_messages: (self.credit_messages / partitions).max(1),
            credit_bytes: (self.credit_bytes / u64::from(partitions)).max(1),
            ..self
        };
        let lanes = future::try_join_all((0..partitions).map(|partition| whole.lane(partition))).await?;
        Ok(Consumer { lanes, turn: 0, whole: Some(whole) })
    }

    /// A consumer of one partition.
    async fn lane(&self, partition: u32) -> Result<Lane, Error> {
        let queue = partitions::name(&self.queue, partition);
        let shard = self.client.shard_of(&queue).await?;
        Ok(Lane::start(Self { queue, ..self.clone() }, Some(partition), shard))
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
/// Of a partitioned queue it takes messages of all partitions in turn, also of those that come to be meanwhile: such a
/// partition delivers to a group once the group is done with what older ones had of its keys. Its credit is shared out
/// among the partitions that there are when it is built.
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
    /// One for a queue, one for each partition of a partitioned one, in their order.
    lanes: Vec<Lane>,
    /// Where to look first for the next message, so that all partitions have their turn.
    turn: usize,
    /// What lanes to further partitions are made of; nothing for a queue that has none.
    whole: Option<ConsumerBuilder>,
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
    /// to the acks. What was not taken from the consumer does not count as delivered.
    pub async fn close(mut self) {
        self.begin_close();
        future::join_all(self.lanes.iter_mut().map(Lane::ended)).await;
    }

    fn poll_delivery(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Delivery, ConsumeError>>> {
        self.poll_lanes(cx, Lane::poll_delivery)
    }

    fn poll_batch(&mut self, cx: &Context<'_>) -> Poll<Option<Result<DeliveryBatch, ConsumeError>>> {
        self.poll_lanes(cx, Lane::poll_batch)
    }

    /// Asks one lane after the other, beginning with the one whose turn it is. An error of one is the end of all.
    fn poll_lanes<T>(
        &mut self,
        cx: &Context<'_>,
        mut poll: impl FnMut(&mut Lane, &Context<'_>) -> Poll<Option<Result<T, ConsumeError>>>,
    ) -> Poll<Option<Result<T, ConsumeError>>> {
        self.join_new_partitions();
        let count = self.lanes.len();
        let mut are_all_over = true;
        for place in (self.turn..self.turn + count).map(|later| later % count) {
            match poll(&mut self.lanes[place], cx) {
                Poll::Ready(Some(next)) => {
                    self.turn = place + 1;
                    if next.is_err() {
                        self.begin_close();
                    }
                    return Poll::Ready(Some(next));
                }
                Poll::Ready(None) => {}
                Poll::Pending => are_all_over = false,
            }
        }
        if are_all_over { Poll::Ready(None) } else { Poll::Pending }
    }

    /// Consumes from partitions that have come to be meanwhile.
    fn join_new_partitions(&mut self) {
        let Some(whole) = &self.whole else { return };
        let count = self.lanes.iter().map(Lane::partitions_told).max().unwrap_or_default();
        for partition in u32::try_from(self.lanes.len()).unwrap_or(u32::MAX)..count {
            let queue = partitions::name(&whole.queue, partition);
            // Its lane finds out where it is.
            let builder = ConsumerBuilder { queue, ..whole.clone() };
            let lane = Lane::start(builder, Some(partition), ShardId::CATALOG);
            self.lanes.push(lane);
        }
    }

    fn begin_close(&self) {
        self.lanes.iter().for_each(Lane::begin_close);
    }
}

impl Stream for Consumer {
    type Item = Result<Delivery, ConsumeError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_delivery(cx)
    }
}
