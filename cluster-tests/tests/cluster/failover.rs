//! Nodes die under load, in every way that is promised to be survived; the histories are judged.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use skein_cluster_tests::{
    faults::{
        kill::{
            self, KILL_ALL, KILL_FOLLOWER, KILL_LEADER, KILL_MAJORITY, ROLLING_RESTART, kill_all,
            kill_follower, kill_leader, kill_majority, rolling_restart,
        },
        schedule::{self, Victim},
    },
    scenario, wait,
    workload::Plan,
};
use tokio::time;

/// A whole test: starting, faults, draining, asking every replica.
const LIMIT: Duration = Duration::from_secs(150);

/// Publishing goes on within this after a fault that a majority survived. Elections by timers alone take 1.5 s; a
/// machine that does something else as well takes longer.
const RESUME_LIMIT: Duration = Duration::from_secs(20);

/// Enough that a fault meets publishes, deliveries and acks under way.
const WARM_UP_CONFIRMS: usize = 300;

/// The queue whose leader is meant.
const QUEUE: &str = "orders";

/// Kills in the test that kills again and again.
const KILLS: usize = 5;

/// What a log says of a node that died, and of anything else that somebody should look at.
const ALARMS: [&str; 2] = ["the node's process has ended", " ERROR "];

/// How long nodes are watched that have nothing to do, and how long processors may work for one meanwhile. That is
/// much, for a build without optimisations, and far from a node that keeps one busy.
const IDLE: Duration = Duration::from_secs(3);
const IDLE_WORK_MAX: Duration = Duration::from_millis(750);

#[tokio::test]
async fn the_leader_dies() {
    scenario::run("the_leader_dies", LIMIT, async |scenario| {
        scenario.require(KILL_LEADER);
        let work = scenario.start(&Plan::default()).await?;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
        let dead = kill_leader(&mut scenario.cluster, &scenario.recorder, QUEUE).await?;
        // The cluster goes on without it.
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
        let leader = scenario.cluster.leader_of(QUEUE).await?;
        ensure!(leader != dead, "a dead node leads");
        scenario.finish(work).await
    })
    .await;
}

#[tokio::test]
async fn a_follower_dies() {
    scenario::run("a_follower_dies", LIMIT, async |scenario| {
        scenario.require(KILL_FOLLOWER);
        let work = scenario.start(&Plan::default()).await?;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
        kill_follower(&mut scenario.cluster, &scenario.recorder, QUEUE).await?;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
        // It comes back and catches up while the others work.
        scenario.cluster.heal().await?;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
        scenario.finish(work).await
    })
    .await;
}

#[tokio::test]
async fn nobody_waits_busily_for_a_node_that_is_away() {
    scenario::run("nobody_waits_busily_for_a_node_that_is_away", LIMIT, async |scenario| {
        scenario.require(KILL_FOLLOWER);
        let mut work = scenario.start(&Plan::default()).await?;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
        kill_follower(&mut scenario.cluster, &scenario.recorder, QUEUE).await?;
        work.0.stop_publishing(RESUME_LIMIT).await?;
        work.0.drain(RESUME_LIMIT).await?;
        for node_id in scenario.cluster.running() {
            let node = scenario.cluster.process(node_id)?;
            let before = node.cpu_time()?;
            time::sleep(IDLE).await;
            let worked = node.cpu_time()? - before;
            ensure!(worked < IDLE_WORK_MAX, "node {node_id} worked for {worked:?} within {IDLE:?}");
        }
        scenario.finish(work).await
    })
    .await;
}

