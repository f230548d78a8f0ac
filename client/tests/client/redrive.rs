//! Moving dead letters back.

use std::time::Duration;

use skein_client::{
    Client, DeadLetterReason, Message, Offset, QueueSettings, REDRIVE_GROUP, Reason, RedriveError,
    RedriveOptions, RedriveProgress,
};

use super::{cluster::Cluster, soon};

async fn start() -> (Cluster, Client) {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    client.create_queue("dead", QueueSettings::default()).await.unwrap();
    (cluster, client)
}

fn dead_letter(body: &str, reason: &'static str) -> Message {
    let headers =
        [("queue", "orders"), ("group", "mail"), ("offset", "7"), ("attempts", "20"), ("reason", reason)];
    let headers = headers.map(|(name, value)| (format!("skein-dead-letter-{name}"), value));
    Message::new(body.to_owned().into_bytes()).headers(headers)
}

async fn redrive(client: &Client, options: RedriveOptions) -> Result<RedriveProgress, RedriveError> {
    soon("the end", client.redrive("dead", options, |_| {})).await
}

fn progress(moved_count: u64, left_count: u64) -> RedriveProgress {
    RedriveProgress { moved_count, left_count, stopped_early: false }
}

fn bodies(cluster: &Cluster, queue: &str) -> Vec<String> {
    cluster.shared.state().queues[queue].bodies()
}

/// What the redrive group has acked, has been given back, and holds.
fn counts(cluster: &Cluster) -> (usize, usize, usize) {
    let state = cluster.shared.state();
    let group = &state.queues["dead"].groups[REDRIVE_GROUP];
    (group.acked.len(), group.returned.len(), group.leased.len())
}

#[tokio::test]
async fn dead_letters_go_back_as_they_were() {
    let (cluster, client) = start().await;
    let message = dead_letter("one", "expired").key("k").header("trace", "4bf9").priority(3);
    let message = message.message_id("id").ttl(Duration::from_secs(60));
    client.send("dead", vec![message, dead_letter("two", "max_deliveries")]).await.unwrap();
    let mut told = Vec::new();
    let moved = client.redrive("dead", RedriveOptions::new(), |progress| told.push(progress));
    assert_eq!(soon("the end", moved).await, Ok(progress(2, 0)));
    assert_eq!(told, [progress(1, 0), progress(2, 0)]);
    assert_eq!(counts(&cluster), (2, 0, 0));

    let expected = Message::new("one").key("k").header("trace", "4bf9").priority(3);
    let expected = expected.message_id("id").ttl(Duration::from_secs(60));
    let received = client.receive("orders", "mail", 2, Duration::ZERO).await.unwrap();
    assert_eq!(received[0].message, expected);
    assert_eq!(bodies(&cluster, "orders"), ["one", "two"]);
    assert_eq!(redrive(&client, RedriveOptions::new()).await, Ok(progress(0, 0)), "nothing is left");
}

#[tokio::test]
async fn what_does_not_match_is_left_and_can_be_moved_later() {
    let (cluster, client) = start().await;
    let messages = vec![
        dead_letter("one", "expired").header("customer", "7"),
        Message::new("two"),
        dead_letter("three", "overflow").header("customer", "7"),
        dead_letter("four", "expired"),
    ];
    client.send("dead", messages).await.unwrap();
    let matching = RedriveOptions::new().reason(DeadLetterReason::Expired).header("customer", "7");
    assert_eq!(redrive(&client, matching).await, Ok(progress(1, 3)));
    assert_eq!((bodies(&cluster, "orders"), counts(&cluster)), (vec!["one".into()], (1, 3, 0)));

    assert_eq!(redrive(&client, RedriveOptions::new()).await, Ok(progress(2, 1)));
    assert_eq!((bodies(&cluster, "orders").len(), counts(&cluster)), (3, (3, 1, 0)));

    client.create_queue("late", QueueSettings::default()).await.unwrap();
    assert_eq!(redrive(&client, RedriveOptions::new().to("late")).await, Ok(progress(1, 0)));
    assert_eq!((bodies(&cluster, "late"), counts(&cluster)), (vec!["two".into()], (4, 0, 0)));
}

#[tokio::test]
async fn no_more_are_moved_than_asked_for() {
    let (cluster, client) = start().await;
    let messages = (0..5).map(|number| dead_letter(&number.to_string(), "expired")).collect();
    client.send("dead", messages).await.unwrap();
    assert_eq!(redrive(&client, RedriveOptions::new().messages_max(2)).await, Ok(progress(2, 0)));
    assert_eq!((bodies(&cluster, "orders"), counts(&cluster)), (vec!["0".into(), "1".into()], (2, 3, 0)));
}

