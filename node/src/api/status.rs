//! The one place where errors become gRPC statuses: a code, a machine-readable reason, and a sentence that says what
//! to do.

pub(super) use skein_proto::node::Reason;
use skein_proto::{
    REASON_TRAILER,
    ids::{NodeId, ShardId},
};
use tonic::{
    Code, Status,
    metadata::{MetadataMap, MetadataValue},
};

use super::{admission::OverBudget, room::NoRoom};
use crate::{
    batch::BatchError,
    broker::{Outcome, QUEUE_IDS_MAX},
    dispatch::{AddConsumerError, Refusal},
    raft::{ProposeError, TransferError},
    shard::{BodyError, MalformedToken, SettleError, SubscribeError},
};

/// A status of our own making.
pub(super) fn status(code: Code, reason: Reason, message: impl Into<String>) -> Status {
    let mut trailers = MetadataMap::new();
    trailers.insert(REASON_TRAILER, MetadataValue::from_static(reason.as_str_name()));
    Status::with_metadata(code, message, trailers)
}

pub(super) fn queue_not_found(name: &str) -> Status {
    let message = format!("there is no queue {name:?}; create it first (skein queue create {name})");
    status(Code::NotFound, Reason::QueueNotFound, message)
}

pub(super) fn no_queue_to_delete(name: &str) -> Status {
    let message = format!("there is no queue {name:?}; nothing was deleted");
    status(Code::NotFound, Reason::QueueNotFound, message)
}

pub(super) fn is_a_topic(name: &str) -> Status {
    let message = format!(
        "{name:?} is a topic and keeps no messages; name one of the queues that are bound to it (skein topic show \
         {name})"
    );
    status(Code::NotFound, Reason::QueueNotFound, message)
}

/// What is asked of a queue that has partitions, and can only be done by one of them.
pub(super) fn is_partitioned(name: &str, partitions: u32) -> Status {
    let message = format!(
        "queue {name:?} has {partitions} partitions; name one of them, {name}/0 to {name}/{}, or use a client library \
         that knows of them",
        partitions.saturating_sub(1)
    );
    status(Code::FailedPrecondition, Reason::Partitioned, message)
}

/// What is asked of a partition, and is only done to all of them.
pub(super) fn is_a_partition(name: &str, of: &str) -> Status {
    let message = format!(
        "{name:?} is the name of a partition of queue {of:?}, whose partitions are all created, changed, bound and \
         deleted together; say it of {of:?}"
    );
    status(Code::FailedPrecondition, Reason::Partitioned, message)
}

/// A queue that was to be created in another one's shard exists, and is in a shard of its own.
pub(super) fn exists_elsewhere(name: &str, shard: ShardId, other: &str, of_other: ShardId) -> Status {
    let message = format!(
        "queue {name:?} exists in shard {shard}, and {other:?} is in shard {of_other}; queues stay where they are, so \
         delete one of them and create it again, or give this one another name"
    );
    status(Code::AlreadyExists, Reason::NotColocated, message)
}

pub(super) fn not_heard_yet(queue: &str) -> Status {
    let message = format!("queue {queue:?} is about to hear how many partitions there are; try again");
    status(Code::Unavailable, Reason::Busy, message)
}

/// This node does not know the name, and hears nobody who could tell it whether it should.
pub(super) fn may_not_have_heard_of(name: &str) -> Status {
    let message = format!(
        "this node has not heard of {name:?}, and does not hear the catalog's leader, who would know; nothing was \
         done, ask another node, or again in a moment"
    );
    status(Code::Unavailable, Reason::NoLeader, message)
}

/// Whether a partition asked for another try, having stored nothing.
pub(super) fn is_not_heard_yet(status: &Status) -> bool {
    status.code() == Code::Unavailable && reason_of(status) == Some(Reason::Busy)
}

