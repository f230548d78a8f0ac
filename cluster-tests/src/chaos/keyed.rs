//! A queue whose partitions become more, with keyed messages that are published and handled all the while. Each key
//! keeps its order, and nothing is lost or stored twice.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use skein_client::{Client, Position, Producer, QueueSettings, QueueUpdate};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time,
};

use super::DELIVERY_TIMEOUT;
use crate::{key_order::KeyOrder, workload::join_all};

const QUEUE: &str = "meters";
const GROUP: &str = "charts";

const KEYS: usize = 10;
const WORKERS: usize = 4;

/// Each key has a message this often.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);

const PARTITIONS_FIRST: u32 = 2;

/// There come to be no more: each is a queue that nodes are asked about, and more show nothing new.
const PARTITIONS_MAX: u32 = 48;

/// All is confirmed, and then handled, within this once the cluster is whole.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);

/// The queue, who publishes to it, and who consumes from it.
pub(super) struct Keyed {
    client: Client,
    order: KeyOrder,
    partitions: u32,
    stop: watch::Sender<bool>,
    /// Says how many messages each key had.
    publishing: JoinHandle<Result<usize>>,
    workers: JoinSet<Result<()>>,
}

impl Keyed {
    /// Creates the queue, and starts publishing and consuming.
    pub(super) async fn start(client: Client) -> Result<Self> {
        let settings = QueueSettings {
            partitions: Some(PARTITIONS_FIRST),
            order_by_key: true,
            ..QueueSettings::default()
        };
        client.create_queue(QUEUE, settings).await?;
        client.create_group(QUEUE, GROUP, Position::First).await?;
        let order = KeyOrder::open(KEYS);
        let mut workers = JoinSet::new();
        for _ in 0..WORKERS {
            let (order, client) = (order.clone(), client.clone());
            workers.spawn(async move { order.work(client, QUEUE, GROUP, usize::MAX).await });
        }
        let stop = watch::Sender::new(false);
        let producer = client.producer(QUEUE).delivery_timeout(DELIVERY_TIMEOUT).build().await?;
        let publishing = tokio::spawn(publish(producer, order.clone(), stop.subscribe()));
        Ok(Self { client, order, partitions: PARTITIONS_FIRST, stop, publishing, workers })
    }

    /// Lets the queue have so many more partitions, up to a limit, and those that it was to have before.
    pub(super) async fn grow(&mut self, more: u32) -> Result<()> {
        self.partitions = (self.partitions + more).min(PARTITIONS_MAX);
        self.client.update_queue(QUEUE, QueueUpdate::new().partitions(self.partitions)).await?;
        Ok(())
    }

    /// Ends publishing, lets consumers handle what is left, and judges. The cluster must be whole.
    pub(super) async fn finish(mut self) -> Result<()> {
        self.stop.send_replace(true);
        let published =
            time::timeout(DRAIN_LIMIT, self.publishing).await.context("publishing does not end")???;
        self.order.end_at(published);
        let drained = time::timeout(DRAIN_LIMIT, join_all(&mut self.workers)).await;
        self.order.check()?;
        let done = self.order.done_count();
        drained.with_context(|| {
            format!("{done} are handled, of {published} messages of each of {KEYS} keys")
        })??;
        let mut stored = 0;
        for partition in 0..self.partitions {
            stored += self.client.get_queue(&format!("{QUEUE}/{partition}")).await?.next_offset.get();
        }
        ensure!(stored == (published * KEYS) as u64, "{stored} are stored, of {published} of each key");
        Ok(())
    }
}

async fn publish(producer: Producer, order: KeyOrder, stop: watch::Receiver<bool>) -> Result<usize> {
    let mut places = 0;
    while !*stop.borrow() {
        order.publish(&producer, places..places + 1, PUBLISH_EVERY).await?;
        places += 1;
    }
    producer.close().await.context("closing the producer")?;
    Ok(places)
}