#[tokio::test]
async fn two_of_three_die_and_nothing_false_is_confirmed() {
    scenario::run("two_of_three_die_and_nothing_false_is_confirmed", LIMIT, async |scenario| {
        scenario.require(KILL_MAJORITY);
        let work = scenario.start(&Plan::default()).await?;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
        let dead = kill_majority(&mut scenario.cluster, &scenario.recorder, QUEUE).await?;

        // What was confirmed before may still be on its way to the harness; after that nothing comes any more, while
        // publishers keep trying: their windows fill up.
        let silence = Duration::from_secs(3);
        let after_death = scenario.recorder.now() + Duration::from_secs(1);
        wait::until("publishers to try in vain", RESUME_LIMIT, async || {
            let silent = scenario.recorder.now().saturating_sub(after_death);
            ensure!(silent >= silence, "only for {silent:?}");
            ensure!(scenario.publishes_open() > 0, "nobody tries");
            Ok(())
        })
        .await?;
        let confirmed = scenario.confirmed_since(after_death);
        ensure!(confirmed == 0, "{confirmed} messages were confirmed by one node of three");

        // One returns: two of three are a majority, and everything resumes.
        let back = dead.first().context("somebody died")?;
        scenario.cluster.restart(*back)?;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
        scenario.finish(work).await
    })
    .await;
}

#[tokio::test]
async fn all_three_die_at_once_and_return() {
    scenario::run("all_three_die_at_once_and_return", LIMIT, async |scenario| {
        scenario.require(KILL_ALL);
        let work = scenario.start(&Plan::default()).await?;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
        kill_all(&mut scenario.cluster, &scenario.recorder)?;
        scenario.cluster.heal().await?;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
        scenario.finish(work).await
    })
    .await;
}

#[tokio::test]
async fn nodes_leave_and_return_one_after_the_other() {
    scenario::run("nodes_leave_and_return_one_after_the_other", LIMIT, async |scenario| {
        scenario.require(ROLLING_RESTART);
        let work = scenario.start(&Plan::default()).await?;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
        rolling_restart(&mut scenario.cluster, &scenario.recorder).await?;
        // Each node has seen those leave that came after it.
        for node_id in scenario.cluster.running() {
            let log = scenario.cluster.log_text(node_id)?;
            let alarms: Vec<_> =
                log.lines().filter(|line| ALARMS.iter().any(|alarm| line.contains(alarm))).collect();
            ensure!(alarms.is_empty(), "node {node_id} takes it for an accident: {alarms:#?}");
        }
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
        scenario.finish(work).await
    })
    .await;
}

#[tokio::test]
async fn nodes_die_again_and_again() {
    scenario::run("nodes_die_again_and_again", LIMIT, async |scenario| {
        scenario.require(KILL_LEADER);
        let work = scenario.start(&Plan::default()).await?;
        for (number, step) in schedule::steps(scenario.seed, KILLS).into_iter().enumerate() {
            let context = || format!("step {number}, {step:?}");
            scenario.wait_confirmed(step.after_confirms, RESUME_LIMIT).await.with_context(context)?;
            match step.victim {
                Victim::Leader => kill_leader(&mut scenario.cluster, &scenario.recorder, QUEUE).await?,
                Victim::Follower => kill_follower(&mut scenario.cluster, &scenario.recorder, QUEUE).await?,
            };
            scenario.wait_confirmed(step.down_for_confirms, RESUME_LIMIT).await.with_context(context)?;
            scenario.cluster.heal().await.with_context(context)?;
        }
        scenario.finish(work).await
    })
    .await;
}

#[tokio::test]
async fn a_leader_that_was_stopped_confirms_nothing_behind_the_back_of_the_next() {
    scenario::run(
        "a_leader_that_was_stopped_confirms_nothing_behind_the_back_of_the_next",
        LIMIT,
        async |scenario| {
            scenario.require(kill::PAUSE_LEADER);
            let work = scenario.start(&Plan::default()).await?;
            scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
            let stopped = scenario.cluster.leader_of(QUEUE).await?;
            kill::pause(&scenario.cluster, &scenario.recorder, stopped)?;
            // Nothing is reset: timers alone must notice.
            let goes_on = scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await;
            kill::resume(&scenario.cluster, &scenario.recorder, stopped)?;
            goes_on?;
            scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
            scenario.finish(work).await
        },
    )
    .await;
}
