//! A cluster of real node processes on loopback: started, healed, and asked what it thinks.

mod addresses;
pub mod membership;
mod setup;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use skein_proto::broker::{
    GetClusterRequest, GetQueueRequest, Topology, TransferLeaderRequest, cluster_client::ClusterClient,
    queues_client::QueuesClient,
};
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::transport::{Channel, Endpoint};

use self::addresses::{free_addresses, links};
pub use self::setup::{NO_PAGE_MEMORY, Setup};
use crate::{
    http,
    links::Links,
    machine::Machine,
    mount::Mount,
    network::{Host, Network},
    process::{Process, Surroundings, log_tail},
    wait,
};

/// Clusters at a time: three nodes each and their load are what two cores carry without elections by starvation.
const CLUSTERS_MAX: usize = 2;
static CLUSTERS: Semaphore = Semaphore::const_new(CLUSTERS_MAX);

/// Every shard of a fresh or healed cluster has a leader within this. Elections take 1.0–1.5 s on an idle machine.
pub const READY_LIMIT: Duration = Duration::from_secs(30);

/// A leader exists within this, as long as a majority is there.
pub const LEADER_LIMIT: Duration = Duration::from_secs(15);

/// A node that was asked to leave has left within this.
pub const LEAVE_LIMIT: Duration = Duration::from_secs(20);

/// One call to one node, all included.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// The data directory, beside the configuration.
const DATA_DIR: &str = "data";

/// Node processes with their directories. Dropping it ends them and deletes everything.
#[derive(Debug)]
pub struct Cluster {
    nodes: BTreeMap<u64, Node>,
    links: Option<Links>,
    /// Declared, and so dropped, after the nodes that run there.
    network: Option<Network>,
    dir: TempDir,
    _permit: SemaphorePermit<'static>,
}

#[derive(Debug)]
struct Node {
    grpc: SocketAddr,
    http: SocketAddr,
    config: PathBuf,
    log: PathBuf,
    /// How long the log was when the node was last started.
    log_start: u64,
    /// Connects when it is used, and again when the node was restarted.
    channel: Channel,
    process: Option<Process>,
    host: Option<Host>,
    machine: Option<Machine>,
    variables: Vec<(&'static str, &'static str)>,
    /// What the data directory lies on. Declared, and so dropped, after the process that uses it.
    mount: Option<Mount>,
}

impl Node {
    fn start(&mut self, token: Option<&str>) -> Result<()> {
        ensure!(self.process.is_none(), "it is running");
        self.log_start = fs::metadata(&self.log).map_or(0, |log| log.len());
        let around = Surroundings {
            host: self.host.as_ref(),
            machine: self.machine.as_ref(),
            variables: &self.variables,
        };
        self.process = Some(Process::start_node(&self.config, &self.log, around, token)?);
        Ok(())
    }
}

impl Cluster {
    /// Starts as many nodes and waits until every shard has a leader.
    ///
    /// # Errors
    /// When a node cannot be started, or the cluster does not become ready.
    pub async fn start(node_count: u64) -> Result<Self> {
        Self::start_with(&Setup { node_count, ..Setup::default() }).await
    }

