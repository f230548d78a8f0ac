//! Makes a shard's proposer wait while leadership is handed over.

use tokio::sync::watch;

/// The end of whoever wants a proposer to wait.
pub(super) struct Pause {
    /// How many want it.
    wanted: watch::Sender<u32>,
    is_idle: watch::Receiver<bool>,
}

/// The proposer's end.
pub(super) struct PauseWatch {
    wanted: watch::Receiver<u32>,
    is_idle: watch::Sender<bool>,
}

/// The proposer proposes nothing until this is dropped.
pub(super) struct Paused<'a>(&'a Pause);

/// A pause, from both ends.
pub(super) fn pause() -> (Pause, PauseWatch) {
    let (wanted, wanted_watch) = watch::channel(0);
    let (is_idle, is_idle_watch) = watch::channel(true);
    (Pause { wanted, is_idle: is_idle_watch }, PauseWatch { wanted: wanted_watch, is_idle })
}

impl Pause {
    /// Makes the proposer wait.
    pub(super) fn begin(&self) -> Paused<'_> {
        self.wanted.send_modify(|wanted| *wanted += 1);
        Paused(self)
    }
}

impl Paused<'_> {
    /// Waits until nothing is under way.
    pub(super) async fn wait_idle(&self) {
        // An error means that the group is stopping, and nothing will be proposed.
        let _ = self.0.is_idle.clone().wait_for(|is_idle| *is_idle).await;
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.wanted.send_modify(|wanted| *wanted -= 1);
    }
}

impl PauseWatch {
    /// Whether nothing is to be proposed.
    pub(super) fn is_wanted(&self) -> bool {
        *self.wanted.borrow() > 0
    }

    /// Waits until that may be different.
    ///
    /// # Errors
    /// When nobody can want a pause any more.
    pub(super) async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.wanted.changed().await
    }

    /// Says whether nothing is under way.
    pub(super) fn tell(&self, is_idle: bool) {
        self.is_idle.send_if_modified(|told| std::mem::replace(told, is_idle) != is_idle);
    }
}
