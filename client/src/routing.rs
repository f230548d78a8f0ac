//! Where to send what: keeps the topology up to date, one connection per node, and which shard a queue is in.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use skein_proto::{
    broker::{GetClusterRequest, WatchClusterRequest, cluster_client::ClusterClient},
    ids::ShardId,
    limits,
};
use tokio::{sync::watch, time};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{config::Timeouts, error::Cause, retry::Backoff, topology::Topology};

/// Nodes whose view of the cluster is watched at a time, each by one watcher. Three, so that the news of a node that is
/// dead or cut off does not depend on that node, nor on one that shares its fate.
pub(crate) const WATCHED_NODES: usize = 3;

/// A node that passes a stream on, and says nothing for so long, may not hear the leader: another one is tried.
const PASSED_ON_WITHIN: Duration = Duration::from_secs(1);

/// A watcher for which no node is left looks again after this long.
const WATCH_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// How long a connection may be silent before the other end is asked whether it is alive, and how long it may take to
/// answer. Finds machines that vanish without closing their connections.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Queues whose shard is remembered. Beyond that the memory starts over; a lookup costs one round trip.
const QUEUES_REMEMBERED_MAX: usize = 4_096;

/// Connections kept. Beyond that those to addresses that have left the topology are dropped.
const CONNECTIONS_MAX: usize = 256;

/// Knows the way to every shard.
#[derive(Debug)]
pub(crate) struct Router {
    seeds: Vec<String>,
    timeouts: Timeouts,
    topology: watch::Sender<Topology>,
    channels: Mutex<BTreeMap<String, Channel>>,
    shards: Mutex<BTreeMap<String, ShardId>>,
    /// Addresses of the nodes that are watched.
    watched: Mutex<BTreeSet<String>>,
}

/// A node to talk to.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    pub(crate) address: String,
    pub(crate) channel: Channel,
    /// It leads the shard, as far as is known; otherwise it passes requests on.
    pub(crate) is_leader: bool,
}

impl Route {
    /// Ends when the node should have said something by now, and says why to give it up. Never for the leader: that it
    /// does not answer is told by others.
    pub(crate) async fn overdue(&self) -> Cause {
        if self.is_leader {
            return std::future::pending().await;
        }
        time::sleep(PASSED_ON_WITHIN).await;
        Cause::from_status(&Status::unavailable("the node that should pass the stream on says nothing"))
    }
}

impl Router {
    pub(crate) fn new(seeds: Vec<String>, timeouts: Timeouts) -> Self {
        Self {
            seeds,
            timeouts,
            topology: watch::Sender::new(Topology::default()),
            channels: Mutex::default(),
            shards: Mutex::default(),
            watched: Mutex::default(),
        }
    }

    pub(crate) fn seeds(&self) -> &[String] {
        &self.seeds
    }

