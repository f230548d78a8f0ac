//! Health and metrics over plain HTTP, for probes and scrapers.

mod exposition;
mod metrics;
mod queues;

use std::sync::Arc;

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
        .route("/metrics", get(metrics::metrics))
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
