//! What a node answers to what it should not be asked: a gRPC code, a reason for programs, a sentence for people; and
//! it goes on working.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use skein_cluster_tests::scenario::{self, Scenario};
use skein_proto::{
    REASON_TRAILER,
    broker::{
        BrowseRequest, ConsumeRequest, CreateGroupRequest, CreateQueueRequest, Credit, DeleteQueueRequest,
        GetGroupRequest, GetQueueRequest, Message, MessageBatch, OffsetRange, PublishBatch, PublishOpen,
        PublishRequest, QueueSettings, Reason, ReceiveRequest, SendRequest, SettleRequest, StreamSettle,
        Subscribe, broker_client::BrokerClient, consume_request, publish_request,
        queues_client::QueuesClient,
    },
    limits, node,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time,
};
use tonic::{Code, Response, Status, Streaming, transport::Channel};

const LIMIT: Duration = Duration::from_secs(90);

/// One answer comes within this.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Exists in every test here.
const QUEUE: &str = "orders";

/// Names no queue or group may have.
const BAD_NAMES: [&str; 6] = ["", "-first", ".hidden", "with space", "ümlaut", "a\nb"];

async fn prepared(scenario: &Scenario) -> Result<Channel> {
    let channel = scenario.cluster.channel(1)?;
    let request = CreateQueueRequest { name: QUEUE.to_owned(), ..CreateQueueRequest::default() };
    QueuesClient::new(channel.clone()).create_queue(request).await?;
    Ok(channel)
}

/// The call was refused with this code and reason, and a sentence.
fn refused<T>(what: &str, answer: Result<Response<T>, Status>, code: Code, reason: Reason) -> Result<()> {
    let Err(status) = answer else { anyhow::bail!("{what} was accepted") };
    check_status(what, &status, code, reason)
}

fn check_status(what: &str, status: &Status, code: Code, reason: Reason) -> Result<()> {
    let trailer = status.metadata().get(REASON_TRAILER).and_then(|name| name.to_str().ok());
    ensure!(
        (status.code(), trailer) == (code, Some(reason.as_str_name())),
        "{what}: {:?} with {trailer:?}, not {code:?} with {}: {}",
        status.code(),
        reason.as_str_name(),
        status.message()
    );
    ensure!(is_sentence(status.message()), "{what}: {:?} is no sentence that helps", status.message());
    Ok(())
}

/// Several words that begin like a sentence of ours and carry no debug output.
fn is_sentence(text: &str) -> bool {
    text.split_whitespace().count() >= 4
        && !["Err(", "Some(", "None", "::"].iter().any(|debug| text.contains(debug))
}

/// The stream was ended with this code and reason.
async fn ended<T>(
    what: &str,
    answers: Result<Response<Streaming<T>>, Status>,
    code: Code,
    reason: Reason,
) -> Result<()> {
    let mut answers = match answers {
        Ok(answers) => answers.into_inner(),
        Err(status) => return check_status(what, &status, code, reason),
    };
    loop {
        match time::timeout(ANSWER_LIMIT, answers.message())
            .await
            .with_context(|| format!("{what}: no answer"))?
        {
            Ok(Some(_)) => {}
            Ok(None) => anyhow::bail!("{what}: the stream ended as if all were well"),
            Err(status) => return check_status(what, &status, code, reason),
        }
    }
}

fn batch(count: usize, body_bytes: usize) -> MessageBatch {
    let message = Message { body: vec![b'x'; body_bytes].into(), ..Message::default() };
    MessageBatch { messages: vec![message; count] }
}

fn send(queue: &str, batch: MessageBatch) -> SendRequest {
    SendRequest { queue: queue.to_owned(), batch: Some(batch), ..SendRequest::default() }
}

fn open(queue: &str) -> PublishRequest {
    let open = PublishOpen { queue: queue.to_owned(), producer_id: 5, ..PublishOpen::default() };
    PublishRequest { request: Some(publish_request::Request::Open(open)) }
}

fn publish(sequence: u64, batch: MessageBatch) -> PublishRequest {
    let batch = PublishBatch { sequence, batch: Some(batch), routed: None };
    PublishRequest { request: Some(publish_request::Request::Batch(batch)) }
}

