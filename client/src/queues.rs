//! Queues and consumer groups: creating, changing, looking at and deleting them.

use std::time::SystemTime;

use skein_proto::{
    broker::{self, Reason, queues_client::QueuesClient},
    ids::{NodeId, Offset, QueueId, ShardId},
};

use crate::{
    client::{Client, Repeat},
    error::Error,
    filter::Filter,
    position::Position,
    settings::{QueueSettings, QueueUpdate},
    topology,
    wire_time::wall_time,
};

/// A queue, a partition of one, or all partitions taken together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Unique among the queues that exist.
    pub name: String,
    /// Unique among all queues that ever were.
    pub id: QueueId,
    /// The Raft group that keeps it.
    pub shard: ShardId,
    /// How it treats its messages.
    pub settings: QueueSettings,
    /// None while its shard has no leader.
    pub leader: Option<NodeId>,
    /// The oldest message that is kept.
    pub first_offset: Offset,
    /// What the next message gets.
    pub next_offset: Offset,
    /// How many messages are kept.
    pub message_count: u64,
    /// How many bytes they have.
    pub message_bytes: u64,
    /// Who reads it.
    pub groups: Vec<Group>,
}

/// A consumer group of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Unique in its queue.
    pub name: String,
    /// Everything before it is acked.
    pub acked_floor: Offset,
    /// Messages that are not acked yet, leased ones included.
    pub unacked_count: u64,
    /// The bytes of the batches that hold messages from `acked_floor` on.
    pub unacked_bytes: u64,
    /// When the oldest message that is not acked was published; none when all are acked.
    pub oldest_unacked_at: Option<SystemTime>,
    /// Messages that a consumer holds now.
    pub leased_count: u64,
    /// Messages that are not due yet: to be delivered later, or returned with a delay.
    pub delayed_count: u64,
    /// Consumers that are connected.
    pub consumer_count: u32,
    /// Messages that were returned at least once and are not acked yet.
    pub returned_count: u64,
    /// Messages moved to the dead-letter queue since the group exists.
    pub dead_lettered_count: u64,
    /// Messages given up and dropped since the group exists.
    pub dropped_count: u64,
    /// Which messages it wants; none for all.
    pub filter: Option<Filter>,
}

impl Client {
    /// Creates a queue, and says whether it did: a queue that exists with the same settings is left as it is. When
    /// an answer got lost and the call was repeated, this is false even though this call created the queue.
    ///
    /// # Errors
    /// When a queue of that name exists with other settings, a name or setting is not allowed, or the cluster does
    /// not answer.
    pub async fn create_queue(&self, name: &str, settings: QueueSettings) -> Result<bool, Error> {
        self.create_queue_at(name, settings, "").await
    }

    /// Creates a queue in the shard of another one, and otherwise like [`Client::create_queue`]:
    /// [`Client::send_together`] publishes to both at once.
    ///
    /// # Errors
    /// Like [`Client::create_queue`], when the other queue does not exist or has partitions, and when a queue of that
    /// name exists in another shard ([`Reason::NotColocated`]).
    pub async fn create_colocated_queue(
        &self,
        name: &str,
        settings: QueueSettings,
        with: &str,
    ) -> Result<bool, Error> {
        self.create_queue_at(name, settings, with).await
    }

    async fn create_queue_at(
        &self,
        name: &str,
        settings: QueueSettings,
        colocated_with: &str,
    ) -> Result<bool, Error> {
        let request = broker::CreateQueueRequest {
            name: name.to_owned(),
            settings: Some(settings.try_into_wire()?),
            colocated_with: colocated_with.to_owned(),
        };
        let answer = self
            .call(Repeat::Always, None, |channel| {
                let request = request.clone();
                async move { QueuesClient::new(channel).create_queue(request).await }
            })
            .await?;
        if let Some(queue) = answer.queue {
            self.router().remember_shard(name, ShardId::new(queue.shard_id));
        }
        Ok(answer.created)
    }

    /// Changes settings of a queue, which goes on meanwhile, and gives it as it is then. Waits until the queue behaves
    /// that way.
    ///
    /// # Errors
    /// When the queue does not exist, a setting is not allowed, or the cluster does not answer; in that last case the
    /// settings may have been changed.
    pub async fn update_queue(&self, name: &str, update: QueueUpdate) -> Result<Queue, Error> {
        if update.is_empty() {
            // On the wire, none named would mean all.
            return self.get_queue(name).await;
        }
        let request = update.try_into_wire(name)?;
        let answer = self
            .call(Repeat::Always, None, |channel| {
                let request = request.clone();
                async move { QueuesClient::new(channel).update_queue(request).await }
            })
            .await?;
        Ok(answer.queue.unwrap_or_default().into())
    }

