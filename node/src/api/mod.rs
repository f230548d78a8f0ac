//! The client-facing gRPC services. A call is looked up in the catalog, then served here when this node leads the
//! queue's shard, and passed on to the node that does when it does not.

mod admission;
mod browse;
mod cluster;
mod consume;
mod courier;
mod figures;
mod filter;
mod forward;
mod groups;
mod names;
mod nodes;
mod partitioned_calls;
mod partitions;
mod publish;
mod queues;
mod receive;
mod room;
mod route;
mod services;
mod settings;
mod status;
mod together;
mod topics;
mod wanted;

use std::{collections::BTreeMap, sync::Arc};

use skein_proto::ids::{NodeId, ShardId};
use tokio::sync::watch;

pub use admission::Admission;
pub use courier::ApiCourier;
pub use figures::{GroupFigures, QueueFigures};
pub use services::{ApiSlot, BrokerService, ClusterService, QueuesService, TopicsService};
pub use topics::RoutingTables;

use crate::{
    clock::Clock,
    free_space::DiskState,
    peer::{Connections, Sightings},
    raft::{Groups, Transport},
    shard::ShardServers,
};

/// What is being done about the replicas of shards, in words.
pub type Activities = BTreeMap<ShardId, String>;

/// What every call needs. Shared by all services of a node.
pub struct Api {
    /// This node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster_id: String,
    /// Message shards of the cluster.
    pub shard_count: u32,
    /// The raft groups on this node.
    pub groups: Arc<Groups>,
    /// The message shards on this node.
    pub shards: Arc<ShardServers>,
    /// The other nodes.
    pub connections: Arc<Connections>,
    /// Raft calls to the other nodes.
    pub transport: Arc<dyn Transport>,
    /// What the other nodes answered lately.
    pub sightings: watch::Receiver<Sightings>,
    /// What this node does about the replicas of the shards that it leads.
    pub activities: watch::Receiver<Activities>,
    /// How this node's disk stands.
    pub disk: watch::Receiver<DiskState>,
    /// Bytes that may be in flight.
    pub admission: Admission,
    /// The time.
    pub clock: Clock,
    /// Which queues get what of topics.
    pub routing_tables: RoutingTables,
    /// Held by whoever gives partitions that came later the groups of those before them.
    pub creating_groups_of_older: tokio::sync::Mutex<()>,
    /// The largest message taken, encoded, in bytes.
    pub message_bytes_max: usize,
    /// Turns true when the node stops: streams then end.
    pub stopping: watch::Receiver<bool>,
}
