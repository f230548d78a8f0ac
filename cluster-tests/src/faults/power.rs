//! Power that fails: what has not reached the disk is gone. The disk itself keeps what it was given.
//!
//! The node's file system is shut down under it, without writing down what is in memory: the journal's open
//! transaction, dirty pages, sizes of files. Then the node is killed and the file system mounted again, which replays
//! the journal. What a disk does with its own cache is not simulated.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::{cluster::Cluster, mount, recorder::Recorder};

/// The power of some nodes failed, while others went on.
pub const POWER_LOSS: &str = "cut the power of a node";
/// The power of every node failed at once.
pub const POWER_LOSS_ALL: &str = "cut the power of every node";

/// FS_IOC_SHUTDOWN with "no log flush", for each directory. A program, because the call cannot be made in safe Rust.
const SHUT_DOWN: &str = "\
import fcntl, os, struct, sys
for path in sys.argv[1:]:
    fcntl.ioctl(os.open(path, os.O_RDONLY), 0x8004587d, struct.pack('I', 2))
";

/// Why this machine cannot simulate it. `None` when it can, given file systems for it.
#[must_use]
pub fn unavailable() -> Option<String> {
    let looked = mount::run(Command::new("python3").args(["-c", "import fcntl"]));
    looked.err().map(|error| format!("{error:#}"))
}

/// Cuts the power of these nodes, each of which has an ext4 of its own. They are down afterwards.
///
/// # Errors
/// When a node is not running, or its file system is not there when the power is back.
pub fn cut(cluster: &mut Cluster, recorder: &Recorder, node_ids: &[u64]) -> Result<()> {
    let dirs: Vec<_> = node_ids.iter().map(|node_id| cluster.data_dir(*node_id)).collect::<Result<_, _>>()?;
    let is_all = node_ids.len() == cluster.node_ids().len();
    ensure!(!is_all || cluster.running().len() == node_ids.len(), "not every node is running");
    recorder.disturbed(format!("the power of {node_ids:?} fails"));
    mount::run(Command::new("python3").args(["-c", SHUT_DOWN]).args(&dirs))
        .context("cannot shut a file system down")?;
    for node_id in node_ids {
        // It may have noticed and ended before.
        cluster.kill(*node_id)?;
        recorder.disturbed(format!("node {node_id} is dead"));
    }
    for node_id in node_ids {
        cluster.remount(*node_id).with_context(|| format!("the disk of node {node_id}"))?;
    }
    recorder.fault_done(if is_all { POWER_LOSS_ALL } else { POWER_LOSS });
    Ok(())
}
