//! The gRPC services: each call is looked up, routed, and served here or passed on.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::{FutureExt as _, TryFutureExt as _, stream::BoxStream};
use skein_proto::{
    ids::ShardId,
    node::{
        AddNodeRequest, AddNodeResponse, BindRequest, BindResponse, BrowseRequest, BrowseResponse,
        ConsumeRequest, ConsumeResponse, CreateGroupRequest, CreateGroupResponse, CreateQueueRequest,
        CreateQueueResponse, CreateTopicRequest, CreateTopicResponse, DeleteGroupRequest,
        DeleteGroupResponse, DeleteQueueRequest, DeleteQueueResponse, DeleteTopicRequest,
        DeleteTopicResponse, DrainNodeRequest, DrainNodeResponse, GetClusterRequest, GetClusterResponse,
        GetGroupRequest, GetGroupResponse, GetQueueRequest, GetQueueResponse, GetTopicRequest,
        GetTopicResponse, JoinNodeRequest, JoinNodeResponse, ListQueuesRequest, ListQueuesResponse,
        ListTopicsRequest, ListTopicsResponse, PublishRequest, PublishResponse, PurgeQueueRequest,
        PurgeQueueResponse, ReceiveRequest, ReceiveResponse, RemoveNodeRequest, RemoveNodeResponse,
        SeekGroupRequest, SeekGroupResponse, SendRequest, SendResponse, SettleRequest, SettleResponse,
        TransferLeaderRequest, TransferLeaderResponse, UnbindRequest, UnbindResponse, UpdateGroupRequest,
        UpdateGroupResponse, UpdateQueueRequest, UpdateQueueResponse, UpdateTopicRequest,
        UpdateTopicResponse, WatchClusterRequest, WatchClusterResponse, broker_server::Broker,
        cluster_server::Cluster, consume_request, position::Position, publish_request, queues_server::Queues,
        topics_server::Topics,
    },
};
use tonic::{Request, Response, Status, Streaming};

use super::{
    Api, forward,
    names::{self, Destination},
    partitions::OfAll,
    route::{self, Route, is_forwarded},
    status,
};
use crate::shard::dead_letters::ORIGIN_BYTES_MAX;

/// How long a stream may take to say what it is for.
const OPEN_WAIT_MAX: Duration = Duration::from_secs(10);

type Stream<T> = BoxStream<'static, Result<T, Status>>;

/// The API, once the node has started. Until then calls are told to come back.
#[derive(Clone, Default)]
pub struct ApiSlot(Arc<OnceLock<Arc<Api>>>);

impl ApiSlot {
    /// Opens the node to clients.
    ///
    /// # Panics
    /// When called twice.
    pub fn open(&self, api: Arc<Api>) {
        assert!(self.0.set(api).is_ok(), "a node opens to clients once");
    }

    fn api(&self) -> Result<&Arc<Api>, Status> {
        self.0.get().ok_or_else(status::starting)
    }
}

/// Publishing and consuming.
#[derive(Clone)]
pub struct BrokerService(pub ApiSlot);

impl BrokerService {
    pub(super) fn api(&self) -> Result<&Arc<Api>, Status> {
        self.0.api()
    }
}

/// Queues and groups.
#[derive(Clone)]
pub struct QueuesService(pub ApiSlot);

/// Topics and their bindings.
#[derive(Clone)]
pub struct TopicsService(pub ApiSlot);

/// Nodes and shards.
#[derive(Clone)]
pub struct ClusterService(pub ApiSlot);

/// Looks a unary call's queue up, and serves the call here or passes it on.
macro_rules! by_queue {
    ($service:expr, $request:ident, $name:ident, $local:ident, $client:ident . $method:ident) => {{
        let forwarded = is_forwarded(&$request);
        let request = $request.into_inner();
        let api = $service.0.api()?;
        let queue = api.find_queue(&request.$name).await?;
        match api.route(queue.shard, forwarded).await? {
            Route::Local => api.$local(&queue, request).await.map(Response::new),
            Route::Remote(channel) => {
                let passed_on = forward::$client(channel).$method(route::forwarded(request)).await;
                passed_on.map_err(forward::failed)
            }
        }
    }};
}

