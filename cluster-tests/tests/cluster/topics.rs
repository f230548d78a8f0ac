//! Topics: what a binding wants reaches its queue, once and in order, whatever node it was published to and whichever
//! dies, and while bindings change.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use skein_client::{
    Client, ConfirmError, Error, Filter, Message, Offset, Position, QueueSettings, Reason, Routed,
};
use skein_cluster_tests::{
    by_hand::{body, expect_nothing, take_bodies},
    faults::kill::{KILL_LEADER, kill_leader},
    scenario, wait,
};
use tokio::sync::watch;

/// A whole test.
const LIMIT: Duration = Duration::from_secs(90);

const TOPIC: &str = "events";
const GROUP: &str = "all";

/// Unconfirmed messages of the load.
const WINDOW_MESSAGES: usize = 200;

/// So many messages are some of the load, at which something is to happen.
const SOME: u64 = 300;

/// The keys of the load, in turn.
const KINDS: [&str; 3] = ["orders.created", "orders.paid", "audit.login"];

async fn queue(client: &Client, name: &str) -> Result<()> {
    client.create_queue(name, QueueSettings::default()).await?;
    client.create_group(name, GROUP, Position::First).await?;
    Ok(())
}

fn message(key: &str, text: &str) -> Message {
    Message::new(text.to_owned()).key(key.to_owned())
}

async fn bodies(client: &Client, queue: &str) -> Result<Vec<String>> {
    let mut messages = client.browse(queue, Offset::new(0), None).await?;
    let mut bodies = Vec::new();
    while let Some(message) = messages.next().await {
        bodies.push(body(&message?.message));
    }
    Ok(bodies)
}

#[tokio::test]
async fn a_topic_passes_on_what_its_bindings_want() {
    scenario::run("a_topic_passes_on_what_its_bindings_want", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        for name in ["mail", "audit", "europe", "rest"] {
            queue(&client, name).await?;
        }
        ensure!(client.create_topic(TOPIC, None).await?, "it is new");
        ensure!(!client.create_topic(TOPIC, None).await?, "it exists");
        let created: Filter = "key ~ orders.*.created".parse()?;
        ensure!(client.bind(TOPIC, "mail", Some(created.clone())).await?, "it is new");
        ensure!(!client.bind(TOPIC, "mail", Some(created.clone())).await?, "it is bound");
        // Twice, and it gets each message once.
        client.bind(TOPIC, "mail", Some("key ~ orders.#".parse()?)).await?;
        client.bind(TOPIC, "audit", None).await?;
        client.bind(TOPIC, "europe", Some("header.region ^= eu".parse()?)).await?;
        let batch = vec![
            message("orders.7.created", "0"),
            message("orders.7.paid", "1").header("region", "eu-west"),
            message("users.3", "2"),
        ];
        let routed = client.publish_to_topic(TOPIC, batch.clone(), true).await?;
        ensure!(routed == Routed { copies: 6, unrouted: 0 }, "{routed:?}");
        ensure!(bodies(&client, "mail").await? == ["0", "1"], "it wants orders");
        ensure!(bodies(&client, "audit").await? == ["0", "1", "2"], "it wants everything");
        ensure!(bodies(&client, "europe").await? == ["1"], "it wants one region");

        ensure!(client.unbind(TOPIC, "audit", None).await?, "it was bound");
        ensure!(!client.unbind(TOPIC, "audit", None).await?, "it is not");
        let routed = client.publish_to_topic(TOPIC, batch.clone(), false).await?;
        ensure!(routed == Routed { copies: 3, unrouted: 1 }, "{routed:?}");
        let refused = client.publish_to_topic(TOPIC, batch.clone(), true).await;
        ensure!(refused.is_err_and(|error| error.reason() == Reason::NotRouted), "nobody gets one of them");
        ensure!(bodies(&client, "mail").await?.len() == 4, "a refused batch is stored nowhere");
        let producer = client.producer(TOPIC).mandatory().build().await?;
        let refused = producer.send(message("users.4", "x")).await?.await;
        ensure!(
            matches!(&refused, Err(ConfirmError::NotAccepted(cause)) if cause.reason == Reason::NotRouted),
            "{refused:?}"
        );
        producer.send(message("orders.8.created", "4")).await?.await?;
        ensure!(producer.close().await.is_err(), "not all was published");

        let topic = client.update_topic(TOPIC, Some("rest")).await?;
        ensure!(topic.alternate_queue.as_deref() == Some("rest") && topic.bindings.len() == 3, "{topic:?}");
        let routed = client.publish_to_topic(TOPIC, batch, true).await?;
        ensure!(routed == Routed { copies: 4, unrouted: 0 }, "{routed:?}");
        ensure!(bodies(&client, "rest").await? == ["2"], "nobody else gets it");
        let refused = client.delete_queue("rest").await;
        ensure!(refused.is_err_and(|error| error.reason() == Reason::QueueInUse), "the topic names it");
        client.delete_queue("mail").await?;
        let topic = client.get_topic(TOPIC).await?;
        ensure!(topic.bindings.iter().all(|binding| binding.queue == "europe"), "{topic:?}");
        ensure!(client.list_topics().await? == [topic], "it is the only one");

        Ok(())
    })
    .await;
}

