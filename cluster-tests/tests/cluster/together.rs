//! Publishing to several queues at once: all of it is stored or nothing, whoever dies meanwhile.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use skein_client::{Message, QueueSettings, Reason};
use skein_cluster_tests::{
    faults::kill::{KILL_LEADER, kill_leader},
    scenario, wait,
};
use skein_proto::broker::{self, broker_client::BrokerClient};

/// A whole test.
const LIMIT: Duration = Duration::from_secs(90);

/// Leaders that die while both queues are published to.
const KILLS: usize = 3;

/// Calls that are answered between two kills.
const CALLS_BETWEEN: usize = 30;

fn bounded(max_messages: u64) -> QueueSettings {
    QueueSettings { max_messages: Some(max_messages), ..QueueSettings::default() }
}

fn batch(texts: &[&str]) -> Vec<Message> {
    texts.iter().map(|text| Message::new(text.as_bytes().to_vec())).collect()
}

#[tokio::test]
async fn several_queues_get_their_batches_or_none_does() {
    scenario::run("several_queues_get_their_batches_or_none_does", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue("orders", QueueSettings::default()).await?;
        client.create_queue("elsewhere", QueueSettings::default()).await?;
        ensure!(client.create_colocated_queue("payments", bounded(2), "orders").await?, "it was there");
        ensure!(
            !client.create_colocated_queue("payments", bounded(2), "orders").await?,
            "it was created twice"
        );
        let shards = [client.get_queue("orders").await?.shard, client.get_queue("payments").await?.shard];
        ensure!(shards[0] == shards[1], "they are in {shards:?}");

        let offsets =
            client.send_together([("orders", batch(&["a", "b"])), ("payments", batch(&["c"]))]).await?;
        ensure!(offsets.len() == 2, "{offsets:?}");
        let counts = async || {
            let orders = client.get_queue("orders").await?.message_count;
            anyhow::Ok((orders, client.get_queue("payments").await?.message_count))
        };
        ensure!(counts().await? == (2, 1), "{:?}", counts().await?);
        // The second one has room for one more.
        let full = client.send_together([("orders", batch(&["d"])), ("payments", batch(&["e", "f"]))]).await;
        ensure!(full.is_err_and(|error| error.reason() == Reason::QueueFull), "it had room");
        ensure!(counts().await? == (2, 1), "one has got its batch: {:?}", counts().await?);

        // Each would be taken by itself.
        let large = || vec![Message::new(vec![7; 900_000]); 3];
        let too_large = client.send_together([("orders", large()), ("payments", large())]).await;
        ensure!(too_large.is_err_and(|error| error.reason() == Reason::BatchTooLarge), "they were taken");

        for (other, reason) in [
            ("elsewhere", Reason::NotColocated),
            ("nowhere", Reason::QueueNotFound),
            ("orders", Reason::InvalidSetting),
        ] {
            let refused = client.send_together([("orders", batch(&["g"])), (other, batch(&["h"]))]).await;
            ensure!(refused.is_err_and(|error| error.reason() == reason), "{other} was taken");
        }
        let moved = client.create_colocated_queue("elsewhere", QueueSettings::default(), "orders").await;
        ensure!(moved.is_err_and(|error| error.reason() == Reason::NotColocated), "a queue has moved");
        let nowhere = client.create_colocated_queue("new", QueueSettings::default(), "nowhere").await;
        ensure!(nowhere.is_err_and(|error| error.reason() == Reason::QueueNotFound), "beside nothing");
        ensure!(counts().await? == (2, 1), "{:?}", counts().await?);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_call_for_several_queues_that_is_made_again_is_stored_once_in_each() {
    let name = "a_call_for_several_queues_that_is_made_again_is_stored_once_in_each";
    scenario::run(name, LIMIT, async |scenario| {
        scenario.require(KILL_LEADER);
        let client = scenario.client().await?;
        client.create_queue("orders", QueueSettings::default()).await?;
        client.create_colocated_queue("payments", QueueSettings::default(), "orders").await?;
        let call = |producer_id: u64| {
            let messages = vec![broker::Message { body: "x".into(), ..broker::Message::default() }];
            let batch = Some(broker::MessageBatch { messages });
            let also = vec![broker::QueueBatch { queue: "payments".to_owned(), batch: batch.clone() }];
            let queue = "orders".to_owned();
            broker::SendRequest { queue, producer_id, sequence: 1, batch, also, ..Default::default() }
        };
        let mut calls = 0;
        for _ in 0..KILLS {
            for _ in 0..CALLS_BETWEEN {
                calls += 1;
                wait::until("a call to be answered", LIMIT, async || {
                    // Through whichever node is there: those in between fail, and are made again.
                    for node_id in scenario.cluster.running() {
                        let mut broker = BrokerClient::new(scenario.cluster.channel(node_id)?);
                        if broker.send(call(calls)).await.is_ok() {
                            return Ok(());
                        }
                    }
                    anyhow::bail!("no node answers")
                })
                .await?;
            }
            let dead = kill_leader(&mut scenario.cluster, &scenario.recorder, "orders").await?;
            scenario.cluster.restart(dead)?;
        }
        for producer_id in 1..=calls {
            let broker = BrokerClient::new(scenario.cluster.channel(1)?);
            let again = wait::until("it to be answered again", LIMIT, async || {
                Ok(broker.clone().send(call(producer_id)).await?.into_inner())
            });
            let again = again.await?;
            let confirms: Vec<_> = again.confirm.iter().chain(&again.also).collect();
            let are_known = confirms.iter().all(|confirm| confirm.duplicate);
            ensure!(confirms.len() == 2 && are_known, "{again:?}");
        }
        for queue in ["orders", "payments"] {
            let count = client.get_queue(queue).await.context("looking at it")?.message_count;
            ensure!(count == calls, "{queue} has {count} messages of {calls} calls");
        }
        Ok(())
    })
    .await;
}
