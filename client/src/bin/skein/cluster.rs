//! `skein cluster`: what the cluster looks like.

use clap::Subcommand;
use serde_json::{Value, json};
use skein_client::{Client, NodeId, Topology};

use crate::output::{Output, table};

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show nodes, shards and their leaders.
    #[command(after_help = "Example:\n  skein cluster status --json")]
    Status,
}

pub(crate) async fn run(client: &Client, command: ClusterCommand, output: &Output) -> anyhow::Result<()> {
    match command {
        ClusterCommand::Status => {
            let topology = client.topology().await?;
            output.result(&topology_value(&topology), || topology_text(&topology))?;
        }
    }
    Ok(())
}

fn topology_text(topology: &Topology) -> String {
    let mut nodes = vec![["NODE", "ADDRESS", "STATE", "LEADS"].map(str::to_owned).to_vec()];
    for node in &topology.nodes {
        let leads = topology.shards.iter().filter(|shard| shard.leader == Some(node.id)).count();
        let state = match (node.reachable, node.low_on_disk) {
            (false, _) => "unreachable",
            (true, true) => "up, low on disk",
            (true, false) => "up",
        };
        nodes.push(vec![
            node.id.to_string(),
            node.grpc_address.clone(),
            state.to_owned(),
            format!("{leads} of {} shards", topology.shards.len()),
        ]);
    }
    let mut shards = vec![["SHARD", "LEADER", "TERM", "REPLICAS", "APPLIED"].map(str::to_owned).to_vec()];
    for shard in &topology.shards {
        let replicas: Vec<_> = shard.replicas.iter().map(NodeId::to_string).collect();
        shards.push(vec![
            shard.id.to_string(),
            shard.leader.map_or_else(|| "none".to_owned(), |node| node.to_string()),
            shard.term.to_string(),
            replicas.join(","),
            shard.applied_index.to_string(),
        ]);
    }
    format!("cluster {}\n\n{}\n\n{}", topology.cluster_id, table(&nodes), table(&shards))
}

fn topology_value(topology: &Topology) -> Value {
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
                "applied_index": shard.applied_index,
            })
        })
        .collect();
    json!({ "cluster_id": topology.cluster_id, "nodes": nodes, "shards": shards })
}
