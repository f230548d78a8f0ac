//! Topics that pass messages on to queues with partitions, which become more meanwhile: each message is stored once,
//! and keys keep their order.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use skein_client::{Client, Message, Offset, QueueSettings, QueueUpdate, Reason, Routed};
use skein_cluster_tests::{by_hand::body, faults::kill::KILL_LEADER, scenario, wait};

use crate::queue_partitions::{ALL_KEYED, QUEUE, grow_under_keys, partitions};

/// A whole test.
const LIMIT: Duration = Duration::from_secs(120);

const TOPIC: &str = "events";

/// What lies in each partition.
async fn stored(client: &Client, queue: &str, count: u32) -> Result<Vec<Vec<String>>> {
    let mut stored = Vec::new();
    for partition in 0..count {
        let mut messages = client.browse(&format!("{queue}/{partition}"), Offset::new(0), None).await?;
        let mut bodies = Vec::new();
        while let Some(message) = messages.next().await {
            bodies.push(body(&message?.message));
        }
        stored.push(bodies);
    }
    Ok(stored)
}

#[tokio::test]
async fn a_topic_names_a_queue_and_not_its_partitions() {
    scenario::run("a_topic_names_a_queue_and_not_its_partitions", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(QUEUE, partitions(4)).await?;
        client.create_queue("rest", partitions(2)).await?;
        client.create_topic(TOPIC, Some("rest")).await?;
        ensure!(client.bind(TOPIC, QUEUE, Some("key ^= order".parse()?)).await?, "it is new");
        let topic = client.get_topic(TOPIC).await?;
        ensure!(topic.alternate_queue.as_deref() == Some("rest"), "{topic:?}");
        ensure!(topic.bindings.len() == 1 && topic.bindings[0].queue == QUEUE, "{topic:?}");

        let messages: Vec<_> =
            (0..40).map(|number| Message::new(number.to_string()).key(format!("order-{number}"))).collect();
        let routed = client.publish_to_topic(TOPIC, messages.clone(), true).await?;
        ensure!(routed == Routed { copies: 40, unrouted: 0 }, "{routed:?}");
        let spread = stored(&client, QUEUE, 4).await?;
        ensure!(spread.iter().all(|partition| !partition.is_empty()), "{spread:?}");
        // As whoever publishes to the queue itself.
        let producer = client.producer(QUEUE).build().await?;
        for message in messages {
            drop(producer.send(message).await?);
        }
        producer.close().await?;
        let twice = stored(&client, QUEUE, 4).await?;
        let is_same = |(once, twice): (&Vec<String>, &Vec<String>)| {
            let (before, after) = twice.split_at(once.len());
            before == once && BTreeSet::from_iter(after) == BTreeSet::from_iter(once)
        };
        ensure!(spread.iter().zip(&twice).all(is_same), "keys go elsewhere: {twice:?}");
        let without_key = (0..8).map(|number| Message::new(number.to_string())).collect();
        let routed = client.publish_to_topic(TOPIC, without_key, true).await?;
        ensure!(routed == Routed { copies: 8, unrouted: 0 }, "{routed:?}");
        let rest = stored(&client, "rest", 2).await?;
        ensure!(rest.iter().all(|partition| partition.len() == 4), "they take turns: {rest:?}");

        let refused = client.bind(TOPIC, "orders/1", None).await.err().context("it is a partition")?;
        ensure!(refused.reason() == Reason::Partitioned && refused.to_string().contains(QUEUE), "{refused}");
        let refused = client.delete_queue("rest").await.err().context("the topic names it")?;
        ensure!(refused.reason() == Reason::QueueInUse, "{refused}");
        client.delete_queue(QUEUE).await?;
        ensure!(client.get_topic(TOPIC).await?.bindings.is_empty(), "bindings go with their queue");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn keys_of_a_topic_keep_their_order_while_partitions_become_more_and_leaders_die() {
    let name = "keys_of_a_topic_keep_their_order_while_partitions_become_more_and_leaders_die";
    scenario::run(name, LIMIT, async |scenario| {
        scenario.require(KILL_LEADER);
        let client = scenario.client().await?;
        client.create_queue(QUEUE, QueueSettings { order_by_key: true, ..partitions(2) }).await?;
        client.create_queue("audit", QueueSettings::default()).await?;
        client.create_topic(TOPIC, None).await?;
        client.bind(TOPIC, QUEUE, None).await?;
        client.bind(TOPIC, "audit", None).await?;
        let counts = grow_under_keys(scenario, TOPIC, [usize::MAX; 3]).await?;
        ensure!(counts[5..].iter().sum::<u64>() > 0, "no key went to a new one: {counts:?}");
        let audited = client.get_queue("audit").await?.next_offset.get();
        ensure!(audited == ALL_KEYED, "{audited} of {ALL_KEYED}");
        Ok(())
    })
    .await;
}

/// Single batches, through any node, while there come to be more partitions all the time.
#[tokio::test]
async fn single_batches_of_a_topic_are_spread_over_partitions_as_they_come() {
    let name = "single_batches_of_a_topic_are_spread_over_partitions_as_they_come";
    scenario::run(name, LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(QUEUE, partitions(1)).await?;
        client.create_topic(TOPIC, None).await?;
        client.bind(TOPIC, QUEUE, None).await?;
        let publishing = {
            let client = client.clone();
            tokio::spawn(async move {
                for batch in 0..150 {
                    let message =
                        |number| Message::new(format!("{batch}-{number}")).key(format!("key-{number}"));
                    let routed = client.publish_to_topic(TOPIC, (0..10).map(message).collect(), true).await?;
                    ensure!(routed == Routed { copies: 10, unrouted: 0 }, "{routed:?}");
                }
                Ok(())
            })
        };
        for count in 2..=12 {
            client.update_queue(QUEUE, QueueUpdate::new().partitions(count)).await?;
        }
        publishing.await??;
        wait::until("all to be there", LIMIT, async || {
            let all: Vec<_> = stored(&client, QUEUE, 12).await?.concat();
            let different = all.iter().collect::<BTreeSet<_>>().len();
            ensure!(
                (all.len(), different) == (1_500, 1_500),
                "{} messages, {different} of them different",
                all.len()
            );
            Ok(())
        })
        .await
    })
    .await;
}
