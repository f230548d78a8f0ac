//! Nodes that were away: for a while, by the log; for so long that the others have let go of it, by a snapshot.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use skein_client::{Message, QueueSettings};
use skein_cluster_tests::{
    cluster::{NO_PAGE_MEMORY, Setup},
    disk_use::segments_gone,
    faults::{
        kill::{KILL_FOLLOWER, KILL_RECEIVER, KILL_SENDER, kill, kill_follower},
        schedule::{kill_points, points},
    },
    scenario::{self, Scenario},
    wait,
    workload::{Plan, Workload},
};
use skein_proto::broker::Topology;
use tokio::time;

/// A whole test: starting, load, catching up, draining, asking every replica.
const LIMIT: Duration = Duration::from_secs(240);

/// Each kill takes no longer, with the restart after it.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// Publishing so much takes no longer.
const LOAD_LIMIT: Duration = Duration::from_secs(90);

/// A node that is back has caught up within this.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(60);

/// The nodes have let go of their logs' beginning within this: the space is looked after every 30 s at least.
const LET_GO_LIMIT: Duration = Duration::from_secs(75);

/// The queue whose shard's replica is meant.
const QUEUE: &str = "orders";

/// A queue for what only fills the log.
const FILLER: &str = "filler";

/// Each round makes the log grow by more than the four segments after which its space is looked after.
const FILLER_ROUNDS_MAX: usize = 6;
const FILLER_MESSAGES: usize = 800;
const FILLER_BODY_BYTES: usize = 100_000;

/// More than go for other reasons: one or two, when all that they held was acked.
const SEGMENTS_GONE_MIN: u64 = 4;

/// What a snapshot must bring besides the state. Queues are placed on the shards in turn.
const BULK_QUEUES: [&str; 4] = ["bulk-0", "bulk-1", "bulk-2", "bulk-3"];
const BULK_MESSAGES: u64 = 500;
const BULK_BODY_BYTES_MAX: usize = 100_000;

/// Bodies are of any size up to the largest.
const BULK_BYTES: u64 = BULK_QUEUES.len() as u64 * BULK_MESSAGES * BULK_BODY_BYTES_MAX as u64 / 2;

/// How far each shard has come.
type Applied = BTreeMap<u32, u64>;

/// Small segments, and as little patience with replicas that lag as may be configured.
fn impatient() -> Setup {
    let log = "[log]\nsegment_bytes = 16777216\nlag_bytes_max = 16777216\n";
    let settings = format!("{log}{NO_PAGE_MEMORY}");
    Setup { settings, ..Setup::default() }
}

/// Messages that nobody reads and everybody must have.
fn bulk() -> Plan {
    Plan {
        queues: BULK_QUEUES.map(str::to_owned).into(),
        producers: 1,
        groups: Vec::new(),
        burst_messages: 10,
        messages_max: BULK_MESSAGES,
        body_bytes_max: BULK_BODY_BYTES_MAX,
        large_percent: 100,
        ..Plan::default()
    }
}

/// Publishes messages that are not judged.
async fn publish_unrecorded(
    scenario: &Scenario,
    queue: &str,
    messages: usize,
    body_bytes: usize,
) -> Result<()> {
    let client = scenario.client().await?;
    client.create_queue(queue, QueueSettings::default()).await?;
    let producer = client.producer(queue).build().await?;
    let body = vec![7; body_bytes];
    let mut confirms = Vec::new();
    for _ in 0..messages {
        confirms.push(producer.send(Message::new(body.clone())).await?);
    }
    for confirm in confirms {
        confirm.await?;
    }
    producer.close().await?;
    Ok(())
}

fn applied(topology: &Topology) -> Applied {
    topology.shards.iter().map(|shard| (shard.shard_id, shard.applied_index)).collect()
}

