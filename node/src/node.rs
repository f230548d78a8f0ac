//! One node: the only place where the parts are wired together, and where they are taken apart again.
//!
//! Starting: data directory → cluster joined, if it exists → gRPC listener (answers Hello) → cluster formed or found → log
//! → raft groups → shards → API → HTTP. Stopping: streams end with a hint → leaders move → groups stop → log closes.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use skein_proto::{
    DESCRIPTORS,
    ids::NodeId,
    limits::{CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, GRPC_MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES},
    node::{
        broker_server::BrokerServer, cluster_server::ClusterServer, queues_server::QueuesServer,
        topics_server::TopicsServer,
    },
    peer::peer_server::PeerServer,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tonic::{
    service::{Routes, interceptor::InterceptedService},
    transport::{Server, server::TcpIncoming},
};

use crate::{
    api::{
        Admission, Api, ApiCourier, ApiSlot, BrokerService, ClusterService, QueuesService, RoutingTables,
        TopicsService,
    },
    clock::Clock,
    config::Config,
    controller::{self, Activities, LeaderBalance, ReplicaKeeper, RosterKeeper, Steady},
    datadir::{DataDir, DataDirError, Owner},
    disk::{Disk, RealDisk},
    formation::{self, FormationError},
    free_space::{self, DiskState},
    http,
    joining::{self, JoinError},
    log::{Log, LogFailure, LogOptions, OpenError},
    peer::{Connections, Identity, Incoming, Members, PeerService, PeerTransport, Presence, Sightings},
    raft::{GroupFailure, Groups, GroupsParts, OpenGroupsError, Succession, Transport, UpkeepFailure},
    shard::{ShardServers, dead_letters::Courier},
    tasks,
};

/// HTTP/2 streams of one connection: enough for a client with many producers and consumers, few enough that one
/// connection cannot fill the node's memory with them.
const CONNECTION_STREAMS_MAX: u32 = 1_024;

/// A client's connection that is silent is asked for a sign of life this often.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);

/// Dead nodes whose shards wait to be seen to.
const DEATHS_MAX: usize = 16;

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
        "this node was removed from the cluster, as node {by} says; its data_dir is of no use any more and can be deleted"
    )]
    Removed {
        /// Who says so.
        by: NodeId,
    },
}

/// Who this node is when it starts.
struct Seat {
    node: NodeId,
    /// Nothing while its cluster is yet to be formed.
    owner: Option<Owner>,
    /// The nodes that it knows before the catalog tells it more.
    members: Members,
}

impl Seat {
    fn new(config: &Config, owner: Option<Owner>) -> Self {
        let mut members = config.members.clone();
        let joined = owner.as_ref().filter(|owner| owner.has_joined()).map(Owner::node);
        if let Some(node) = joined {
            // It may be listed as the node whose place it took.
            members.retain(|_, member| member.grpc != config.advertised.grpc);
            members.insert(node, config.advertised.clone());
        }
        let node = joined.or(config.node).expect("a node that did not join is configured with an id");
        Self { node, owner, members }
    }

    fn identity(&self, config: &Config) -> Identity {
        let joined = self.owner.as_ref().filter(|owner| owner.has_joined());
        Identity {
            node: self.node,
            cluster_id: joined.map(|owner| owner.cluster_id.clone()),
            formed: joined.is_some(),
            shard_count: joined.map_or(config.shard_count, |owner| owner.shards),
            members: config.members.clone(),
            roster: None,
        }
    }
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
            let mut leadership = group.leadership();
            // An error means that the group has stopped, and leads no more.
            let _ =
                leadership.wait_for(|now| now.leader.is_some_and(|leader| leader != self.owner.node())).await;
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
        message_bytes_max: config.limits.message_bytes_max,
        stopping: watches.stopping,
    });
    let courier: Arc<dyn Courier> = Arc::new(ApiCourier(Arc::clone(&api)));
    shards.start(&courier);
    api
}

/// What sees to it that things are as they should be, once there is what it looks at.
struct Controllers<'a> {
    owner: &'a Owner,
    seat: Seat,
    identity: watch::Sender<Identity>,
    failures: mpsc::UnboundedSender<NodeFailure>,
}

