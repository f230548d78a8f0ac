//! Moves messages that were given up to their queue's dead-letter queue.
//!
//! The core keeps them, with a sequence each, until the leader says that they are in the other queue. A leader that
//! fails in between leaves its successor to publish them again, and the other queue takes each of them once: every
//! dead letter is a producer of its own, with an id that only its origin and sequence decide.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use prost::Message as _;
use skein_proto::{
    broker::Message,
    dead_letter,
    ids::{ProducerId, QueueId, Sequence},
    partitions,
};
use tokio::sync::mpsc;

use super::bodies::{Bodies, BodyError};
use crate::{
    batch,
    broker::{BlockSlice, Command, DeadLetter, GiveUpReason},
    dispatch::GroupKey,
    planted::{Bug, is_planted},
    raft::{Group, ProposeError, Proposed},
};

/// The pause after a failed publish; a dead-letter queue without a leader gets one within a second or two.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// The most that [`origin`] adds to a message, in bytes: two names, four numbers, a reason, seven header names and what
/// protobuf puts around them. A message of the largest size must still be taken by its dead-letter queue.
pub const ORIGIN_BYTES_MAX: usize = 1_024;

/// `ttl_ms`, `deliver_at_ms` and `delay_ms`, fields 8 to 10 of a message, each as the number 0.
const NO_TIMES: [u8; 6] = [8 << 3, 0, 9 << 3, 0, 10 << 3, 0];

/// Reaches queues wherever their leaders are.
pub trait Courier: Send + Sync + 'static {
    /// Publishes one batch, once, however often it is called with the same producer.
    fn publish(
        &self,
        queue: String,
        producer: ProducerId,
        batch: Bytes,
    ) -> BoxFuture<'static, Result<(), CourierError>>;

    /// Whether a filter, as a group keeps it, wants an encoded message.
    fn wants(&self, filter: &[u8], message: &[u8]) -> bool;

    /// Deletes a queue, if the one of that name is still this one.
    fn delete(&self, name: String, queue: QueueId) -> BoxFuture<'static, Result<(), CourierError>>;
}

/// Why something was not done. It is tried again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CourierError(pub String);

