//! A cluster of two nodes that share one memory: queues, topology, and what goes wrong on demand.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
};

use futures::{Stream, StreamExt};
use skein_client::Client;
use skein_proto::{
    REASON_TRAILER,
    broker::{self, Reason, cluster_server, queues_server, topics_server},
    limits,
    node::{self, broker_server},
};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    sync::{Notify, watch},
};
use tokio_stream::wrappers::{TcpListenerStream, WatchStream};
use tonic::{Code, Request, Response, Status, metadata::MetadataMap, transport::Server};

pub(crate) const SHARD: u32 = 1;

pub(crate) type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What all nodes know, and what they were told to do wrong.
pub(crate) struct Shared {
    pub(crate) state: Mutex<State>,
    /// Counts up when all streams are to end.
    pub(crate) streams_end: watch::Sender<u64>,
    /// Counts up when there may be something to deliver.
    pub(crate) news: watch::Sender<u64>,
    pub(crate) confirms_released: Notify,
    topology: watch::Sender<broker::Topology>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) queues: BTreeMap<String, Queue>,
    /// What the next batches of a publish stream are refused with.
    pub(crate) refusals: Vec<Status>,
    /// Batches are stored and not confirmed.
    pub(crate) holds_confirms: bool,
    /// Settlements are taken and not answered.
    pub(crate) holds_answers: bool,
    /// Leases outlive their stream, for a consumer that comes back.
    pub(crate) resumes: bool,
    /// The address of every node that a publish stream was opened at, in order.
    pub(crate) publish_streams: Vec<String>,
    /// Sequences as they arrived, with their producer.
    pub(crate) arrived: Vec<(u64, u64)>,
    /// The queue, producer and sequence of each unary publish, in order.
    pub(crate) sent: Vec<(String, u64, u64)>,
    /// What consume streams were opened with, in order.
    pub(crate) subscribed: Vec<node::Subscribe>,
    /// What was asked to be browsed, and at the address of which node, in order.
    pub(crate) browsed: Vec<(String, node::BrowseRequest)>,
    /// What the next calls to move a group are refused with.
    pub(crate) seek_refusals: Vec<Status>,
    /// How many unary calls are failed with UNAVAILABLE, after they were carried out.
    pub(crate) answers_lost: u32,
}

#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) settings: broker::QueueSettings,
    pub(crate) batches: Vec<Batch>,
    pub(crate) producers: BTreeMap<u64, Vec<node::Confirm>>,
    pub(crate) groups: BTreeMap<String, Group>,
}

#[derive(Clone)]
pub(crate) struct Batch {
    pub(crate) first_offset: u64,
    pub(crate) messages: Vec<broker::Message>,
}

#[derive(Default)]
pub(crate) struct Group {
    pub(crate) delivered_up_to: u64,
    /// Returned messages and the attempt they are at.
    pub(crate) returned: BTreeMap<u64, u32>,
    pub(crate) leased: BTreeMap<u64, u32>,
    pub(crate) acked: Vec<u64>,
    /// What was given back, and the delay in milliseconds that its consumer asked for.
    pub(crate) nacked: Vec<(u64, Option<u32>)>,
    /// What leases were extended of, as often as they were.
    pub(crate) extended: Vec<u64>,
    pub(crate) filter: Option<broker::Filter>,
}

/// When a message was published: the clock of the nodes ticks once for each message.
pub(crate) fn published_at_ms(offset: u64) -> u64 {
    offset + 1
}

impl Group {
    /// A group that has everything before `offset` behind it.
    pub(crate) fn at(offset: u64) -> Self {
        Self { delivered_up_to: offset, acked: (0..offset).collect(), ..Self::default() }
    }
}

impl Queue {
    pub(crate) fn next_offset(&self) -> u64 {
        self.batches.last().map_or(0, |batch| batch.first_offset + batch.messages.len() as u64)
    }

