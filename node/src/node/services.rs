//! The gRPC listener and what answers on it.

use std::{sync::Arc, time::Duration};

use skein_proto::{
    DESCRIPTORS,
    limits::{CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, GRPC_MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES},
    node::{
        broker_server::BrokerServer, cluster_server::ClusterServer, queues_server::QueuesServer,
        topics_server::TopicsServer,
    },
    peer::peer_server::PeerServer,
};
use tokio::{net::TcpListener, sync::watch};
use tonic::{
    service::{Routes, interceptor::InterceptedService},
    transport::{Server, server::TcpIncoming},
};

use crate::{
    api::{Api, ApiSlot, BrokerService, ClusterService, QueuesService, TopicsService},
    peer::{Incoming, PeerService},
};

/// HTTP/2 streams of one connection: enough for a client with many producers and consumers, few enough that one
/// connection cannot fill the node's memory with them.
const CONNECTION_STREAMS_MAX: u32 = 1_024;

/// A client's connection that is silent is asked for a sign of life this often.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);

/// The services of the node. Those for clients answer once `clients` is open.
pub(super) fn routes(peers: PeerService, incoming: Incoming, clients: &ApiSlot) -> Routes {
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
pub(super) async fn report_health(api: Arc<Api>, reporter: tonic_health::server::HealthReporter) {
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

pub(super) async fn serve_grpc(listener: TcpListener, routes: Routes, closed: watch::Receiver<bool>) {
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

pub(super) async fn wait_true(mut flag: watch::Receiver<bool>) {
    // An error means that the node is gone, which is as good.
    let _ = flag.wait_for(|flag| *flag).await;
}

/// Lets clients in: at once, or, for a node that joined a running cluster, once its catalog knows of it. Before that it
/// would deny queues that it has not heard of.
pub(super) async fn open_to_clients(api: Arc<Api>, has_joined: bool, clients: ApiSlot) {
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
