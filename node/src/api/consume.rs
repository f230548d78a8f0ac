//! Consuming: deliveries out, acks in.
//!
//! A stream has two tasks, so that a client that is slow to read can still settle: one takes what the client says,
//! the other sends deliveries and answers. Bodies are read here and not by the shard's delivery task, so that cold
//! reads of one consumer delay no other.

use std::{sync::Arc, time::Duration};

use futures::{
    StreamExt as _,
    future::BoxFuture,
    stream::{BoxStream, FuturesOrdered},
};
use skein_proto::{
    ids::Offset,
    limits,
    node::{
        ConsumeRequest, ConsumeResponse, Credit as CreditRequest, DeliveryBatch, Leave,
        OffsetRange as RangeRequest, Resume, SettleFailure, SettleResult, StreamSettle, Subscribe,
        Subscribed, consume_request::Request as Inbound,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{
    Api,
    names::{self, QueueRef},
    partitions::MorePartitions,
    status,
    wanted::{Wanted, WantedReader},
};
use crate::{
    broker::{Outcome, Position},
    dispatch::{Claim, ConsumerId, Credit, GroupKey},
    offsets::OffsetRange,
    shard::{
        Coming, Company, DeliveryHandle, Outbox, OutboxItem, SettleError, SettleItem, SettleKind,
        Subscription, Unsettled,
    },
    tasks,
};

/// What a consumer may hold when it does not say.
const CREDIT_DEFAULT: Credit = Credit { messages: 1_000, bytes: 8 << 20 };

/// The longest lease and the longest delay of a returned message: a day.
pub(super) const DURATION_MS_MAX: u32 = limits::SETTLE_DURATION_MS_MAX;

/// A consumer that does not read for as long as a lease lasts has stalled; a short lease says little about a pause of
/// the network, a long one nothing about a client.
const STALLED_MIN: Duration = Duration::from_secs(5);
const STALLED_MAX: Duration = Duration::from_secs(60);

/// How long a client may take to read why its stream ends.
const LAST_WORD_WAIT_MAX: Duration = Duration::from_secs(1);

/// Responses that wait for the client to read them.
const RESPONSES_MAX: usize = 4;

/// Bytes of bodies after which a response is sent off.
const RESPONSE_BYTES: usize = 512 << 10;

/// Deliveries taken from the outbox at a time.
const ITEMS_PER_TURN: usize = 64;

type Responses = mpsc::Sender<Result<ConsumeResponse, Status>>;
type Settling = BoxFuture<'static, (u64, Result<Vec<Unsettled>, SettleError>)>;

impl Api {
    /// Adds a consumer to a group of a queue whose shard this node leads; the group is made if there is none.
    pub(super) async fn subscribe(
        &self,
        queue: &QueueRef,
        group_name: &str,
        credit: Credit,
        coming: Coming,
    ) -> Result<(GroupKey, DeliveryHandle, Subscription), Status> {
        names::check_group_name(group_name)?;
        self.ensure_open(queue).await?;
        let delivery = self.delivery(queue.shard).await?;
        let group = if coming.was_there() {
            // One that was deleted meanwhile does not come to life by those who were in it.
            self.find_group(queue, group_name)?
        } else {
            let made = self.server(queue.shard)?.ensure_group(queue.id, group_name, Position::First).await;
            match made.map_err(status::from_propose)? {
                Outcome::GroupCreated { group, .. } => group,
                outcome => return Err(status::from_outcome(&outcome, &queue.name)),
            }
        };
        let key = GroupKey { queue: queue.id, group };
        let subscription = delivery
            .subscribe(key, credit, coming)
            .await
            .map_err(|error| status::from_subscribe(error, &queue.name, group_name))?;
        Ok((key, delivery, subscription))
    }

    /// Serves a consume stream for a queue whose shard this node leads.
    pub(super) async fn consume(
        self: Arc<Self>,
        queue: QueueRef,
        subscribe: Subscribe,
        inbound: Streaming<ConsumeRequest>,
    ) -> Result<BoxStream<'static, Result<ConsumeResponse, Status>>, Status> {
        let (responses, stream) = mpsc::channel(RESPONSES_MAX);
        if !self.came_later(&queue) {
            self.begin_consuming(queue, subscribe, inbound, responses).await?;
        } else {
            // So that the client knows that somebody is there.
            let _ = responses.try_send(Ok(ConsumeResponse::default()));
            tasks::spawn(async move {
                let mut stopping = self.stopping.clone();
                let are_done = tokio::select! {
                    () = self.wait_for_older_partitions(&queue, &subscribe.group) => true,
                    () = responses.closed() => return,
                    _ = stopping.wait_for(|stopping| *stopping) => false,
                };
                let begun = if are_done {
                    self.begin_consuming(queue, subscribe, inbound, responses.clone()).await
                } else {
                    Err(status::shutting_down())
                };
                if let Err(refused) = begun {
                    let _ = responses.send(Err(refused)).await;
                }
            });
        }
        Ok(ReceiverStream::new(stream).boxed())
    }

    async fn begin_consuming(
        self: Arc<Self>,
        queue: QueueRef,
        subscribe: Subscribe,
        inbound: Streaming<ConsumeRequest>,
        responses: Responses,
    ) -> Result<(), Status> {
        let credit = subscribe.credit.map_or(Ok(CREDIT_DEFAULT), check_credit)?;
        let resume = subscribe.resume.map(claim).transpose()?;
        let Subscribe { group, priority, .. } = subscribe;
        let coming = Coming::ToStay { priority, resume };
        let (key, delivery, subscription) = self.subscribe(&queue, &group, credit, coming).await?;
        let company = subscription.company().expect("it has come to stay");
        let consumer = subscription.consumer();
        let more_partitions = MorePartitions::of(&self, &queue);
        let resumed = subscription.resumed();
        let first = ConsumeResponse {
            partitions: more_partitions.known,
            group_consumers: company.told(),
            subscribed: Some(Subscribed {
                shard_id: queue.shard.get(),
                lease_ms: queue.settings.lease_ms,
                resumed: resumed.held.iter().flat_map(range_requests).collect(),
                settled: resumed.settled.iter().flat_map(range_requests).collect(),
                given_up: resumed.given_up.iter().flat_map(range_requests).collect(),
                consumer_id: consumer.get(),
            }),
            ..ConsumeResponse::default()
        };
        // Cannot be full, and fails when the client is gone.
        let _ = responses.try_send(Ok(first));
        let (settling, settled) = mpsc::channel(limits::SETTLES_IN_FLIGHT_MAX);
        let server = self.server(queue.shard)?;
        let replica = Arc::clone(server.group().replica());
        let reader = WantedReader::new(key, replica, delivery.clone(), server.bodies().reader());
        let sender = Sender {
            responses,
            stalled_after: Duration::from_millis(u64::from(queue.settings.lease_ms))
                .clamp(STALLED_MIN, STALLED_MAX),
            stopping: self.stopping.clone(),
            more_partitions,
            company,
        };
        let taker = Taker { delivery, key, consumer, settling };
        tasks::spawn(sender.run(subscription, reader, settled));
        tasks::spawn(taker.run(inbound));
        Ok(())
    }
}

/// Takes what the client says. Its end, for whatever reason, ends the sender by the closed channel between them.
struct Taker {
    delivery: DeliveryHandle,
    key: GroupKey,
    consumer: ConsumerId,
    settling: mpsc::Sender<Result<Settling, Status>>,
}

impl Taker {
    async fn run(self, mut inbound: Streaming<ConsumeRequest>) {
        loop {
            // A place first: a client that reads no answers gets no more settlements taken.
            let Ok(place) = self.settling.reserve().await else { return };
            let request = tokio::select! {
                request = inbound.message() => request,
                () = self.settling.closed() => return,
            };
            match request {
                Ok(Some(ConsumeRequest { request: Some(Inbound::Settle(settle)) })) => {
                    let settle_id = settle.settle_id;
                    match settle_items(self.consumer, settle) {
                        Ok(items) => {
                            let outcome = self.delivery.settle_later(self.key, items).await;
                            place.send(Ok(Box::pin(async move { (settle_id, outcome.await) })));
                        }
                        Err(refused) => return place.send(Err(refused)),
                    }
                }
                Ok(Some(ConsumeRequest { request: Some(Inbound::Credit(credit)) })) => {
                    match check_credit(credit) {
                        Ok(credit) => self.delivery.set_credit(self.consumer, credit).await,
                        Err(refused) => return place.send(Err(refused)),
                    }
                }
                Ok(Some(ConsumeRequest { request: Some(Inbound::Leave(Leave { seen })) })) => {
                    match ranges("leave.seen", seen) {
                        Ok(seen) => self.delivery.leave(self.consumer, seen).await,
                        Err(refused) => return place.send(Err(refused)),
                    }
                }
                Ok(Some(_)) => {
                    let message = "a consume stream subscribes once; credit, settlements and a leave follow";
                    return place.send(Err(status::wrong_first_message(message)));
                }
                Ok(None) | Err(_) => return,
            }
        }
    }
}

/// Sends deliveries and answers. When it ends, the subscription does.
struct Sender {
    responses: Responses,
    stalled_after: Duration,
    stopping: tokio::sync::watch::Receiver<bool>,
    more_partitions: MorePartitions,
    company: Company,
}

impl Sender {
    async fn run(
        mut self,
        mut subscription: Subscription,
        mut reader: WantedReader,
        settled: mpsc::Receiver<Result<Settling, Status>>,
    ) {
        let (mut stopping, gone) = (self.stopping.clone(), self.responses.clone());
        let end = tokio::select! {
            end = self.send_all(subscription.outbox(), &mut reader, settled) => end,
            () = gone.closed() => None,
            _ = stopping.wait_for(|stopping| *stopping) => Some(status::shutting_down()),
        };
        // What it holds goes to others now, not when the client has taken the last word.
        drop(subscription);
        if let Some(status) = end {
            let _ = tokio::time::timeout(LAST_WORD_WAIT_MAX, self.responses.send(Err(status))).await;
        }
    }

    /// Returns why the stream ends; nothing when the client ended it.
    async fn send_all(
        &mut self,
        outbox: &mut Outbox,
        reader: &mut WantedReader,
        mut settled: mpsc::Receiver<Result<Settling, Status>>,
    ) -> Option<Status> {
        let mut items = Vec::new();
        let mut settling = FuturesOrdered::new();
        let mut client_is_there = true;
        while client_is_there || !settling.is_empty() {
            let mut response = ConsumeResponse::default();
            tokio::select! {
                biased;
                Some(result) = settling.next(), if !settling.is_empty() => response.settled.push(settle_result(result)),
                next = settled.recv(), if client_is_there => match next {
                    Some(Ok(next)) => {
                        settling.push_back(next);
                        continue;
                    }
                    Some(Err(refused)) => return Some(refused),
                    None => {
                        client_is_there = false;
                        continue;
                    }
                },
                // Before the deliveries, of which there may be some at any time.
                consumers = self.company.next() => response.group_consumers = consumers,
                count = outbox.receive(&mut items, ITEMS_PER_TURN), if client_is_there => if count == 0 {
                    return Some(if reader.was_moved() { status::group_moved() } else { status::leader_moved() });
                },
                partitions = self.more_partitions.next() => response.partitions = partitions,
            }
            if let Err(end) = self.send(response, &mut items, reader).await {
                return end;
            }
        }
        None
    }

    /// Sends a response with the items' messages added, or as many responses as their bytes need.
    async fn send(
        &self,
        mut response: ConsumeResponse,
        items: &mut Vec<OutboxItem>,
        reader: &mut WantedReader,
    ) -> Result<(), Option<Status>> {
        let mut bytes = 0;
        for item in items.drain(..) {
            for Wanted { first, count, batch } in reader.read(&item).await.map_err(Some)? {
                bytes += batch.len();
                response.deliveries.push(DeliveryBatch {
                    first_offset: first.get(),
                    count,
                    attempt: item.delivery.attempt,
                    published_at_ms: item.slice.published_at_ms,
                    batch,
                });
            }
            if bytes >= RESPONSE_BYTES {
                self.send_one(std::mem::take(&mut response)).await?;
                bytes = 0;
            }
        }
        reader.ack_unwanted().await;
        if response == ConsumeResponse::default() {
            return Ok(());
        }
        self.send_one(response).await
    }

    async fn send_one(&self, response: ConsumeResponse) -> Result<(), Option<Status>> {
        match tokio::time::timeout(self.stalled_after, self.responses.send(Ok(response))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(None),
            Err(_) => Err(Some(status::stalled())),
        }
    }
}

fn settle_items(consumer: ConsumerId, settle: StreamSettle) -> Result<Vec<SettleItem>, Status> {
    let ranges = settle.acks.len() + settle.nacks.len() + settle.extends.len();
    check_settle_count(ranges)?;
    let item = |range: RangeRequest, kind| {
        let range = OffsetRange::new(Offset::new(range.first), u64::from(range.count));
        SettleItem { consumer, range, kind }
    };
    let acks = settle.acks.into_iter().map(|range| Ok(item(range, SettleKind::Ack)));
    let nacks = settle.nacks.into_iter().map(|nack| {
        let kind = returned(nack.delay_ms, nack.reject)?;
        Ok(item(nack.offsets.unwrap_or_default(), kind))
    });
    let extends = settle.extends.into_iter().map(|extend| {
        let kind = SettleKind::Extend { lease_ms: check_duration("lease_ms", extend.lease_ms)? };
        Ok(item(extend.offsets.unwrap_or_default(), kind))
    });
    acks.chain(nacks).chain(extends).collect()
}

fn settle_result((settle_id, outcome): (u64, Result<Vec<Unsettled>, SettleError>)) -> SettleResult {
    let failures = match outcome {
        Ok(unsettled) => unsettled.into_iter().map(settle_failure).collect(),
        Err(error) => {
            // The whole settlement: an empty range stands for all of it.
            let status = status::from_settle(error);
            let reason = match error {
                SettleError::Ended => skein_proto::node::Reason::NoLeader,
                SettleError::OutcomeUnknown => skein_proto::node::Reason::OutcomeUnknown,
            };
            vec![SettleFailure { offsets: None, reason: reason.into(), message: status.message().to_owned() }]
        }
    };
    SettleResult { settle_id, failures }
}

fn settle_failure(unsettled: Unsettled) -> SettleFailure {
    let (reason, message) = status::refusal(unsettled.refusal);
    SettleFailure {
        offsets: Some(RangeRequest {
            first: unsettled.range.first.get(),
            // A client asked with ranges of u32.
            count: u32::try_from(unsettled.range.count).unwrap_or(u32::MAX),
        }),
        reason: reason.into(),
        message: message.to_owned(),
    }
}

fn claim(resume: Resume) -> Result<Claim, Status> {
    let Resume { held, group_consumers, consumer_id } = resume;
    Ok(Claim { held: ranges("resume.held", held)?, group_consumers, before: ConsumerId::new(consumer_id) })
}

/// What a client says that it holds.
fn ranges(field: &str, held: Vec<RangeRequest>) -> Result<Vec<OffsetRange>, Status> {
    if held.len() > limits::RESUME_RANGES_MAX {
        let (count, max) = (held.len(), limits::RESUME_RANGES_MAX);
        let message = format!("{field} has {count} ranges, and {max} is the most; name fewer");
        return Err(status::invalid_setting(message));
    }
    let range = |range: RangeRequest| OffsetRange::new(Offset::new(range.first), u64::from(range.count));
    Ok(held.into_iter().map(range).collect())
}

/// A range in as many parts as a client's counts need.
fn range_requests(range: OffsetRange) -> impl Iterator<Item = RangeRequest> {
    let step = u64::from(u32::MAX);
    (0..range.count.div_ceil(step)).map(move |part| RangeRequest {
        first: range.first.get() + part * step,
        count: u32::try_from((range.count - part * step).min(step)).unwrap_or(u32::MAX),
    })
}

fn check_credit(credit: CreditRequest) -> Result<Credit, Status> {
    let CreditRequest { messages, bytes } = credit;
    if messages > limits::CREDIT_MESSAGES_MAX {
        let max = limits::CREDIT_MESSAGES_MAX;
        return Err(status::invalid_setting(format!("credit.messages is {messages}; {max} is the most")));
    }
    Ok(Credit { messages, bytes })
}

pub(super) fn check_settle_count(count: usize) -> Result<(), Status> {
    if count > limits::SETTLE_RANGES_MAX {
        let max = limits::SETTLE_RANGES_MAX;
        let message = format!("the settlement has {count} parts, and {max} is the most; send several");
        return Err(status::invalid_setting(message));
    }
    Ok(())
}

/// What becomes of messages that a consumer does not ack.
pub(super) fn returned(delay_ms: Option<u32>, reject: bool) -> Result<SettleKind, Status> {
    if !reject {
        return Ok(SettleKind::Nack { delay_ms: check_delay(delay_ms)? });
    }
    if delay_ms.is_some() {
        let message = "a message that is rejected is not delivered again; leave out delay_ms, or reject";
        return Err(status::invalid_setting(message));
    }
    Ok(SettleKind::Reject)
}

fn check_delay(delay_ms: Option<u32>) -> Result<Option<u32>, Status> {
    delay_ms.map(|delay_ms| check_duration("delay_ms", delay_ms)).transpose()
}

pub(super) fn check_duration(field: &str, duration_ms: u32) -> Result<u32, Status> {
    if duration_ms > DURATION_MS_MAX {
        let message = format!("{field} is {duration_ms}; a day, {DURATION_MS_MAX}, is the most");
        return Err(status::invalid_setting(message));
    }
    Ok(duration_ms)
}
