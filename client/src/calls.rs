//! Publishing and receiving with single calls, for those who need no stream.

use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use skein_proto::{
    broker::Reason,
    ids::{Offset, ProducerId, Sequence},
    limits,
    node::{self, broker_client::BrokerClient},
    partitions,
};
use tonic::{Code, transport::Channel};

use crate::{
    client::{Client, Repeat},
    error::{Cause, Error, MalformedMessage, reason_of},
    message::{EncodableMessage, Message},
    wire_time::{duration_ms, wall_time},
};

/// A message taken with [`Client::receive`], to be settled by its token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The message.
    pub message: Message,
    /// Its position in the queue.
    pub offset: Offset,
    /// 1 on first delivery.
    pub attempt: u32,
    /// When it was published, by the clock of the node that led then.
    pub published_at: SystemTime,
    /// What to settle it by.
    pub lease_token: LeaseToken,
}

/// Stands for one delivery of one message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LeaseToken(String);

/// What to do with messages taken with [`Client::receive`].
#[derive(Debug, Clone, Default)]
pub struct Settlement {
    acks: Vec<String>,
    nacks: Vec<node::TokenNack>,
    extends: Vec<node::TokenExtend>,
}

/// One message that was not settled, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotSettled {
    /// Which one.
    pub lease_token: LeaseToken,
    /// For programs.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

/// How a batch is sent with a single call.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sending {
    /// A new one unless one is given.
    pub(crate) producer_id: Option<ProducerId>,
    /// Refused when no queue of the topic gets one of its messages.
    pub(crate) mandatory: bool,
    /// Its messages come from another queue.
    pub(crate) is_moved: bool,
    /// How many partitions the one that it goes to was chosen among; 0 when it was not.
    pub(crate) partitions: u32,
}

impl Client {
    /// Publishes messages as one batch, all or none, and returns the offset of the first; the others follow. A retry
    /// inside does not publish them twice. For more than a few messages a second use a [`Producer`](crate::Producer).
    ///
    /// # Errors
    /// When the queue does not exist, the batch is empty or too large (4 MiB, 16,384 messages), or the cluster does
    /// not answer; only in that last case may it have been published.
    pub async fn send(&self, queue: &str, messages: Vec<Message>) -> Result<Offset, Error> {
        let confirm = match self.partitions_of(queue).await? {
            Some(partitions) => self.send_to_partition(queue, partitions, messages).await?,
            None => self.send_batch(queue, messages, Sending::default()).await?,
        };
        Ok(Offset::new(confirm.first_offset))
    }

    /// Publishes a batch to each of several queues, all or none, and returns the offset of the first message in each.
    /// The queues are in the same shard: see [`Client::create_colocated_queue`]. A retry inside does not publish them
    /// twice.
    ///
    /// # Errors
    /// When there are no batches or more than 16, a queue does not exist, is named twice, or is in another shard than
    /// the first ([`Reason::NotColocated`]), has partitions or a deduplication window; when a batch is empty or too
    /// large, a queue is full, or the cluster does not answer. Only in that last case may they have been published.
    pub async fn send_together<Q: Into<String>>(
        &self,
        batches: impl IntoIterator<Item = (Q, Vec<Message>)>,
    ) -> Result<Vec<Offset>, Error> {
        let batches = batches.into_iter().map(|(queue, messages)| {
            Ok(node::QueueBatch { queue: queue.into(), batch: encode_batch(messages)? })
        });
        let mut batches = batches.collect::<Result<Vec<_>, Error>>()?.into_iter();
        let Some(node::QueueBatch { queue, batch }) = batches.next() else {
            let sentence = "there is no batch to publish; give at least one";
            return Err(Error::NotAccepted(Cause::new(Code::InvalidArgument, Reason::BatchEmpty, sentence)));
        };
        let shard = self.shard_of(&queue).await?;
        let request = node::SendRequest {
            queue,
            producer_id: random_producer_id(),
            sequence: Sequence::FIRST.get(),
            batch,
            also: batches.collect(),
            ..node::SendRequest::default()
        };
        let answer = self
            .call(Repeat::Always, Some(shard), |channel| {
                let request = request.clone();
                async move { broker(channel).send(request).await }
            })
            .await?;
        let confirms = answer.confirm.into_iter().chain(answer.also);
        Ok(confirms.map(|confirm| Offset::new(confirm.first_offset)).collect())
    }