pub(super) fn partitions_changed(queue: &str) -> Status {
    let message = format!(
        "there are more partitions now than the publisher to {queue:?} spreads messages over, and nothing was stored; \
         look how many there are (GetQueue: settings.partitions), and spread them over all"
    );
    status(Code::FailedPrecondition, Reason::PartitionsChanged, message)
}

pub(super) fn topic_not_found(name: &str) -> Status {
    let message = format!("there is no topic {name:?}; create it first (skein topic create {name})");
    status(Code::NotFound, Reason::TopicNotFound, message)
}

/// Neither a queue nor a topic. Who publishes means a queue more often.
pub(super) fn destination_not_found(name: &str) -> Status {
    let message = format!(
        "there is no queue or topic {name:?}; create it first (skein queue create {name}, or skein topic create {name})"
    );
    status(Code::NotFound, Reason::QueueNotFound, message)
}

/// The reason that a status of ours gives.
pub(super) fn reason_of(status: &Status) -> Option<Reason> {
    Reason::from_str_name(status.metadata().get(REASON_TRAILER)?.to_str().ok()?)
}

pub(super) fn group_not_found(queue: &str, group: &str) -> Status {
    let message = format!(
        "queue {queue:?} has no group {group:?}; a group is there once it is created, or somebody has consumed with it"
    );
    status(Code::NotFound, Reason::GroupNotFound, message)
}

pub(super) fn invalid_name(kind: &str, name: &str) -> Status {
    let message = if name.is_empty() {
        format!("the {kind} name is empty; give one")
    } else {
        let shown: String = name.chars().take(40).collect();
        format!(
            "{shown:?} cannot name a {kind}: use 1 to {} letters, digits and . _ - : /, a letter or \
            digit first",
            skein_proto::limits::NAME_BYTES_MAX
        )
    };
    status(Code::InvalidArgument, Reason::InvalidName, message)
}

pub(super) fn invalid_setting(message: impl Into<String>) -> Status {
    status(Code::InvalidArgument, Reason::InvalidSetting, message)
}

pub(super) fn wrong_first_message(message: &str) -> Status {
    status(Code::InvalidArgument, Reason::WrongFirstMessage, message)
}

pub(super) fn no_leader(shard: ShardId) -> Status {
    let message = format!("shard {shard} has no leader that this node can reach; try again in a moment");
    status(Code::Unavailable, Reason::NoLeader, message)
}

/// Whoever led the shard is gone, and has not heard of the call.
pub(super) fn leader_not_heard(this: NodeId, leader: NodeId) -> Status {
    let message = format!(
        "node {leader} leads the shard, and node {this} does not hear it; nothing was done, ask another node"
    );
    status(Code::Unavailable, Reason::NoLeader, message)
}

pub(super) fn leader_gone() -> Status {
    let message =
        "the node that led the shard takes no connections; try again in a moment, when another one leads";
    status(Code::Unavailable, Reason::NoLeader, message)
}

/// A call was passed on, and the way to the leader broke.
pub(super) fn connection_broke(cause: &Status) -> Status {
    let message = format!(
        "the connection to the shard's leader broke ({}): the call may have taken effect or not; \
         sending it again with the same producer_id and sequence is safe",
        cause.message()
    );
    status(Code::Unavailable, Reason::OutcomeUnknown, message)
}

/// A partition cannot do for the moment what those before it have done. What it refuses for good stays as it says.
pub(super) fn partly_done(partition: &str, refused: Status) -> Status {
    if refused.code() != Code::Unavailable {
        return refused;
    }
    let cause = refused.message();
    let message = format!(
        "partitions before {partition:?} have done it, and this one may not have ({cause}); do it again"
    );
    status(Code::Unavailable, Reason::OutcomeUnknown, message)
}

/// A queue of a topic could not take its share, and others may have theirs.
pub(super) fn partly_stored(cause: &Status) -> Status {
    let message = format!(
        "one of the topic's queues could not take the batch ({}), and others may have it; sending it again with the \
         same producer_id and sequence is safe",
        cause.message()
    );
    status(Code::Unavailable, Reason::OutcomeUnknown, message)
}

