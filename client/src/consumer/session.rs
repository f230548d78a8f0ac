//! Keeps a consumer's stream open: subscribes at the leader, takes deliveries, sends settlements, and starts over when
//! the stream ends.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use futures::Stream;
use skein_proto::{
    broker::Reason,
    ids::ShardId,
    node::{self, consume_request::Request},
};
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tonic::{Code, Status};

use super::{
    CLOSE_TIMEOUT, ConsumerBuilder,
    lane::{Shared, wake},
};
use crate::{
    calls::broker,
    client::Client,
    error::{Cause, ConsumeError},
    retry::Backoff,
    routing::Route,
    topology::Topology,
};

/// Failures after which other nodes than the leader are tried. Moving a consumer later costs redelivery, so it waits
/// for a leader to be elected first: five waits add up to 75-150 ms, and an election takes less.
const FORWARD_FROM: u32 = 5;

/// The task behind one consumer.
pub(super) struct Session {
    client: Client,
    subscribe: node::Subscribe,
    shard: ShardId,
    shared: Arc<Shared>,
    topology: watch::Receiver<Topology>,
    backoff: Backoff,
}

impl Session {
    pub(super) fn new(settings: ConsumerBuilder, shard: ShardId, shared: Arc<Shared>) -> Self {
        let ConsumerBuilder { client, queue, group, credit_messages, credit_bytes, priority } = settings;
        let credit = node::Credit { messages: credit_messages, bytes: credit_bytes };
        let subscribe = node::Subscribe { queue, group, credit: Some(credit), resume: None, priority };
        let topology = client.router().subscribe();
        Self { client, subscribe, shard, shared, topology, backoff: Backoff::default() }
    }

