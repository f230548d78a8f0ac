//! The task that delivers a shard's messages while this node leads it: runs the dispatcher, and replicates what its
//! consumers settle.
//!
//! It starts from the replicated state and hears of every change to it as an [`Event`]. When a settlement cannot be
//! replicated the task ends, since it has let go of leases that the others know nothing of; its successor starts
//! from the replicated state again.

mod settle;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, ready},
    stream::FuturesOrdered,
};
use tokio::sync::{mpsc, oneshot};

use self::settle::{Settling, later, on_settled, redelivery_delay_ms};
use super::{
    company::Companies,
    handle::{
        Coming, DeliveryHandle, GroupCounts, Request, Resumed, SettleError, Subscribe, SubscribeError,
        Subscribed, Unsettled,
    },
    idle::{IdleQueues, Unused},
    outbox::{OutboxItem, OutboxSender, outbox},
    stored::{StoredMessages, group_start, rules},
};
use crate::{
    broker::{self, Command, Event, Queue, Shard},
    clock::{Clock, millis},
    dispatch::{Claim, ConsumerId, Delivery, Dispatcher, GroupKey, Now, Resumption},
    raft::Group,
    random::random_u64,
    tasks,
    telemetry::TRACES,
};

/// Requests that wait for the delivery task.
const MAILBOX_MAX: usize = 1_024;

/// Requests handled before messages are handed out again.
const REQUESTS_PER_TURN: usize = 256;

/// Settlements being replicated. More wait in the mailbox, and their consumers with them.
const SETTLES_IN_FLIGHT_MAX: usize = 1_024;

/// How often queues are asked whether they keep something for too long.
const TRIM_INTERVAL: Duration = Duration::from_secs(1);

/// A new leader holds back what the one before may have delivered for so long, for those who hold it to come back ...
const HOLD_BACK: Duration = Duration::from_millis(2_000);

/// ... but no longer than this after one of them has: they all lost their streams at the same time.
const OTHERS_COME_WITHIN: Duration = Duration::from_millis(250);

type SettleReply = oneshot::Sender<Result<Vec<Unsettled>, SettleError>>;

/// The longest sleep when nothing is due, so that arithmetic on far-off deadlines needs no care.
const IDLE_SLEEP_MAX: Duration = Duration::from_secs(60);

/// Whose turn it is once everything before it has been replicated.
enum Turn {
    Settled(Settling),
    /// A consumer that has come back is told what of its settlements took effect.
    Resumes(Subscribe),
}

pub(super) struct Deliverer {
    group: Arc<Group>,
    clock: Clock,
    dispatcher: Dispatcher,
    outboxes: BTreeMap<ConsumerId, OutboxSender>,
    companies: Companies,
    next_consumer: u64,
    gone: mpsc::UnboundedSender<ConsumerId>,
    gone_receiver: mpsc::UnboundedReceiver<ConsumerId>,
    /// What is being replicated, in its order, and those who wait for that.
    settling: FuturesOrdered<BoxFuture<'static, Turn>>,
    /// Told of groups whose given-up messages wait to be moved.
    dead_letters: mpsc::UnboundedSender<GroupKey>,
    /// When to ask queues whether they keep something for too long, by the steady clock; nothing while none would.
    next_trim_ms: Option<u64>,
    idle: IdleQueues,
    /// Told of queues that nobody uses any more.
    unused: mpsc::UnboundedSender<Unused>,
}

/// Starts delivering. The task ends when `deposed` says so or its sender is gone, when the returned handle and its
/// clones are gone, or when a settlement cannot be replicated.
pub(super) fn start(
    group: Arc<Group>,
    clock: Clock,
    term: u64,
    dead_letters: mpsc::UnboundedSender<GroupKey>,
    unused: mpsc::UnboundedSender<Unused>,
    deposed: oneshot::Receiver<()>,
) -> (DeliveryHandle, tokio::task::JoinHandle<()>) {
    let (requests, mailbox) = mpsc::channel(MAILBOX_MAX);
    let (gone, gone_receiver) = mpsc::unbounded_channel();
    let deliverer = Deliverer {
        dispatcher: Dispatcher::new(),
        outboxes: BTreeMap::new(),
        companies: Companies::default(),
        // Where this task starts counting is random, so that a token of an earlier one names nobody here.
        next_consumer: (random_u64() >> 1).max(1),
        gone,
        gone_receiver,
        settling: FuturesOrdered::new(),
        dead_letters,
        next_trim_ms: Some(0),
        idle: IdleQueues::default(),
        unused,
        group,
        clock,
    };
    let task = tasks::spawn(deliverer.run(mailbox, deposed));
    (DeliveryHandle::new(requests, term), task)
}

