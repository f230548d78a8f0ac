//! The way to one queue, partition or topic: what waits for it, and the task that sends it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use skein_proto::ids::ShardId;
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{self, Instant},
};

use super::{
    CLOSE_TIMEOUT, Confirm,
    batcher::{Batcher, Limits, Refused},
    confirm::{self, BatchOutcome},
    session::{Destination, Session},
    spread::Spread,
};
use crate::{client::Client, error::ConfirmError, message::EncodableMessage};

/// What a producer has for one queue, partition or topic.
#[derive(Debug)]
pub(super) struct Lane {
    shared: Arc<Shared>,
    /// None once somebody waits for its end.
    session: Mutex<Option<JoinHandle<()>>>,
}

/// What the producer and its session share.
#[derive(Debug)]
pub(super) struct Shared {
    batcher: Mutex<Batcher>,
    /// Notified when the window has room, and when the producer is closed.
    pub(super) room: Notify,
}

impl Lane {
    /// `spread` is there for a partition.
    pub(super) fn start(
        client: Client,
        destination: Destination,
        shard: ShardId,
        (limits, delivery_timeout): (Limits, Duration),
        spread: Option<Arc<Spread>>,
    ) -> Self {
        let batcher = Mutex::new(Batcher::new(limits, delivery_timeout));
        let shared = Arc::new(Shared { batcher, room: Notify::new() });
        let session = Session::new(client, destination, shard, Arc::clone(&shared), delivery_timeout, spread);
        Self { shared, session: Mutex::new(Some(tokio::spawn(session.run()))) }
    }

    pub(super) fn offer(&self, message: &EncodableMessage) -> Result<Confirm, Refused> {
        let (confirm, waker) = {
            let mut batcher = self.shared.lock();
            let confirm = batcher.push(message, Instant::now)?;
            (confirm, batcher.waker_if_sendable())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(confirm)
    }

    /// What is to be sent, to be changed by whoever wakes the session afterwards.
    pub(super) fn batcher(&self) -> MutexGuard<'_, Batcher> {
        self.shared.lock()
    }

    pub(super) async fn wait_for_room(&self, message: &EncodableMessage) {
        let mut room = std::pin::pin!(self.shared.room.notified());
        // From here on no notification is missed; so look again before waiting.
        room.as_mut().enable();
        if !self.shared.lock().has_room(message) {
            room.await;
        }
    }

    /// The outcome that comes last of all that are not known yet.
    pub(super) fn last_outcome(&self) -> Option<Arc<BatchOutcome>> {
        self.shared.lock().last_outcome()
    }

    pub(super) fn take_first_failure(&self) -> Option<ConfirmError> {
        self.shared.lock().take_first_failure()
    }

    /// Wakes those who wait for room, which was made in another way than by confirms.
    pub(super) fn room_was_made(&self) {
        self.shared.room.notify_waiters();
    }

    pub(super) async fn flush(&self) -> Result<(), ConfirmError> {
        if let Some(last) = self.last_outcome() {
            confirm::settled(last).await;
        }
        self.take_first_failure().map_or(Ok(()), Err)
    }

    pub(super) fn begin_close(&self) {
        let waker = self.shared.lock().close();
        if let Some(waker) = waker {
            waker.wake();
        }
        self.shared.room.notify_waiters();
    }

    /// Waits for the end of the stream, when everything is settled: an orderly end is only good manners.
    pub(super) async fn ended(&self) {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(session) = session {
            let _ = time::timeout(CLOSE_TIMEOUT, session).await;
        }
    }
}

impl Drop for Lane {
    /// What it has taken is still sent, and then its session ends.
    fn drop(&mut self) {
        self.begin_close();
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Batcher> {
        self.batcher.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
