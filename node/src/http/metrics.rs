//! Figures of this node and of its shards.

use axum::extract::{RawQuery, State};

use super::{
    HttpState,
    exposition::{Exposition, Kind},
    queues,
};
use crate::raft::Group;

/// All figures in Prometheus text format. `?queues=` says how many queues to tell of, those with the longest backlog
/// first, or `all` of them.
pub(super) async fn metrics(State(state): State<HttpState>, RawQuery(query): RawQuery) -> String {
    let mut exposition = Exposition::default();
    tell_of_node(&mut exposition, &state);
    tell_of_times(&mut exposition, &state);
    tell_of_shards(&mut exposition, &state);
    let asked =
        query.as_deref().and_then(|query| query.split('&').find_map(|part| part.strip_prefix("queues=")));
    let queues_max = match asked {
        Some("all") => usize::MAX,
        asked => asked.and_then(|count| count.parse().ok()).unwrap_or(queues::QUEUES_DEFAULT),
    };
    queues::tell_of_queues(&mut exposition, &state.api, queues_max).await;
    exposition.into_text()
}

fn tell_of_node(exposition: &mut Exposition, state: &HttpState) {
    use Kind::{Counter, Gauge};
    let log = state.log.stats();
    let disk = *state.api.disk.borrow();
    let repairs = state.api.groups.repairs().counts();
    let installed = state.api.groups.iter().map(|group| group.snapshots_installed()).sum();
    let figures = [
        (
            "skein_admission_in_flight_bytes",
            Gauge,
            "Bytes of published batches in flight.",
            state.api.admission.in_flight_bytes() as u64,
        ),
        ("skein_log_written_bytes_total", Counter, "Bytes written to the log.", log.bytes_written),
        ("skein_log_syncs_total", Counter, "Batches of records made durable.", log.sync_count),
        ("skein_log_segments", Gauge, "Segment files with records.", log.segment_count as u64),
        (
            "skein_log_spare_segments",
            Gauge,
            "Segment files that wait to be used again.",
            log.spare_segment_count as u64,
        ),
        (
            "skein_disk_free_bytes",
            Gauge,
            "Bytes the log can still take: free on its disk, or held by files that wait to be used again.",
            disk.free_bytes,
        ),
        ("skein_disk_low_mark_bytes", Gauge, "Publishes are refused below this.", disk.mark_bytes),
        ("skein_disk_low", Gauge, "1 when publishes are refused for want of room.", u64::from(disk.is_low)),
        ("skein_log_cache_bytes", Gauge, "Bytes of log entries in memory.", log.cache_bytes as u64),
        (
            "skein_page_memory_bytes",
            Gauge,
            "Bytes of memory for where queued messages lie, at the newest checkpoints.",
            state.api.groups.page_memory().taken_bytes(),
        ),
        (
            "skein_shards_moving",
            Gauge,
            "Shards led here whose replicas are not where they belong yet.",
            state.api.activities.borrow().len() as u64,
        ),
        ("skein_snapshots_installed_total", Counter, "Snapshots taken over from leaders.", installed),
        ("skein_log_damaged_entries", Gauge, "Damaged entries.", repairs.damaged as u64),
        ("skein_log_lost_entries", Gauge, "Damaged entries that no replica has.", repairs.lost as u64),
        (
            "skein_log_repaired_entries_total",
            Counter,
            "Damaged entries that were fetched from another node.",
            repairs.repaired_total,
        ),
    ];
    for (name, kind, help, value) in figures {
        exposition.single(name, kind, help, value);
    }
}

fn tell_of_times(exposition: &mut Exposition, state: &HttpState) {
    exposition.histogram(
        "skein_log_sync_seconds",
        "How long a batch of log records took to be on this node's disk.",
        &state.log.sync_times().counted(),
    );
    exposition.histogram(
        "skein_confirm_seconds",
        "How long an entry took from being proposed by this leader to being on a majority's disks and applied.",
        &state.api.groups.confirm_times().counted(),
    );
}

fn tell_of_shards(exposition: &mut Exposition, state: &HttpState) {
    let mut by_shard = |name, help, value: &dyn Fn(&Group) -> u64| {
        let groups = state.api.groups.iter();
        let samples = groups.map(|group| (vec![("shard", group.shard().to_string())], value(group)));
        exposition.family(name, Kind::Gauge, help, samples);
    };
    by_shard("skein_shard_leader", "1 when this node leads the shard.", &|group| {
        u64::from(group.is_leader())
    });
    by_shard("skein_shard_term", "The shard's raft term.", &|group| group.leadership().borrow().term);
    by_shard("skein_shard_applied_index", "The newest raft entry applied on this node.", &|group| {
        *group.replica().applied_index().borrow()
    });
    let followers = state.api.groups.iter().flat_map(|group| {
        let labels = |node: String| vec![("shard", group.shard().to_string()), ("node", node)];
        group.follower_lags().into_iter().map(move |(node, lag)| (labels(node.to_string()), lag))
    });
    exposition.family(
        "skein_shard_follower_lag_entries",
        Kind::Gauge,
        "Raft entries that a follower lacks, told by the leader.",
        followers,
    );
}
