//! The power fails: what a node was told is on disk must be there when it is back.

use std::time::Duration;

use skein_cluster_tests::{
    cluster::Setup,
    faults::{
        power::{self, POWER_LOSS, POWER_LOSS_ALL},
        schedule::{kill_points, points},
    },
    mount::DiskKind,
    scenario,
    workload::Plan,
};

/// A whole test: starting, draining, asking every replica.
const LIMIT: Duration = Duration::from_secs(150);

/// Each cut takes no longer, with the restart after it.
const CUT_LIMIT: Duration = Duration::from_secs(40);

/// Publishing goes on within this after a restart.
const RESUME_LIMIT: Duration = Duration::from_secs(20);

/// The next cut comes after 1 to so many more confirmed messages.
const CONFIRMS_MAX: f64 = 1_500.0;

/// Room for what is published until the end, with the mark below which publishes would be refused far away.
const DISK_BYTES: u64 = 768 << 20;

/// The queue whose leader is meant.
const QUEUE: &str = "orders";

fn setup(direct_io: bool) -> Setup {
    let settings = format!("[log]\nsegment_bytes = 16777216\ndirect_io = {direct_io}\n");
    Setup { settings, disk: DiskKind::Ext4 { bytes: DISK_BYTES }, ..Setup::default() }
}

/// Large enough messages that segments are begun under way, which is when a file system has most in memory.
fn plan() -> Plan {
    Plan { large_percent: 30, ..Plan::default() }
}

fn confirms(point: f64) -> usize {
    1 + (point * CONFIRMS_MAX) as usize
}

async fn one_node_loses_its_power(name: &str, setup: &Setup) {
    if let Some(why) = power::unavailable() {
        return scenario::skip(name, &why);
    }
    let limit = LIMIT + CUT_LIMIT * kill_points();
    scenario::run_with(setup, name, limit, async |scenario| {
        scenario.require(POWER_LOSS);
        let work = scenario.start(&plan()).await?;
        for (number, point) in points(scenario.seed, kill_points()).into_iter().enumerate() {
            scenario.wait_confirmed(confirms(point), RESUME_LIMIT).await?;
            let leader = scenario.cluster.leader_of(QUEUE).await?;
            let is_victim = |node_id: &u64| (*node_id == leader) == number.is_multiple_of(2);
            let victims: Vec<_> = scenario.cluster.running().into_iter().filter(is_victim).take(1).collect();
            power::cut(&mut scenario.cluster, &scenario.recorder, &victims)?;
            // The others go on without it.
            scenario.wait_confirmed(confirms(point / 4.0), RESUME_LIMIT).await?;
            scenario.cluster.heal().await?;
            scenario.suspect = victims.first().copied();
        }
        scenario.finish(work).await
    })
    .await;
}

async fn all_nodes_lose_their_power(name: &str, setup: &Setup) {
    if let Some(why) = power::unavailable() {
        return scenario::skip(name, &why);
    }
    let limit = LIMIT + CUT_LIMIT * kill_points();
    scenario::run_with(setup, name, limit, async |scenario| {
        scenario.require(POWER_LOSS_ALL);
        let work = scenario.start(&plan()).await?;
        for point in points(scenario.seed, kill_points()) {
            scenario.wait_confirmed(confirms(point), RESUME_LIMIT).await?;
            let all = scenario.cluster.running();
            power::cut(&mut scenario.cluster, &scenario.recorder, &all)?;
            scenario.cluster.heal().await?;
        }
        scenario.finish(work).await
    })
    .await;
}

#[tokio::test]
async fn a_node_loses_its_power() {
    one_node_loses_its_power("a_node_loses_its_power", &setup(true)).await;
}

#[tokio::test]
async fn all_nodes_lose_their_power_at_once() {
    all_nodes_lose_their_power("all_nodes_lose_their_power_at_once", &setup(true)).await;
}

#[tokio::test]
async fn all_nodes_lose_their_power_at_once_with_a_page_cache_between() {
    let name = "all_nodes_lose_their_power_at_once_with_a_page_cache_between";
    all_nodes_lose_their_power(name, &setup(false)).await;
}
