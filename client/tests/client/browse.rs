//! Browsing, also over streams that end.

use std::time::{Duration, UNIX_EPOCH};

use futures::{Stream, TryStreamExt};
use skein_client::{BrowseOptions, Browsed, Client, Error, Message, Offset, Position, Reason};

use super::{cluster::Cluster, soon};

async fn publish(client: &Client, numbers: std::ops::Range<u32>) {
    let messages = numbers.map(|number| Message::new(number.to_string())).collect();
    client.send("orders", messages).await.unwrap();
}

async fn bodies(browsed: impl Stream<Item = Result<Browsed, Error>>) -> Vec<String> {
    let bodies = browsed.map_ok(|browsed| String::from_utf8(browsed.message.body.to_vec()).unwrap());
    soon("the end of the queue", bodies.try_collect()).await.unwrap()
}

async fn next(followed: &mut (impl Stream<Item = Result<Browsed, Error>> + Unpin)) -> (u64, String) {
    let browsed = soon("a message", followed.try_next()).await.unwrap().unwrap();
    (browsed.offset.get(), String::from_utf8(browsed.message.body.to_vec()).unwrap())
}

#[tokio::test]
async fn browsing_reads_without_taking() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    publish(&client, 0..5).await;
    assert_eq!(
        bodies(client.browse("orders", Offset::new(1), Some(3)).await.unwrap()).await,
        ["1", "2", "3"]
    );
    assert_eq!(bodies(client.browse("orders", Offset::new(3), None).await.unwrap()).await, ["3", "4"]);
    assert!(bodies(client.browse("orders", Offset::ZERO, Some(0)).await.unwrap()).await.is_empty());
    let missing = client.browse("nothing", Offset::ZERO, None).await.err().unwrap();
    assert_eq!(missing.reason(), Reason::QueueNotFound);
}

#[tokio::test]
async fn browsing_begins_at_any_position() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    publish(&client, 0..4).await;
    // The message at offset 2 was published at the third millisecond.
    let third = Position::Time(UNIX_EPOCH + Duration::from_millis(3));
    for (position, first) in [(Position::First, 0), (Position::Offset(Offset::new(1)), 1), (third, 2)] {
        let options = BrowseOptions::new().from(position);
        let expected: Vec<_> = (first..4).map(|number| number.to_string()).collect();
        assert_eq!(bodies(client.browse_with("orders", options).await.unwrap()).await, expected);
    }
    let options = BrowseOptions::new().from(Position::Next).messages_max(1).follow();
    let newest = client.browse_with("orders", options).await.unwrap();
    publish(&client, 4..6).await;
    assert_eq!(bodies(newest).await, ["4"]);
}

#[tokio::test]
async fn a_follower_goes_on_over_broken_streams_without_gap_or_repetition() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let mut followed = client.browse_with("orders", BrowseOptions::new().follow()).await.unwrap();
    for number in 0..100 {
        publish(&client, number..number + 1).await;
        if number % 10 == 3 {
            cluster.end_streams();
        }
        // Sometimes the stream breaks with messages on it that were not looked at.
        if number % 3 == 0 {
            continue;
        }
        let seen = u64::from(number) - u64::from(number % 3 == 1);
        for offset in seen..=number.into() {
            assert_eq!(next(&mut followed).await, (offset, offset.to_string()));
        }
    }
    assert!(cluster.shared.state().browsed.len() > 5);
}

#[tokio::test]
async fn a_follower_that_has_seen_nothing_still_waits_for_its_time() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let third = Position::Time(UNIX_EPOCH + Duration::from_millis(3));
    let options = BrowseOptions::new().from(third).follow();
    let mut followed = client.browse_with("orders", options).await.unwrap();
    cluster.end_streams();
    publish(&client, 0..4).await;
    assert_eq!(next(&mut followed).await, (2, "2".into()));
    cluster.end_streams();
    assert_eq!(next(&mut followed).await, (3, "3".into()));
}

#[tokio::test]
async fn a_follower_moves_to_the_new_leader() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let mut followed = client.browse_with("orders", BrowseOptions::new().follow()).await.unwrap();
    publish(&client, 0..1).await;
    assert_eq!(next(&mut followed).await.0, 0);
    // The old leader lives, and its stream with it.
    cluster.set_leader(Some(2), 2);
    let mut moved = Box::pin(next(&mut followed));
    soon("moving", async {
        while cluster.shared.state().browsed.last().unwrap().0 != cluster.addresses[1] {
            assert!(futures::poll!(&mut moved).is_pending());
            tokio::task::yield_now().await;
        }
    })
    .await;
    cluster.stop(0);
    publish(&client, 1..2).await;
    assert_eq!(moved.await.0, 1);
}

#[tokio::test]
async fn a_deleted_queue_ends_a_follower() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let mut followed = client.browse_with("orders", BrowseOptions::new().follow()).await.unwrap();
    cluster.shared.state().queues.clear();
    cluster.end_streams();
    let error = soon("the end", followed.try_next()).await.unwrap_err();
    assert_eq!(error.reason(), Reason::QueueNotFound);
    assert!(soon("the end", followed.try_next()).await.unwrap().is_none());
}
