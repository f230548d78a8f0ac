//! Disks that change what was written: the node notices, and fetches it from the others. A directory that is lost: the
//! node refuses to start, and says how to go on.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use skein_cluster_tests::{
    cluster::Setup,
    faults::{
        damage::{self, LOSE_DIRECTORY, Place},
        kill::{KILL_FOLLOWER, kill, kill_follower},
    },
    scenario::{self, Scenario},
    wait,
    workload::Plan,
};

/// A whole test: starting, load, damage, repair, draining, asking every replica.
const LIMIT: Duration = Duration::from_secs(180);

/// So much is published within this.
const LOAD_LIMIT: Duration = Duration::from_secs(60);

/// Enough that the newest segment has batches in its middle.
const WARM_UP_CONFIRMS: usize = 300;

/// Times a node is killed until its newest segment holds enough to be damaged.
const TRIES_MAX: usize = 5;

/// Damage is found and repaired within this. At the configured speed the log is read through in two seconds.
const REPAIR_LIMIT: Duration = Duration::from_secs(45);

/// A node that refuses to start has ended within this.
const REFUSE_LIMIT: Duration = Duration::from_secs(20);

/// The queue whose leader is meant.
const QUEUE: &str = "orders";

/// Small segments, and a scrub that reads them as soon as the node has started.
fn watchful() -> Setup {
    let settings = "[log]\nsegment_bytes = 16777216\nscrub_bytes_per_s = 67108864\n".to_owned();
    Setup { settings, ..Setup::default() }
}

/// Everything is kept, so that whatever is damaged is needed. One group comes when it has been.
fn plan() -> Plan {
    Plan { late_groups: vec!["late".to_owned()], large_percent: 100, ..Plan::default() }
}

/// Damages a follower's log while it is down, and lets it start again. Gives the follower.
async fn damage(scenario: &mut Scenario, place: Place) -> Result<u64> {
    for _ in 0..TRIES_MAX {
        scenario.wait_confirmed(WARM_UP_CONFIRMS, LOAD_LIMIT).await?;
        let victim = kill_follower(&mut scenario.cluster, &scenario.recorder, QUEUE).await?;
        let damaged = damage::flip(&scenario.cluster, &scenario.recorder, victim, place, scenario.seed)?;
        scenario.cluster.heal().await?;
        if damaged {
            scenario.suspect = Some(victim);
            return Ok(victim);
        }
    }
    bail!("{TRIES_MAX} times a node died just when it had begun a segment");
}

/// Waits until a node has found what is damaged, and repaired all of it.
async fn wait_repaired(scenario: &Scenario, node_id: u64) -> Result<()> {
    wait::until(&format!("node {node_id} to repair its log"), REPAIR_LIMIT, async || {
        let repaired = scenario.cluster.metric(node_id, "skein_log_repaired_entries_total").await?;
        let damaged = scenario.cluster.metric(node_id, "skein_log_damaged_entries").await?;
        ensure!(repaired > 0 && damaged == 0, "{repaired} entries are repaired, {damaged} are not");
        Ok(())
    })
    .await?;
    let lost = scenario.cluster.metric(node_id, "skein_log_lost_entries").await?;
    ensure!(lost == 0, "{lost} entries are given up, though two replicas have them");
    Ok(())
}

#[tokio::test]
async fn damage_in_a_cold_segment_is_repaired_from_the_others() {
    let name = "damage_in_a_cold_segment_is_repaired_from_the_others";
    scenario::run_with(&watchful(), name, LIMIT, async |scenario| {
        let place = Place::ColdSegment;
        scenario.require(place.fault());
        let mut work = scenario.start(&plan()).await?;
        wait::until("every node to have cold segments", LOAD_LIMIT, async || {
            for node_id in scenario.cluster.running() {
                let segments = scenario.cluster.metric(node_id, "skein_log_segments").await?;
                ensure!(segments >= 3, "node {node_id} has {segments} segments");
            }
            Ok(())
        })
        .await?;
        let victim = damage(scenario, place).await?;
        wait_repaired(scenario, victim).await?;
        work.0.start_late_groups().await?;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, LOAD_LIMIT).await?;
        scenario.finish(work).await
    })
    .await;
}

#[tokio::test]
async fn damage_in_the_newest_segment_is_repaired_from_the_others() {
    let name = "damage_in_the_newest_segment_is_repaired_from_the_others";
    scenario::run_with(&watchful(), name, LIMIT, async |scenario| {
        let place = Place::NewestSegment;
        scenario.require(place.fault());
        let mut work = scenario.start(&plan()).await?;
        let victim = damage(scenario, place).await?;
        wait_repaired(scenario, victim).await?;
        work.0.start_late_groups().await?;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, LOAD_LIMIT).await?;
        scenario.finish(work).await
    })
    .await;
}

#[tokio::test]
async fn damage_in_the_newest_batch_loses_nothing_that_the_others_have() {
    let name = "damage_in_the_newest_batch_loses_nothing_that_the_others_have";
    scenario::run_with(&watchful(), name, LIMIT, async |scenario| {
        let place = Place::LastBatch;
        scenario.require(place.fault());
        let mut work = scenario.start(&plan()).await?;
        // It may look like a write that was cut off: then there is nothing to repair, and the leader sends it again.
        damage(scenario, place).await?;
        work.0.start_late_groups().await?;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, LOAD_LIMIT).await?;
        scenario.finish(work).await
    })
    .await;
}

/// What a node says that finds its directory empty, and that it left.
async fn refusal(scenario: &mut Scenario, node_id: u64) -> Result<String> {
    scenario.cluster.restart(node_id)?;
    let status = scenario.cluster.wait_ended(node_id, REFUSE_LIMIT).await?;
    ensure!(!status.success() && status.code().is_some(), "node {node_id} left with {status}");
    scenario.cluster.log_text(node_id)
}

#[tokio::test]
async fn a_node_whose_directory_was_emptied_refuses_to_start() {
    scenario::run("a_node_whose_directory_was_emptied_refuses_to_start", LIMIT, async |scenario| {
        scenario.require(LOSE_DIRECTORY);
        scenario.require(KILL_FOLLOWER);
        let work = scenario.start(&Plan::default()).await?;
        // The node that founded the cluster would found another one, if it did not ask.
        let founder = scenario.cluster.node_ids().into_iter().min().context("there are nodes")?;
        let follower = kill_follower(&mut scenario.cluster, &scenario.recorder, QUEUE).await?;
        scenario.cluster.heal().await?;
        for node_id in [founder, follower.max(founder + 1)] {
            scenario.wait_confirmed(WARM_UP_CONFIRMS, LOAD_LIMIT).await?;
            kill(&mut scenario.cluster, &scenario.recorder, node_id)?;
            let away = damage::lose_directory(&scenario.cluster, &scenario.recorder, node_id)?;
            let said = refusal(scenario, node_id).await?;
            for part in ["data_dir is empty", "its log is lost", "Restore the directory"] {
                ensure!(said.contains(part), "node {node_id} does not say \"{part}\":\n{said}");
            }
            away.restore()?;
            scenario.cluster.heal().await?;
        }
        scenario.finish(work).await
    })
    .await;
}
