//! What a node's log takes of its disk, held against what is still needed of it.

use std::{fs, os::unix::fs::MetadataExt as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use skein_proto::broker::{ListQueuesRequest, queues_client::QueuesClient};

use crate::{cluster::Cluster, wait};

/// A block of `st_blocks`, whatever the file system's own are.
const BLOCK_BYTES: u64 = 512;

/// Segments that are less than half needed are rewritten, so what is needed takes twice its bytes at most.
const LIVE_FACTOR: u64 = 2;

/// Segments that may hold nothing needed and still stay: the one being written, the one got ready after it, and those
/// with the last entries of the shards, which raft keeps until it is told that they are everywhere.
const SEGMENTS_EXTRA: u64 = 4;

/// What a node's log takes of the disk, reserved space included.
///
/// # Errors
/// When the log's directory cannot be read.
pub fn log_bytes(cluster: &Cluster, node_id: u64) -> Result<u64> {
    let dir = cluster.data_dir(node_id)?.join("log");
    let files = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
    // One that was removed or renamed since it was listed takes nothing under its old name.
    let blocks = files.filter_map(|file| Some(file.ok()?.metadata().ok()?.blocks()));
    Ok(blocks.sum::<u64>() * BLOCK_BYTES)
}

/// How many segments a node has let go of since its log was made. They are numbered from 1, and no number comes twice.
///
/// # Errors
/// When the log's directory cannot be read.
pub fn segments_gone(cluster: &Cluster, node_id: u64) -> Result<u64> {
    let dir = cluster.data_dir(node_id)?.join("log");
    let files = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let numbers: Vec<u64> = files
        .filter_map(|file| file.ok()?.file_name().to_str()?.strip_suffix(".seg")?.parse().ok())
        .collect();
    Ok(numbers.iter().max().map_or(0, |newest| newest - numbers.len() as u64))
}

/// The bytes of all messages that are kept, as a node counts them.
///
/// # Errors
/// When it does not answer.
pub async fn live_bytes(cluster: &Cluster, node_id: u64) -> Result<u64> {
    let answer = QueuesClient::new(cluster.channel(node_id)?).list_queues(ListQueuesRequest::default()).await;
    let answer = answer.with_context(|| format!("ListQueues on node {node_id}"))?.into_inner();
    ensure!(!answer.more, "more queues than fit a page");
    Ok(answer.queues.into_iter().map(|queue| queue.counts.unwrap_or_default().bytes).sum())
}

/// Waits until every running node's log takes no more than is promised: twice what is needed, `lag_bytes` for nodes
/// that are away, [`SEGMENTS_EXTRA`] segments, and the spare ones that the node counts as free.
///
/// # Errors
/// When a log still takes more after `limit`.
pub async fn wait_given_back(
    cluster: &Cluster,
    segment_bytes: u64,
    lag_bytes: u64,
    limit: Duration,
) -> Result<()> {
    for node_id in cluster.running() {
        wait::until(&format!("node {node_id} to give space back"), limit, async || {
            let live = live_bytes(cluster, node_id).await?;
            let spares = cluster.metric(node_id, "skein_log_spare_segments").await?;
            let allowed = LIVE_FACTOR * live + lag_bytes + (SEGMENTS_EXTRA + spares) * segment_bytes;
            let taken = log_bytes(cluster, node_id)?;
            ensure!(taken <= allowed, "{taken} bytes, {live} of them needed, {spares} spare segments");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
