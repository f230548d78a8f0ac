//! Load that nobody judges: so many messages a second, published to a few queues and acked by their consumers.

use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use skein_client::{Client, Consumer, Message, Position, Producer, QueueSettings};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{self, MissedTickBehavior},
};

use crate::workload::join_all;

/// As many as nodes, so that each leads one, about.
const QUEUES: [&str; 3] = ["load-0", "load-1", "load-2"];
const GROUP: &str = "load";

/// Messages are sent this often, those of that time at once.
const BURSTS_PER_S: u64 = 200;
const BURST_EVERY: Duration = Duration::from_millis(1_000 / BURSTS_PER_S);

const BODY_BYTES: usize = 1_024;

/// Publishers and consumers end within this once the cluster is whole.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Load under way. Dropping it ends it at once.
pub(super) struct Load {
    stop: watch::Sender<bool>,
    tasks: JoinSet<Result<()>>,
}

impl Load {
    /// Publishes about so many messages of 1 KiB a second in all; fewer when the cluster takes no more.
    pub(super) async fn start(client: &Client, messages_per_s: u64) -> Result<Self> {
        let stop = watch::Sender::new(false);
        let mut tasks = JoinSet::new();
        let burst = messages_per_s / BURSTS_PER_S / QUEUES.len() as u64;
        for queue in QUEUES.into_iter().filter(|_| burst > 0) {
            client.create_queue(queue, QueueSettings::default()).await?;
            client.create_group(queue, GROUP, Position::First).await?;
            let consumer = client.consumer(queue, GROUP).build().await?;
            tasks.spawn(consume(consumer, stop.subscribe()));
            let producer = client.producer(queue).build().await?;
            tasks.spawn(publish(producer, burst, stop.subscribe()));
        }
        Ok(Self { stop, tasks })
    }

    /// Ends it. The cluster must be whole.
    pub(super) async fn stop(mut self) -> Result<()> {
        self.stop.send_replace(true);
        time::timeout(STOP_LIMIT, join_all(&mut self.tasks)).await.context("the load does not end")?
    }
}

async fn publish(producer: Producer, burst: u64, mut stop: watch::Receiver<bool>) -> Result<()> {
    let body = Bytes::from(vec![b'x'; BODY_BYTES]);
    let mut bursts = time::interval(BURST_EVERY);
    bursts.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            _ = bursts.tick() => {}
        }
        for _ in 0..burst {
            drop(producer.send(Message::new(body.clone())).await?);
        }
    }
    // Some may have been given up while nothing went on for long: nobody counts these messages.
    let _ = producer.close().await;
    Ok(())
}

async fn consume(mut consumer: Consumer, mut stop: watch::Receiver<bool>) -> Result<()> {
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            batch = consumer.next_batch() => drop(batch.context("the consumer ended")??.ack()),
        }
    }
    consumer.close().await;
    Ok(())
}
