//! The configuration file: its fields, their defaults, and what makes no sense together.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, ToSocketAddrs as _},
    num::NonZero,
    ops::Range,
    path::PathBuf,
    time::Duration,
};

use serde::Deserialize;
use skein_proto::{ids::NodeId, limits};
use toml::Spanned;

use super::{Config, Limits, LogConfig};
use crate::{
    broker::NodeAddresses,
    peer::{Members, is_host_and_port},
    raft::{Scrubbing, Timers},
};

/// Each shard keeps a stream open to each peer, and all of them share a connection.
const SHARDS_MAX: u32 = 256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    node_id: Option<Spanned<u64>>,
    data_dir: Spanned<PathBuf>,
    listen: ListenFile,
    advertise: Option<Spanned<AdvertiseFile>>,
    cluster: ClusterFile,
    #[serde(default)]
    limits: LimitsFile,
    #[serde(default)]
    log: LogFile,
    #[serde(default)]
    raft: RaftFile,
    #[serde(default)]
    runtime: RuntimeFile,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListenFile {
    grpc: Spanned<String>,
    http: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AdvertiseFile {
    grpc: String,
    http: String,
    clients: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterFile {
    #[serde(default = "shards_default")]
    shards: Spanned<u32>,
    members: Spanned<Vec<Spanned<MemberFile>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MemberFile {
    node_id: u64,
    grpc: String,
    http: String,
    clients: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitsFile {
    in_flight_bytes_max: Spanned<u32>,
    message_bytes_max: Spanned<usize>,
    disk_low_bytes: Spanned<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LogFile {
    segment_bytes: Spanned<u64>,
    cache_bytes: Spanned<usize>,
    direct_io: bool,
    lag_bytes_max: Spanned<u64>,
    scrub_bytes_per_s: u64,
    scrub_every_s: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RaftFile {
    heartbeat_ms: Spanned<u64>,
    election_min_ms: Spanned<u64>,
    election_max_ms: Spanned<u64>,
    drain_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RuntimeFile {
    threads: Spanned<usize>,
    page_memory_bytes: u64,
}

/// A value that the file does not have: it points at the file's beginning.
fn unwritten<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

/// Enough to spread the work of a few nodes' cores over leaders, few enough that an idle cluster is quiet.
fn shards_default() -> Spanned<u32> {
    unwritten(8)
}

impl Default for LimitsFile {
    fn default() -> Self {
        Self {
            in_flight_bytes_max: unwritten(256 << 20),
            message_bytes_max: unwritten(limits::MESSAGE_BYTES_MAX_DEFAULT),
            disk_low_bytes: unwritten(0),
        }
    }
}

/// The other half is left to the log's writer, the kernel's network and whoever else runs here. Fewer threads also
/// hand each other less work: on two cores shared by three nodes, one thread each took a third off the cost of a
/// message.
impl Default for RuntimeFile {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self { threads: unwritten((cores / 2).max(1)), page_memory_bytes: 128 << 20 }
    }
}

impl Default for LogFile {
    fn default() -> Self {
        Self {
            segment_bytes: unwritten(64 << 20),
            cache_bytes: unwritten(32 << 20),
            direct_io: true,
            lag_bytes_max: unwritten(1 << 30),
            // A hundredth of what a slow disk reads; ten GiB take twenty minutes.
            scrub_bytes_per_s: 8 << 20,
            scrub_every_s: 3_600,
        }
    }
}

/// A second of silence is longer than the pauses of a busy two-core machine; a dead process is noticed by its
/// connections, not by these timers.
impl Default for RaftFile {
    fn default() -> Self {
        Self {
            heartbeat_ms: unwritten(200),
            election_min_ms: unwritten(1_000),
            election_max_ms: unwritten(1_500),
            drain_ms: 5_000,
        }
    }
}

pub(super) struct Contradiction {
    pub(super) at: Range<usize>,
    pub(super) message: String,
}

fn refuse<T, R>(value: &Spanned<T>, message: impl Into<String>) -> Result<R, Contradiction> {
    Err(Contradiction { at: value.span(), message: message.into() })
}

impl File {
    /// `given` is the node's id where the file leaves it to whoever starts the node.
    pub(super) fn check(self, given: Option<NodeId>) -> Result<Config, Contradiction> {
        let members = self.cluster.check_members()?;
        let (node, advertised) = match &self.advertise {
            Some(advertise) => (None, self.check_advertise(advertise, given)?),
            None => {
                let node = self.check_node(given, &members)?;
                self.cluster.check_founders(&members)?;
                (Some(node), members[&node].clone())
            }
        };
        if self.data_dir.get_ref().as_os_str().is_empty() {
            return refuse(
                &self.data_dir,
                "data_dir is empty; write the directory that this node keeps its data in",
            );
        }
        let shards = &self.cluster.shards;
        if !(1..=SHARDS_MAX).contains(shards.get_ref()) {
            return refuse(
                shards,
                format!("cluster.shards is {}; write 1 to {SHARDS_MAX}", shards.get_ref()),
            );
        }
        let limits = self.limits.check()?;
        let log = self.log.check(&limits)?;
        self.limits.check_disk_low(&log)?;
        let (listen_grpc, listen_http) =
            (address("listen.grpc", &self.listen.grpc)?, address("listen.http", &self.listen.http)?);
        if listen_grpc == listen_http && listen_grpc.port() != 0 {
            return refuse(
                &self.listen.http,
                "listen.http is the same address as listen.grpc; write another port",
            );
        }
        Ok(Config {
            node,
            advertised,
            data_dir: self.data_dir.into_inner(),
            listen_grpc,
            listen_http,
            shard_count: self.cluster.shards.into_inner(),
            members,
            limits,
            log,
            drain: Duration::from_millis(self.raft.drain_ms),
            timers: self.raft.check()?,
            threads: self.runtime.check()?,
            page_memory_bytes: self.runtime.page_memory_bytes,
        })
    }

    /// Where a node is reached that joins a cluster which others formed.
    fn check_advertise(
        &self,
        advertise: &Spanned<AdvertiseFile>,
        given: Option<NodeId>,
    ) -> Result<NodeAddresses, Contradiction> {
        let message = "advertise is for a node that joins a running cluster, which gives it its id; leave node_id out, \
                       or leave advertise out where cluster.members lists this node";
        if let Some(written) = &self.node_id {
            return refuse(written, message);
        }
        if given.is_some() {
            return refuse(advertise, message);
        }
        let AdvertiseFile { grpc, http, clients } = advertise.get_ref();
        let clients = clients.as_ref().unwrap_or(grpc);
        for address in [grpc, http, clients] {
            if !is_host_and_port(address) {
                return refuse(advertise, format!("{address:?} is not an address; write host:port"));
            }
        }
        Ok(NodeAddresses { grpc: grpc.clone(), http: http.clone(), clients: clients.clone() })
    }

    fn check_node(&self, given: Option<NodeId>, members: &Members) -> Result<NodeId, Contradiction> {
        let written = match (&self.node_id, given) {
            (Some(written), _) => written.clone(),
            (None, Some(given)) => unwritten(given.get()),
            (None, None) => {
                let message = "node_id is missing; write it here, or start the node with --node-id or SKEIN_NODE_ID \
                               where nodes share this file";
                return refuse(&unwritten(()), message);
            }
        };
        let node = NodeId::new(*written.get_ref());
        // Neither wins: whichever is wrong, a node would run under the id of another one.
        if let Some(given) = given.filter(|given| *given != node) {
            let message = format!(
                "node_id is {node} here, and {given} by --node-id or SKEIN_NODE_ID; leave one of them out"
            );
            return refuse(&written, message);
        }
        if !members.contains_key(&node) {
            let ids: Vec<_> = members.keys().map(ToString::to_string).collect();
            let by_whom = if self.node_id.is_none() { " by --node-id or SKEIN_NODE_ID" } else { "" };
            let message = format!(
                "node_id is {node}{by_whom}, which cluster.members does not list (it lists {}); add this node there, \
                 or write one of those. A node that joins a running cluster has no node_id here, and says in \
                 [advertise] where it is reached",
                ids.join(", ")
            );
            return refuse(&written, message);
        }
        Ok(node)
    }
}

impl ClusterFile {
    fn check_members(&self) -> Result<Members, Contradiction> {
        let mut members = Members::new();
        let mut addresses: BTreeMap<&str, u64> = BTreeMap::new();
        for member in self.members.get_ref() {
            let MemberFile { node_id, grpc, http, clients } = member.get_ref();
            if *node_id == 0 {
                return refuse(member, "node_id 0 stands for no node; number nodes from 1");
            }
            let clients = clients.as_ref().unwrap_or(grpc);
            let node = NodeAddresses { grpc: grpc.clone(), http: http.clone(), clients: clients.clone() };
            if members.insert(NodeId::new(*node_id), node).is_some() {
                return refuse(member, format!("node {node_id} is listed twice; give each node its own id"));
            }
            for address in [grpc, http, clients] {
                if !is_host_and_port(address) {
                    return refuse(member, format!("{address:?} is not an address; write host:port"));
                }
            }
            let own = [grpc, http].into_iter().chain((clients != grpc).then_some(clients));
            for address in own {
                if let Some(other) = addresses.insert(address, *node_id) {
                    return refuse(
                        member,
                        format!(
                            "{address} is listed for node {other} and for node {node_id}; give each its own"
                        ),
                    );
                }
            }
        }
        Ok(members)
    }

    /// The nodes that form a cluster are an odd number, and not too many.
    fn check_founders(&self, members: &Members) -> Result<(), Contradiction> {
        if members.len().is_multiple_of(2) {
            let message = format!(
                "cluster.members lists {} nodes; list an odd number (1, 3, 5 or 7): another one makes \
                the cluster no safer",
                members.len()
            );
            return refuse(&self.members, message);
        }
        if members.len() > limits::CLUSTER_NODES_MAX {
            return refuse(
                &self.members,
                "cluster.members lists more than 7 nodes, which every write would wait for",
            );
        }
        Ok(())
    }
}

impl LimitsFile {
    fn check(&self) -> Result<Limits, Contradiction> {
        let message_bytes_max = *self.message_bytes_max.get_ref();
        if !(1..=limits::MESSAGE_BYTES_MAX_CEILING).contains(&message_bytes_max) {
            let message = format!(
                "limits.message_bytes_max is {message_bytes_max}; write 1 to {}",
                limits::MESSAGE_BYTES_MAX_CEILING
            );
            return refuse(&self.message_bytes_max, message);
        }
        let in_flight_bytes_max = *self.in_flight_bytes_max.get_ref();
        if (in_flight_bytes_max as usize) < 2 * limits::BATCH_BYTES_MAX {
            let message = format!(
                "limits.in_flight_bytes_max is {in_flight_bytes_max}; write at least {}, two of the \
                largest batches",
                2 * limits::BATCH_BYTES_MAX
            );
            return refuse(&self.in_flight_bytes_max, message);
        }
        Ok(Limits { in_flight_bytes_max, message_bytes_max, disk_low_bytes: *self.disk_low_bytes.get_ref() })
    }

    /// Below one segment, the log could come to a stop before publishes are refused.
    fn check_disk_low(&self, log: &LogConfig) -> Result<(), Contradiction> {
        let disk_low_bytes = *self.disk_low_bytes.get_ref();
        if disk_low_bytes != 0 && disk_low_bytes < log.segment_bytes {
            let message = format!(
                "limits.disk_low_bytes is {disk_low_bytes}, less than one segment; write at least {}, or 0 for \
                what suits the disk",
                log.segment_bytes
            );
            return refuse(&self.disk_low_bytes, message);
        }
        Ok(())
    }
}

impl LogFile {
    fn check(&self, limits: &Limits) -> Result<LogConfig, Contradiction> {
        let segment_bytes = *self.segment_bytes.get_ref();
        if !(16 << 20..=1 << 30).contains(&segment_bytes) || !segment_bytes.is_multiple_of(4_096) {
            let message = format!(
                "log.segment_bytes is {segment_bytes}; write a multiple of 4096 from 16777216 (16 MiB) \
                to 1073741824 (1 GiB)"
            );
            return refuse(&self.segment_bytes, message);
        }
        let cache_bytes = *self.cache_bytes.get_ref();
        if cache_bytes < limits.message_bytes_max {
            let message = format!(
                "log.cache_bytes is {cache_bytes}; write at least one message's worth, {}",
                limits.message_bytes_max
            );
            return refuse(&self.cache_bytes, message);
        }
        let lag_bytes_max = *self.lag_bytes_max.get_ref();
        if lag_bytes_max < segment_bytes {
            let message = format!(
                "log.lag_bytes_max is {lag_bytes_max}; write at least one segment's worth, {segment_bytes}: a replica \
                that restarts would be sent a snapshot every time"
            );
            return refuse(&self.lag_bytes_max, message);
        }
        let scrubbing =
            Scrubbing { bytes_per_s: self.scrub_bytes_per_s, every: Duration::from_secs(self.scrub_every_s) };
        Ok(LogConfig { segment_bytes, cache_bytes, direct_io: self.direct_io, lag_bytes_max, scrubbing })
    }
}

impl RuntimeFile {
    fn check(&self) -> Result<usize, Contradiction> {
        let threads = *self.threads.get_ref();
        if !(1..=1_024).contains(&threads) {
            return refuse(&self.threads, format!("runtime.threads is {threads}; write 1 to 1024"));
        }
        Ok(threads)
    }
}

impl RaftFile {
    fn check(&self) -> Result<Timers, Contradiction> {
        let heartbeat_ms = *self.heartbeat_ms.get_ref();
        let (min_ms, max_ms) = (*self.election_min_ms.get_ref(), *self.election_max_ms.get_ref());
        if heartbeat_ms == 0 {
            return refuse(
                &self.heartbeat_ms,
                "raft.heartbeat_ms is 0; write 100, or what suits your network",
            );
        }
        if min_ms < 3 * heartbeat_ms {
            let message = format!(
                "raft.election_min_ms is {min_ms}, less than three heartbeats of {heartbeat_ms}: one \
                late heartbeat \
                 would depose a leader; write at least {}",
                3 * heartbeat_ms
            );
            return refuse(&self.election_min_ms, message);
        }
        if max_ms < min_ms + min_ms / 2 {
            let message = format!(
                "raft.election_max_ms is {max_ms}, too close to raft.election_min_ms, {min_ms}: nodes \
                would stand for \
                 election together again and again; write at least {}",
                min_ms + min_ms / 2
            );
            return refuse(&self.election_max_ms, message);
        }
        Ok(Timers {
            heartbeat: Duration::from_millis(heartbeat_ms),
            election_min: Duration::from_millis(min_ms),
            election_max: Duration::from_millis(max_ms),
        })
    }
}

fn address(field: &str, text: &Spanned<String>) -> Result<SocketAddr, Contradiction> {
    let resolved = text.get_ref().to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    match resolved {
        Some(address) => Ok(address),
        None => refuse(
            text,
            format!(
                "{field} is {:?}, which is no address of this machine; write host:port, such as \
                127.0.0.1:7101",
                text.get_ref()
            ),
        ),
    }
}
