//! Where messages lie that there is no memory for is read again from checkpoints: on every node, and whatever has
//! happened to it.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures::future;
use skein_client::{Client, Message, Offset, Position, QueueSettings};
use skein_cluster_tests::{
    by_hand,
    cluster::{NO_PAGE_MEMORY, Setup},
    faults::kill::{KILL_LEADER, kill_leader, rolling_restart},
    scenario, wait,
};

/// A whole test.
const LIMIT: Duration = Duration::from_secs(180);

const QUEUE: &str = "backlog";
const GROUP: &str = "late";

/// Published one by one: each takes some bytes of a page, all of them many pages.
const MESSAGES: u64 = 20_000;

/// More than the newest page takes, much less than all.
const PAGE_BYTES_MAX: u64 = 16 << 10;

/// A node saves its state within this, and lets go of the pages.
const SAVED_LIMIT: Duration = Duration::from_secs(60);

const PAGE_MEMORY: &str = "skein_page_memory_bytes";

#[tokio::test]
async fn a_backlog_that_memory_has_no_room_for_is_delivered_whole() {
    let name = "a_backlog_that_memory_has_no_room_for_is_delivered_whole";
    let setup = Setup { settings: NO_PAGE_MEMORY.to_owned(), ..Setup::default() };
    scenario::run_with(&setup, name, LIMIT, async |scenario| {
        scenario.require(KILL_LEADER);
        let client = scenario.client().await?;
        client.create_queue(QUEUE, QueueSettings::default()).await?;
        client.create_group(QUEUE, GROUP, Position::First).await?;
        let producer = client.producer(QUEUE).batch_messages(1).build().await?;
        let sent =
            future::join_all((0..MESSAGES).map(|number| producer.send(Message::new(number.to_string()))));
        for confirm in sent.await {
            confirm?.await?;
        }
        for node_id in scenario.cluster.node_ids() {
            wait::until(&format!("node {node_id} to save its state"), SAVED_LIMIT, async || {
                let bytes = scenario.cluster.metric(node_id, PAGE_MEMORY).await?;
                ensure!((1..PAGE_BYTES_MAX).contains(&bytes), "it keeps {bytes} bytes of pages");
                Ok(())
            })
            .await?;
        }

        // Some of every page, so that holes are everywhere.
        let mut left: BTreeSet<Offset> = (0..MESSAGES).map(Offset::new).collect();
        let mut consumer =
            client.consumer(QUEUE, GROUP).credit_messages(u32::try_from(MESSAGES)?).build().await?;
        let mut acks = Vec::new();
        for number in 0..MESSAGES {
            let delivery =
                by_hand::next(&mut consumer).await.with_context(|| format!("after {number} messages"))?;
            ensure!(
                delivery.offset == Offset::new(number),
                "{} came after {number} messages",
                delivery.offset
            );
            ensure!(
                by_hand::body(&delivery.message) == number.to_string(),
                "message {number} is another one"
            );
            if number % 3 == 0 {
                left.remove(&delivery.offset);
                acks.push(delivery.ack());
            }
        }
        for ack in future::join_all(acks).await {
            ack?;
        }
        drop(consumer);

        kill_leader(&mut scenario.cluster, &scenario.recorder, QUEUE).await?;
        scenario.cluster.heal().await?;
        rolling_restart(&mut scenario.cluster, &scenario.recorder).await?;
        take_all(&client, left).await
    })
    .await;
}

/// Acks exactly these.
async fn take_all(client: &Client, mut left: BTreeSet<Offset>) -> Result<()> {
    let mut consumer = client.consumer(QUEUE, GROUP).build().await?;
    let mut acks = Vec::new();
    while !left.is_empty() {
        let delivery =
            by_hand::next(&mut consumer).await.with_context(|| format!("{} are left", left.len()))?;
        let body = by_hand::body(&delivery.message);
        ensure!(body == delivery.offset.to_string(), "{body} is at offset {}", delivery.offset);
        ensure!(left.remove(&delivery.offset), "{} came, and was acked before", delivery.offset);
        acks.push(delivery.ack());
    }
    for ack in future::join_all(acks).await {
        ack?;
    }
    by_hand::expect_nothing(&mut consumer).await
}
