//! A cluster of real node processes on loopback, for `dev` and `demo`.

use std::{
    fs::{self, File},
    net::TcpListener,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use skein_client::Client;

/// How long a cluster may take to form and elect its leaders.
const READY_WAIT_MAX: Duration = Duration::from_secs(30);

/// How long a node may take to leave gracefully.
const STOP_WAIT_MAX: Duration = Duration::from_secs(15);

/// How often something that is waited for is looked at.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// A cluster whose processes end with it.
pub(super) struct LocalCluster {
    dir: PathBuf,
    /// Made for this cluster, and removed with it.
    temporary: bool,
    nodes: Vec<LocalNode>,
    /// Held for as long as the cluster runs.
    _lock: File,
}

/// One process.
pub(super) struct LocalNode {
    pub id: u64,
    pub grpc: String,
    pub http: String,
    config: PathBuf,
    log: PathBuf,
    data_dir: PathBuf,
    process: Option<Child>,
}

#[derive(Serialize)]
struct ClusterFile<'a> {
    nodes: Vec<NodeFile<'a>>,
}

#[derive(Serialize)]
struct NodeFile<'a> {
    id: u64,
    pid: Option<u32>,
    grpc: &'a str,
    http: &'a str,
}

#[derive(serde::Deserialize)]
struct SavedConfig {
    node_id: u64,
    listen: SavedListen,
}

#[derive(serde::Deserialize)]
struct SavedListen {
    grpc: String,
    http: String,
}

#[expect(clippy::disallowed_methods, reason = "sets up nodes from outside, as a person would")]
impl LocalCluster {
    /// Starts nodes with their data under `dir`, or under a directory that goes with the cluster. A directory that a
    /// cluster was started in before starts that cluster again.
    pub(super) fn start(node_count: u64, dir: Option<&Path>) -> anyhow::Result<Self> {
        if node_count == 0 || node_count.is_multiple_of(2) || node_count > 7 {
            bail!("a cluster has 1, 3, 5 or 7 nodes, not {node_count}");
        }
        let temporary = dir.is_none();
        let dir = dir.map_or_else(
            || std::env::temp_dir().join(format!("skein-{:016x}", crate::random::random_u64())),
            Path::to_owned,
        );
        fs::create_dir_all(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
        let dir = dir.canonicalize().with_context(|| format!("{} cannot be found", dir.display()))?;
        let lock = lock(&dir)?;
        let mut nodes = if dir.join("node-1.toml").exists() {
            load_nodes(&dir, node_count)?
        } else {
            configure_nodes(&dir, node_count)?
        };
        nodes.retain(|node| !node.was_removed());
        let mut cluster = Self { dir, temporary, nodes, _lock: lock };
        for index in 0..cluster.nodes.len() {
            cluster.nodes[index].spawn()?;
        }
        cluster.write_cluster_file()?;
        Ok(cluster)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Those that were not removed from the cluster.
    pub(super) fn nodes(&self) -> &[LocalNode] {
        &self.nodes
    }

    pub(super) fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.grpc.clone()).collect()
    }

    /// Waits until every shard has a leader, and gives a client.
    pub(super) async fn wait_ready(&mut self) -> anyhow::Result<Client> {
        let ready = async {
            loop {
                self.check_alive()?;
                if let Ok(client) = Client::connect(self.addresses()).await
                    && let Ok(topology) = client.topology().await
                    && topology.shards.iter().all(|shard| shard.leader.is_some())
                {
                    return Ok(client);
                }
                tokio::time::sleep(LOOK_AGAIN_AFTER).await;
            }
        };
        tokio::time::timeout(READY_WAIT_MAX, ready).await.with_context(|| {
            format!(
                "the cluster did not get ready within {READY_WAIT_MAX:?}; see {}/node-*.log",
                self.dir.display()
            )
        })?
    }

