//! What a consumer receives, and how it is settled.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use skein_proto::{broker::Reason, ids::Offset, limits, node};
use tonic::Code;

use super::{
    acks::{Settle, Settled},
    inbox::lease_lost,
    lane::{Shared, wake},
};
use crate::{
    error::{Cause, MalformedMessage, SettleError},
    message::{BatchReader, Message},
    wire_time::wall_time,
};

/// The longest lease, and the longest delay of a returned message.
const SETTLE_DURATION_MAX: Duration = Duration::from_millis(limits::SETTLE_DURATION_MS_MAX as u64);

/// One message, leased to this consumer.
///
/// Settling takes effect in the background; the futures may be dropped.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// Its position in the queue.
    pub offset: Offset,
    /// 1 on first delivery.
    pub attempt: u32,
    /// When it was published, by the clock of the node that led then.
    pub published_at: SystemTime,
    /// Of a partitioned queue, the partition that it was in; none of other queues.
    pub partition: Option<u32>,
    lease: Lease,
}

/// Messages with consecutive offsets in the same attempt, leased to this consumer.
#[derive(Debug)]
pub struct DeliveryBatch {
    batch: node::DeliveryBatch,
    lease: Lease,
}

/// The messages of a batch, in order.
#[derive(Debug, Clone)]
pub struct BatchMessages {
    reader: BatchReader,
}

/// What a delivery needs to be settled.
#[derive(Debug, Clone)]
struct Lease {
    shared: Arc<Shared>,
    /// How often everything had been lost when it was delivered.
    losses: u64,
}

impl Delivery {
    /// The message is done with. Resolves once that survives the loss of a node.
    pub fn ack(&self) -> Settled {
        self.settle(Settle::Ack)
    }

    /// Gives the message back, to be delivered again after the redelivery delay of the queue; at once unless it has
    /// one.
    pub fn nack(&self) -> Settled {
        self.settle(Settle::Nack { delay: None })
    }

    /// Gives the message back, to be delivered again no sooner than `delay` from now, whatever the queue says. In
    /// milliseconds, at most a day.
    pub fn nack_after(&self, delay: Duration) -> Settled {
        self.settle(Settle::Nack { delay: Some(delay) })
    }

    /// Gives the message up: it is not delivered to this group again, and goes to the dead-letter queue, where there is
    /// one. For what will never work, however often it is tried.
    pub fn reject(&self) -> Settled {
        self.settle(Settle::Reject)
    }

    /// Lets the lease end `lease` from now. In milliseconds, at most a day.
    pub fn extend(&self, lease: Duration) -> Settled {
        self.settle(Settle::Extend { lease })
    }

    fn settle(&self, settle: Settle) -> Settled {
        self.lease.settle(settle, self.offset, 1)
    }
}

impl DeliveryBatch {
    pub(super) fn new(batch: node::DeliveryBatch, shared: Arc<Shared>, losses: u64) -> Self {
        Self { batch, lease: Lease { shared, losses } }
    }

    /// The offset of the first message; the others follow.
    #[must_use]
    pub fn first_offset(&self) -> Offset {
        Offset::new(self.batch.first_offset)
    }

    /// How many messages there are.
    #[must_use]
    pub fn message_count(&self) -> u32 {
        self.batch.count
    }

