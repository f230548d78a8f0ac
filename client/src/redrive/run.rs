//! One run over a dead-letter queue: takes, moves, acks, and gives back the rest.

use std::{collections::BTreeMap, time::Duration};

use futures::future::{BoxFuture, FutureExt, OptionFuture};
use rangemap::RangeSet;
use skein_proto::{broker::Reason, ids::Offset};
use tokio::time::{self, Instant, MissedTickBehavior};

use super::{REDRIVE_GROUP, RedriveOptions, RedriveProgress, is_dead_letter, producer_id, revived};
use crate::{
    client::Client,
    consumer::{Consumer, Delivery},
    error::{Error, RedriveError},
    message::Message,
    position::Position,
    queues::Queue,
};

/// Messages, and bytes of them, that are held at most: to be moved, or to be given back at the end. A consumer's usual
/// number, and bytes enough that the number counts for messages of 64 KiB.
const HELD_MESSAGES_MAX: u32 = 1_000;
const HELD_BYTES_MAX: u64 = 64 << 20;

/// How long nothing comes before the group is asked whether anything is left.
const IDLE: Duration = Duration::from_millis(300);

/// How long nothing comes, although something is left, before that is put down to what is held. Longer than a new
/// leader holds messages back (2 s).
const STALLED: Duration = Duration::from_secs(5);

/// How often in a lease it is extended. Twice may go wrong.
const EXTENSIONS_PER_LEASE: u32 = 3;

/// What a dead-letter queue has that does not say otherwise.
const LEASE_DEFAULT: Duration = Duration::from_secs(30);
const MAX_DELIVERIES_DEFAULT: u32 = 20;

/// The state of one run.
pub(super) struct Redrive<F> {
    client: Client,
    dead_letter_queue: Queue,
    options: RedriveOptions,
    report: F,
    progress: RedriveProgress,
    /// To be moved, one after the other.
    waiting: BTreeMap<Offset, Delivery>,
    moving: Option<Moving>,
    saw_dead_letters: bool,
    /// One has come that was not there when this began: perhaps one that was moved, and given up again at once.
    saw_newer: bool,
    /// Confirmed by the queue it was moved to. When the lease was lost meanwhile, it comes again.
    moved: RangeSet<u64>,
    /// Not to be moved. Given back at the end, because they would come again at once.
    left: BTreeMap<Offset, Delivery>,
}

/// A message on its way.
struct Moving {
    delivery: Delivery,
    to: String,
    sent: BoxFuture<'static, Result<Offset, Error>>,
}

impl<F: FnMut(RedriveProgress)> Redrive<F> {
    pub(super) fn new(client: Client, dead_letter_queue: Queue, options: RedriveOptions, report: F) -> Self {
        Self {
            client,
            dead_letter_queue,
            options,
            report,
            progress: RedriveProgress::default(),
            waiting: BTreeMap::new(),
            moving: None,
            saw_dead_letters: false,
            saw_newer: false,
            moved: RangeSet::new(),
            left: BTreeMap::new(),
        }
    }

    pub(super) async fn run(mut self) -> Result<RedriveProgress, RedriveError> {
        let queue = self.dead_letter_queue.name.clone();
        let is_new = self.client.create_group(&queue, REDRIVE_GROUP, Position::First).await?;
        let mut consumer = self
            .client
            .consumer(&self.dead_letter_queue.name, REDRIVE_GROUP)
            .credit_messages(HELD_MESSAGES_MAX)
            .credit_bytes(HELD_BYTES_MAX)
            .build()
            .await?;
        let moved = self.move_all(&mut consumer).await;
        self.save_worn().await;
        // Acks what was moved, and gives back the rest.
        consumer.close().await;
        if is_new && !self.saw_dead_letters {
            // It would keep every message of a queue that has nothing to do with dead letters.
            self.client.delete_group(&queue, REDRIVE_GROUP).await?;
        }
        moved.map(|()| self.progress)
    }

    async fn move_all(&mut self, consumer: &mut Consumer) -> Result<(), RedriveError> {
        let lease = self.dead_letter_queue.settings.lease.unwrap_or(LEASE_DEFAULT);
        let mut extensions = time::interval((lease / EXTENSIONS_PER_LEASE).max(Duration::from_millis(1)));
        extensions.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut quiet_since = Instant::now();
        let mut look_at = quiet_since + IDLE;
        while self.options.messages_max.is_none_or(|max| self.progress.moved_count < max) {
            self.begin_next();
            if self.saw_newer && self.moving.is_none() {
                return Ok(());
            }
            tokio::select! {
                Some(sent) = OptionFuture::from(self.moving.as_mut().map(|moving| &mut moving.sent)) => {
                    self.end_move(sent)?;
                }
                delivery = consumer.next() => match delivery {
                    Some(delivery) => self.take(delivery?),
                    None => return Ok(()),
                },
                _ = extensions.tick() => {
                    self.extend(lease);
                    continue;
                }
                () = time::sleep_until(look_at), if self.moving.is_none() => {
                    if self.is_over(quiet_since.elapsed()).await? {
                        return Ok(());
                    }
                    look_at = Instant::now() + IDLE;
                    continue;
                }
            }
            quiet_since = Instant::now();
            look_at = quiet_since + IDLE;
        }
        Ok(())
    }

