//! Order by key: whatever competes, comes and goes, gives back or dies, no message is delivered before those with its
//! key that were published before it are done.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use skein_client::{Client, Consumer, Delivery, Message, QueueSettings, QueueUpdate};
use skein_cluster_tests::{
    by_hand::body,
    faults::kill::{KILL_LEADER, kill_leader},
    scenario, wait,
};
use tokio::{task::JoinSet, time};

/// A whole test.
const LIMIT: Duration = Duration::from_secs(90);

const QUEUE: &str = "orders";
const GROUP: &str = "stock";

const KEYS: usize = 20;
const MESSAGES_PER_KEY: usize = 60;

/// How long a consumer waits for a message before it looks whether all is done.
const PATIENCE: Duration = Duration::from_millis(500);

/// Which messages of each key are done: somebody has acked them, and nobody has got them again since.
#[derive(Default)]
struct Progress {
    done: BTreeMap<String, Vec<bool>>,
    violations: Vec<String>,
}

impl Progress {
    fn on_delivery(&mut self, key: &str, place: usize) {
        let done = self.done.entry(key.to_owned()).or_insert_with(|| vec![false; MESSAGES_PER_KEY]);
        if let Some(missing) = done[..place].iter().position(|done| !done) {
            self.violations.push(format!("{place} of key {key} came before {missing} was done"));
        }
        done[place] = false;
    }

    fn on_done(&mut self, key: &str, place: usize) {
        if let Some(done) = self.done.get_mut(key) {
            done[place] = true;
        }
    }

    fn is_complete(&self) -> bool {
        self.done.len() == KEYS && self.done.values().flatten().all(|done| *done)
    }
}

type Shared = Arc<Mutex<Progress>>;

fn with<T>(progress: &Shared, act: impl FnOnce(&mut Progress) -> T) -> T {
    act(&mut progress.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Handles messages until all are done, or it has handled `count_max`. It gives every fifth back at first.
async fn work(client: Client, progress: Shared, count_max: usize) -> Result<()> {
    let mut consumer = client.consumer(QUEUE, GROUP).credit_messages(8).build().await?;
    for _ in 0..count_max {
        let Some(delivery) = take(&mut consumer, &progress).await? else { break };
        let key = String::from_utf8_lossy(&delivery.message.key).into_owned();
        let place: usize = body(&delivery.message).parse()?;
        with(&progress, |progress| progress.on_delivery(&key, place));
        let settled = match (place % 5, delivery.attempt) {
            (2, 1) => delivery.nack(),
            (4, 1) => delivery.nack_after(Duration::from_millis(30)),
            _ => {
                with(&progress, |progress| progress.on_done(&key, place));
                delivery.ack()
            }
        };
        // A lease that was lost comes to whoever gets the message again.
        let _ = settled.await;
    }
    consumer.close().await;
    Ok(())
}

/// The next message; nothing when all are done.
async fn take(consumer: &mut Consumer, progress: &Shared) -> Result<Option<Delivery>> {
    loop {
        if let Ok(delivery) = time::timeout(PATIENCE, consumer.next()).await {
            return Ok(Some(delivery.context("the consumer ended")??));
        }
        if with(progress, |progress| progress.is_complete()) {
            return Ok(None);
        }
    }
}

async fn publish(client: &Client, places: std::ops::Range<usize>) -> Result<()> {
    for place in places {
        let messages = (0..KEYS).map(|key| Message::new(place.to_string()).key(format!("customer-{key}")));
        client.send(QUEUE, messages.collect()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn messages_of_a_key_are_handled_in_order_through_failovers() {
    scenario::run("messages_of_a_key_are_handled_in_order_through_failovers", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(QUEUE, QueueSettings { order_by_key: true, ..QueueSettings::default() }).await?;
        let progress = Shared::default();
        let mut workers = JoinSet::new();
        let start = |workers: &mut JoinSet<Result<()>>, count_max| {
            workers.spawn(work(client.clone(), Arc::clone(&progress), count_max));
        };
        // Some leave before the end, and others come.
        for count_max in [100, usize::MAX, usize::MAX] {
            start(&mut workers, count_max);
        }
        publish(&client, 0..MESSAGES_PER_KEY / 3).await?;
        scenario.require(KILL_LEADER);
        let dead = kill_leader(&mut scenario.cluster, &scenario.recorder, QUEUE).await?;
        start(&mut workers, usize::MAX);
        publish(&client, MESSAGES_PER_KEY / 3..2 * MESSAGES_PER_KEY / 3).await?;
        scenario.cluster.restart(dead)?;
        publish(&client, 2 * MESSAGES_PER_KEY / 3..MESSAGES_PER_KEY).await?;
        while let Some(worker) = workers.join_next().await {
            worker??;
        }
        let violations = with(&progress, |progress| std::mem::take(&mut progress.violations));
        ensure!(violations.is_empty(), "{violations:#?}");
        wait::until("all of them to count as acked", LIMIT, async || {
            let group = client.get_group(QUEUE, GROUP).await?;
            ensure!(group.unacked_count == 0, "{group:?}");
            Ok(())
        })
        .await
    })
    .await;
}

#[tokio::test]
async fn other_keys_and_messages_without_one_flow() {
    scenario::run("other_keys_and_messages_without_one_flow", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(QUEUE, QueueSettings::default()).await?;
        client.update_queue(QUEUE, QueueUpdate::new().order_by_key(true)).await?;
        let message = |text: &'static str, key: &'static str| Message::new(text).key(key);
        let messages = [("a 0", "a"), ("a 1", "a"), ("b 0", "b"), ("0", ""), ("1", ""), ("b 1", "b")];
        client.send(QUEUE, messages.map(|(text, key)| message(text, key)).to_vec()).await?;
        let mut first = client.consumer(QUEUE, GROUP).build().await?;
        let mut held = Vec::new();
        for expected in ["a 0", "b 0", "0", "1"] {
            let delivery = first.next().await.context("the consumer ended")??;
            ensure!(body(&delivery.message) == expected, "{delivery:?} came instead of {expected}");
            held.push(delivery);
        }
        let mut second = client.consumer(QUEUE, GROUP).build().await?;
        // What its consumer gave back is first again, whoever gets it.
        held[0].nack().await?;
        let delivery = tokio::select! {
            delivery = first.next() => delivery,
            delivery = second.next() => delivery,
        };
        let delivery = delivery.context("the consumer ended")??;
        ensure!((&*body(&delivery.message), delivery.attempt) == ("a 0", 2), "{delivery:?}");
        held[1].ack().await?;
        let delivery = tokio::select! {
            delivery = first.next() => delivery,
            delivery = second.next() => delivery,
        };
        let delivery = delivery.context("the consumer ended")??;
        ensure!(body(&delivery.message) == "b 1", "{delivery:?}");
        Ok(())
    })
    .await;
}
