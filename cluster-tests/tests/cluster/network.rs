//! Packets that are really lost, between nodes on hosts of their own, under load; the histories are judged. It takes
//! root.

use std::time::Duration;

use anyhow::{Result, ensure};
use skein_cluster_tests::{
    cluster::Setup,
    faults::{
        kill::{KILL_LEADER, kill_leader},
        packets::{DEAFEN, LOSE_PACKETS, PULL_CABLE, deafen, heal, lose, pull_cable},
    },
    scenario::{self, Scenario},
    wait,
    workload::Plan,
};
use tokio::time;

/// A whole test: starting, faults, draining, asking every replica.
const LIMIT: Duration = Duration::from_secs(150);

/// Publishing goes on within this after a fault that a majority survived: elections by timers, and clients that notice
/// that their leader is none any more.
const RESUME_LIMIT: Duration = Duration::from_secs(25);

/// Enough that a fault meets publishes, deliveries and acks under way.
const WARM_UP_CONFIRMS: usize = 300;

/// So many of each publisher show that none is stuck.
const EACH_CONFIRMS: usize = 50;

/// What a bad switch loses. TCP sends a lost packet again after 200 ms at the earliest, so that heartbeats are late.
const LOST_PERCENT: u8 = 5;

/// Longer than any timer of raft and of connections.
const LONG: Duration = Duration::from_secs(6);

/// The queue whose leader is meant.
const QUEUE: &str = "orders";

/// Runs a test on nodes that have hosts of their own, under load, which has begun when the test does.
async fn run(name: &str, faults: &[&'static str], test: impl AsyncFnOnce(&mut Scenario) -> Result<()>) {
    let setup = Setup { network: true, ..Setup::default() };
    scenario::run_with(&setup, name, LIMIT, async |scenario| {
        faults.iter().for_each(|fault| scenario.require(fault));
        // One queue: what is confirmed goes through the leader that is meant.
        let plan = Plan { queues: vec![QUEUE.to_owned()], ..Plan::default() };
        let work = scenario.start(&plan).await?;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
        test(scenario).await?;
        heal(&scenario.cluster, &scenario.recorder)?;
        scenario.cluster.heal().await?;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
        scenario.finish(work).await
    })
    .await;
}

#[tokio::test]
async fn lost_packets_lose_nothing_else() {
    run("lost_packets_lose_nothing_else", &[LOSE_PACKETS, KILL_LEADER], async |scenario| {
        lose(&scenario.cluster, &scenario.recorder, LOST_PERCENT)?;
        scenario.wait_each_confirmed(EACH_CONFIRMS, RESUME_LIMIT).await?;
        let dead = kill_leader(&mut scenario.cluster, &scenario.recorder, QUEUE).await?;
        scenario.wait_each_confirmed(EACH_CONFIRMS, RESUME_LIMIT).await?;
        scenario.cluster.restart(dead)?;
        time::sleep(LONG).await;
        scenario.wait_each_confirmed(EACH_CONFIRMS, RESUME_LIMIT).await
    })
    .await;
}

/// No connection ends by it: each side has to notice by itself, and those that are half open must harm nobody later.
#[tokio::test]
async fn a_leader_whose_cable_is_pulled_out_is_followed() {
    run("a_leader_whose_cable_is_pulled_out_is_followed", &[PULL_CABLE], async |scenario| {
        let leader = scenario.cluster.leader_of(QUEUE).await?;
        pull_cable(&scenario.cluster, &scenario.recorder, leader)?;
        scenario.wait_each_confirmed(EACH_CONFIRMS, RESUME_LIMIT).await?;
        wait::until("another leader", RESUME_LIMIT, async || {
            let now = scenario.cluster.leader_of(QUEUE).await?;
            ensure!(now != leader, "node {now} leads still");
            Ok(())
        })
        .await?;
        time::sleep(LONG).await;
        // And back, while it takes itself for whatever it does.
        heal(&scenario.cluster, &scenario.recorder)?;
        scenario.wait_each_confirmed(EACH_CONFIRMS, RESUME_LIMIT).await
    })
    .await;
}

/// Its acknowledgements do not arrive either, nor does what says that a connection has ended.
#[tokio::test]
async fn a_leader_at_which_nothing_arrives_is_followed() {
    run("a_leader_at_which_nothing_arrives_is_followed", &[DEAFEN], async |scenario| {
        let leader = scenario.cluster.leader_of(QUEUE).await?;
        deafen(&scenario.cluster, &scenario.recorder, leader)?;
        scenario.wait_each_confirmed(EACH_CONFIRMS, RESUME_LIMIT).await?;
        time::sleep(LONG).await;
        scenario.wait_each_confirmed(EACH_CONFIRMS, RESUME_LIMIT).await
    })
    .await;
}