#[tokio::test]
async fn what_a_topic_cannot_be_is_refused_by_reason() {
    scenario::run("what_a_topic_cannot_be_is_refused_by_reason", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_queue("audit", QueueSettings::default()).await?;
        client.create_topic(TOPIC, None).await?;
        let refused = client.create_topic(TOPIC, Some("audit")).await;
        ensure!(refused.is_err_and(|error| error.reason() == Reason::TopicExists), "it has none");
        let refused = client.create_queue(TOPIC, QueueSettings::default()).await;
        ensure!(refused.is_err_and(|error| error.reason() == Reason::TopicExists), "a topic has that name");
        let refused = client.receive(TOPIC, GROUP, 1, Duration::ZERO).await;
        ensure!(refused.is_err_and(|error| error.to_string().contains("is a topic")), "it keeps no messages");
        let refused = client.create_topic("audit", None).await;
        ensure!(refused.is_err_and(|error| error.reason() == Reason::TopicExists), "a queue has that name");
        let refused = client.bind(TOPIC, "audit", Some(Filter::key_matches("a..b"))).await;
        ensure!(refused.is_err_and(|error| error.reason() == Reason::InvalidFilter), "it has an empty word");
        let refused = client.bind(TOPIC, "nowhere", None).await;
        ensure!(
            refused.is_err_and(|error| error.reason() == Reason::QueueNotFound),
            "there is no such queue"
        );
        client.delete_topic(TOPIC).await?;
        let refused = client.publish_to_topic(TOPIC, vec![message("a", "b")], false).await;
        ensure!(refused.is_err_and(|error| error.reason() == Reason::QueueNotFound), "it is gone");
        Ok(())
    })
    .await;
}

/// Publishes messages of all kinds until told to stop, as many at a time as a window has room for. Gives how many there
/// are, all of them confirmed.
async fn publish_until(client: Client, stop: watch::Receiver<bool>) -> Result<usize> {
    let producer = client.producer(TOPIC).batch_messages(20).build().await?;
    let mut confirms = VecDeque::new();
    let mut count = 0;
    while !*stop.borrow() {
        confirms.push_back(producer.send(message(KINDS[count % KINDS.len()], &count.to_string())).await?);
        count += 1;
        if confirms.len() == WINDOW_MESSAGES
            && let Some(oldest) = confirms.pop_front()
        {
            oldest.await.context("a message was not confirmed")?;
        }
    }
    for confirm in confirms {
        confirm.await.context("a message was not confirmed")?;
    }
    producer.close().await?;
    Ok(count)
}