    /// Publishes messages that belong to the same partition. When there come to be more, they may not any longer.
    async fn send_to_partition(
        &self,
        queue: &str,
        mut partitions: u32,
        messages: Vec<Message>,
    ) -> Result<node::Confirm, Error> {
        loop {
            let partition = partition_of(&messages, partitions)?;
            let sending = Sending { partitions, ..Sending::default() };
            let sent = self.send_batch(&partitions::name(queue, partition), messages.clone(), sending).await;
            match sent {
                Err(error) if error.reason() == Reason::PartitionsChanged => {
                    let known = partitions;
                    partitions = self.partitions_of(queue).await?.unwrap_or_default();
                    if partitions <= known {
                        return Err(error);
                    }
                }
                sent => return sent,
            }
        }
    }

    /// Moves messages to a queue: the same as the first batch of a producer of this id. However often it is sent, it is
    /// stored once, whatever ids its messages have.
    pub(crate) async fn send_as(
        &self,
        producer_id: ProducerId,
        queue: &str,
        messages: Vec<Message>,
    ) -> Result<Offset, Error> {
        let sending = Sending { producer_id: Some(producer_id), is_moved: true, ..Sending::default() };
        let confirm = self.send_batch(queue, messages, sending).await?;
        Ok(Offset::new(confirm.first_offset))
    }

    /// The first batch of a producer, to a queue or a topic.
    pub(crate) async fn send_batch(
        &self,
        destination: &str,
        messages: Vec<Message>,
        sending: Sending,
    ) -> Result<node::Confirm, Error> {
        let batch = encode_batch(messages)?;
        let request = node::SendRequest {
            queue: destination.to_owned(),
            producer_id: sending.producer_id.map_or_else(random_producer_id, ProducerId::get),
            sequence: Sequence::FIRST.get(),
            batch,
            mandatory: sending.mandatory,
            ignore_message_ids: sending.is_moved,
            partitions: sending.partitions,
            also: Vec::new(),
        };
        let shard = self.shard_to_publish_to(destination).await?;
        let answer = self
            .call(Repeat::Always, Some(shard), |channel| {
                let request = request.clone();
                async move { broker(channel).send(request).await }
            })
            .await?;
        Ok(answer.confirm.unwrap_or_default())
    }

    /// Takes up to `messages_max` messages for `group`, and waits up to `wait` for the first one. Each is leased until
    /// it is settled with [`Client::settle`] or its lease runs out. Returns nothing when there is nothing. Not
    /// repeated inside when an answer got lost: messages on it are delivered again after their leases.
    ///
    /// # Errors
    /// When the queue does not exist, or the cluster does not answer.
    pub async fn receive(
        &self,
        queue: &str,
        group: &str,
        messages_max: u32,
        wait: Duration,
    ) -> Result<Vec<Received>, Error> {
        let shard = self.shard_of(queue).await?;
        let deadline = tokio::time::Instant::now() + wait;
        // Longer waits are several calls: an answer that takes its time must not be taken for a dead node.
        let wait_max = self.attempt_timeout() / 2;
        loop {
            let rest = deadline.saturating_duration_since(tokio::time::Instant::now());
            let request = node::ReceiveRequest {
                queue: queue.to_owned(),
                group: group.to_owned(),
                messages_max,
                bytes_max: limits::BATCH_BYTES_MAX as u64,
                wait_ms: duration_ms(rest.min(wait_max)),
            };
            let answer = self
                .call(Repeat::IfNotDone, Some(shard), |channel| {
                    let request = request.clone();
                    async move { broker(channel).receive(request).await }
                })
                .await?;
            if !answer.messages.is_empty() || rest <= wait_max {
                return answer.messages.into_iter().map(received).collect();
            }
        }
    }

    /// Acks, returns or extends messages taken with [`Client::receive`]. Returns those that were not settled.
    ///
    /// # Errors
    /// When the queue or group does not exist, or the cluster does not answer; in that last case some may have been
    /// settled.
    pub async fn settle(
        &self,
        queue: &str,
        group: &str,
        settlement: Settlement,
    ) -> Result<Vec<NotSettled>, Error> {
        let shard = self.shard_of(queue).await?;
        let request = settlement.into_wire(queue, group);
        let answer = self
            .call(Repeat::IfNotDone, Some(shard), |channel| {
                let request = request.clone();
                async move { broker(channel).settle(request).await }
            })
            .await?;
        let not_settled = |failure: node::TokenFailure| NotSettled {
            reason: reason_of(failure.reason),
            lease_token: LeaseToken(failure.lease_token),
            message: failure.message,
        };
        Ok(answer.failures.into_iter().map(not_settled).collect())
    }
}

