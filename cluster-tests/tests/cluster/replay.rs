//! A queue that keeps what was acked is read again: by new groups, by groups that are moved, and by whoever looks into
//! it. Leaders die in between.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use skein_client::{BrowseOptions, Offset, Position, QueueSettings, QueueUpdate, Reason, Retention};
use skein_cluster_tests::{
    by_hand::{ARRIVES_WITHIN, body, expect_nothing, next, send, take_bodies},
    faults::kill::{KILL_LEADER, kill_leader},
    scenario::{self, Scenario},
    wait,
};
use tokio::time;

/// A whole test.
const LIMIT: Duration = Duration::from_secs(90);

/// What happens in the background has happened within this.
const SOON: Duration = Duration::from_secs(15);

const QUEUE: &str = "prices";

async fn lose_leader(scenario: &mut Scenario) -> Result<()> {
    scenario.require(KILL_LEADER);
    let dead = kill_leader(&mut scenario.cluster, &scenario.recorder, QUEUE).await?;
    scenario.cluster.restart(dead)
}

async fn until(time: SystemTime) -> Result<()> {
    wait::until("a time to come", SOON, async || {
        ensure!(SystemTime::now() >= time);
        Ok(())
    })
    .await
}

fn stream() -> QueueSettings {
    QueueSettings { retention: Retention::Limits, ..QueueSettings::default() }
}

