//! The only place that starts tasks and threads. A task that must not end says so by how it is started.

use std::{future::Future, thread};

use tokio::task::JoinHandle;

/// Starts a task whose end, for whatever reason, concerns only its owner.
#[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future)
}

/// Starts a named thread for work that blocks all its life, as the log's writer does.
///
/// # Errors
/// When the operating system refuses another thread.
#[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
pub fn spawn_thread<F>(name: &str, body: F) -> std::io::Result<thread::JoinHandle<()>>
where
    F: FnOnce() + Send + 'static,
{
    thread::Builder::new().name(name.to_owned()).spawn(body)
}

/// Runs work that blocks for a moment, such as a disk read, off the async threads.
#[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
pub fn spawn_blocking<F, T>(body: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    tokio::task::spawn_blocking(body)
}