    /// Looks at a queue.
    ///
    /// # Errors
    /// When the queue does not exist, or the cluster does not answer.
    pub async fn get_queue(&self, name: &str) -> Result<Queue, Error> {
        let answer = self
            .call(Repeat::Always, self.router().shard_of(name), |channel| {
                let request = broker::GetQueueRequest { name: name.to_owned() };
                async move { QueuesClient::new(channel).get_queue(request).await }
            })
            .await?;
        let queue = Queue::from(answer.queue.unwrap_or_default());
        self.router().remember_shard(name, queue.shard);
        Ok(queue)
    }

    /// Lists all queues by name. The counts may lag a moment behind.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub async fn list_queues(&self) -> Result<Vec<Queue>, Error> {
        self.list_queues_with_prefix("").await
    }

    /// Lists the queues whose names start with `prefix`, by name. The counts may lag a moment behind.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub async fn list_queues_with_prefix(&self, prefix: &str) -> Result<Vec<Queue>, Error> {
        let mut queues: Vec<Queue> = Vec::new();
        loop {
            let after = queues.last().map(|queue| queue.name.clone()).unwrap_or_default();
            let request = broker::ListQueuesRequest { prefix: prefix.to_owned(), after, page_size: 0 };
            let page = self
                .call(Repeat::Always, None, |channel| {
                    let request = request.clone();
                    async move { QueuesClient::new(channel).list_queues(request).await }
                })
                .await?;
            let is_last = !page.more || page.queues.is_empty();
            queues.extend(page.queues.into_iter().map(Queue::from));
            if is_last {
                return Ok(queues);
            }
        }
    }

    /// Deletes a queue with its groups and messages.
    ///
    /// # Errors
    /// When the queue does not exist, is the dead-letter queue of another, or the cluster does not answer.
    pub async fn delete_queue(&self, name: &str) -> Result<(), Error> {
        let deleted = self
            .call(Repeat::Always, None, |channel| {
                let request = broker::DeleteQueueRequest { name: name.to_owned(), queue_id: 0 };
                async move { QueuesClient::new(channel).delete_queue(request).await }
            })
            .await;
        self.router().forget_shard(name);
        gone_already(deleted.map(drop), Reason::QueueNotFound)
    }

    /// Deletes all messages of a queue, and says how many; offsets go on where they were. When an answer got lost
    /// and the call was repeated, the messages deleted the first time are not counted.
    ///
    /// # Errors
    /// When the queue does not exist, or the cluster does not answer.
    pub async fn purge_queue(&self, name: &str) -> Result<u64, Error> {
        let answer = self
            .call(Repeat::Always, self.router().shard_of(name), |channel| {
                let request = broker::PurgeQueueRequest { name: name.to_owned() };
                async move { QueuesClient::new(channel).purge_queue(request).await }
            })
            .await?;
        Ok(answer.purged_messages)
    }

    /// Creates a consumer group that begins to read at `position`, and says whether it did: one that exists is left as
    /// it is. When an answer got lost and the call was repeated, this is false even though this call created the group.
    ///
    /// # Errors
    /// When the queue does not exist, the name is not allowed, the position is after the end of the queue, or the
    /// cluster does not answer.
    pub async fn create_group(&self, queue: &str, group: &str, position: Position) -> Result<bool, Error> {
        self.create_group_of(queue, group, position, None).await
    }

    /// Creates a consumer group that wants only some messages, and otherwise like [`Client::create_group`]. One that
    /// exists is left as it is, with the filter that it has.
    ///
    /// # Errors
    /// Like [`Client::create_group`], and when the filter is too deep or too large or its pattern cannot be read.
    pub async fn create_filtered_group(
        &self,
        queue: &str,
        group: &str,
        position: Position,
        filter: Filter,
    ) -> Result<bool, Error> {
        self.create_group_of(queue, group, position, Some(filter.into_wire())).await
    }

    async fn create_group_of(
        &self,
        queue: &str,
        group: &str,
        position: Position,
        filter: Option<broker::Filter>,
    ) -> Result<bool, Error> {
        let request = broker::CreateGroupRequest {
            queue: queue.to_owned(),
            group: group.to_owned(),
            position: Some(position.into_wire()),
            filter,
            ..broker::CreateGroupRequest::default()
        };
        let answer = self
            .call(Repeat::Always, self.router().shard_of(queue), |channel| {
                let request = request.clone();
                async move { QueuesClient::new(channel).create_group(request).await }
            })
            .await?;
        Ok(answer.created)
    }

    /// Sets which messages a consumer group wants from now on; all without a filter. Its consumers stay connected.
    ///
    /// # Errors
    /// When the queue or the group does not exist, the filter is not allowed, or the cluster does not answer.
    pub async fn set_filter(&self, queue: &str, group: &str, filter: Option<Filter>) -> Result<Group, Error> {
        let request = broker::UpdateGroupRequest {
            queue: queue.to_owned(),
            group: group.to_owned(),
            filter: filter.map(Filter::into_wire),
        };
        let answer = self
            .call(Repeat::Always, self.router().shard_of(queue), |channel| {
                let request = request.clone();
                async move { QueuesClient::new(channel).update_group(request).await }
            })
            .await?;
        Ok(answer.group.unwrap_or_default().into())
    }

    /// Lets a consumer group go on reading at `position`, back or ahead, and gives the offset that this is. What its
    /// consumers hold is taken from them: their acks fail, and what lies after the position is delivered again. Waits
    /// while dead letters of the group are being moved.
    ///
    /// # Errors
    /// When the queue or the group does not exist, the position is after the end of the queue, or the cluster does not
    /// answer; in that last case the group may have been moved.
    pub async fn seek_group(&self, queue: &str, group: &str, position: Position) -> Result<Offset, Error> {
        let answer = self
            .call(Repeat::Always, self.router().shard_of(queue), |channel| {
                let request = broker::SeekGroupRequest {
                    queue: queue.to_owned(),
                    group: group.to_owned(),
                    position: Some(position.into_wire()),
                };
                async move { QueuesClient::new(channel).seek_group(request).await }
            })
            .await?;
        Ok(Offset::new(answer.offset))
    }

    /// Deletes a consumer group; its consumers are disconnected.
    ///
    /// # Errors
    /// When the queue or the group does not exist, or the cluster does not answer.
    pub async fn delete_group(&self, queue: &str, group: &str) -> Result<(), Error> {
        let deleted = self
            .call(Repeat::Always, self.router().shard_of(queue), |channel| {
                let request = broker::DeleteGroupRequest { queue: queue.to_owned(), group: group.to_owned() };
                async move { QueuesClient::new(channel).delete_group(request).await }
            })
            .await;
        gone_already(deleted.map(drop), Reason::GroupNotFound)
    }

    /// Looks at a consumer group.
    ///
    /// # Errors
    /// When the queue or the group does not exist, or the cluster does not answer.
    pub async fn get_group(&self, queue: &str, group: &str) -> Result<Group, Error> {
        let answer = self
            .call(Repeat::Always, self.router().shard_of(queue), |channel| {
                let request = broker::GetGroupRequest { queue: queue.to_owned(), group: group.to_owned() };
                async move { QueuesClient::new(channel).get_group(request).await }
            })
            .await?;
        Ok(answer.group.unwrap_or_default().into())
    }
}