/// The same for a call that may be about a partitioned queue, which is made for each partition, in their order.
macro_rules! by_queue_or_partitions {
    ($service:expr, $request:ident, $name:ident, $local:ident, $client:ident . $method:ident) => {{
        let api = $service.0.api()?;
        if let Some(mut partitions) = api.partition_names(&$request.get_ref().$name).await {
            let request = $request.into_inner();
            let mut answers = Vec::with_capacity(partitions.len());
            while let Some(partition) = partitions.get(answers.len()) {
                let mut of_partition = request.clone();
                of_partition.$name.clone_from(partition);
                let answer = $service.$method(Request::new(of_partition)).await;
                let answer = answer.map_err(|refused| OfAll::refused(partition, refused, &answers))?;
                answers.push(answer.into_inner());
                if answers.len() == partitions.len() {
                    // There may be more by now, which began with what the others had then.
                    api.catch_up_catalog().await;
                    partitions = api.partition_names(&request.$name).await.unwrap_or_default();
                }
            }
            return Ok(Response::new(OfAll::of_all(&request.$name, answers)));
        }
        by_queue!($service, $request, $name, $local, $client.$method)
    }};
}

/// Does what a method of the catalog's leader does: here, or on the node that leads it.
macro_rules! by_catalog {
    ($service:expr, $request:ident, $client:ident . $method:ident) => {{
        let forwarded = is_forwarded(&$request);
        let request = $request.into_inner();
        let api = $service.0.api()?;
        match api.route(ShardId::CATALOG, forwarded).await? {
            Route::Local => api.$method(request).await.map(Response::new),
            Route::Remote(channel) => {
                let passed_on = forward::$client(channel).$method(route::forwarded(request)).await;
                passed_on.map_err(forward::failed)
            }
        }
    }};
}

#[tonic::async_trait]
impl Broker for BrokerService {
    type PublishStream = Stream<PublishResponse>;
    type ConsumeStream = Stream<ConsumeResponse>;
    type BrowseStream = Stream<BrowseResponse>;

    async fn publish(
        &self,
        request: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        let forwarded = is_forwarded(&request);
        let mut inbound = request.into_inner();
        let first = first_message(&mut inbound).await?;
        let Some(publish_request::Request::Open(open)) = &first.request else {
            return Err(status::wrong_first_message(
                "a publish stream begins with open; send PublishOpen first",
            ));
        };
        let open = open.clone();
        let api = self.0.api()?;
        let queue = match api.find_destination(&open.queue).await? {
            Destination::Queue(queue) => queue,
            Destination::Topic => return Ok(Response::new(Arc::clone(api).publish_to_topic(open, inbound))),
        };
        match api.route(queue.shard, forwarded).await? {
            Route::Local => Arc::clone(api).publish(queue, open, inbound).await.map(Response::new),
            Route::Remote(channel) => {
                let requests = forward::requests(first, inbound);
                forward::broker(channel)
                    .publish(requests)
                    .await
                    .map(forward::responses)
                    .map_err(forward::failed)
            }
        }
    }

    async fn consume(
        &self,
        request: Request<Streaming<ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        let forwarded = is_forwarded(&request);
        let mut inbound = request.into_inner();
        let first = first_message(&mut inbound).await?;
        let Some(consume_request::Request::Subscribe(subscribe)) = &first.request else {
            return Err(status::wrong_first_message(
                "a consume stream begins with subscribe; send Subscribe first",
            ));
        };
        let subscribe = subscribe.clone();
        names::check_group_name(&subscribe.group)?;
        let api = self.0.api()?;
        let queue = api.find_queue(&subscribe.queue).await?;
        match api.route(queue.shard, forwarded).await? {
            Route::Local => Arc::clone(api).consume(queue, subscribe, inbound).await.map(Response::new),
            Route::Remote(channel) => {
                let requests = forward::requests(first, inbound);
                forward::broker(channel)
                    .consume(requests)
                    .await
                    .map(forward::responses)
                    .map_err(forward::failed)
            }
        }
    }

    async fn send(&self, request: Request<SendRequest>) -> Result<Response<SendResponse>, Status> {
        let forwarded = is_forwarded(&request);
        let grown_by = if route::is_dead_letter(&request) { ORIGIN_BYTES_MAX } else { 0 };
        let request = request.into_inner();
        let api = self.0.api()?;
        if !request.also.is_empty() {
            let queue = api.find_queue(&request.queue).await?;
            return match api.route(queue.shard, forwarded).await? {
                Route::Local => api.send_together(&queue, request).await.map(Response::new),
                Route::Remote(channel) => {
                    forward::broker(channel).send(route::forwarded(request)).await.map_err(forward::failed)
                }
            };
        }
        if api.partition_names(&request.queue).await.is_some() {
            let send = |request| self.send(Request::new(request)).map_ok(Response::into_inner).boxed();
            return api.send_to_partition(request, &send).await.map(Response::new);
        }
        let queue = match api.find_destination(&request.queue).await? {
            Destination::Queue(queue) => queue,
            Destination::Topic => {
                return Arc::clone(api).send_to_topic(request).await.map(Response::new);
            }
        };
        match api.route(queue.shard, forwarded).await? {
            Route::Local => {
                let message_bytes_max = api.message_bytes_max + grown_by;
                api.send(&queue, request, message_bytes_max).await.map(Response::new)
            }
            Route::Remote(channel) => {
                forward::broker(channel).send(route::forwarded(request)).await.map_err(forward::failed)
            }
        }
    }