/// How far the furthest node has come with each shard.
async fn furthest(scenario: &Scenario) -> Applied {
    let mut furthest = Applied::new();
    for (shard, index) in scenario.cluster.topologies().await.iter().flat_map(applied) {
        let known = furthest.entry(shard).or_default();
        *known = index.max(*known);
    }
    furthest
}

/// The shards with which a node has not come so far.
async fn missing(scenario: &Scenario, node_id: u64, wanted: &Applied) -> Result<BTreeSet<u32>> {
    let own = applied(&scenario.cluster.topology(node_id).await?);
    let is_missing = |(shard, index): &(&u32, &u64)| own.get(*shard).is_none_or(|own| own < *index);
    Ok(wanted.iter().filter(is_missing).map(|(shard, _)| *shard).collect())
}

/// Waits until a node has applied what the others had when this was called: they go on meanwhile.
async fn wait_caught_up(scenario: &Scenario, node_id: u64) -> Result<()> {
    let wanted = furthest(scenario).await;
    wait::until(&format!("node {node_id} to have caught up"), CATCH_UP_LIMIT, async || {
        let missing = missing(scenario, node_id, &wanted).await?;
        ensure!(missing.is_empty(), "the shards {missing:?} are behind");
        Ok(())
    })
    .await
}

/// Makes the nodes that run forget what a node that is away would need of their logs. Nothing tells so but the
/// segments that go: what filled them is purged from its queue, but only raft can let go of its entries, and it does so
/// for all shards in one round.
async fn wait_let_go(scenario: &Scenario) -> Result<()> {
    let client = scenario.client().await?;
    let look = async || {
        for node_id in scenario.cluster.running() {
            let gone = segments_gone(&scenario.cluster, node_id)?;
            ensure!(gone >= SEGMENTS_GONE_MIN, "node {node_id} let {gone} segments go");
        }
        Ok(())
    };
    for _ in 0..FILLER_ROUNDS_MAX {
        let load = publish_unrecorded(scenario, FILLER, FILLER_MESSAGES, FILLER_BODY_BYTES);
        time::timeout(LOAD_LIMIT, load).await.context("publishing took too long")??;
        client.purge_queue(FILLER).await?;
        if look().await.is_ok() {
            return Ok(());
        }
    }
    wait::until("old segments to go", LET_GO_LIMIT, look).await
}

/// A node dies, much is published that must be kept, and the others let go of their logs. Gives the dead node.
async fn leave_far_behind(scenario: &mut Scenario, workload: &mut Workload) -> Result<u64> {
    scenario.wait_confirmed(300, LOAD_LIMIT).await?;
    let away = kill_follower(&mut scenario.cluster, &scenario.recorder, QUEUE).await?;
    workload.add(&bulk(), scenario.seed).await?;
    let all = BULK_QUEUES.len() * usize::try_from(BULK_MESSAGES)?;
    scenario.wait_confirmed_in(&bulk().queues, all, LOAD_LIMIT).await?;
    wait_let_go(scenario).await?;
    scenario.suspect = Some(away);
    Ok(away)
}

/// Waits until a node that is sent snapshots has written so many bytes since it started, and gives the shards that it
/// still lacks. None when it came so far before.
async fn wait_written(
    scenario: &Scenario,
    node_id: u64,
    bytes: u64,
    wanted: &Applied,
) -> Result<BTreeSet<u32>> {
    wait::until(&format!("node {node_id} to write {bytes} bytes"), CATCH_UP_LIMIT, async || {
        let missing = missing(scenario, node_id, wanted).await?;
        let written = scenario.cluster.metric(node_id, "skein_log_written_bytes_total").await?;
        ensure!(missing.is_empty() || written >= bytes, "{written}, and the shards {missing:?} are behind");
        Ok(missing)
    })
    .await
}

/// A bulk queue that lies on one of these shards.
async fn bulk_queue_on(scenario: &Scenario, shards: &BTreeSet<u32>) -> Result<Option<&'static str>> {
    let client = scenario.client().await?;
    for queue in BULK_QUEUES {
        if shards.contains(&client.get_queue(queue).await?.shard.get()) {
            return Ok(Some(queue));
        }
    }
    Ok(None)
}

