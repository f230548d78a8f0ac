//! Packets that do not arrive.

use anyhow::Result;

use crate::{cluster::Cluster, network::Passing, recorder::Recorder};

/// A part of all packets between nodes was lost.
pub const LOSE_PACKETS: &str = "lose packets";
/// A node's cable was pulled out: nothing arrives, in no direction, and nobody is told.
pub const PULL_CABLE: &str = "pull a node's cable out";
/// What was sent to a node did not arrive, nor did what tells that it has.
pub const DEAFEN: &str = "let no packet arrive at a node";

/// Loses so many of a hundred packets between all nodes.
///
/// # Errors
/// When nodes have no hosts of their own.
pub fn lose(cluster: &Cluster, recorder: &Recorder, percent: u8) -> Result<()> {
    recorder.disturbed(format!("{percent} % of all packets are lost"));
    for node_id in cluster.node_ids() {
        cluster.network()?.set(node_id, Passing::Lossy { percent }, Passing::All)?;
    }
    recorder.fault_done(LOSE_PACKETS);
    Ok(())
}

/// Pulls a node's cable out.
///
/// # Errors
/// When nodes have no hosts of their own.
pub fn pull_cable(cluster: &Cluster, recorder: &Recorder, node_id: u64) -> Result<()> {
    recorder.disturbed(format!("the cable of node {node_id} is pulled out"));
    cluster.network()?.set(node_id, Passing::Nothing, Passing::Nothing)?;
    recorder.fault_done(PULL_CABLE);
    Ok(())
}

/// Lets no packet arrive at a node, while what it sends does.
///
/// # Errors
/// When nodes have no hosts of their own.
pub fn deafen(cluster: &Cluster, recorder: &Recorder, node_id: u64) -> Result<()> {
    recorder.disturbed(format!("no packet arrives at node {node_id}"));
    cluster.network()?.set(node_id, Passing::Nothing, Passing::All)?;
    recorder.fault_done(DEAFEN);
    Ok(())
}

/// Lets all packets arrive again.
///
/// # Errors
/// When nodes have no hosts of their own.
pub fn heal(cluster: &Cluster, recorder: &Recorder) -> Result<()> {
    recorder.disturbed("packets arrive again");
    for node_id in cluster.node_ids() {
        cluster.network()?.set(node_id, Passing::All, Passing::All)?;
    }
    recorder.disturbed("packets have arrived again");
    Ok(())
}