fn subscribe(queue: &str, group: &str) -> ConsumeRequest {
    let credit = Some(Credit { messages: 10, bytes: 1 << 20 });
    let subscribe =
        Subscribe { queue: queue.to_owned(), group: group.to_owned(), credit, resume: None, priority: 0 };
    ConsumeRequest { request: Some(consume_request::Request::Subscribe(subscribe)) }
}

/// Sends these and then nothing more, without ending the stream: the answer must not wait for its end.
fn requests<T: Send + 'static>(requests: Vec<T>) -> impl tokio_stream::Stream<Item = T> + Send + 'static {
    use tokio_stream::StreamExt as _;
    tokio_stream::iter(requests).chain(tokio_stream::pending())
}

#[tokio::test]
async fn queues_and_groups_refuse_what_makes_no_sense() {
    scenario::run("queues_and_groups_refuse_what_makes_no_sense", LIMIT, async |scenario| {
        let mut queues = QueuesClient::new(prepared(scenario).await?);
        let too_long = "q".repeat(limits::NAME_BYTES_MAX + 1);
        for name in BAD_NAMES.into_iter().chain([too_long.as_str()]) {
            let request = CreateQueueRequest { name: name.to_owned(), ..CreateQueueRequest::default() };
            let what = format!("creating the queue {name:?}");
            refused(&what, queues.create_queue(request).await, Code::InvalidArgument, Reason::InvalidName)?;
            let request = CreateGroupRequest {
                queue: QUEUE.to_owned(),
                group: name.to_owned(),
                ..CreateGroupRequest::default()
            };
            let what = format!("creating the group {name:?}");
            refused(&what, queues.create_group(request).await, Code::InvalidArgument, Reason::InvalidName)?;
        }

        let unknown = || "unknown".to_owned();
        let (code, reason) = (Code::NotFound, Reason::QueueNotFound);
        refused("get", queues.get_queue(GetQueueRequest { name: unknown() }).await, code, reason)?;
        refused(
            "delete",
            queues.delete_queue(DeleteQueueRequest { name: unknown(), ..Default::default() }).await,
            code,
            reason,
        )?;
        let request = GetGroupRequest { queue: unknown(), group: "mail".to_owned() };
        refused("get group", queues.get_group(request).await, code, reason)?;
        let request = GetGroupRequest { queue: QUEUE.to_owned(), group: unknown() };
        let answer = queues.get_group(request).await;
        refused("get unknown group", answer, Code::NotFound, Reason::GroupNotFound)?;

        let with = |name: &str, settings| CreateQueueRequest {
            name: name.to_owned(),
            settings: Some(settings),
            ..CreateQueueRequest::default()
        };
        let dead_letter =
            |queue: &str| QueueSettings { dead_letter_queue: queue.to_owned(), ..Default::default() };
        let answer = queues.create_queue(with("a", dead_letter("unknown"))).await;
        refused("unknown dead-letter queue", answer, code, reason)?;
        let settings = QueueSettings { max_deliveries: 7, ..QueueSettings::default() };
        let answer = queues.create_queue(with(QUEUE, settings)).await;
        refused("other settings", answer, Code::AlreadyExists, Reason::QueueExists)?;
        queues.create_queue(with("a", dead_letter(QUEUE))).await?;
        let answer =
            queues.delete_queue(DeleteQueueRequest { name: QUEUE.to_owned(), ..Default::default() }).await;
        refused("delete a dead-letter queue", answer, Code::FailedPrecondition, Reason::QueueInUse)
    })
    .await;
}