#[tokio::test]
async fn a_follower_that_missed_200_000_messages_catches_up_by_the_log() {
    scenario::run("a_follower_that_missed_200_000_messages_catches_up_by_the_log", LIMIT, async |scenario| {
        scenario.require(KILL_FOLLOWER);
        let work = scenario.start(&Plan::default()).await?;
        let away = kill_follower(&mut scenario.cluster, &scenario.recorder, QUEUE).await?;
        let load = publish_unrecorded(scenario, "bulk", 200_000, 100);
        time::timeout(LOAD_LIMIT, load).await.context("publishing took too long")??;
        scenario.cluster.heal().await?;
        wait_caught_up(scenario, away).await?;
        let installed = scenario.cluster.metric(away, "skein_snapshots_installed_total").await?;
        ensure!(installed == 0, "{installed} snapshots were needed");
        scenario.suspect = Some(away);
        scenario.finish(work).await
    })
    .await;
}

#[tokio::test]
async fn a_follower_that_was_away_for_too_long_gets_a_snapshot() {
    let name = "a_follower_that_was_away_for_too_long_gets_a_snapshot";
    scenario::run_with(&impatient(), name, LIMIT, async |scenario| {
        scenario.require(KILL_FOLLOWER);
        let mut work = scenario.start(&Plan::default()).await?;
        let away = leave_far_behind(scenario, &mut work.0).await?;
        scenario.cluster.heal().await?;
        wait_caught_up(scenario, away).await?;
        let installed = scenario.cluster.metric(away, "skein_snapshots_installed_total").await?;
        ensure!(installed > 0, "no snapshot was needed");
        scenario.finish(work).await
    })
    .await;
}

#[tokio::test]
async fn a_node_that_takes_anothers_place_gets_snapshots_and_dies_while_they_are_sent() {
    let name = "a_node_that_takes_anothers_place_gets_snapshots_and_dies_while_they_are_sent";
    scenario::run_with(&impatient(), name, LIMIT, async |scenario| {
        scenario.require(KILL_RECEIVER);
        let mut work = scenario.start(&Plan::default()).await?;
        let gone = leave_far_behind(scenario, &mut work.0).await?;
        let wanted = furthest(scenario).await;
        let invitation = scenario.cluster.invite(Some(gone)).await?;
        let joins = invitation.node_id;
        scenario.cluster.join_where_was(gone, &invitation)?;
        wait::until("the new node to answer", CATCH_UP_LIMIT, async || {
            scenario.cluster.topology(joins).await.map(drop)
        })
        .await?;
        let missing = wait_written(scenario, joins, BULK_BYTES / 4, &wanted).await?;
        ensure!(!missing.is_empty(), "everything had arrived before it was killed");
        kill(&mut scenario.cluster, &scenario.recorder, joins)?;
        scenario.recorder.fault_done(KILL_RECEIVER);
        scenario.cluster.restart(joins)?;
        scenario.cluster.wait_settled(CATCH_UP_LIMIT).await?;
        wait_caught_up(scenario, joins).await?;
        let installed = scenario.cluster.metric(joins, "skein_snapshots_installed_total").await?;
        ensure!(installed > 0, "no snapshot was needed");
        scenario.suspect = Some(joins);
        scenario.finish(work).await
    })
    .await;
}