    async fn receive(&self, request: Request<ReceiveRequest>) -> Result<Response<ReceiveResponse>, Status> {
        if self.api()?.partition_names(&request.get_ref().queue).await.is_some() {
            return self.receive_from_any(request.into_inner()).await.map(Response::new);
        }
        by_queue!(self, request, queue, receive, broker.receive)
    }

    async fn settle(&self, request: Request<SettleRequest>) -> Result<Response<SettleResponse>, Status> {
        if self.api()?.partition_names(&request.get_ref().queue).await.is_some() {
            return self.settle_at_each(request.into_inner()).await.map(Response::new);
        }
        by_queue!(self, request, queue, settle, broker.settle)
    }

    async fn browse(&self, request: Request<BrowseRequest>) -> Result<Response<Self::BrowseStream>, Status> {
        let forwarded = is_forwarded(&request);
        let request = request.into_inner();
        let api = self.0.api()?;
        let queue = api.find_queue(&request.queue).await?;
        match api.route(queue.shard, forwarded).await? {
            Route::Local => Arc::clone(api).browse(queue, request).await.map(Response::new),
            Route::Remote(channel) => forward::broker(channel)
                .browse(route::forwarded(request))
                .await
                .map(forward::responses)
                .map_err(forward::failed),
        }
    }
}

#[tonic::async_trait]
impl Queues for QueuesService {
    async fn create_queue(
        &self,
        request: Request<CreateQueueRequest>,
    ) -> Result<Response<CreateQueueResponse>, Status> {
        by_catalog!(self, request, queues.create_queue)
    }

    async fn delete_queue(
        &self,
        request: Request<DeleteQueueRequest>,
    ) -> Result<Response<DeleteQueueResponse>, Status> {
        by_catalog!(self, request, queues.delete_queue)
    }

    async fn list_queues(
        &self,
        request: Request<ListQueuesRequest>,
    ) -> Result<Response<ListQueuesResponse>, Status> {
        Ok(Response::new(self.0.api()?.list_queues(request.get_ref())))
    }

    async fn update_queue(
        &self,
        request: Request<UpdateQueueRequest>,
    ) -> Result<Response<UpdateQueueResponse>, Status> {
        by_catalog!(self, request, queues.update_queue)
    }

    async fn update_group(
        &self,
        request: Request<UpdateGroupRequest>,
    ) -> Result<Response<UpdateGroupResponse>, Status> {
        by_queue_or_partitions!(self, request, queue, update_group, queues.update_group)
    }

    async fn seek_group(
        &self,
        request: Request<SeekGroupRequest>,
    ) -> Result<Response<SeekGroupResponse>, Status> {
        let names_offset = matches!(
            request.get_ref().position.and_then(|position| position.position),
            Some(Position::Offset(_))
        );
        if names_offset && let Some(partitions) = self.0.api()?.known_partitions(&request.get_ref().queue) {
            return Err(status::is_partitioned(&request.get_ref().queue, partitions));
        }
        by_queue_or_partitions!(self, request, queue, seek_group, queues.seek_group)
    }

    async fn get_queue(
        &self,
        request: Request<GetQueueRequest>,
    ) -> Result<Response<GetQueueResponse>, Status> {
        by_queue_or_partitions!(self, request, name, get_queue, queues.get_queue)
    }

    async fn purge_queue(
        &self,
        request: Request<PurgeQueueRequest>,
    ) -> Result<Response<PurgeQueueResponse>, Status> {
        by_queue_or_partitions!(self, request, name, purge_queue, queues.purge_queue)
    }

    async fn create_group(
        &self,
        request: Request<CreateGroupRequest>,
    ) -> Result<Response<CreateGroupResponse>, Status> {
        by_queue_or_partitions!(self, request, queue, create_group, queues.create_group)
    }

