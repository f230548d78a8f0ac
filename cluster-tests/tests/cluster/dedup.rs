//! Deduplication by message id: whoever publishes it, and through whichever node, a message is stored once within the
//! window, and again after it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use skein_client::{Client, Message, Offset, QueueSettings, QueueUpdate, Reason, RedriveOptions};
use skein_cluster_tests::{
    by_hand::{body, expect_nothing, next, take_bodies},
    faults::kill::{KILL_LEADER, kill_leader},
    scenario, wait,
};
use tokio::{sync::watch, task::JoinSet, time::Instant};

/// A whole test.
const LIMIT: Duration = Duration::from_secs(90);

const QUEUE: &str = "orders";
const GROUP: &str = "mail";

/// Longer than a test.
const WINDOW: Duration = Duration::from_secs(120);

const PUBLISHERS: usize = 4;

/// So many messages are some of the load, at which something is to happen.
const SOME: u64 = 100;

fn message(id: &str, text: &str) -> Message {
    Message { message_id: id.to_owned(), ..Message::new(text.to_owned()) }
}

async fn bodies(client: &Client) -> Result<Vec<String>> {
    let mut messages = client.browse(QUEUE, Offset::new(0), None).await?;
    let mut bodies = Vec::new();
    while let Some(message) = messages.next().await {
        bodies.push(body(&message?.message));
    }
    Ok(bodies)
}

async fn queue(client: &Client, window: Duration) -> Result<()> {
    let settings = QueueSettings { dedup_window: Some(window), ..QueueSettings::default() };
    client.create_queue(QUEUE, settings).await?;
    Ok(())
}

#[tokio::test]
async fn a_message_is_stored_once_within_the_window() {
    scenario::run("a_message_is_stored_once_within_the_window", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        let window = Duration::from_secs(4);
        queue(&client, window).await?;
        let began = Instant::now();
        let first =
            client.send(QUEUE, vec![message("a", "0"), message("b", "1"), message("a", "again")]).await?;
        ensure!(first == Offset::new(0), "{first}");
        // Those without an id are never the same.
        client.send(QUEUE, vec![message("", "2"), message("", "3"), message("b", "again")]).await?;
        let producer = client.producer(QUEUE).build().await?;
        let repeated = producer.send(message("a", "again")).await?;
        let new = producer.send(message("c", "4")).await?;
        ensure!(repeated.await? < new.await?, "both are confirmed, in order");
        producer.close().await?;
        let mut consumer = client.consumer(QUEUE, GROUP).build().await?;
        let taken = take_bodies(&mut consumer, 5).await?;
        ensure!(taken == ["0", "1", "2", "3", "4"], "{taken:?}");
        expect_nothing(&mut consumer).await?;
        let group = client.get_group(QUEUE, GROUP).await?;
        ensure!(group.unacked_count == 0, "nobody waits for what was not stored: {group:?}");

        wait::until("the id to be forgotten", LIMIT, async || {
            client.send(QUEUE, vec![message("a", "after the window")]).await?;
            ensure!(client.get_queue(QUEUE).await?.message_count > 0, "it is still remembered");
            Ok(())
        })
        .await?;
        ensure!(began.elapsed() >= window, "it was forgotten too early");
        ensure!(take_bodies(&mut consumer, 1).await? == ["after the window"], "it is new again");
        expect_nothing(&mut consumer).await?;
        client.update_queue(QUEUE, QueueUpdate::new().no_dedup_window()).await?;
        client.send(QUEUE, vec![message("a", "5"), message("a", "6")]).await?;
        ensure!(take_bodies(&mut consumer, 2).await? == ["5", "6"], "ids do not count any more");
        let hours = QueueUpdate::new().dedup_window(Duration::from_secs(3_601));
        let refused = client.update_queue(QUEUE, hours).await;
        ensure!(refused.is_err_and(|error| error.reason() == Reason::InvalidSetting), "it is too long");
        Ok(())
    })
    .await;
}

/// Publishes the messages from the first one on with their ids, as others do at the same time, until told to stop.
/// Gives how many there are, all of them confirmed.
async fn publish_until(client: Client, stop: watch::Receiver<bool>) -> Result<usize> {
    let producer = client.producer(QUEUE).batch_messages(10).build().await?;
    let mut count = 0;
    while !*stop.borrow() {
        let mut confirms = Vec::new();
        for number in count..count + 10 {
            confirms.push(producer.send(message(&number.to_string(), &number.to_string())).await?);
        }
        for confirm in confirms {
            confirm.await.context("a message was not confirmed")?;
        }
        count += 10;
    }
    producer.close().await?;
    Ok(count)
}

