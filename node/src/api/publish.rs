//! Publishing: batches in, confirms out, in order.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use sha2::{Digest as _, Sha256};
use skein_proto::{
    ids::{ProducerId, Sequence, ShardId},
    limits,
    node::{
        Confirm, PublishBatch, PublishOpen, PublishOpened, PublishRequest, PublishResponse, Routed,
        RoutedBatch, SendRequest, SendResponse, publish_request::Request as Inbound,
    },
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::{
    Api,
    names::QueueRef,
    status::{self, Reason},
};
use crate::{
    batch::{self, Checked, Fields, MessageLimits},
    broker::{self, BatchRun, EachMessage, IdHash, Outcome},
    offsets::OffsetSet,
    raft::{CommandOutcome, Group, ProposeError, Proposed},
    tasks,
    telemetry::TRACES,
};

/// Responses that wait for the client to read them. Confirms gather in the one behind them.
const RESPONSES_MAX: usize = 16;

/// Confirms in one response.
const CONFIRMS_PER_RESPONSE_MAX: usize = limits::PRODUCER_BATCHES_IN_FLIGHT_MAX;

pub(super) type Responses = BoxStream<'static, Result<PublishResponse, Status>>;

/// A batch on its way, or why the stream ends here.
enum Pending {
    Batch { sequence: u64, outcome: oneshot::Receiver<Result<CommandOutcome, ProposeError>> },
    Refused(Status),
}

/// A batch that is to be stored.
pub(super) struct Submission {
    pub(super) producer: u64,
    pub(super) sequence: u64,
    pub(super) batch: Bytes,
    /// What it is of a batch that was published to a topic; nothing for one that was published to the queue.
    pub(super) routed: Option<Routed>,
    /// How many partitions its publisher spreads messages over; 0 for one that does not.
    pub(super) partitions: u32,
    /// Its messages are stored whatever their ids.
    pub(super) ignores_ids: bool,
    pub(super) message_bytes_max: usize,
}

/// One open publish stream.
struct Publisher {
    api: Arc<Api>,
    group: Arc<Group>,
    queue: QueueRef,
    producer: u64,
    partitions: u32,
}

impl Api {
    /// Publishes one batch to a queue whose shard this node leads.
    pub(super) async fn send(
        &self,
        queue: &QueueRef,
        request: SendRequest,
        message_bytes_max: usize,
    ) -> Result<SendResponse, Status> {
        self.ensure_open(queue).await?;
        let SendRequest { producer_id: producer, sequence, batch, partitions, .. } = request;
        let ignores_ids = request.ignore_message_ids;
        self.check_partitions(queue, partitions)?;
        let group = Arc::clone(self.group(queue.shard)?);
        let submission = Submission {
            producer,
            sequence,
            batch,
            routed: None,
            partitions,
            ignores_ids,
            message_bytes_max,
        };
        let pending = self.submit(&group, queue, submission).await?;
        let outcome = pending.await.unwrap_or(Err(ProposeError::OutcomeUnknown));
        let confirm = confirm(sequence, outcome, &queue.name)?;
        Ok(SendResponse { confirm: Some(confirm), also: Vec::new() })
    }

    /// Serves a publish stream for a queue whose shard this node leads.
    pub(super) async fn publish(
        self: Arc<Self>,
        queue: QueueRef,
        open: PublishOpen,
        inbound: Streaming<PublishRequest>,
    ) -> Result<Responses, Status> {
        self.ensure_open(&queue).await?;
        let group = Arc::clone(self.group(queue.shard)?);
        // Before the client sends what it has, which would be in vain, again and again.
        self.ensure_room(&group)?;
        self.check_partitions(&queue, open.partitions)?;
        let routed = match open.partitions {
            0 => Vec::new(),
            _ => routed_by(&group, &queue, open.producer_id),
        };
        let (responses, stream) = self.opened(queue.shard, false, routed);
        let (pending, waiting) = mpsc::channel(limits::PRODUCER_BATCHES_IN_FLIGHT_MAX);
        tasks::spawn(answer(queue.name.clone(), waiting, responses));
        let PublishOpen { producer_id: producer, partitions, .. } = open;
        let publisher = Publisher { api: self, group, queue, producer, partitions };
        tasks::spawn(publisher.take(inbound, pending));
        Ok(stream)
    }

    /// The responses of a publish stream, of which the first is there.
    pub(super) fn opened(
        &self,
        shard: ShardId,
        is_topic: bool,
        routed: Vec<RoutedBatch>,
    ) -> (mpsc::Sender<Result<PublishResponse, Status>>, Responses) {
        let (responses, stream) = mpsc::channel(RESPONSES_MAX);
        let opened = PublishOpened {
            shard_id: shard.get(),
            message_bytes_max: self.message_bytes_max as u64,
            batch_bytes_max: limits::BATCH_BYTES_MAX as u64,
            batch_messages_max: limits::BATCH_MESSAGES_MAX as u32,
            is_topic,
            routed,
        };
        let first = PublishResponse { opened: Some(opened), confirms: Vec::new() };
        // Cannot fail: the channel is empty and its receiver is here.
        let _ = responses.try_send(Ok(first));
        (responses, ReceiverStream::new(stream).boxed())
    }

    /// Checks and admits a batch and sends it on its way.
    pub(super) async fn submit(
        &self,
        group: &Group,
        queue: &QueueRef,
        submission: Submission,
    ) -> Result<oneshot::Receiver<Result<CommandOutcome, ProposeError>>, Status> {
        let Submission { producer, sequence, batch, routed, partitions, ignores_ids, message_bytes_max } =
            submission;
        let deliver_at_ms_max = self.clock.wall_ms() + limits::DELAY_MS_MAX;
        let (by_key, dedups) = group.replica().with_messages(|shard| {
            let settings = shard.queue(queue.id).map(broker::Queue::settings);
            settings.map_or((false, false), |queue| (queue.order_by_key, queue.dedup_window_ms.is_some()))
        });
        let dedups = dedups && !ignores_ids;
        let one_by_one = routed.is_some() || dedups;
        let message_limits =
            MessageLimits { bytes_max: message_bytes_max, deliver_at_ms_max, by_key, one_by_one };
        let Checked { count, runs } = batch::check(&batch, &message_limits).map_err(status::from_batch)?;
        let permit = self.admission.admit(batch.len()).await.map_err(status::from_over_budget)?;
        self.ensure_room(group)?;
        let producer = (producer != 0).then(|| (ProducerId::new(producer), Sequence::new(sequence)));
        let take_trace = |batch: &Bytes| TRACES.take(queue.shard, (queue.id, &queue.name), batch.len());
        if !one_by_one {
            let trace = take_trace(&batch);
            let publish = Proposed::publish(queue.id, producer, count, batch, &runs, partitions);
            return Ok(group.propose_followed(publish, permit, trace).await);
        }
        let follows = |routed: &Routed| (routed.follows != 0).then(|| Sequence::new(routed.follows));
        let origin = routed.as_ref().map(|routed| broker::Routed { follows: follows(routed) });
        let places = routed.map_or_else(|| (0..count).collect(), |routed| routed.places);
        let messages = each_message(&places, &runs, &batch, dedups)?;
        let trace = take_trace(&batch);
        let publish = Proposed::publish_each(queue.id, producer, batch, &messages, origin, partitions);
        Ok(group.propose_followed(publish, permit, trace).await)
    }
}

impl Publisher {
    /// Takes batches until the client ends the stream, one is refused, or this node stops leading.
    async fn take(self, mut inbound: Streaming<PublishRequest>, pending: mpsc::Sender<Pending>) {
        let refused = tokio::select! {
            refused = self.take_batches(&mut inbound, &pending) => refused,
            refused = self.must_end() => Some(refused),
            // Whoever answers has refused one, or has nobody to answer.
            () = pending.closed() => None,
        };
        if let Some(status) = refused {
            // Fails when the client is gone.
            let _ = pending.send(Pending::Refused(status)).await;
        }
    }

    async fn take_batches(
        &self,
        inbound: &mut Streaming<PublishRequest>,
        pending: &mpsc::Sender<Pending>,
    ) -> Option<Status> {
        loop {
            // A place first: a client that reads no confirms gets no more batches taken.
            let place = pending.reserve().await.ok()?;
            let PublishBatch { sequence, batch, routed } = match next_batch(inbound).await {
                Ok(batch) => batch?,
                Err(refused) => return Some(refused),
            };
            match self.submit(sequence, batch, routed).await {
                Ok(outcome) => place.send(Pending::Batch { sequence, outcome }),
                Err(refused) => return Some(refused),
            }
        }
    }

    async fn submit(
        &self,
        sequence: u64,
        batch: Bytes,
        routed: Option<Routed>,
    ) -> Result<oneshot::Receiver<Result<CommandOutcome, ProposeError>>, Status> {
        let message_bytes_max = self.api.message_bytes_max;
        let Self { producer, partitions, .. } = *self;
        let ignores_ids = false;
        let submission =
            Submission { producer, sequence, batch, routed, partitions, ignores_ids, message_bytes_max };
        self.api.submit(&self.group, &self.queue, submission).await
    }

    async fn must_end(&self) -> Status {
        let mut leadership = self.group.leadership();
        let mut stopping = self.api.stopping.clone();
        let node = self.api.node;
        tokio::select! {
            _ = leadership.wait_for(|now| now.leader != Some(node)) => status::leader_moved(),
            _ = stopping.wait_for(|stopping| *stopping) => status::shutting_down(),
        }
    }
}

/// The next batch of a stream. Nothing when its client has ended it.
pub(super) async fn next_batch(
    inbound: &mut Streaming<PublishRequest>,
) -> Result<Option<PublishBatch>, Status> {
    match inbound.message().await {
        Ok(Some(PublishRequest { request: Some(Inbound::Batch(batch)) })) => Ok(Some(batch)),
        Ok(Some(_)) => {
            let message = "a publish stream opens once; what follows are batches";
            Err(status::wrong_first_message(message))
        }
        Ok(None) | Err(_) => Ok(None),
    }
}

/// Answers batches in order, as many at a time as have their outcome. The first that was refused ends the stream.
async fn answer(
    queue: String,
    mut waiting: mpsc::Receiver<Pending>,
    responses: mpsc::Sender<Result<PublishResponse, Status>>,
) {
    let mut pending = VecDeque::new();
    loop {
        if pending.is_empty() {
            match waiting.recv().await {
                Some(next) => pending.push_back(next),
                None => return,
            }
        }
        while pending.len() < limits::PRODUCER_BATCHES_IN_FLIGHT_MAX
            && let Ok(next) = waiting.try_recv()
        {
            pending.push_back(next);
        }
        let mut confirms = Vec::new();
        let refused = gather(&queue, &mut pending, &mut confirms).await;
        if !confirms.is_empty()
            && responses.send(Ok(PublishResponse { opened: None, confirms })).await.is_err()
        {
            return;
        }
        if let Some(status) = refused {
            let _ = responses.send(Err(status)).await;
            return;
        }
    }
}

/// Waits for the first pending batch and takes those behind it that are done. Returns why the stream ends, if it does.
async fn gather(queue: &str, pending: &mut VecDeque<Pending>, confirms: &mut Vec<Confirm>) -> Option<Status> {
    while let Some(next) = pending.pop_front() {
        let (sequence, mut outcome) = match next {
            Pending::Batch { sequence, outcome } => (sequence, outcome),
            Pending::Refused(status) => return Some(status),
        };
        let result = match outcome.try_recv() {
            Ok(result) => result,
            Err(oneshot::error::TryRecvError::Closed) => Err(ProposeError::OutcomeUnknown),
            Err(oneshot::error::TryRecvError::Empty) if confirms.is_empty() => {
                outcome.await.unwrap_or(Err(ProposeError::OutcomeUnknown))
            }
            Err(oneshot::error::TryRecvError::Empty) => {
                pending.push_front(Pending::Batch { sequence, outcome });
                return None;
            }
        };
        match confirm(sequence, result, queue) {
            Ok(confirm) => confirms.push(confirm),
            Err(status) => return Some(status),
        }
        if confirms.len() == CONFIRMS_PER_RESPONSE_MAX {
            return None;
        }
    }
    None
}

/// What a queue has got of a producer's newest batches through a topic.
pub(super) fn routed_by(group: &Group, queue: &QueueRef, producer: u64) -> Vec<RoutedBatch> {
    group.replica().with_messages(|shard| {
        let Some(queue) = shard.queue(queue.id) else { return Vec::new() };
        let batch = |(sequence, places): (Sequence, &OffsetSet)| {
            let places = places.iter().flat_map(|range| range.first.get()..range.end().get());
            // No batch has more messages.
            let places = places.filter_map(|place| u32::try_from(place).ok()).collect();
            RoutedBatch { sequence: sequence.get(), places }
        };
        queue.routed_by(ProducerId::new(producer)).map(batch).collect()
    })
}

/// What became of a batch, as its publisher hears it.
pub(super) fn confirm(
    sequence: u64,
    outcome: Result<CommandOutcome, ProposeError>,
    queue: &str,
) -> Result<Confirm, Status> {
    match outcome.map_err(status::from_propose)? {
        CommandOutcome::Shard(Outcome::Published { first_offset, count, duplicate }) => {
            Ok(Confirm { sequence, first_offset: first_offset.get(), count, duplicate, ..Confirm::default() })
        }
        CommandOutcome::Shard(outcome) => Err(status::from_outcome(&outcome, queue)),
        CommandOutcome::Catalog(outcome) => unreachable!("a message shard answered {outcome:?}"),
    }
}

/// Each message of a batch, and its place in the batch that was published; with its id where ids count.
fn each_message(
    places: &[u32],
    runs: &[BatchRun],
    batch: &[u8],
    with_ids: bool,
) -> Result<Vec<EachMessage>, Status> {
    if places.len() != runs.len() || !places.is_sorted_by(|before, after| before < after) {
        let message = "the places of a routed batch are not one for each message, rising";
        return Err(status::status(Code::InvalidArgument, Reason::MalformedMessage, message));
    }
    let mut messages = batch::encoded_messages(batch);
    let each = places.iter().zip(runs).map(|(&place, run)| {
        let BatchRun { length, properties, delay_ms, .. } = *run;
        let id = messages.next().filter(|_| with_ids).and_then(|(_, message)| id_of(message));
        EachMessage { place, length, properties, delay_ms, id }
    });
    Ok(each.collect())
}

/// What stands for the id of a message, if it has one.
fn id_of(message: &[u8]) -> Option<IdHash> {
    let id = Fields::of(message).message_id();
    if id.is_empty() {
        return None;
    }
    let hash = Sha256::digest(id);
    let half = hash.first_chunk().expect("a SHA-256 has 32 bytes");
    Some(IdHash(*half))
}