/// Why a dead letter was not moved.
#[derive(Debug, thiserror::Error)]
enum MoveError {
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error(transparent)]
    Courier(#[from] CourierError),
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// A dead letter with all that is needed to move it.
struct Parcel {
    letter: DeadLetter,
    slice: BlockSlice,
    /// By the name of the whole, of a partition.
    from_queue: String,
    from_partition: Option<u32>,
    from_group: String,
    to_queue: String,
    /// What its group wants; nothing for every message.
    filter: Option<Arc<[u8]>>,
}

/// Moves the dead letters of each group that is named in `pending`. Runs until `pending` closes.
pub(super) async fn run(
    group: Arc<Group>,
    bodies: Bodies,
    courier: Arc<dyn Courier>,
    mut pending: mpsc::UnboundedReceiver<GroupKey>,
) {
    let mut waiting = VecDeque::new();
    loop {
        if waiting.is_empty() {
            match pending.recv().await {
                Some(key) => waiting.push_back(key),
                None => return,
            }
        }
        while let Ok(key) = pending.try_recv() {
            if !waiting.contains(&key) {
                waiting.push_back(key);
            }
        }
        // One of each group in turn, so that one that cannot be moved holds up nobody else's.
        let Some(key) = waiting.pop_front() else { continue };
        let Some(parcel) = first_parcel(&group, key) else { continue };
        waiting.push_back(key);
        if let Err(error) = move_one(&group, &bodies, courier.as_ref(), key, &parcel).await {
            tracing::warn!(
                queue = parcel.from_queue,
                group = parcel.from_group,
                offset = %parcel.letter.offset,
                to = parcel.to_queue,
                %error,
                "a dead letter could not be moved; trying again"
            );
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }
}

fn first_parcel(group: &Group, key: GroupKey) -> Option<Parcel> {
    group.replica().with_messages(|shard| {
        let queue = shard.queue(key.queue)?;
        let group = queue.group(key.group)?;
        let letter = group.dead_letters().next()?;
        let partition = partitions::parse(queue.name()).filter(|_| queue.settings().partitions > 0);
        Some(Parcel {
            slice: shard.locate(key.queue, letter.offset, 1)?,
            from_queue: partition.map_or(queue.name(), |(whole, _)| whole).to_owned(),
            from_partition: partition.map(|(_, number)| number),
            from_group: group.name().to_owned(),
            to_queue: queue.settings().dead_letter_queue.clone()?,
            filter: group.filter().cloned(),
            letter,
        })
    })
}

async fn move_one(
    group: &Group,
    bodies: &Bodies,
    courier: &dyn Courier,
    key: GroupKey,
    parcel: &Parcel,
) -> Result<(), MoveError> {
    let GroupKey { queue, group: group_id } = key;
    let sequence = parcel.letter.sequence;
    let batch = bodies.reader().read(queue, &parcel.slice).await?;
    let message = batch::messages(&batch).next().unwrap_or_default();
    // What the group does not want it gives up without a trace, as it would have passed it by.
    if parcel.filter.as_ref().is_none_or(|filter| courier.wants(filter, &message)) {
        let batch = batch::single(&message, &origin(parcel));
        if is_planted(Bug::DeadLetterDoubled) {
            let somebody_else = producer(key, sequence.next());
            courier.publish(parcel.to_queue.clone(), somebody_else, batch.clone()).await?;
        }
        courier.publish(parcel.to_queue.clone(), producer(key, sequence), batch).await?;
    }
    group
        .propose(Proposed::shard(&Command::DeadLettersMoved { queue, group: group_id, up_to: sequence }))
        .await?;
    Ok(())
}

/// What is to be added, encoded, at the end of the message: header fields, which protobuf merges with those it has, and
/// zeros for the times after which it would expire or be due, which count instead of those before them. They are over
/// for it, and must not count in the dead-letter queue.
fn origin(parcel: &Parcel) -> Vec<u8> {
    let given_up = parcel.letter.given_up;
    let reason = match given_up.reason {
        GiveUpReason::MaxDeliveries => dead_letter::REASON_MAX_DELIVERIES,
        GiveUpReason::Expired => dead_letter::REASON_EXPIRED,
        GiveUpReason::Overflow => dead_letter::REASON_OVERFLOW,
        GiveUpReason::Rejected => dead_letter::REASON_REJECTED,
    };
    let headers = [
        (dead_letter::HEADER_QUEUE, parcel.from_queue.clone()),
        (dead_letter::HEADER_GROUP, parcel.from_group.clone()),
        (dead_letter::HEADER_OFFSET, parcel.letter.offset.to_string()),
        (dead_letter::HEADER_ATTEMPTS, given_up.attempts.to_string()),
        (dead_letter::HEADER_REASON, reason.to_owned()),
        (dead_letter::HEADER_TIME, given_up.at_ms.to_string()),
    ];
    let partition = parcel.from_partition.map(|number| (dead_letter::HEADER_PARTITION, number.to_string()));
    let headers = headers.into_iter().chain(partition);
    let headers = headers.map(|(name, value)| (name.to_owned(), value.into())).collect();
    let mut origin = Message { headers, ..Message::default() }.encode_to_vec();
    origin.extend(NO_TIMES);
    assert!(origin.len() <= ORIGIN_BYTES_MAX, "names are shorter than NAME_BYTES_MAX");
    origin
}

/// Who publishes a dead letter, whichever leader it is.
fn producer(key: GroupKey, sequence: Sequence) -> ProducerId {
    ProducerId::mixed([key.queue.get(), u64::from(key.group.get()), sequence.get()])
}
