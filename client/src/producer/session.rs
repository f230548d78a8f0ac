//! Keeps a producer's stream open: connects to the leader, sends batches, takes confirms, and starts over when the
//! stream ends.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use skein_proto::{
    broker::Reason,
    ids::{ProducerId, ShardId},
    node::{self, publish_request::Request},
};
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tonic::{Code, Status};

use super::{
    CLOSE_TIMEOUT,
    batcher::{Settled, UnexpectedConfirm},
    lane::Shared,
    spread::Spread,
};
use crate::{
    calls::broker, client::Client, error::Cause, retry::Backoff, routing::Route, topology::Topology,
};

/// Failures after which other nodes than the leader are tried. At once: moving a producer costs nothing.
const FORWARD_FROM: u32 = 1;

/// How often expired messages are looked for, in parts of the delivery timeout, and at least.
const EXPIRY_CHECKS: u32 = 20;
const EXPIRY_CHECK_INTERVAL_MAX: Duration = Duration::from_millis(250);
const EXPIRY_CHECK_INTERVAL_MIN: Duration = Duration::from_millis(1);

/// The task behind one producer.
pub(super) struct Session {
    client: Client,
    destination: Destination,
    shard: ShardId,
    shared: Arc<Shared>,
    topology: watch::Receiver<Topology>,
    backoff: Backoff,
    expiry_check_interval: Duration,
    /// Where the destination is one of several partitions.
    spread: Option<Arc<Spread>>,
}

/// What a producer publishes to.
#[derive(Debug, Clone, Default)]
pub(super) struct Destination {
    /// Of a queue or a topic.
    pub(super) name: String,
    /// See [`ProducerBuilder::mandatory`](super::ProducerBuilder::mandatory).
    pub(super) mandatory: bool,
    /// Which partition of a queue it is, and of how many; 0 of 0 for what is none.
    pub(super) partition: u32,
    pub(super) partitions: u32,
}

/// Why a stream is over.
#[derive(Debug)]
enum End {
    /// The producer is closed and everything is settled, and the node does not end the stream.
    Finished,
    /// Another node leads.
    Moved,
    /// What it carried was given up.
    Expired,
    Failed(Cause),
}

impl Session {
    pub(super) fn new(
        client: Client,
        destination: Destination,
        shard: ShardId,
        shared: Arc<Shared>,
        delivery_timeout: Duration,
        spread: Option<Arc<Spread>>,
    ) -> Self {
        let topology = client.router().subscribe();
        let expiry_check_interval =
            (delivery_timeout / EXPIRY_CHECKS).clamp(EXPIRY_CHECK_INTERVAL_MIN, EXPIRY_CHECK_INTERVAL_MAX);
        Self {
            client,
            destination,
            shard,
            shared,
            topology,
            backoff: Backoff::default(),
            expiry_check_interval,
            spread,
        }
    }

    /// Runs until the producer is closed and everything it took is settled.
    pub(super) async fn run(mut self) {
        loop {
            let end = self.stream_until_expiry().await;
            self.shared.lock().end_stream();
            match end {
                End::Finished => return,
                _ if self.shared.lock().is_finished() => return,
                // Whoever leads now is tried first, and directly.
                End::Moved => self.backoff.reset(),
                End::Expired => {}
                End::Failed(cause) => self.on_failed(cause).await,
            }
        }
    }

    async fn stream_until_expiry(&mut self) -> End {
        let shared = Arc::clone(&self.shared);
        let mut checks = time::interval(self.expiry_check_interval);
        checks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let mut stream = std::pin::pin!(self.stream());
        let mut finished_since = None;
        loop {
            tokio::select! {
                end = &mut stream => return end,
                now = checks.tick() => {
                    if expire(&shared, now) {
                        return End::Expired;
                    }
                    let is_finished = shared.lock().is_finished();
                    if is_finished && now - *finished_since.get_or_insert(now) >= CLOSE_TIMEOUT {
                        return End::Finished;
                    }
                }
            }
        }
    }

    /// One stream, from connecting to its end.
    async fn stream(&mut self) -> End {
        let router = self.client.router();
        self.topology.mark_unchanged();
        let Some(route) = router.route(self.shard, self.backoff.attempt(), FORWARD_FROM) else {
            return End::Failed(no_leader());
        };
        let mut overdue = std::pin::pin!(route.overdue());
        let requests = Requests::begin(Arc::clone(&self.shared), &self.destination);
        let mut broker = broker(route.channel.clone());
        let mut opening = std::pin::pin!(broker.publish(requests));
        let mut responses = loop {
            tokio::select! {
                opened = &mut opening => match opened {
                    Ok(responses) => break responses.into_inner(),
                    Err(status) => return End::Failed(Cause::from_status(&status)),
                },
                cause = &mut overdue => return End::Failed(cause),
                _ = self.topology.changed() => if leads_elsewhere(&self.client, self.shard, &route) {
                    return End::Moved;
                },
            }
        };
        let mut is_open = false;
        loop {
            tokio::select! {
                response = responses.message() => match response {
                    Ok(Some(response)) => {
                        is_open = true;
                        if let Err(unexpected) = self.on_response(&response) {
                            return End::Failed(Cause::from_status(&Status::internal(unexpected.to_string())));
                        }
                    }
                    Ok(None) => return End::Failed(stream_ended()),
                    Err(status) => return End::Failed(Cause::from_status(&status)),
                },
                cause = &mut overdue, if !is_open => return End::Failed(cause),
                _ = self.topology.changed() => if leads_elsewhere(&self.client, self.shard, &route) {
                    return End::Moved;
                },
            }
        }
    }