    /// Ends a node as a power cut would.
    pub(super) fn kill(&mut self, id: u64) -> anyhow::Result<()> {
        let node = self.node_mut(id)?;
        if let Some(mut process) = node.process.take() {
            process.kill().with_context(|| format!("node {id} cannot be killed"))?;
            process.wait().with_context(|| format!("node {id} cannot be waited for"))?;
        }
        Ok(())
    }

    /// Starts a node again on its data.
    pub(super) fn restart(&mut self, id: u64) -> anyhow::Result<()> {
        self.node_mut(id)?.spawn()?;
        self.write_cluster_file()
    }

    /// The nodes that somebody has killed since the last call. One that ended by itself is another matter.
    pub(super) fn take_killed(&mut self) -> anyhow::Result<Vec<u64>> {
        let mut killed = Vec::new();
        for node in &mut self.nodes {
            if let Some(process) = &mut node.process
                && let Some(status) = process.try_wait()?
                && status.signal().is_some()
            {
                node.process = None;
                killed.push(node.id);
            }
        }
        Ok(killed)
    }

    /// The nodes that have ended since the last call because they were removed from the cluster.
    pub(super) fn take_removed(&mut self) -> anyhow::Result<Vec<u64>> {
        let mut removed = Vec::new();
        for node in &mut self.nodes {
            if let Some(process) = &mut node.process
                && process.try_wait()?.is_some()
                && node.was_removed()
            {
                removed.push(node.id);
            }
        }
        if !removed.is_empty() {
            self.nodes.retain(|node| !removed.contains(&node.id));
            self.write_cluster_file()?;
        }
        Ok(removed)
    }

    /// Fails when a process that should run has ended.
    pub(super) fn check_alive(&mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            if let Some(process) = &mut node.process
                && let Some(status) = process.try_wait()?
            {
                let log = fs::read_to_string(&node.log).unwrap_or_default();
                let last = log.lines().rev().find(|line| !line.is_empty()).unwrap_or("it said nothing");
                bail!("node {} ended ({status}): {last} (see {})", node.id, node.log.display());
            }
        }
        Ok(())
    }

    /// Tells every node to leave, and waits until they have.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        for node in &self.nodes {
            if let Some(process) = &node.process {
                // Fails when it has ended by itself.
                let _ = kill_process(pid(process), Signal::TERM);
            }
        }
        let mut waited = Duration::ZERO;
        for node in &mut self.nodes {
            let Some(mut process) = node.process.take() else { continue };
            while process.try_wait()?.is_none() {
                if waited > STOP_WAIT_MAX {
                    process.kill()?;
                    process.wait()?;
                    bail!("node {} did not leave within {STOP_WAIT_MAX:?} and was killed", node.id);
                }
                std::thread::sleep(LOOK_AGAIN_AFTER);
                waited += LOOK_AGAIN_AFTER;
            }
        }
        Ok(())
    }

    fn node_mut(&mut self, id: u64) -> anyhow::Result<&mut LocalNode> {
        self.nodes.iter_mut().find(|node| node.id == id).with_context(|| format!("there is no node {id}"))
    }

    fn write_cluster_file(&self) -> anyhow::Result<()> {
        let nodes = self.nodes.iter().map(|node| NodeFile {
            id: node.id,
            pid: node.pid(),
            grpc: &node.grpc,
            http: &node.http,
        });
        let text = serde_json::to_string(&ClusterFile { nodes: nodes.collect() })?;
        fs::write(self.dir.join("cluster.json"), text + "\n").context("cluster.json cannot be written")
    }
}

#[expect(clippy::disallowed_methods, reason = "sets up nodes from outside, as a person would")]
impl LocalNode {
    pub(super) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Whether it was removed from the cluster, and cannot be started again: its data directory remembers that.
    fn was_removed(&self) -> bool {
        let text = fs::read_to_string(self.data_dir.join("node.json")).unwrap_or_default();
        let saved: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        saved["removed"].as_bool().unwrap_or_default()
    }

