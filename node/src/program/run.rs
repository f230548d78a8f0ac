//! `skein-node run`: one node, until it is told to stop or fails.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use skein_proto::ids::NodeId;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    config::Config,
    node::{Node, NodeFailure},
    tasks,
};

/// Files that may be open before the log of a large disk, in segments of the usual size, runs out of them.
const FILES_WANTED: u64 = 16_384;

/// What `skein-node run` takes.
#[derive(clap::Args)]
pub struct RunOptions {
    /// The configuration, in TOML; deploy/node.example.toml documents every field.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Which of cluster.members this node is, where the configuration does not say so because nodes share it.
    #[arg(long, value_name = "ID", env = "SKEIN_NODE_ID", value_parser = node_id)]
    node_id: Option<NodeId>,
    /// What this node joins a running cluster with, the first time it starts; skein cluster add prints one. A node that
    /// has its data directory does not need it any more, and does not look at it.
    #[arg(long, value_name = "TOKEN", env = "SKEIN_JOIN_TOKEN", hide_env_values = true)]
    join_token: Option<String>,
}

fn node_id(text: &str) -> Result<NodeId, String> {
    let number =
        text.parse().map_err(|_| "write the number that cluster.members has for this node, such as 1")?;
    Ok(NodeId::new(number))
}

/// Runs the node that a configuration describes.
///
/// # Errors
/// When the configuration or the data directory is refused, and when the node fails while it runs.
pub fn run(options: &RunOptions) -> anyhow::Result<()> {
    let config = Config::load(&options.config, options.node_id)?;
    abort_on_panic();
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.threads)
        .enable_all()
        .build()
        .context("the async runtime does not start")?;
    // Left empty where the environment of several nodes is set by one file.
    let join_token = options.join_token.as_deref().filter(|token| !token.is_empty());
    let ended = runtime.block_on(run_node(config, join_token));
    // What still reads in the background, as the scrub does, is not waited for: nothing depends on it.
    runtime.shutdown_background();
    ended
}

/// A node has a file open for each segment of its log, and a connection for each client; what a shell allows by default
/// is reached within some 60 GiB.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
    if let Some(files) = getrlimit(Resource::Nofile).current.filter(|files| *files < FILES_WANTED) {
        tracing::warn!(
            files,
            "few files may be open: raise the limit (ulimit -Hn), or let segments be larger"
        );
    }
}

/// A task that panicked has left its part of the node half done, and nobody who waits for it would know.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

async fn run_node(config: Config, join_token: Option<&str>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be handled")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be handled")?;
    let mut told = async move || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let mut node = tokio::select! {
        started = Node::start(config, join_token) => started?,
        () = told() => return Ok(()),
    };
    tokio::select! {
        failure = node.failed() => fail(&failure),
        () = told() => {}
    }
    tracing::info!("told to stop; leaving gracefully");
    let stopping = tasks::spawn(node.stop());
    tokio::select! {
        stopped = stopping => stopped.context("stopping went wrong"),
        () = told() => bail!("told to stop twice; stopped at once"),
    }
}

/// Ends the process at once, without another write: what is in memory may be ahead of what is on disk, and the other
/// nodes have what was confirmed.
fn fail(failure: &NodeFailure) -> ! {
    match failure {
        NodeFailure::Removed { .. } => tracing::error!(%failure, "the node stops"),
        _ => {
            tracing::error!(%failure, "the node failed and stops at once; start it again once the cause is mended");
        }
    }
    std::process::exit(1)
}
