//! The state cut into keyed records, so that a checkpoint rewrites only what changed.

use skein_proto::ids::{GroupId, NodeId, Offset, ProducerId, QueueId, Sequence, ShardId, TopicId};

use super::{Binding, Block, ClusterNode, DeadLetterRun, Growth, IdHash, PublishedBatch, Returned, Settings};
use crate::offsets::OffsetRange;

/// The name of a record. Keys sort so that everything about a queue lies together, its [`QueuePart::Head`] first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordKey {
    /// The one [`ShardRecord`].
    Shard,
    /// A part of a queue.
    Queue {
        /// The queue.
        queue: QueueId,
        /// Which part.
        part: QueuePart,
    },
    /// The one [`CatalogRecord`].
    Catalog,
    /// A [`CatalogQueueRecord`].
    CatalogQueue {
        /// The queue.
        queue: QueueId,
    },
    /// A [`CatalogTopicRecord`].
    CatalogTopic {
        /// The topic.
        topic: TopicId,
    },
    /// A [`ClusterNode`].
    CatalogNode {
        /// The node.
        node: NodeId,
    },
}

/// The parts that a queue is cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum QueuePart {
    /// The [`QueueRecord`].
    Head,
    /// A [`GroupRecord`].
    Group(GroupId),
    /// A [`PageRecord`], by the number of the page.
    Page(u64),
    /// A [`ProducerRecord`].
    Producer(ProducerId),
    /// An [`IdsRecord`], by the number of the page.
    Ids(u64),
}

/// One piece of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Under [`RecordKey::Shard`].
    Shard(ShardRecord),
    /// Under [`QueuePart::Head`].
    Queue(QueueRecord),
    /// Under [`QueuePart::Group`].
    Group(GroupRecord),
    /// Under [`QueuePart::Page`].
    Page(PageRecord),
    /// Under [`QueuePart::Producer`].
    Producer(ProducerRecord),
    /// Under [`QueuePart::Ids`].
    Ids(IdsRecord),
    /// Under [`RecordKey::Catalog`].
    Catalog(CatalogRecord),
    /// Under [`RecordKey::CatalogQueue`].
    CatalogQueue(CatalogQueueRecord),
    /// Under [`RecordKey::CatalogTopic`].
    CatalogTopic(CatalogTopicRecord),
    /// Under [`RecordKey::CatalogNode`].
    CatalogNode(ClusterNode),
}

/// What concerns a whole shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardRecord {
    /// The highest leader time seen.
    pub time_ms: u64,
    /// The highest index known to be on the disks of all replicas.
    pub replicated_index: u64,
    /// How much time has passed, by what idle producers are forgotten.
    pub elapsed_ms: u64,
    /// The queues that were closed and never open again: the first and the last id of each range, lowest first.
    pub closed_queues: Vec<(QueueId, QueueId)>,
}

/// What concerns a whole queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueRecord {
    /// Its name.
    pub name: String,
    /// How it behaves.
    pub settings: Settings,
    /// The oldest message that is kept.
    pub first_offset: Offset,
    /// The offset of the next message.
    pub next_offset: Offset,
    /// How many messages are kept.
    pub message_count: u64,
    /// The number of the next block.
    pub next_block: u64,
    /// The id of the next group.
    pub next_group: GroupId,
    /// The catalog's revision when it took these settings.
    pub settings_revision: u64,
    /// No group needs anything below it, but to move it to the dead-letter queue.
    pub length_floor: Offset,
    /// When anybody last published to it or settled anything, by the core's time.
    pub used_at_ms: u64,
    /// The number of the first remembered id, or of the next one.
    pub first_id: u64,
    /// How the partitions of which it is one became more, first to last.
    pub growths: Vec<Growth>,
}

/// A consumer group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRecord {
    /// Its name.
    pub name: String,
    /// Everything before it is acked.
    pub acked_floor: Offset,
    /// What is acked above the floor.
    pub acked: Vec<OffsetRange>,
    /// What came back.
    pub returned: Vec<(OffsetRange, Returned)>,
    /// What was given up and waits to be moved, in order of sequence.
    pub dead_letters: Vec<DeadLetterRun>,
    /// The sequence of the next dead letter.
    pub next_dead_letter: Sequence,
    /// How many messages went to the dead-letter queue.
    pub dead_lettered_total: u64,
    /// How many messages were given up without a dead-letter queue.
    pub dropped_total: u64,
    /// How often it was moved.
    pub seek_count: u32,
    /// Which messages it wants; empty for all.
    pub filter: Vec<u8>,
}

/// The kept ones of [`PAGE_BLOCKS`](super::PAGE_BLOCKS) consecutive blocks of a queue. May begin with blocks below the
/// queue's first offset: a page is not written again only because its front is no longer needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRecord {
    /// The blocks, at least one. Their offsets and raft indexes rise.
    pub blocks: Vec<Block>,
}

/// What is remembered of a producer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerRecord {
    /// The sequence of its newest batch.
    pub last: Sequence,
    /// The shard's elapsed time when it last published.
    pub used_at_ms: u64,
    /// Its newest batches, oldest first; the last one has the sequence `last`.
    pub recent: Vec<PublishedBatch>,
    /// What topics routed here, by rising sequence.
    pub routed: Vec<RoutedBatch>,
}

/// Ids of messages, by rising number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdsRecord {
    /// That of the first one.
    pub first_number: u64,
    /// With the core's time when they were published.
    pub ids: Vec<(u64, IdHash)>,
}

/// What a topic routed here of a published batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutedBatch {
    /// Which batch of its producer.
    pub sequence: Sequence,
    /// The places in it of the messages that are stored.
    pub places: Vec<OffsetRange>,
}

/// What concerns the whole catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogRecord {
    /// The id of the next queue.
    pub next_queue: QueueId,
    /// Counts the changes.
    pub revision: u64,
    /// The highest index known to be on the disks of all replicas.
    pub replicated_index: u64,
    /// The id of the next topic.
    pub next_topic: TopicId,
    /// The id of the next node.
    pub next_node: NodeId,
}

/// A queue as the catalog knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogQueueRecord {
    /// Its name.
    pub name: String,
    /// The shard that carries it.
    pub shard: ShardId,
    /// How it behaves.
    pub settings: Settings,
    /// The catalog's revision when it took these settings.
    pub settings_revision: u64,
}

/// A topic as the catalog knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogTopicRecord {
    /// Its name.
    pub name: String,
    /// Which queues get which messages, in order.
    pub bindings: Vec<Binding>,
    /// The queue that gets messages that no other one gets.
    pub alternate: Option<QueueId>,
    /// The catalog's revision when it changed last.
    pub revision: u64,
}

/// Why records are not a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The record belongs to another kind of state, or to another kind of key.
    #[error("record {0:?} does not belong here")]
    Misplaced(RecordKey),
    /// A part of a queue came without, or before, the queue's head.
    #[error("record {0:?} belongs to a queue that was not restored before it")]
    Orphan(RecordKey),
    /// The records of a queue contradict each other.
    #[error("record {key:?} contradicts the others: {what}")]
    Contradiction {
        /// The record that does not fit.
        key: RecordKey,
        /// What is wrong with it.
        what: &'static str,
    },
}