/// Waits until so many more messages are stored than are now.
async fn grow(client: &Client, by: u64) -> Result<()> {
    let wanted = client.get_queue(QUEUE).await?.message_count + by;
    wait::until("the load to go on", LIMIT, async || {
        let count = client.get_queue(QUEUE).await?.message_count;
        ensure!(count >= wanted, "there are {count} of {wanted} messages");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn several_publishers_of_the_same_ids_store_each_once_through_failovers() {
    let name = "several_publishers_of_the_same_ids_store_each_once_through_failovers";
    scenario::run(name, LIMIT, async |scenario| {
        let client = scenario.client().await?;
        queue(&client, WINDOW).await?;
        let stop = watch::Sender::new(false);
        let mut publishers = JoinSet::new();
        for _ in 0..PUBLISHERS {
            publishers.spawn(publish_until(client.clone(), stop.subscribe()));
        }
        scenario.require(KILL_LEADER);
        for _ in 0..2 {
            grow(&client, SOME).await?;
            let dead = kill_leader(&mut scenario.cluster, &scenario.recorder, QUEUE).await?;
            grow(&client, SOME).await?;
            scenario.cluster.restart(dead)?;
        }
        stop.send_replace(true);
        let mut most = 0;
        while let Some(published) = publishers.join_next().await {
            most = most.max(published??);
        }
        let mut found: Vec<usize> =
            bodies(&client).await?.iter().map(|body| body.parse()).collect::<Result<_, _>>()?;
        found.sort_unstable();
        ensure!(found == (0..most).collect::<Vec<_>>(), "of {most} messages these are stored: {found:?}");

        // A node that was away has heard of them all: it answers the same when it leads.
        let dead = kill_leader(&mut scenario.cluster, &scenario.recorder, QUEUE).await?;
        scenario.cluster.restart(dead)?;
        let again = (0..most).map(|number| message(&number.to_string(), "again")).collect();
        client.send(QUEUE, again).await?;
        ensure!(bodies(&client).await?.len() == most, "the next leader stored some again");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_message_that_is_moved_is_no_duplicate() {
    scenario::run("a_message_that_is_moved_is_no_duplicate", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        let settings = QueueSettings { dedup_window: Some(WINDOW), ..QueueSettings::default() };
        client.create_queue("dead", settings.clone()).await?;
        let dead_letter_queue = Some("dead".to_owned());
        let settings = QueueSettings { dead_letter_queue, max_deliveries: Some(1), ..settings };
        client.create_queue(QUEUE, settings).await?;
        client.send(QUEUE, vec![message("a", "0")]).await?;
        let mut consumer = client.consumer(QUEUE, GROUP).build().await?;
        for round in 0..3 {
            let delivery = next(&mut consumer).await.with_context(|| format!("in round {round}"))?;
            delivery.nack().await?;
            wait::until("the message to be moved", LIMIT, async || {
                let group = client.get_group(QUEUE, GROUP).await?;
                ensure!(group.dead_lettered_count == round + 1, "{group:?}");
                Ok(())
            })
            .await?;
            let moved = client.redrive("dead", RedriveOptions::default(), |_| {}).await?;
            ensure!(moved.moved_count == 1, "{moved:?}");
        }
        ensure!(take_bodies(&mut consumer, 1).await? == ["0"], "it came back each time");
        client.send(QUEUE, vec![message("a", "again")]).await?;
        expect_nothing(&mut consumer).await
    })
    .await;
}

#[tokio::test]
async fn what_comes_through_a_topic_counts_as_well() {
    scenario::run("what_comes_through_a_topic_counts_as_well", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        queue(&client, WINDOW).await?;
        client.create_topic("events", None).await?;
        client.bind("events", QUEUE, None).await?;
        client.send(QUEUE, vec![message("a", "0")]).await?;
        let batch = vec![message("a", "again"), message("b", "1"), message("b", "again")];
        client.publish_to_topic("events", batch, true).await?;
        ensure!(bodies(&client).await? == ["0", "1"], "two of them were there");
        Ok(())
    })
    .await;
}
