//! Asks every node, once all is calm, what it holds.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use skein_proto::broker::{
    BrowseRequest, BrowsedBatch, ListQueuesRequest, Queue, broker_client::BrokerClient,
    queues_client::QueuesClient,
};

use crate::{
    cluster::Cluster,
    faults,
    history::{Counts, View},
    recorder::Recorder,
    stamp, wait,
};

/// Followers apply what the leader applied within this.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(15);

/// Records what each node counts, and what two leaders of every kept queue show, and the suspect if there is one.
/// Nothing may be published or consumed meanwhile. Leaders are killed for it; the cluster is whole again afterwards.
///
/// # Errors
/// When a node does not answer, or the nodes do not catch up.
pub async fn compare(cluster: &mut Cluster, recorder: &Recorder, suspect: Option<u64>) -> Result<()> {
    wait_applied(cluster).await?;
    let queues: Vec<_> = recorder.with(|history| history.kept.iter().cloned().collect());
    for node_id in cluster.running() {
        let counts = counts(cluster, node_id).await?;
        recorder.with(|history| history.counts.extend(counts));
    }

    let mut first_leaders = BTreeMap::new();
    for queue in &queues {
        first_leaders.insert(queue, view(cluster, recorder, queue).await?);
    }
    if let Some(suspect) = suspect {
        // What it shows shall come from its disk.
        faults::kill::kill(cluster, recorder, suspect)?;
        cluster.heal().await?;
        wait_applied(cluster).await?;
        for queue in &queues {
            cluster.make_leader(queue, suspect).await?;
            let shown_by = view(cluster, recorder, queue).await?;
            ensure!(shown_by == suspect, "node {suspect} led {queue}, and node {shown_by} showed it");
            first_leaders.insert(queue, suspect);
        }
    }
    for queue in &queues {
        let leader = cluster.leader_of(queue).await?;
        if first_leaders[queue] == leader {
            faults::kill::kill(cluster, recorder, leader)?;
        }
        view(cluster, recorder, queue).await?;
        cluster.heal().await?;
    }
    Ok(())
}

/// Waits until every running node has applied every shard as far as all others.
async fn wait_applied(cluster: &Cluster) -> Result<()> {
    wait::until("every node to have applied the same", CATCH_UP_LIMIT, async || {
        let topologies = cluster.topologies().await;
        ensure!(topologies.len() == cluster.running().len(), "only {} nodes answer", topologies.len());
        let applied: Vec<BTreeMap<_, _>> = topologies
            .iter()
            .map(|topology| {
                topology.shards.iter().map(|shard| (shard.shard_id, shard.applied_index)).collect()
            })
            .collect();
        ensure!(applied.windows(2).all(|pair| pair[0] == pair[1]), "{applied:?}");
        Ok(())
    })
    .await
}

async fn counts(cluster: &Cluster, node_id: u64) -> Result<Vec<Counts>> {
    let request = ListQueuesRequest::default();
    let answer = QueuesClient::new(cluster.channel(node_id)?).list_queues(request).await;
    let answer = answer.with_context(|| format!("ListQueues on node {node_id}"))?.into_inner();
    ensure!(!answer.more, "more queues than fit a page");
    let counts = answer.queues.into_iter().map(|queue| {
        let figures = figures(&queue);
        Counts { node_id, queue: queue.name, figures }
    });
    Ok(counts.collect())
}

/// Everything that is replicated. Leases and consumers are the leader's own.
fn figures(queue: &Queue) -> BTreeMap<String, u64> {
    let counts = queue.counts.clone().unwrap_or_default();
    let mut figures: BTreeMap<_, _> = [
        ("queue_id", queue.queue_id),
        ("shard_id", queue.shard_id.into()),
        ("first_offset", counts.first_offset),
        ("next_offset", counts.next_offset),
        ("messages", counts.messages),
        ("bytes", counts.bytes),
    ]
    .map(|(name, figure)| (name.to_owned(), figure))
    .into();
    for group in counts.groups {
        for (name, figure) in [
            ("acked_floor", group.acked_floor),
            ("unacked", group.unacked_messages),
            ("returned", group.returned_messages),
            ("dead_lettered", group.dead_lettered_total),
            ("dropped", group.dropped_total),
        ] {
            figures.insert(format!("{} {name}", group.name), figure);
        }
    }
    figures
}

/// Browses a queue through its leader. Gives back which node that was.
async fn view(cluster: &Cluster, recorder: &Recorder, queue: &str) -> Result<u64> {
    let node_id = cluster.leader_of(queue).await?;
    let invoked = recorder.now();
    let request = BrowseRequest { queue: queue.to_owned(), ..BrowseRequest::default() };
    let mut client = BrokerClient::new(cluster.channel(node_id)?)
        .max_decoding_message_size(skein_proto::limits::GRPC_MESSAGE_BYTES_MAX);
    let browse = async {
        let mut contents = Vec::new();
        let mut batches = client.browse(request).await?.into_inner();
        while let Some(answer) = batches.message().await? {
            for BrowsedBatch { first_offset, batch, .. } in answer.batches {
                let messages = batch.unwrap_or_default().messages;
                contents
                    .extend((first_offset..).zip(messages.iter().map(|message| stamp::open(&message.body))));
            }
        }
        anyhow::Ok(contents)
    };
    let contents = browse.await.with_context(|| format!("browsing {queue} on node {node_id}"))?;
    recorder.with(|history| history.views.push(View { node_id, queue: queue.to_owned(), invoked, contents }));
    Ok(node_id)
}
