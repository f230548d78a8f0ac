//! Single calls, and how they are repeated.

use std::time::{Duration, UNIX_EPOCH};

use skein_client::{
    Client, ConnectError, Error, Filter, Message, Offset, Position, QueueSettings, QueueUpdate, Reason,
    Retention, Settlement,
};
use tonic::Code;

use super::{
    cluster::{Cluster, status},
    soon,
};

#[tokio::test]
async fn one_server_that_answers_is_enough() {
    let cluster = Cluster::start().await;
    let client = Client::connect(["127.0.0.1:1", &cluster.addresses[1]]).await.unwrap();
    let topology = client.topology().await.unwrap();
    assert_eq!(topology.nodes.len(), 2);
    assert_eq!(topology.shards[0].leader, Some(topology.nodes[0].id));
}

#[tokio::test]
async fn no_server_is_told() {
    let builder = Client::builder().servers(["127.0.0.1:1"]).request_timeout(Duration::from_millis(100));
    let error = soon("the error", builder.connect()).await.unwrap_err();
    assert!(matches!(&error, ConnectError::NoneAnswered { .. }));
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
}

#[tokio::test]
async fn queues_are_created_listed_and_deleted() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let settings = QueueSettings { lease: Some(Duration::from_secs(5)), ..QueueSettings::default() };
    assert!(client.create_queue("b", settings.clone()).await.unwrap());
    assert!(!client.create_queue("b", settings.clone()).await.unwrap());
    let error = client.create_queue("b", QueueSettings::default()).await.unwrap_err();
    assert_eq!((error.reason(), error.is_retryable()), (Reason::QueueExists, false));
    assert_eq!(client.get_queue("b").await.unwrap().settings, settings);

    client.create_queue("a", QueueSettings::default()).await.unwrap();
    let names: Vec<_> = client.list_queues().await.unwrap().into_iter().map(|queue| queue.name).collect();
    assert_eq!(names, ["a", "b", "orders"]);
    client.delete_queue("a").await.unwrap();
    assert_eq!(client.delete_queue("a").await.unwrap_err().reason(), Reason::QueueNotFound);
}

#[tokio::test]
async fn an_update_changes_what_it_names_and_nothing_else() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let settings = QueueSettings {
        lease: Some(Duration::from_secs(5)),
        dead_letter_queue: Some("orders".into()),
        ..QueueSettings::default()
    };
    client.create_queue("mail", settings.clone()).await.unwrap();
    let unchanged = client.update_queue("mail", QueueUpdate::new()).await.unwrap();
    assert_eq!(unchanged.settings, settings);

    let update = QueueUpdate::new().retention(Retention::Limits).max_messages(10).no_dead_letter_queue();
    cluster.shared.state().answers_lost = 1;
    let updated = client.update_queue("mail", update).await.unwrap();
    let expected = QueueSettings {
        retention: Retention::Limits,
        max_messages: Some(10),
        dead_letter_queue: None,
        ..settings
    };
    assert_eq!(updated.settings, expected);
    assert_eq!(client.get_queue("mail").await.unwrap(), updated);
    let missing = client.update_queue("nothing", QueueUpdate::new().max_messages(1)).await.unwrap_err();
    assert_eq!(missing.reason(), Reason::QueueNotFound);
}

#[tokio::test]
async fn groups_are_created_looked_at_and_deleted() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    assert!(client.create_group("orders", "mail", Position::First).await.unwrap());
    assert!(!client.create_group("orders", "mail", Position::First).await.unwrap());
    assert_eq!(client.get_group("orders", "mail").await.unwrap().name, "mail");
    client.delete_group("orders", "mail").await.unwrap();
    assert_eq!(client.get_group("orders", "mail").await.unwrap_err().reason(), Reason::GroupNotFound);
}

#[tokio::test]
async fn a_group_wants_what_it_was_last_told() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let filter: Filter = "key ~ orders.# or header.urgent exists".parse().unwrap();
    let created = client.create_filtered_group("orders", "mail", Position::First, filter.clone()).await;
    assert_eq!(created, Ok(true));
    assert_eq!(client.get_group("orders", "mail").await.unwrap().filter, Some(filter.clone()));
    let other = filter.negate();
    cluster.shared.state().answers_lost = 1;
    let updated = client.set_filter("orders", "mail", Some(other.clone())).await.unwrap();
    assert_eq!(updated.filter, Some(other));
    assert_eq!(client.set_filter("orders", "mail", None).await.unwrap().filter, None);
    let missing = client.set_filter("orders", "nobody", None).await.unwrap_err();
    assert_eq!(missing.reason(), Reason::GroupNotFound);
}

