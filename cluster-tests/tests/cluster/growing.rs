//! Groups of a queue whose partitions become more: created, moved and deleted meanwhile, also where a node lags that
//! leads what is new.

use std::{ops::Range, time::Duration};

use anyhow::{Context as _, Result, ensure};
use skein_client::{Client, Filter, Message, Position, QueueSettings, QueueUpdate, Reason};
use skein_cluster_tests::{
    cluster::Setup,
    faults::links::{SLOW, slow_way_down},
    key_order::KeyOrder,
    scenario::{self, Scenario},
};
use tokio::task::JoinHandle;

/// A whole test.
const LIMIT: Duration = Duration::from_secs(150);

const QUEUE: &str = "orders";
const GROUP: &str = "stock";

const KEYS: usize = 10;

/// The node that leads the partitions that were there from the beginning. Not the first one, which clients ask for what
/// concerns the whole: then all of it would come late.
const AHEAD: u64 = 2;

/// The node that leads those that are new. It hears late what the other one says, and no third one holds it up: clients
/// come to it before it has heard of what they did there.
const LAGGING: u64 = 3;

/// How late. Too short to keep it from following.
const LAG: Duration = Duration::from_millis(150);

/// What sets the publisher's pace: it is to go on while partitions become more.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(20);

fn linked() -> Setup {
    Setup { links: true, ..Setup::default() }
}

async fn create_queue(client: &Client, partitions: u32) -> Result<()> {
    let settings = QueueSettings { partitions: Some(partitions), order_by_key: true, ..Default::default() };
    client.create_queue(QUEUE, settings).await?;
    Ok(())
}

/// There is a group that never acks anything: others find all there was.
async fn keep_everything(client: &Client) -> Result<()> {
    client.create_group(QUEUE, "away", Position::First).await?;
    Ok(())
}

async fn grow(client: &Client, partitions: u32) -> Result<()> {
    client.update_queue(QUEUE, QueueUpdate::new().partitions(partitions)).await?;
    Ok(())
}

/// Publishes what each key has at these places.
async fn publish(client: &Client, order: &KeyOrder, places: Range<usize>) -> Result<()> {
    let producer = client.producer(QUEUE).build().await?;
    order.publish(&producer, places, PUBLISH_INTERVAL).await?;
    producer.close().await.context("closing the producer")
}

/// Handles up to so many messages of a group, in the background.
fn work(client: &Client, order: &KeyOrder, group: &str, count_max: usize) -> JoinHandle<Result<()>> {
    let (client, order, group) = (client.clone(), order.clone(), group.to_owned());
    tokio::spawn(async move { order.work(client, QUEUE, &group, count_max).await })
}

/// Lets a node lead partitions, and lag behind the one that leads the older ones.
async fn lag_in_front(scenario: &Scenario, old: Range<u32>, new: Range<u32>) -> Result<()> {
    for (partitions, node) in [(old, AHEAD), (new, LAGGING)] {
        for partition in partitions {
            scenario.cluster.make_leader(&format!("{QUEUE}/{partition}"), node).await?;
        }
    }
    slow_way_down(&scenario.cluster, &scenario.recorder, (AHEAD, LAGGING), LAG)
}

#[tokio::test]
async fn new_groups_get_keys_in_order_from_a_node_that_has_not_heard_of_them() {
    let name = "new_groups_get_keys_in_order_from_a_node_that_has_not_heard_of_them";
    scenario::run_with(&linked(), name, LIMIT, async |scenario| {
        scenario.require(SLOW);
        let client = scenario.client().await?;
        create_queue(&client, 2).await?;
        keep_everything(&client).await?;
        let order = KeyOrder::new(KEYS, 12);
        publish(&client, &order, 0..8).await?;
        grow(&client, 5).await?;
        publish(&client, &order, 8..12).await?;
        lag_in_front(scenario, 0..2, 2..5).await?;
        for group in ["mail", "stock", "tax", "audit"] {
            order.forget();
            work(&client, &order, group, usize::MAX).await??;
            order.check().context(group)?;
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_group_is_moved_back_while_partitions_become_more() {
    scenario::run_with(
        &linked(),
        "a_group_is_moved_back_while_partitions_become_more",
        LIMIT,
        async |scenario| {
            scenario.require(SLOW);
            let client = scenario.client().await?;
            let other = scenario.client().await?;
            create_queue(&client, 2).await?;
            client.create_group(QUEUE, GROUP, Position::First).await?;
            keep_everything(&client).await?;
            let order = KeyOrder::new(KEYS, 100);
            let publishing = {
                let (client, order) = (client.clone(), order.clone());
                tokio::spawn(async move { publish(&client, &order, 0..100).await })
            };
            let mut partitions = 2;
            for count_max in [50, 100, 150] {
                work(&client, &order, GROUP, count_max).await??;
                order.check().with_context(|| format!("of {partitions}"))?;
                let (grown, moved) = tokio::join!(
                    grow(&client, partitions + 2),
                    other.seek_group(QUEUE, GROUP, Position::First)
                );
                grown?;
                moved.with_context(|| format!("from {partitions} partitions"))?;
                order.forget();
                lag_in_front(scenario, 0..2, partitions..partitions + 2).await?;
                partitions += 2;
            }
            publishing.await??;
            let workers = [(); 3].map(|()| work(&client, &order, GROUP, usize::MAX));
            for worker in workers {
                worker.await??;
            }
            order.check()?;
            ensure!(client.get_group(QUEUE, GROUP).await?.unacked_count == 0, "some are left");
            Ok(())
        },
    )
    .await;
}

/// Also of those that nothing was published to, and nobody consumes from.
#[tokio::test]
async fn a_group_of_the_whole_is_one_of_new_partitions_too() {
    scenario::run("a_group_of_the_whole_is_one_of_new_partitions_too", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        create_queue(&client, 1).await?;
        client.create_group(QUEUE, GROUP, Position::First).await?;
        for partitions in 2..8 {
            grow(&client, partitions).await?;
            let group = client.get_group(QUEUE, GROUP).await?;
            ensure!(group.unacked_count == 0, "{group:?}");
            client
                .seek_group(QUEUE, GROUP, Position::First)
                .await
                .with_context(|| format!("{partitions}"))?;
        }
        grow(&client, 9).await?;
        client.set_filter(QUEUE, GROUP, Some(Filter::header_exists("vip"))).await?;
        let producer = client.producer(QUEUE).build().await?;
        for number in 0..100 {
            drop(producer.send(Message::new("x").key(format!("customer-{number}"))).await?);
        }
        producer.close().await?;
        for partition in 0..9 {
            let group = client.get_group(&format!("{QUEUE}/{partition}"), GROUP).await?;
            ensure!(group.filter.is_some(), "partition {partition}: {group:?}");
        }
        grow(&client, 12).await?;
        client.delete_group(QUEUE, GROUP).await?;
        let missing = client.seek_group(QUEUE, GROUP, Position::First).await;
        ensure!(missing.is_err_and(|error| error.reason() == Reason::GroupNotFound), "it is still there");
        Ok(())
    })
    .await;
}