    /// 1 on first delivery.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.batch.attempt
    }

    /// When they were published, by the clock of the node that led then.
    #[must_use]
    pub fn published_at(&self) -> SystemTime {
        wall_time(self.batch.published_at_ms)
    }

    /// Of a partitioned queue, the partition that they were in; none of other queues.
    #[must_use]
    pub fn partition(&self) -> Option<u32> {
        self.lease.shared.partition
    }

    /// The messages. Bodies are not copied.
    #[must_use]
    pub fn messages(&self) -> BatchMessages {
        BatchMessages { reader: BatchReader::new(self.batch.batch.clone()) }
    }

    /// All of them are done with. Resolves once that survives the loss of a node.
    pub fn ack(&self) -> Settled {
        self.settle(Settle::Ack)
    }

    /// Gives all of them back, to be delivered again after the redelivery delay of the queue; at once unless it has
    /// one.
    pub fn nack(&self) -> Settled {
        self.settle(Settle::Nack { delay: None })
    }

    /// Gives all of them back, to be delivered again no sooner than `delay` from now, whatever the queue says. In
    /// milliseconds, at most a day.
    pub fn nack_after(&self, delay: Duration) -> Settled {
        self.settle(Settle::Nack { delay: Some(delay) })
    }

    /// Gives all of them up, as [`Delivery::reject`] does one.
    pub fn reject(&self) -> Settled {
        self.settle(Settle::Reject)
    }

    /// Lets all leases end `lease` from now. In milliseconds, at most a day.
    pub fn extend(&self, lease: Duration) -> Settled {
        self.settle(Settle::Extend { lease })
    }

    fn settle(&self, settle: Settle) -> Settled {
        self.lease.settle(settle, self.first_offset(), self.batch.count)
    }
}

impl Iterator for BatchMessages {
    type Item = Result<Message, MalformedMessage>;

    fn next(&mut self) -> Option<Self::Item> {
        self.reader.next()
    }
}

impl Lease {
    fn settle(&self, settle: Settle, first: Offset, count: u32) -> Settled {
        if let Some(duration) = settle.duration()
            && duration > SETTLE_DURATION_MAX
        {
            // A node would end the stream, and with it the leases of all others.
            let sentence = format!("a lease or a delay of {duration:?} is too long; give at most a day");
            let cause = Cause::new(Code::InvalidArgument, Reason::InvalidSetting, sentence);
            return Settled::failed(SettleError::NotAccepted(cause));
        }
        let (settled, waker) = {
            let mut inbox = self.shared.lock();
            if self.shared.losses.load(Ordering::Relaxed) != self.losses {
                // The same message may be here again, in a delivery of its own.
                return Settled::failed(SettleError::LeaseLost(lease_lost()));
            }
            inbox.settle(settle, first, count)
        };
        wake(waker);
        settled
    }
}

/// Takes single messages out of a batch.
#[derive(Debug)]
pub(super) struct BatchCursor {
    batch: DeliveryBatch,
    reader: BatchReader,
    taken_count: u32,
}

impl BatchCursor {
    pub(super) fn new(batch: DeliveryBatch) -> Self {
        let reader = BatchReader::new(batch.batch.batch.clone());
        Self { batch, reader, taken_count: 0 }
    }

    pub(super) fn next(&mut self) -> Option<Result<Delivery, MalformedMessage>> {
        let message = match self.reader.next()? {
            Ok(message) => message,
            Err(error) => return Some(Err(error)),
        };
        let offset = self.batch.first_offset().plus(self.taken_count.into());
        self.taken_count += 1;
        Some(Ok(Delivery {
            message,
            offset,
            attempt: self.batch.attempt(),
            published_at: self.batch.published_at(),
            partition: self.batch.partition(),
            lease: self.batch.lease.clone(),
        }))
    }

    /// The offsets of what has not been taken.
    pub(super) fn rest(&self) -> Option<node::OffsetRange> {
        let node::DeliveryBatch { first_offset, count, .. } = self.batch.batch;
        let taken = self.taken_count;
        (count > taken)
            .then(|| node::OffsetRange { first: first_offset + u64::from(taken), count: count - taken })
    }

    /// What has not been taken, as a batch.
    pub(super) fn into_rest(mut self) -> Option<DeliveryBatch> {
        let batch = &mut self.batch.batch;
        batch.first_offset += u64::from(self.taken_count);
        batch.count = batch.count.saturating_sub(self.taken_count);
        batch.batch = self.reader.into_rest();
        (batch.count > 0).then_some(self.batch)
    }
}
