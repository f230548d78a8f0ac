//! A cluster in containers, as `deploy/` sets it up: built, started, disturbed, and removed whatever happens.

use std::{
    collections::BTreeMap,
    env, fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use tokio::{process, time};
use tonic::transport::{Channel, Endpoint};

use crate::{http, process as programs, wait};

/// Nodes of `deploy/compose.yaml`.
const NODES: u64 = 3;

/// One call to the engine. Building the image copies some hundred megabytes.
const ENGINE_LIMIT: Duration = Duration::from_secs(60);

/// Every shard of a fresh or healed cluster has a leader within this.
const READY_LIMIT: Duration = Duration::from_secs(40);

/// The engine asks every 5 s.
const HEALTHY_LIMIT: Duration = Duration::from_secs(20);

/// One call to one node, all included.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// Ways to call compose, the newer one first.
const COMPOSE: [&[&str]; 2] = [&["docker", "compose"], &["docker-compose"]];

/// A compose project with an image of its own. Dropping it removes both, with the volumes.
#[derive(Debug)]
pub struct Containers {
    project: Project,
    nodes: BTreeMap<u64, Node>,
    network: String,
}

/// What has to be removed in the end, known before any of it is there.
#[derive(Debug)]
struct Project {
    /// Also the name of the image, and of the container that takes addresses.
    name: String,
    compose: &'static [&'static str],
    ports: BTreeMap<u64, [u16; 2]>,
    dir: TempDir,
}

#[derive(Debug)]
struct Node {
    container: String,
    /// Where the host finds it.
    grpc: SocketAddr,
    http: SocketAddr,
}

/// What goes into the image.
#[derive(Debug)]
pub struct Programs {
    node: PathBuf,
    command_line: PathBuf,
}

impl Programs {
    /// Brings the programs of this build up to date, which may take as long as building takes.
    ///
    /// # Errors
    /// When they do not build.
    pub fn build() -> Result<Self> {
        let node = fs::canonicalize(programs::node_binary()?).context("where is the node program?")?;
        Ok(Self { node, command_line: programs::command_line_binary()? })
    }
}

/// Why this machine, or whoever runs the tests, cannot have containers. `None` when it can.
pub async fn unavailable() -> Option<String> {
    if let Err(error) = run(Command::new("docker").args(["version", "--format", "{{.Server.Version}}"])).await
    {
        return Some(format!("no Docker engine answers: {error:#}"));
    }
    match find_compose().await {
        Some(_) => None,
        None => Some("there is neither docker compose nor docker-compose".to_owned()),
    }
}

async fn find_compose() -> Option<&'static [&'static str]> {
    for compose in COMPOSE {
        if run(Command::new(compose[0]).args(&compose[1..]).arg("version")).await.is_ok() {
            return Some(compose);
        }
    }
    None
}