impl Deliverer {
    async fn run(mut self, mut mailbox: mpsc::Receiver<Request>, mut deposed: oneshot::Receiver<()>) {
        let mut applied = self.group.replica().applied_index();
        self.begin();
        let mut requests = Vec::new();
        let mut deliveries = Vec::new();
        loop {
            let sleep = self.sleep_until_due();
            tokio::select! {
                biased;
                _ = &mut deposed => break,
                Some(turn) = self.settling.next(), if !self.settling.is_empty() => match turn {
                    Turn::Settled(settling) => if !on_settled(settling) {
                        break;
                    },
                    Turn::Resumes(subscribe) => {
                        self.on_events();
                        self.on_subscribe(subscribe);
                    }
                },
                count = mailbox.recv_many(&mut requests, REQUESTS_PER_TURN),
                    if self.settling.len() < SETTLES_IN_FLIGHT_MAX =>
                {
                    if count == 0 {
                        break;
                    }
                }
                Some(consumer) = self.gone_receiver.recv() => self.on_gone(consumer).await,
                _ = applied.changed() => {}
                () = tokio::time::sleep(sleep) => {}
            }
            applied.mark_unchanged();
            self.on_events();
            for request in requests.drain(..) {
                self.on_request(request).await;
            }
            self.on_time().await;
            self.deliver(&mut deliveries).await;
        }
        self.end(mailbox);
    }

    /// Lets go of everything, and tells those who wait for a settlement what became of it.
    fn end(self, mut mailbox: mpsc::Receiver<Request>) {
        mailbox.close();
        while let Ok(request) = mailbox.try_recv() {
            if let Request::Settle { reply, .. } = request {
                // Whoever asked may have gone.
                let _ = reply.send(Err(SettleError::Ended));
            }
        }
        // A proposal has an outcome soon after its leader was deposed, if only that it is unknown.
        let mut settling = self.settling;
        tasks::spawn(async move {
            while let Some(turn) = settling.next().await {
                if let Turn::Settled(settling) = turn {
                    on_settled(settling);
                }
            }
        });
    }

    /// Takes over what the replicated state says is not acked, and hears of changes from here on.
    fn begin(&mut self) {
        let replica = Arc::clone(self.group.replica());
        replica.with_messages(|shard| {
            shard.observe(true);
            let keys: Vec<_> = shard
                .queues()
                .flat_map(|queue| {
                    queue.groups().map(|group| GroupKey { queue: queue.id(), group: group.id() })
                })
                .collect();
            let held_back_until_ms = self.now().steady_ms + millis(HOLD_BACK);
            for key in keys {
                self.add_group(shard, key, held_back_until_ms);
            }
        });
    }

    fn add_group(&mut self, shard: &Shard, key: GroupKey, held_back_until_ms: u64) {
        let Some(start) = group_start(shard, key, held_back_until_ms) else { return };
        self.dispatcher.add_group(key, start, &StoredMessages(shard));
        let group = shard.queue(key.queue).and_then(|queue| queue.group(key.group));
        if group.is_some_and(|group| group.dead_letter_count() > 0) {
            // Fails when the mover is gone, which is when this task is about to be.
            let _ = self.dead_letters.send(key);
        }
    }

    fn on_events(&mut self) {
        let replica = Arc::clone(self.group.replica());
        replica.with_messages(|shard| {
            for event in shard.take_events() {
                self.on_event(shard, &event);
            }
        });
    }

    fn on_event(&mut self, shard: &Shard, event: &Event) {
        let stored = &StoredMessages(shard);
        match *event {
            Event::QueueOpened { queue } => {
                if let Some(settings) = shard.queue(queue).map(Queue::settings) {
                    self.dispatcher.change_queue(queue, rules(settings), stored);
                }
                self.next_trim_ms = Some(0);
            }
            Event::QueueClosed { queue } => {
                let consumers = self.dispatcher.remove_queue(queue);
                self.forget(&consumers);
                self.companies.end_all(queue);
            }
            Event::Appended { queue, next_offset } => {
                self.dispatcher.handle_appended(queue, next_offset, stored);
            }
            Event::GroupCreated { queue, group } => self.add_group(shard, GroupKey { queue, group }, 0),
            Event::GroupMoved { queue, group } => {
                // Its consumers come again, with nothing in their hands.
                let key = GroupKey { queue, group };
                self.remove_group(key);
                self.add_group(shard, key, 0);
            }
            Event::GroupDeleted { queue, group } => {
                self.remove_group(GroupKey { queue, group });
            }
            Event::Returned { queue, group, range, attempts, not_before_ms } => {
                let key = GroupKey { queue, group };
                self.dispatcher.handle_returned(key, range, attempts, not_before_ms, stored);
            }
            Event::GivenUp { queue, group, range } => {
                self.dispatcher.handle_given_up(GroupKey { queue, group }, range);
            }
            Event::Purged { queue, below } => self.dispatcher.handle_purged(queue, below),
            Event::DeadLettersPending { queue, group } => {
                // Fails when the mover is gone, which is when this task is about to be.
                let _ = self.dead_letters.send(GroupKey { queue, group });
            }
        }
    }

