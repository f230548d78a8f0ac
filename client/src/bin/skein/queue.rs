//! `skein queue`: create, list, show, delete, purge.

use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};
use skein_client::{Client, Group, Queue, QueueSettings};

use crate::{
    args,
    output::{Output, table},
};

#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// Create a queue; one that exists with the same settings is left as it is.
    #[command(
        after_help = "Example:\n  skein queue create orders --max-deliveries 5 --dead-letter-queue orders.dead"
    )]
    Create {
        /// Letters, digits and . _ - : / , beginning with a letter or digit.
        name: String,
        /// Deliveries after which a message is given up [default: 20]
        #[arg(long, value_name = "COUNT")]
        max_deliveries: Option<u32>,
        /// Where messages go that are given up; without one they are dropped
        #[arg(long, value_name = "QUEUE")]
        dead_letter_queue: Option<String>,
        /// How long a consumer may hold a message, such as 500ms, 30s or 5m [default: 30s]
        #[arg(long, value_parser = args::duration)]
        lease: Option<Duration>,
    },
    /// List queues.
    List {
        /// Only queues whose names start with this.
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Show a queue and its consumer groups.
    Show { name: String },
    /// Delete a queue with its groups and messages.
    Delete { name: String },
    /// Delete all messages of a queue.
    Purge { name: String },
}

pub(crate) async fn run(client: &Client, command: QueueCommand, output: &Output) -> anyhow::Result<()> {
    match command {
        QueueCommand::Create { name, max_deliveries, dead_letter_queue, lease } => {
            let settings =
                QueueSettings { max_deliveries, dead_letter_queue, lease, ..QueueSettings::default() };
            let created = client.create_queue(&name, settings).await?;
            output.result(&json!({ "queue": name, "created": created }), || match created {
                true => format!("created {name}"),
                false => format!("{name} exists already, with the same settings"),
            })?;
        }
        QueueCommand::List { prefix } => {
            let queues = client.list_queues_with_prefix(&prefix).await?;
            if output.is_json() {
                queues.iter().try_for_each(|queue| output.line(&queue_value(queue).to_string()))?;
            } else {
                output.line(&queue_table(&queues))?;
            }
        }
        QueueCommand::Show { name } => {
            let queue = client.get_queue(&name).await?;
            output.result(&queue_value(&queue), || queue_text(&queue))?;
        }
        QueueCommand::Delete { name } => {
            client.delete_queue(&name).await?;
            output.result(&json!({ "queue": name, "deleted": true }), || format!("deleted {name}"))?;
        }
        QueueCommand::Purge { name } => {
            let purged = client.purge_queue(&name).await?;
            let value = json!({ "queue": name, "purged": purged });
            output.result(&value, || format!("deleted {purged} messages of {name}"))?;
        }
    }
    Ok(())
}

/// Columns for one group; also used by `skein group show`.
pub(crate) fn group_table(groups: &[Group]) -> String {
    let heading =
        ["GROUP", "UNACKED", "LEASED", "RETURNED", "CONSUMERS", "ACKED UP TO", "DEAD-LETTERED", "DROPPED"];
    let row = |group: &Group| {
        vec![
            group.name.clone(),
            group.unacked_count.to_string(),
            group.leased_count.to_string(),
            group.returned_count.to_string(),
            group.consumer_count.to_string(),
            group.acked_floor.to_string(),
            group.dead_lettered_count.to_string(),
            group.dropped_count.to_string(),
        ]
    };
    let rows: Vec<_> =
        std::iter::once(heading.map(str::to_owned).to_vec()).chain(groups.iter().map(row)).collect();
    table(&rows)
}

pub(crate) fn group_value(group: &Group) -> Value {
    json!({
        "group": group.name,
        "acked_floor": group.acked_floor.get(),
        "unacked_count": group.unacked_count,
        "leased_count": group.leased_count,
        "returned_count": group.returned_count,
        "consumer_count": group.consumer_count,
        "dead_lettered_count": group.dead_lettered_count,
        "dropped_count": group.dropped_count,
    })
}

fn queue_table(queues: &[Queue]) -> String {
    let heading = ["QUEUE", "MESSAGES", "BYTES", "GROUPS", "SHARD", "LEADER"].map(str::to_owned).to_vec();
    let row = |queue: &Queue| {
        vec![
            queue.name.clone(),
            queue.message_count.to_string(),
            queue.message_bytes.to_string(),
            queue.groups.len().to_string(),
            queue.shard.to_string(),
            leader(queue),
        ]
    };
    let rows: Vec<_> = std::iter::once(heading).chain(queues.iter().map(row)).collect();
    table(&rows)
}

fn queue_text(queue: &Queue) -> String {
    let settings = &queue.settings;
    let or_default = |value: Option<String>| value.unwrap_or_else(|| "default".to_owned());
    let rows = [
        ("queue", queue.name.clone()),
        ("messages", format!("{} ({} bytes)", queue.message_count, queue.message_bytes)),
        ("offsets", format!("{} up to, not including, {}", queue.first_offset, queue.next_offset)),
        ("shard", format!("{}, led by node {}", queue.shard, leader(queue))),
        ("max deliveries", or_default(settings.max_deliveries.map(|count| count.to_string()))),
        ("dead-letter queue", settings.dead_letter_queue.clone().unwrap_or_else(|| "none".to_owned())),
        ("lease", or_default(settings.lease.map(|lease| format!("{lease:?}")))),
    ];
    let facts = table(&rows.map(|(name, value)| vec![name.to_owned(), value]));
    if queue.groups.is_empty() { facts } else { format!("{facts}\n\n{}", group_table(&queue.groups)) }
}

fn queue_value(queue: &Queue) -> Value {
    json!({
        "queue": queue.name,
        "queue_id": queue.id.get(),
        "shard_id": queue.shard.get(),
        "leader_node_id": queue.leader.map(skein_client::NodeId::get),
        "first_offset": queue.first_offset.get(),
        "next_offset": queue.next_offset.get(),
        "message_count": queue.message_count,
        "message_bytes": queue.message_bytes,
        "max_deliveries": queue.settings.max_deliveries,
        "dead_letter_queue": queue.settings.dead_letter_queue,
        "lease_ms": queue.settings.lease.map(|lease| u64::try_from(lease.as_millis()).unwrap_or(u64::MAX)),
        "groups": queue.groups.iter().map(group_value).collect::<Vec<_>>(),
    })
}

fn leader(queue: &Queue) -> String {
    queue.leader.map_or_else(|| "none".to_owned(), |node| node.to_string())
}
