//! Consumers on streams that end.

use std::{collections::BTreeMap, time::Duration};

use futures::StreamExt;
use skein_client::{Client, Consumer, Delivery, Message, Offset, Reason, SettleError, Settled};

use super::{cluster::Cluster, soon};

async fn publish(client: &Client, count: u32) {
    let messages = (0..count).map(|number| Message::new(number.to_string())).collect();
    client.send("orders", messages).await.unwrap();
}

async fn consumer(client: &Client) -> Consumer {
    client.consumer("orders", "mail").build().await.unwrap()
}

async fn next(consumer: &mut Consumer) -> Delivery {
    soon("a delivery", consumer.next()).await.unwrap().unwrap()
}

fn acked(cluster: &Cluster) -> Vec<u64> {
    let mut acked = cluster.shared.state().queues["orders"].groups["mail"].acked.clone();
    acked.sort_unstable();
    acked
}

#[tokio::test]
async fn messages_come_in_order_and_are_acked() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    publish(&client, 3_000).await;
    let mut consumer = consumer(&client).await;
    let mut settled = Vec::new();
    for number in 0..3_000_u64 {
        let delivery = next(&mut consumer).await;
        assert_eq!((delivery.offset, delivery.attempt), (Offset::new(number), 1));
        assert_eq!(delivery.message.body, number.to_string());
        settled.push(delivery.ack());
    }
    for settled in settled {
        soon("the answer", settled).await.unwrap();
    }
    assert_eq!(acked(&cluster), (0..3_000).collect::<Vec<_>>());
    consumer.close().await;
}

#[tokio::test]
async fn batches_come_whole_and_after_single_messages_the_rest() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    publish(&client, 100).await;
    let mut consumer = consumer(&client).await;
    let first = next(&mut consumer).await;
    let rest = soon("a batch", consumer.next_batch()).await.unwrap().unwrap();
    assert_eq!((rest.first_offset(), rest.message_count()), (Offset::new(1), 99));
    let bodies: Vec<_> = rest.messages().map(|message| message.unwrap().body).collect();
    assert_eq!((bodies.len(), &bodies[0][..]), (99, &b"1"[..]));
    let (first, rest) = (first.ack(), rest.ack());
    soon("the answers", async { (first.await.unwrap(), rest.await.unwrap()) }).await;
    assert_eq!(acked(&cluster).len(), 100);
}

#[tokio::test]
async fn a_returned_message_comes_again_in_the_next_attempt() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    publish(&client, 1).await;
    let mut consumer = consumer(&client).await;
    let delivery = next(&mut consumer).await;
    soon("the answer", delivery.nack_after(Duration::from_millis(1))).await.unwrap();
    // The double delivers returned messages when something else happens.
    publish(&client, 1).await;
    let mut attempts = BTreeMap::new();
    for _ in 0..2 {
        let delivery = StreamExt::next(&mut consumer).await.unwrap().unwrap();
        attempts.insert(delivery.offset.get(), delivery.attempt);
    }
    assert_eq!(attempts, BTreeMap::from([(0, 2), (1, 1)]));
}

#[tokio::test]
async fn only_who_names_a_delay_asks_for_one() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    publish(&client, 5).await;
    let mut consumer = consumer(&client).await;
    let (first, second) = (next(&mut consumer).await, next(&mut consumer).await);
    soon("the answer", first.nack()).await.unwrap();
    soon("the answer", second.nack_after(Duration::ZERO)).await.unwrap();
    let rest = soon("a batch", consumer.next_batch()).await.unwrap().unwrap();
    assert_eq!((rest.first_offset(), rest.message_count()), (Offset::new(2), 3));
    soon("the answer", rest.nack_after(Duration::from_secs(1))).await.unwrap();
    let nacked = cluster.shared.state().queues["orders"].groups["mail"].nacked.clone();
    assert_eq!(nacked, [(0, None), (1, Some(0)), (2, Some(1_000)), (3, Some(1_000)), (4, Some(1_000))]);
}