/// A producer counts its batches from 1.
pub(super) fn no_sequence() -> Status {
    let message = "the batch has a producer_id and no sequence; count batches from 1, or leave both out";
    status(Code::FailedPrecondition, Reason::SequenceGap, message)
}

/// The node stopped leading while a stream was open, with nothing of the caller's in flight.
pub(super) fn leader_moved() -> Status {
    status(Code::Unavailable, Reason::NoLeader, "this node stopped leading the queue's shard; connect again")
}

/// Whoever consumes has to let go of what it holds, and to come again.
pub(super) fn group_moved() -> Status {
    let message = "the group goes on from elsewhere, and what it holds is void; subscribe again";
    status(Code::Aborted, Reason::GroupMoved, message)
}

pub(super) fn not_leader(node: NodeId) -> Status {
    let message =
        format!("the call was passed on to node {node}, which does not lead the shard either; try again");
    status(Code::Unavailable, Reason::NotLeader, message)
}

pub(super) fn starting() -> Status {
    let message = "the node is starting; try again in a moment, or connect to another one";
    status(Code::Unavailable, Reason::NoLeader, message)
}

pub(super) fn shard_not_found(shard_id: u32, shard_count: u32) -> Status {
    let message = format!("there is no shard {shard_id}; the cluster has 0, the catalog, to {shard_count}");
    status(Code::NotFound, Reason::ShardNotFound, message)
}

pub(super) fn from_transfer(error: TransferError, shard_id: u32, node_id: u64) -> Status {
    let refuse = |reason, advice: &str| {
        let message = format!("node {node_id} cannot lead shard {shard_id}: {error}; {advice}");
        status(Code::FailedPrecondition, reason, message)
    };
    match error {
        TransferError::NotLeader => leader_moved(),
        TransferError::NotAReplica => refuse(Reason::NotAReplica, "name one of its replicas"),
        TransferError::Behind { .. } => {
            refuse(Reason::ReplicaNotReady, "see whether the node is up, and try again when it has caught up")
        }
        TransferError::NotFit => {
            refuse(Reason::ReplicaNotReady, "see whether the node is up, and what its log says")
        }
        TransferError::NotTaken => {
            refuse(Reason::ReplicaNotReady, "see skein cluster status for who leads, and try again")
        }
    }
}

pub(super) fn shutting_down() -> Status {
    status(Code::Unavailable, Reason::ShuttingDown, "the node is shutting down; connect to another one")
}

pub(super) fn stalled() -> Status {
    let message =
        "the consumer did not read its stream for as long as a lease lasts; its messages go to others";
    status(Code::DeadlineExceeded, Reason::ConsumerStalled, message)
}

pub(super) fn from_batch(error: BatchError) -> Status {
    let reason = match error {
        BatchError::Empty => Reason::BatchEmpty,
        BatchError::TooManyBytes { .. } | BatchError::TooManyMessages { .. } => Reason::BatchTooLarge,
        BatchError::MessageTooLarge { .. } => Reason::MessageTooLarge,
        BatchError::Property { .. } => Reason::InvalidProperty,
        BatchError::Malformed { .. } => Reason::MalformedMessage,
    };
    status(Code::InvalidArgument, reason, error.to_string())
}

pub(super) fn from_over_budget(error: OverBudget) -> Status {
    status(Code::ResourceExhausted, Reason::OverBudget, error.to_string())
}

pub(super) fn from_no_room(error: &NoRoom) -> Status {
    status(Code::ResourceExhausted, Reason::DiskFull, error.to_string())
}

pub(super) fn from_propose(error: ProposeError) -> Status {
    match error {
        ProposeError::NotLeader { .. } => leader_moved(),
        ProposeError::Stopped => shutting_down(),
        ProposeError::OutcomeUnknown => status(
            Code::Unavailable,
            Reason::OutcomeUnknown,
            "leadership moved while the call was in flight: it may have taken effect or not; \
             sending it again with the same producer_id and sequence is safe",
        ),
    }
}

