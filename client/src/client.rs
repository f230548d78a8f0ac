//! The handle to a cluster: connects, and makes calls with retries.

use std::{future::Future, sync::Arc, time::Duration};

use futures::future::select_ok;
use skein_proto::{
    broker::{self, GetQueueRequest, Reason, cluster_client::ClusterClient, queues_client::QueuesClient},
    ids::{NodeId, ShardId},
    partitions,
};
use tokio::{
    task::JoinHandle,
    time::{self, Instant},
};
use tonic::{Code, Response, Status, transport::Channel};

use crate::{
    config::{ClientBuilder, Timeouts},
    consumer::ConsumerBuilder,
    error::{Cause, ConnectError, Error},
    producer::ProducerBuilder,
    retry::Backoff,
    routing::{Router, WATCHED_NODES},
    topology::Topology,
};

/// A call is given up on one node and made on another after this part of the request timeout.
const ATTEMPTS_PER_REQUEST_TIMEOUT: u32 = 3;

/// A connection to a cluster. Cheap to clone; clones share connections and the topology, which is kept up to date in
/// the background.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use skein_client::{Client, Message, QueueSettings};
///
/// let client = Client::connect(["127.0.0.1:7101", "127.0.0.1:7102"]).await?;
/// client.create_queue("orders", QueueSettings::default()).await?;
/// client.send("orders", vec![Message::new("two geese")]).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    router: Arc<Router>,
    timeouts: Timeouts,
    watchers: Vec<JoinHandle<()>>,
}

/// Whether a call may be made again when nobody knows whether it happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Doing it twice is the same as doing it once.
    Always,
    /// Only if it certainly did not happen.
    IfNotDone,
}