#[tokio::test]
async fn a_lost_stream_delivers_again_and_old_leases_are_lost() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    publish(&client, 10).await;
    let mut consumer = consumer(&client).await;
    let before = next(&mut consumer).await;
    cluster.end_streams();
    let mut attempts = BTreeMap::new();
    soon("redelivery", async {
        while acked(&cluster).len() < 10 {
            let delivery = next(&mut consumer).await;
            attempts.insert(delivery.offset.get(), delivery.attempt);
            // Of those from the lost stream some were acked in time and the others come again.
            let _ = delivery.ack().await;
        }
    })
    .await;
    assert_eq!(attempts[&0], 2);
    assert!(matches!(before.ack().await, Err(SettleError::LeaseLost(_))));
    consumer.close().await;
    assert_eq!(acked(&cluster), (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_consumer_that_comes_back_goes_on_with_what_it_holds() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    cluster.shared.state().resumes = true;
    publish(&client, 10).await;
    let mut consumer = consumer(&client).await;
    let first = next(&mut consumer).await;
    cluster.shared.state().holds_answers = true;
    let acked_before = next(&mut consumer).await;
    let unanswered = acked_before.ack();
    soon("the ack", async {
        while acked(&cluster).is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    cluster.shared.state().holds_answers = false;
    cluster.end_streams();
    // The ack that was carried out is answered by that, and everything else can be resumed.
    soon("the outcome", unanswered).await.unwrap();
    soon("the answer", first.ack()).await.unwrap();
    for offset in 2..10 {
        let delivery = next(&mut consumer).await;
        assert_eq!((delivery.offset.get(), delivery.attempt), (offset, 1));
        soon("the answer", delivery.ack()).await.unwrap();
    }
    consumer.close().await;
    let mut acked = acked(&cluster);
    acked.sort_unstable();
    assert_eq!(acked, (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_consumer_that_comes_back_keeps_its_priority() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    publish(&client, 1).await;
    let mut consumer = client.consumer("orders", "mail").priority(-7).build().await.unwrap();
    next(&mut consumer).await;
    cluster.end_streams();
    next(&mut consumer).await;
    let priorities: Vec<_> =
        cluster.shared.state().subscribed.iter().map(|subscribe| subscribe.priority).collect();
    assert_eq!(priorities, [-7, -7]);
}

#[tokio::test]
async fn an_unanswered_ack_is_of_unknown_outcome_when_nobody_can_be_asked() {
    let (cluster, _consumer, ack) = unanswered().await;
    cluster.shared.state().queues.clear();
    cluster.end_streams();
    assert!(matches!(soon("the outcome", ack).await, Err(SettleError::OutcomeUnknown(_))));
}

#[tokio::test]
async fn a_consumer_that_is_closed_finds_out_what_became_of_its_acks() {
    let (cluster, consumer, ack) = unanswered().await;
    drop(consumer);
    cluster.end_streams();
    soon("the outcome", ack).await.unwrap();
}

/// An ack that was carried out, and whose answer does not come.
async fn unanswered() -> (Cluster, Consumer, Settled) {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    publish(&client, 1).await;
    cluster.shared.state().holds_answers = true;
    let mut consumer = consumer(&client).await;
    let ack = next(&mut consumer).await.ack();
    soon("the ack", async {
        while acked(&cluster).is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    (cluster, consumer, ack)
}

#[tokio::test]
async fn settling_twice_is_refused_for_that_message_alone() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    publish(&client, 2).await;
    let mut consumer = consumer(&client).await;
    let (first, second) = (next(&mut consumer).await, next(&mut consumer).await);
    soon("the answer", first.ack()).await.unwrap();
    let (again, other) = (first.ack(), second.ack());
    let again = soon("the answer", again).await.unwrap_err();
    assert_eq!(again.reason(), Reason::LeaseLost);
    soon("the answer", other).await.unwrap();
}

#[tokio::test]
async fn credit_bounds_what_is_held() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    publish(&client, 100).await;
    let mut consumer = client.consumer("orders", "mail").credit_messages(10).build().await.unwrap();
    for number in 0..100 {
        let delivery = next(&mut consumer).await;
        assert!(cluster.shared.state().queues["orders"].groups["mail"].leased.len() <= 10);
        assert_eq!(delivery.offset, Offset::new(number));
        drop(delivery.ack());
    }
}

#[tokio::test]
async fn a_dropped_consumer_sends_its_acks_and_returns_the_rest() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    publish(&client, 10).await;
    let mut consumer = consumer(&client).await;
    let acks: Vec<_> = [next(&mut consumer).await.ack(), next(&mut consumer).await.ack()].into();
    let seen = next(&mut consumer).await;
    drop(consumer);
    for ack in acks {
        soon("the answer", ack).await.unwrap();
    }
    let mut other = client.consumer("orders", "mail").build().await.unwrap();
    let mut rest = Vec::new();
    for _ in 2..10 {
        let delivery = next(&mut other).await;
        rest.push((delivery.offset.get(), delivery.attempt));
    }
    rest.sort_unstable();
    // Only what somebody has looked at was delivered before.
    let attempt = |offset| if offset == seen.offset.get() { 2 } else { 1 };
    assert_eq!(rest, (2..10).map(|offset| (offset, attempt(offset))).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_deleted_queue_ends_the_consumer() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let mut consumer = consumer(&client).await;
    cluster.shared.state().queues.clear();
    cluster.end_streams();
    let error = soon("the end", consumer.next()).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Reason::QueueNotFound);
    assert!(consumer.next().await.is_none());
}

#[tokio::test]
async fn consumers_follow_the_leader() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    publish(&client, 1).await;
    let mut consumer = consumer(&client).await;
    soon("the answer", next(&mut consumer).await.ack()).await.unwrap();
    cluster.set_leader(Some(2), 2);
    cluster.stop(0);
    publish(&client, 1).await;
    assert_eq!(next(&mut consumer).await.offset, Offset::new(1));
}