/// What a command came out as when it did not do what was asked. The queue's name is the caller's.
pub(super) fn from_outcome(outcome: &Outcome, queue: &str) -> Status {
    match outcome {
        Outcome::SequenceGap { expected } => status(
            Code::FailedPrecondition,
            Reason::SequenceGap,
            format!(
                "a batch before this one is missing: the producer's next sequence is {expected}; \
                 send the missing batches first, or go on under a new producer_id"
            ),
        ),
        Outcome::SequenceTooOld => status(
            Code::FailedPrecondition,
            Reason::SequenceTooOld,
            "the batch was stored long ago and its offsets are forgotten; do not send it again",
        ),
        Outcome::QueueFull => status(
            Code::ResourceExhausted,
            Reason::QueueFull,
            format!(
                "queue {queue:?} has as many messages or bytes as it may; consume some, raise max_messages or \
                 max_bytes, or let the oldest go (skein queue update {queue} --overflow drop-oldest)"
            ),
        ),
        Outcome::PartitionsChanged => partitions_changed(queue),
        Outcome::TooManyIds => status(
            Code::ResourceExhausted,
            Reason::QueueFull,
            format!(
                "queue {queue:?} remembers {QUEUE_IDS_MAX} message ids, as many as it may; publish more slowly, or \
                 shorten its dedup_window_ms (skein queue update {queue} --dedup-window 10s)"
            ),
        ),
        Outcome::PositionAfterEnd { next_offset } => status(
            Code::OutOfRange,
            Reason::InvalidPosition,
            format!(
                "the position is after the end of queue {queue:?}; {next_offset} is the last possible one"
            ),
        ),
        Outcome::DeadLettersPending => status(
            Code::Unavailable,
            Reason::Busy,
            "messages that the group gave up are being moved to the dead-letter queue; try again in a moment",
        ),
        Outcome::TooManyGroups => status(
            Code::ResourceExhausted,
            Reason::TooMany,
            format!("queue {queue:?} has as many groups as it may; delete one first"),
        ),
        Outcome::QueueNotFound => queue_not_found(queue),
        Outcome::GroupNotFound => group_not_found(queue, "of that number"),
        outcome => unreachable!("{outcome:?} is not a refusal"),
    }
}

pub(super) fn from_subscribe(error: SubscribeError, queue: &str, group: &str) -> Status {
    match error {
        SubscribeError::Ended => leader_moved(),
        SubscribeError::Refused(AddConsumerError::NoGroup) => group_not_found(queue, group),
        SubscribeError::Refused(error) => {
            status(Code::ResourceExhausted, Reason::TooMany, format!("{error}; consume with fewer"))
        }
    }
}

pub(super) fn from_settle(error: SettleError) -> Status {
    match error {
        SettleError::Ended => leader_moved(),
        SettleError::OutcomeUnknown => status(Code::Unavailable, Reason::OutcomeUnknown, error.to_string()),
    }
}

pub(super) fn from_body(error: &BodyError) -> Status {
    tracing::error!(%error, "a stored message cannot be read");
    let message = format!(
        "a stored message cannot be read ({error}); ask whoever runs the cluster to look at the node's log"
    );
    status(Code::DataLoss, Reason::MessageDamaged, message)
}

/// Why a message was not settled, as it travels inside answers.
pub(super) fn refusal(refusal: Refusal) -> (Reason, &'static str) {
    match refusal {
        Refusal::NotDelivered => (Reason::NotDelivered, "it was never delivered to this consumer"),
        Refusal::LeaseLost => (
            Reason::LeaseLost,
            "this consumer does not hold it any more: its lease ended, or it was settled before",
        ),
    }
}

pub(super) const TOKEN_OF_ANOTHER_LEADER: (Reason, &str) =
    (Reason::LeaseLost, "it was leased by a leader that is gone; the message is delivered again");

pub(super) fn malformed_token(error: MalformedToken) -> (Reason, String) {
    (Reason::LeaseTokenMalformed, error.to_string())
}
