//! `skein cluster`: what the cluster looks like, who leads in it, and which nodes it has.

mod nodes;
mod status;

use std::time::Duration;

use clap::Subcommand;
use serde_json::json;
use skein_client::{Client, NodeId, ShardId};

use crate::{args, output::Output};

const ADD_EXAMPLES: &str = "\
Examples:
  skein cluster add               prints a token; start the new node with it:
  skein-node run --config node.toml --join-token TOKEN
  skein cluster wait              returns when every shard has a replica there

The new node's configuration has no node_id, lists in cluster.members nodes that it can ask, and says in [advertise]
where it is reached.";

const REPLACE_EXAMPLES: &str = "\
Examples:
  skein cluster replace 3         prints a token; start a node with it and an empty data_dir:
  skein-node run --config node.toml --join-token TOKEN
  skein cluster wait              returns when every shard has a replica there, and node 3 is gone

The new node may run where the old one ran, with the old one's configuration: the token alone says who it is.";

const CHECK_EXAMPLES: &str = "\
Examples:
  skein cluster rolling-check                 may the first one go?
  systemctl restart skein-node                on its machine
  skein cluster rolling-check --wait 10m      returns when the next one may";

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show nodes, shards and their leaders, and what is being done about them.
    #[command(after_help = "Example:\n  skein cluster status --json")]
    Status,
    /// Let a node join: give out the token that it is started with.
    #[command(after_help = ADD_EXAMPLES)]
    Add,
    /// Let a new node take the place of one that is dead, or lost its data: give out the token that it is started with.
    #[command(after_help = REPLACE_EXAMPLES)]
    Replace {
        /// The node whose place is taken.
        #[arg(value_name = "NODE")]
        node: u64,
    },
    /// Let a node leave for good, or take an invitation back, and wait until it is gone.
    #[command(after_help = "Example:\n  skein cluster remove 5")]
    Remove {
        #[arg(value_name = "NODE")]
        node: u64,
        #[command(flatten)]
        patience: Patience,
    },
    /// Let a node lead no shards, as before work on its machine, and wait until it leads none.
    #[command(
        after_help = "Examples:\n  skein cluster drain 2\n  skein cluster drain 2 --undo     it may lead again"
    )]
    Drain {
        #[arg(value_name = "NODE")]
        node: u64,
        /// Let it lead again.
        #[arg(long)]
        undo: bool,
        #[command(flatten)]
        patience: Patience,
    },
    /// Wait until every shard has the replicas that it is to have.
    #[command(after_help = "Example:\n  skein cluster wait --timeout 10m")]
    Wait {
        #[command(flatten)]
        patience: Patience,
    },
    /// Say whether a node may be taken down now, as in a rolling restart; ends with an error when none may.
    #[command(after_help = CHECK_EXAMPLES)]
    RollingCheck {
        /// Wait for this long until one may.
        #[arg(long, value_name = "DURATION", value_parser = args::duration)]
        wait: Option<Duration>,
    },
    /// Spread leaders evenly now, rather than once the cluster has been quiet for a while.
    #[command(after_help = "Example:\n  skein cluster rebalance")]
    Rebalance,
    /// Let another replica lead a shard.
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

/// How long something is waited for.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Patience {
    /// Give up waiting after this long; what was begun goes on.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = args::duration)]
    timeout: Duration,
}

pub(crate) async fn run(client: &Client, command: ClusterCommand, output: &Output) -> anyhow::Result<()> {
    match command {
        ClusterCommand::Status => {
            let topology = client.topology_of_leaders().await?;
            output.result(&status::value(&topology), || status::text(&topology))?;
        }
        ClusterCommand::Add => nodes::invite(client, None, output).await?,
        ClusterCommand::Replace { node } => nodes::invite(client, Some(NodeId::new(node)), output).await?,
        ClusterCommand::Remove { node, patience } => {
            nodes::remove(client, NodeId::new(node), patience, output).await?;
        }
        ClusterCommand::Drain { node, undo, patience } => {
            nodes::drain(client, NodeId::new(node), undo, patience, output).await?;
        }
        ClusterCommand::Wait { patience } => nodes::wait_settled(client, patience, output).await?,
        ClusterCommand::RollingCheck { wait } => nodes::rolling_check(client, wait, output).await?,
        ClusterCommand::Rebalance => nodes::rebalance(client, output).await?,
        ClusterCommand::Transfer { shard, node } => {
            let term = client.transfer_leader(ShardId::new(shard), NodeId::new(node)).await?;
            let value = json!({ "shard_id": shard, "leader_node_id": node, "term": term });
            output.result(&value, || format!("node {node} leads shard {shard}, in term {term}"))?;
        }
    }
    Ok(())
}
