//! A client that stops reading its stream stops nobody else, and loses what it holds to the others of its group.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use skein_client::{Client, Message, QueueSettings};
use skein_cluster_tests::scenario;
use skein_proto::broker::{ConsumeRequest, Credit, Subscribe, broker_client::BrokerClient, consume_request};
use tokio::time;

const LIMIT: Duration = Duration::from_secs(90);

/// More than the buffers between a node and a client that does not read hold.
const MESSAGES: usize = 64;
const BODY_BYTES: usize = 1 << 20;

/// Short, since the test waits for its end.
const LEASE: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_client_that_stops_reading_stops_nobody_else() {
    scenario::run("a_client_that_stops_reading_stops_nobody_else", LIMIT, async |scenario| {
        let client = scenario.client().await?;
        client
            .create_queue("orders", QueueSettings { lease: Some(LEASE), ..QueueSettings::default() })
            .await?;

        // On a connection of its own, with credit for everything, and never read.
        let leader = scenario.cluster.leader_of("orders").await?;
        let address = format!("http://{}", scenario.cluster.grpc_address(leader)?);
        let mut broker = BrokerClient::connect(address).await?;
        let subscribe = Subscribe {
            queue: "orders".to_owned(),
            group: "sleepy".to_owned(),
            credit: Some(Credit { messages: 100_000, bytes: u64::MAX }),
            resume: None,
            priority: 0,
        };
        let request = ConsumeRequest { request: Some(consume_request::Request::Subscribe(subscribe)) };
        let requests = {
            use tokio_stream::StreamExt as _;
            tokio_stream::once(request).chain(tokio_stream::pending())
        };
        let unread = broker.consume(requests).await?.into_inner();

        publish_and_consume(&client).await?;
        // What the sleeper holds goes to the next one of its group when the leases end, though it is still connected.
        let mut awake = client.consumer("orders", "sleepy").build().await?;
        let mut missing: BTreeSet<u64> = (0..MESSAGES as u64).collect();
        let taking = async {
            while !missing.is_empty() {
                let delivery = awake.next().await.context("the consumer ended")??;
                missing.remove(&delivery.offset.get());
                drop(delivery.ack());
            }
            anyhow::Ok(())
        };
        let taken = time::timeout(Duration::from_secs(30), taking).await;
        taken.with_context(|| format!("messages stay with who does not read: {missing:?}"))??;
        drop(unread);
        Ok(())
    })
    .await;
}

/// Another group gets everything while the first one sleeps.
async fn publish_and_consume(client: &Client) -> Result<()> {
    let body = vec![b'x'; BODY_BYTES - 1_000];
    let producer = client.producer("orders").build().await?;
    let mut consumer = client.consumer("orders", "awake").build().await?;
    let publishing = async {
        for _ in 0..MESSAGES {
            drop(producer.send(Message::new(body.clone())).await?);
        }
        producer.flush().await?;
        anyhow::Ok(())
    };
    let consuming = async {
        for offset in 0..MESSAGES {
            let delivery = consumer.next().await.context("the consumer ended")??;
            ensure!(delivery.offset.get() == offset as u64, "{} for {offset}", delivery.offset);
            drop(delivery.ack());
        }
        Ok(())
    };
    let both = async { tokio::try_join!(publishing, consuming) };
    time::timeout(Duration::from_secs(60), both).await.context("others are held up")??;
    Ok(())
}
