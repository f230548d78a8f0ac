//! A plain generated client at a node that does not lead: the node passes everything on.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use skein_cluster_tests::scenario::{self, Scenario};
use skein_proto::broker::{
    BrowseRequest, ConsumeRequest, ConsumeResponse, CreateQueueRequest, Credit, GetGroupRequest, Message,
    MessageBatch, OffsetRange, PublishBatch, PublishOpen, PublishRequest, ReceiveRequest, SendRequest,
    SettleRequest, StreamSettle, Subscribe, broker_client::BrokerClient, consume_request, publish_request,
    queues_client::QueuesClient,
};
use tokio::{sync::mpsc, time};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

const LIMIT: Duration = Duration::from_secs(60);

/// One answer comes within this.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

const QUEUE: &str = "orders";

fn batch(bodies: &[&'static str]) -> MessageBatch {
    let message = |body: &&'static str| Message { body: (*body).into(), ..Message::default() };
    MessageBatch { messages: bodies.iter().map(message).collect() }
}

async fn answer<T>(answers: &mut Streaming<T>) -> Result<T> {
    let answer = time::timeout(ANSWER_LIMIT, answers.message()).await.context("no answer")??;
    answer.context("the stream ended")
}

/// A queue, and a node that does not lead it.
async fn follower(scenario: &Scenario) -> Result<Channel> {
    let any = scenario.cluster.channel(1)?;
    let request = CreateQueueRequest { name: QUEUE.to_owned(), ..CreateQueueRequest::default() };
    QueuesClient::new(any).create_queue(request).await?;
    let leader = scenario.cluster.leader_of(QUEUE).await?;
    let mut followers = scenario.cluster.node_ids().into_iter().filter(|node_id| *node_id != leader);
    scenario.cluster.channel(followers.next_back().context("no follower")?)
}

#[tokio::test]
async fn streams_work_through_any_node() {
    scenario::run("streams_work_through_any_node", LIMIT, async |scenario| {
        let channel = follower(scenario).await?;
        let mut broker = BrokerClient::new(channel.clone());

        let (requests, outgoing) = mpsc::channel(16);
        let open = PublishOpen { queue: QUEUE.to_owned(), producer_id: 77, ..PublishOpen::default() };
        requests.send(PublishRequest { request: Some(publish_request::Request::Open(open)) }).await?;
        // Sent again with its sequence, as a producer does that got no answer: stored once.
        for (sequence, bodies) in [(1, ["a", "b"]), (2, ["c", "d"]), (2, ["c", "d"])] {
            let batch = PublishBatch { sequence, batch: Some(batch(&bodies)), routed: None };
            requests.send(PublishRequest { request: Some(publish_request::Request::Batch(batch)) }).await?;
        }
        let mut answers = broker.publish(ReceiverStream::new(outgoing)).await?.into_inner();
        let mut confirms = Vec::new();
        while confirms.len() < 3 {
            confirms.extend(answer(&mut answers).await?.confirms);
        }
        let offsets: Vec<_> = confirms.iter().map(|confirm| (confirm.first_offset, confirm.count)).collect();
        ensure!(offsets == [(0, 2), (2, 2), (2, 2)], "{confirms:?}");
        ensure!(confirms[2].duplicate && !confirms[1].duplicate, "{confirms:?}");
        drop(requests);
        let end = time::timeout(ANSWER_LIMIT, answers.message()).await.context("the stream does not end")?;
        ensure!(matches!(end, Ok(None)), "{end:?}");

        consume_four(&mut broker).await?;
        let request = GetGroupRequest { queue: QUEUE.to_owned(), group: "mail".to_owned() };
        let group =
            QueuesClient::new(channel).get_group(request).await?.into_inner().group.unwrap_or_default();
        ensure!(group.unacked_messages == 0, "{group:?}");
        Ok(())
    })
    .await;
}

/// Takes a, b, c and d from a stream and acks them.
async fn consume_four(broker: &mut BrokerClient<Channel>) -> Result<()> {
    let (requests, outgoing) = mpsc::channel(16);
    let subscribe = Subscribe {
        queue: QUEUE.to_owned(),
        group: "mail".to_owned(),
        credit: Some(Credit { messages: 100, bytes: 1 << 20 }),
        resume: None,
        priority: 0,
    };
    requests.send(ConsumeRequest { request: Some(consume_request::Request::Subscribe(subscribe)) }).await?;
    let mut answers = broker.consume(ReceiverStream::new(outgoing)).await?.into_inner();
    let mut bodies = Vec::new();
    while bodies.len() < 4 {
        for delivery in answer(&mut answers).await?.deliveries {
            bodies
                .extend(delivery.batch.unwrap_or_default().messages.into_iter().map(|message| message.body));
        }
    }
    ensure!(bodies == ["a", "b", "c", "d"], "{bodies:?}");
    let settle = StreamSettle {
        settle_id: 9,
        acks: vec![OffsetRange { first: 0, count: 4 }],
        ..StreamSettle::default()
    };
    requests.send(ConsumeRequest { request: Some(consume_request::Request::Settle(settle)) }).await?;
    let settled = loop {
        let ConsumeResponse { settled, .. } = answer(&mut answers).await?;
        if let Some(result) = settled.into_iter().next() {
            break result;
        }
    };
    ensure!(settled.settle_id == 9 && settled.failures.is_empty(), "{settled:?}");
    Ok(())
}

#[tokio::test]
async fn unary_calls_work_through_any_node() {
    scenario::run("unary_calls_work_through_any_node", LIMIT, async |scenario| {
        let mut broker = BrokerClient::new(follower(scenario).await?);
        let request = SendRequest {
            queue: QUEUE.to_owned(),
            batch: Some(batch(&["a", "b"])),
            ..SendRequest::default()
        };
        let confirm = broker.send(request).await?.into_inner().confirm.unwrap_or_default();
        ensure!((confirm.first_offset, confirm.count) == (0, 2), "{confirm:?}");

        let request = ReceiveRequest {
            queue: QUEUE.to_owned(),
            group: "mail".to_owned(),
            messages_max: 10,
            wait_ms: 2_000,
            ..ReceiveRequest::default()
        };
        let received = broker.receive(request).await?.into_inner().messages;
        ensure!(received.len() == 2, "{received:?}");
        let acks = received.into_iter().map(|message| message.lease_token).collect();
        let request = SettleRequest {
            queue: QUEUE.to_owned(),
            group: "mail".to_owned(),
            acks,
            ..SettleRequest::default()
        };
        let failures = broker.settle(request).await?.into_inner().failures;
        ensure!(failures.is_empty(), "{failures:?}");

        // Browse what nobody has acked: a second batch.
        let request =
            SendRequest { queue: QUEUE.to_owned(), batch: Some(batch(&["c"])), ..SendRequest::default() };
        broker.send(request).await?;
        let request = BrowseRequest { queue: QUEUE.to_owned(), from_offset: 2, ..BrowseRequest::default() };
        let mut browsed = broker.browse(request).await?.into_inner();
        let batches = answer(&mut browsed).await?.batches;
        let bodies: Vec<_> =
            batches.into_iter().flat_map(|batch| batch.batch.unwrap_or_default().messages).collect();
        ensure!(bodies.len() == 1 && bodies[0].body == "c", "{bodies:?}");
        Ok(())
    })
    .await;
}