impl Settlement {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The message is done with.
    #[must_use]
    pub fn ack(mut self, lease_token: LeaseToken) -> Self {
        self.acks.push(lease_token.0);
        self
    }

    /// The message is given back, to be delivered again after the redelivery delay of the queue; at once unless it has
    /// one.
    #[must_use]
    pub fn nack(mut self, lease_token: LeaseToken) -> Self {
        let lease_token = lease_token.0;
        self.nacks.push(node::TokenNack { lease_token, delay_ms: None, reject: false });
        self
    }

    /// The message is given up: it is not delivered to the group again, and goes to the dead-letter queue, where there
    /// is one.
    #[must_use]
    pub fn reject(mut self, lease_token: LeaseToken) -> Self {
        let lease_token = lease_token.0;
        self.nacks.push(node::TokenNack { lease_token, delay_ms: None, reject: true });
        self
    }

    /// The message is given back, to be delivered again no sooner than `delay` from now, whatever the queue says. In
    /// milliseconds, at most a day.
    #[must_use]
    pub fn nack_after(mut self, lease_token: LeaseToken, delay: Duration) -> Self {
        let (lease_token, delay_ms) = (lease_token.0, Some(duration_ms(delay)));
        self.nacks.push(node::TokenNack { lease_token, delay_ms, reject: false });
        self
    }

    /// The lease ends `lease` from now. In milliseconds, at most a day.
    #[must_use]
    pub fn extend(mut self, lease_token: LeaseToken, lease: Duration) -> Self {
        self.extends.push(node::TokenExtend { lease_token: lease_token.0, lease_ms: duration_ms(lease) });
        self
    }

    fn into_wire(self, queue: &str, group: &str) -> node::SettleRequest {
        node::SettleRequest {
            queue: queue.to_owned(),
            group: group.to_owned(),
            acks: self.acks,
            nacks: self.nacks,
            extends: self.extends,
        }
    }
}

impl LeaseToken {
    /// The token as text, to be kept or passed on.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for LeaseToken {
    fn from(token: String) -> Self {
        Self(token)
    }
}

/// A broker client that takes everything that nodes send.
pub(crate) fn broker(channel: Channel) -> BrokerClient<Channel> {
    BrokerClient::new(channel)
        .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX)
}

/// Never 0, which would ask for no deduplication.
pub(crate) fn random_producer_id() -> u64 {
    rand::random_range(1..=u64::MAX)
}

fn received(wire: node::ReceivedMessage) -> Result<Received, Error> {
    Ok(Received {
        message: Message::from_wire(wire.message).map_err(malformed)?,
        offset: Offset::new(wire.offset),
        attempt: wire.attempt,
        published_at: wall_time(wire.published_at_ms),
        lease_token: LeaseToken(wire.lease_token),
    })
}

pub(crate) fn malformed(error: MalformedMessage) -> Error {
    Error::NotAccepted(Cause::new(Code::DataLoss, Reason::MalformedMessage, error.to_string()))
}

/// The one partition that all of these belong to; any where they have neither key nor id.
fn partition_of(messages: &[Message], partitions: u32) -> Result<u32, Error> {
    let keys = messages.iter().filter_map(Message::spread_by);
    let partition = partitions::of_all(keys, partitions).map_err(|partitions::Apart| {
        let sentence = "the messages belong to several partitions, and are published all or none; send those with the \
                        same key together, or use a producer";
        Error::NotAccepted(Cause::new(Code::InvalidArgument, Reason::Partitioned, sentence))
    })?;
    Ok(partition.unwrap_or_else(|| rand::random_range(0..partitions)))
}

fn encode_batch(messages: Vec<Message>) -> Result<Bytes, Error> {
    if messages.len() > limits::BATCH_MESSAGES_MAX {
        return Err(batch_too_large());
    }
    let mut batch = BytesMut::new();
    for message in messages {
        let message = EncodableMessage::new(message);
        if batch.len() + message.batch_bytes() > limits::BATCH_BYTES_MAX {
            return Err(batch_too_large());
        }
        message.append_to(&mut batch);
    }
    Ok(batch.freeze())
}

fn batch_too_large() -> Error {
    let sentence = format!(
        "a batch may have {} messages and {} bytes; send several, or use a producer",
        limits::BATCH_MESSAGES_MAX,
        limits::BATCH_BYTES_MAX
    );
    Error::NotAccepted(Cause::new(Code::InvalidArgument, Reason::BatchTooLarge, sentence))
}
