//! What a queue keeps and for how long: settings of a living queue, full queues, times to live, and what becomes of
//! messages that are given up. Leaders die in between.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use skein_client::{
    Client, Filter, Message, Offset, Overflow, Position, QueueSettings, QueueUpdate, Reason, RedriveOptions,
    Settlement,
};
use skein_cluster_tests::{
    by_hand::{ARRIVES_WITHIN, body, expect_nothing, next, send, take_bodies},
    faults::kill::{KILL_LEADER, kill_leader},
    scenario::{self, Scenario},
    wait,
};
use tokio::time::{self, Instant};

/// A whole test.
const LIMIT: Duration = Duration::from_secs(90);

/// What happens in the background has happened within this.
const SOON: Duration = Duration::from_secs(15);

const QUEUE: &str = "orders";
const GRAVEYARD: &str = "graveyard";

/// Kills the leader of the queue, and starts it again.
async fn lose_leader(scenario: &mut Scenario) -> Result<()> {
    scenario.require(KILL_LEADER);
    let dead = kill_leader(&mut scenario.cluster, &scenario.recorder, QUEUE).await?;
    scenario.cluster.restart(dead)
}

fn header(message: &Message, name: &str) -> String {
    message.headers.get(name).map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
}

#[tokio::test]
async fn settings_of_a_living_queue_change() {
    scenario::run("settings_of_a_living_queue_change", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(GRAVEYARD, QueueSettings::default()).await?;
        client.create_queue(QUEUE, QueueSettings::default()).await?;
        send(&client, QUEUE, &["poison"]).await?;
        let mut consumer = client.consumer(QUEUE, "mail").build().await?;
        next(&mut consumer).await?.nack().await?;

        let update = QueueUpdate::new().max_deliveries(2).dead_letter_queue(GRAVEYARD);
        let updated = client.update_queue(QUEUE, update).await?;
        ensure!(updated.settings.max_deliveries == Some(2), "{updated:?}");
        lose_leader(scenario).await?;
        // The next return is the second one.
        next(&mut consumer).await?.nack().await?;
        let mut graves = client.consumer(GRAVEYARD, "undertaker").build().await?;
        ensure!(body(&next(&mut graves).await?.message) == "poison", "another message was given up");

        let delayed = QueueUpdate::new().redelivery_delay(Duration::from_secs(1)).max_deliveries(9);
        client.update_queue(QUEUE, delayed).await?;
        send(&client, QUEUE, &["later"]).await?;
        let first = next(&mut consumer).await?;
        let returned = Instant::now();
        first.nack().await?;
        let again = next(&mut consumer).await?;
        ensure!(returned.elapsed() >= Duration::from_secs(1), "it came after {:?}", returned.elapsed());
        again.ack().await?;

        let before = client.get_queue(QUEUE).await?.settings;
        for (update, reason, part) in [
            (QueueUpdate::new().max_age(Duration::from_secs(5)), Reason::InvalidSetting, "max_age_ms"),
            (QueueUpdate::new().overflow(Overflow::DropOldest), Reason::InvalidSetting, "overflow"),
            (QueueUpdate::new().dead_letter_queue(QUEUE), Reason::InvalidSetting, "dead_letter_queue"),
            (QueueUpdate::new().dead_letter_queue("unknown"), Reason::QueueNotFound, "unknown"),
        ] {
            let refused = client.update_queue(QUEUE, update).await.expect_err("it contradicts itself");
            ensure!(refused.reason() == reason && refused.to_string().contains(part), "{refused}");
        }
        let cycle = QueueUpdate::new().dead_letter_queue(QUEUE);
        let refused = client.update_queue(GRAVEYARD, cycle).await.expect_err("it is a cycle");
        ensure!(refused.reason() == Reason::InvalidSetting, "{refused}");
        ensure!(client.get_queue(QUEUE).await?.settings == before, "a refused change changed something");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_full_queue_refuses_or_lets_the_oldest_go() {
    scenario::run("a_full_queue_refuses_or_lets_the_oldest_go", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(GRAVEYARD, QueueSettings::default()).await?;
        let settings = QueueSettings {
            max_messages: Some(4),
            dead_letter_queue: Some(GRAVEYARD.to_owned()),
            ..QueueSettings::default()
        };
        client.create_queue(QUEUE, settings).await?;
        client.create_group(QUEUE, "mail", Position::First).await?;
        send(&client, QUEUE, &["0", "1", "2", "3"]).await?;
        lose_leader(scenario).await?;
        let refused = client.send(QUEUE, vec![Message::new("4")]).await.expect_err("the queue is full");
        ensure!(refused.reason() == Reason::QueueFull, "{refused}");
        ensure!(client.get_queue(QUEUE).await?.next_offset == Offset::new(4), "it was stored all the same");

        let mut consumer = client.consumer(QUEUE, "mail").credit_messages(1).build().await?;
        ensure!(take_bodies(&mut consumer, 1).await? == ["0"], "the oldest comes first");
        consumer.close().await;
        send(&client, QUEUE, &["4"]).await?;

        client.update_queue(QUEUE, QueueUpdate::new().overflow(Overflow::DropOldest)).await?;
        send(&client, QUEUE, &["5", "6"]).await?;
        lose_leader(scenario).await?;
        let mut graves = client.consumer(GRAVEYARD, "undertaker").build().await?;
        for expected in ["1", "2"] {
            let dead = next(&mut graves).await?;
            let reason = header(&dead.message, "skein-dead-letter-reason");
            ensure!((body(&dead.message).as_str(), reason.as_str()) == (expected, "overflow"), "{dead:?}");
            ensure!(!header(&dead.message, "skein-dead-letter-time-ms").is_empty(), "{dead:?}");
            dead.ack().await?;
        }
        expect_nothing(&mut graves).await?;
        let mut consumer = client.consumer(QUEUE, "mail").credit_messages(1).build().await?;
        ensure!(take_bodies(&mut consumer, 4).await? == ["3", "4", "5", "6"], "others were dropped");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn messages_that_nobody_takes_in_time_are_given_up() {
    scenario::run("messages_that_nobody_takes_in_time_are_given_up", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        let ttl = Duration::from_millis(1_500);
        client.create_queue(GRAVEYARD, QueueSettings::default()).await?;
        let settings = QueueSettings {
            message_ttl: Some(ttl),
            dead_letter_queue: Some(GRAVEYARD.to_owned()),
            ..QueueSettings::default()
        };
        client.create_queue(QUEUE, settings).await?;
        client.create_group(QUEUE, "mail", Position::First).await?;
        // What it does not want expires as well, but is nothing to mourn.
        client.create_filtered_group(QUEUE, "none", Position::First, Filter::key_equals("none")).await?;
        let message = |text: &'static str| Message::new(text);
        let brief = message("brief").ttl(Duration::from_millis(200));
        let later = message("later").delay(Duration::from_secs(4));
        client.send(QUEUE, vec![message("held"), message("long"), brief, later]).await?;

        // What is held does not expire: whoever holds it may be about to be done with it.
        let mut consumer = client.consumer(QUEUE, "mail").credit_messages(1).build().await?;
        let held = next(&mut consumer).await?;
        ensure!(body(&held.message) == "held", "{held:?}");
        let mut graves = client.consumer(GRAVEYARD, "undertaker").build().await?;
        for expected in ["brief", "long"] {
            let dead = next(&mut graves).await?;
            let reason = header(&dead.message, "skein-dead-letter-reason");
            ensure!((body(&dead.message).as_str(), reason.as_str()) == (expected, "expired"), "{dead:?}");
            dead.ack().await?;
        }
        held.ack().await?;
        expect_nothing(&mut consumer).await?;
        // A time to live counts from when the message is due.
        lose_leader(scenario).await?;
        ensure!(take_bodies(&mut consumer, 1).await? == ["later"], "it was given up before it was due");
        let group = client.get_group(QUEUE, "mail").await?;
        ensure!((group.dead_lettered_count, group.unacked_count) == (2, 0), "{group:?}");
        wait::until("the other group to be done as well", SOON, async || {
            let group = client.get_group(QUEUE, "none").await?;
            ensure!(group.unacked_count == 0, "{group:?}");
            Ok(())
        })
        .await?;
        let dead_letters = client.get_queue(GRAVEYARD).await?.next_offset;
        ensure!(dead_letters == Offset::new(2), "{dead_letters} dead letters");

        // Without a consumer as well, and without a place to go to.
        consumer.close().await;
        client.update_queue(QUEUE, QueueUpdate::new().no_dead_letter_queue()).await?;
        send(&client, QUEUE, &["nobody", "cares"]).await?;
        wait::until("both to be dropped", SOON, async || {
            let group = client.get_group(QUEUE, "mail").await?;
            ensure!((group.dropped_count, group.unacked_count) == (2, 0), "{group:?}");
            Ok(())
        })
        .await
    })
    .await;
}

#[tokio::test]
async fn dead_letters_go_back_to_where_they_came_from() {
    scenario::run("dead_letters_go_back_to_where_they_came_from", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(GRAVEYARD, QueueSettings::default()).await?;
        let settings = QueueSettings {
            max_deliveries: Some(1),
            dead_letter_queue: Some(GRAVEYARD.to_owned()),
            ..QueueSettings::default()
        };
        client.create_queue(QUEUE, settings).await?;
        let messages = ["eu", "us", "eu"].map(|region| Message::new(region).header("region", region));
        client.send(QUEUE, messages.to_vec()).await?;
        let mut consumer = client.consumer(QUEUE, "mail").build().await?;
        for _ in 0..3 {
            next(&mut consumer).await?.nack().await?;
        }
        wait_for_graves(&client, 3).await?;
        lose_leader(scenario).await?;
        let only_eu = RedriveOptions::new().header("region", "eu");
        let moved = client.redrive(GRAVEYARD, only_eu, |_| {}).await?;
        ensure!((moved.moved_count, moved.left_count) == (2, 1), "{moved:?}");
        for _ in 0..2 {
            let back = next(&mut consumer).await?;
            ensure!(body(&back.message) == "eu" && back.attempt == 1, "{back:?}");
            ensure!(back.message.headers.len() == 1, "the headers of its death stayed: {:?}", back.message);
            back.ack().await?;
        }
        let moved = client.redrive(GRAVEYARD, RedriveOptions::new(), |_| {}).await?;
        ensure!((moved.moved_count, moved.left_count) == (1, 0), "{moved:?}");
        ensure!(take_bodies(&mut consumer, 1).await? == ["us"], "another one came back");
        expect_nothing(&mut consumer).await
    })
    .await;
}

/// Some are given up again as soon as they are back.
#[tokio::test]
async fn what_was_there_when_it_began_is_moved_and_nothing_else() {
    scenario::run("what_was_there_when_it_began_is_moved_and_nothing_else", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(GRAVEYARD, QueueSettings::default()).await?;
        let settings = QueueSettings {
            message_ttl: Some(Duration::from_millis(1)),
            dead_letter_queue: Some(GRAVEYARD.to_owned()),
            ..QueueSettings::default()
        };
        client.create_queue(QUEUE, settings).await?;
        client.create_group(QUEUE, "mail", Position::First).await?;
        client.send(QUEUE, vec![Message::new("late"); 5]).await?;
        wait_for_graves(&client, 5).await?;
        let moved = client.redrive(GRAVEYARD, RedriveOptions::new(), |_| {});
        let moved = time::timeout(SOON, moved).await.context("it chases what it has moved")??;
        ensure!((moved.moved_count, moved.left_count) == (5, 0), "{moved:?}");
        wait_for_graves(&client, 10).await
    })
    .await;
}

async fn wait_for_graves(client: &Client, count: u64) -> Result<()> {
    wait::until("the dead letters to be moved", SOON, async || {
        let dead_letters = client.get_queue(GRAVEYARD).await?.next_offset;
        ensure!(dead_letters == Offset::new(count), "{dead_letters} were");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_queue_that_nobody_uses_goes() {
    scenario::run("a_queue_that_nobody_uses_goes", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        let expires = Duration::from_secs(5);
        let settings = QueueSettings { expires: Some(expires), ..QueueSettings::default() };
        client.create_queue(QUEUE, settings.clone()).await?;
        client.create_queue("other", settings).await?;
        let consumer = client.consumer(QUEUE, "mail").build().await?;
        wait::until("the unused queue to go", SOON, async || {
            let names: Vec<_> = client.list_queues().await?.into_iter().map(|queue| queue.name).collect();
            ensure!(names == [QUEUE], "there are {names:?}");
            Ok(())
        })
        .await?;
        lose_leader(scenario).await?;
        time::sleep(expires + Duration::from_secs(2)).await;
        ensure!(client.get_queue(QUEUE).await.is_ok(), "it went while it was consumed from");
        consumer.close().await;
        wait::until("the queue to go after its consumer", SOON, async || {
            let error = client.get_queue(QUEUE).await.err();
            ensure!(error.is_some_and(|error| error.reason() == Reason::QueueNotFound), "it is there");
            Ok(())
        })
        .await
    })
    .await;
}

#[tokio::test]
async fn what_a_consumer_rejects_is_given_up_at_once() {
    scenario::run("what_a_consumer_rejects_is_given_up_at_once", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(GRAVEYARD, QueueSettings::default()).await?;
        let dead_letter_queue = Some(GRAVEYARD.to_owned());
        client.create_queue(QUEUE, QueueSettings { dead_letter_queue, ..QueueSettings::default() }).await?;
        send(&client, QUEUE, &["hopeless", "fine", "as bad"]).await?;
        let mut consumer = client.consumer(QUEUE, "mail").build().await?;
        next(&mut consumer).await?.reject().await?;
        ensure!(take_bodies(&mut consumer, 1).await? == ["fine"], "others are not concerned");
        let held = next(&mut consumer).await?;
        lose_leader(scenario).await?;
        held.reject().await?;
        let mut graves = client.consumer(GRAVEYARD, "undertaker").build().await?;
        for expected in ["hopeless", "as bad"] {
            let dead = next(&mut graves).await?;
            let header = |name| header(&dead.message, name);
            let found = (
                body(&dead.message),
                header("skein-dead-letter-reason"),
                header("skein-dead-letter-attempts"),
            );
            ensure!(found == (expected.to_owned(), "rejected".to_owned(), "1".to_owned()), "{dead:?}");
            dead.ack().await?;
        }
        expect_nothing(&mut graves).await?;
        consumer.close().await;

        // By a call without a stream, and without a place to go to.
        client.update_queue(QUEUE, QueueUpdate::new().no_dead_letter_queue()).await?;
        send(&client, QUEUE, &["worse"]).await?;
        let mut received = client.receive(QUEUE, "mail", 1, ARRIVES_WITHIN).await?;
        let received = received.pop().context("nothing was received")?;
        let refused = client.settle(QUEUE, "mail", Settlement::new().reject(received.lease_token)).await?;
        ensure!(refused.is_empty(), "{refused:?}");
        let group = client.get_group(QUEUE, "mail").await?;
        ensure!(
            (group.unacked_count, group.dead_lettered_count, group.dropped_count) == (0, 2, 1),
            "{group:?}"
        );
        Ok(())
    })
    .await;
}
