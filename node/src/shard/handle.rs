//! The way to a shard's delivery task, and what is said on it.

use tokio::sync::{mpsc, oneshot};

use super::{company::Company, outbox::Outbox};
use crate::{
    dispatch::{AddConsumerError, Claim, ConsumerId, Credit, GroupKey, Refusal},
    offsets::{OffsetRange, OffsetSet},
};

/// Handle to a running delivery task.
#[derive(Clone)]
pub struct DeliveryHandle {
    requests: mpsc::Sender<Request>,
    term: u64,
}

/// Why a consumer could not subscribe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// The dispatcher refuses.
    #[error(transparent)]
    Refused(#[from] AddConsumerError),
    /// This node stopped leading.
    #[error("this node stopped leading the shard")]
    Ended,
}

/// A consumer of a group. Dropping it returns what it holds; detaching it does not.
pub struct Subscription {
    subscribed: Subscribed,
    delivery: DeliveryHandle,
}

/// How a consumer comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Coming {
    /// To take what is there, and go.
    Once,
    /// To take messages until its stream ends.
    ToStay {
        /// Those with a higher one take messages first.
        priority: i32,
        /// What it says, should it have come back.
        resume: Option<Claim>,
    },
}

impl Coming {
    /// Whether it was a member of the group before.
    #[must_use]
    pub fn was_there(&self) -> bool {
        matches!(self, Self::ToStay { resume: Some(claim), .. } if claim.before != ConsumerId::NOBODY)
    }
}

/// What has become of the messages that a consumer held on a stream that was lost.
#[derive(Debug, Default)]
pub struct Resumed {
    /// It holds them again.
    pub held: OffsetSet,
    /// They are acked.
    pub settled: OffsetSet,
    /// They were given up.
    pub given_up: OffsetSet,
}

/// What to do with messages that a consumer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettleKind {
    /// Done with them.
    Ack,
    /// Deliver them again, after a while.
    Nack {
        /// How long a while, in milliseconds; nothing for as long as the queue says.
        delay_ms: Option<u32>,
    },
    /// Do not deliver them again: give them up.
    Reject,
    /// Let the lease end this long from now.
    Extend {
        /// How long from now, in milliseconds.
        lease_ms: u32,
    },
}

/// One part of a settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettleItem {
    /// Who holds the messages.
    pub consumer: ConsumerId,
    /// Which messages.
    pub range: OffsetRange,
    /// What to do with them.
    pub kind: SettleKind,
}

/// Messages that were not settled, because the consumer does not hold them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsettled {
    /// Who does not hold them.
    pub consumer: ConsumerId,
    /// Which messages.
    pub range: OffsetRange,
    /// Why not.
    pub refusal: Refusal,
}

/// Why a settlement has no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SettleError {
    /// This node does not lead: nothing was settled.
    #[error("this node stopped leading the shard; nothing was settled")]
    Ended,
    /// Leadership moved meanwhile.
    #[error("leadership moved while the settlement was in flight; whether it took effect is unknown")]
    OutcomeUnknown,
}

/// What only the leader knows of a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupCounts {
    /// Messages held by consumers.
    pub leased_messages: u64,
    /// Messages that are not due yet.
    pub delayed_messages: u64,
    /// Consumers on streams.
    pub consumers: u32,
}

/// What somebody gets who consumes.
pub(super) struct Subscribed {
    pub(super) consumer: ConsumerId,
    pub(super) outbox: Outbox,
    pub(super) resumed: Resumed,
    /// Of one that has come to stay.
    pub(super) company: Option<Company>,
}

/// Somebody wants to consume.
pub(super) struct Subscribe {
    pub(super) key: GroupKey,
    pub(super) credit: Credit,
    pub(super) coming: Coming,
    pub(super) reply: oneshot::Sender<Result<Subscribed, SubscribeError>>,
}

