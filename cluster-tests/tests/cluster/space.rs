//! Log space comes back, however old the oldest message is, and nodes that die while it does lose nothing.

use std::time::Duration;

use anyhow::{Result, ensure};
use skein_cluster_tests::{
    cluster::{NO_PAGE_MEMORY, Setup},
    disk_use::wait_given_back,
    faults::{
        kill::{KILL_ALL, KILL_FOLLOWER, KILL_REWRITER, kill, kill_all, kill_follower},
        schedule::{kill_points, points},
    },
    scenario::{self, Scenario},
    wait,
    workload::Plan,
};

/// A whole test: starting, load, settling, dying, draining, asking every replica.
const LIMIT: Duration = Duration::from_secs(400);

/// Each kill takes no longer, with what leads to it and the restart after it.
const KILL_LIMIT: Duration = Duration::from_secs(90);

/// So much is published, and acked, within this.
const LOAD_LIMIT: Duration = Duration::from_secs(120);

/// Space has come back within this after the last ack: it is looked after every 30 s, and what raft lets go in one
/// round goes in the next.
const GIVE_BACK_LIMIT: Duration = Duration::from_secs(120);

/// A node rewrites segments within this while it is written to: it looks for some after every fourth.
const REWRITE_LIMIT: Duration = Duration::from_secs(60);

const SEGMENT_BYTES: u64 = 16 << 20;

/// What is kept for a node that is away, in the test in which one is.
const LAG_BYTES: u64 = 2 * SEGMENT_BYTES;

/// Nodes write about so much, load included, while they rewrite a few segments.
const REWRITING_BYTES: u64 = SEGMENT_BYTES;

/// Well over ten segments.
const LOAD_BYTES: u64 = 15 * SEGMENT_BYTES;

/// Messages of the queue that nobody reads.
const ARCHIVED: u64 = 50;

/// The figure of what a node has written to its log since it started.
const WRITTEN: &str = "skein_log_written_bytes_total";

/// What a node logs when it has rewritten a segment.
const REWRITTEN: &str = "was rewritten";

fn setup() -> Setup {
    Setup {
        settings: format!("[log]\nsegment_bytes = {SEGMENT_BYTES}\n{NO_PAGE_MEMORY}"),
        ..Setup::default()
    }
}

/// The same, with little kept for a node that is away.
fn impatient() -> Setup {
    let settings = format!("[log]\nsegment_bytes = {SEGMENT_BYTES}\nlag_bytes_max = {LAG_BYTES}\n");
    Setup { settings, ..Setup::default() }
}

/// So little that a node that is away never lacks much of it, and all the time, so that every segment has some.
fn trickle() -> Plan {
    Plan {
        queues: vec!["trickle".to_owned()],
        producers: 1,
        keeps: false,
        burst_messages: 1,
        large_percent: 0,
        ..Plan::default()
    }
}

/// Large messages that are acked as they come.
fn load() -> Plan {
    Plan { keeps: false, burst_messages: 10, large_percent: 100, ..Plan::default() }
}

/// One old message, and a group that comes for it much later.
fn forgotten() -> Plan {
    Plan {
        queues: vec!["forgotten".to_owned()],
        producers: 1,
        groups: Vec::new(),
        late_groups: vec!["late".to_owned()],
        keeps: false,
        messages_max: 1,
        ..Plan::default()
    }
}

/// A queue without groups, which keeps everything.
fn archive(messages_max: u64) -> Plan {
    Plan {
        queues: vec!["archive".to_owned()],
        producers: 1,
        groups: Vec::new(),
        messages_max,
        large_percent: 100,
        ..Plan::default()
    }
}