impl Containers {
    /// Builds the image of these programs, starts the project, and waits until it is ready.
    ///
    /// # Errors
    /// When the image cannot be built, or the cluster does not become ready.
    pub async fn up(programs: &Programs) -> Result<Self> {
        let project = Project::new().await?;
        project.build_image(programs).await?;
        fs::write(project.config(), project.config_text()?).context("cannot configure")?;
        run(project.compose().args(["up", "--detach", "--no-build"])).await?;
        let mut nodes = BTreeMap::new();
        for (node_id, [grpc, http]) in &project.ports {
            let container = run(project.compose().args(["ps", "--quiet", &service(*node_id)])).await?;
            let [grpc, http] = [grpc, http].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, *port)));
            nodes.insert(*node_id, Node { container, grpc, http });
        }
        let mut containers = Self { project, nodes, network: String::new() };
        const NETWORKS: &str = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}";
        containers.network = containers.inspect(1, NETWORKS).await?;
        match containers.wait_ready().await {
            Ok(()) => Ok(containers),
            Err(error) => Err(error.context(containers.logs().await)),
        }
    }

    /// All nodes, running or not.
    #[must_use]
    pub fn node_ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    /// The gRPC addresses that the host has for the nodes.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.values().map(|node| node.grpc.to_string()).collect()
    }

    /// Connections from the host to every node, which come back by themselves. Must run within a tokio runtime.
    ///
    /// # Errors
    /// When an address is not one.
    pub fn channels(&self) -> Result<Vec<Channel>> {
        let channels = self.addresses().into_iter().map(|address| {
            let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
            Ok(endpoint.connect_timeout(CALL_LIMIT).timeout(CALL_LIMIT).connect_lazy())
        });
        channels.collect()
    }

    /// Waits until every node says that every shard has a leader.
    ///
    /// # Errors
    /// When that takes longer than [`READY_LIMIT`].
    pub async fn wait_ready(&self) -> Result<()> {
        for (node_id, node) in &self.nodes {
            wait::until(&format!("node {node_id} ready"), READY_LIMIT, async || {
                let status = http::status(node.http, "/readyz").await?;
                ensure!(status == 200, "/readyz answers {status}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Waits until the image's own health check is content with a node.
    ///
    /// # Errors
    /// When that takes longer than [`HEALTHY_LIMIT`].
    pub async fn wait_healthy(&self, node_id: u64) -> Result<()> {
        wait::until(&format!("node {node_id} healthy"), HEALTHY_LIMIT, async || {
            let health = self.inspect(node_id, "{{json .State.Health}}").await?;
            ensure!(health.contains("\"Status\":\"healthy\""), "{health}");
            Ok(())
        })
        .await
    }

    /// Ends a node at once.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn kill(&self, node_id: u64) -> Result<()> {
        self.docker(&["kill", self.container(node_id)?]).await
    }

    /// Starts a node that has ended.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start(&self, node_id: u64) -> Result<()> {
        self.docker(&["start", self.container(node_id)?]).await
    }

    /// Starts a node that was killed, with another address than it had.
    ///
    /// # Errors
    /// When it cannot be started, or has the same address.
    pub async fn start_elsewhere(&self, node_id: u64, before: &str) -> Result<()> {
        let Project { name, .. } = &self.project;
        // Takes the address that has become free: a whole cluster, for want of a smaller program that stays.
        let taker = ["run", "--detach", "--name", name, "--network", &self.network, "--tmpfs", "/tmp", name];
        self.docker(&[&taker[..], &["dev", "--nodes", "1"]].concat()).await?;
        self.start(node_id).await?;
        self.docker(&["rm", "--force", "--volumes", name]).await?;
        let address = self.address(node_id).await?;
        ensure!(address != before, "node {node_id} has the address {before} again");
        Ok(())
    }

    /// The address of a node among the other ones.
    ///
    /// # Errors
    /// When it has none.
    pub async fn address(&self, node_id: u64) -> Result<String> {
        let address =
            self.inspect(node_id, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}").await?;
        ensure!(!address.is_empty(), "node {node_id} has no address");
        Ok(address)
    }

    /// Stops a node without ending it: by a signal, since engines that run in a container themselves cannot freeze.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn pause(&self, node_id: u64) -> Result<()> {
        self.docker(&["kill", "--signal", "STOP", self.container(node_id)?]).await
    }

    /// Lets a stopped node go on.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn unpause(&self, node_id: u64) -> Result<()> {
        self.docker(&["kill", "--signal", "CONT", self.container(node_id)?]).await
    }

    /// Takes a node's network away, with the way from the host to it.
    ///
    /// # Errors
    /// When it has none.
    pub async fn disconnect(&self, node_id: u64) -> Result<()> {
        self.docker(&["network", "disconnect", &self.network, self.container(node_id)?]).await
    }

    /// Gives it back.
    ///
    /// # Errors
    /// When it has one.
    pub async fn reconnect(&self, node_id: u64) -> Result<()> {
        let (name, container) = (service(node_id), self.container(node_id)?);
        self.docker(&["network", "connect", "--alias", &name, &self.network, container]).await
    }

    /// Asks a node to leave and gives its exit code.
    ///
    /// # Errors
    /// When the engine had to kill it.
    pub async fn stop(&self, node_id: u64) -> Result<()> {
        self.docker(&["stop", "--time", "20", self.container(node_id)?]).await?;
        let code = self.inspect(node_id, "{{.State.ExitCode}}").await?;
        ensure!(code == "0", "node {node_id} left with exit code {code}");
        Ok(())
    }

    /// Takes a node away with its volume, as if its machine had burnt down.
    ///
    /// # Errors
    /// When the engine refuses.
    pub async fn destroy(&self, node_id: u64) -> Result<()> {
        let (project, service) = (&self.project, service(node_id));
        run(project.compose().args(["rm", "--stop", "--force", &service])).await?;
        self.docker(&["volume", "rm", &format!("{}_{service}", project.name)]).await
    }

    /// Starts a node with a new volume and a token where one was destroyed.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start_anew(&mut self, node_id: u64, token: &str) -> Result<()> {
        let (project, service) = (&self.project, service(node_id));
        let mut up = project.compose();
        up.env("SKEIN_JOIN_TOKEN", token);
        run(up.args(["up", "--detach", "--no-build", "--no-deps", &service])).await?;
        let container = run(project.compose().args(["ps", "--quiet", &service])).await?;
        self.nodes.get_mut(&node_id).context("no such node")?.container = container;
        Ok(())
    }

    /// The end of every node's log, to be shown when something failed.
    pub async fn logs(&self) -> String {
        let logs = run(self.project.compose().args(["logs", "--no-color", "--tail", "60"])).await;
        logs.unwrap_or_else(|error| format!("no logs: {error:#}"))
    }

    async fn inspect(&self, node_id: u64, format: &str) -> Result<String> {
        run(Command::new("docker").args(["inspect", "--format", format, self.container(node_id)?])).await
    }

    async fn docker(&self, arguments: &[&str]) -> Result<()> {
        run(Command::new("docker").args(arguments)).await.map(drop)
    }

    fn container(&self, node_id: u64) -> Result<&str> {
        let node = self.nodes.get(&node_id).with_context(|| format!("there is no node {node_id}"))?;
        Ok(&node.container)
    }
}

