//! Which message comes when, and to whom: delays, priorities, filters, a single active consumer. Leaders die in
//! between.

use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use skein_client::{Filter, Message, Position, QueueSettings, QueueUpdate, Reason};
use skein_cluster_tests::{
    by_hand::{body, expect_nothing, next, send, take_bodies},
    faults::kill::{KILL_LEADER, kill_leader},
    scenario::{self, Scenario},
    wait,
};
use tokio::time::{self, Instant};

/// A whole test.
const LIMIT: Duration = Duration::from_secs(90);

/// A message that is due comes within this, also when a leader has died and holds messages back.
const LATE_MAX: Duration = Duration::from_secs(5);

const QUEUE: &str = "orders";
const GROUP: &str = "mail";

async fn lose_leader(scenario: &mut Scenario) -> Result<()> {
    scenario.require(KILL_LEADER);
    let dead = kill_leader(&mut scenario.cluster, &scenario.recorder, QUEUE).await?;
    scenario.cluster.restart(dead)
}

#[tokio::test]
async fn scheduled_messages_come_when_they_are_due() {
    scenario::run("scheduled_messages_come_when_they_are_due", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(QUEUE, QueueSettings::default()).await?;
        let began = Instant::now();
        let delays = [4_000, 0, 2_000, 3_000].map(Duration::from_millis);
        let messages = delays.map(|delay| {
            let message = Message::new(delay.as_millis().to_string());
            if delay.is_zero() { message } else { message.delay(delay) }
        });
        client.send(QUEUE, messages.to_vec()).await?;
        let at = SystemTime::now() + Duration::from_millis(2_500);
        client.send(QUEUE, vec![Message::new("2500").deliver_at(at)]).await?;
        let mut consumer = client.consumer(QUEUE, GROUP).build().await?;
        wait::until("the others to wait", LATE_MAX, async || {
            let group = client.get_group(QUEUE, GROUP).await?;
            ensure!((group.leased_count, group.delayed_count) == (1, 4) && group.is_drained(), "{group:?}");
            Ok(())
        })
        .await?;
        for (place, due_ms) in [0, 2_000, 2_500, 3_000, 4_000].into_iter().enumerate() {
            let delivery = next(&mut consumer).await?;
            let (due, elapsed) = (Duration::from_millis(due_ms), began.elapsed());
            ensure!(body(&delivery.message) == due_ms.to_string(), "{delivery:?} came instead of {due_ms}");
            // The node counts from when it stored the message, a moment after the test began to count.
            ensure!(elapsed >= due, "{due_ms} came after {elapsed:?}");
            ensure!(elapsed <= due + LATE_MAX, "{due_ms} came after {elapsed:?}");
            delivery.ack().await?;
            if place == 0 {
                lose_leader(scenario).await?;
            }
        }
        expect_nothing(&mut consumer).await?;

        let year = Duration::from_secs(367 * 24 * 60 * 60);
        for message in
            [Message::new("far").delay(year), Message::new("far").deliver_at(SystemTime::now() + year)]
        {
            let refused = client.send(QUEUE, vec![message]).await.expect_err("it is too far off");
            ensure!(refused.reason() == Reason::InvalidProperty, "{refused}");
        }
        let refused =
            client.send(QUEUE, vec![Message::new("x").priority(10)]).await.expect_err("9 is the most");
        ensure!(refused.reason() == Reason::InvalidProperty, "{refused}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn the_most_urgent_that_waits_comes_first() {
    scenario::run("the_most_urgent_that_waits_comes_first", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(QUEUE, QueueSettings::default()).await?;
        client.create_group(QUEUE, GROUP, Position::First).await?;
        let urgent = |text: &'static str, priority| Message::new(text).priority(priority);
        send(&client, QUEUE, &["plain 0", "plain 1"]).await?;
        client.send(QUEUE, vec![urgent("low", 1), urgent("high 0", 9), urgent("high 1", 9)]).await?;
        send(&client, QUEUE, &["plain 2"]).await?;
        client.send(QUEUE, vec![urgent("middle", 5)]).await?;
        let mut consumer = client.consumer(QUEUE, GROUP).credit_messages(1).build().await?;
        ensure!(take_bodies(&mut consumer, 2).await? == ["high 0", "high 1"], "others were more urgent");
        lose_leader(scenario).await?;
        let next_ones = take_bodies(&mut consumer, 2).await?;
        // One may have been handed out before the leader died.
        ensure!(next_ones == ["middle", "low"], "{next_ones:?}");
        let back = next(&mut consumer).await?;
        ensure!(body(&back.message) == "plain 0", "{back:?}");
        client.send(QUEUE, vec![urgent("late", 3)]).await?;
        back.nack().await?;
        let rest = take_bodies(&mut consumer, 4).await?;
        ensure!(rest == ["late", "plain 0", "plain 1", "plain 2"], "{rest:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn less_urgent_messages_have_their_share() {
    scenario::run("less_urgent_messages_have_their_share", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(QUEUE, QueueSettings::default()).await?;
        client.create_group(QUEUE, GROUP, Position::First).await?;
        let refused = client.update_queue(QUEUE, QueueUpdate::new().lower_priority_percent(51)).await;
        ensure!(refused.is_err_and(|error| error.reason() == Reason::InvalidSetting), "it is over a half");
        client.update_queue(QUEUE, QueueUpdate::new().lower_priority_percent(25)).await?;
        let messages =
            |priority: u8| (0..24).map(move |_| Message::new(priority.to_string()).priority(priority));
        client.send(QUEUE, messages(2).chain(messages(0)).chain(messages(9)).collect()).await?;
        let mut consumer = client.consumer(QUEUE, GROUP).credit_messages(1).build().await?;
        let before = take_bodies(&mut consumer, 8).await?;
        ensure!(before == ["9", "9", "9", "2", "9", "9", "9", "2"], "{before:?}");
        lose_leader(scenario).await?;
        let after = take_bodies(&mut consumer, 16).await?;
        let lower = after.iter().filter(|body| *body == "2").count();
        // The new leader does not know how much of its share the old one still owed.
        ensure!((3..=5).contains(&lower) && !after.contains(&"0".to_owned()), "{after:?}");
        client.update_queue(QUEUE, QueueUpdate::new().no_lower_priority_percent()).await?;
        // One may have been handed out before.
        let strict = take_bodies(&mut consumer, 5).await?;
        ensure!(strict[1..].iter().all(|body| body == "9"), "{strict:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_group_gets_only_what_it_wants() {
    scenario::run("a_group_gets_only_what_it_wants", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(QUEUE, QueueSettings::default()).await?;
        let filter: Filter = "key ~ orders.*.created and not header.test exists".parse()?;
        client.create_filtered_group(QUEUE, GROUP, Position::First, filter.clone()).await?;
        client.create_group(QUEUE, "all", Position::First).await?;
        let message = |text: &'static str, key: &'static str| Message::new(text).key(key);
        let batch = vec![
            message("0", "orders.7.created"),
            message("1", "orders.7.paid"),
            message("2", "orders.8.created").header("test", "1"),
            message("3", "orders.9.created"),
            message("4", "invoices.1"),
        ];
        client.send(QUEUE, batch.clone()).await?;
        let mut consumer = client.consumer(QUEUE, GROUP).credit_messages(1).build().await?;
        ensure!(take_bodies(&mut consumer, 1).await? == ["0"], "it is wanted");
        lose_leader(scenario).await?;
        ensure!(take_bodies(&mut consumer, 1).await? == ["3"], "it is wanted");
        wait::until("what is not wanted to count as acked", LATE_MAX * 2, async || {
            let group = client.get_group(QUEUE, GROUP).await?;
            ensure!(group.unacked_count == 0 && group.filter.as_ref() == Some(&filter), "{group:?}");
            Ok(())
        })
        .await?;
        ensure!(client.get_group(QUEUE, "all").await?.unacked_count == 5, "other groups want them");

        // It wants others from now on, without having to come again; and calls without a stream want the same.
        client.set_filter(QUEUE, GROUP, Some(Filter::key_prefix("invoices."))).await?;
        client.send(QUEUE, batch.clone()).await?;
        ensure!(take_bodies(&mut consumer, 1).await? == ["4"], "it is wanted now");
        consumer.close().await;
        client.send(QUEUE, batch).await?;
        let received = client.receive(QUEUE, GROUP, 10, Duration::from_secs(5)).await?;
        let bodies: Vec<_> = received.iter().map(|received| body(&received.message)).collect();
        ensure!(bodies == ["4"], "{bodies:?}");

        let refused = client.set_filter(QUEUE, GROUP, Some(Filter::key_matches("a..b"))).await;
        ensure!(refused.is_err_and(|error| error.reason() == Reason::InvalidFilter), "it has an empty word");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn only_one_consumer_is_active_and_another_takes_over() {
    scenario::run("only_one_consumer_is_active_and_another_takes_over", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        let settings = QueueSettings { single_active_consumer: true, ..QueueSettings::default() };
        client.create_queue(QUEUE, settings).await?;
        let mut first = client.consumer(QUEUE, GROUP).build().await?;
        send(&client, QUEUE, &["0", "1"]).await?;
        ensure!(take_bodies(&mut first, 2).await? == ["0", "1"], "they come in order");
        let mut second = client.consumer(QUEUE, GROUP).build().await?;
        send(&client, QUEUE, &["2", "3"]).await?;
        ensure!(take_bodies(&mut first, 1).await? == ["2"], "they come in order");
        expect_nothing(&mut second).await?;
        // It holds one when it goes.
        let held = next(&mut first).await?;
        ensure!(body(&held.message) == "3", "{held:?}");
        first.close().await;
        ensure!(take_bodies(&mut second, 1).await? == ["3"], "the next consumer takes over");

        lose_leader(scenario).await?;
        send(&client, QUEUE, &["4"]).await?;
        ensure!(take_bodies(&mut second, 1).await? == ["4"], "it stays active");
        // Whoever has a higher priority is the active one.
        let mut third = client.consumer(QUEUE, GROUP).priority(5).build().await?;
        wait::until("the third consumer to be there", LATE_MAX * 2, async || {
            let group = client.get_group(QUEUE, GROUP).await?;
            ensure!(group.consumer_count == 2, "{group:?}");
            Ok(())
        })
        .await?;
        send(&client, QUEUE, &["5"]).await?;
        ensure!(take_bodies(&mut third, 1).await? == ["5"], "it has a higher priority");
        time::timeout(Duration::from_secs(1), expect_nothing(&mut second)).await?
    })
    .await;
}