    /// Sorts out what came.
    fn take(&mut self, mut delivery: Delivery) {
        self.saw_dead_letters |= is_dead_letter(&delivery.message);
        if delivery.offset >= self.dead_letter_queue.next_offset {
            self.saw_newer = true;
            return;
        }
        if self.options.target(&delivery.message, &self.dead_letter_queue.name).is_some() {
            self.waiting.insert(delivery.offset, delivery);
            return;
        }
        if !self.is_worn(&delivery) {
            // Its body is part of all that came with it, which would be kept with it.
            delivery.message = Message::default();
        }
        self.left.insert(delivery.offset, delivery);
        self.progress.left_count = self.left.len() as u64;
        (self.report)(self.progress);
    }

    /// Sends the next message off, unless one is on its way.
    fn begin_next(&mut self) {
        while self.moving.is_none()
            && let Some((offset, delivery)) = self.waiting.pop_first()
        {
            if self.moved.contains(&offset.get()) {
                drop(delivery.ack());
                continue;
            }
            let Some(to) = self.options.target(&delivery.message, &self.dead_letter_queue.name) else {
                continue;
            };
            let (client, to, message) = (self.client.clone(), to.to_owned(), revived(&delivery.message));
            let producer_id = producer_id(self.dead_letter_queue.id, offset);
            let queue = to.clone();
            let sent = async move { client.send_as(producer_id, &queue, vec![message]).await }.boxed();
            self.moving = Some(Moving { delivery, to, sent });
        }
    }

    fn end_move(&mut self, sent: Result<Offset, Error>) -> Result<(), RedriveError> {
        let Some(Moving { delivery, to, .. }) = self.moving.take() else { return Ok(()) };
        let offset = delivery.offset;
        if let Err(error) = sent {
            self.waiting.insert(offset, delivery);
            return Err(RedriveError::NotMoved { offset, to, error });
        }
        // A lost ack does no harm: the message is then sent again, and not stored again.
        drop(delivery.ack());
        self.moved.insert(offset.get()..offset.get() + 1);
        self.progress.moved_count += 1;
        (self.report)(self.progress);
        Ok(())
    }

    fn extend(&self, lease: Duration) {
        let moving = self.moving.iter().map(|moving| &moving.delivery);
        for delivery in self.waiting.values().chain(self.left.values()).chain(moving) {
            drop(delivery.extend(lease));
        }
    }

    /// Nothing more is to come, after it has been quiet for so long.
    async fn is_over(&mut self, quiet: Duration) -> Result<bool, RedriveError> {
        match self.client.get_group(&self.dead_letter_queue.name, REDRIVE_GROUP).await {
            Ok(group) if group.is_drained() => return Ok(true),
            Ok(_) => {}
            // The subscription, which creates it, is still on its way.
            Err(error) if error.reason() == Reason::GroupNotFound => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let is_full = self.left.len() >= HELD_MESSAGES_MAX as usize;
        // Large messages use up the credit sooner, and only the node counts their bytes.
        self.progress.stopped_early = is_full || !self.left.is_empty() && quiet >= STALLED;
        Ok(self.progress.stopped_early)
    }

    /// Puts what has come back too often for comfort at the end of the queue, where it begins anew.
    async fn save_worn(&mut self) {
        for delivery in self.waiting.values().chain(self.left.values()) {
            if !self.is_worn(delivery) {
                continue;
            }
            let producer_id = producer_id(self.dead_letter_queue.id, delivery.offset);
            let message = delivery.message.clone();
            match self.client.send_as(producer_id, &self.dead_letter_queue.name, vec![message]).await {
                Ok(_) => drop(delivery.ack()),
                Err(error) => {
                    let queue = &self.dead_letter_queue.name;
                    tracing::warn!(queue, offset = %delivery.offset, %error, "a worn dead letter was not renewed");
                    if error.is_retryable() {
                        // The others would fail in the same way, and there are deliveries left for another time.
                        return;
                    }
                }
            }
        }
    }

    /// Half of its deliveries are used up. Halfway, so that runs that fail do not use up the others.
    fn is_worn(&self, delivery: &Delivery) -> bool {
        let max_deliveries = self.dead_letter_queue.settings.max_deliveries.unwrap_or(MAX_DELIVERIES_DEFAULT);
        delivery.attempt > max_deliveries / 2
    }
}
