//! One node: the only place where the parts are wired together, and where they are taken apart again.
//!
//! Starting: data directory → gRPC listener (answers Hello) → cluster formed or found → log → raft groups → shards →
//! API → HTTP. Stopping: streams end with a hint → leaders move → groups stop → log closes.

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
    controller,
    datadir::{DataDir, DataDirError, Owner},
    disk::{Disk, RealDisk},
    formation::{self, FormationError},
    free_space::{self, DiskState},
    http,
    log::{Log, LogFailure, LogOptions, OpenError},
    peer::{Connections, Identity, Incoming, PeerService, PeerTransport, Presence, Sightings},
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
    /// The cluster.
    #[error(transparent)]
    Formation(#[from] FormationError),
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
}

/// A running node.
pub struct Node {
    config: Config,
    groups: Arc<Groups>,
    log: Log,
    stopping: watch::Sender<bool>,
    closed: watch::Sender<bool>,
    failures: mpsc::UnboundedReceiver<NodeFailure>,
    servers: Vec<tokio::task::JoinHandle<()>>,
    _dir: DataDir,
}

impl Node {
    /// Starts a node, and returns once it takes calls.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let dir = DataDir::open(&config.data_dir, Arc::clone(&disk))?;
        let grpc_listener = listen("listen.grpc", config.listen_grpc).await?;
        let http_listener = listen("listen.http", config.listen_http).await?;
        let (identity, identity_watch) = watch::channel(Identity {
            node: config.node,
            cluster_id: None,
            formed: false,
            shard_count: config.shard_count,
            members: config.members.clone(),
        });
        let connections = Arc::new(Connections::new(config.members.clone(), identity_watch.clone())?);
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

        let owner = formation::join(&config, &dir, &connections, &identity).await?;
        let (failure_sender, failures) = mpsc::unbounded_channel();
        let log = open_log(&config, &dir, Arc::clone(&disk), failure_sender.clone())?;
        tasks::spawn(watch_disk(&config, disk, &log, disk_state));
        let transport: Arc<dyn Transport> = Arc::new(PeerTransport::new(Arc::clone(&connections)));
        let groups = open_groups(&config, &dir, &log, &transport, failure_sender).await?;
        // Cannot fail: it is set once, here.
        let _ = slot.set(Arc::clone(&groups));
        initialize(&config, &groups).await?;

        let (stopping, stopping_watch) = watch::channel(false);
        let watches = Watches { disk: disk_watch, stopping: stopping_watch };
        let api = build_api(&config, owner, &groups, &log, connections, transport, watches);
        tasks::spawn(report_health(Arc::clone(&api), health));
        clients.open(Arc::clone(&api));
        let http_state = http::HttpState { api, log: log.clone() };
        servers.push(tasks::spawn(async move {
            let closed = async move { wait_true(closed_watch).await };
            if let Err(error) = http::serve(http_listener, http_state, closed).await {
                tracing::error!(%error, "the HTTP listener failed");
            }
        }));
        tracing::info!(
            node = %config.node, grpc = %config.listen_grpc, http = %config.listen_http, "the node takes calls"
        );
        Ok(Self { config, groups, log, stopping, closed, failures, servers, _dir: dir })
    }

    /// Waits until the node fails. Never returns while it is well.
    pub async fn failed(&mut self) -> NodeFailure {
        let groups = Arc::clone(&self.groups);
        tokio::select! {
            Some(failure) = self.failures.recv() => failure,
            failure = groups.upkeep() => failure.into(),
        }
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
                leadership.wait_for(|now| now.leader.is_some_and(|leader| leader != self.config.node)).await;
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
        node: config.node,
        peers: config.members.keys().copied().filter(|node| *node != config.node).collect(),
        shard_count: config.shard_count,
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
async fn initialize(config: &Config, groups: &Groups) -> Result<(), GroupFailure> {
    let nodes: Vec<NodeId> = config.members.keys().copied().collect();
    let members: BTreeMap<NodeId, String> =
        config.members.iter().map(|(id, member)| (*id, member.grpc.clone())).collect();
    for group in groups.iter() {
        if nodes[group.shard().get() as usize % nodes.len()] == config.node {
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
    owner: Owner,
    groups: &Arc<Groups>,
    log: &Log,
    connections: Arc<Connections>,
    transport: Arc<dyn Transport>,
    watches: Watches,
) -> Arc<Api> {
    let clock = Clock::real();
    let shards = Arc::new(ShardServers::new(groups, log, &clock));
    let sightings = attend(config, groups, &connections, &transport, &clock);
    tasks::spawn(controller::reconcile_queues(Arc::clone(groups)));
    let api = Arc::new(Api {
        node: config.node,
        cluster_id: owner.cluster_id,
        shard_count: config.shard_count,
        groups: Arc::clone(groups),
        shards: Arc::clone(&shards),
        connections,
        transport,
        sightings,
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

/// Keeps an eye on the other nodes, and finds new leaders for the shards of those that die.
fn attend(
    config: &Config,
    groups: &Arc<Groups>,
    connections: &Arc<Connections>,
    transport: &Arc<dyn Transport>,
    clock: &Clock,
) -> watch::Receiver<Sightings> {
    let (sightings, sightings_watch) = watch::channel(Sightings::of_none_but(config.node));
    let (deaths, dead) = mpsc::channel(DEATHS_MAX);
    let presence = Presence {
        node: config.node,
        connections: Arc::clone(connections),
        clock: clock.clone(),
        sightings,
        deaths,
    };
    tasks::spawn(presence.attend());
    tasks::spawn(Succession::new(config.node, Arc::clone(groups), Arc::clone(transport)).run(dead));
    sightings_watch
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
