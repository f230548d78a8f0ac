//! How `skein top` shows what it has seen.

use serde_json::{Value, json};
use skein_client::{NodeStanding, Topology};

use super::rates::{Busy, BusyGroup};
use crate::output::{age, table, unix_ms};

pub(super) fn text(topology: &Topology, queues: &[Busy], left_out: usize) -> String {
    let heading =
        ["QUEUE", "PUBLISHED/S", "KEPT", "GROUP", "DONE/S", "UNACKED", "HELD", "CONSUMERS", "OLDEST"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for queue in queues {
        let of_queue = vec![queue.name.clone(), rate(queue.published_per_s), queue.messages.to_string()];
        let nothing = vec![String::new(); of_queue.len()];
        let groups: Vec<_> = queue.groups.iter().map(of_group).collect();
        let first = groups.first().cloned().unwrap_or_else(|| vec!["-".to_owned()]);
        rows.push([of_queue, first].concat());
        rows.extend(groups.into_iter().skip(1).map(|group| [nothing.clone(), group].concat()));
    }
    let more = if left_out > 0 { format!("\n... and {left_out} other queues") } else { String::new() };
    format!("{}\n\n{}{more}", cluster(topology), table(&rows))
}

/// One line about the cluster, and what is wrong with it.
fn cluster(topology: &Topology) -> String {
    let members: Vec<_> =
        topology.nodes.iter().filter(|node| node.standing != NodeStanding::Invited).collect();
    let up = members.iter().filter(|node| node.reachable).count();
    let leaderless = topology.shards.iter().filter(|shard| shard.leader.is_none()).count();
    let moving = topology.shards.iter().filter(|shard| !shard.activity.is_empty()).count();
    let mut line = format!("{up} of {} nodes up, {} shards", members.len(), topology.shards.len());
    let low_on_disk = members.iter().filter(|node| node.low_on_disk).count();
    let notes = [
        (leaderless, "without a leader"),
        (moving, "whose replicas change"),
        (low_on_disk, "nodes low on disk"),
    ];
    for (count, what) in notes.into_iter().filter(|(count, _)| *count > 0) {
        line = format!("{line}, {count} {what}");
    }
    line
}

fn of_group(group: &BusyGroup) -> Vec<String> {
    let unknown = || "-".to_owned();
    let known = group.known.as_ref();
    vec![
        group.name.clone(),
        rate(group.done_per_s),
        group.unacked.to_string(),
        known.map_or_else(unknown, |known| known.leased_count.to_string()),
        known.map_or_else(unknown, |known| known.consumer_count.to_string()),
        known.and_then(|known| known.oldest_unacked_at).map_or_else(unknown, age),
    ]
}

/// With a decimal as long as that says anything.
fn rate(per_s: f64) -> String {
    if per_s > 0.0 && per_s < 10.0 { format!("{per_s:.1}") } else { format!("{per_s:.0}") }
}

pub(super) fn value(topology: &Topology, queues: &[Busy]) -> Value {
    let group = |group: &BusyGroup| {
        let known = group.known.as_ref();
        json!({
            "group": group.name,
            "done_per_s": group.done_per_s,
            "unacked_count": group.unacked,
            "leased_count": known.map(|known| known.leased_count),
            "consumer_count": known.map(|known| known.consumer_count),
            "oldest_unacked_at_ms": known.and_then(|known| known.oldest_unacked_at).map(unix_ms),
        })
    };
    let queue = |queue: &Busy| {
        json!({
            "queue": queue.name,
            "published_per_s": queue.published_per_s,
            "message_count": queue.messages,
            "message_bytes": queue.bytes,
            "groups": queue.groups.iter().map(group).collect::<Vec<_>>(),
        })
    };
    json!({
        "nodes_up": topology.nodes.iter().filter(|node| node.reachable).count(),
        "nodes": topology.nodes.len(),
        "shards_without_leader": topology.shards.iter().filter(|shard| shard.leader.is_none()).count(),
        "queues": queues.iter().map(queue).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_rates_have_a_decimal() {
        assert_eq!([0.0, 0.04, 9.94, 10.4, 123_456.7].map(rate), ["0", "0.0", "9.9", "10", "123457"]);
    }
}