    /// Runs until the consumer is closed and its acks are answered, or it cannot go on.
    pub(super) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let is_in_time = {
            let mut going_on = std::pin::pin!(self.go_on());
            tokio::select! {
                () = &mut going_on => return,
                () = shared.closing.notified() => {}
            }
            let is_over = shared.lock().is_over_between_streams();
            !is_over && time::timeout(CLOSE_TIMEOUT, going_on).await.is_ok()
        };
        if !is_in_time {
            self.lose(&closed());
        }
    }

    /// One stream after the other.
    async fn go_on(&mut self) {
        loop {
            let cause = self.stream().await;
            tracing::debug!(queue = self.subscribe.queue, %cause, "the consume stream ended");
            if self.shared.lock().is_over() {
                return self.lose(&cause);
            }
            if cause.reason == Reason::GroupMoved {
                // What is here is void, and delivered again from where the group goes on.
                self.lose(&cause);
                continue;
            }
            if !cause.is_retryable() {
                self.lose(&cause);
                let reader = self.shared.lock().fail(ConsumeError::NotAccepted(cause));
                return wake(reader);
            }
            let sender = self.shared.lock().suspend();
            wake(sender);
            self.wait().await;
        }
    }

    fn lose(&self, cause: &Cause) {
        let (answers, sender) = {
            let mut inbox = self.shared.lock();
            self.shared.losses.fetch_add(1, Ordering::Relaxed);
            inbox.lose(cause)
        };
        answers.publish();
        wake(sender);
    }

    /// One stream, from connecting to its end.
    async fn stream(&mut self) -> Cause {
        if self.shard == ShardId::CATALOG {
            // A partition that came later. Found out first: to move to its leader with messages in hand costs leases.
            match self.client.shard_of(&self.subscribe.queue).await {
                Ok(shard) => self.shard = shard,
                Err(error) => return unavailable(&format!("the partition is not found yet: {error}")),
            }
        }
        self.topology.mark_unchanged();
        let router = self.client.router();
        let Some(route) = router.route(self.shard, self.backoff.attempt(), FORWARD_FROM) else {
            return unavailable("the shard has no leader now");
        };
        let mut overdue = std::pin::pin!(route.overdue());
        let requests = Requests::begin(Arc::clone(&self.shared), self.subscribe.clone());
        let mut broker = broker(route.channel.clone());
        let mut opening = std::pin::pin!(broker.consume(requests));
        let mut responses = loop {
            tokio::select! {
                opened = &mut opening => match opened {
                    Ok(responses) => break responses.into_inner(),
                    Err(status) => return Cause::from_status(&status),
                },
                cause = &mut overdue => return cause,
                _ = self.topology.changed() => if self.should_move(&route) {
                    return self.moved();
                },
            }
        };
        let (mut is_open, mut has_news) = (false, false);
        loop {
            tokio::select! {
                response = responses.message() => match response {
                    Ok(Some(response)) => {
                        is_open = true;
                        self.on_response(response);
                    }
                    Ok(None) => return unavailable("the node ended the stream"),
                    Err(status) => return Cause::from_status(&status),
                },
                cause = &mut overdue, if !is_open => return cause,
                _ = self.topology.changed() => has_news = true,
            }
            // Without news the leader was tried already, and could not be reached.
            if has_news && self.should_move(&route) {
                return self.moved();
            }
        }
    }

    fn moved(&mut self) -> Cause {
        // Whoever leads now is tried first, and directly.
        self.backoff.reset();
        unavailable("another node leads the queue now")
    }

    fn on_response(&mut self, response: node::ConsumeResponse) {
        self.backoff.reset();
        if response.partitions > self.shared.partitions.load(Ordering::Relaxed) {
            self.shared.partitions.store(response.partitions, Ordering::Relaxed);
            let reader = self.shared.lock().take_reader();
            wake(reader);
        }
        if let Some(subscribed) = &response.subscribed {
            self.shard = ShardId::new(subscribed.shard_id);
            self.client.router().remember_shard(&self.subscribe.queue, self.shard);
        }
        let (answers, wakers) = self.shared.lock().receive(response);
        answers.publish();
        wakers.into_iter().for_each(wake);
    }

    /// Another node leads. A stream to the old leader is worth nothing; one that is forwarded works, and is moved
    /// when that causes no message to be delivered again.
    fn should_move(&self, route: &Route) -> bool {
        let is_elsewhere = |topology: &Topology| {
            topology.leader_of(self.shard).is_some_and(|leader| leader.grpc_address != route.address)
        };
        is_elsewhere(&self.topology.borrow()) && (route.is_leader || self.shared.lock().holds_nothing())
    }

    async fn wait(&mut self) {
        let deadline = Instant::now() + self.backoff.next_delay(rand::random());
        tokio::select! {
            () = time::sleep_until(deadline) => {}
            _ = self.topology.changed() => self.backoff.reset(),
        }
    }
}

fn unavailable(sentence: &str) -> Cause {
    Cause::from_status(&Status::new(Code::Unavailable, sentence))
}

fn closed() -> Cause {
    unavailable("the consumer was closed")
}

/// The requests of one stream. Asks the inbox when the connection can take more, so that acks gather by themselves
/// when it cannot.
struct Requests {
    shared: Arc<Shared>,
    stream: u64,
    subscribe: Option<node::Subscribe>,
}

impl Requests {
    fn begin(shared: Arc<Shared>, mut subscribe: node::Subscribe) -> Self {
        let (stream, resume) = shared.lock().begin_stream();
        subscribe.resume = resume;
        Self { shared, stream, subscribe: Some(subscribe) }
    }
}

impl Stream for Requests {
    type Item = node::ConsumeRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let request = |request| Some(node::ConsumeRequest { request: Some(request) });
        if let Some(subscribe) = self.subscribe.take() {
            return Poll::Ready(request(Request::Subscribe(subscribe)));
        }
        let mut inbox = self.shared.lock();
        inbox.poll_send(self.stream, cx.waker()).map(|settle| match settle {
            Some(settle) => request(Request::Settle(settle)),
            None => inbox.take_leave(self.stream).and_then(|leave| request(Request::Leave(leave))),
        })
    }
}