    async fn delete_group(
        &self,
        request: Request<DeleteGroupRequest>,
    ) -> Result<Response<DeleteGroupResponse>, Status> {
        if let Some(partitions) = self.0.api()?.partition_names(&request.get_ref().queue).await {
            return self.delete_group_of_all(request.into_inner(), partitions).await.map(Response::new);
        }
        by_queue!(self, request, queue, delete_group, queues.delete_group)
    }

    async fn get_group(
        &self,
        request: Request<GetGroupRequest>,
    ) -> Result<Response<GetGroupResponse>, Status> {
        by_queue_or_partitions!(self, request, queue, get_group, queues.get_group)
    }
}

#[tonic::async_trait]
impl Topics for TopicsService {
    async fn create_topic(
        &self,
        request: Request<CreateTopicRequest>,
    ) -> Result<Response<CreateTopicResponse>, Status> {
        by_catalog!(self, request, topics.create_topic)
    }

    async fn update_topic(
        &self,
        request: Request<UpdateTopicRequest>,
    ) -> Result<Response<UpdateTopicResponse>, Status> {
        by_catalog!(self, request, topics.update_topic)
    }

    async fn delete_topic(
        &self,
        request: Request<DeleteTopicRequest>,
    ) -> Result<Response<DeleteTopicResponse>, Status> {
        by_catalog!(self, request, topics.delete_topic)
    }

    async fn get_topic(
        &self,
        request: Request<GetTopicRequest>,
    ) -> Result<Response<GetTopicResponse>, Status> {
        self.0.api()?.get_topic(request.get_ref()).await.map(Response::new)
    }

    async fn list_topics(
        &self,
        request: Request<ListTopicsRequest>,
    ) -> Result<Response<ListTopicsResponse>, Status> {
        Ok(Response::new(self.0.api()?.list_topics(request.get_ref())))
    }

    async fn bind(&self, request: Request<BindRequest>) -> Result<Response<BindResponse>, Status> {
        by_catalog!(self, request, topics.bind)
    }

    async fn unbind(&self, request: Request<UnbindRequest>) -> Result<Response<UnbindResponse>, Status> {
        by_catalog!(self, request, topics.unbind)
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    type WatchClusterStream = Stream<WatchClusterResponse>;

    async fn get_cluster(
        &self,
        _: Request<GetClusterRequest>,
    ) -> Result<Response<GetClusterResponse>, Status> {
        Ok(Response::new(GetClusterResponse { topology: Some(self.0.api()?.topology()) }))
    }

    async fn watch_cluster(
        &self,
        _: Request<WatchClusterRequest>,
    ) -> Result<Response<Self::WatchClusterStream>, Status> {
        Ok(Response::new(Arc::clone(self.0.api()?).watch_topology()))
    }

    async fn add_node(&self, request: Request<AddNodeRequest>) -> Result<Response<AddNodeResponse>, Status> {
        by_catalog!(self, request, cluster.add_node)
    }

    async fn remove_node(
        &self,
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<RemoveNodeResponse>, Status> {
        by_catalog!(self, request, cluster.remove_node)
    }

    async fn drain_node(
        &self,
        request: Request<DrainNodeRequest>,
    ) -> Result<Response<DrainNodeResponse>, Status> {
        by_catalog!(self, request, cluster.drain_node)
    }

    async fn join_node(
        &self,
        request: Request<JoinNodeRequest>,
    ) -> Result<Response<JoinNodeResponse>, Status> {
        by_catalog!(self, request, cluster.join_node)
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        let forwarded = is_forwarded(&request);
        let request = request.into_inner();
        let api = self.0.api()?;
        let shard = ShardId::new(request.shard_id);
        if api.groups.get(shard).is_none() {
            return Err(status::shard_not_found(request.shard_id, api.shard_count));
        }
        match api.route(shard, forwarded).await? {
            Route::Local => api.transfer_leader(request).await.map(Response::new),
            Route::Remote(channel) => {
                let passed_on = forward::cluster(channel).transfer_leader(route::forwarded(request)).await;
                passed_on.map_err(forward::failed)
            }
        }
    }
}

async fn first_message<T>(inbound: &mut Streaming<T>) -> Result<T, Status> {
    match tokio::time::timeout(OPEN_WAIT_MAX, inbound.message()).await {
        Ok(Ok(Some(first))) => Ok(first),
        Ok(Ok(None)) => Err(status::wrong_first_message("the stream ended before it said what it is for")),
        Ok(Err(broken)) => Err(broken),
        Err(_) => Err(status::wrong_first_message(
            "the stream did not say what it is for; send its first message at once",
        )),
    }
}
