//! `skein-node run`: one node, until it is told to stop or fails.

use std::path::Path;

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    config::Config,
    node::{Node, NodeFailure},
    tasks,
};

/// Runs the node that a configuration describes.
///
/// # Errors
/// When the configuration or the data directory is refused, and when the node fails while it runs.
pub fn run(config: &Path) -> anyhow::Result<()> {
    let config = Config::load(config)?;
    abort_on_panic();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.threads)
        .enable_all()
        .build()
        .context("the async runtime does not start")?;
    runtime.block_on(run_node(config))
}

/// A task that panicked has left its part of the node half done, and nobody who waits for it would know.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

async fn run_node(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be handled")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be handled")?;
    let mut told = async move || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let mut node = tokio::select! {
        started = Node::start(config) => started?,
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
    tracing::error!(%failure, "the node failed and stops at once; start it again once the cause is mended");
    std::process::exit(1)
}
