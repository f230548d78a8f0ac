//! Publishing to a topic: each batch goes to the queues that want any of it, and is confirmed when all of them have it.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future};
use skein_proto::{
    ids::{ProducerId, QueueId},
    limits,
    node::{
        Confirm, PublishBatch, PublishOpen, PublishRequest, PublishResponse, Reason, SendRequest,
        SendResponse,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::{fan_out::FanOut, outlet::Outlet, routing::RoutingTable, target::Confirmed};
use crate::{
    api::{
        Api,
        partitions::GROWTHS_MAX,
        publish::{self, Responses},
        status,
    },
    batch::{self, Checked, MessageLimits},
    tasks,
};

/// Passes one producer's batches on to the queues of a topic.
struct TopicRouter {
    api: Arc<Api>,
    topic: String,
    producer: u64,
    mandatory: bool,
    outlets: BTreeMap<QueueId, Outlet>,
    /// That of the routing table that was used last.
    revision: u64,
}

impl Api {
    /// Publishes one batch to a topic.
    pub(in crate::api) async fn send_to_topic(
        self: Arc<Self>,
        request: SendRequest,
    ) -> Result<SendResponse, Status> {
        let SendRequest { queue: topic, producer_id, sequence, batch, mandatory, .. } = request;
        for _ in 1..GROWTHS_MAX {
            let mut router = TopicRouter::new(Arc::clone(&self), topic.clone(), producer_id, mandatory);
            match router.pass_on(sequence, batch.clone()).await?.await {
                Err(status) if status::reason_of(&status) == Some(Reason::PartitionsChanged) => {
                    self.catch_up_catalog().await;
                }
                confirm => return Ok(SendResponse { confirm: Some(confirm?), also: Vec::new() }),
            }
        }
        Err(status::partly_stored(&status::partitions_changed(&topic)))
    }

    /// Serves a publish stream for a topic, on whichever node.
    pub(in crate::api) fn publish_to_topic(
        self: Arc<Self>,
        open: PublishOpen,
        inbound: Streaming<PublishRequest>,
    ) -> Responses {
        let (responses, stream) = self.opened(self.entry_shard(&open.queue), true, Vec::new());
        let (pending, waiting) = mpsc::channel(limits::PRODUCER_BATCHES_IN_FLIGHT_MAX);
        tasks::spawn(answer(waiting, responses));
        let router = TopicRouter::new(self, open.queue, open.producer_id, open.mandatory);
        tasks::spawn(router.take(inbound, pending));
        stream
    }
}

impl TopicRouter {
    fn new(api: Arc<Api>, topic: String, producer: u64, mandatory: bool) -> Self {
        Self { api, topic, producer, mandatory, outlets: BTreeMap::new(), revision: 0 }
    }

    /// Takes batches until the client ends the stream, one is refused, or the node stops.
    async fn take(mut self, mut inbound: Streaming<PublishRequest>, pending: mpsc::Sender<Confirmed>) {
        let mut stopping = self.api.stopping.clone();
        let refused = tokio::select! {
            refused = self.take_batches(&mut inbound, &pending) => refused,
            _ = stopping.wait_for(|stopping| *stopping) => Some(status::shutting_down()),
            () = pending.closed() => None,
        };
        if let Some(status) = refused {
            // Fails when the client is gone.
            let _ = pending.send(future::ready(Err(status)).boxed()).await;
        }
    }

    async fn take_batches(
        &mut self,
        inbound: &mut Streaming<PublishRequest>,
        pending: &mpsc::Sender<Confirmed>,
    ) -> Option<Status> {
        loop {
            // A place first: a client that reads no confirms gets no more batches taken.
            let place = pending.reserve().await.ok()?;
            let PublishBatch { sequence, batch, .. } = match publish::next_batch(inbound).await {
                Ok(batch) => batch?,
                Err(refused) => return Some(refused),
            };
            match self.pass_on(sequence, batch).await {
                Ok(confirmed) => place.send(confirmed),
                Err(refused) => return Some(refused),
            }
        }
    }

    /// Sends a batch to the queues that want any of it. They confirm in their own time; batches reach each of them in
    /// the order of the calls.
    async fn pass_on(&mut self, sequence: u64, batch: Bytes) -> Result<Confirmed, Status> {
        let deliver_at_ms_max = self.api.clock.wall_ms() + limits::DELAY_MS_MAX;
        let limits = MessageLimits { deliver_at_ms_max, ..MessageLimits::up_to(self.api.message_bytes_max) };
        let Checked { count, .. } = batch::check(&batch, &limits).map_err(status::from_batch)?;
        if self.producer != 0 && sequence == 0 {
            return Err(status::no_sequence());
        }
        let table = self.table()?;
        let fan_out = FanOut::of(batch, &table);
        let unrouted = fan_out.unrouted;
        if self.mandatory && unrouted > 0 {
            return Err(self.not_routed(unrouted));
        }
        let mut confirmed = Vec::with_capacity(fan_out.places.len());
        for (&queue, places) in &fan_out.places {
            // Nothing when it was deleted a moment ago, bindings and all.
            let sent = match self.outlet(&table, queue).await {
                Ok(Some(outlet)) => outlet.send(sequence, &fan_out, places, &mut confirmed).await,
                Ok(None) => Ok(()),
                Err(refused) => Err(refused),
            };
            match sent {
                Ok(()) => {}
                Err(refused) if confirmed.is_empty() => return Err(refused),
                Err(refused) => return Err(partly(refused)),
            }
        }
        let is_whole = confirmed.len() < 2;
        let is_found_again = is_whole || self.producer != 0;
        let queue_confirms = future::join_all(confirmed);
        let confirm = async move {
            let confirms = queue_confirms.await.into_iter().collect::<Result<Vec<_>, Status>>();
            let confirms = confirms.map_err(|refused| match status::reason_of(&refused) {
                // Sent again, it is spread over all that there are, but for what some of them have.
                Some(Reason::PartitionsChanged) if is_found_again => refused,
                _ if is_whole => refused,
                _ => partly(refused),
            })?;
            let duplicate = !confirms.is_empty() && confirms.iter().all(|confirm| confirm.duplicate);
            let routed_copies = confirms.iter().map(|confirm| confirm.routed_copies).sum();
            Ok(Confirm {
                sequence,
                count,
                duplicate,
                routed_copies,
                unrouted_messages: unrouted,
                first_offset: 0,
            })
        };
        Ok(confirm.boxed())
    }

    /// The way to a queue. Nothing when the queue does not exist any more.
    async fn outlet(&mut self, table: &RoutingTable, queue: QueueId) -> Result<Option<&mut Outlet>, Status> {
        if !self.outlets.contains_key(&queue) {
            let Some(outlet) = Outlet::open(&self.api, queue, self.producer_at(table)).await? else {
                return Ok(None);
            };
            self.outlets.insert(queue, outlet);
        }
        Ok(self.outlets.get_mut(&queue))
    }

    /// As whom the producer publishes to the topic's queues: one that publishes to several topics, or to a queue as
    /// well, has sequences of its own in each of them. 0 for one that asks for no deduplication.
    fn producer_at(&self, table: &RoutingTable) -> u64 {
        match self.producer {
            0 => 0,
            producer => ProducerId::mixed([producer, table.topic().get()]).get(),
        }
    }

    /// How the topic routes now. Lets go of queues that get nothing any more.
    fn table(&mut self) -> Result<Arc<RoutingTable>, Status> {
        let catalog = self.api.groups.catalog().replica();
        let table = catalog.with_catalog(|catalog| self.api.routing_tables.get(catalog, &self.topic));
        let table = table.ok_or_else(|| status::topic_not_found(&self.topic))?;
        if table.revision() != self.revision {
            self.revision = table.revision();
            self.outlets.retain(|queue, _| table.names(*queue));
        }
        Ok(table)
    }

    fn not_routed(&self, unrouted: u32) -> Status {
        let message = format!(
            "topic {:?} has no binding and no alternate queue for {unrouted} of the messages, and the publisher asked \
             to be told; nothing of the batch was stored. Bind a queue (skein topic bind {} QUEUE), name an alternate \
             queue, or publish without mandatory",
            self.topic, self.topic
        );
        status::status(Code::FailedPrecondition, Reason::NotRouted, message)
    }
}

/// One queue could not take its share for the moment, and others may have theirs: so nobody must think that nothing was
/// stored. What has to be told as it is, such as that the queue is full, is.
fn partly(refused: Status) -> Status {
    match status::reason_of(&refused) {
        Some(
            Reason::NoLeader
            | Reason::NotLeader
            | Reason::OverBudget
            | Reason::DiskFull
            | Reason::ShuttingDown
            | Reason::Busy
            | Reason::PartitionsChanged,
        ) => status::partly_stored(&refused),
        _ => refused,
    }
}

/// Answers batches in order, as many at a time as have their outcome. The first that was refused ends the stream.
async fn answer(
    waiting: mpsc::Receiver<Confirmed>,
    responses: mpsc::Sender<Result<PublishResponse, Status>>,
) {
    let max = limits::PRODUCER_BATCHES_IN_FLIGHT_MAX;
    let mut outcomes = ReceiverStream::new(waiting).buffered(max).ready_chunks(max);
    while let Some(chunk) = outcomes.next().await {
        let mut confirms = Vec::with_capacity(chunk.len());
        let mut refused = None;
        for outcome in chunk {
            match outcome {
                Ok(confirm) if refused.is_none() => confirms.push(confirm),
                Ok(_) => {}
                Err(status) if status::reason_of(&status) == Some(Reason::PartitionsChanged) => {
                    refused = refused.or_else(|| Some(status::partly_stored(&status)));
                }
                Err(status) => refused = refused.or(Some(status)),
            }
        }
        let response = PublishResponse { opened: None, confirms };
        if !response.confirms.is_empty() && responses.send(Ok(response)).await.is_err() {
            return;
        }
        if let Some(status) = refused {
            let _ = responses.send(Err(status)).await;
            return;
        }
    }
}
