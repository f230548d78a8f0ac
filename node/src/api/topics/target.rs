//! The way from a topic to one queue: to its shard here, or over a stream to the node that leads it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use skein_proto::{
    limits,
    node::{
        Confirm, PublishBatch, PublishOpen, PublishRequest, PublishResponse, Routed, RoutedBatch,
        publish_request::Request as Outbound,
    },
};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use crate::{
    api::{
        Api, forward,
        names::QueueRef,
        publish::{self, Submission},
        route::{self, Route},
        status,
    },
    raft::{Group, ProposeError},
    tasks,
};

/// Batches that wait for the stream to take them.
const REQUESTS_MAX: usize = 16;

/// How long the other node may take to open the stream.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);

/// A batch that another node is to answer. Its bytes count until then, whether or not anybody waits.
pub(super) struct Waiting {
    reply: oneshot::Sender<Result<Confirm, Status>>,
    _permit: OwnedSemaphorePermit,
}

pub(super) type Confirmed = BoxFuture<'static, Result<Confirm, Status>>;

/// One queue's end of a topic.
pub(super) enum Target {
    /// This node leads the queue's shard.
    Local { api: Arc<Api>, group: Arc<Group>, queue: Box<QueueRef>, producer: u64, partitions: u32 },
    /// Another node does.
    Remote {
        api: Arc<Api>,
        requests: mpsc::Sender<PublishRequest>,
        /// In the order of the requests.
        waiting: mpsc::Sender<Waiting>,
    },
}

impl Target {
    /// Opens the way to a queue, or to one of so many partitions; and says what that has got of the producer's newest
    /// batches. Once it knows of that many, it takes nothing more that was spread over fewer.
    pub(super) async fn open(
        api: &Arc<Api>,
        queue: QueueRef,
        producer: u64,
        partitions: u32,
    ) -> Result<(Self, Vec<RoutedBatch>), Status> {
        match api.route(queue.shard, false).await? {
            Route::Local => {
                api.ensure_open(&queue).await?;
                api.check_partitions(&queue, partitions)?;
                let group = Arc::clone(api.group(queue.shard)?);
                let stored = publish::routed_by(&group, &queue, producer);
                let (api, queue) = (Arc::clone(api), Box::new(queue));
                Ok((Self::Local { api, group, queue, producer, partitions }, stored))
            }
            Route::Remote(channel) => Self::connect(api, channel, queue, producer, partitions).await,
        }
    }

    async fn connect(
        api: &Arc<Api>,
        channel: Channel,
        QueueRef { name: queue, shard, .. }: QueueRef,
        producer_id: u64,
        partitions: u32,
    ) -> Result<(Self, Vec<RoutedBatch>), Status> {
        let (requests, outbound) = mpsc::channel(REQUESTS_MAX);
        let open = PublishOpen { queue, producer_id, partitions, ..PublishOpen::default() };
        // Cannot fail: the channel is empty and its receiver is here.
        let _ = requests.try_send(PublishRequest { request: Some(Outbound::Open(open)) });
        let publish = route::forwarded(ReceiverStream::new(outbound));
        let mut broker = forward::broker(channel);
        let opened = async {
            let mut responses = broker.publish(publish).await?.into_inner();
            // Nobody needs to wait for what a queue without partitions has.
            let first = if partitions > 0 { responses.message().await? } else { None };
            let stored = first.and_then(|first| first.opened).map(|opened| opened.routed);
            Ok((responses, stored.unwrap_or_default()))
        };
        let opened = tokio::time::timeout(CONNECT_WAIT_MAX, opened).await;
        let opened = opened.map_err(|_| status::no_leader(shard))?;
        let (responses, stored) = opened.map_err(forward::failed)?;
        let (waiting, to_answer) = mpsc::channel(limits::PRODUCER_BATCHES_IN_FLIGHT_MAX);
        tasks::spawn(answer(responses, to_answer));
        Ok((Self::Remote { api: Arc::clone(api), requests, waiting }, stored))
    }

    /// Sends what the queue gets of a batch on its way, in the order of the calls. Its bytes are taken from the node's
    /// budget until the outcome is known.
    pub(super) async fn send(
        &self,
        sequence: u64,
        batch: Bytes,
        routed: Routed,
    ) -> Result<Confirmed, Status> {
        match self {
            Self::Local { api, group, queue, producer, partitions } => {
                let submission = Submission {
                    producer: *producer,
                    sequence,
                    batch,
                    routed: Some(routed),
                    partitions: *partitions,
                    ignores_ids: false,
                    message_bytes_max: api.message_bytes_max,
                };
                let outcome = api.submit(group, queue, submission).await?;
                let name = queue.name.clone();
                let confirm = async move {
                    let outcome = outcome.await.unwrap_or(Err(ProposeError::OutcomeUnknown));
                    publish::confirm(sequence, outcome, &name)
                };
                Ok(confirm.boxed())
            }
            Self::Remote { api, requests, waiting } => {
                let permit = api.admission.admit(batch.len()).await.map_err(status::from_over_budget)?;
                let (reply, outcome) = oneshot::channel();
                let batch = PublishBatch { sequence, batch, routed: Some(routed) };
                let request = PublishRequest { request: Some(Outbound::Batch(batch)) };
                // When the stream has ended, the reply is dropped here or there, which says so.
                if waiting.send(Waiting { reply, _permit: permit }).await.is_ok() {
                    let _ = requests.send(request).await;
                }
                let confirm = async move {
                    let unknown = |_| Err(status::from_propose(ProposeError::OutcomeUnknown));
                    outcome.await.unwrap_or_else(unknown)
                };
                Ok(confirm.boxed())
            }
        }
    }
}

/// Hands out the answers of another node. What is not answered when the stream ends fails for the same reason.
async fn answer(mut responses: Streaming<PublishResponse>, mut waiting: mpsc::Receiver<Waiting>) {
    let ended = loop {
        match responses.message().await {
            Ok(Some(response)) => {
                for confirm in response.confirms {
                    let Some(next) = waiting.recv().await else { return };
                    // Fails when the publisher is gone.
                    let _ = next.reply.send(Ok(confirm));
                }
            }
            Ok(None) => break status::leader_moved(),
            Err(status) => break forward::failed(status),
        }
    };
    while let Some(next) = waiting.recv().await {
        let _ = next.reply.send(Err(ended.clone()));
    }
}