    /// Starts a cluster of this kind and waits until every shard has a leader.
    ///
    /// # Errors
    /// When a node's disk cannot be mounted, a node cannot be started, or the cluster does not become ready.
    pub async fn start_with(setup: &Setup) -> Result<Self> {
        let permit = CLUSTERS.acquire().await.context("the semaphore is never closed")?;
        let dir = tempfile::Builder::new().prefix("skein-").tempdir().context("cannot make a directory")?;
        let node_ids: Vec<_> = (1..=setup.node_count).collect();
        let network = setup.network.then(|| Network::new(&node_ids)).transpose()?;
        let addresses = free_addresses(2 * node_ids.len())?;
        let mut nodes = BTreeMap::new();
        for (node_id, pair) in node_ids.into_iter().zip(addresses.chunks(2)) {
            let host = network.as_ref().and_then(|network| network.host(node_id)).cloned();
            let address = |free: SocketAddr| match &host {
                Some(host) => SocketAddr::from((host.address(), free.port())),
                None => free,
            };
            let (grpc, http) = (address(pair[0]), address(pair[1]));
            let node_dir = dir.path().join(format!("node-{node_id}"));
            fs::create_dir(&node_dir).context("cannot make a node's directory")?;
            let (config, log) = (node_dir.join("node.toml"), node_dir.join("log"));
            let channel = channel(&grpc.to_string())?;
            let mount = setup.disk.mount(&node_dir.join(DATA_DIR))?;
            let machine = setup.machines.then(|| Machine::new(&node_dir)).transpose()?;
            let (log_start, process, variables) = (0, None, setup.variables.clone());
            let node = Node {
                grpc,
                http,
                config,
                log,
                log_start,
                channel,
                process,
                host,
                machine,
                variables,
                mount,
            };
            nodes.insert(node_id, node);
        }
        let links = setup.links.then(|| links(&nodes)).transpose()?;
        let mut cluster = Self { nodes, links, network, dir, _permit: permit };
        for node_id in cluster.node_ids() {
            fs::write(&cluster.node(node_id)?.config, cluster.config_of(node_id, setup)?)
                .context("cannot configure")?;
            cluster.restart(node_id)?;
        }
        match cluster.wait_ready().await {
            Ok(()) => Ok(cluster),
            Err(error) => {
                let logs = cluster.log_tails();
                Err(error).context(logs)
            }
        }
    }

    /// All nodes, running or not.
    #[must_use]
    pub fn node_ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    /// The nodes whose process was not ended.
    #[must_use]
    pub fn running(&self) -> Vec<u64> {
        self.nodes.iter().filter(|(_, node)| node.process.is_some()).map(|(node_id, _)| *node_id).collect()
    }