    fn remove_group(&mut self, key: GroupKey) {
        let consumers = self.dispatcher.remove_group(key);
        self.forget(&consumers);
        self.companies.end(key);
    }

    /// Closes the outboxes of consumers that the dispatcher no longer knows: their streams end.
    fn forget(&mut self, consumers: &[ConsumerId]) {
        for consumer in consumers {
            self.outboxes.remove(consumer);
        }
    }

    async fn on_request(&mut self, request: Request) {
        match request {
            Request::Subscribe(subscribe)
                if matches!(subscribe.coming, Coming::ToStay { resume: Some(_), .. })
                    && !self.settling.is_empty() =>
            {
                // What it asks for may be among them.
                self.settling.push_back(ready(Turn::Resumes(subscribe)).boxed());
            }
            Request::Subscribe(subscribe) => self.on_subscribe(subscribe),
            Request::SetCredit { consumer, credit } => self.dispatcher.set_credit(consumer, credit),
            Request::Leave { consumer, seen, done } => {
                let replica = Arc::clone(self.group.replica());
                let seen = seen.into_iter().collect();
                replica.with_messages(|shard| {
                    self.dispatcher.leave(consumer, &seen, &StoredMessages(shard));
                });
                let _ = done.send(());
            }
            Request::Detach { consumer, done } => {
                self.outboxes.remove(&consumer);
                self.dispatcher.detach(consumer);
                let _ = done.send(());
            }
            Request::Settle { key, items, reply } => self.settle(key, items, reply).await,
            Request::Counts { key, reply } => {
                let counts = self.dispatcher.counts(key);
                let _ = reply.send(GroupCounts {
                    leased_messages: counts.leased,
                    delayed_messages: counts.delayed,
                    consumers: counts.consumers,
                });
            }
        }
    }

    fn on_subscribe(&mut self, subscribe: Subscribe) {
        let Subscribe { key, credit, coming, reply } = subscribe;
        let (priority, stays) = match &coming {
            Coming::Once => (0, false),
            Coming::ToStay { priority, .. } => (*priority, true),
        };
        let consumer = ConsumerId::new(self.next_consumer);
        let added = self.dispatcher.add_consumer(key, consumer, credit, priority);
        let subscribed = added.map_err(SubscribeError::from).map(|()| {
            self.next_consumer += 1;
            let resumed = match coming {
                Coming::ToStay { resume: Some(claim), .. } => self.resume(key, consumer, &claim),
                _ => Resumed::default(),
            };
            let (sender, outbox) = outbox(consumer, self.gone.clone());
            self.outboxes.insert(consumer, sender);
            let expected = self.dispatcher.expected(key);
            let company = stays.then(|| self.companies.join(key, consumer, expected));
            Subscribed { consumer, outbox, resumed, company }
        });
        // When the caller has gone away, the outbox is dropped here or there, and says so.
        let _ = reply.send(subscribed);
    }

    fn resume(&mut self, key: GroupKey, consumer: ConsumerId, claim: &Claim) -> Resumed {
        let now = self.now();
        let others_until_ms = now.steady_ms + millis(OTHERS_COME_WITHIN);
        let replica = Arc::clone(self.group.replica());
        replica.with_messages(|shard| {
            let group = shard.queue(key.queue).and_then(|queue| queue.group(key.group));
            let claimed = || claim.held.iter().copied();
            let acked_in = |range| group.into_iter().flat_map(move |group| group.acked_in(range));
            let given_up_in = |range| group.into_iter().flat_map(move |group| group.given_up_in(range));
            let settled = claimed().flat_map(acked_in).collect();
            let given_up = claimed().flat_map(given_up_in).collect();
            let stored = StoredMessages(shard);
            let Resumption { held, former } =
                self.dispatcher.resume(consumer, claim, now, others_until_ms, &stored);
            for former in former {
                // Nobody listens on its lost stream.
                self.outboxes.remove(&former);
                self.companies.leave(key, former, self.dispatcher.expected(key));
            }
            Resumed { held, settled, given_up }
        })
    }