    fn spawn(&mut self) -> anyhow::Result<()> {
        let program = std::env::current_exe().context("this program cannot find itself")?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("{} cannot be written", self.log.display()))?;
        let process = Command::new(program)
            .arg("run")
            .arg("--config")
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in a terminal goes to a whole process group; the nodes are told to stop by us.
            .process_group(0)
            .spawn()
            .with_context(|| format!("node {} does not start", self.id))?;
        self.process = Some(process);
        Ok(())
    }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut process) = node.process.take() {
                let _ = process.kill();
                let _ = process.wait();
            }
        }
        if self.temporary {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// So that no two clusters run in one directory: the second one would write over what the first one says of itself.
#[expect(clippy::disallowed_methods, reason = "sets up nodes from outside, as a person would")]
fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join("dev.lock");
    let options = File::options().create(true).truncate(false).write(true).open(&path);
    let file = options.with_context(|| format!("{} cannot be opened", path.display()))?;
    if file.try_lock().is_err() {
        bail!("a cluster runs in {} already; end it first, or give another --dir", dir.display());
    }
    Ok(file)
}

fn pid(process: &Child) -> Pid {
    Pid::from_child(process)
}

#[expect(clippy::disallowed_methods, reason = "sets up nodes from outside, as a person would")]
fn configure_nodes(dir: &Path, node_count: u64) -> anyhow::Result<Vec<LocalNode>> {
    // All are held until all are found, so that no two are the same.
    let listeners = (0..2 * node_count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<Vec<_>, _>>()
        .context("no free ports on loopback")?;
    let addresses = listeners
        .iter()
        .map(|listener| Ok(listener.local_addr()?.to_string()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let pairs: Vec<_> = (1..=node_count).zip(addresses.chunks_exact(2)).collect();
    let members: String = pairs
        .iter()
        .map(|(id, pair)| {
            format!("  {{ node_id = {id}, grpc = \"{}\", http = \"{}\" }},\n", pair[0], pair[1])
        })
        .collect();
    pairs
        .into_iter()
        .map(|(id, pair)| {
            let node = local_node(dir, id, pair[0].clone(), pair[1].clone());
            let data_dir = dir.join(format!("node-{id}"));
            let text = format!(
                "node_id = {id}\ndata_dir = {data_dir:?}\n\n[listen]\ngrpc = \"{}\"\nhttp = \"{}\"\n\n\
                 [cluster]\nmembers = [\n{members}]\n",
                node.grpc, node.http
            );
            fs::write(&node.config, text)
                .with_context(|| format!("{} cannot be written", node.config.display()))?;
            Ok(node)
        })
        .collect()
}

#[expect(clippy::disallowed_methods, reason = "sets up nodes from outside, as a person would")]
fn load_nodes(dir: &Path, node_count: u64) -> anyhow::Result<Vec<LocalNode>> {
    let mut nodes = Vec::new();
    for id in 1.. {
        let path = dir.join(format!("node-{id}.toml"));
        if !path.exists() {
            break;
        }
        let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let saved: SavedConfig =
            toml::from_str(&text).with_context(|| format!("{} is not a node's", path.display()))?;
        nodes.push(local_node(dir, saved.node_id, saved.listen.grpc, saved.listen.http));
    }
    if nodes.len() as u64 != node_count {
        bail!(
            "{} holds a cluster of {} nodes; give --nodes {}, or another directory",
            dir.display(),
            nodes.len(),
            nodes.len()
        );
    }
    Ok(nodes)
}

fn local_node(dir: &Path, id: u64, grpc: String, http: String) -> LocalNode {
    LocalNode {
        id,
        grpc,
        http,
        config: dir.join(format!("node-{id}.toml")),
        log: dir.join(format!("node-{id}.log")),
        data_dir: dir.join(format!("node-{id}")),
        process: None,
    }
}