    pub(crate) fn messages(&self) -> impl Iterator<Item = (u64, &broker::Message)> {
        self.batches.iter().flat_map(|batch| (batch.first_offset..).zip(&batch.messages))
    }

    pub(crate) fn bodies(&self) -> Vec<String> {
        self.messages().map(|(_, message)| String::from_utf8_lossy(&message.body).into_owned()).collect()
    }
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn queue<T>(&self, name: &str, f: impl FnOnce(&mut Queue) -> T) -> Result<T, Status> {
        let mut state = self.state();
        let found = state.queues.get_mut(name).map(f).ok_or_else(|| queue_not_found(name))?;
        if state.answers_lost > 0 {
            state.answers_lost -= 1;
            return Err(Status::unavailable("the answer got lost"));
        }
        Ok(found)
    }

    pub(crate) fn announce(&self) {
        self.news.send_modify(|news| *news += 1);
    }
}

/// The nodes; they stop when this is dropped.
pub(crate) struct Cluster {
    pub(crate) shared: Arc<Shared>,
    pub(crate) addresses: Vec<String>,
    /// One for each node, so that a node stops with everything it has begun. None for a node that is stopped.
    runtimes: Vec<Option<Runtime>>,
}

impl Cluster {
    /// Starts two nodes, of which the first leads, and a queue `orders`.
    pub(crate) async fn start() -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            streams_end: watch::Sender::new(0),
            news: watch::Sender::new(0),
            confirms_released: Notify::new(),
            topology: watch::Sender::default(),
        });
        shared.state().queues.insert("orders".into(), Queue::default());
        let mut cluster = Self { shared, addresses: Vec::new(), runtimes: Vec::new() };
        for _ in 0..2 {
            cluster.start_node();
        }
        cluster.set_leader(Some(1), 1);
        cluster
    }

    fn start_node(&mut self) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let node = Node { shared: Arc::clone(&self.shared), address: address.clone() };
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(serve(node, listener));
        self.addresses.push(address);
        self.runtimes.push(Some(runtime));
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.addresses.clone()).await.unwrap()
    }

    /// Tells everybody who leads the shard: node 1, 2 or none.
    pub(crate) fn set_leader(&self, leader: Option<u64>, term: u64) {
        let node = |(index, address): (usize, &String)| broker::Node {
            node_id: index as u64 + 1,
            grpc_address: address.clone(),
            http_address: String::new(),
            reachable: true,
            low_on_disk: false,
            ..broker::Node::default()
        };
        let shard = broker::Shard {
            shard_id: SHARD,
            leader_node_id: leader.unwrap_or_default(),
            term,
            replica_node_ids: vec![1, 2],
            ..broker::Shard::default()
        };
        self.shared.topology.send_replace(broker::Topology {
            cluster_id: "test".into(),
            answering_node_id: 1,
            nodes: self.addresses.iter().enumerate().map(node).collect(),
            shards: vec![shard],
        });
    }

    /// Ends every stream with UNAVAILABLE.
    pub(crate) fn end_streams(&self) {
        self.shared.streams_end.send_modify(|count| *count += 1);
    }

    /// Stops a node: its port is closed, its connections reset.
    pub(crate) fn stop(&mut self, node: usize) {
        if let Some(runtime) = self.runtimes[node].take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        (0..self.runtimes.len()).for_each(|node| self.stop(node));
    }
}

async fn serve(node: Node, listener: std::net::TcpListener) {
    let broker = broker_server::BrokerServer::new(node.clone())
        .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX);
    let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap()).map(|stream| {
        let stream = stream?;
        stream.set_nodelay(true)?;
        Ok::<_, std::io::Error>(stream)
    });
    let server = Server::builder()
        .add_service(broker)
        .add_service(queues_server::QueuesServer::new(node.clone()))
        .add_service(topics_server::TopicsServer::new(node.clone()))
        .add_service(cluster_server::ClusterServer::new(node));
    server.serve_with_incoming(incoming).await.unwrap();
}

