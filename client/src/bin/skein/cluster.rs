//! `skein cluster`: what the cluster looks like, and who leads in it.

use clap::Subcommand;
use serde_json::{Value, json};
use skein_client::{Client, NodeId, ShardId, Topology};

use crate::output::{Output, table};

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show nodes, shards and their leaders.
    #[command(after_help = "Example:\n  skein cluster status --json")]
    Status,
    /// Let another replica lead a shard, as before a node is taken down.
    #[command(after_help = "Example:\n  skein cluster transfer 3 2     node 2 leads shard 3")]
    Transfer {
        /// The shard; skein cluster status lists them, skein queue show tells a queue's.
        #[arg(value_name = "SHARD")]
        shard: u32,
        /// The node that shall lead it.
        #[arg(value_name = "NODE")]
        node: u64,
    },
}

pub(crate) async fn run(client: &Client, command: ClusterCommand, output: &Output) -> anyhow::Result<()> {
    match command {
        ClusterCommand::Status => {
            let topology = client.topology().await?;
            output.result(&topology_value(&topology), || topology_text(&topology))?;
        }
        ClusterCommand::Transfer { shard, node } => {
            let term = client.transfer_leader(ShardId::new(shard), NodeId::new(node)).await?;
            let value = json!({ "shard_id": shard, "leader_node_id": node, "term": term });
            output.result(&value, || format!("node {node} leads shard {shard}, in term {term}"))?;
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
