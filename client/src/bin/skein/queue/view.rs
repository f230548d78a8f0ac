//! How queues and groups are shown.

use serde_json::{Value, json};
use skein_client::{Group, NodeId, Queue};

use super::settings::{add_settings, settings_text};
use crate::output::{age, table, unix_ms};

/// Columns for each group.
pub(crate) fn group_table(groups: &[Group]) -> String {
    let heading = [
        "GROUP",
        "UNACKED",
        "BYTES",
        "OLDEST",
        "LEASED",
        "DELAYED",
        "RETURNED",
        "CONSUMERS",
        "ACKED UP TO",
        "DEAD-LETTERED",
        "DROPPED",
        "FILTER",
    ];
    let row = |group: &Group| {
        vec![
            group.name.clone(),
            group.unacked_count.to_string(),
            group.unacked_bytes.to_string(),
            group.oldest_unacked_at.map_or_else(|| "-".to_owned(), age),
            group.leased_count.to_string(),
            group.delayed_count.to_string(),
            group.returned_count.to_string(),
            group.consumer_count.to_string(),
            group.acked_floor.to_string(),
            group.dead_lettered_count.to_string(),
            group.dropped_count.to_string(),
            group.filter.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
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
        "unacked_bytes": group.unacked_bytes,
        "oldest_unacked_at_ms": group.oldest_unacked_at.map(unix_ms),
        "leased_count": group.leased_count,
        "delayed_count": group.delayed_count,
        "returned_count": group.returned_count,
        "consumer_count": group.consumer_count,
        "dead_lettered_count": group.dead_lettered_count,
        "dropped_count": group.dropped_count,
        "filter": group.filter.as_ref().map(ToString::to_string),
    })
}

pub(crate) fn queue_table(queues: &[Queue]) -> String {
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

/// What there is to see of a queue, with each of its partitions if it has any.
pub(crate) fn queue_text(queue: &Queue, partitions: &[Queue]) -> String {
    let mut state = vec![
        ("queue", queue.name.clone()),
        ("messages", format!("{} ({} bytes)", queue.message_count, queue.message_bytes)),
    ];
    if partitions.is_empty() {
        state
            .push(("offsets", format!("{} up to, not including, {}", queue.first_offset, queue.next_offset)));
        state.push(("shard", format!("{}, led by node {}", queue.shard, leader(queue))));
    }
    let state = state.into_iter().map(|(name, value)| vec![name.to_owned(), value]);
    let settings = settings_text(&queue.settings).into_iter().map(|row| row.to_vec());
    let mut parts = vec![table(&state.chain(settings).collect::<Vec<_>>())];
    if !partitions.is_empty() {
        parts.push(queue_table(partitions));
    }
    if !queue.groups.is_empty() {
        parts.push(group_table(&queue.groups));
    }
    parts.join("\n\n")
}

pub(crate) fn queue_value(queue: &Queue) -> Value {
    let mut value = json!({
        "queue": queue.name,
        "queue_id": queue.id.get(),
        "shard_id": queue.shard.get(),
        "leader_node_id": queue.leader.map(NodeId::get),
        "first_offset": queue.first_offset.get(),
        "next_offset": queue.next_offset.get(),
        "message_count": queue.message_count,
        "message_bytes": queue.message_bytes,
        "groups": queue.groups.iter().map(group_value).collect::<Vec<_>>(),
    });
    add_settings(&mut value, &queue.settings);
    value
}

fn leader(queue: &Queue) -> String {
    queue.leader.map_or_else(|| "none".to_owned(), |node| node.to_string())
}