pub(crate) fn status(code: Code, reason: Reason, sentence: &str) -> Status {
    let mut trailers = MetadataMap::new();
    trailers.insert(REASON_TRAILER, reason.as_str_name().parse().unwrap());
    Status::with_metadata(code, sentence, trailers)
}

pub(crate) fn queue_not_found(name: &str) -> Status {
    status(Code::NotFound, Reason::QueueNotFound, &format!("there is no queue {name}"))
}

/// One node.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) shared: Arc<Shared>,
    pub(crate) address: String,
}

#[tonic::async_trait]
impl cluster_server::Cluster for Node {
    async fn get_cluster(
        &self,
        _: Request<broker::GetClusterRequest>,
    ) -> Result<Response<broker::GetClusterResponse>, Status> {
        let topology = Some(self.shared.topology.borrow().clone());
        Ok(Response::new(broker::GetClusterResponse { topology }))
    }

    type WatchClusterStream = Outgoing<broker::WatchClusterResponse>;

    async fn watch_cluster(
        &self,
        _: Request<broker::WatchClusterRequest>,
    ) -> Result<Response<Self::WatchClusterStream>, Status> {
        let views = WatchStream::new(self.shared.topology.subscribe());
        Ok(Response::new(views.map(|view| Ok(broker::WatchClusterResponse { topology: Some(view) })).boxed()))
    }

    async fn add_node(
        &self,
        request: Request<broker::AddNodeRequest>,
    ) -> Result<Response<broker::AddNodeResponse>, Status> {
        let invited = broker::Node {
            node_id: 7,
            standing: broker::NodeStanding::Invited.into(),
            replaces_node_id: request.into_inner().replaces_node_id,
            ..broker::Node::default()
        };
        self.shared.topology.send_modify(|topology| topology.nodes.push(invited));
        Ok(Response::new(broker::AddNodeResponse { node_id: 7, join_token: "secret".into() }))
    }

    async fn remove_node(
        &self,
        request: Request<broker::RemoveNodeRequest>,
    ) -> Result<Response<broker::RemoveNodeResponse>, Status> {
        let node_id = request.into_inner().node_id;
        self.shared.topology.send_modify(|topology| topology.nodes.retain(|node| node.node_id != node_id));
        Ok(Response::new(broker::RemoveNodeResponse {}))
    }

    async fn drain_node(
        &self,
        request: Request<broker::DrainNodeRequest>,
    ) -> Result<Response<broker::DrainNodeResponse>, Status> {
        let broker::DrainNodeRequest { node_id, drained } = request.into_inner();
        self.shared.topology.send_modify(|topology| {
            for node in topology.nodes.iter_mut().filter(|node| node.node_id == node_id) {
                node.drained = drained;
            }
            for shard in topology.shards.iter_mut().filter(|shard| shard.leader_node_id == node_id) {
                shard.leader_node_id =
                    shard.replica_node_ids.iter().copied().find(|id| *id != node_id).unwrap_or(0);
            }
        });
        Ok(Response::new(broker::DrainNodeResponse {}))
    }

    async fn join_node(
        &self,
        _: Request<broker::JoinNodeRequest>,
    ) -> Result<Response<broker::JoinNodeResponse>, Status> {
        Err(Status::unimplemented("only nodes join"))
    }

    async fn transfer_leader(
        &self,
        request: Request<broker::TransferLeaderRequest>,
    ) -> Result<Response<broker::TransferLeaderResponse>, Status> {
        let broker::TransferLeaderRequest { node_id, .. } = request.into_inner();
        let mut term = 0;
        self.shared.topology.send_modify(|topology| {
            topology.shards[0].leader_node_id = node_id;
            topology.shards[0].term += 1;
            term = topology.shards[0].term;
        });
        Ok(Response::new(broker::TransferLeaderResponse { term }))
    }
}