impl Client {
    /// Connects to a cluster with the usual timeouts. One of the `servers`, given as `host:port`, is enough.
    ///
    /// # Errors
    /// When an address is not one, or no server answers within 10 s.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub async fn connect<S: Into<String>>(
        servers: impl IntoIterator<Item = S>,
    ) -> Result<Self, ConnectError> {
        Self::builder().servers(servers).connect().await
    }

    /// Connects with other timeouts.
    #[must_use]
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }

    /// Prepares to publish to `queue`.
    #[must_use]
    pub fn producer(&self, queue: impl Into<String>) -> ProducerBuilder {
        ProducerBuilder::new(self.clone(), queue.into())
    }

    /// Prepares to consume `queue` as a member of `group`, which is created when the first of its consumers comes.
    #[must_use]
    pub fn consumer(&self, queue: impl Into<String>, group: impl Into<String>) -> ConsumerBuilder {
        ConsumerBuilder::new(self.clone(), queue.into(), group.into())
    }

    /// Asks a node what the cluster looks like now.
    ///
    /// # Errors
    /// When no node answers within the request timeout.
    pub async fn topology(&self) -> Result<Topology, Error> {
        let router = &self.inner.router;
        let deadline = Instant::now() + self.inner.timeouts.request;
        let mut backoff = Backoff::default();
        loop {
            let address = router.any(backoff.attempt()).address;
            let error = match router.ask(&address).await {
                Ok(topology) => return Ok(topology),
                Err(status) => Error::from_status(&status),
            };
            let delay = backoff.next_delay(rand::random());
            if Instant::now() + delay >= deadline || !error.is_retryable() {
                return Err(error);
            }
            time::sleep(delay).await;
        }
    }

    /// Lets another replica lead a shard, and waits until it does. Gives the term in which it leads.
    ///
    /// # Errors
    /// When there is no such shard, the node has no replica of it or lacks too much of its log, or the cluster does
    /// not answer.
    pub async fn transfer_leader(&self, shard: ShardId, to: NodeId) -> Result<u64, Error> {
        let request = broker::TransferLeaderRequest { shard_id: shard.get(), node_id: to.get() };
        let answer = self
            .call(Repeat::Always, Some(shard), |channel| async move {
                ClusterClient::new(channel).transfer_leader(request).await
            })
            .await?;
        Ok(answer.term)
    }

    pub(crate) async fn start(servers: Vec<String>, timeouts: Timeouts) -> Result<Self, ConnectError> {
        let router = Arc::new(Router::new(servers, timeouts));
        find_cluster(&router, timeouts).await?;
        let watchers = (0..WATCHED_NODES).map(|_| tokio::spawn(Arc::clone(&router).watch())).collect();
        Ok(Self { inner: Arc::new(Inner { router, timeouts, watchers }) })
    }

    pub(crate) fn router(&self) -> &Router {
        &self.inner.router
    }

    /// How long one node has for one call.
    pub(crate) fn attempt_timeout(&self) -> Duration {
        self.inner.timeouts.request / ATTEMPTS_PER_REQUEST_TIMEOUT
    }

    /// Which shard a queue is in; asks once.
    pub(crate) async fn shard_of(&self, queue: &str) -> Result<ShardId, Error> {
        if let Some(shard) = self.router().shard_of(queue) {
            return Ok(shard);
        }
        let answer = self
            .call(Repeat::Always, None, |channel| {
                let request = GetQueueRequest { name: queue.to_owned() };
                async move { QueuesClient::new(channel).get_queue(request).await }
            })
            .await?;
        let shard = ShardId::new(answer.queue.unwrap_or_default().shard_id);
        self.router().remember_shard(queue, shard);
        Ok(shard)
    }

    /// How many partitions a queue has; nothing when it has none, or there is no such queue.
    pub(crate) async fn partitions_of(&self, queue: &str) -> Result<Option<u32>, Error> {
        match self.shard_of(queue).await {
            // No queue is in the catalog's shard: it has none of its own.
            Ok(ShardId::CATALOG) => {
                Ok(self.get_queue(&partitions::name(queue, 0)).await?.settings.partitions)
            }
            Err(error) if error.reason() == Reason::QueueNotFound => Ok(None),
            Ok(_) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The shard whose leader takes publishes to a queue or a topic; asks once.
    pub(crate) async fn shard_to_publish_to(&self, destination: &str) -> Result<ShardId, Error> {
        let not_a_queue = match self.shard_of(destination).await {
            Err(error) if error.reason() == Reason::QueueNotFound => error,
            other => return other,
        };
        match self.shard_of_topic(destination).await {
            Err(error) if error.reason() == Reason::TopicNotFound => Err(not_a_queue),
            Err(error) => Err(error),
            Ok(shard) => {
                self.router().remember_shard(destination, shard);
                Ok(shard)
            }
        }
    }

    /// Makes a call until it is answered, the request timeout has passed, or trying again would be wrong or useless.
    /// Goes to the leader of `shard`, or to any node.
    pub(crate) async fn call<T, F, Fut>(
        &self,
        repeat: Repeat,
        shard: Option<ShardId>,
        call: F,
    ) -> Result<T, Error>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + self.inner.timeouts.request;
        let mut backoff = Backoff::default();
        let mut may_be_done = false;
        loop {
            let attempt = backoff.attempt();
            let route = shard.and_then(|shard| self.router().route(shard, attempt, 1));
            let route = route.unwrap_or_else(|| self.router().any(attempt));
            let cause = match time::timeout(self.attempt_timeout(), call(route.channel)).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => Cause::from_status(&status),
                Err(_) => no_answer(&route.address),
            };
            let not_done = cause.is_certainly_not_done();
            may_be_done |= !not_done;
            let delay = backoff.next_delay(rand::random());
            let may_repeat = not_done || repeat == Repeat::Always;
            if !may_repeat || !cause.is_retryable() || Instant::now() + delay >= deadline {
                let error = if may_be_done { Error::OutcomeUnknown } else { Error::NotAccepted };
                return Err(error(cause));
            }
            time::sleep(delay).await;
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.watchers.iter().for_each(JoinHandle::abort);
    }
}

fn no_answer(address: &str) -> Cause {
    Cause::new(Code::DeadlineExceeded, Reason::Unspecified, format!("{address} did not answer in time"))
}

/// Asks all servers at once until one answers.
async fn find_cluster(router: &Router, timeouts: Timeouts) -> Result<(), ConnectError> {
    let deadline = Instant::now() + timeouts.request;
    let mut backoff = Backoff::default();
    loop {
        let asked = select_ok(router.seeds().iter().map(|server| Box::pin(router.ask(server))));
        let cause = match time::timeout_at(deadline, asked).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(status)) => Cause::from_status(&status),
            Err(_) => no_answer(&router.seeds().join(", ")),
        };
        let delay = backoff.next_delay(rand::random());
        if Instant::now() + delay >= deadline || !cause.is_retryable() {
            return Err(ConnectError::NoneAnswered { servers: router.seeds().to_vec(), cause });
        }
        time::sleep(delay).await;
    }
}
