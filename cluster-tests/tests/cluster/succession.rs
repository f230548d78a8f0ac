//! Who leads next, and what of a consumer's work goes on with whom: without waiting for timers, only with a majority.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures::future;
use skein_client::{Client, Consumer, Delivery, Message, NodeId, Offset, QueueSettings, Reason, ShardId};
use skein_cluster_tests::{
    cluster::Setup,
    faults::kill::{self, KILL_LEADER, kill_leader},
    scenario::{self, Scenario},
    wait,
};
use tokio::time;

/// A whole test.
const LIMIT: Duration = Duration::from_secs(90);

/// Something goes on again within this; the timers below take three times as long.
const GO_ON_LIMIT: Duration = Duration::from_secs(6);

/// Nothing is delivered within this that somebody holds. Longer than a new leader holds messages back.
const QUIET: Duration = Duration::from_secs(4);

/// All but the leader stood still.
const PAUSE_FOLLOWERS: &str = "stop the followers for a while";

const QUEUE: &str = "orders";
const GROUP: &str = "mail";
const MESSAGES: usize = 200;

/// Handovers while messages are settled one by one, each a while after the one before: a new leader holds messages back
/// for a moment.
const HANDOVERS: u64 = 30;
const HANDOVER_INTERVAL: Duration = Duration::from_millis(400);

/// Timers that nobody would wait for: twenty seconds of silence.
fn without_timers() -> Setup {
    let settings = "[raft]\nelection_min_ms = 18000\nelection_max_ms = 27000\n".to_owned();
    Setup { settings, ..Setup::default() }
}

async fn publish(client: &Client, count: usize) -> Result<()> {
    let producer = client.producer(QUEUE).build().await?;
    let sent: Vec<_> = future::join_all((0..count).map(|_| producer.send(Message::new("goose")))).await;
    for confirm in sent {
        time::timeout(GO_ON_LIMIT, confirm?).await.context("nothing is confirmed")??;
    }
    Ok(())
}

async fn take(consumer: &mut Consumer, count: usize) -> Result<Vec<Delivery>> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let next = time::timeout(GO_ON_LIMIT, consumer.next()).await.context("nothing is delivered")?;
        taken.push(next.context("the consumer ended")??);
    }
    Ok(taken)
}