impl Controllers<'_> {
    /// Starts them, and gives what is seen of the others and what is being done about replicas.
    fn start(
        self,
        groups: &Arc<Groups>,
        connections: &Arc<Connections>,
        transport: &Arc<dyn Transport>,
        clock: &Clock,
    ) -> (watch::Receiver<Sightings>, watch::Receiver<Activities>) {
        let node = self.owner.node();
        let (activities, activities_watch) = watch::channel(Activities::new());
        tasks::spawn(controller::reconcile_queues(Arc::clone(groups)));
        let roster = RosterKeeper {
            groups: Arc::clone(groups),
            connections: Arc::clone(connections),
            identity: self.identity,
            is_founder: !self.owner.has_joined(),
            configured: self.seat.members,
        };
        tasks::spawn(roster.run());
        let sightings = attend(node, groups, connections, transport, clock, self.failures);
        let steady = Steady::follow(sightings.clone(), clock.clone());
        let replicas = ReplicaKeeper { node, groups: Arc::clone(groups), steady: steady.clone(), activities };
        tasks::spawn(replicas.run());
        let balance = LeaderBalance { node, groups: Arc::clone(groups), steady, clock: clock.clone() };
        tasks::spawn(balance.run());
        (sightings, activities_watch)
    }
}

/// Keeps an eye on the other nodes, finds new leaders for the shards of those that die, and hears from them when this
/// one was removed.
fn attend(
    node: NodeId,
    groups: &Arc<Groups>,
    connections: &Arc<Connections>,
    transport: &Arc<dyn Transport>,
    clock: &Clock,
    failures: mpsc::UnboundedSender<NodeFailure>,
) -> watch::Receiver<Sightings> {
    let (sightings, sightings_watch) = watch::channel(Sightings::of_none_but(node));
    let (deaths, dead) = mpsc::channel(DEATHS_MAX);
    let (removals, mut removed) = mpsc::channel(1);
    let presence = Presence {
        node,
        connections: Arc::clone(connections),
        clock: clock.clone(),
        sightings,
        deaths,
        removals,
    };
    tasks::spawn(presence.attend());
    tasks::spawn(Succession::new(node, Arc::clone(groups), Arc::clone(transport)).run(dead));
    tasks::spawn(async move {
        if let Some(by) = removed.recv().await {
            // Nobody listens any more when the node is stopping.
            let _ = failures.send(NodeFailure::Removed { by });
        }
    });
    sightings_watch
}

/// Lets clients in: at once, or, for a node that joined a running cluster, once its catalog knows of it. Before that it
/// would deny queues that it has not heard of.
async fn open_to_clients(api: Arc<Api>, has_joined: bool, clients: ApiSlot) {
    let catalog = api.groups.catalog().replica();
    let mut applied = catalog.applied_index();
    while has_joined && !catalog.with_catalog(|catalog| catalog.nodes().any(|(node, _)| node == api.node)) {
        // An error means that the node is stopping.
        if applied.changed().await.is_err() {
            return;
        }
    }
    clients.open(Arc::clone(&api));
}

/// The services of the node. Those for clients answer once `clients` is open.
fn routes(peers: PeerService, incoming: Incoming, clients: &ApiSlot) -> Routes {
    let peers = PeerServer::new(peers)
        .max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX);
    let broker = BrokerServer::new(BrokerService(clients.clone()))
        .max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the compiled schema is a valid descriptor set");
    Routes::new(InterceptedService::new(peers, incoming))
        .add_service(broker)
        .add_service(QueuesServer::new(QueuesService(clients.clone())))
        .add_service(TopicsServer::new(TopicsService(clients.clone())))
        .add_service(ClusterServer::new(ClusterService(clients.clone())))
        .add_service(reflection)
}

/// Keeps `grpc.health.v1` true: serving while the catalog has a leader and the node is not stopping.
async fn report_health(api: Arc<Api>, reporter: tonic_health::server::HealthReporter) {
    let mut leadership = api.groups.catalog().leadership();
    let mut stopping = api.stopping.clone();
    loop {
        let serving = leadership.borrow_and_update().leader.is_some() && !*stopping.borrow_and_update();
        let status = if serving {
            tonic_health::ServingStatus::Serving
        } else {
            tonic_health::ServingStatus::NotServing
        };
        for service in [
            "",
            "skein.broker.v1.Broker",
            "skein.broker.v1.Queues",
            "skein.broker.v1.Topics",
            "skein.broker.v1.Cluster",
        ] {
            reporter.set_service_status(service, status).await;
        }
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            changed = stopping.changed() => if changed.is_err() { return },
        }
    }
}

async fn serve_grpc(listener: TcpListener, routes: Routes, closed: watch::Receiver<bool>) {
    // The option on the server builder is not applied to a listener of our own.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let served = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_concurrent_streams(CONNECTION_STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_EVERY))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, wait_true(closed))
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the gRPC listener failed");
    }
}

async fn wait_true(mut flag: watch::Receiver<bool>) {
    // An error means that the node is gone, which is as good.
    let _ = flag.wait_for(|flag| *flag).await;
}