    /// Takes back what a consumer holds that has dropped its outbox.
    async fn on_gone(&mut self, consumer: ConsumerId) {
        self.outboxes.remove(&consumer);
        let key = self.dispatcher.group_of(consumer);
        let returned = self.dispatcher.remove_consumer(consumer);
        if let Some(key) = key {
            self.companies.leave(key, consumer, self.dispatcher.expected(key));
        }
        self.return_all(returned, |_, _| 0).await;
    }

    async fn on_time(&mut self) {
        let now = self.now();
        let expired = self.dispatcher.expire(now.steady_ms);
        if !expired.is_empty() {
            let group = Arc::clone(&self.group);
            self.return_all(expired, |key, attempt| {
                later(now.wall_ms, redelivery_delay_ms(&group, key, attempt))
            })
            .await;
        }
        if self.next_trim_ms.is_some_and(|at_ms| at_ms <= now.steady_ms) {
            self.trim(now).await;
        }
    }

    /// Lets queues let go of what they keep for too long.
    async fn trim(&mut self, now: Now) {
        let replica = Arc::clone(self.group.replica());
        let (is_aging, due) = replica.with_messages(|shard| {
            let is_in_use = |queue| self.dispatcher.is_in_use(queue);
            for unused in self.idle.look(shard.aging_queues(), is_in_use, now.wall_ms) {
                // Fails when this task is about to end.
                let _ = self.unused.send(unused);
            }
            (shard.aging_queues().next().is_some(), shard.trims_due(now.wall_ms).collect::<Vec<_>>())
        });
        self.next_trim_ms = is_aging.then(|| now.steady_ms + millis(TRIM_INTERVAL));
        for queue in
            due.into_iter().take(SETTLES_IN_FLIGHT_MAX - self.settling.len().min(SETTLES_IN_FLIGHT_MAX))
        {
            self.propose(&Command::Trim { queue }, Vec::new(), None).await;
        }
    }

    async fn deliver(&mut self, deliveries: &mut Vec<Delivery>) {
        let now = self.now();
        let replica = Arc::clone(self.group.replica());
        let expired = replica.with_messages(|shard| {
            let stored = StoredMessages(shard);
            let expired = self.dispatcher.take_expired(now, &stored);
            self.dispatcher.poll(now, &stored, deliveries);
            let mut last: Option<OutboxItem> = None;
            for &delivery in &*deliveries {
                // A group's messages cannot vanish between two lines under one lock.
                let Some(slice) = shard.locate(delivery.key.queue, delivery.first, delivery.count) else {
                    continue;
                };
                let group = shard.queue(delivery.key.queue).and_then(|queue| queue.group(delivery.key.group));
                let filter = group.and_then(broker::Group::filter).cloned();
                let item = OutboxItem { delivery, slice, filter };
                if last.as_mut().is_none_or(|last| !last.join(&item)) {
                    self.push(last.replace(item));
                }
            }
            self.push(last);
            expired
        });
        for key in self.dispatcher.take_released() {
            self.companies.wait_for_nobody(key);
        }
        // Not above: spans are written as they end, while nobody should wait for the messages.
        for delivery in deliveries.drain(..) {
            TRACES.deliver(delivery.key.queue, delivery.first..delivery.end());
        }
        self.give_up(expired).await;
    }

    fn push(&self, item: Option<OutboxItem>) {
        if let Some(item) = item
            && let Some(outbox) = self.outboxes.get(&item.delivery.consumer)
        {
            outbox.push(item);
        }
    }

    fn sleep_until_due(&self) -> Duration {
        let now = self.now();
        let trim_in_ms = self.next_trim_ms.map(|at_ms| at_ms.saturating_sub(now.steady_ms));
        let due_in_ms = [self.dispatcher.due_in_ms(now), trim_in_ms].into_iter().flatten().min();
        due_in_ms.map_or(IDLE_SLEEP_MAX, Duration::from_millis).min(IDLE_SLEEP_MAX)
    }

    fn now(&self) -> Now {
        Now { wall_ms: self.clock.wall_ms(), steady_ms: millis(self.clock.monotonic()) }
    }
}
