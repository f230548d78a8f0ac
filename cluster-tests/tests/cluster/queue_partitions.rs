//! Partitions of a queue: keys keep their order while there come to be more of them and leaders die, and nobody who
//! reads all of them misses anything.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use skein_client::{
    Client, LeaseToken, Message, Offset, Position, QueueSettings, QueueUpdate, Reason, RedriveOptions,
    Settlement,
};
use skein_cluster_tests::{
    by_hand::{body, expect_nothing, next, take_bodies},
    faults::kill::{KILL_LEADER, kill_leader},
    key_order::KeyOrder,
    scenario::{self, Scenario},
    wait,
};
use skein_proto::broker::{self, broker_client::BrokerClient};
use tokio::{task::JoinSet, time};
use tonic::Code;

/// A whole test.
const LIMIT: Duration = Duration::from_secs(120);

pub(super) const QUEUE: &str = "orders";
const GROUP: &str = "stock";
const GRAVEYARD: &str = "graves";

const KEYS: usize = 30;
const MESSAGES_PER_KEY: usize = 100;

/// All that [`grow_under_keys`] publishes.
pub(super) const ALL_KEYED: u64 = (KEYS * MESSAGES_PER_KEY) as u64;

/// What sets the publisher's pace: it is to go on while partitions are added and leaders die.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(5);

/// As many partitions as there are in the end where they become more one by one.
const MANY: u32 = 24;

/// A producer is closed within this, whatever happens.
const CLOSE_LIMIT: Duration = Duration::from_secs(20);

pub(super) fn partitions(count: u32) -> QueueSettings {
    QueueSettings { partitions: Some(count), ..QueueSettings::default() }
}

/// Publishes messages of many keys to the queue, or to a topic that passes them on to it, while there come to be nine
/// partitions and the leader of the first one dies, and lets as many handle them as `count_max` says how many each one
/// takes. Gives how many each partition has got.
pub(super) async fn grow_under_keys(
    scenario: &mut Scenario,
    destination: &str,
    count_max: [usize; 3],
) -> Result<Vec<u64>> {
    let client = scenario.client().await?;
    let order = KeyOrder::new(KEYS, MESSAGES_PER_KEY);
    let mut workers = JoinSet::new();
    for count_max in count_max {
        let (order, client) = (order.clone(), client.clone());
        workers.spawn(async move { order.work(client, QUEUE, GROUP, count_max).await });
    }
    let producer = client.producer(destination).build().await?;
    let publishing = {
        let order = order.clone();
        tokio::spawn(async move {
            order.publish(&producer, 0..MESSAGES_PER_KEY, PUBLISH_INTERVAL).await?;
            producer.close().await.context("closing the producer")
        })
    };
    let other = scenario.client().await?;
    other.update_queue(QUEUE, QueueUpdate::new().partitions(5)).await?;
    let dead = kill_leader(&mut scenario.cluster, &scenario.recorder, "orders/0").await?;
    other.update_queue(QUEUE, QueueUpdate::new().partitions(6)).await?;
    scenario.cluster.restart(dead)?;
    other.update_queue(QUEUE, QueueUpdate::new().partitions(9)).await?;
    publishing.await??;
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    order.finish(&client, QUEUE, GROUP, LIMIT).await?;
    let used = published(&client, 9).await?;
    ensure!(used.iter().sum::<u64>() == ALL_KEYED, "{used:?}");
    Ok(used)
}

#[tokio::test]
async fn keys_keep_their_order_while_partitions_become_more_and_leaders_die() {
    let name = "keys_keep_their_order_while_partitions_become_more_and_leaders_die";
    scenario::run(name, LIMIT, async |scenario| {
        scenario.require(KILL_LEADER);
        let settings = QueueSettings { order_by_key: true, ..partitions(2) };
        scenario.client().await?.create_queue(QUEUE, settings).await?;
        let used = grow_under_keys(scenario, QUEUE, [200, usize::MAX, usize::MAX]).await?;
        ensure!(used[2..].iter().any(|count| *count > 0), "no key went to a new partition: {used:?}");
        Ok(())
    })
    .await;
}

/// How many messages each partition ever had.
async fn published(client: &Client, count: u32) -> Result<Vec<u64>> {
    stored_in(client, QUEUE, count).await
}

async fn stored_in(client: &Client, queue: &str, count: u32) -> Result<Vec<u64>> {
    let mut stored = Vec::new();
    for partition in 0..count {
        stored.push(client.get_queue(&format!("{queue}/{partition}")).await?.next_offset.get());
    }
    Ok(stored)
}