    fn on_response(&mut self, response: &node::PublishResponse) -> Result<(), UnexpectedConfirm> {
        self.backoff.reset();
        let mut settled = Settled::default();
        let (taken, waker) = {
            let mut batcher = self.shared.lock();
            if let Some(opened) = &response.opened {
                batcher.opened(opened);
                self.shard = ShardId::new(opened.shard_id);
                self.client.router().remember_shard(&self.destination.name, self.shard);
            }
            let taken =
                response.confirms.iter().try_for_each(|confirm| batcher.confirm(confirm, &mut settled));
            let waker = if batcher.is_finished() { batcher.close() } else { batcher.waker_if_sendable() };
            (taken, waker)
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        publish(&self.shared, settled);
        taken
    }

    async fn on_failed(&mut self, cause: Cause) {
        tracing::debug!(destination = self.destination.name, %cause, "the publish stream ended");
        let is_spread_anew = cause.reason == Reason::PartitionsChanged && self.spread_anew().await;
        if is_spread_anew {
            return self.backoff.reset();
        }
        if !cause.is_retryable() && cause.reason != Reason::PartitionsChanged {
            let settled = self.shared.lock().refuse(&cause);
            publish(&self.shared, settled);
        }
        self.shared.lock().note_failure(cause);
        let deadline = Instant::now() + self.backoff.next_delay(rand::random());
        loop {
            let check = Instant::now() + self.expiry_check_interval;
            tokio::select! {
                () = time::sleep_until(deadline) => return,
                _ = self.topology.changed() => {
                    self.backoff.reset();
                    return;
                }
                () = time::sleep_until(check) => { expire(&self.shared, Instant::now()); }
            }
        }
    }
}

impl Session {
    /// Spreads what was refused over the partitions that there are now. False when nobody could tell how many that is.
    async fn spread_anew(&mut self) -> bool {
        let Some(spread) = &self.spread else { return false };
        match spread.spread_anew(self.destination.partition).await {
            Ok(Some(partitions)) => {
                self.destination.partitions = partitions;
                true
            }
            Ok(None) => false,
            Err(error) => {
                let destination = &self.destination.name;
                tracing::debug!(destination, %error, "cannot see how many partitions there are");
                false
            }
        }
    }
}

fn expire(shared: &Shared, now: Instant) -> bool {
    let (settled, stream_is_over) = shared.lock().expire(now);
    publish(shared, settled);
    stream_is_over
}

fn publish(shared: &Shared, settled: Settled) {
    if !settled.is_empty() {
        settled.publish();
        shared.room.notify_waiters();
    }
}

/// Another node than the one that is talked to is known to lead.
fn leads_elsewhere(client: &Client, shard: ShardId, route: &Route) -> bool {
    client.router().leader_address(shard).is_some_and(|leader| leader != route.address)
}

fn no_leader() -> Cause {
    Cause::from_status(&Status::new(Code::Unavailable, "the shard has no leader now"))
}

fn stream_ended() -> Cause {
    Cause::from_status(&Status::new(Code::Unavailable, "the node ended the stream"))
}

/// The requests of one stream. Asks the batcher when the connection can take more, so that batches grow by
/// themselves when it cannot.
struct Requests {
    shared: Arc<Shared>,
    stream: u64,
    open: Option<node::PublishOpen>,
}

impl Requests {
    fn begin(shared: Arc<Shared>, destination: &Destination) -> Self {
        let Destination { name, mandatory, partitions, .. } = destination.clone();
        let (stream, producer_id): (u64, ProducerId) = shared.lock().begin_stream();
        let open = node::PublishOpen { queue: name, producer_id: producer_id.get(), mandatory, partitions };
        Self { shared, stream, open: Some(open) }
    }
}

impl Stream for Requests {
    type Item = node::PublishRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let request = |request| Poll::Ready(Some(node::PublishRequest { request: Some(request) }));
        if let Some(open) = self.open.take() {
            return request(Request::Open(open));
        }
        let mut batcher = self.shared.lock();
        if !batcher.is_current(self.stream) || batcher.is_finished() {
            return Poll::Ready(None);
        }
        match batcher.next_to_send() {
            Some((sequence, batch)) => {
                request(Request::Batch(node::PublishBatch { sequence: sequence.get(), batch, routed: None }))
            }
            None => {
                batcher.wait_to_send(cx.waker());
                Poll::Pending
            }
        }
    }
}
