//! What became of a command.

use skein_proto::ids::{GroupId, Offset, QueueId, Sequence, ShardId};

use super::{NodeOutcome, PublishedBatch, Settings};

/// What became of a [`Command`](super::Command).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The queue is open.
    Opened,
    /// The queue was forgotten.
    Closed,
    /// The queue is empty.
    Purged {
        /// How many messages it had.
        messages: u64,
    },
    /// The batch is in the queue.
    Published {
        /// The offset of its first message.
        first_offset: Offset,
        /// How many messages it has.
        count: u32,
        /// It had been appended before, and was not again.
        duplicate: bool,
    },
    /// A batch before this one is missing; nothing was appended.
    SequenceGap {
        /// The sequence that the producer must go on with.
        expected: Sequence,
    },
    /// The batch was appended so long ago that its offsets are forgotten; nothing was appended.
    SequenceTooOld,
    /// A batch was appended to each of several queues, or had been before.
    PublishedTogether {
        /// Where each of them is, in the order of the queues.
        batches: Vec<PublishedBatch>,
        /// They had been appended before.
        duplicate: bool,
    },
    /// One of several queues refuses its batch; nothing was appended to any of them.
    RefusedTogether {
        /// The place of the queue among them.
        place: usize,
        /// What becomes of its batch.
        because: Box<Outcome>,
    },
    /// The queue keeps as much as it may; nothing was appended.
    QueueFull,
    /// There are more partitions than the publisher chose among; nothing was appended.
    PartitionsChanged,
    /// The queue remembers as many ids of messages as it may; nothing was appended.
    TooManyIds,
    /// There is no such queue here.
    QueueNotFound,
    /// The queue has no such group.
    GroupNotFound,
    /// The group exists.
    GroupCreated {
        /// Its id.
        group: GroupId,
        /// False when it existed already; its position is then left as it was.
        created: bool,
    },
    /// The group wants other messages.
    GroupUpdated,
    /// The group goes on from elsewhere.
    GroupMoved {
        /// From where.
        offset: Offset,
    },
    /// The position lies after the end of the queue; nothing happened.
    PositionAfterEnd {
        /// The last possible position.
        next_offset: Offset,
    },
    /// The group has messages that wait to be moved to the dead-letter queue, and stays where it is.
    DeadLettersPending,
    /// The group was forgotten.
    GroupDeleted,
    /// The queue has as many groups as it may.
    TooManyGroups,
    /// The deliveries have ended.
    Settled,
    /// The dead letters are acked.
    DeadLettersMoved,
    /// What was kept too long is gone.
    Trimmed,
}

/// What became of a [`CatalogCommand`](super::CatalogCommand).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CatalogOutcome {
    /// The queue was created.
    Created {
        /// Its id.
        queue: QueueId,
        /// The shard that carries it.
        shard: ShardId,
    },
    /// A queue of that name exists, with the same settings.
    Exists {
        /// Its id.
        queue: QueueId,
        /// The shard that carries it.
        shard: ShardId,
    },
    /// A queue of that name exists, with other settings.
    ExistsDifferent {
        /// Its id.
        queue: QueueId,
        /// The shard that carries it.
        shard: ShardId,
        /// The settings that it has.
        settings: Settings,
    },
    /// The queue has new settings.
    Updated {
        /// Its id.
        queue: QueueId,
        /// The shard that carries it.
        shard: ShardId,
        /// The catalog's revision, by which newer settings are told from older ones.
        revision: u64,
    },
    /// The queue has other settings than it was expected to have; nothing happened.
    NotAsExpected,
    /// The queue was deleted.
    Deleted {
        /// The id that it had.
        queue: QueueId,
        /// The shard that carried it.
        shard: ShardId,
    },
    /// There is no queue of that name.
    NotFound,
    /// The queue that the settings name as dead-letter queue does not exist.
    DeadLetterQueueNotFound,
    /// A queue cannot be its own dead-letter queue.
    DeadLetterQueueCycle,
    /// Another queue names this one as its dead-letter queue.
    InUse {
        /// The name of one such queue.
        by: String,
    },
    /// A topic names this queue for messages that no other one gets.
    InUseByTopic {
        /// The name of one such topic.
        by: String,
    },
    /// A topic of that name exists where a queue is to be created, or the other way round.
    NameTaken,
    /// It is a partition, or would be if there were more of them: what is to become of it is said of the whole queue.
    IsPartition {
        /// That queue.
        of: String,
    },
    /// A queue or topic has the name that a partition would get.
    PartitionNameTaken {
        /// That name.
        name: String,
    },
    /// A queue cannot have fewer partitions than it has, nor any when it was created without.
    PartitionsOnlyRise {
        /// How many it has; 0 for one that has none.
        partitions: u32,
    },
    /// The topic was created.
    TopicCreated,
    /// A topic of that name exists.
    TopicExists {
        /// The queue that it names for messages that no other one gets.
        alternate: Option<String>,
    },
    /// The topic has changed.
    TopicChanged,
    /// The topic was so already.
    TopicUnchanged,
    /// The topic was deleted.
    TopicDeleted,
    /// There is no topic of that name.
    TopicNotFound,
    /// The topic has as many bindings as it may.
    TooManyBindings,
    /// Of a [`NodeCommand`](super::NodeCommand).
    Node(NodeOutcome),
}