#[tokio::test]
async fn nothing_is_acked_before_it_is_confirmed_and_a_crash_doubles_nothing() {
    let (cluster, client) = start().await;
    client.send("dead", vec![dead_letter("one", "expired"), dead_letter("two", "expired")]).await.unwrap();
    cluster.shared.state().holds_confirms = true;
    let crashed = tokio::spawn({
        let client = client.clone();
        async move { client.redrive("dead", RedriveOptions::new(), |_| {}).await }
    });
    let mut news = cluster.shared.news.subscribe();
    soon("storing", async {
        while bodies(&cluster, "orders").is_empty() {
            news.changed().await.unwrap();
        }
    })
    .await;
    // Long enough for an ack that does not wait.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(counts(&cluster), (0, 0, 2));
    crashed.abort();
    assert!(crashed.await.unwrap_err().is_cancelled());
    cluster.shared.state().holds_confirms = false;

    assert_eq!(redrive(&client, RedriveOptions::new()).await, Ok(progress(2, 0)));
    assert_eq!((bodies(&cluster, "orders"), counts(&cluster)), (vec!["one".into(), "two".into()], (2, 0, 0)));
    let sent: Vec<_> =
        cluster.shared.state().sent.iter().filter(|(queue, ..)| queue == "orders").cloned().collect();
    assert_eq!((sent.len(), &sent[0]), (3, &sent[1]), "the first one was sent twice as the same");
    assert_ne!(sent[1].1, sent[2].1);
}

#[tokio::test]
async fn leases_are_extended_of_all_that_is_held() {
    let (cluster, client) = start().await;
    let lease = Some(Duration::from_millis(60));
    client.create_queue("brief", QueueSettings { lease, ..Default::default() }).await.unwrap();
    client.send("brief", vec![Message::new("left"), dead_letter("one", "expired")]).await.unwrap();
    client.send("brief", vec![dead_letter("two", "expired")]).await.unwrap();
    cluster.shared.state().holds_confirms = true;
    let mut news = cluster.shared.news.subscribe();
    let mut moving = Box::pin(client.redrive("brief", RedriveOptions::new(), |_| {}));
    soon("extending", async {
        loop {
            tokio::select! {
                ended = &mut moving => panic!("nothing was confirmed: {ended:?}"),
                changed = news.changed() => changed.unwrap(),
            }
            let extended = match cluster.shared.state().queues["brief"].groups.get(REDRIVE_GROUP) {
                Some(group) => group.extended.clone(),
                None => continue,
            };
            if (0..3).all(|offset| extended.iter().filter(|extended| **extended == offset).count() > 1) {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_missing_queue_ends_it_and_nothing_is_lost() {
    let (cluster, client) = start().await;
    client.send("dead", vec![dead_letter("one", "expired")]).await.unwrap();
    client.delete_queue("orders").await.unwrap();
    let error = redrive(&client, RedriveOptions::new()).await.unwrap_err();
    assert!(matches!(&error, RedriveError::NotMoved { offset: Offset::ZERO, to, .. } if to == "orders"));
    assert_eq!((error.reason(), error.is_retryable()), (Reason::QueueNotFound, false));
    assert_eq!(counts(&cluster), (0, 1, 0));

    let error = redrive(&client, RedriveOptions::new().to("nothing")).await.unwrap_err();
    assert!(matches!(&error, RedriveError::NotSeen(_)), "{error}");
    assert_eq!(counts(&cluster), (0, 1, 0));
    let error = redrive(&client, RedriveOptions::new().to("dead")).await.unwrap_err();
    assert!(matches!(&error, RedriveError::ToItself { .. }), "{error}");
    let error = soon("the end", client.redrive("nothing", RedriveOptions::new(), |_| {})).await.unwrap_err();
    assert_eq!(error.reason(), Reason::QueueNotFound);
}

#[tokio::test]
async fn it_ends_early_when_too_much_does_not_match() {
    let (cluster, client) = start().await;
    let mut messages: Vec<_> = (0..1_000).map(|_| dead_letter("left", "expired")).collect();
    messages.insert(500, dead_letter("moved", "overflow"));
    messages.push(dead_letter("hidden", "overflow"));
    messages.push(dead_letter("hidden", "overflow"));
    client.send("dead", messages).await.unwrap();
    let overflowed = RedriveOptions::new().reason(DeadLetterReason::Overflow);
    let ended = redrive(&client, overflowed).await.unwrap();
    assert!(ended.stopped_early && ended.left_count == 1_000, "{ended:?}");
    assert_eq!(bodies(&cluster, "orders"), ["moved"]);
    assert_eq!(counts(&cluster), (1, 1_000, 0));
}

#[tokio::test]
async fn being_looked_at_again_and_again_uses_nothing_up() {
    let (cluster, client) = start().await;
    client
        .create_queue("worn", QueueSettings { max_deliveries: Some(4), ..Default::default() })
        .await
        .unwrap();
    client.send("worn", vec![dead_letter("left", "expired")]).await.unwrap();
    let overflowed = || RedriveOptions::new().reason(DeadLetterReason::Overflow);
    for _ in 0..6 {
        let ended = soon("the end", client.redrive("worn", overflowed(), |_| {})).await;
        assert_eq!(ended, Ok(progress(0, 1)));
    }
    // In its third delivery of four it is put at the end of the queue, where it may be delivered at once.
    let stored_count = bodies(&cluster, "worn").len() as u64;
    assert!((2..=3).contains(&stored_count), "{stored_count}");
    let acked = cluster.shared.state().queues["worn"].groups[REDRIVE_GROUP].acked.clone();
    assert_eq!(acked, (0..stored_count - 1).collect::<Vec<_>>());
    let moved = soon("the end", client.redrive("worn", RedriveOptions::new(), |_| {})).await;
    assert_eq!(moved, Ok(progress(1, 0)));
    assert_eq!(bodies(&cluster, "orders"), ["left"]);
}
