//! Health and metrics over plain HTTP, for probes and scrapers.

use std::{fmt::Write as _, sync::Arc};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::net::TcpListener;

use crate::{api::Api, log::Log};

/// What the handlers look at.
#[derive(Clone)]
pub struct HttpState {
    /// The node's API.
    pub api: Arc<Api>,
    /// The node's log.
    pub log: Log,
}

/// Serves until `stop` ends.
///
/// # Errors
/// When accepting connections fails for good.
pub async fn serve(
    listener: TcpListener,
    state: HttpState,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(state);
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

/// Ready: every shard on this node knows its leader, and the node is not stopping.
async fn ready(State(state): State<HttpState>) -> (StatusCode, String) {
    if *state.api.stopping.borrow() {
        return (StatusCode::SERVICE_UNAVAILABLE, "the node is stopping\n".to_owned());
    }
    let leaderless: Vec<_> = state
        .api
        .groups
        .iter()
        .filter(|group| group.leadership().borrow().leader.is_none())
        .map(|group| group.shard().to_string())
        .collect();
    if leaderless.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("no leader in shard {}\n", leaderless.join(", ")))
    }
}

/// Prometheus text format.
async fn metrics(State(state): State<HttpState>) -> String {
    let mut text = String::new();
    let log = state.log.stats();
    let in_flight = state.api.admission.in_flight_bytes() as u64;
    let disk = *state.api.disk.borrow();
    let plain = [
        ("skein_admission_in_flight_bytes", "gauge", "Bytes of published batches in flight.", in_flight),
        ("skein_log_written_bytes_total", "counter", "Bytes written to the log.", log.bytes_written),
        ("skein_log_syncs_total", "counter", "Batches of records made durable.", log.sync_count),
        ("skein_log_segments", "gauge", "Segment files with records.", log.segment_count as u64),
        (
            "skein_log_spare_segments",
            "gauge",
            "Segment files that wait to be used again.",
            log.spare_segment_count as u64,
        ),
        (
            "skein_disk_free_bytes",
            "gauge",
            "Bytes the log can still take: free on its disk, or held by files that wait to be used again.",
            disk.free_bytes,
        ),
        ("skein_disk_low_mark_bytes", "gauge", "Publishes are refused below this.", disk.mark_bytes),
        ("skein_disk_low", "gauge", "1 when publishes are refused for want of room.", u64::from(disk.is_low)),
        ("skein_log_cache_bytes", "gauge", "Bytes of log entries in memory.", log.cache_bytes as u64),
    ];
    let repairs = state.api.groups.repairs().counts();
    let installed = state.api.groups.iter().map(|group| group.snapshots_installed()).sum();
    let plain = plain.into_iter().chain([
        ("skein_snapshots_installed_total", "counter", "Snapshots taken over from leaders.", installed),
        ("skein_log_damaged_entries", "gauge", "Damaged entries.", repairs.damaged as u64),
        ("skein_log_lost_entries", "gauge", "Damaged entries that no replica has.", repairs.lost as u64),
        (
            "skein_log_repaired_entries_total",
            "counter",
            "Damaged entries that were fetched from another node.",
            repairs.repaired_total,
        ),
    ]);
    for (name, kind, help, value) in plain {
        describe(&mut text, name, kind, help);
        let _ = writeln!(text, "{name} {value}");
    }
    describe(&mut text, "skein_shard_leader", "gauge", "1 when this node leads the shard.");
    for group in state.api.groups.iter() {
        let _ = writeln!(
            text,
            "skein_shard_leader{{shard=\"{}\"}} {}",
            group.shard(),
            u8::from(group.is_leader())
        );
    }
    describe(&mut text, "skein_shard_term", "gauge", "The shard's raft term.");
    for group in state.api.groups.iter() {
        let _ = writeln!(
            text,
            "skein_shard_term{{shard=\"{}\"}} {}",
            group.shard(),
            group.leadership().borrow().term
        );
    }
    describe(&mut text, "skein_shard_applied_index", "gauge", "The newest raft entry applied on this node.");
    for group in state.api.groups.iter() {
        let applied = *group.replica().applied_index().borrow();
        let _ = writeln!(text, "skein_shard_applied_index{{shard=\"{}\"}} {applied}", group.shard());
    }
    text
}

/// Writing to a `String` cannot fail.
fn describe(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}