/// What the delivery task is asked.
pub(super) enum Request {
    Subscribe(Subscribe),
    SetCredit {
        consumer: ConsumerId,
        credit: Credit,
    },
    /// The consumer wants no more, and has looked at no more than this of what it holds.
    Leave {
        consumer: ConsumerId,
        seen: Vec<OffsetRange>,
        done: oneshot::Sender<()>,
    },
    /// The consumer wants no more, but keeps what it holds.
    Detach {
        consumer: ConsumerId,
        done: oneshot::Sender<()>,
    },
    Settle {
        key: GroupKey,
        items: Vec<SettleItem>,
        reply: oneshot::Sender<Result<Vec<Unsettled>, SettleError>>,
    },
    Counts {
        key: GroupKey,
        reply: oneshot::Sender<GroupCounts>,
    },
}

impl DeliveryHandle {
    pub(super) fn new(requests: mpsc::Sender<Request>, term: u64) -> Self {
        Self { requests, term }
    }

    /// The term in which this node leads; lease tokens carry it.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Adds a consumer to a group: a new one, or one that has come back and resumes what it holds.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub async fn subscribe(
        &self,
        key: GroupKey,
        credit: Credit,
        coming: Coming,
    ) -> Result<Subscription, SubscribeError> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Subscribe(Subscribe { key, credit, coming, reply })).await;
        let subscribed = answer.await.unwrap_or(Err(SubscribeError::Ended))?;
        Ok(Subscription { subscribed, delivery: self.clone() })
    }

    /// Changes what a consumer may hold.
    pub async fn set_credit(&self, consumer: ConsumerId, credit: Credit) {
        self.send(Request::SetCredit { consumer, credit }).await;
    }

    /// Lets a consumer have no more, and others what it holds and has not looked at. Returns when that is done.
    pub async fn leave(&self, consumer: ConsumerId, seen: Vec<OffsetRange>) {
        let (done, left) = oneshot::channel();
        self.send(Request::Leave { consumer, seen, done }).await;
        // An error means that this node leads no more, and leases are gone with that.
        let _ = left.await;
    }

    /// Settles messages of one group; returns those that could not be, once the rest is replicated.
    ///
    /// # Errors
    /// See [`SettleError`], which tells "nothing was settled" from "unknown".
    pub async fn settle(&self, key: GroupKey, items: Vec<SettleItem>) -> Result<Vec<Unsettled>, SettleError> {
        self.settle_later(key, items).await.await
    }

    /// Sends a settlement on its way, in the order of calls, and gives a future for its outcome.
    pub async fn settle_later(
        &self,
        key: GroupKey,
        items: Vec<SettleItem>,
    ) -> impl Future<Output = Result<Vec<Unsettled>, SettleError>> + Send + 'static {
        let (reply, answer) = oneshot::channel();
        let sent = self.requests.send(Request::Settle { key, items, reply }).await.is_ok();
        async move {
            if !sent {
                return Err(SettleError::Ended);
            }
            answer.await.unwrap_or(Err(SettleError::OutcomeUnknown))
        }
    }

    /// What only the leader knows of a group.
    pub async fn counts(&self, key: GroupKey) -> GroupCounts {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Counts { key, reply }).await;
        answer.await.unwrap_or_default()
    }

    /// Whoever waits for an answer sees its channel close when the task is gone.
    async fn send(&self, request: Request) {
        let _ = self.requests.send(request).await;
    }
}

impl Subscription {
    /// The consumer's id.
    #[must_use]
    pub fn consumer(&self) -> ConsumerId {
        self.subscribed.consumer
    }

    /// What has become of what it held before.
    #[must_use]
    pub fn resumed(&self) -> &Resumed {
        &self.subscribed.resumed
    }

    /// How many consumers the group has; nothing for one that has not come to stay.
    #[must_use]
    pub fn company(&self) -> Option<Company> {
        self.subscribed.company.clone()
    }

    /// What was handed to the consumer.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.subscribed.outbox
    }

    /// Ends the deliveries. What was handed out stays leased, and is in the outbox that is returned.
    pub async fn detach(self) -> Outbox {
        let Subscribed { consumer, mut outbox, .. } = self.subscribed;
        let (done, detached) = oneshot::channel();
        self.delivery.send(Request::Detach { consumer, done }).await;
        // Fails when the delivery task is gone, and with it everything that was leased.
        let _ = detached.await;
        outbox.keep_leases();
        outbox
    }
}