    /// Marks every change of nodes and leaders.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Topology> {
        self.topology.subscribe()
    }

    pub(crate) fn leader_address(&self, shard: ShardId) -> Option<String> {
        self.topology.borrow().leader_of(shard).map(|node| node.grpc_address.clone())
    }

    /// Where to send a stream for `shard` after `attempt` failures: to its leader, and from `forward_from` failures
    /// on to others as well, in turn, which pass it on. None while there is no leader and others have to wait.
    pub(crate) fn route(&self, shard: ShardId, attempt: u32, forward_from: u32) -> Option<Route> {
        let leader = self.leader_address(shard);
        let may_forward = attempt >= forward_from;
        match &leader {
            Some(leader) if !may_forward || attempt.is_multiple_of(2) => Some(self.to(leader.clone(), true)),
            None if !may_forward && attempt + 1 < forward_from => None,
            _ => {
                let mut others = self.addresses();
                others.retain(|address| Some(address) != leader.as_ref());
                // The leader may be all there is.
                let others = if others.is_empty() { self.addresses() } else { others };
                let failures = attempt.saturating_sub(forward_from);
                // The leader, where there is one, takes every other turn.
                let turn = if leader.is_some() { failures / 2 } else { failures } as usize % others.len();
                Some(self.to(others[turn].clone(), false))
            }
        }
    }

    /// Any node, another one after each failure.
    pub(crate) fn any(&self, attempt: u32) -> Route {
        let addresses = self.addresses();
        let address = addresses[attempt as usize % addresses.len()].clone();
        self.to(address, false)
    }

    pub(crate) fn shard_of(&self, queue: &str) -> Option<ShardId> {
        lock(&self.shards).get(queue).copied()
    }

    pub(crate) fn remember_shard(&self, queue: &str, shard: ShardId) {
        let mut shards = lock(&self.shards);
        if shards.len() >= QUEUES_REMEMBERED_MAX {
            shards.clear();
        }
        shards.insert(queue.to_owned(), shard);
    }

    pub(crate) fn forget_shard(&self, queue: &str) {
        lock(&self.shards).remove(queue);
    }

    /// Asks one node what the cluster looks like, and remembers it.
    pub(crate) async fn ask(&self, address: &str) -> Result<Topology, Status> {
        let Route { channel, .. } = self.to(address.to_owned(), false);
        let mut cluster = ClusterClient::new(channel);
        let answer = time::timeout(self.timeouts.request, cluster.get_cluster(GetClusterRequest {}))
            .await
            .map_err(|_| Status::deadline_exceeded("the node did not answer in time"))??;
        let view = Topology::from(answer.into_inner().topology.unwrap_or_default());
        self.learn(view.clone());
        Ok(view)
    }

    /// Follows the topology as long as it is polled, through one node after the other that no other watcher has.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut backoff = Backoff::default();
        let mut turn = 0;
        loop {
            let Some(address) = self.take_to_watch(turn) else {
                time::sleep(WATCH_AGAIN_AFTER).await;
                continue;
            };
            let Err(status) = self.watch_node(&address, &mut backoff).await;
            lock(&self.watched).remove(&address);
            tracing::debug!(address, %status, "lost sight of the topology");
            turn += 1;
            time::sleep(backoff.next_delay(rand::random())).await;
        }
    }

    /// A node that nobody watches yet, another one each turn. None when there is none.
    fn take_to_watch(&self, turn: usize) -> Option<String> {
        let addresses = self.addresses();
        let mut watched = lock(&self.watched);
        let others: Vec<_> = addresses.into_iter().filter(|address| !watched.contains(address)).collect();
        let address = others.get(turn % others.len().max(1))?.clone();
        watched.insert(address.clone());
        Some(address)
    }

    async fn watch_node(
        &self,
        address: &str,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, Status> {
        let Route { channel, .. } = self.to(address.to_owned(), false);
        let mut cluster = ClusterClient::new(channel);
        let opened = time::timeout(self.timeouts.connect, cluster.watch_cluster(WatchClusterRequest {}));
        let mut views = opened
            .await
            .map_err(|_| Status::deadline_exceeded("the node did not answer in time"))??
            .into_inner();
        while let Some(view) = views.message().await? {
            backoff.reset();
            self.learn(view.topology.unwrap_or_default().into());
        }
        Err(Status::unavailable("the node ended the stream"))
    }

    fn learn(&self, view: Topology) {
        self.topology.send_if_modified(|topology| topology.learn(view));
    }

    /// Every address known, the ones to try first in front.
    fn addresses(&self) -> Vec<String> {
        let topology = self.topology.borrow();
        let (reachable, others): (Vec<_>, Vec<_>) = topology.nodes.iter().partition(|node| node.reachable);
        let mut addresses: Vec<String> = Vec::with_capacity(topology.nodes.len() + self.seeds.len());
        let nodes = reachable.iter().chain(&others).map(|node| &node.grpc_address);
        for address in nodes.chain(&self.seeds) {
            if !address.is_empty() && !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        addresses
    }

    fn to(&self, address: String, is_leader: bool) -> Route {
        let mut channels = lock(&self.channels);
        if channels.len() >= CONNECTIONS_MAX {
            let known = self.addresses();
            channels.retain(|address, _| known.contains(address));
        }
        let channel = match channels.get(&address) {
            Some(channel) => channel.clone(),
            None => {
                let channel = self.connection(&address);
                channels.insert(address.clone(), channel.clone());
                channel
            }
        };
        Route { address, channel, is_leader }
    }

    /// Connects on first use, and again after the connection is lost.
    fn connection(&self, address: &str) -> Channel {
        // An address that is none fails on use, like one that nobody listens on.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .unwrap_or_else(|_| Endpoint::from_static("http://invalid.invalid:1"));
        endpoint
            .connect_timeout(self.timeouts.connect)
            .tcp_nodelay(true)
            .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_lazy()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use skein_proto::ids::NodeId;

    use super::*;
    use crate::topology::{Node, samples};

    const SHARD: ShardId = ShardId::new(1);
    const PATIENT: u32 = 3;

    fn router(leader: Option<u64>) -> Router {
        let timeouts = Timeouts { connect: Duration::from_secs(1), request: Duration::from_secs(1) };
        let router = Router::new(vec!["seed:1".into()], timeouts);
        let node =
            |id: u64| Node { grpc_address: format!("node:{id}"), reachable: id != 1, ..samples::node(id) };
        let shard = samples::shard(SHARD, leader, 1);
        let nodes = [1, 2, 3].map(node).to_vec();
        router.learn(Topology { cluster_id: "c".into(), nodes, shards: vec![shard] });
        router
    }

    fn route(router: &Router, attempt: u32, forward_from: u32) -> Option<String> {
        router.route(SHARD, attempt, forward_from).map(|route| route.address)
    }

    #[tokio::test]
    async fn streams_go_to_the_leader_first_then_to_the_others_in_turn() {
        let router = router(Some(2));
        let tried: Vec<_> = (0..8).map(|attempt| route(&router, attempt, 1).unwrap()).collect();
        assert_eq!(tried, ["node:2", "node:3", "node:2", "node:1", "node:2", "seed:1", "node:2", "node:3"]);
    }

    #[tokio::test]
    async fn without_a_leader_the_impatient_are_forwarded_and_the_patient_wait() {
        let router = router(None);
        assert_eq!(route(&router, 0, 1).unwrap(), "node:2");
        assert_eq!(route(&router, 0, PATIENT), None);
        assert_eq!(route(&router, 1, PATIENT), None);
        assert!(route(&router, PATIENT, PATIENT).is_some());
    }

    #[tokio::test]
    async fn the_patient_stay_with_the_leader_for_a_while() {
        let router = router(Some(2));
        let tried: Vec<_> = (0..5).map(|attempt| route(&router, attempt, PATIENT).unwrap()).collect();
        assert_eq!(tried, ["node:2", "node:2", "node:2", "node:3", "node:2"]);
    }

    #[tokio::test]
    async fn reachable_nodes_are_tried_first_and_seeds_last() {
        assert_eq!(router(None).addresses(), ["node:2", "node:3", "node:1", "seed:1"]);
    }

    #[tokio::test]
    async fn no_two_watch_the_same_node() {
        let router = router(Some(2));
        // Those that are reachable first; then the seed, which may be one of them under another name.
        let taken: Vec<_> = std::iter::from_fn(|| router.take_to_watch(0)).collect();
        assert_eq!(taken, ["node:2", "node:3", "node:1", "seed:1"]);
        lock(&router.watched).remove("node:3");
        assert_eq!(router.take_to_watch(5).as_deref(), Some("node:3"), "whoever was let go of");
    }

    #[tokio::test]
    async fn a_new_leader_wakes_those_who_wait() {
        let router = router(Some(2));
        let mut changes = router.subscribe();
        let mut later = router.topology.borrow().clone();
        later.shards[0].leader = Some(NodeId::new(3));
        later.shards[0].term = 2;
        router.learn(later);
        changes.changed().await.unwrap();
        assert_eq!(route(&router, 0, 1).unwrap(), "node:3");
    }
}
