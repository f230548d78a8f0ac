//! What can be done to a shard and to the catalog. Commands are replicated.

use skein_proto::ids::{GroupId, Offset, ProducerId, QueueId, Sequence};

use super::{BatchRun, IdHash, NodeCommand, Properties, Settings};
use crate::offsets::OffsetRange;

/// What an entry says about itself, besides its commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryMeta {
    /// Its index in the shard's log.
    pub index: u64,
    /// The leader's wall clock when it was proposed. May go back from one leader to the next.
    pub leader_time_ms: u64,
    /// Every replica had the log up to this index on disk when it was proposed.
    pub replicated_index: u64,
}

/// One change of a shard that carries messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Begins a queue that the catalog placed here; one that is open takes the name and settings if they are not older
    /// than those it has, and one that was closed stays closed.
    OpenQueue {
        /// The id that the catalog gave it.
        queue: QueueId,
        /// Its name in the catalog.
        name: String,
        /// How it behaves.
        settings: Settings,
        /// The catalog's revision when it took these settings.
        revision: u64,
    },
    /// Forgets a queue with everything in it, and for ever: its id does not open again, whether or not it was open.
    CloseQueue {
        /// The queue to forget.
        queue: QueueId,
    },
    /// Deletes all messages of a queue; its groups stay, at its end.
    PurgeQueue {
        /// The queue to empty.
        queue: QueueId,
    },
    /// Appends a batch to a queue.
    Publish {
        /// The queue to append to.
        queue: QueueId,
        /// Who sent it, and as which of its batches; nothing for a batch that is not deduplicated.
        producer: Option<(ProducerId, Sequence)>,
        /// How many messages are in the batch.
        count: u32,
        /// Where the batch lies in the entry that carries this command.
        block: BlockSpan,
        /// The batch in parts that are to be treated alike, which together are the whole; none where all is ordinary.
        runs: Vec<BatchRun>,
        /// How many partitions its publisher knew of when it chose this one; 0 when it did not choose.
        partitions: u32,
    },
    /// Appends what is not there yet of a batch, whose messages are looked at one by one.
    PublishEach {
        /// The queue to append to.
        queue: QueueId,
        /// Who sent it, and as which of its batches; nothing for a batch that may be stored twice.
        producer: Option<(ProducerId, Sequence)>,
        /// Where the messages lie in the entry that carries this command.
        block: BlockSpan,
        /// Each of them.
        messages: Vec<EachMessage>,
        /// How they came from a topic; nothing when the batch was published to the queue.
        routed: Option<Routed>,
        /// As in [`Command::Publish`].
        partitions: u32,
    },
    /// Appends a batch to each of several queues, or nothing to any of them.
    PublishTogether {
        /// As in [`Command::Publish`], and the same for all of them.
        producer: Option<(ProducerId, Sequence)>,
        /// What goes to each queue. Each is named once.
        parts: Vec<PublishPart>,
    },
    /// Creates a consumer group, unless one of that name exists.
    CreateGroup {
        /// The queue that it reads.
        queue: QueueId,
        /// Its name, unique in the queue.
        name: String,
        /// Where it begins.
        start: Position,
        /// Which messages it wants, which the core keeps and does not read; empty for all.
        filter: Vec<u8>,
    },
    /// Lets a group want other messages.
    UpdateGroup {
        /// The queue that it reads.
        queue: QueueId,
        /// The group.
        group: GroupId,
        /// As in [`Command::CreateGroup`].
        filter: Vec<u8>,
    },
    /// Lets a group go on from elsewhere, with everything there as if it had never been delivered.
    SeekGroup {
        /// The queue that it reads.
        queue: QueueId,
        /// The group to move.
        group: GroupId,
        /// Where it goes on.
        to: Position,
    },
    /// Forgets a consumer group.
    DeleteGroup {
        /// The queue that it reads.
        queue: QueueId,
        /// The group to forget.
        group: GroupId,
    },
    /// Ends deliveries: some messages are done, others come back.
    Settle {
        /// The queue they are from.
        queue: QueueId,
        /// The group that they were delivered to.
        group: GroupId,
        /// Done.
        acks: Vec<OffsetRange>,
        /// To be delivered again, or given up.
        returns: Vec<Return>,
        /// Given up: nobody took them in time.
        expired: Vec<OffsetRange>,
        /// How often the group had been moved when they were delivered. When it was moved since, nothing happens.
        seek_count: u32,
    },
    /// Lets go of what the queue keeps too long.
    Trim {
        /// The queue to trim.
        queue: QueueId,
    },
    /// The group's dead letters up to a sequence are in the dead-letter queue.
    DeadLettersMoved {
        /// The queue they are from.
        queue: QueueId,
        /// The group that gave them up.
        group: GroupId,
        /// The last of those that were moved.
        up_to: Sequence,
    },
}

