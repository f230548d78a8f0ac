//! What consumers get, end to end and without faults.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use skein_client::{
    Client, ConsumeError, Consumer, Delivery, Message, Offset, Position, QueueSettings, Reason, Settlement,
};
use skein_cluster_tests::{cluster::Setup, scenario, wait};
use tokio::time::{self, Instant};

/// A whole test, on a machine that does something else as well.
const LIMIT: Duration = Duration::from_secs(60);

/// One message arrives within this.
const DELIVERY_LIMIT: Duration = Duration::from_secs(15);

async fn publish(client: &Client, queue: &str, count: u64) -> Result<()> {
    let producer = client.producer(queue).build().await?;
    for number in 0..count {
        // Confirmed all together by the close.
        drop(producer.send(Message::new(number.to_string())).await?);
    }
    producer.close().await?;
    Ok(())
}

async fn next(consumer: &mut Consumer) -> Result<Delivery> {
    let next = time::timeout(DELIVERY_LIMIT, consumer.next()).await.context("nothing was delivered")?;
    Ok(next.context("the consumer ended")??)
}

fn number(message: &Message) -> Result<u64> {
    Ok(std::str::from_utf8(&message.body)?.parse()?)
}

#[tokio::test]
async fn a_group_that_is_deleted_ends_its_consumers() {
    scenario::run("a_group_that_is_deleted_ends_its_consumers", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue("orders", QueueSettings::default()).await?;
        publish(&client, "orders", 3).await?;
        let mut consumer = client.consumer("orders", "mail").build().await?;
        next(&mut consumer).await?;
        client.delete_group("orders", "mail").await?;
        let end = async {
            loop {
                // What had been delivered may come before.
                if let Err(error) = next(&mut consumer).await {
                    return error;
                }
            }
        };
        let error = time::timeout(DELIVERY_LIMIT, end).await.context("it goes on")?;
        let reason = error.downcast_ref::<ConsumeError>().map(ConsumeError::reason);
        ensure!(reason == Some(Reason::GroupNotFound), "it ended with {error:?}");
        let again = client.get_group("orders", "mail").await;
        ensure!(again.is_err(), "it is there again: {again:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn every_group_gets_everything_in_order() {
    scenario::run("every_group_gets_everything_in_order", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue("orders", QueueSettings::default()).await?;
        // Before and between; one more comes when all is there, and before the others have freed anything.
        client.create_group("orders", "early", Position::First).await?;
        publish(&client, "orders", 300).await?;
        client.create_group("orders", "late", Position::Next).await?;
        publish(&client, "orders", 200).await?;
        for (group, expected) in [("new", 0..500), ("early", 0..500), ("late", 300..500)] {
            let mut consumer = client.consumer("orders", group).credit_messages(64).build().await?;
            for offset in expected {
                let delivery = next(&mut consumer).await.with_context(|| format!("{group} at {offset}"))?;
                let expected = if offset < 300 { offset } else { offset - 300 };
                ensure!(
                    delivery.offset == Offset::new(offset),
                    "{group} got {} for {offset}",
                    delivery.offset
                );
                ensure!(number(&delivery.message)? == expected, "{group} got another body at {offset}");
                ensure!(delivery.attempt == 1, "attempt {}", delivery.attempt);
                drop(delivery.ack());
            }
            consumer.close().await;
            let left = client.get_group("orders", group).await?.unacked_count;
            ensure!(left == 0, "{group} has {left} left");
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn consumers_of_a_group_share() {
    scenario::run("consumers_of_a_group_share", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue("orders", QueueSettings::default()).await?;
        let mut one = client.consumer("orders", "mail").credit_messages(10).build().await?;
        let mut other = client.consumer("orders", "mail").credit_messages(10).build().await?;
        wait::until("both to be there", DELIVERY_LIMIT, async || {
            let consumers = client.get_group("orders", "mail").await?.consumer_count;
            ensure!(consumers == 2, "{consumers} consumers");
            Ok(())
        })
        .await?;
        publish(&client, "orders", 400).await?;

        let mut got: BTreeMap<u64, usize> = BTreeMap::new();
        let mut shares = [0, 0];
        while shares.iter().sum::<usize>() < 400 {
            let (who, delivery) = tokio::select! {
                delivery = next(&mut one) => (0, delivery?),
                delivery = next(&mut other) => (1, delivery?),
            };
            shares[who] += 1;
            *got.entry(number(&delivery.message)?).or_default() += 1;
            drop(delivery.ack());
        }
        ensure!(got.len() == 400 && got.values().all(|times| *times == 1), "something came twice");
        ensure!(shares.iter().all(|share| *share >= 50), "not shared: {shares:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_message_given_back_comes_again_after_its_delay() {
    scenario::run("a_message_given_back_comes_again_after_its_delay", LIMIT, async |scenario| {
        let delay = Duration::from_millis(700);
        let client = scenario.client().await?;
        client.create_queue("orders", QueueSettings::default()).await?;
        publish(&client, "orders", 2).await?;
        let mut consumer = client.consumer("orders", "mail").build().await?;

        let first = next(&mut consumer).await?;
        let given_back = Instant::now();
        first.nack_after(delay).await?;
        let second = next(&mut consumer).await?;
        ensure!(second.offset == Offset::new(1), "the other message is not held up");
        second.ack().await?;
        let again = next(&mut consumer).await?;
        ensure!(given_back.elapsed() >= delay, "it came after {:?}", given_back.elapsed());
        ensure!((again.offset, again.attempt) == (Offset::ZERO, 2), "attempt {}", again.attempt);
        again.nack().await?;
        let again = next(&mut consumer).await?;
        ensure!((again.offset, again.attempt) == (Offset::ZERO, 3), "attempt {}", again.attempt);
        again.ack().await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_message_that_fails_too_often_goes_to_the_dead_letter_queue() {
    scenario::run("a_message_that_fails_too_often_goes_to_the_dead_letter_queue", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue("graveyard", QueueSettings::default()).await?;
        let settings = QueueSettings {
            max_deliveries: Some(3),
            dead_letter_queue: Some("graveyard".to_owned()),
            ..QueueSettings::default()
        };
        client.create_queue("orders", settings).await?;
        let sent = Message::new("poison").key("k").header("trace", "7").message_id("m-1");
        client.send("orders", vec![sent.clone(), Message::new("1")]).await?;

        let mut consumer = client.consumer("orders", "mail").build().await?;
        let mut attempts = Vec::new();
        while attempts.len() < 3 {
            let delivery = next(&mut consumer).await?;
            if delivery.offset == Offset::ZERO {
                attempts.push(delivery.attempt);
                delivery.nack().await?;
            } else {
                delivery.ack().await?;
            }
        }
        ensure!(attempts == [1, 2, 3], "attempts {attempts:?}");

        let mut graves = client.consumer("graveyard", "undertaker").build().await?;
        let dead = next(&mut graves).await?;
        ensure!(
            dead.message.body == sent.body && dead.message.key == sent.key,
            "it changed: {:?}",
            dead.message
        );
        let trace = dead.message.headers.get("trace");
        ensure!(trace == sent.headers.get("trace"), "it lost a header: {:?}", dead.message);
        dead.ack().await?;
        wait::until("the group to be done", DELIVERY_LIMIT, async || {
            let group = client.get_group("orders", "mail").await?;
            ensure!((group.unacked_count, group.dead_lettered_count) == (0, 1), "{group:?}");
            Ok(())
        })
        .await?;
        let dead_letters = client.get_queue("graveyard").await?.next_offset;
        ensure!(dead_letters == Offset::new(1), "{dead_letters} dead letters");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_lease_that_runs_out_gives_the_message_to_the_next() {
    scenario::run("a_lease_that_runs_out_gives_the_message_to_the_next", LIMIT, async |scenario| {
        let lease = Duration::from_secs(1);
        let client = scenario.client().await?;
        client
            .create_queue("orders", QueueSettings { lease: Some(lease), ..QueueSettings::default() })
            .await?;
        publish(&client, "orders", 1).await?;

        let mut sleeper = client.consumer("orders", "mail").build().await?;
        let held = next(&mut sleeper).await?;
        let began = Instant::now();
        // An extension counts from when it is asked for.
        held.extend(lease * 2).await?;
        let mut other = client.consumer("orders", "mail").build().await?;
        let (again, late_ack) = tokio::select! {
            again = next(&mut other) => (again?, held.ack()),
            again = next(&mut sleeper) => (again?, held.ack()),
        };
        let elapsed = began.elapsed();
        ensure!(elapsed >= lease * 2, "the extension was not kept: {elapsed:?}");
        ensure!((again.offset, again.attempt) == (Offset::ZERO, 2), "attempt {}", again.attempt);
        again.ack().await?;
        // Either refused, or, where the same consumer got it again, taken for the newer lease.
        let _ = late_ack.await;
        ensure!(client.get_group("orders", "mail").await?.unacked_count == 0, "the ack was not kept");

        // One that nobody extends lasts as long as the queue says.
        let began = Instant::now();
        publish(&client, "orders", 1).await?;
        let mut held = Vec::new();
        for attempt in [1, 2] {
            let delivery = tokio::select! {
                delivery = next(&mut other) => delivery?,
                delivery = next(&mut sleeper) => delivery?,
            };
            ensure!(delivery.attempt == attempt, "attempt {}", delivery.attempt);
            held.push(delivery);
        }
        let elapsed = began.elapsed();
        ensure!(elapsed >= lease, "it came again after {elapsed:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn unary_calls_do_what_streams_do() {
    scenario::run("unary_calls_do_what_streams_do", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        let wait = Duration::from_secs(10);
        let lease = Some(Duration::from_secs(1));
        client.create_queue("orders", QueueSettings { lease, ..QueueSettings::default() }).await?;
        ensure!(client.receive("orders", "mail", 10, Duration::ZERO).await?.is_empty(), "nothing was sent");
        let first = client.send("orders", ["0", "1", "2"].map(Message::new).into()).await?;
        ensure!(first == Offset::ZERO, "the first offset is {first}");

        let received = client.receive("orders", "mail", 10, wait).await?;
        ensure!(received.len() == 3, "{} received", received.len());
        let [zero, one, two] = [0, 1, 2].map(|at: usize| received[at].lease_token.clone());
        let settlement = Settlement::new().ack(zero).nack_after(one, Duration::ZERO);
        let refused = client.settle("orders", "mail", settlement).await?;
        ensure!(refused.is_empty(), "{refused:?}");
        let again = client.receive("orders", "mail", 10, wait).await?;
        let again: BTreeSet<_> =
            again.iter().map(|message| (message.offset.get(), message.attempt)).collect();
        ensure!(again.contains(&(1, 2)), "given back, it is not there: {again:?}");

        // Held too long: the token is worth nothing any more.
        if !again.contains(&(2, 2)) {
            let again = client.receive("orders", "mail", 10, wait).await?;
            ensure!(
                again.iter().any(|message| (message.offset.get(), message.attempt) == (2, 2)),
                "{again:?}"
            );
        }
        let refused = client.settle("orders", "mail", Settlement::new().ack(two)).await?;
        ensure!(refused.len() == 1 && refused[0].reason == Reason::LeaseLost, "{refused:?}");
        ensure!(refused[0].message.contains(' '), "no sentence: {refused:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn browsing_and_purging_leave_offsets_alone() {
    scenario::run("browsing_and_purging_leave_offsets_alone", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue("orders", QueueSettings::default()).await?;
        publish(&client, "orders", 1_000).await?;
        for (from, max, expected) in [(0, None, 0..1_000), (990, None, 990..1_000), (3, Some(4), 3..7)] {
            let mut browsed = client.browse("orders", Offset::new(from), max).await?;
            for offset in expected {
                let message = browsed.next().await.context("the end came early")??;
                ensure!(message.offset == Offset::new(offset), "{} for {offset}", message.offset);
                ensure!(number(&message.message)? == offset, "another body at {offset}");
            }
            ensure!(browsed.next().await.is_none(), "more than there is");
        }
        ensure!(client.purge_queue("orders").await? == 1_000, "not everything was purged");
        ensure!(
            client.send("orders", vec![Message::new("x")]).await? == Offset::new(1_000),
            "offsets began anew"
        );
        let mut browsed = client.browse("orders", Offset::ZERO, None).await?;
        let left = browsed.next().await.context("nothing is left")??;
        ensure!(left.offset == Offset::new(1_000), "{} was purged and is there", left.offset);
        client.delete_queue("orders").await?;
        let gone = client.get_queue("orders").await;
        ensure!(gone.is_err_and(|error| error.reason() == Reason::QueueNotFound), "deleted and there");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn many_small_batches_reach_a_consumer_with_credit_for_all() {
    scenario::run("many_small_batches_reach_a_consumer_with_credit_for_all", LIMIT, async |scenario| {
        const BATCHES: u64 = 2_000;
        let client = scenario.client().await?;
        client.create_queue("orders", QueueSettings::default()).await?;
        // One message to a batch, and many batches waiting before anybody has subscribed.
        let producer = client.producer("orders").batch_messages(1).build().await?;
        for number in 0..BATCHES {
            drop(producer.send(Message::new(number.to_string())).await?);
        }
        producer.close().await?;
        let mut consumer = client.consumer("orders", "mail").credit_messages(4_000).build().await?;
        for offset in 0..BATCHES {
            let delivery = next(&mut consumer).await.with_context(|| format!("stuck at {offset}"))?;
            ensure!(delivery.offset == Offset::new(offset), "{} for {offset}", delivery.offset);
            ensure!(delivery.attempt == 1, "{offset} was lost on the way the first time");
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_lease_of_one_group_settles_nothing_in_another() {
    scenario::run("a_lease_of_one_group_settles_nothing_in_another", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        let wait = Duration::from_secs(5);
        client.create_queue("orders", QueueSettings::default()).await?;
        client.create_group("orders", "mail", Position::First).await?;
        client.create_group("orders", "search", Position::First).await?;
        client.send("orders", vec![Message::new("0")]).await?;

        let received = client.receive("orders", "mail", 1, wait).await?;
        let token = received.first().context("nothing was received")?.lease_token.clone();
        let refused = client.settle("orders", "search", Settlement::new().ack(token.clone())).await?;
        ensure!(refused.len() == 1 && refused[0].reason == Reason::LeaseLost, "{refused:?}");

        // Both groups still have it: one holds it, the other has yet to get it.
        let refused = client.settle("orders", "mail", Settlement::new().ack(token)).await?;
        ensure!(refused.is_empty(), "{refused:?}");
        ensure!(client.receive("orders", "search", 1, wait).await?.len() == 1, "it is gone from the other");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn the_largest_message_fits_its_dead_letter_queue_wherever_that_is() {
    scenario::run(
        "the_largest_message_fits_its_dead_letter_queue_wherever_that_is",
        LIMIT,
        async |scenario| {
            let client = scenario.client().await?;
            // Placed one after another on the shards, whose leaders are spread: some letters cross nodes.
            for number in 0..3 {
                let (queue, graves) = (format!("orders-{number}"), format!("graveyard-{number}"));
                client.create_queue(&graves, QueueSettings::default()).await?;
                let settings = QueueSettings {
                    max_deliveries: Some(1),
                    dead_letter_queue: Some(graves.clone()),
                    ..QueueSettings::default()
                };
                client.create_queue(&queue, settings).await?;
                let body = vec![b'x'; skein_proto::limits::MESSAGE_BYTES_MAX_DEFAULT - 4];
                client.send(&queue, vec![Message::new(body.clone())]).await?;
                let mut consumer = client.consumer(&queue, "mail").build().await?;
                next(&mut consumer).await?.nack().await?;
                let mut consumer = client.consumer(&graves, "undertaker").build().await?;
                let dead = next(&mut consumer).await.with_context(|| format!("letter {number}"))?;
                ensure!(dead.message.body == body, "letter {number} came out as something else");
            }
            Ok(())
        },
    )
    .await;
}

/// Each stage of the way of a batch is told, by the node that leads its queue.
#[tokio::test]
async fn a_batch_is_followed_from_its_publish_to_its_ack() {
    let setup = Setup { variables: vec![("SKEIN_TRACE_ONE_IN", "1")], ..Setup::default() };
    let name = "a_batch_is_followed_from_its_publish_to_its_ack";
    scenario::run_with(&setup, name, LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue("orders", QueueSettings::default()).await?;
        publish(&client, "orders", 3).await?;
        let mut consumer = client.consumer("orders", "mail").build().await?;
        for _ in 0..3 {
            next(&mut consumer).await?.ack().await?;
        }
        let leader = scenario.cluster.leader_of("orders").await?;
        wait::until("every stage to be told", LIMIT, async || {
            let log = scenario.cluster.log_text(leader)?;
            for stage in [":queue", ":replicate", ":append", ":wait", ":hold", ""] {
                let told = |line: &str| {
                    line.contains("queue=\"orders\" bytes=") && line.contains(&format!("}}{stage}: "))
                };
                ensure!(log.lines().any(told), "{stage:?} is not");
            }
            ensure!(log.contains("offset=0"), "nor where it lies");
            Ok(())
        })
        .await
    })
    .await;
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.message.body).into_owned()
}

/// Workers that are restarted more often than a message may be delivered, with all that waits in their hands.
#[tokio::test]
async fn what_a_consumer_has_not_looked_at_when_it_leaves_was_not_delivered() {
    let name = "what_a_consumer_has_not_looked_at_when_it_leaves_was_not_delivered";
    scenario::run(name, LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue("orders", QueueSettings::default()).await?;
        let numbers: Vec<_> = (0..100).map(|number| number.to_string()).collect();
        client.send("orders", numbers.iter().cloned().map(Message::new).collect()).await?;
        let max_deliveries = 20;
        let mut looked_at = BTreeSet::new();
        for restart in 0..=max_deliveries {
            let mut consumer = client.consumer("orders", "mail").build().await?;
            let delivery = next(&mut consumer).await?;
            ensure!(delivery.attempt == 1, "after {restart} restarts: {delivery:?}");
            looked_at.insert(text(&delivery));
            delivery.ack().await?;
            consumer.close().await;
        }
        let mut consumer = client.consumer("orders", "mail").build().await?;
        let held = next(&mut consumer).await?;
        consumer.close().await;
        let mut consumer = client.consumer("orders", "mail").build().await?;
        for _ in looked_at.len()..numbers.len() {
            let delivery = next(&mut consumer).await?;
            let attempt = if delivery.offset == held.offset { 2 } else { 1 };
            ensure!(delivery.attempt == attempt, "{delivery:?}");
            looked_at.insert(text(&delivery));
            delivery.ack().await?;
        }
        ensure!(looked_at.len() == numbers.len(), "some were given up: {looked_at:?}");
        Ok(())
    })
    .await;
}
