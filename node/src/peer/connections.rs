//! Connections to the other nodes, made when first needed and remade by themselves.

use std::{
    collections::BTreeMap,
    sync::{PoisonError, RwLock},
    time::Duration,
};

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
use crate::broker::NodeAddresses;

/// A peer that does not take a connection for this long is down, or might as well be.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Whoever does not take a connection within this is not there. Much longer than a living node needs on a network that
/// a cluster should run on.
const TAKEN_WITHIN: Duration = Duration::from_millis(100);

/// A silent connection is asked for a sign of life this often, and given up when none comes: streams have no
/// deadline of their own.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// The nodes of the cluster.
pub type Members = BTreeMap<NodeId, NodeAddresses>;

/// Connections to every other node.
pub struct Connections {
    identity: watch::Receiver<Identity>,
    members: watch::Sender<Members>,
    peers: RwLock<BTreeMap<NodeId, PeerChannels>>,
    /// When each was last heard to say that it is there, by the monotonic clock.
    heard_at: watch::Sender<BTreeMap<NodeId, Duration>>,
}

/// A client for peers' calls, which says whom they are meant for.
pub type Peer = PeerClient<InterceptedService<Channel, Outgoing>>;

#[derive(Clone)]
struct PeerChannels {
    address: String,
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
            .map(|(id, member)| Ok((*id, PeerChannels::new(&member.grpc)?)))
            .collect::<Result<_, tonic::transport::Error>>()?;
        let members = watch::Sender::new(members);
        Ok(Self { identity, members, peers: RwLock::new(peers), heard_at: watch::Sender::default() })
    }

    /// The nodes of the cluster, now and whenever they change.
    #[must_use]
    pub fn members(&self) -> watch::Receiver<Members> {
        self.members.subscribe()
    }

    /// Takes note of the nodes that the cluster has now. Connections to those that stay where they are stay as well.
    pub fn set_members(&self, members: Members) {
        let known = |(id, member): (&NodeId, &NodeAddresses)| {
            let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = peers.get(id).filter(|known| known.address == member.grpc) {
                return Some((*id, known.clone()));
            }
            let made = PeerChannels::new(&member.grpc);
            if let Err(error) = &made {
                tracing::error!(node = %id, address = member.grpc, %error, "a node has no address to be reached at");
            }
            Some((*id, made.ok()?))
        };
        let peers = members.iter().filter_map(known).collect();
        *self.peers.write().unwrap_or_else(PoisonError::into_inner) = peers;
        self.heard_at.send_modify(|heard_at| heard_at.retain(|node, _| members.contains_key(node)));
        self.members.send_if_modified(|known| {
            let has_changed = *known != members;
            *known = members;
            has_changed
        });
    }

    /// When a node was last heard to say that it is there, by the monotonic clock.
    #[must_use]
    pub fn heard_at(&self, node: NodeId) -> Option<Duration> {
        self.heard_at.borrow().get(&node).copied()
    }

    /// Waits until a node is heard to say that it is there.
    pub(super) fn hear(&self, node: NodeId) -> impl Future<Output = ()> + Send + use<> {
        let before = self.heard_at(node);
        let mut heard_at = self.heard_at.subscribe();
        async move {
            let heard =
                heard_at.wait_for(|heard_at| heard_at.get(&node).is_some_and(|at| Some(*at) != before));
            if heard.await.is_err() {
                // There are no connections any more.
                std::future::pending::<()>().await;
            }
        }
    }

    pub(super) fn note_heard(&self, node: NodeId, at: Duration) {
        self.heard_at.send_modify(|heard_at| {
            heard_at.insert(node, at);
        });
    }

    fn channels(&self, node: NodeId) -> Option<PeerChannels> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }

    /// Calls a peer.
    #[must_use]
    pub fn peer(&self, target: NodeId) -> Option<Peer> {
        Some(self.client(target, self.channels(target)?.raft))
    }

    /// Calls a peer about something large.
    #[must_use]
    pub fn bulk(&self, target: NodeId) -> Option<Peer> {
        Some(self.client(target, self.channels(target)?.bulk))
    }

    /// Whether anybody takes a new connection where a node should be.
    pub(super) async fn is_taken(&self, node: NodeId) -> bool {
        let Some(PeerChannels { address, .. }) = self.channels(node) else { return false };
        matches!(time::timeout(TAKEN_WITHIN, TcpStream::connect(&address)).await, Ok(Ok(_)))
    }

    fn client(&self, target: NodeId, channel: Channel) -> Peer {
        let outgoing = Outgoing { identity: self.identity.clone(), target };
        PeerClient::with_interceptor(channel, outgoing).max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
    }

    /// The connection for client calls that are passed on.
    #[must_use]
    pub fn clients(&self, node: NodeId) -> Option<Channel> {
        self.channels(node).map(|peer| peer.clients)
    }
}

impl PeerChannels {
    fn new(address: &str) -> Result<Self, tonic::transport::Error> {
        let channel = || channel(address);
        Ok(Self { address: address.to_owned(), raft: channel()?, bulk: channel()?, clients: channel()? })
    }
}

/// Whether an address is `host:port`. Names are as good as numbers, and are looked up whenever a connection is made.
#[must_use]
pub fn is_host_and_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
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