#[tokio::test]
async fn a_group_that_is_away_misses_nothing_of_new_partitions() {
    let name = "a_group_that_is_away_misses_nothing_of_new_partitions";
    scenario::run(name, LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(QUEUE, partitions(2)).await?;
        client.create_group(QUEUE, "away", Position::First).await?;
        let mut here = client.consumer(QUEUE, "here").build().await?;
        let producer = client.producer(QUEUE).build().await?;
        let message = |number: usize| Message::new(number.to_string()).key(number.to_string());
        for number in 0..100 {
            drop(producer.send(message(number)).await?);
        }
        client.update_queue(QUEUE, QueueUpdate::new().partitions(8)).await?;
        for number in 100..300 {
            drop(producer.send(message(number)).await?);
        }
        producer.close().await?;
        let mut got = BTreeSet::new();
        while got.len() < 300 {
            let delivery = here.next().await.context("the consumer ended")??;
            delivery.ack().await?;
            got.insert((body(&delivery.message).parse::<usize>()?, delivery.partition));
        }
        ensure!(got.iter().any(|(_, partition)| *partition >= Some(2)), "{got:?}");
        let mut away = client.consumer(QUEUE, "away").build().await?;
        let mut got_late = BTreeSet::new();
        while got_late.len() < 300 {
            let delivery = away.next().await.context("the consumer ended")??;
            delivery.ack().await?;
            got_late.insert((body(&delivery.message).parse::<usize>()?, delivery.partition));
        }
        ensure!(got == got_late, "{got:?} and {got_late:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_partitioned_queue_is_one_queue_to_look_at_and_to_change() {
    let name = "a_partitioned_queue_is_one_queue_to_look_at_and_to_change";
    scenario::run(name, LIMIT, async |scenario| {
        let client = scenario.client().await?;
        ensure!(client.create_queue(QUEUE, partitions(4)).await?, "it was there");
        ensure!(!client.create_queue(QUEUE, partitions(4)).await?, "it was created twice");
        let names: Vec<_> = client.list_queues().await?.into_iter().map(|queue| queue.name).collect();
        ensure!(names == ["orders/0", "orders/1", "orders/2", "orders/3"], "{names:?}");

        let keyed = |key: &str| Message::new("x").key(key.to_owned());
        client.send(QUEUE, vec![keyed("a"), keyed("a")]).await?;
        let apart = client.send(QUEUE, (0..20).map(|key| keyed(&key.to_string())).collect()).await;
        ensure!(
            apart.is_err_and(|error| error.reason() == Reason::Partitioned),
            "they are of several partitions"
        );
        let producer = client.producer(QUEUE).build().await?;
        for _ in 0..2_000 {
            drop(producer.send("no key").await?);
        }
        producer.close().await?;
        ensure!(client.create_group(QUEUE, GROUP, Position::First).await?, "the group was there");
        let queue = client.get_queue(QUEUE).await?;
        ensure!((queue.message_count, queue.groups.len()) == (2_002, 1), "{queue:?}");
        ensure!(queue.groups[0].unacked_count == 2_002, "{queue:?}");
        let used = published(&client, 4).await?;
        ensure!(used.iter().all(|count| *count > 100), "those without a key went to {used:?}");

        let offset = Position::Offset(Offset::new(5));
        let fewer_deliveries = QueueUpdate::new().max_deliveries(3);
        let refused = [
            client.browse(QUEUE, Offset::ZERO, None).await.err(),
            client.seek_group(QUEUE, GROUP, offset).await.err(),
            client.delete_queue("orders/1").await.err(),
            client.update_queue("orders/1", fewer_deliveries.clone()).await.err(),
            client.create_queue("orders/9", QueueSettings::default()).await.err(),
        ];
        let reasons = refused.map(|error| error.map(|error| error.reason()));
        ensure!(reasons == [Some(Reason::Partitioned); 5], "{reasons:?}");
        let fewer = client.update_queue(QUEUE, QueueUpdate::new().partitions(3)).await;
        ensure!(fewer.is_err_and(|error| error.reason() == Reason::InvalidSetting), "it has fewer");

        let received = client.receive(QUEUE, GROUP, 5, Duration::from_secs(5)).await?;
        ensure!(!received.is_empty() && received.len() <= 5, "{received:?}");
        let tokens = received.iter().map(|received| received.lease_token.clone());
        let settlement = tokens.fold(Settlement::new(), Settlement::ack);
        let not_settled = client.settle(QUEUE, GROUP, settlement).await?;
        ensure!(not_settled.is_empty(), "{not_settled:?}");
        let strange = Settlement::new().ack(LeaseToken::from("1.2.3".to_owned()));
        let not_settled = client.settle(QUEUE, GROUP, strange).await?;
        ensure!(not_settled[0].reason == Reason::LeaseTokenMalformed, "{not_settled:?}");
        let unacked = client.get_group(QUEUE, GROUP).await?.unacked_count;
        ensure!(unacked == 2_002 - received.len() as u64, "{unacked} are left");

        client.seek_group(QUEUE, GROUP, Position::Next).await?;
        ensure!(client.get_group(QUEUE, GROUP).await?.unacked_count == 0, "some are left");
        let changed = client.update_queue(QUEUE, fewer_deliveries).await?;
        ensure!(changed.settings.max_deliveries == Some(3), "{changed:?}");
        ensure!(
            client.get_queue("orders/3").await?.settings.max_deliveries == Some(3),
            "only some have changed"
        );
        client.delete_group(QUEUE, GROUP).await?;
        client.delete_queue(QUEUE).await?;
        ensure!(client.list_queues().await?.is_empty(), "partitions are left");
        Ok(())
    })
    .await;
}

/// As a client in any language does, with the generated stub alone.
#[tokio::test]
async fn single_calls_need_not_know_of_partitions() {
    scenario::run("single_calls_need_not_know_of_partitions", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(QUEUE, partitions(2)).await?;
        let mut broker = BrokerClient::new(scenario.cluster.channel(1)?);
        let send = |producer_id: u64, key: &str| broker::SendRequest {
            queue: QUEUE.to_owned(),
            producer_id,
            sequence: 1,
            batch: Some(broker::MessageBatch {
                messages: vec![broker::Message { key: key.to_owned().into(), ..broker::Message::default() }],
            }),
            ..broker::SendRequest::default()
        };
        let keys: Vec<_> = (0..40).map(|key| format!("key-{key}")).collect();
        for (producer_id, key) in (1..).zip(&keys) {
            broker
                .send(send(producer_id, key))
                .await
                .with_context(|| format!("{key}, right after creation"))?;
        }
        client.update_queue(QUEUE, QueueUpdate::new().partitions(4)).await?;
        // Sent again, because the answer was lost: their keys may belong elsewhere by now.
        for (producer_id, key) in (1..).zip(&keys) {
            let confirm = broker.send(send(producer_id, key)).await?.into_inner().confirm.unwrap_or_default();
            ensure!(confirm.duplicate, "{key} was stored twice: {confirm:?}");
        }
        for (producer_id, key) in (100..).zip(&keys) {
            let confirm = broker.send(send(producer_id, key)).await?.into_inner().confirm.unwrap_or_default();
            ensure!(!confirm.duplicate, "{key} was stored before: {confirm:?}");
        }
        let used = published(&client, 4).await?;
        ensure!(used.iter().sum::<u64>() == 80 && used[2] + used[3] > 0, "{used:?}");
        // Not even right after its creation, when not every node has heard of all partitions.
        for queue in (0..20).map(|number| format!("{QUEUE}-{number}")) {
            client.create_queue(&queue, partitions(8)).await?;
            for (producer_id, key) in (1..).zip(&keys) {
                let sent =
                    broker.send(broker::SendRequest { queue: queue.clone(), ..send(producer_id, key) });
                sent.await.with_context(|| format!("{key} to {queue}"))?;
            }
        }
        let later = broker::SendRequest { sequence: 2, ..send(1, "a") };
        let refused = broker.send(later).await.err().context("a sequence goes over partitions")?;
        ensure!(refused.code() == Code::InvalidArgument, "{refused}");
        Ok(())
    })
    .await;
}

/// They are refused in the middle of what they send, in the middle of waiting for room, and when they are closed
/// already.
#[tokio::test]
async fn producers_that_come_and_go_while_partitions_become_more_lose_nothing() {
    let name = "producers_that_come_and_go_while_partitions_become_more_lose_nothing";
    scenario::run(name, LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue(QUEUE, partitions(1)).await?;
        let publishing = {
            let client = client.clone();
            tokio::spawn(async move {
                let mut sent = 0;
                for round in 0..150_usize {
                    let producer =
                        client.producer(QUEUE).window_messages(3).batch_messages(2).build().await?;
                    for number in 0..round % 12 + 1 {
                        let key = if number % 3 == 0 { String::new() } else { format!("key-{number}") };
                        drop(producer.send(Message::new("x").key(key)).await?);
                        sent += 1;
                    }
                    time::timeout(CLOSE_LIMIT, producer.close())
                        .await
                        .context("a producer does not close")??;
                }
                anyhow::Ok(sent)
            })
        };
        for count in 2..=MANY {
            client.update_queue(QUEUE, QueueUpdate::new().partitions(count)).await?;
        }
        let sent: u64 = publishing.await??;
        let stored = published(&client, MANY).await?;
        ensure!(stored.iter().sum::<u64>() == sent, "{stored:?} of {sent}");
        Ok(())
    })
    .await;
}