#[tokio::test]
async fn the_only_node_is_replaced_and_nothing_is_left_behind_with_it() {
    let name = "the_only_node_is_replaced_and_nothing_is_left_behind_with_it";
    let setup = Setup { node_count: 1, ..impatient() };
    scenario::run_with(&setup, name, LIMIT, async |scenario| {
        let mut work = scenario.start(&Plan::default()).await?;
        work.0.add(&bulk(), scenario.seed).await?;
        let all = BULK_QUEUES.len() * usize::try_from(BULK_MESSAGES)?;
        scenario.wait_confirmed_in(&bulk().queues, all, LOAD_LIMIT).await?;
        wait_let_go(scenario).await?;
        // Shards are copied one by one: the new node leads the catalog long before it has heard of the others.
        let invitation = scenario.cluster.invite(Some(1)).await?;
        scenario.cluster.join(&invitation, &impatient().settings)?;
        work.1.add(scenario.cluster.channel(invitation.node_id)?);
        scenario.cluster.wait_removed(1, CATCH_UP_LIMIT).await?;
        scenario.cluster.wait_settled(CATCH_UP_LIMIT).await?;
        let installed =
            scenario.cluster.metric(invitation.node_id, "skein_snapshots_installed_total").await?;
        ensure!(installed > 0, "no snapshot was needed");
        // What it holds is compared with what others then get from it.
        for _ in 0..2 {
            let invitation = scenario.cluster.invite(None).await?;
            scenario.cluster.join(&invitation, &impatient().settings)?;
            work.1.add(scenario.cluster.channel(invitation.node_id)?);
        }
        scenario.cluster.wait_settled(CATCH_UP_LIMIT).await?;
        scenario.finish(work).await
    })
    .await;
}

#[tokio::test]
async fn the_receiver_of_a_snapshot_dies_again_and_again() {
    let name = "the_receiver_of_a_snapshot_dies_again_and_again";
    let limit = LIMIT + KILL_LIMIT * kill_points();
    scenario::run_with(&impatient(), name, limit, async |scenario| {
        scenario.require(KILL_RECEIVER);
        let mut work = scenario.start(&Plan::default()).await?;
        let away = leave_far_behind(scenario, &mut work.0).await?;
        let wanted = furthest(scenario).await;
        for point in points(scenario.seed, kill_points()) {
            scenario.cluster.restart(away)?;
            // Shards are sent at the same time, and one that is complete is not sent again: early points leave some
            // for later ones.
            let bytes = (point * BULK_BYTES as f64 / 2.0) as u64;
            let missing = wait_written(scenario, away, bytes, &wanted).await?;
            if bulk_queue_on(scenario, &missing).await?.is_none() {
                break;
            }
            kill(&mut scenario.cluster, &scenario.recorder, away)?;
            scenario.recorder.fault_done(KILL_RECEIVER);
        }
        scenario.cluster.heal().await?;
        wait_caught_up(scenario, away).await?;
        scenario.finish(work).await
    })
    .await;
}

#[tokio::test]
async fn the_sender_of_a_snapshot_dies_again_and_again() {
    let name = "the_sender_of_a_snapshot_dies_again_and_again";
    let limit = LIMIT + KILL_LIMIT * kill_points();
    scenario::run_with(&impatient(), name, limit, async |scenario| {
        scenario.require(KILL_SENDER);
        let mut work = scenario.start(&Plan::default()).await?;
        let away = leave_far_behind(scenario, &mut work.0).await?;
        let wanted = furthest(scenario).await;
        scenario.cluster.restart(away)?;
        let mut bytes = 0;
        for point in points(scenario.seed, kill_points()) {
            // The receiver goes on where it is: the points come one after another.
            bytes += (point * BULK_BYTES as f64 / f64::from(kill_points())) as u64;
            let missing = wait_written(scenario, away, bytes, &wanted).await?;
            let Some(queue) = bulk_queue_on(scenario, &missing).await? else { break };
            let sender = scenario.cluster.leader_of(queue).await?;
            kill(&mut scenario.cluster, &scenario.recorder, sender)?;
            scenario.recorder.fault_done(KILL_SENDER);
            scenario.cluster.restart(sender)?;
        }
        scenario.cluster.heal().await?;
        wait_caught_up(scenario, away).await?;
        let installed = scenario.cluster.metric(away, "skein_snapshots_installed_total").await?;
        ensure!(installed > 0, "no snapshot was needed");
        scenario.finish(work).await
    })
    .await;
}
