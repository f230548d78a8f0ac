//! Producers on streams that end in every way.

use std::{collections::BTreeSet, time::Duration};

use skein_client::{Client, Confirm, ConfirmError, Message, Producer, Reason, SendError, TrySendError};
use tonic::{Code, Status};

use super::{
    cluster::{Cluster, status},
    soon,
};

async fn producer(client: &Client) -> Producer {
    client.producer("orders").build().await.unwrap()
}

async fn send(producer: &Producer, bodies: impl IntoIterator<Item = u32>) -> Vec<Confirm> {
    let mut confirms = Vec::new();
    for body in bodies {
        confirms.push(producer.send(Message::new(body.to_string())).await.unwrap());
    }
    confirms
}

async fn offsets(confirms: Vec<Confirm>) -> Vec<u64> {
    let mut offsets = Vec::new();
    for confirm in confirms {
        offsets.push(soon("the confirm", confirm).await.unwrap().get());
    }
    offsets
}

fn stored(cluster: &Cluster) -> Vec<String> {
    cluster.shared.state().queues["orders"].bodies()
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[tokio::test]
async fn messages_are_stored_in_order_and_confirmed_with_their_offsets() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let producer = producer(&client).await;
    let confirms = send(&producer, 0..10_000).await;
    assert_eq!(offsets(confirms).await, (0..10_000).collect::<Vec<_>>());
    producer.close().await.unwrap();
    assert_eq!(stored(&cluster), numbers(0..10_000));
}

#[tokio::test]
async fn batches_gather_while_others_are_in_flight() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let producer = producer(&client).await;
    drop(send(&producer, 0..10_000).await);
    producer.flush().await.unwrap();
    let batch_count = cluster.shared.state().arrived.len();
    assert!(batch_count < 1_000, "{batch_count}");
}

#[tokio::test]
async fn ended_streams_lose_nothing_and_double_nothing() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let producer = producer(&client).await;
    let mut confirms = Vec::new();
    for round in 0..20 {
        confirms.extend(send(&producer, round * 100..(round + 1) * 100).await);
        if round % 2 == 0 {
            confirms.pop().unwrap().await.unwrap();
        }
        cluster.end_streams();
    }
    producer.flush().await.unwrap();
    assert_eq!(stored(&cluster), numbers(0..2_000));
    producer.close().await.unwrap();
}

#[tokio::test]
async fn batches_stored_before_the_stream_was_lost_are_confirmed_as_duplicates() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    cluster.shared.state().holds_confirms = true;
    let producer = producer(&client).await;
    let confirms = send(&producer, 0..100).await;
    soon("storing", async {
        let mut news = cluster.shared.news.subscribe();
        while stored(&cluster).is_empty() {
            news.changed().await.unwrap();
        }
    })
    .await;
    cluster.shared.state().holds_confirms = false;
    cluster.end_streams();
    assert_eq!(offsets(confirms).await, (0..100).collect::<Vec<_>>());
    assert_eq!(stored(&cluster), numbers(0..100));
    let producer_ids: BTreeSet<_> = cluster.shared.state().arrived.iter().map(|(id, _)| *id).collect();
    assert_eq!(producer_ids.len(), 1);
}

#[tokio::test]
async fn a_dead_leader_is_left_for_the_other_node() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let producer = producer(&client).await;
    assert_eq!(offsets(send(&producer, 0..10).await).await.len(), 10);
    cluster.stop(0);
    assert_eq!(offsets(send(&producer, 10..20).await).await, (10..20).collect::<Vec<_>>());
    let streams = cluster.shared.state().publish_streams.clone();
    assert_eq!(streams, cluster.addresses);
}

#[tokio::test]
async fn a_new_leader_is_followed_at_once() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let producer = producer(&client).await;
    offsets(send(&producer, 0..1).await).await;
    cluster.set_leader(Some(2), 2);
    soon("following", async {
        let mut body = 1;
        while cluster.shared.state().publish_streams.last() != cluster.addresses.last() {
            offsets(send(&producer, body..body + 1).await).await;
            body += 1;
        }
    })
    .await;
}

#[tokio::test]
async fn passing_troubles_are_waited_out() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    cluster.shared.state().refusals = vec![
        status(Code::ResourceExhausted, Reason::OverBudget, "too much"),
        status(Code::Unavailable, Reason::NoLeader, "no leader"),
        Status::unavailable("reset"),
    ];
    let producer = producer(&client).await;
    assert_eq!(offsets(send(&producer, 0..10).await).await, (0..10).collect::<Vec<_>>());
    assert_eq!(stored(&cluster), numbers(0..10));
}

