//! Messages of many keys, each numbered, and consumers that watch whether they come in the order of their keys.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use skein_client::{Client, Consumer, Delivery, Message, Producer};
use tokio::time;

use crate::{by_hand::body, wait};

/// How long a consumer waits for a message before it looks whether all is done.
const PATIENCE: Duration = Duration::from_millis(500);

/// Which messages of each key are done: somebody has acked them, and nobody has got them again since. Cheap to clone,
/// and then the same.
#[derive(Debug, Clone)]
pub struct KeyOrder {
    keys: usize,
    progress: Arc<Mutex<Progress>>,
}

#[derive(Debug, Default)]
struct Progress {
    done: BTreeMap<String, Vec<bool>>,
    /// How many messages each key has, once that is known.
    messages_per_key: Option<usize>,
    violations: Vec<String>,
}

impl KeyOrder {
    /// So many keys, with so many messages each.
    #[must_use]
    pub fn new(keys: usize, messages_per_key: usize) -> Self {
        let order = Self::open(keys);
        order.end_at(messages_per_key);
        order
    }

    /// So many keys, with as many messages each as is to be seen ([`KeyOrder::end_at`]).
    #[must_use]
    pub fn open(keys: usize) -> Self {
        Self { keys, progress: Arc::default() }
    }

    /// Says how many messages each key has.
    pub fn end_at(&self, messages_per_key: usize) {
        self.with(|progress| progress.messages_per_key = Some(messages_per_key));
    }

    /// The messages at a place, one for each key.
    pub fn messages(&self, place: usize) -> impl Iterator<Item = Message> + use<> {
        (0..self.keys).map(move |key| Message::new(place.to_string()).key(format!("customer-{key}")))
    }

    /// Publishes what each key has at these places, with this long between one and the next; many are on their way at
    /// any time.
    ///
    /// # Errors
    /// When the producer takes no more.
    pub async fn publish(&self, producer: &Producer, places: Range<usize>, interval: Duration) -> Result<()> {
        for place in places {
            for message in self.messages(place) {
                drop(producer.send(message).await?);
            }
            time::sleep(interval).await;
        }
        Ok(())
    }

    /// Handles messages of a queue until all are done, or it has handled `count_max`. It gives every fifth back at
    /// first.
    ///
    /// # Errors
    /// When the consumer ends, or gets what is no such message.
    pub async fn work(self, client: Client, queue: &str, group: &str, count_max: usize) -> Result<()> {
        let mut consumer = client.consumer(queue, group).credit_messages(8).build().await?;
        for _ in 0..count_max {
            let Some(delivery) = self.take(&mut consumer).await? else { break };
            let key = String::from_utf8_lossy(&delivery.message.key).into_owned();
            let place: usize = body(&delivery.message).parse()?;
            self.on_delivery(&key, place, &delivery);
            // Not waited for: a lease that was lost comes to whoever gets the message again.
            drop(match (place % 5, delivery.attempt) {
                (2, 1) => delivery.nack(),
                (4, 1) => delivery.nack_after(Duration::from_millis(30)),
                _ => {
                    self.on_done(&key, place);
                    delivery.ack()
                }
            });
        }
        consumer.close().await;
        Ok(())
    }

    /// Judges what was delivered since this was asked for last.
    ///
    /// # Errors
    /// When messages came before those that their keys had before them.
    pub fn check(&self) -> Result<()> {
        let violations = self.with(|progress| std::mem::take(&mut progress.violations));
        ensure!(violations.is_empty(), "keys are out of order: {violations:#?}");
        Ok(())
    }

    /// Judges like [`KeyOrder::check`], and waits until all messages of the queue count as acked.
    ///
    /// # Errors
    /// Like [`KeyOrder::check`], and when some are not acked in time.
    pub async fn finish(&self, client: &Client, queue: &str, group: &str, limit: Duration) -> Result<()> {
        self.check()?;
        wait::until("all of them to count as acked", limit, async || {
            let group = client.get_group(queue, group).await?;
            ensure!(group.unacked_count == 0, "{group:?}");
            Ok(())
        })
        .await
    }

    /// Takes nothing for done any more: another group, or the same once more, is to get all from the first one on.
    pub fn forget(&self) {
        self.with(|progress| progress.done.clear());
    }

    /// The next message; nothing when all are done.
    async fn take(&self, consumer: &mut Consumer) -> Result<Option<Delivery>> {
        loop {
            if let Ok(delivery) = time::timeout(PATIENCE, consumer.next()).await {
                return Ok(Some(delivery.context("the consumer ended")??));
            }
            if self.is_complete() {
                return Ok(None);
            }
        }
    }

    /// How many are done.
    #[must_use]
    pub fn done_count(&self) -> usize {
        self.with(|progress| progress.done.values().flatten().filter(|done| **done).count())
    }

    fn on_delivery(&self, key: &str, place: usize, delivery: &Delivery) {
        self.with(|Progress { done, violations, .. }| {
            let done = done.entry(key.to_owned()).or_default();
            done.resize(done.len().max(place + 1), false);
            if let Some(missing) = done[..place].iter().position(|done| !done) {
                let Delivery { offset, attempt, partition, .. } = delivery;
                let at = format!("offset {offset}, attempt {attempt}, partition {partition:?}");
                violations.push(format!("{place} of key {key} ({at}) came before {missing} was done"));
            }
            done[place] = false;
        });
    }

    fn on_done(&self, key: &str, place: usize) {
        self.with(|progress| {
            if let Some(done) = progress.done.get_mut(key) {
                done[place] = true;
            }
        });
    }

    fn is_complete(&self) -> bool {
        self.with(|Progress { done, messages_per_key, .. }| {
            let is_done =
                |done: &Vec<bool>| Some(done.len()) == *messages_per_key && done.iter().all(|done| *done);
            done.len() == self.keys && done.values().all(is_done)
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Progress) -> T) -> T {
        act(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