impl Project {
    async fn new() -> Result<Self> {
        let compose = find_compose().await.context("compose is gone")?;
        // All are held until all are known, so that none is given twice.
        let listeners: Vec<_> = (0..2 * NODES)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .collect::<Result<_, _>>()
            .context("no free ports on loopback")?;
        let ports: Vec<_> =
            listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect::<Result<_>>()?;
        let ports = (1..=NODES).zip(ports.chunks(2).map(|pair| [pair[0], pair[1]])).collect();
        let dir = tempfile::Builder::new().prefix("skein-").tempdir().context("cannot make a directory")?;
        let name = format!("skein-test-{:08x}", rand::random::<u32>());
        Ok(Self { name, compose, ports, dir })
    }

    /// Lays out the programs and puts them on an empty base.
    async fn build_image(&self, built: &Programs) -> Result<()> {
        let (programs, files) = (self.dir.path().join("programs"), self.dir.path().join("image"));
        fs::create_dir(&programs).context("cannot make a directory")?;
        symlink(&built.node, programs.join("skein-node")).context("cannot link the node program")?;
        symlink(&built.command_line, programs.join("skein")).context("cannot link the command line")?;
        let deploy = deploy();
        run(Command::new(deploy.join("image-files.sh")).arg(&programs).arg(&files)).await?;
        let mut build = Command::new("docker");
        build.args(["build", "--quiet", "--target", "prebuilt", "--tag", &self.name, "--file"]);
        run(build.arg(deploy.join("Dockerfile")).arg(&files)).await?;
        Ok(())
    }

    /// The configuration of `deploy/`, with the ports that are published here.
    fn config_text(&self) -> Result<String> {
        let mut text =
            fs::read_to_string(deploy().join("compose.toml")).context("cannot read compose.toml")?;
        for (node_id, [grpc, _]) in &self.ports {
            let (usual, ours) = (format!("127.0.0.1:{}", 7_100 + node_id), format!("127.0.0.1:{grpc}"));
            ensure!(text.contains(&usual), "compose.toml does not name {usual}");
            text = text.replace(&usual, &ours);
        }
        Ok(text)
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("node.toml")
    }

    fn compose(&self) -> Command {
        let mut command = Command::new(self.compose[0]);
        command.args(&self.compose[1..]).args(["--project-name", &self.name, "--file"]);
        command.arg(deploy().join("compose.yaml"));
        command.env("SKEIN_IMAGE", &self.name).env("SKEIN_CONFIG", self.config());
        for (node_id, [grpc, http]) in &self.ports {
            command.env(format!("SKEIN_{node_id}_GRPC_PORT"), grpc.to_string());
            command.env(format!("SKEIN_{node_id}_HTTP_PORT"), http.to_string());
        }
        command
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        let docker = |arguments: &[&str]| {
            let mut command = Command::new("docker");
            command.args(arguments);
            command
        };
        let mut down = self.compose();
        down.args(["down", "--volumes", "--timeout", "0"]);
        let taker = docker(&["rm", "--force", "--volumes", &self.name]);
        let image = docker(&["rmi", "--force", &self.name]);
        for mut command in [taker, down, image] {
            // Some of it may not be there, and nobody is left to hear of a failure.
            let _ = command.stdin(Stdio::null()).output();
        }
    }
}

fn service(node_id: u64) -> String {
    format!("skein-{node_id}")
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// Runs a program to its end and gives what it prints. What it complains about is part of the error.
async fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
    let what = format!("{program} {}", arguments.join(" "));
    let mut async_command = process::Command::new(command.get_program());
    async_command.args(command.get_args()).kill_on_drop(true).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        async_command.env(name, value.unwrap_or_default());
    }
    let output = time::timeout(ENGINE_LIMIT, async_command.output())
        .await
        .with_context(|| format!("{what} takes longer than {ENGINE_LIMIT:?}"))?
        .with_context(|| format!("cannot run {program}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{what} failed ({}): {}", output.status, complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
