//! Order by key: whatever competes, comes and goes, gives back or dies, no message is delivered before those with its
//! key that were published before it are done.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use skein_client::{Client, Message, QueueSettings, QueueUpdate};
use skein_cluster_tests::{
    by_hand::body,
    faults::kill::{KILL_LEADER, kill_leader},
    key_order::KeyOrder,
    scenario,
};
use tokio::task::JoinSet;

/// A whole test.
const LIMIT: Duration = Duration::from_secs(90);

const QUEUE: &str = "orders";
const GROUP: &str = "stock";

const KEYS: usize = 20;
const MESSAGES_PER_KEY: usize = 60;

async fn publish(client: &Client, order: &KeyOrder, places: std::ops::Range<usize>) -> Result<()> {
    for place in places {
        client.send(QUEUE, order.messages(place).collect()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn messages_of_a_key_are_handled_in_order_through_failovers() {
    scenario::run("messages_of_a_key_are_handled_in_order_through_failovers", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(QUEUE, QueueSettings { order_by_key: true, ..QueueSettings::default() }).await?;
        let order = KeyOrder::new(KEYS, MESSAGES_PER_KEY);
        let mut workers = JoinSet::new();
        let start = |workers: &mut JoinSet<Result<()>>, count_max| {
            workers.spawn(order.clone().work(client.clone(), QUEUE, GROUP, count_max));
        };
        // Some leave before the end, and others come.
        for count_max in [100, usize::MAX, usize::MAX] {
            start(&mut workers, count_max);
        }
        publish(&client, &order, 0..MESSAGES_PER_KEY / 3).await?;
        scenario.require(KILL_LEADER);
        let dead = kill_leader(&mut scenario.cluster, &scenario.recorder, QUEUE).await?;
        start(&mut workers, usize::MAX);
        publish(&client, &order, MESSAGES_PER_KEY / 3..2 * MESSAGES_PER_KEY / 3).await?;
        scenario.cluster.restart(dead)?;
        publish(&client, &order, 2 * MESSAGES_PER_KEY / 3..MESSAGES_PER_KEY).await?;
        while let Some(worker) = workers.join_next().await {
            worker??;
        }
        order.finish(&client, QUEUE, GROUP, LIMIT).await
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
