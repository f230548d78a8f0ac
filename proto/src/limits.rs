//! Every maximum that both ends of a wire must agree on, and why it is what it is.

/// The largest message a node takes unless its configuration says otherwise, encoded, in bytes.
pub const MESSAGE_BYTES_MAX_DEFAULT: usize = 1 << 20;

/// The largest message that a node can be configured to take: it must fit a batch.
pub const MESSAGE_BYTES_MAX_CEILING: usize = BATCH_BYTES_MAX / 2;

/// The largest batch, encoded, in bytes. Larger ones gain nothing: an entry of 1 MiB already amortises its fsync.
pub const BATCH_BYTES_MAX: usize = 4 << 20;

/// The most messages in a batch. Bounds the work of taking one apart.
pub const BATCH_MESSAGES_MAX: usize = 16_384;

/// The largest gRPC message that nodes and clients decode. A batch plus room for the fields around it;
/// deliveries are gathered up to [`BATCH_BYTES_MAX`].
pub const GRPC_MESSAGE_BYTES_MAX: usize = 2 * BATCH_BYTES_MAX;

/// The longest name of a queue or group, in bytes. Fits a file name and a metric label.
pub const NAME_BYTES_MAX: usize = 200;

/// The most batches a producer has unconfirmed. A node remembers as many outcomes for each producer.
pub const PRODUCER_BATCHES_IN_FLIGHT_MAX: usize = 64;

/// The most settlements of one stream that wait for their answer.
pub const SETTLES_IN_FLIGHT_MAX: usize = 256;

/// The most ranges of messages that a consumer resumes. Each is one that it holds; more than a few hundred take odd
/// habits of acking.
pub const RESUME_RANGES_MAX: usize = 65_536;

/// The most parts of one settlement: ranges of offsets, or lease tokens.
pub const SETTLE_RANGES_MAX: usize = 16_384;

/// The most messages a consumer may hold unsettled. Bounds what a node keeps for one that does not read.
pub const CREDIT_MESSAGES_MAX: u32 = 1 << 17;

/// The most consumers of one group.
pub const GROUP_CONSUMERS_MAX: usize = 1_024;

/// The most groups of one queue.
pub const QUEUE_GROUPS_MAX: usize = 1_024;

/// The longest lease, and the longest delay of a returned message, in milliseconds: a day.
pub const SETTLE_DURATION_MS_MAX: u32 = 24 * 60 * 60 * 1_000;

/// The highest priority of a message.
pub const PRIORITY_MAX: u8 = 9;

/// The largest share of deliveries that a queue can give to less urgent messages, in percent.
pub const LOWER_PRIORITY_PERCENT_MAX: u32 = 50;

/// The longest that a message can be delayed or can wait, in milliseconds: a year.
pub const DELAY_MS_MAX: u64 = 366 * 24 * 60 * 60 * 1_000;

/// The flow-control window of one gRPC stream, in bytes: two of the largest messages, so that one can be in flight
/// while the other is read.
pub const STREAM_WINDOW_BYTES: u32 = 2 * GRPC_MESSAGE_BYTES_MAX as u32;

/// The flow-control window of one connection, in bytes. Larger than a stream's, so that one stalled stream does not
/// stop the others.
pub const CONNECTION_WINDOW_BYTES: u32 = 4 * STREAM_WINDOW_BYTES;

/// The largest HTTP/2 frame that a node takes, in bytes. A batch in few large frames costs fewer reads and copies
/// than in the 16 KiB ones that are the default.
pub const FRAME_BYTES_MAX: u32 = 1 << 20;

const _: () = assert!(MESSAGE_BYTES_MAX_DEFAULT <= MESSAGE_BYTES_MAX_CEILING);
const _: () = assert!(BATCH_BYTES_MAX < GRPC_MESSAGE_BYTES_MAX);

/// Whether a queue or group may have this name: 1 to [`NAME_BYTES_MAX`] of `a-z A-Z 0-9 . _ - :` or `/`, beginning with
/// a letter or a digit.
#[must_use]
pub fn is_valid_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/".contains(&byte);
    name.len() <= NAME_BYTES_MAX
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && name.bytes().all(allowed)
}

/// The most bytes of filters that the bindings of one topic have, with 16 more for each.
pub const TOPIC_FILTER_BYTES_MAX: usize = 2 << 20;

/// The most queues that one call publishes to. They are in one shard, and their batches in one entry of its log.
pub const TOGETHER_QUEUES_MAX: usize = 16;

/// The most partitions of a queue. Each is a queue; a few times as many as there are processors are enough.
pub const PARTITIONS_MAX: u32 = 256;

/// The most nodes of one cluster: every write waits for a majority of them.
pub const CLUSTER_NODES_MAX: usize = 7;

/// The longest address of a node, and the longest name of its data directory, in bytes.
pub const NODE_TEXT_BYTES_MAX: usize = 300;

/// The most bindings of one topic.
pub const TOPIC_BINDINGS_MAX: usize = 10_000;
