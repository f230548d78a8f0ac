//! One node: the only place where the parts are wired together, and where they are taken apart again.
//!
//! Starting: data directory → cluster joined, if it exists → gRPC listener (answers Hello) → cluster formed or found →
//! log → raft groups → shards → API → HTTP. Stopping: streams end with a hint → leaders move → groups stop → log
//! closes.

mod controllers;
mod seat;
mod services;

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use skein_proto::ids::NodeId;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};

use self::{
    controllers::Controllers,
    seat::Seat,
    services::{open_to_clients, report_health, routes, serve_grpc, wait_true},
};
use crate::{
    api::{Admission, Api, ApiCourier, ApiSlot, RoutingTables},
    clock::Clock,
    config::Config,
    datadir::{DataDir, DataDirError, Owner},
    disk::{Disk, RealDisk},
    formation::{self, FormationError},
    free_space::{self, DiskState},
    http,
    joining::{self, JoinError},
    log::{Log, LogFailure, LogOptions, OpenError},
    peer::{Connections, Incoming, PeerService, PeerTransport},
    raft::{GroupFailure, Groups, GroupsParts, OpenGroupsError, Transport, UpkeepFailure},
    shard::{ShardServers, dead_letters::Courier},
    tasks,
};

/// How long closing connections are waited for at the end: their streams have been told by then.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(1);

