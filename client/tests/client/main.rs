//! The client and the command line against nodes that play the protocol and misbehave on demand. What real nodes do
//! is tested where real nodes are.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod browse;
mod calls;
mod cli;
mod cluster;
mod consume;
mod consumer;
mod producer;
mod publish;
mod queues;
mod redrive;
mod request;
mod topics;

use std::time::Duration;

use tokio::time;

/// Waits for what must happen, and fails instead of hanging when it does not.
async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    time::timeout(Duration::from_secs(20), future).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}