    /// The gRPC addresses of all nodes, as clients take them.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.values().map(|node| node.grpc.to_string()).collect()
    }

    /// A connection to one node, which comes back by itself after a restart.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn channel(&self, node_id: u64) -> Result<Channel> {
        Ok(self.node(node_id)?.channel.clone())
    }

    /// The address of a node's gRPC listener.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn grpc_address(&self, node_id: u64) -> Result<SocketAddr> {
        Ok(self.node(node_id)?.grpc)
    }

    /// Ends a node as `kill -9` does.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill(&mut self, node_id: u64) -> Result<()> {
        self.take_process(node_id)?.kill()
    }

    /// Asks a node to drain and leave, and waits for it.
    ///
    /// # Errors
    /// When it is not running, or does not leave within [`LEAVE_LIMIT`].
    pub async fn terminate(&mut self, node_id: u64) -> Result<ExitStatus> {
        let process = self.take_process(node_id)?;
        process.terminate(LEAVE_LIMIT).await.with_context(|| format!("node {node_id}"))
    }

    /// Starts a node that is not running, on the data it left.
    ///
    /// # Errors
    /// When it cannot be started, or runs.
    pub fn restart(&mut self, node_id: u64) -> Result<()> {
        let node = self.nodes.get_mut(&node_id).context("no such node")?;
        node.start(None).with_context(|| format!("node {node_id}"))
    }

    /// Makes a node lead a queue's shard.
    ///
    /// # Errors
    /// When it does not within [`LEADER_LIMIT`].
    pub async fn make_leader(&self, queue: &str, node_id: u64) -> Result<()> {
        let shard_id = self.shard_of(queue).await?;
        wait::until(&format!("node {node_id} to lead {queue}"), LEADER_LIMIT, async || {
            let request = TransferLeaderRequest { shard_id, node_id };
            ClusterClient::new(self.channel(node_id)?).transfer_leader(request).await?;
            let leader = self.leader_of(queue).await?;
            ensure!(leader == node_id, "node {leader} leads");
            Ok(())
        })
        .await
    }

    /// The ways between the nodes.
    ///
    /// # Errors
    /// When the cluster was started without.
    pub fn links(&self) -> Result<&Links> {
        self.links.as_ref().context("the cluster has no links")
    }

    /// What the nodes' hosts are connected by.
    ///
    /// # Errors
    /// When the cluster was started without.
    pub fn network(&self) -> Result<&Network> {
        self.network.as_ref().context("the cluster has no network of its own")
    }

    /// The machine of a node.
    ///
    /// # Errors
    /// When the cluster was started without.
    pub fn machine(&self, node_id: u64) -> Result<&Machine> {
        self.node(node_id)?.machine.as_ref().context("the cluster has no machines")
    }

    /// The process of a running node, to stop and resume it.
    ///
    /// # Errors
    /// When it is not running.
    pub fn process(&self, node_id: u64) -> Result<&Process> {
        self.node(node_id)?.process.as_ref().with_context(|| format!("node {node_id} is not running"))
    }

    /// Starts whatever is not running, and waits until the cluster is ready.
    ///
    /// # Errors
    /// When a node cannot be started, or the cluster does not become ready.
    pub async fn heal(&mut self) -> Result<()> {
        for node_id in self.node_ids() {
            if self.node(node_id)?.process.is_none() {
                self.restart(node_id)?;
            }
        }
        self.wait_ready().await
    }

    /// Waits until every running node says that every shard has a leader.
    ///
    /// # Errors
    /// When a node ended by itself, or is not ready within [`READY_LIMIT`].
    pub async fn wait_ready(&mut self) -> Result<()> {
        for node_id in self.running() {
            let node = self.nodes.get_mut(&node_id).context("no such node")?;
            let http = node.http;
            let process = node.process.as_mut().context("only running nodes are asked")?;
            let ended = wait::until(&format!("node {node_id} ready"), READY_LIMIT, async || {
                // Nothing is worth waiting for then.
                if let Some(status) = process.ended()? {
                    return Ok(Some(status));
                }
                let status = http::status(http, "/readyz").await?;
                ensure!(status == 200, "/readyz answers {status}");
                Ok(None)
            })
            .await?;
            if let Some(status) = ended {
                bail!("node {node_id} ended by itself: {status}");
            }
        }
        Ok(())
    }

    /// Waits for a node to end by itself, and gives its status.
    ///
    /// # Errors
    /// When it is not running, or runs on for as long as `limit`.
    pub async fn wait_ended(&mut self, node_id: u64, limit: Duration) -> Result<ExitStatus> {
        let node = self.nodes.get_mut(&node_id).context("no such node")?;
        let process = node.process.as_mut().with_context(|| format!("node {node_id} is not running"))?;
        let status = wait::until(&format!("the end of node {node_id}"), limit, async || {
            process.ended()?.context("it still runs")
        })
        .await?;
        node.process = None;
        Ok(status)
    }

    /// What a node has logged since it was last started.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn log_text(&self, node_id: u64) -> Result<String> {
        let Node { log, log_start, .. } = self.node(node_id)?;
        let text = fs::read(log).context("cannot read a node's log")?;
        let text = text.get(usize::try_from(*log_start)?..).unwrap_or_default();
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    /// A figure of a running node, by the name that `/metrics` gives it.
    ///
    /// # Errors
    /// When the node does not answer, or has no such figure.
    pub async fn metric(&self, node_id: u64, name: &str) -> Result<u64> {
        let figure = http::metric(self.node(node_id)?.http, name).await;
        figure.with_context(|| format!("{name} of node {node_id}"))
    }

    /// Every figure of a running node, as `/metrics` gives them.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn metrics(&self, node_id: u64) -> Result<String> {
        http::metrics(self.node(node_id)?.http).await.with_context(|| format!("node {node_id}"))
    }

    /// Where a node keeps its data.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn data_dir(&self, node_id: u64) -> Result<PathBuf> {
        Ok(data_dir(&self.node(node_id)?.config))
    }

    /// Mounts a node's own disk again. The node must not be running.
    ///
    /// # Errors
    /// When it runs, has no disk of its own, or the disk cannot be mounted.
    pub fn remount(&mut self, node_id: u64) -> Result<()> {
        let node = self.nodes.get_mut(&node_id).context("no such node")?;
        ensure!(node.process.is_none(), "node {node_id} is running");
        node.mount.as_mut().with_context(|| format!("node {node_id} has no disk of its own"))?.remount()
    }

    /// The node that leads a queue's shard, as it says itself and as no newer leader denies.
    ///
    /// # Errors
    /// When there is none within [`LEADER_LIMIT`].
    pub async fn leader_of(&self, queue: &str) -> Result<u64> {
        wait::until(&format!("a leader of {queue}"), LEADER_LIMIT, async || {
            let shard_id = self.shard_of(queue).await?;
            let mut newest = (0, 0);
            for topology in self.topologies().await {
                let shard = topology.shards.iter().find(|shard| shard.shard_id == shard_id);
                let shard = shard.with_context(|| format!("shard {shard_id} is unknown"))?;
                let says_so_itself = shard.leader_node_id == topology.answering_node_id;
                newest = newest.max((shard.term, if says_so_itself { shard.leader_node_id } else { 0 }));
            }
            let (term, leader) = newest;
            ensure!(leader != 0, "nobody leads shard {shard_id} in term {term}");
            Ok(leader)
        })
        .await
    }

    /// The cluster as each running node that answers sees it.
    pub async fn topologies(&self) -> Vec<Topology> {
        let mut topologies = Vec::new();
        for node_id in self.running() {
            topologies.extend(self.topology(node_id).await.ok());
        }
        topologies
    }

    /// The cluster as one node sees it.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn topology(&self, node_id: u64) -> Result<Topology> {
        let answer = ClusterClient::new(self.channel(node_id)?).get_cluster(GetClusterRequest {}).await?;
        answer.into_inner().topology.context("an answer without a topology")
    }

    /// The end of every node's log, to be shown when something failed.
    #[must_use]
    pub fn log_tails(&self) -> String {
        let tails = self.nodes.iter().map(|(node_id, node)| {
            let state = if node.process.is_some() { "running" } else { "ended" };
            format!("--- node {node_id} ({state})\n{}\n", log_tail(&node.log))
        });
        tails.collect()
    }

    /// Ends everything and leaves the directories for someone to look at.
    #[must_use]
    pub fn keep(self) -> PathBuf {
        let Self { nodes, dir, .. } = self;
        for Node { process, mount, .. } in nodes.into_values() {
            drop(process);
            // There is less to look at then, and nobody to tell.
            let _ = mount.map(Mount::keep);
        }
        dir.keep()
    }

    async fn shard_of(&self, queue: &str) -> Result<u32> {
        let mut last = None;
        for node_id in self.running() {
            let request = GetQueueRequest { name: queue.to_owned() };
            match QueuesClient::new(self.channel(node_id)?).get_queue(request).await {
                Ok(answer) => {
                    return Ok(answer.into_inner().queue.context("an answer without a queue")?.shard_id);
                }
                Err(status) => last = Some(status),
            }
        }
        Err(last.context("no node is running")?.into())
    }

    fn node(&self, node_id: u64) -> Result<&Node> {
        self.nodes.get(&node_id).with_context(|| format!("there is no node {node_id}"))
    }

    fn take_process(&mut self, node_id: u64) -> Result<Process> {
        let node = self.nodes.get_mut(&node_id).context("no such node")?;
        node.process.take().with_context(|| format!("node {node_id} is not running"))
    }

    /// The nodes that there are, as one of them, or one that joins, lists them.
    fn members(&self, lister: u64) -> String {
        let nodes = self.nodes.iter();
        let lines = nodes.map(|(id, Node { grpc, http, .. })| {
            let link = self.links.as_ref().and_then(|links| links.address(lister, *id));
            let heard_at = link.unwrap_or(*grpc);
            let line =
                format!("node_id = {id}, grpc = \"{heard_at}\", http = \"{http}\", clients = \"{grpc}\"");
            format!("  {{ {line} }},\n")
        });
        lines.collect()
    }

    fn config_of(&self, node_id: u64, Setup { shards, settings, .. }: &Setup) -> Result<String> {
        let members = self.members(node_id);
        let Node { grpc, http, config, .. } = self.node(node_id)?;
        let data_dir = data_dir(config);
        Ok(format!(
            "node_id = {node_id}\ndata_dir = {data_dir:?}\n\n\
             [listen]\ngrpc = \"{grpc}\"\nhttp = \"{http}\"\n\n\
             [cluster]\nshards = {shards}\nmembers = [\n{members}]\n\n{settings}"
        ))
    }
}

fn data_dir(config: &Path) -> PathBuf {
    config.with_file_name(DATA_DIR)
}

fn channel(address: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).context("not an address")?;
    Ok(endpoint.connect_timeout(CALL_LIMIT).timeout(CALL_LIMIT).tcp_nodelay(true).connect_lazy())
}