#[tokio::test]
async fn publishing_refuses_what_cannot_be_stored() {
    scenario::run("publishing_refuses_what_cannot_be_stored", LIMIT, async |scenario| {
        let channel = prepared(scenario).await?;
        // Larger requests than a node takes must reach it to be refused.
        let mut broker = BrokerClient::new(channel.clone());
        let invalid = Code::InvalidArgument;
        let small = || batch(1, 10);

        let cases = [
            ("to an unknown queue", send("unknown", small()), Code::NotFound, Reason::QueueNotFound),
            ("an empty batch", send(QUEUE, batch(0, 0)), invalid, Reason::BatchEmpty),
            ("a large message", send(QUEUE, batch(1, 1 + (1 << 20))), invalid, Reason::MessageTooLarge),
            ("a large batch", send(QUEUE, batch(9, 1 << 19)), invalid, Reason::BatchTooLarge),
            ("many messages", send(QUEUE, batch(16_385, 1)), invalid, Reason::BatchTooLarge),
        ];
        for (what, request, code, reason) in cases {
            refused(what, broker.send(request).await, code, reason)?;
        }
        for bytes in [&b"\xff\xff\xff"[..], &[0x0a, 0x05, 0x0a], &[0x0a, 0x02, 0x0a, 0x7f]] {
            let request = node::SendRequest {
                queue: QUEUE.to_owned(),
                batch: bytes.to_vec().into(),
                ..Default::default()
            };
            let answer = node::broker_client::BrokerClient::new(channel.clone()).send(request).await;
            refused(&format!("the bytes {bytes:?}"), answer, invalid, Reason::MalformedMessage)?;
        }

        let unopened = PublishRequest { request: None };
        let cases = [
            ("no opening", vec![publish(1, small())], invalid, Reason::WrongFirstMessage),
            ("nothing at all", vec![unopened], invalid, Reason::WrongFirstMessage),
            ("two openings", vec![open(QUEUE), open(QUEUE)], invalid, Reason::WrongFirstMessage),
            ("an unknown queue", vec![open("unknown")], Code::NotFound, Reason::QueueNotFound),
            ("a gap", vec![open(QUEUE), publish(2, small())], Code::FailedPrecondition, Reason::SequenceGap),
            ("an empty batch", vec![open(QUEUE), publish(1, batch(0, 0))], invalid, Reason::BatchEmpty),
        ];
        for (what, stream, code, reason) in cases {
            ended(&format!("a stream with {what}"), broker.publish(requests(stream)).await, code, reason)
                .await?;
        }

        // Nothing of all this was stored, and the node still works.
        let confirm = broker.send(send(QUEUE, small())).await?.into_inner().confirm.unwrap_or_default();
        ensure!(confirm.first_offset == 0, "something refused was stored: {confirm:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_refused_batch_ends_its_stream_after_what_came_before() {
    scenario::run("a_refused_batch_ends_its_stream_after_what_came_before", LIMIT, async |scenario| {
        let mut broker = BrokerClient::new(prepared(scenario).await?);
        let stream = vec![
            open(QUEUE),
            publish(1, batch(2, 10)),
            publish(2, batch(1, 2 << 20)),
            publish(3, batch(1, 10)),
        ];
        let mut answers = broker.publish(requests(stream)).await?.into_inner();
        let mut confirmed = Vec::new();
        let status = loop {
            match time::timeout(ANSWER_LIMIT, answers.message()).await.context("no answer")? {
                Ok(Some(answer)) => {
                    confirmed.extend(answer.confirms.into_iter().map(|confirm| confirm.sequence));
                }
                Ok(None) => anyhow::bail!("the stream ended as if all were well"),
                Err(status) => break status,
            }
        };
        check_status("a large message", &status, Code::InvalidArgument, Reason::MessageTooLarge)?;
        ensure!(confirmed == [1], "confirmed: {confirmed:?}");
        let request = GetQueueRequest { name: QUEUE.to_owned() };
        let queue =
            QueuesClient::new(scenario.cluster.channel(1)?).get_queue(request).await?.into_inner().queue;
        let next_offset = queue.and_then(|queue| queue.counts).unwrap_or_default().next_offset;
        ensure!(next_offset == 2, "{next_offset} messages are stored");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn consuming_refuses_what_was_never_delivered() {
    scenario::run("consuming_refuses_what_was_never_delivered", LIMIT, async |scenario| {
        let mut broker = BrokerClient::new(prepared(scenario).await?);
        broker.send(send(QUEUE, batch(1, 10))).await?;

        let credit = ConsumeRequest { request: Some(consume_request::Request::Credit(Credit::default())) };
        let invalid = Code::InvalidArgument;
        let cases = [
            ("credit first", vec![credit], invalid, Reason::WrongFirstMessage),
            (
                "two openings",
                vec![subscribe(QUEUE, "mail"), subscribe(QUEUE, "mail")],
                invalid,
                Reason::WrongFirstMessage,
            ),
            ("an unknown queue", vec![subscribe("unknown", "mail")], Code::NotFound, Reason::QueueNotFound),
            ("a bad group", vec![subscribe(QUEUE, "-")], invalid, Reason::InvalidName),
        ];
        for (what, stream, code, reason) in cases {
            ended(&format!("a consumer with {what}"), broker.consume(requests(stream)).await, code, reason)
                .await?;
        }
        let request = BrowseRequest { queue: "unknown".to_owned(), ..BrowseRequest::default() };
        ended("browsing", broker.browse(request).await, Code::NotFound, Reason::QueueNotFound).await?;
        let request =
            ReceiveRequest { queue: "unknown".to_owned(), group: "mail".to_owned(), ..Default::default() };
        refused("receiving", broker.receive(request).await, Code::NotFound, Reason::QueueNotFound)?;

        acks_never_delivered(&mut broker).await?;
        let tokens = ["", "garbage", "0000000000000000000000000000000000000000", "\u{1f9a2}"];
        let request = SettleRequest {
            queue: QUEUE.to_owned(),
            group: "other".to_owned(),
            acks: tokens.map(str::to_owned).into(),
            ..SettleRequest::default()
        };
        // A group is made by whoever first consumes in its name, not by settling.
        let request_receive = ReceiveRequest {
            queue: QUEUE.to_owned(),
            group: "other".to_owned(),
            ..ReceiveRequest::default()
        };
        broker.receive(request_receive).await?;
        let failures = broker.settle(request).await?.into_inner().failures;
        ensure!(failures.len() == tokens.len(), "a made-up token was taken: {failures:?}");
        for failure in failures {
            let is_told = [Reason::LeaseTokenMalformed, Reason::LeaseLost].contains(&failure.reason());
            ensure!(is_told && is_sentence(&failure.message), "{failure:?}");
        }
        Ok(())
    })
    .await;
}

/// Acks offsets that do not exist, on a stream that goes on afterwards.
async fn acks_never_delivered(broker: &mut BrokerClient<Channel>) -> Result<()> {
    let settle = |settle_id, first, count| {
        let acks = vec![OffsetRange { first, count }];
        let settle = StreamSettle { settle_id, acks, ..StreamSettle::default() };
        ConsumeRequest { request: Some(consume_request::Request::Settle(settle)) }
    };
    let far_away = [(1, 7, 1), (2, 1_000_000, 4_000), (3, u64::MAX - 1, u32::MAX), (4, u64::MAX, 1)];
    let mut stream = vec![subscribe(QUEUE, "acks")];
    stream.extend(far_away.map(|(settle_id, first, count)| settle(settle_id, first, count)));
    let mut answers = broker.consume(requests(stream)).await?.into_inner();
    let mut settled = Vec::new();
    while settled.len() < far_away.len() {
        let answer = time::timeout(ANSWER_LIMIT, answers.message()).await.context("no answer")??;
        settled.extend(answer.context("the stream ended")?.settled);
    }
    for (result, (settle_id, ..)) in settled.iter().zip(far_away) {
        ensure!(result.settle_id == settle_id, "answers out of order: {settled:?}");
        let failure = result.failures.first().with_context(|| format!("{settle_id} was taken"))?;
        ensure!(failure.reason() == Reason::NotDelivered && is_sentence(&failure.message), "{failure:?}");
    }
    Ok(())
}

#[tokio::test]
async fn garbage_on_the_port_harms_nobody() {
    scenario::run("garbage_on_the_port_harms_nobody", LIMIT, async |scenario| {
        let channel = prepared(scenario).await?;
        let address = scenario.cluster.grpc_address(1)?;
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let garbage: Vec<u8> =
            (0..100_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let endless_headers = [&preface[..], &[0xff, 0xff, 0xff, 0x01, 0x04, 0, 0, 0, 1]].concat();
        let cases = [
            Vec::new(),
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            garbage.clone(),
            [&preface[..], &garbage[..]].concat(),
            endless_headers,
        ];
        for bytes in cases {
            let mut stream = TcpStream::connect(address).await?;
            // The node may close while this is written.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            let read = async { stream.read_to_end(&mut Vec::new()).await };
            let closed = time::timeout(ANSWER_LIMIT, read).await;
            ensure!(closed.is_ok(), "{} bytes of garbage keep a connection open", bytes.len());
        }
        let mut broker = BrokerClient::new(channel);
        broker.send(send(QUEUE, batch(1, 10))).await?;
        scenario.cluster.wait_ready().await
    })
    .await;
}