/// Waits until each of these nodes has written so many bytes to its log since it started.
async fn wait_written(scenario: &Scenario, node_ids: &[u64], bytes: u64) -> Result<()> {
    wait::until("the logs to grow", LOAD_LIMIT, async || {
        for node_id in node_ids {
            let written = scenario.cluster.metric(*node_id, WRITTEN).await?;
            ensure!(written >= bytes, "node {node_id} has written {written} bytes of {bytes}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn one_old_message_does_not_hold_the_log_back() {
    let name = "one_old_message_does_not_hold_the_log_back";
    scenario::run_with(&setup(), name, LIMIT, async |scenario| {
        scenario.require(KILL_ALL);
        let mut work = scenario.start(&forgotten()).await?;
        work.0.add(&archive(ARCHIVED), scenario.seed).await?;
        let old = ["forgotten", "archive"].map(str::to_owned);
        scenario.wait_confirmed_in(&old, 1 + usize::try_from(ARCHIVED)?, LOAD_LIMIT).await?;
        work.0.add(&load(), scenario.seed + 1).await?;
        wait_written(scenario, &scenario.cluster.running(), LOAD_BYTES).await?;
        work.0.stop_publishing(LOAD_LIMIT).await?;
        work.0.drain(LOAD_LIMIT).await?;
        wait_given_back(&scenario.cluster, SEGMENT_BYTES, 0, GIVE_BACK_LIMIT).await?;

        kill_all(&mut scenario.cluster, &scenario.recorder)?;
        scenario.cluster.heal().await?;
        wait_given_back(&scenario.cluster, SEGMENT_BYTES, 0, GIVE_BACK_LIMIT).await?;
        work.0.start_late_groups().await?;
        scenario.finish(work).await
    })
    .await;
}

#[tokio::test]
async fn a_node_that_is_away_holds_back_no_more_of_the_log_than_it_may() {
    let name = "a_node_that_is_away_holds_back_no_more_of_the_log_than_it_may";
    scenario::run_with(&impatient(), name, LIMIT, async |scenario| {
        scenario.require(KILL_FOLLOWER);
        let mut work = scenario.start(&trickle()).await?;
        scenario.wait_confirmed(50, LOAD_LIMIT).await?;
        let away = kill_follower(&mut scenario.cluster, &scenario.recorder, "trickle").await?;
        work.0.add(&load(), scenario.seed).await?;
        wait_written(scenario, &scenario.cluster.running(), LOAD_BYTES).await?;
        work.0.stop_publishing(LOAD_LIMIT).await?;
        work.0.drain(LOAD_LIMIT).await?;
        wait_given_back(&scenario.cluster, SEGMENT_BYTES, LAG_BYTES, GIVE_BACK_LIMIT).await?;

        scenario.cluster.heal().await?;
        scenario.suspect = Some(away);
        scenario.finish(work).await
    })
    .await;
}

#[tokio::test]
async fn a_node_that_reads_its_log_through_stops_when_it_is_told() {
    let name = "a_node_that_reads_its_log_through_stops_when_it_is_told";
    // A segment takes four minutes.
    let settings = format!("[log]\nsegment_bytes = {SEGMENT_BYTES}\nscrub_bytes_per_s = 65536\n");
    scenario::run_with(&Setup { settings, ..Setup::default() }, name, LIMIT, async |scenario| {
        let mut work = scenario.start(&archive(u64::MAX)).await?;
        wait_written(scenario, &scenario.cluster.running(), 3 * SEGMENT_BYTES).await?;
        work.0.stop_publishing(LOAD_LIMIT).await?;
        // It begins to read when it starts.
        for _ in 0..2 {
            let status = scenario.cluster.terminate(1).await?;
            ensure!(status.success(), "the node ended with {status}");
            scenario.cluster.restart(1)?;
            scenario.cluster.wait_settled(LOAD_LIMIT).await?;
        }
        scenario.finish(work).await
    })
    .await;
}

/// How many segments a node has rewritten since it started.
fn rewritten(scenario: &Scenario, node_id: u64) -> Result<usize> {
    Ok(scenario.cluster.log_text(node_id)?.matches(REWRITTEN).count())
}

#[tokio::test]
async fn nodes_die_while_they_rewrite_segments() {
    let name = "nodes_die_while_they_rewrite_segments";
    let limit = LIMIT + KILL_LIMIT * kill_points();
    scenario::run_with(&setup(), name, limit, async |scenario| {
        scenario.require(KILL_REWRITER);
        let mut work = scenario.start(&forgotten()).await?;
        work.0.add(&load(), scenario.seed).await?;
        // Some of every segment stays, so that all must be rewritten.
        work.0.add(&archive(u64::MAX), scenario.seed + 1).await?;
        let victims = scenario.cluster.node_ids();
        for (victim, point) in victims.into_iter().cycle().zip(points(scenario.seed, kill_points())) {
            let before = rewritten(scenario, victim)?;
            wait::until(&format!("node {victim} to rewrite segments"), REWRITE_LIMIT, async || {
                ensure!(rewritten(scenario, victim)? > before, "it has rewritten {before}");
                Ok(())
            })
            .await?;
            // Nothing but this says how far it is with the next one.
            let written = scenario.cluster.metric(victim, WRITTEN).await?;
            wait_written(scenario, &[victim], written + (point * REWRITING_BYTES as f64) as u64).await?;
            kill(&mut scenario.cluster, &scenario.recorder, victim)?;
            scenario.recorder.fault_done(KILL_REWRITER);
            scenario.cluster.heal().await?;
            scenario.suspect = Some(victim);
        }
        work.0.stop_publishing(LOAD_LIMIT).await?;
        work.0.drain(LOAD_LIMIT).await?;
        wait_given_back(&scenario.cluster, SEGMENT_BYTES, 0, GIVE_BACK_LIMIT).await?;
        work.0.start_late_groups().await?;
        scenario.finish(work).await
    })
    .await;
}
