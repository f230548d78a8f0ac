//! Nodes that cannot hear each other, in every combination, or only after a while.

use std::time::Duration;

use anyhow::Result;

use crate::{cluster::Cluster, links::Flow, recorder::Recorder};

/// A node and all others did not hear each other.
pub const CUT_OFF: &str = "cut a node off";
/// A node was not heard by the others, but heard them.
pub const NOT_HEARD: &str = "let nobody hear a node";
/// A node did not hear the others, but was heard by them.
pub const HEARS_NOBODY: &str = "let a node hear nobody";
/// Two nodes did not hear each other, and a third heard both.
pub const CUT_PAIR: &str = "cut the way between two nodes";
/// What went to and from a node took long.
pub const SLOW: &str = "slow a node's ways down";

/// Cuts a node off from all others.
///
/// # Errors
/// When the cluster has no links.
pub fn cut_off(cluster: &Cluster, recorder: &Recorder, node_id: u64) -> Result<()> {
    recorder.disturbed(format!("node {node_id} is cut off"));
    let links = cluster.links()?;
    links.set_to(node_id, Flow::CUT);
    links.set_from(node_id, Flow::CUT);
    recorder.fault_done(CUT_OFF);
    Ok(())
}

/// Lets nobody hear a node.
///
/// # Errors
/// When the cluster has no links.
pub fn let_nobody_hear(cluster: &Cluster, recorder: &Recorder, node_id: u64) -> Result<()> {
    recorder.disturbed(format!("nobody hears node {node_id}"));
    cluster.links()?.set_from(node_id, Flow::CUT);
    recorder.fault_done(NOT_HEARD);
    Ok(())
}

/// Lets a node hear nobody.
///
/// # Errors
/// When the cluster has no links.
pub fn let_hear_nobody(cluster: &Cluster, recorder: &Recorder, node_id: u64) -> Result<()> {
    recorder.disturbed(format!("node {node_id} hears nobody"));
    cluster.links()?.set_to(node_id, Flow::CUT);
    recorder.fault_done(HEARS_NOBODY);
    Ok(())
}

/// Cuts the way between two nodes.
///
/// # Errors
/// When the cluster has no links.
pub fn cut_pair(cluster: &Cluster, recorder: &Recorder, one: u64, other: u64) -> Result<()> {
    recorder.disturbed(format!("nodes {one} and {other} do not hear each other"));
    cluster.links()?.set_both(one, other, Flow::CUT);
    recorder.fault_done(CUT_PAIR);
    Ok(())
}

/// Lets everything to and from a node take so long, each way.
///
/// # Errors
/// When the cluster has no links.
pub fn slow_down(cluster: &Cluster, recorder: &Recorder, node_id: u64, delay: Duration) -> Result<()> {
    recorder.disturbed(format!("what goes to and from node {node_id} takes {delay:?}"));
    let links = cluster.links()?;
    links.set_to(node_id, Flow::slow(delay));
    links.set_from(node_id, Flow::slow(delay));
    recorder.fault_done(SLOW);
    Ok(())
}

/// Lets everything that one node says to another one take so long.
///
/// # Errors
/// When the cluster has no links.
pub fn slow_way_down(
    cluster: &Cluster,
    recorder: &Recorder,
    (from, to): (u64, u64),
    delay: Duration,
) -> Result<()> {
    recorder.disturbed(format!("what node {from} says to node {to} takes {delay:?}"));
    cluster.links()?.set(from, to, Flow::slow(delay));
    recorder.fault_done(SLOW);
    Ok(())
}

/// Opens every way.
///
/// # Errors
/// When the cluster has no links.
pub fn heal(cluster: &Cluster, recorder: &Recorder) -> Result<()> {
    recorder.disturbed("all hear each other again");
    cluster.links()?.heal();
    // What was held back arrives, and may have its effects now.
    recorder.disturbed("all have heard each other again");
    Ok(())
}