#[tokio::test]
async fn a_refused_batch_fails_alone() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let producer = client.producer("orders").batch_messages(1).build().await.unwrap();
    cluster.shared.state().refusals =
        vec![status(Code::InvalidArgument, Reason::MalformedMessage, "that is no message")];
    let mut confirms = send(&producer, 0..10).await;
    let refused = soon("the refusal", confirms.remove(0)).await.unwrap_err();
    assert!(matches!(&refused, ConfirmError::NotAccepted(cause) if &*cause.message == "that is no message"));
    assert_eq!(refused.reason(), Reason::MalformedMessage);
    assert_eq!(offsets(confirms).await, (0..9).collect::<Vec<_>>());
    assert_eq!(stored(&cluster), numbers(1..10));
    assert_eq!(producer.flush().await.unwrap_err(), refused);
    producer.flush().await.unwrap();
}

#[tokio::test]
async fn a_deleted_queue_fails_what_is_sent_to_it() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let producer = producer(&client).await;
    offsets(send(&producer, 0..1).await).await;
    cluster.shared.state().queues.clear();
    let confirm = send(&producer, 1..2).await.remove(0);
    let error = soon("the failure", confirm).await.unwrap_err();
    assert_eq!((error.reason(), error.is_retryable()), (Reason::QueueNotFound, false));
    let missing = client.producer("nothing").build().await.unwrap_err();
    assert_eq!(missing.reason(), Reason::QueueNotFound);
}

#[tokio::test]
async fn unconfirmed_messages_time_out_as_unknown_and_later_ones_go_on() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    cluster.shared.state().holds_confirms = true;
    let producer =
        client.producer("orders").delivery_timeout(Duration::from_millis(200)).build().await.unwrap();
    let confirm = send(&producer, 0..1).await.remove(0);
    let error = soon("the timeout", confirm).await.unwrap_err();
    assert!(matches!(error, ConfirmError::OutcomeUnknown(_)), "{error}");
    cluster.shared.state().holds_confirms = false;
    offsets(send(&producer, 1..2).await).await;
    let arrived = cluster.shared.state().arrived.clone();
    let (first, last) = (arrived[0], arrived[arrived.len() - 1]);
    assert_ne!(first.0, last.0, "the next batches come from another producer");
    assert_eq!(last.1, 1);
}

#[tokio::test]
async fn messages_that_never_left_time_out_as_not_accepted() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let producer =
        client.producer("orders").delivery_timeout(Duration::from_millis(200)).build().await.unwrap();
    offsets(send(&producer, 0..1).await).await;
    cluster.stop(0);
    cluster.stop(1);
    // What is sent before the loss is noticed may have left.
    soon("noticing", async {
        loop {
            let confirm = send(&producer, 1..2).await.remove(0);
            if matches!(confirm.await, Err(ConfirmError::NotAccepted(_))) {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_full_window_waits_for_confirms() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    cluster.shared.state().holds_confirms = true;
    let producer = client.producer("orders").window_messages(2).build().await.unwrap();
    let confirms = send(&producer, 0..2).await;
    let refused = producer.try_send(Message::new("2")).unwrap_err();
    assert!(matches!(&refused, TrySendError::Full(message) if message.body == "2"));
    let mut waiting = Box::pin(producer.send("2"));
    assert!(futures::poll!(&mut waiting).is_pending());
    soon("storing", async {
        let mut news = cluster.shared.news.subscribe();
        while stored(&cluster).len() < 2 {
            news.changed().await.unwrap();
        }
    })
    .await;
    cluster.shared.state().holds_confirms = false;
    cluster.shared.confirms_released.notify_waiters();
    let third = soon("room in the window", waiting).await.unwrap();
    offsets(confirms).await;
    assert_eq!(offsets(vec![third]).await, [2]);
}

#[tokio::test]
async fn messages_over_the_limit_are_refused_here() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let producer = producer(&client).await;
    offsets(send(&producer, 0..1).await).await;
    let refused = producer.send(vec![0; 2 << 20]).await.unwrap_err();
    assert!(matches!(refused, SendError::TooLarge { bytes_max: 1_048_576, .. }));
    let large = producer.send(vec![0; 1_000_000]).await.unwrap();
    soon("the confirm", large).await.unwrap();
}

#[tokio::test]
async fn a_dropped_producer_publishes_what_it_has_taken() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let producer = producer(&client).await;
    let confirms = send(&producer, 0..1_000).await;
    drop(producer);
    assert_eq!(offsets(confirms).await, (0..1_000).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_share_a_producer() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let producer = std::sync::Arc::new(client.producer("orders").window_messages(16).build().await.unwrap());
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let producer = std::sync::Arc::clone(&producer);
            tokio::spawn(async move { offsets(send(&producer, 0..500).await).await })
        })
        .collect();
    let mut all = BTreeSet::new();
    for task in tasks {
        all.extend(soon("publishing", task).await.unwrap());
    }
    assert_eq!(all.len(), 4_000);
}
