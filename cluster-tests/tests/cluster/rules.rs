//! Everything that a queue can be told to promise, under load, while leaders die; the histories are judged.

use std::time::Duration;

use anyhow::Result;
use skein_cluster_tests::{
    faults::kill::{KILL_LEADER, kill_leader},
    rules::Rule,
    scenario::{self, Scenario},
};
use tokio::time;

/// A whole test: starting, faults, draining, asking every replica.
const LIMIT: Duration = Duration::from_secs(150);

/// Publishing goes on within this after a leader has died.
const RESUME_LIMIT: Duration = Duration::from_secs(20);

/// Enough that a consumer has taken a break, and that messages have waited meanwhile.
const SOME_CONFIRMS: usize = 400;

/// For so long no leader dies: what is judged only then has time to go wrong.
const CALM: Duration = Duration::from_secs(8);

/// Lets a queue that promises this be used while its leader dies twice.
async fn lose_leaders(scenario: &mut Scenario, rule: Rule) -> Result<()> {
    scenario.require(KILL_LEADER);
    let work = scenario.start(&rule.plan()).await?;
    scenario.wait_confirmed(SOME_CONFIRMS, RESUME_LIMIT).await?;
    for _ in 0..2 {
        let dead = kill_leader(&mut scenario.cluster, &scenario.recorder, rule.queue()).await?;
        scenario.wait_confirmed(SOME_CONFIRMS / 4, RESUME_LIMIT).await?;
        scenario.cluster.restart(dead)?;
        scenario.cluster.heal().await?;
    }
    time::sleep(CALM).await;
    scenario.finish(work).await
}

#[tokio::test]
async fn messages_come_in_their_time_while_leaders_die() {
    let name = "messages_come_in_their_time_while_leaders_die";
    scenario::run(name, LIMIT, async |scenario| lose_leaders(scenario, Rule::Timed).await).await;
}

#[tokio::test]
async fn what_fails_too_often_is_given_up_once_while_leaders_die() {
    let name = "what_fails_too_often_is_given_up_once_while_leaders_die";
    scenario::run(name, LIMIT, async |scenario| lose_leaders(scenario, Rule::GivenUp).await).await;
}

#[tokio::test]
async fn keys_are_handled_in_order_while_leaders_die() {
    let name = "keys_are_handled_in_order_while_leaders_die";
    scenario::run(name, LIMIT, async |scenario| lose_leaders(scenario, Rule::Keyed).await).await;
}

#[tokio::test]
async fn what_two_publish_is_stored_once_while_leaders_die() {
    let name = "what_two_publish_is_stored_once_while_leaders_die";
    scenario::run(name, LIMIT, async |scenario| lose_leaders(scenario, Rule::Ids).await).await;
}

#[tokio::test]
async fn the_most_urgent_comes_first_while_leaders_die() {
    let name = "the_most_urgent_comes_first_while_leaders_die";
    scenario::run(name, LIMIT, async |scenario| lose_leaders(scenario, Rule::Urgent).await).await;
}

#[tokio::test]
async fn a_group_is_moved_again_and_again_while_leaders_die() {
    let name = "a_group_is_moved_again_and_again_while_leaders_die";
    scenario::run(name, LIMIT, async |scenario| lose_leaders(scenario, Rule::Moved).await).await;
}