#[tokio::test]
async fn groups_begin_and_go_on_at_any_position() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    client.send("orders", (0..5).map(|n| Message::new(n.to_string())).collect()).await.unwrap();
    // The message at offset 2 was published at the third millisecond.
    let third = Position::Time(UNIX_EPOCH + Duration::from_millis(3));
    let positions =
        [(Position::First, 0), (Position::Next, 5), (Position::Offset(Offset::new(4)), 4), (third, 2)];
    for (position, offset) in positions {
        let group = format!("from-{offset}");
        assert!(client.create_group("orders", &group, position).await.unwrap());
        let unacked = client.get_group("orders", &group).await.unwrap().unacked_count;
        assert_eq!(unacked, 5 - offset, "{position:?}");
        assert_eq!(client.seek_group("orders", "from-0", position).await, Ok(Offset::new(offset)));
    }
    let after_the_end = Position::Offset(Offset::new(6));
    let refused = client.seek_group("orders", "from-0", after_the_end).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::InvalidPosition);
    let refused = client.seek_group("orders", "nobody", Position::First).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::GroupNotFound);
}

#[tokio::test]
async fn moving_a_group_waits_for_what_the_node_is_busy_with() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    client.create_group("orders", "mail", Position::First).await.unwrap();
    cluster.shared.state().seek_refusals =
        vec![status(Code::Aborted, Reason::Busy, "dead letters are being moved"); 2];
    assert_eq!(client.seek_group("orders", "mail", Position::Next).await, Ok(Offset::ZERO));
}

#[tokio::test]
async fn groups_tell_how_far_behind_they_are() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    client.create_group("orders", "mail", Position::First).await.unwrap();
    let group = client.get_group("orders", "mail").await.unwrap();
    assert_eq!((group.unacked_bytes, group.oldest_unacked_at), (0, None));
    client.send("orders", vec![Message::new("one")]).await.unwrap();
    let group = client.get_group("orders", "mail").await.unwrap();
    let first_millisecond = UNIX_EPOCH + Duration::from_millis(1);
    assert_eq!((group.unacked_bytes, group.oldest_unacked_at), (100, Some(first_millisecond)));
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_and_nothing_is_stored_twice() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    client.get_queue("orders").await.unwrap();
    cluster.shared.state().answers_lost = 2;
    let offset = client.send("orders", vec![Message::new("one"), Message::new("two")]).await.unwrap();
    assert_eq!(offset, Offset::ZERO);
    assert_eq!(cluster.shared.state().queues["orders"].bodies(), ["one", "two"]);
}

#[tokio::test]
async fn a_repeated_deletion_that_finds_nothing_has_succeeded() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    cluster.shared.state().answers_lost = 1;
    client.delete_queue("orders").await.unwrap();
}

#[tokio::test]
async fn an_answer_that_never_comes_is_of_unknown_outcome() {
    let cluster = Cluster::start().await;
    let client =
        Client::builder().servers(cluster.addresses.clone()).request_timeout(Duration::from_millis(200));
    let client = client.connect().await.unwrap();
    client.get_queue("orders").await.unwrap();
    cluster.shared.state().answers_lost = u32::MAX;
    let error = client.send("orders", vec![Message::new("one")]).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
    assert!(error.is_retryable());
}

#[tokio::test]
async fn batches_over_the_limit_are_refused_here() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let error = client.send("orders", vec![Message::new(vec![0; 5 << 20])]).await.unwrap_err();
    assert!(matches!(error, Error::NotAccepted(_)));
    assert_eq!(error.reason(), Reason::BatchTooLarge);
    let error = client.send("orders", vec![Message::default(); 20_000]).await.unwrap_err();
    assert_eq!(error.reason(), Reason::BatchTooLarge);
}

#[tokio::test]
async fn received_messages_are_settled_by_token() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    client.send("orders", vec![Message::new("one").key("k"), Message::new("two")]).await.unwrap();
    let received = client.receive("orders", "mail", 1, Duration::ZERO).await.unwrap();
    assert_eq!(received[0].message, Message::new("one").key("k"));
    let token = received[0].lease_token.clone();
    let settlement = || Settlement::new().ack(token.clone());
    assert_eq!(client.settle("orders", "mail", settlement()).await.unwrap(), []);
    let again = client.settle("orders", "mail", settlement()).await.unwrap();
    assert_eq!((again.len(), again[0].reason), (1, Reason::LeaseLost));
}

#[tokio::test]
async fn received_messages_are_given_back_with_and_without_a_delay() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    client.send("orders", (0..3).map(|n| Message::new(n.to_string())).collect()).await.unwrap();
    let mut settlement = Settlement::new();
    for delay in [None, Some(Duration::ZERO), Some(Duration::from_secs(1))] {
        let received = client.receive("orders", "mail", 1, Duration::ZERO).await.unwrap().remove(0);
        settlement = match delay {
            None => settlement.nack(received.lease_token),
            Some(delay) => settlement.nack_after(received.lease_token, delay),
        };
    }
    assert_eq!(client.settle("orders", "mail", settlement).await.unwrap(), []);
    let nacked = cluster.shared.state().queues["orders"].groups["mail"].nacked.clone();
    assert_eq!(nacked, [(0, None), (1, Some(0)), (2, Some(1_000))]);
}
