//! `skein cluster status`: nodes, shards, leaders, and what is being done about them.

use serde_json::{Value, json};
use skein_client::{Node, NodeId, NodeStanding, Topology};

use crate::output::table;

pub(super) fn text(topology: &Topology) -> String {
    let mut nodes = vec![["NODE", "ADDRESS", "STATE", "LEADS"].map(str::to_owned).to_vec()];
    for node in &topology.nodes {
        let leads = topology.shards.iter().filter(|shard| shard.leader == Some(node.id)).count();
        nodes.push(vec![
            node.id.to_string(),
            if node.grpc_address.is_empty() { "-".to_owned() } else { node.grpc_address.clone() },
            state(node),
            format!("{leads} of {} shards", topology.shards.len()),
        ]);
    }
    let mut shards = vec![["SHARD", "LEADER", "TERM", "REPLICAS", "APPLIED"].map(str::to_owned).to_vec()];
    for shard in &topology.shards {
        let replicas: Vec<_> = shard.replicas.iter().map(NodeId::to_string).collect();
        let learners: String = shard.learners.iter().map(|node| format!(" (+{node})")).collect();
        shards.push(vec![
            shard.id.to_string(),
            shard.leader.map_or_else(|| "none".to_owned(), |node| node.to_string()),
            shard.term.to_string(),
            replicas.join(",") + &learners,
            shard.applied_index.to_string(),
        ]);
    }
    let activities: String = topology
        .shards
        .iter()
        .filter(|shard| !shard.activity.is_empty())
        .map(|shard| format!("\nshard {}: {}", shard.id, shard.activity))
        .collect();
    let activities = if activities.is_empty() { activities } else { format!("\n{activities}") };
    format!("cluster {}\n\n{}\n\n{}{activities}", topology.cluster_id, table(&nodes), table(&shards))
}

fn state(node: &Node) -> String {
    let mut state = match (node.standing, node.reachable) {
        (NodeStanding::Invited, _) => "invited",
        (_, false) => "unreachable",
        (_, true) => "up",
    }
    .to_owned();
    let notes = [
        (node.low_on_disk, "low on disk"),
        (node.drained, "drained"),
        (node.standing == NodeStanding::Leaving, "leaving"),
    ];
    for (_, note) in notes.into_iter().filter(|(holds, _)| *holds) {
        state = format!("{state}, {note}");
    }
    match node.replaces {
        Some(replaced) => format!("{state}, takes the place of {replaced}"),
        None => state,
    }
}

pub(super) fn value(topology: &Topology) -> Value {
    let nodes: Vec<_> = topology
        .nodes
        .iter()
        .map(|node| {
            json!({
                "node_id": node.id.get(),
                "grpc_address": node.grpc_address,
                "http_address": node.http_address,
                "reachable": node.reachable,
                "low_on_disk": node.low_on_disk,
                "standing": node.standing.name(),
                "drained": node.drained,
                "replaces_node_id": node.replaces.map(NodeId::get),
            })
        })
        .collect();
    let shards: Vec<_> = topology
        .shards
        .iter()
        .map(|shard| {
            json!({
                "shard_id": shard.id.get(),
                "leader_node_id": shard.leader.map(NodeId::get),
                "term": shard.term,
                "replica_node_ids": shard.replicas.iter().map(|node| node.get()).collect::<Vec<_>>(),
                "learner_node_ids": shard.learners.iter().map(|node| node.get()).collect::<Vec<_>>(),
                "applied_index": shard.applied_index,
                "activity": shard.activity,
            })
        })
        .collect();
    json!({ "cluster_id": topology.cluster_id, "nodes": nodes, "shards": shards })
}
