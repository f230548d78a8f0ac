//! Figures of queues and their groups, told by the nodes that lead their shards: so that each is told once.

use super::exposition::{Exposition, Kind};
use crate::api::{Api, GroupFigures, QueueFigures};

/// Queues that are told of unless somebody asks for more: thousands of them would be too much for most scrapers.
pub(super) const QUEUES_DEFAULT: usize = 20;

/// Tells of queues, those with the longest backlog first.
pub(super) async fn tell_of_queues(exposition: &mut Exposition, api: &Api, queues_max: usize) {
    use Kind::{Counter, Gauge};
    let queues = api.busiest_queues(queues_max).await;
    let mut by_queue = |name, help, value: fn(&QueueFigures) -> u64| {
        let samples = queues.iter().map(|queue| (vec![("queue", queue.name.clone())], value(queue)));
        exposition.family(name, Gauge, help, samples);
    };
    by_queue("skein_queue_messages", "Messages that the queue keeps.", |queue| queue.messages);
    by_queue("skein_queue_bytes", "Bytes of the batches that hold them.", |queue| queue.bytes);

    let mut by_group = |name, kind, help, value: fn(&GroupFigures) -> u64| {
        exposition.family(name, kind, help, each_group(&queues, value));
    };
    by_group("skein_group_unacked_messages", Gauge, "Messages that the group has not acked.", |group| {
        group.unacked_messages
    });
    by_group("skein_group_unacked_bytes", Gauge, "Bytes of the batches that hold them.", |group| {
        group.unacked_bytes
    });
    by_group("skein_group_leased_messages", Gauge, "Messages that consumers hold.", |group| {
        group.leased_messages
    });
    by_group("skein_group_delayed_messages", Gauge, "Messages that are not due yet.", |group| {
        group.delayed_messages
    });
    by_group("skein_group_returned_messages", Gauge, "Messages that came back and are not acked.", |group| {
        group.returned_messages
    });
    by_group("skein_group_consumers", Gauge, "Consumers that are connected.", |group| group.consumers.into());
    by_group(
        "skein_group_dead_lettered_total",
        Counter,
        "Messages moved to the dead-letter queue.",
        |group| group.dead_lettered_total,
    );
    by_group("skein_group_dropped_total", Counter, "Messages given up and dropped.", |group| {
        group.dropped_total
    });
    exposition.family(
        "skein_group_oldest_unacked_age_seconds",
        Gauge,
        "Since when the oldest message that is not acked waits; 0 when all are.",
        each_group(&queues, |group| group.oldest_unacked_age.unwrap_or_default().as_secs_f64()),
    );
}

/// A figure of each group, with its labels.
fn each_group<V>(
    queues: &[QueueFigures],
    value: fn(&GroupFigures) -> V,
) -> impl Iterator<Item = (Vec<(&'static str, String)>, V)> {
    queues.iter().flat_map(move |queue| {
        let labels =
            |group: &GroupFigures| vec![("queue", queue.name.clone()), ("group", group.name.clone())];
        queue.groups.iter().map(move |group| (labels(group), value(group)))
    })
}