/// A repeated deletion that finds nothing has happened the first time.
fn gone_already(deleted: Result<(), Error>, gone: Reason) -> Result<(), Error> {
    match deleted {
        Err(Error::OutcomeUnknown(cause)) if cause.reason == gone => Ok(()),
        other => other,
    }
}

impl From<broker::Queue> for Queue {
    fn from(wire: broker::Queue) -> Self {
        let counts = wire.counts.unwrap_or_default();
        Self {
            name: wire.name,
            id: QueueId::new(wire.queue_id),
            shard: ShardId::new(wire.shard_id),
            settings: wire.settings.unwrap_or_default().into(),
            leader: topology::node_id(wire.leader_node_id),
            first_offset: Offset::new(counts.first_offset),
            next_offset: Offset::new(counts.next_offset),
            message_count: counts.messages,
            message_bytes: counts.bytes,
            groups: counts.groups.into_iter().map(Group::from).collect(),
        }
    }
}

impl Queue {
    /// It consists of partitions, and is this queue only taken together: it has no id, shard and offsets of its own.
    #[must_use]
    pub fn is_partitioned(&self) -> bool {
        self.shard == ShardId::CATALOG
    }
}

impl Group {
    /// Nothing is left to be delivered now: all messages are acked, held by consumers, or not due yet.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.unacked_count <= self.leased_count + self.delayed_count
    }
}

impl From<broker::Group> for Group {
    fn from(wire: broker::Group) -> Self {
        Self {
            name: wire.name,
            acked_floor: Offset::new(wire.acked_floor),
            unacked_count: wire.unacked_messages,
            unacked_bytes: wire.unacked_bytes,
            oldest_unacked_at: (wire.oldest_unacked_at_ms != 0).then(|| wall_time(wire.oldest_unacked_at_ms)),
            leased_count: wire.leased_messages,
            delayed_count: wire.delayed_messages,
            consumer_count: wire.consumers,
            returned_count: wire.returned_messages,
            dead_lettered_count: wire.dead_lettered_total,
            dropped_count: wire.dropped_total,
            filter: wire.filter.and_then(Filter::from_wire),
        }
    }
}
