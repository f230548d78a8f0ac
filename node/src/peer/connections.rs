//! Connections to the other nodes, made when first needed and remade by themselves.

use std::{collections::BTreeMap, time::Duration};

use skein_proto::{
    ids::NodeId,
    limits::{CONNECTION_WINDOW_BYTES, GRPC_MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES},
    peer::peer_client::PeerClient,
};
use tokio::{net::TcpStream, sync::watch, time};
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

use super::{Identity, credentials::Outgoing};

/// A peer that does not take a connection for this long is down, or might as well be.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Whoever does not take a connection within this is not there. Much longer than a living node needs on a network that
/// a cluster should run on.
const TAKEN_WITHIN: Duration = Duration::from_millis(100);

/// A silent connection is asked for a sign of life this often, and given up when none comes: streams have no
/// deadline of their own.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a node is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// host:port for other nodes.
    pub grpc: String,
    /// host:port for health checks and metrics.
    pub http: String,
    /// host:port that clients are told.
    pub clients: String,
}

/// The nodes of the cluster.
pub type Members = BTreeMap<NodeId, Member>;

/// Connections to every other node.
pub struct Connections {
    members: Members,
    identity: watch::Receiver<Identity>,
    peers: BTreeMap<NodeId, PeerChannels>,
}

/// A client for peers' calls, which says whom they are meant for.
pub type Peer = PeerClient<InterceptedService<Channel, Outgoing>>;

struct PeerChannels {
    raft: Channel,
    /// For what is large and can wait, so that raft never waits behind it.
    bulk: Channel,
    clients: Channel,
}

impl Connections {
    /// Prepares connections; none is made yet. Must run within a tokio runtime.
    ///
    /// # Errors
    /// When an address is not `host:port`.
    pub fn new(
        members: Members,
        identity: watch::Receiver<Identity>,
    ) -> Result<Self, tonic::transport::Error> {
        let peers = members
            .iter()
            .map(|(id, member)| {
                let channel = || channel(&member.grpc);
                Ok((*id, PeerChannels { raft: channel()?, bulk: channel()?, clients: channel()? }))
            })
            .collect::<Result<_, tonic::transport::Error>>()?;
        Ok(Self { members, identity, peers })
    }

    /// The nodes of the cluster.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Calls a peer.
    #[must_use]
    pub fn peer(&self, target: NodeId) -> Option<Peer> {
        Some(self.client(target, self.peers.get(&target)?.raft.clone()))
    }

    /// Calls a peer about something large.
    #[must_use]
    pub fn bulk(&self, target: NodeId) -> Option<Peer> {
        Some(self.client(target, self.peers.get(&target)?.bulk.clone()))
    }

    /// Whether anybody takes a new connection where a node should be.
    pub(super) async fn is_taken(&self, node: NodeId) -> bool {
        let Some(member) = self.members.get(&node) else { return false };
        matches!(time::timeout(TAKEN_WITHIN, TcpStream::connect(&member.grpc)).await, Ok(Ok(_)))
    }

    fn client(&self, target: NodeId, channel: Channel) -> Peer {
        let outgoing = Outgoing { identity: self.identity.clone(), target };
        PeerClient::with_interceptor(channel, outgoing).max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
    }

    /// The connection for client calls that are passed on.
    #[must_use]
    pub fn clients(&self, node: NodeId) -> Option<Channel> {
        self.peers.get(&node).map(|peer| peer.clients.clone())
    }
}

fn channel(address: &str) -> Result<Channel, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect_lazy())
}