/// Waits until a queue has so many more messages than it has now.
async fn grow(client: &Client, queue: &str, by: u64) -> Result<()> {
    let wanted = client.get_queue(queue).await?.message_count + by;
    wait::until("the load to go on", LIMIT, async || {
        let count = client.get_queue(queue).await?.message_count;
        ensure!(count >= wanted, "{queue} has {count} of {wanted} messages");
        Ok(())
    })
    .await
}

/// The numbers that a queue has got: each once, in order.
async fn numbers(client: &Client, queue: &str) -> Result<Vec<usize>> {
    let numbers: Vec<usize> =
        bodies(client, queue).await?.iter().map(|body| body.parse()).collect::<Result<_, _>>()?;
    let repeated: Vec<_> = numbers.windows(2).filter(|pair| pair[0] >= pair[1]).collect();
    ensure!(repeated.is_empty(), "{queue} has some twice or out of order: {repeated:?}");
    Ok(numbers)
}

fn of_kinds(kinds: &[usize], count: usize) -> Vec<usize> {
    (0..count).filter(|number| kinds.contains(&(number % KINDS.len()))).collect()
}

#[tokio::test]
async fn every_bound_queue_gets_each_message_once_through_failovers() {
    scenario::run("every_bound_queue_gets_each_message_once_through_failovers", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_topic(TOPIC, None).await?;
        let wanted: BTreeMap<&str, (Option<Filter>, &[usize])> = [
            ("created", (Some(Filter::key_equals("orders.created")), &[0][..])),
            ("orders", (Some(Filter::key_matches("orders.*")), &[0, 1])),
            ("everything", (None, &[0, 1, 2])),
            ("audit", (Some(Filter::key_prefix("audit.")), &[2])),
        ]
        .into();
        for (name, (filter, _)) in &wanted {
            queue(&client, name).await?;
            client.bind(TOPIC, name, filter.clone()).await?;
        }
        let stop = watch::Sender::new(false);
        let load = tokio::spawn(publish_until(client.clone(), stop.subscribe()));
        scenario.require(KILL_LEADER);
        for victim in ["orders", "audit"] {
            grow(&client, "everything", SOME).await?;
            let dead = kill_leader(&mut scenario.cluster, &scenario.recorder, victim).await?;
            grow(&client, victim, SOME).await?;
            scenario.cluster.restart(dead)?;
        }
        grow(&client, "everything", SOME).await?;
        stop.send_replace(true);
        let count = load.await??;
        for (name, (_, kinds)) in wanted {
            let (found, expected) = (numbers(&client, name).await?, of_kinds(kinds, count));
            let had: BTreeSet<_> = found.iter().collect();
            let missing: Vec<_> = expected.iter().filter(|number| !had.contains(number)).collect();
            ensure!(found == expected, "{name} lacks {missing:?}, or has others");
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn bindings_change_without_losing_or_doubling_a_message() {
    scenario::run("bindings_change_without_losing_or_doubling_a_message", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_topic(TOPIC, None).await?;
        for name in ["steady", "coming", "going"] {
            queue(&client, name).await?;
        }
        client.bind(TOPIC, "steady", None).await?;
        client.bind(TOPIC, "going", Some(Filter::key_matches("orders.*"))).await?;
        let stop = watch::Sender::new(false);
        let load = tokio::spawn(publish_until(client.clone(), stop.subscribe()));
        scenario.require(KILL_LEADER);
        for round in 0..8 {
            grow(&client, "steady", SOME).await?;
            // One of the two has every order at any time: the new one is bound before the old one is unbound.
            let (from, to) = if round % 2 == 0 { ("going", "coming") } else { ("coming", "going") };
            client.bind(TOPIC, to, Some(Filter::key_matches("orders.*"))).await?;
            client.unbind(TOPIC, from, Some(Filter::key_matches("orders.*"))).await?;
            if round == 3 {
                let dead = kill_leader(&mut scenario.cluster, &scenario.recorder, "steady").await?;
                grow(&client, "steady", SOME).await?;
                scenario.cluster.restart(dead)?;
            }
        }
        stop.send_replace(true);
        let count = load.await??;
        ensure!(
            numbers(&client, "steady").await? == of_kinds(&[0, 1, 2], count),
            "its binding never changed"
        );
        let (coming, going) = (bodies(&client, "coming").await?, bodies(&client, "going").await?);
        let mut found = BTreeSet::new();
        for half in [coming, going] {
            let numbers: Vec<usize> = half.iter().map(|body| body.parse()).collect::<Result<_, _>>()?;
            let distinct: BTreeSet<_> = numbers.iter().copied().collect();
            ensure!(distinct.len() == numbers.len(), "a queue has a message twice");
            found.extend(distinct);
        }
        let expected: BTreeSet<_> = of_kinds(&[0, 1], count).into_iter().collect();
        let missing: Vec<_> = expected.difference(&found).collect();
        ensure!(found == expected, "neither of them has {missing:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn queues_consume_what_their_topic_passes_on() {
    scenario::run("queues_consume_what_their_topic_passes_on", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_topic(TOPIC, None).await?;
        let urgent = QueueSettings { order_by_key: true, ..QueueSettings::default() };
        client.create_queue("ordered", urgent).await?;
        client.bind(TOPIC, "ordered", Some(Filter::key_prefix("a"))).await?;
        // Properties and keys count in the queue as if the messages had been published to it.
        let batch = vec![
            message("a", "a 0"),
            message("b", "nobody wants it"),
            message("a", "a 1"),
            message("a2", "a2 0"),
            message("a3", "later").delay(Duration::from_secs(2)),
        ];
        client.publish_to_topic(TOPIC, batch, false).await?;
        let mut consumer = client.consumer("ordered", GROUP).build().await?;
        let first = consumer.next().await.context("the consumer ended")??;
        let other = consumer.next().await.context("the consumer ended")??;
        ensure!((body(&first.message), body(&other.message)) == ("a 0".into(), "a2 0".into()), "by key");
        expect_nothing(&mut consumer).await?;
        first.ack().await?;
        ensure!(
            take_bodies(&mut consumer, 2).await? == ["a 1", "later"],
            "the next of the key, and what is due"
        );
        wait::until("them to be acked", LIMIT, async || {
            let group = client.get_group("ordered", GROUP).await?;
            ensure!(group.unacked_count == 1, "{group:?}");
            Ok(())
        })
        .await
    })
    .await;
}

#[tokio::test]
async fn what_one_queue_refuses_others_may_have_and_nobody_is_told_otherwise() {
    let name = "what_one_queue_refuses_others_may_have_and_nobody_is_told_otherwise";
    scenario::run(name, LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client.create_topic(TOPIC, None).await?;
        queue(&client, "open").await?;
        client
            .create_queue("full", QueueSettings { max_messages: Some(1), ..QueueSettings::default() })
            .await?;
        client.bind(TOPIC, "open", None).await?;
        client.bind(TOPIC, "full", Some(Filter::key_equals("both"))).await?;
        client.publish_to_topic(TOPIC, vec![message("both", "0")], true).await?;
        // Each time both queues are asked, and one of them takes it.
        let refused = client.publish_to_topic(TOPIC, vec![message("both", "1")], true).await;
        ensure!(
            matches!(&refused, Err(Error::OutcomeUnknown(cause)) if cause.reason == Reason::QueueFull),
            "{refused:?}"
        );
        let producer = client.producer(TOPIC).build().await?;
        let refused = producer.send(message("both", "2")).await?.await;
        ensure!(
            matches!(&refused, Err(ConfirmError::OutcomeUnknown(cause)) if cause.reason == Reason::QueueFull),
            "{refused:?}"
        );
        // It goes on with what the full queue does not get.
        producer.send(message("one", "3")).await?.await?;
        ensure!(producer.close().await.is_err(), "not all was published");
        ensure!(bodies(&client, "full").await? == ["0"], "it takes no more");
        ensure!(bodies(&client, "open").await? == ["0", "1", "2", "3"], "it took them all");
        Ok(())
    })
    .await;
}
