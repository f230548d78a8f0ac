//! Machines whose clock is wrong, or whose disk is slow.

use std::time::Duration;

use anyhow::Result;

use crate::{cluster::Cluster, recorder::Recorder};

/// A node's clock was set.
pub const SET_CLOCK: &str = "set a node's clock";
/// A node's disk became slow.
pub const SLOW_DISK: &str = "slow a node's disk down";

/// Sets a node's clock, so many milliseconds ahead; behind when less than 0.
///
/// # Errors
/// When the cluster has no machines.
pub fn set_clock(cluster: &Cluster, recorder: &Recorder, node_id: u64, ahead_ms: i64) -> Result<()> {
    recorder.disturbed(format!("the clock of node {node_id} is set {ahead_ms} ms ahead"));
    recorder.clock_set();
    cluster.machine(node_id)?.set_clock(ahead_ms)?;
    recorder.fault_done(SET_CLOCK);
    Ok(())
}

/// Lets every write and sync of a node take so much longer.
///
/// # Errors
/// When the cluster has no machines.
pub fn slow_disk_down(cluster: &Cluster, recorder: &Recorder, node_id: u64, by: Duration) -> Result<()> {
    recorder.disturbed(format!("what node {node_id} writes takes {by:?} longer"));
    cluster.machine(node_id)?.slow_disk_down(by)?;
    recorder.fault_done(SLOW_DISK);
    Ok(())
}

/// Sets every clock right, and lets every disk be as fast as it is.
///
/// # Errors
/// When the cluster has no machines.
pub fn heal(cluster: &Cluster, recorder: &Recorder) -> Result<()> {
    recorder.disturbed("the machines are well again");
    for node_id in cluster.node_ids() {
        let machine = cluster.machine(node_id)?;
        machine.set_clock(0)?;
        machine.slow_disk_down(Duration::ZERO)?;
    }
    Ok(())
}