/// Segments that wait to be used again. More only hold disk space.
const SPARE_SEGMENTS_MAX: usize = 4;

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A listener.
    #[error("{field} {address} cannot be listened on; is another process using the port?")]
    Listen {
        /// Which field of the configuration.
        field: &'static str,
        /// The address.
        address: std::net::SocketAddr,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A member's address.
    #[error("an address in cluster.members is malformed")]
    Address(#[from] tonic::transport::Error),
    /// Forming the cluster.
    #[error(transparent)]
    Formation(#[from] FormationError),
    /// Joining it.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The log.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// The raft groups.
    #[error(transparent)]
    Groups(#[from] OpenGroupsError),
    /// A group failed while the cluster was formed.
    #[error(transparent)]
    Group(#[from] GroupFailure),
}

/// Why a running node had to stop. It must exit, and never go on: what is in memory may be ahead of the disk.
#[derive(Debug, thiserror::Error)]
pub enum NodeFailure {
    /// The log could not be written.
    #[error(transparent)]
    Log(#[from] LogFailure),
    /// A raft group stopped.
    #[error(transparent)]
    Group(#[from] GroupFailure),
    /// The groups' upkeep.
    #[error(transparent)]
    Upkeep(#[from] UpkeepFailure),
    /// The cluster goes on without it.
    #[error(
        "this node was removed from the cluster, as node {by} says; its data_dir is of no use any more and can be \
         deleted"
    )]
    Removed {
        /// Who says so.
        by: NodeId,
    },
}

/// A running node.
pub struct Node {
    config: Config,
    owner: Owner,
    groups: Arc<Groups>,
    log: Log,
    stopping: watch::Sender<bool>,
    closed: watch::Sender<bool>,
    failures: mpsc::UnboundedReceiver<NodeFailure>,
    servers: Vec<tokio::task::JoinHandle<()>>,
    dir: DataDir,
}

impl Node {
    /// Starts a node, and returns once it takes calls, if only to say that it is not up to date yet. One without a
    /// cluster joins one with `token`.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: Config, token: Option<&str>) -> Result<Self, StartError> {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let dir = DataDir::open(&config.data_dir, Arc::clone(&disk))?;
        let grpc_listener = listen("listen.grpc", config.listen_grpc).await?;
        let http_listener = listen("listen.http", config.listen_http).await?;
        let seat = Seat::new(&config, joining::join(&config, token, &dir).await?);
        let (identity, identity_watch) = watch::channel(seat.identity(&config));
        let connections = Arc::new(Connections::new(seat.members.clone(), identity_watch.clone())?);
        let (closed, closed_watch) = watch::channel(false);
        let slot = Arc::new(OnceLock::new());
        let incoming = Incoming { identity: identity_watch.clone() };
        let (disk_state, disk_watch) = watch::channel(DiskState::default());
        let peers =
            PeerService::new(identity_watch, Arc::clone(&slot), disk_watch.clone(), closed_watch.clone());
        let clients = ApiSlot::default();
        let (health, health_service) = tonic_health::server::health_reporter();
        let routes = routes(peers, incoming, &clients).add_service(health_service);
        let mut servers = vec![tasks::spawn(serve_grpc(grpc_listener, routes, closed_watch.clone()))];

        let owner = match seat.owner.clone() {
            Some(owner) if owner.has_joined() => owner,
            owner => formation::join(&config, seat.node, owner, &dir, &connections, &identity).await?,
        };
        let (failure_sender, failures) = mpsc::unbounded_channel();
        let log = open_log(&config, &dir, Arc::clone(&disk), failure_sender.clone())?;
        tasks::spawn(watch_disk(&config, disk, &log, disk_state));
        let transport: Arc<dyn Transport> = Arc::new(PeerTransport::new(Arc::clone(&connections)));
        let groups = open_groups(&config, &owner, &dir, &log, &transport, failure_sender.clone()).await?;
        // Cannot fail: it is set once, here.
        let _ = slot.set(Arc::clone(&groups));
        if !owner.has_joined() {
            initialize(&config, seat.node, &groups).await?;
        }

        let (stopping, stopping_watch) = watch::channel(false);
        let watches = Watches { disk: disk_watch, stopping: stopping_watch };
        let controllers = Controllers { owner: &owner, seat, identity, failures: failure_sender };
        let api = build_api(&config, controllers, &groups, &log, connections, transport, watches);
        tasks::spawn(report_health(Arc::clone(&api), health));
        tasks::spawn(open_to_clients(Arc::clone(&api), owner.has_joined(), clients));
        let http_state = http::HttpState { api, log: log.clone() };
        servers.push(tasks::spawn(async move {
            let closed = async move { wait_true(closed_watch).await };
            if let Err(error) = http::serve(http_listener, http_state, closed).await {
                tracing::error!(%error, "the HTTP listener failed");
            }
        }));
        tracing::info!(
            node = %owner.node(), grpc = %config.listen_grpc, http = %config.listen_http, "the node takes calls"
        );
        Ok(Self { config, owner, groups, log, stopping, closed, failures, servers, dir })
    }

    /// Waits until the node fails. Never returns while it is well.
    pub async fn failed(&mut self) -> NodeFailure {
        let groups = Arc::clone(&self.groups);
        let failure = tokio::select! {
            Some(failure) = self.failures.recv() => failure,
            failure = groups.upkeep() => failure.into(),
        };
        if let NodeFailure::Removed { .. } = failure
            && let Err(error) = self.dir.claim(&self.owner.clone().removed())
        {
            // It is told again if somebody starts it again.
            tracing::warn!(%error, "the data directory does not say that its node was removed");
        }
        failure
    }

    /// Leaves gracefully: ends streams with a hint, hands leadership over, stops, and closes the log.
    pub async fn stop(self) {
        self.stopping.send_replace(true);
        self.hand_over().await;
        self.closed.send_replace(true);
        for server in self.servers {
            let mut server = server;
            if tokio::time::timeout(CLOSE_WAIT_MAX, &mut server).await.is_err() {
                server.abort();
            }
        }
        self.groups.shutdown().await;
        let log = self.log;
        // Flushing blocks, so it has a thread of its own. Only a panic in there could make it fail.
        let _ = tasks::spawn_blocking(move || log.close()).await;
        tracing::info!("the node has stopped");
    }

    async fn hand_over(&self) {
        let led: Vec<_> = self.groups.iter().filter(|group| group.is_leader()).collect();
        let moves = led.iter().map(|group| async {
            let Some(to) = group.hand_over().await else { return };
            tracing::info!(shard = %group.shard(), %to, "handed leadership over");
        });
        if tokio::time::timeout(self.config.drain, futures::future::join_all(moves)).await.is_err() {
            tracing::warn!(after = ?self.config.drain, "some shards were not taken over in time; \
            stopping all the same");
        }
    }
}

async fn listen(field: &'static str, address: std::net::SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { field, address, source })
}

fn open_log(
    config: &Config,
    dir: &DataDir,
    disk: Arc<dyn Disk>,
    failures: mpsc::UnboundedSender<NodeFailure>,
) -> Result<Log, OpenError> {
    let options = LogOptions {
        segment_bytes: config.log.segment_bytes,
        cache_bytes: config.log.cache_bytes,
        spare_segments_max: SPARE_SEGMENTS_MAX,
        direct_io: config.log.direct_io,
    };
    // Nobody listens any more when the node is already stopping.
    let on_failure = move |failure: LogFailure| drop(failures.send(failure.into()));
    Log::open(disk, &dir.log(), options, on_failure)
}

/// Watches the disk's room until nobody asks for it any more.
fn watch_disk(
    config: &Config,
    disk: Arc<dyn Disk>,
    log: &Log,
    state: watch::Sender<DiskState>,
) -> impl Future<Output = ()> + use<> {
    let segment_bytes = config.log.segment_bytes;
    let watched = free_space::Watched {
        disk,
        dir: config.data_dir.clone(),
        disk_low_bytes: config.limits.disk_low_bytes,
        segment_bytes,
    };
    let log = log.clone();
    free_space::watch(watched, move || log.stats().spare_segment_count as u64 * segment_bytes, state)
}

async fn open_groups(
    config: &Config,
    owner: &Owner,
    dir: &DataDir,
    log: &Log,
    transport: &Arc<dyn Transport>,
    failures: mpsc::UnboundedSender<NodeFailure>,
) -> Result<Arc<Groups>, OpenGroupsError> {
    let (group_failures, mut group_failure) = mpsc::unbounded_channel();
    tasks::spawn(async move {
        while let Some(failure) = group_failure.recv().await {
            let _ = failures.send(NodeFailure::Group(failure));
        }
    });
    let parts = GroupsParts {
        node: owner.node(),
        shard_count: owner.shards,
        timers: config.timers,
        log: log.clone(),
        lag_bytes_max: config.log.lag_bytes_max,
        page_memory_bytes: config.page_memory_bytes,
        scrubbing: config.log.scrubbing,
        transport: Arc::clone(transport),
        clock: Clock::real(),
        failures: group_failures,
    };
    Ok(Arc::new(Groups::open(parts, &dir.checkpoint()).await?))
}

/// Forms the groups that are this node's to form: shard s is the task of the s-th node, round and round, which then
/// leads it first. A group that was formed before is left as it is.
async fn initialize(config: &Config, node: NodeId, groups: &Groups) -> Result<(), GroupFailure> {
    let nodes: Vec<NodeId> = config.members.keys().copied().collect();
    let members: BTreeMap<NodeId, String> =
        config.members.iter().map(|(id, member)| (*id, member.grpc.clone())).collect();
    for group in groups.iter() {
        if nodes[group.shard().get() as usize % nodes.len()] == node {
            group.initialize(&members).await?;
        }
    }
    Ok(())
}

/// What the API looks at while it works.
struct Watches {
    disk: watch::Receiver<DiskState>,
    stopping: watch::Receiver<bool>,
}

fn build_api(
    config: &Config,
    controllers: Controllers<'_>,
    groups: &Arc<Groups>,
    log: &Log,
    connections: Arc<Connections>,
    transport: Arc<dyn Transport>,
    watches: Watches,
) -> Arc<Api> {
    let clock = Clock::real();
    let shards = Arc::new(ShardServers::new(groups, log, &clock));
    let owner = controllers.owner.clone();
    let (sightings, activities) = controllers.start(groups, &connections, &transport, &clock);
    let api = Arc::new(Api {
        node: owner.node(),
        cluster_id: owner.cluster_id,
        shard_count: owner.shards,
        groups: Arc::clone(groups),
        shards: Arc::clone(&shards),
        connections,
        transport,
        sightings,
        activities,
        disk: watches.disk,
        admission: Admission::new(config.limits.in_flight_bytes_max),
        clock,
        routing_tables: RoutingTables::default(),
        creating_groups_of_older: tokio::sync::Mutex::default(),
        message_bytes_max: config.limits.message_bytes_max,
        stopping: watches.stopping,
    });
    let courier: Arc<dyn Courier> = Arc::new(ApiCourier(Arc::clone(&api)));
    shards.start(&courier);
    api
}