/// Given up in one partitioned queue, kept in another one, which grows meanwhile, and moved back.
#[tokio::test]
async fn dead_letters_go_from_partitions_to_partitions_and_back() {
    scenario::run("dead_letters_go_from_partitions_to_partitions_and_back", LIMIT, async |scenario| {
        scenario.require(KILL_LEADER);
        let client = scenario.client().await?;
        client.create_queue(GRAVEYARD, partitions(3)).await?;
        let dead_letter_queue = Some(GRAVEYARD.to_owned());
        let settings = QueueSettings { max_deliveries: Some(1), dead_letter_queue, ..partitions(2) };
        client.create_queue(QUEUE, settings).await?;
        let bodies: BTreeSet<_> = (0..90).map(|number| number.to_string()).collect();
        let producer = client.producer(QUEUE).build().await?;
        for (number, text) in bodies.iter().enumerate() {
            drop(producer.send(Message::new(text.clone()).key(format!("key-{}", number % KEYS))).await?);
        }
        producer.close().await?;

        let mut consumer = client.consumer(QUEUE, GROUP).build().await?;
        for number in 0..bodies.len() {
            next(&mut consumer).await?.nack().await?;
            if number == bodies.len() / 3 {
                let dead = kill_leader(&mut scenario.cluster, &scenario.recorder, "graves/0").await?;
                client.update_queue(GRAVEYARD, QueueUpdate::new().partitions(5)).await?;
                scenario.cluster.restart(dead)?;
            }
        }
        wait::until("all of them to be dead letters", LIMIT, async || {
            let group = client.get_group(QUEUE, GROUP).await?;
            ensure!(group.unacked_count == 0, "{group:?}");
            Ok(())
        })
        .await?;
        let stored = stored_in(&client, GRAVEYARD, 5).await?;
        ensure!(stored.iter().sum::<u64>() == bodies.len() as u64, "{stored:?}");
        ensure!(
            stored.iter().filter(|count| **count > 0).count() > 1,
            "all are in one partition: {stored:?}"
        );
        let mut graves = client.consumer(GRAVEYARD, "undertaker").build().await?;
        let dead = next(&mut graves).await?;
        let header = |name: &str| dead.message.headers.get(name).map(|value| String::from_utf8_lossy(value));
        ensure!(header("skein-dead-letter-queue").as_deref() == Some(QUEUE), "{dead:?}");
        ensure!(header("skein-dead-letter-partition").is_some(), "{dead:?}");
        graves.close().await;

        let some = client.redrive(GRAVEYARD, RedriveOptions::new().messages_max(60), |_| {}).await?;
        let rest = client.redrive(GRAVEYARD, RedriveOptions::new(), |_| {}).await?;
        ensure!((some.moved_count, rest.moved_count, rest.left_count) == (60, 30, 0), "{some:?}, {rest:?}");
        let back: BTreeSet<_> = take_bodies(&mut consumer, bodies.len()).await?.into_iter().collect();
        ensure!(back == bodies, "{back:?} came back");
        expect_nothing(&mut consumer).await?;

        let cycle = QueueUpdate::new().dead_letter_queue(QUEUE);
        let refused =
            client.update_queue(GRAVEYARD, cycle).await.err().context("messages would go in a circle")?;
        ensure!(refused.reason() == Reason::InvalidSetting, "{refused}");
        let refused = client.delete_queue(GRAVEYARD).await.err().context("it is needed")?;
        ensure!(refused.reason() == Reason::QueueInUse, "{refused}");
        Ok(())
    })
    .await;
}