#[tokio::test]
async fn a_dead_leader_is_followed_without_waiting_for_timers() {
    let name = "a_dead_leader_is_followed_without_waiting_for_timers";
    scenario::run_with(&without_timers(), name, LIMIT, async |scenario| {
        scenario.require(KILL_LEADER);
        let client = scenario.client().await?;
        client.create_queue(QUEUE, QueueSettings::default()).await?;
        publish(&client, 1).await?;
        let dead = kill_leader(&mut scenario.cluster, &scenario.recorder, QUEUE).await?;
        publish(&client, 1).await?;
        let leader = scenario.cluster.leader_of(QUEUE).await?;
        ensure!(leader != dead, "a dead node leads");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn consumers_keep_what_they_hold_when_the_leader_dies() {
    let name = "consumers_keep_what_they_hold_when_the_leader_dies";
    consumers_keep_what_they_hold(name, KILL_LEADER, async |scenario| {
        kill_leader(&mut scenario.cluster, &scenario.recorder, QUEUE).await.map(drop)
    })
    .await;
}

#[tokio::test]
async fn consumers_keep_what_they_hold_when_the_leader_gives_up_for_a_while() {
    let name = "consumers_keep_what_they_hold_when_the_leader_gives_up_for_a_while";
    consumers_keep_what_they_hold(name, PAUSE_FOLLOWERS, async |scenario| {
        pause_followers_until_the_leader_gives_up(scenario).await
    })
    .await;
}

async fn consumers_keep_what_they_hold(
    name: &str,
    fault: &'static str,
    disturb: impl AsyncFnOnce(&mut Scenario) -> Result<()>,
) {
    scenario::run(name, LIMIT, async |scenario| {
        scenario.require(fault);
        let client = scenario.client().await?;
        client.create_queue(QUEUE, QueueSettings::default()).await?;
        let half = u32::try_from(MESSAGES / 2)?;
        let build = || client.consumer(QUEUE, GROUP).credit_messages(half).build();
        let mut consumers = [build().await?, build().await?];
        publish(&client, MESSAGES).await?;
        let mut held = Vec::new();
        for consumer in &mut consumers {
            held.extend(take(consumer, MESSAGES / 2).await?);
        }

        disturb(scenario).await?;
        // Nobody gets what the two hold, and they may still ack it.
        let mut idle = build().await?;
        let disturbed = time::timeout(QUIET, idle.next()).await;
        ensure!(disturbed.is_err(), "what somebody holds was delivered again: {disturbed:?}");
        let acks = future::join_all(held.iter().map(Delivery::ack));
        let acks = time::timeout(GO_ON_LIMIT, acks).await.context("acks are not answered")?;
        for (delivery, ack) in held.iter().zip(acks) {
            ack.with_context(|| format!("acking {}", delivery.offset))?;
        }
        publish(&client, 1).await?;
        drop(consumers);
        let next = take(&mut idle, 1).await?;
        let expected = Offset::new(MESSAGES as u64);
        ensure!(next[0].offset == expected, "{} came again", next[0].offset);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn no_settlement_fails_because_leadership_is_handed_over() {
    let name = "no_settlement_fails_because_leadership_is_handed_over";
    scenario::run(name, LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(QUEUE, QueueSettings::default()).await?;
        let mut consumer = client.consumer(QUEUE, GROUP).build().await?;
        let handing_over = tokio::spawn(hand_over_again_and_again(client.clone()));
        let (mut acked, mut given_back) = (BTreeSet::new(), BTreeSet::new());
        while !handing_over.is_finished() || acked.len() % MESSAGES > 0 {
            if acked.len() % MESSAGES == 0 {
                publish(&client, MESSAGES).await?;
            }
            let delivery = take(&mut consumer, 1).await?.remove(0);
            let Delivery { offset, attempt, .. } = delivery;
            ensure!(attempt == 1 || given_back.contains(&offset), "{offset} came again");
            let settled = match offset.get() % 10 == 7 && given_back.insert(offset) {
                true => delivery.nack(),
                false => {
                    ensure!(acked.insert(offset), "{offset} was acked, and came again");
                    delivery.ack()
                }
            };
            let settled =
                time::timeout(GO_ON_LIMIT, settled).await.context("a settlement is not answered")?;
            settled.with_context(|| format!("settling {offset} in attempt {attempt}"))?;
        }
        handing_over.await?
    })
    .await;
}

/// Lets one node lead after the other.
async fn hand_over_again_and_again(client: Client) -> Result<()> {
    let shard = client.get_queue(QUEUE).await?.shard;
    for handover in 0..HANDOVERS {
        client.transfer_leader(shard, NodeId::new(1 + handover % 3)).await?;
        time::sleep(HANDOVER_INTERVAL).await;
    }
    Ok(())
}

#[tokio::test]
async fn leadership_is_handed_to_whom_it_is_asked_for() {
    scenario::run("leadership_is_handed_to_whom_it_is_asked_for", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(QUEUE, QueueSettings::default()).await?;
        let shard = client.get_queue(QUEUE).await?.shard;
        for node_id in [3, 1, 2, 2] {
            publish(&client, 10).await?;
            client.transfer_leader(shard, NodeId::new(node_id)).await?;
            let leader = scenario.cluster.leader_of(QUEUE).await?;
            ensure!(leader == node_id, "node {leader} leads instead of {node_id}");
        }
        for (shard, node_id, reason, sentence) in [
            (shard, 4, Reason::NotAReplica, "has no replica of the shard; name one of its replicas"),
            (
                ShardId::new(9),
                1,
                Reason::ShardNotFound,
                "there is no shard 9; the cluster has 0, the catalog, to 8",
            ),
        ] {
            let refused = client.transfer_leader(shard, NodeId::new(node_id)).await;
            let refused = refused.err().context("it was done")?;
            ensure!(refused.reason() == reason && refused.to_string().contains(sentence), "{refused}");
        }
        Ok(())
    })
    .await;
}

/// All but a queue's leader stand still until it says that it leads no more.
async fn pause_followers_until_the_leader_gives_up(scenario: &Scenario) -> Result<()> {
    let leader = scenario.cluster.leader_of(QUEUE).await?;
    let shard_id = scenario.client().await?.get_queue(QUEUE).await?.shard.get();
    let followers: Vec<_> = scenario.cluster.node_ids().into_iter().filter(|id| *id != leader).collect();
    for node_id in &followers {
        kill::pause(&scenario.cluster, &scenario.recorder, *node_id)?;
    }
    let given_up = wait::until("the leader to give up", GO_ON_LIMIT, async || {
        let topology = scenario.cluster.topology(leader).await?;
        let shard = topology.shards.iter().find(|shard| shard.shard_id == shard_id);
        let known = shard.context("the shard is gone")?.leader_node_id;
        ensure!(known == 0, "node {known} leads");
        Ok(())
    })
    .await;
    for node_id in &followers {
        kill::resume(&scenario.cluster, &scenario.recorder, *node_id)?;
    }
    scenario.recorder.fault_done(PAUSE_FOLLOWERS);
    given_up
}

#[tokio::test]
async fn a_leader_without_a_majority_says_that_there_is_none() {
    scenario::run("a_leader_without_a_majority_says_that_there_is_none", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(QUEUE, QueueSettings::default()).await?;
        publish(&client, 1).await?;
        pause_followers_until_the_leader_gives_up(scenario).await?;
        publish(&client, 1).await
    })
    .await;
}
