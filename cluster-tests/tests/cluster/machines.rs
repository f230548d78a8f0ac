//! Machines whose clock is set, or whose disk is slow.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use skein_client::{Client, Message, Position, QueueSettings};
use skein_cluster_tests::{
    cluster::Setup,
    faults::machine::{self, SLOW_DISK},
    scenario,
    workload::Plan,
};
use tokio::time;

/// A whole test.
const LIMIT: Duration = Duration::from_secs(90);

/// A message is delivered within this.
const DELIVERY_LIMIT: Duration = Duration::from_secs(10);

/// Nothing that somebody holds comes within this.
const QUIET: Duration = Duration::from_secs(3);

/// Longer than any lease here.
const HOUR_MS: i64 = 3_600_000;

/// A sync that takes this long is one of a worn disk.
const SLOW: Duration = Duration::from_millis(100);

/// A majority of well disks confirms so many within this; all of them in turn on the slow one would take twice as long.
const CONFIRMS: usize = 2_000;
const CONFIRM_LIMIT: Duration = Duration::from_secs(20);

const QUEUE: &str = "orders";

fn on_machines() -> Setup {
    Setup { machines: true, ..Setup::default() }
}

async fn hears_nothing(client: &Client) -> Result<()> {
    let mut other = client.consumer(QUEUE, "mail").build().await?;
    match time::timeout(QUIET, other.next()).await {
        Err(_) => Ok(()),
        Ok(delivery) => bail!("somebody else got {delivery:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_keeps_what_it_holds_while_clocks_are_set() {
    let name = "a_consumer_keeps_what_it_holds_while_clocks_are_set";
    scenario::run_with(&on_machines(), name, LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(QUEUE, QueueSettings::default()).await?;
        client.create_group(QUEUE, "mail", Position::First).await?;
        client.producer(QUEUE).build().await?.send(Message::new("goose")).await?.await?;
        let mut consumer = client.consumer(QUEUE, "mail").build().await?;
        let next = time::timeout(DELIVERY_LIMIT, consumer.next()).await.context("nothing comes")?;
        let held = next.context("the consumer ended")??;
        for ahead_ms in [HOUR_MS, -HOUR_MS, 0] {
            for node_id in scenario.cluster.node_ids() {
                machine::set_clock(&scenario.cluster, &scenario.recorder, node_id, ahead_ms)?;
            }
            hears_nothing(&client).await.with_context(|| format!("{ahead_ms} ms ahead"))?;
        }
        held.ack().await?;
        ensure!(client.get_group(QUEUE, "mail").await?.unacked_count == 0, "the ack was not kept");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_disk_of_a_follower_holds_nobody_up() {
    let name = "a_slow_disk_of_a_follower_holds_nobody_up";
    scenario::run_with(&on_machines(), name, LIMIT, async |scenario| {
        scenario.require(SLOW_DISK);
        let work = scenario.start(&Plan::default()).await?;
        let leader = scenario.cluster.leader_of(QUEUE).await?;
        let follower = scenario.cluster.running().into_iter().find(|node_id| *node_id != leader);
        let follower = follower.context("there are others")?;
        machine::slow_disk_down(&scenario.cluster, &scenario.recorder, follower, SLOW)?;
        scenario.wait_confirmed_in(&[QUEUE.to_owned()], CONFIRMS, CONFIRM_LIMIT).await?;
        machine::heal(&scenario.cluster, &scenario.recorder)?;
        scenario.finish(work).await
    })
    .await;
}
