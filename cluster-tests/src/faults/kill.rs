//! Nodes that die, nodes that are asked to leave, and nodes that stand still.

use anyhow::{Context as _, Result, ensure};

use crate::{cluster::Cluster, recorder::Recorder};

/// A leader died.
pub const KILL_LEADER: &str = "kill the leader";
/// A node that did not lead the queue died.
pub const KILL_FOLLOWER: &str = "kill a follower";
/// More nodes died than the cluster can do without.
pub const KILL_MAJORITY: &str = "kill a majority";
/// Every node died.
pub const KILL_ALL: &str = "kill every node";
/// Every node left and came back, one after the other.
pub const ROLLING_RESTART: &str = "restart one after the other";
/// A node died while it was receiving a snapshot.
pub const KILL_RECEIVER: &str = "kill the receiver of a snapshot";
/// A leader died while it was sending a snapshot.
pub const KILL_SENDER: &str = "kill the sender of a snapshot";
/// A node died while it was rewriting segments.
pub const KILL_REWRITER: &str = "kill a node that rewrites segments";

/// A leader was stopped for a while.
pub const PAUSE_LEADER: &str = "stop the leader for a while";

/// Kills one node, for whatever reason.
///
/// # Errors
/// When it is not running.
pub fn kill(cluster: &mut Cluster, recorder: &Recorder, node_id: u64) -> Result<()> {
    // Before and after: what follows may show before the second line is reached.
    recorder.disturbed(format!("node {node_id} is being killed"));
    cluster.kill(node_id)?;
    recorder.disturbed(format!("node {node_id} is dead"));
    Ok(())
}

/// Kills the leader of a queue and gives back which node it was.
///
/// # Errors
/// When there is no leader.
pub async fn kill_leader(cluster: &mut Cluster, recorder: &Recorder, queue: &str) -> Result<u64> {
    let leader = cluster.leader_of(queue).await?;
    kill(cluster, recorder, leader)?;
    recorder.fault_done(KILL_LEADER);
    Ok(leader)
}

/// Kills a node that does not lead the queue and gives back which one it was.
///
/// # Errors
/// When there is no leader, or no other node.
pub async fn kill_follower(cluster: &mut Cluster, recorder: &Recorder, queue: &str) -> Result<u64> {
    let leader = cluster.leader_of(queue).await?;
    let follower =
        cluster.running().into_iter().find(|node_id| *node_id != leader).context("no follower runs")?;
    kill(cluster, recorder, follower)?;
    recorder.fault_done(KILL_FOLLOWER);
    Ok(follower)
}

/// Kills the leader of a queue and as many others as make a majority together.
///
/// # Errors
/// When there is no leader.
pub async fn kill_majority(cluster: &mut Cluster, recorder: &Recorder, queue: &str) -> Result<Vec<u64>> {
    let leader = cluster.leader_of(queue).await?;
    let majority = cluster.node_ids().len() / 2 + 1;
    let others = cluster.running().into_iter().filter(|node_id| *node_id != leader);
    let victims: Vec<_> = [leader].into_iter().chain(others).take(majority).collect();
    for victim in &victims {
        kill(cluster, recorder, *victim)?;
    }
    recorder.fault_done(KILL_MAJORITY);
    Ok(victims)
}

/// Kills every node.
///
/// # Errors
/// When one cannot be killed.
pub fn kill_all(cluster: &mut Cluster, recorder: &Recorder) -> Result<()> {
    for node_id in cluster.running() {
        kill(cluster, recorder, node_id)?;
    }
    recorder.fault_done(KILL_ALL);
    Ok(())
}

/// Asks each node in turn to drain and leave, and starts it again; the next one goes when the cluster is ready.
///
/// # Errors
/// When a node does not leave with exit code 0, or does not come back.
pub async fn rolling_restart(cluster: &mut Cluster, recorder: &Recorder) -> Result<()> {
    for node_id in cluster.node_ids() {
        recorder.disturbed(format!("node {node_id} is asked to leave"));
        let status = cluster.terminate(node_id).await?;
        recorder.disturbed(format!("node {node_id} has left"));
        ensure!(status.success(), "node {node_id} left with {status}");
        recorder.disturbed(format!("node {node_id} comes back"));
        cluster.heal().await?;
    }
    recorder.fault_done(ROLLING_RESTART);
    Ok(())
}

/// Stops a node without ending it: its connections stay and say nothing.
///
/// # Errors
/// When it is not running.
pub fn pause(cluster: &Cluster, recorder: &Recorder, node_id: u64) -> Result<()> {
    recorder.disturbed(format!("node {node_id} is stopped"));
    cluster.process(node_id)?.pause()
}

/// Lets a stopped node go on, which does not know that time has passed.
///
/// # Errors
/// When it is not running.
pub fn resume(cluster: &Cluster, recorder: &Recorder, node_id: u64) -> Result<()> {
    cluster.process(node_id)?.resume()?;
    recorder.disturbed(format!("node {node_id} goes on"));
    recorder.fault_done(PAUSE_LEADER);
    Ok(())
}
