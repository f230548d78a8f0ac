//! `skein-node dev`: a cluster for trying things out.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

use super::cluster::LocalCluster;

/// How often it is seen whether the nodes run.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How long a node that was killed stays away.
const AWAY: Duration = Duration::from_secs(5);

/// What `skein-node dev` takes.
#[derive(clap::Args)]
pub struct DevOptions {
    /// How many nodes: 1, 3, 5 or 7.
    #[arg(long, default_value_t = 3)]
    nodes: u64,
    /// Where to keep data, logs and cluster.json. Kept when the cluster ends, and taken up again when it is started
    /// there the next time. Without it everything is in a temporary directory.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Runs a cluster until Ctrl-C or SIGTERM.
///
/// # Errors
/// When the cluster does not start, or a node ends that nobody told to.
pub fn dev(options: &DevOptions) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be handled")?;
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be handled")?;
        let mut cluster = LocalCluster::start(options.nodes, options.dir.as_deref())?;
        tokio::select! {
            ready = cluster.wait_ready() => drop(ready?),
            _ = interrupt.recv() => return cluster.stop(),
            _ = terminate.recv() => return cluster.stop(),
        }
        tell(&cluster);
        let mut away = BTreeMap::new();
        loop {
            tokio::select! {
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                () = tokio::time::sleep(LOOK_EVERY) => look_after(&mut cluster, &mut away)?,
            }
        }
        cluster.stop()
    })
}

/// Starts nodes again that somebody has killed, to see what happens, once there was time to see it.
#[expect(clippy::print_stdout, reason = "whoever killed a node wants to know")]
fn look_after(cluster: &mut LocalCluster, away: &mut BTreeMap<u64, Instant>) -> anyhow::Result<()> {
    for id in cluster.take_killed()? {
        println!("node {id} was killed; it is started again in {} s", AWAY.as_secs());
        away.insert(id, Instant::now() + AWAY);
    }
    let due: Vec<_> = away.iter().filter(|(_, at)| **at <= Instant::now()).map(|(id, _)| *id).collect();
    for id in due {
        away.remove(&id);
        cluster.restart(id)?;
        println!("node {id} is started again");
    }
    for id in cluster.take_removed()? {
        println!("node {id} was removed from the cluster, and has ended; the others carry on");
    }
    cluster.check_alive()
}

#[expect(clippy::print_stdout, reason = "this is what the program is asked to show")]
fn tell(cluster: &LocalCluster) {
    println!("A cluster of {} nodes is up. Ctrl-C ends it.\n", cluster.nodes().len());
    for node in cluster.nodes() {
        println!(
            "  node {}   grpc {}   http {}   pid {}",
            node.id,
            node.grpc,
            node.http,
            node.pid().unwrap_or_default()
        );
    }
    let servers = cluster.addresses().join(",");
    println!("\n  {}\n", cluster.dir().join("cluster.json").display());
    println!("Try it:\n  export SKEIN_SERVERS={servers}");
    println!("  skein queue create orders\n  skein publish orders 'two geese'\n  skein consume orders");
    println!(
        "\nKill a node with kill -9 and its pid to see the others carry on; it comes back after a while.\n"
    );
}