#[tokio::test]
async fn a_group_goes_on_from_wherever_it_is_moved() {
    scenario::run("a_group_goes_on_from_wherever_it_is_moved", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(QUEUE, stream()).await?;
        let mut consumer = client.consumer(QUEUE, "shop").credit_messages(2).build().await?;
        send(&client, QUEUE, &["0", "1", "2"]).await?;
        take_bodies(&mut consumer, 2).await?;
        let before = next(&mut consumer).await?;
        before.ack().await?;
        // Times are in whole milliseconds.
        let later = before.published_at + Duration::from_millis(1);
        until(later).await?;
        send(&client, QUEUE, &["3", "4"]).await?;
        let after = next(&mut consumer).await?;
        after.ack().await?;
        let middle = after.published_at;
        ensure!(middle > before.published_at, "{after:?} is no later than {before:?}");
        take_bodies(&mut consumer, 1).await?;
        ensure!(client.get_queue(QUEUE).await?.message_count == 5, "what is acked is kept");

        for (position, expected) in [
            (Position::First, 0),
            (Position::Offset(Offset::new(2)), 2),
            (Position::Time(middle), 3),
            (Position::Next, 5),
            (Position::Offset(Offset::new(4)), 4),
        ] {
            let offset = client.seek_group(QUEUE, "shop", position).await?;
            ensure!(offset == Offset::new(expected), "{position:?} is {offset}");
            if expected == 2 {
                lose_leader(scenario).await?;
            }
            let count = 5 - expected as usize;
            let bodies = take_bodies(&mut consumer, count).await?;
            let wanted: Vec<_> = (expected..5).map(|number| number.to_string()).collect();
            ensure!(bodies == wanted, "after {position:?} came {bodies:?}");
        }
        // What is held when the group moves is void, be it looked at or not.
        client.seek_group(QUEUE, "shop", Position::Offset(Offset::new(3))).await?;
        let held = next(&mut consumer).await?;
        client.seek_group(QUEUE, "shop", Position::Offset(Offset::new(3))).await?;
        wait::until("the consumer to come again", SOON, async || {
            let group = client.get_group(QUEUE, "shop").await?;
            ensure!(group.consumer_count == 1 && group.leased_count == 2, "{group:?}");
            Ok(())
        })
        .await?;
        ensure!(held.ack().await.is_err(), "it is void, though the consumer holds the same message again");
        ensure!(take_bodies(&mut consumer, 2).await? == ["3", "4"], "they come again");
        expect_nothing(&mut consumer).await?;
        let late = client.seek_group(QUEUE, "shop", Position::Offset(Offset::new(6))).await;
        ensure!(
            late.is_err_and(|error| error.reason() == Reason::InvalidPosition),
            "there is no such offset"
        );

        for (group, position, first) in
            [("from-1", Position::Offset(Offset::new(1)), "1"), ("since", Position::Time(middle), "3")]
        {
            client.create_group(QUEUE, group, position).await?;
            let lag = client.get_group(QUEUE, group).await?;
            ensure!(lag.unacked_count > 0 && lag.unacked_bytes > 0, "{lag:?}");
            ensure!(lag.oldest_unacked_at.is_some(), "{lag:?}");
            let mut reader = client.consumer(QUEUE, group).build().await?;
            ensure!(take_bodies(&mut reader, 1).await? == [first], "{group} began elsewhere");
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn whoever_follows_a_queue_sees_each_message_once() {
    scenario::run("whoever_follows_a_queue_sees_each_message_once", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(QUEUE, stream()).await?;
        send(&client, QUEUE, &["0", "1"]).await?;
        let options = BrowseOptions::new().from(Position::Offset(Offset::new(1))).follow();
        let mut browsed = client.browse_with(QUEUE, options).await?;
        for expected in 1..6 {
            if expected > 1 {
                send(&client, QUEUE, &[&expected.to_string()]).await?;
            }
            let next = time::timeout(ARRIVES_WITHIN, browsed.next()).await.context("nothing came")?;
            let next = next.context("it ended")??;
            let seen = (next.offset, body(&next.message));
            ensure!(seen == (Offset::new(expected), expected.to_string()), "{seen:?}");
            if expected == 3 {
                lose_leader(scenario).await?;
            }
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn whoever_follows_from_a_time_to_come_sees_nothing_older() {
    scenario::run("whoever_follows_from_a_time_to_come_sees_nothing_older", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(QUEUE, stream()).await?;
        let time = SystemTime::now() + Duration::from_secs(2);
        let options = BrowseOptions::new().from(Position::Time(time)).follow();
        let mut browsed = client.browse_with(QUEUE, options).await?;
        let mut next = std::pin::pin!(browsed.next());
        // It is read from before the first message is there.
        ensure!(time::timeout(Duration::from_millis(200), &mut next).await.is_err(), "nothing is there");
        send(&client, QUEUE, &["early"]).await?;
        until(time).await?;
        send(&client, QUEUE, &["late"]).await?;
        let seen = time::timeout(ARRIVES_WITHIN, next).await.context("nothing came")?;
        let seen = seen.context("it ended")??;
        ensure!(body(&seen.message) == "late", "{seen:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_stream_keeps_what_its_limits_say() {
    scenario::run("a_stream_keeps_what_its_limits_say", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(QUEUE, QueueSettings { max_messages: Some(3), ..stream() }).await?;
        client.create_group(QUEUE, "slow", Position::First).await?;
        send(&client, QUEUE, &["0", "1", "2"]).await?;
        send(&client, QUEUE, &["3", "4"]).await?;
        lose_leader(scenario).await?;
        let queue = client.get_queue(QUEUE).await?;
        ensure!((queue.first_offset, queue.message_count) == (Offset::new(2), 3), "{queue:?}");
        let mut slow = client.consumer(QUEUE, "slow").build().await?;
        ensure!(take_bodies(&mut slow, 3).await? == ["2", "3", "4"], "the oldest are gone");
        ensure!(client.get_group(QUEUE, "slow").await?.dropped_count == 2, "it missed two");

        client.update_queue(QUEUE, QueueUpdate::new().max_age(Duration::from_secs(2))).await?;
        wait::until("everything to be too old", SOON, async || {
            let queue = client.get_queue(QUEUE).await?;
            ensure!(queue.message_count == 0, "{queue:?}");
            Ok(())
        })
        .await?;
        // Acked messages go again once the queue is an ordinary one.
        let ordinary = QueueUpdate::new().retention(Retention::UntilAcked).no_max_age().no_max_messages();
        client.update_queue(QUEUE, ordinary).await?;
        send(&client, QUEUE, &["5"]).await?;
        ensure!(take_bodies(&mut slow, 1).await? == ["5"], "it goes on");
        ensure!(client.get_queue(QUEUE).await?.message_count == 0, "it was acked");
        Ok(())
    })
    .await;
}