/// A batch for one of several queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishPart {
    /// The queue to append to.
    pub queue: QueueId,
    /// How many messages are in the batch.
    pub count: u32,
    /// Where the batch lies in the entry that carries the command.
    pub block: BlockSpan,
    /// As in [`Command::Publish`].
    pub runs: Vec<BatchRun>,
}

/// A message that is looked at by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EachMessage {
    /// Its place in the batch that was published. They rise.
    pub place: u32,
    /// How many bytes it takes.
    pub length: u32,
    /// How to treat it.
    pub properties: Properties,
    /// Not to be delivered before this long after it was published.
    pub delay_ms: u64,
    /// Its id, where it has one that counts.
    pub id: Option<IdHash>,
}

/// How messages came from a topic, to which a producer published more than what came here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routed {
    /// The batch of the producer before it that came the same way; nothing for the first.
    pub follows: Option<Sequence>,
}

/// Bytes of an entry's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSpan {
    /// Where they begin, in bytes from the start of the payload.
    pub position: u32,
    /// How many bytes they are.
    pub length: u32,
}

/// A place in a queue to read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// The oldest message that is kept.
    First,
    /// The next message that is published.
    Next,
    /// This message or, where it is gone, the first one after it. At most that of the next message.
    Offset(Offset),
    /// The first message that was published at this time or later, in milliseconds since the Unix epoch.
    Time(u64),
}

/// Messages that come back from a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Return {
    /// Which messages.
    pub range: OffsetRange,
    /// The attempt that ended: 1 when they had been delivered for the first time.
    pub attempt: u32,
    /// Not to be delivered again before this wall-clock time; 0 for at once.
    pub not_before_ms: u64,
    /// Not to be delivered again at all.
    pub rejected: bool,
}

/// One change of the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CatalogCommand {
    /// Creates a queue and places it, unless one of that name exists.
    CreateQueue {
        /// Its name, unique in the cluster.
        name: String,
        /// How it behaves.
        settings: Settings,
        /// Shards 1 to this one carry messages; 0 is taken for 1.
        shard_count: u32,
        /// The name of a queue in whose shard it is to be; nothing for wherever the fewest are.
        colocated_with: Option<String>,
    },
    /// Lets a queue behave differently.
    UpdateQueue {
        /// Its name.
        name: String,
        /// How it must behave now, or else nothing happens.
        expected: Settings,
        /// How it shall behave.
        settings: Settings,
        /// As in [`CatalogCommand::CreateQueue`], for new partitions.
        shard_count: u32,
    },
    /// Creates a topic, unless one of that name exists.
    CreateTopic {
        /// Its name, unique in the cluster among topics and queues.
        name: String,
        /// The queue that gets messages that no other one gets.
        alternate: Option<String>,
    },
    /// Names another queue for messages that no other one gets.
    UpdateTopic {
        /// Its name.
        name: String,
        /// As in [`CatalogCommand::CreateTopic`].
        alternate: Option<String>,
    },
    /// Deletes a topic; its queues stay.
    DeleteTopic {
        /// Its name.
        name: String,
    },
    /// Lets a queue get messages of a topic.
    Bind {
        /// The topic.
        topic: String,
        /// The queue.
        queue: String,
        /// Which messages, which the core keeps and does not read; empty for all.
        filter: Vec<u8>,
    },
    /// Takes such a binding away.
    Unbind {
        /// The topic.
        topic: String,
        /// The queue.
        queue: String,
        /// As in [`CatalogCommand::Bind`].
        filter: Vec<u8>,
    },
    /// Deletes a queue.
    DeleteQueue {
        /// Its name.
        name: String,
        /// Only if it is this one.
        queue: Option<QueueId>,
    },
    /// Changes the cluster's nodes.
    Node(NodeCommand),
}
