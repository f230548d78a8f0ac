//! The dispatcher of a shard's leader: which consumer gets which messages, and until when.
//!
//! Without I/O, clock or randomness: [`Now`] is an argument, and events of the broker core come in as calls. Leases
//! live here only; a new leader builds its dispatcher from the core.

mod alarms;
mod consumer;
mod dispatcher;
mod group;
mod keys;
mod lanes;
mod round;
#[cfg(test)]
mod tests;
mod turns;

use skein_proto::ids::{GroupId, Offset, QueueId};

pub use dispatcher::{Dispatcher, Resumption};

use crate::offsets::{OffsetRange, OffsetRuns, OffsetSet};

/// A consumer group of any queue of the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupKey {
    /// The queue that it reads.
    pub queue: QueueId,
    /// Its number in the queue.
    pub group: GroupId,
}

impl GroupKey {
    /// Those of all groups that a queue may have.
    #[must_use]
    pub const fn all_of(queue: QueueId) -> std::ops::RangeInclusive<Self> {
        Self { queue, group: GroupId::new(0) }..=Self { queue, group: GroupId::new(u32::MAX) }
    }
}

/// A consumer, by a number that the caller gives it and never uses again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConsumerId(u64);

impl ConsumerId {
    /// No consumer has this id.
    pub const NOBODY: Self = Self::new(0);

    /// The consumer with this number.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// The most that a consumer holds unsettled at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit {
    /// Messages.
    pub messages: u32,
    /// Bytes. A consumer that holds nothing is given one message whatever its size.
    pub bytes: u64,
}

/// Knows the messages that are stored.
pub trait Stored {
    /// How many of the messages from `first` on, up to `count_max` and all in the same stored block, fit into
    /// `bytes_max`, and how many bytes they have; one message when even the first one does not fit. Nothing when the
    /// message at `first` is not kept.
    fn fit(&self, queue: QueueId, first: Offset, count_max: u32, bytes_max: u64) -> Option<(u32, u64)>;

    /// The first offset of a queue that is kept, or would be if there were messages. Nothing when there is no such
    /// queue.
    fn kept_from(&self, queue: QueueId) -> Option<Offset>;

    /// The parts of a range that are kept and that a group still has to get: it has neither acked nor given them up.
    fn open_in(&self, key: GroupKey, range: OffsetRange) -> OffsetSet;

    /// Whether all messages of a queue may be delivered at once, in order, and whenever it suits.
    fn is_ordinary(&self, queue: QueueId) -> bool;

    /// Calls `visit` with the kept messages of a queue from `from` on, each time as many as follow each other and wait
    /// for the same, until it returns false.
    fn visit_waiting(&self, queue: QueueId, from: Offset, visit: &mut dyn FnMut(Waiting) -> bool);
}

/// Messages that follow each other and wait for the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Which messages.
    pub range: OffsetRange,
    /// Not to be delivered before this wall-clock time; 0 for at once.
    pub deliver_at_ms: u64,
    /// To be given up then, unless somebody holds them.
    pub expires_at_ms: Option<u64>,
    /// Those with the highest are delivered first.
    pub priority: u8,
    /// Messages with the same key have the same; 0 where the order of keys does not matter.
    pub key_slot: u16,
}

impl Waiting {
    /// Messages that wait for nothing.
    #[must_use]
    pub const fn ordinary(range: OffsetRange) -> Self {
        Self { range, deliver_at_ms: 0, expires_at_ms: None, priority: 0, key_slot: 0 }
    }

    fn waits_as(&self, other: &Self) -> bool {
        Self { range: other.range, ..*self } == *other
    }
}

/// Messages that nobody took in time: the core is to give them up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expired {
    /// The group that gives them up.
    pub key: GroupKey,
    /// Which messages.
    pub range: OffsetRange,
}

/// How a group delivers, as its queue's settings have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// How long a delivery lasts.
    pub lease_ms: u32,
    /// Only one consumer gets messages at a time.
    pub single_active: bool,
    /// How much of what is delivered are messages of lower priorities, while there are higher ones; less than 100.
    pub lower_percent: u32,
    /// Of messages with the same key only one is delivered at a time, in order.
    pub by_key: bool,
}

/// One moment by two clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// By the one that people and messages go by. It may jump.
    pub wall_ms: u64,
    /// By the one that only ever goes on, from wherever it began: what leases and holds are measured with.
    pub steady_ms: u64,
}

/// Where a group stands when the dispatcher gets to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStart {
    /// How it delivers.
    pub rules: Rules,
    /// What is to be delivered below `fresh_from`.
    pub ready: OffsetRuns<Ready>,
    /// From here on everything is to be delivered, for the first time.
    pub fresh_from: Offset,
    /// The end of the queue.
    pub next_offset: Offset,
    /// Nothing is delivered before this steady time; 0 for at once. A new leader waits for those who hold
    /// messages of the old one to say so.
    pub held_back_until_ms: u64,
    /// How often the core has moved the group.
    pub seek_count: u32,
}

/// What a consumer says that comes back from an earlier leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// What it was delivered, and has not settled as far as it knows.
    pub held: Vec<OffsetRange>,
    /// How many consumers its group had, itself included; 0 when it does not know.
    pub group_consumers: u32,
    /// Who it was, on the stream that is lost; nobody, when it was told of none.
    pub before: ConsumerId,
}

/// How messages below the fresh ones may be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// How often they were delivered so far.
    pub attempts: u32,
    /// Not before this wall-clock time; 0 for at once.
    pub not_before_ms: u64,
}

/// Messages for a consumer: consecutive, out of one stored block, all in the same attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// Who gets them.
    pub consumer: ConsumerId,
    /// The group it consumes for.
    pub key: GroupKey,
    /// The offset of the first message.
    pub first: Offset,
    /// How many messages.
    pub count: u32,
    /// 1 when delivered for the first time.
    pub attempt: u32,
    /// How many bytes they have.
    pub bytes: u64,
}

impl Delivery {
    /// The offset after the last message.
    #[must_use]
    pub const fn end(&self) -> Offset {
        self.first.plus(self.count as u64)
    }
}

/// Deliveries that ended without an ack: the core is to take the messages back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Returned {
    /// The group they were delivered to.
    pub key: GroupKey,
    /// Which messages.
    pub range: OffsetRange,
    /// The attempt that ended.
    pub attempt: u32,
}

/// What a consumer's settlement of a range came to, part by part: the attempt that was settled, or why there was none.
pub type Settlements = Vec<(OffsetRange, Result<u32, Refusal>)>;

/// Why a message cannot be settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It was not delivered to anybody yet.
    #[error("the message was never delivered")]
    NotDelivered,
    /// The consumer does not hold it, or not any more.
    #[error("the lease has ended")]
    LeaseLost,
}

/// Why a consumer cannot join a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddConsumerError {
    /// There is no such group.
    #[error("the group does not exist")]
    NoGroup,
    /// The group has as many consumers as it may.
    #[error("the group has as many consumers as it may")]
    TooMany,
}

/// How busy a group is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupCounts {
    /// Messages that consumers hold.
    pub leased: u64,
    /// Consumers that take messages.
    pub consumers: u32,
    /// Messages that could be delivered now.
    pub ready: u64,
    /// Messages that came back and are held back for a while.
    pub delayed: u64,
}
