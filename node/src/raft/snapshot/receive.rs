//! Receives a snapshot: entries into the log as they come, records beside the checkpoint, and when all of it is on
//! disk, openraft is told to take it over.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream::BoxStream};
use openraft::{async_runtime::watch::WatchReceiver as _, storage::Snapshot};
use tokio::sync::{OwnedMutexGuard, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::{Saved, SnapshotData};
use crate::{
    checkpoint::{CheckpointError, Staged, StoredRecord},
    clock::{Clock, millis},
    log::{KeptEntry, LogFailure},
    raft::{
        records::{self, RecordError},
        state_machine::snapshot_meta,
        types::Raft,
        wire::{SnapshotAnswer, SnapshotBegin, SnapshotPiece, Vote},
    },
    tasks,
};

/// Answers that wait for the sender to take them.
const ANSWERS_MAX: usize = 16;

/// What was staged from a stream that broke off is kept for this long, for one that goes on where it ended.
const RESUME_WITHIN: Duration = Duration::from_secs(300);

/// Why a snapshot was not installed.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The stream broke, or a piece was not as it was sent.
    #[error("the snapshot broke off: {0}")]
    Broken(String),
    /// Pieces out of order, or not as many as the end says.
    #[error("the snapshot is not whole: {0}")]
    NotWhole(&'static str),
    /// Where the state stands.
    #[error(transparent)]
    Position(#[from] RecordError),
    /// Writing entries.
    #[error(transparent)]
    Log(#[from] LogFailure),
    /// Writing records.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The shard has stopped on this node.
    #[error("the shard has stopped on this node")]
    Stopped,
}

/// Takes a shard's snapshots, one at a time.
pub(in crate::raft) struct Receiver {
    saved: Saved,
    raft: Raft,
    clock: Clock,
    /// Held by the stream that is being received. A new one waits for the end of the old one, which its sender has
    /// given up.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// What is needed of the entries up to this one is in the log, by a stream that was not finished; 0 for none.
    staged_index: AtomicU64,
    /// When something was last received, in milliseconds of the monotonic clock; 0 for never.
    received_at_ms: AtomicU64,
    installed_count: AtomicU64,
}

impl Receiver {
    pub(in crate::raft) fn new(saved: Saved, raft: Raft, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            saved,
            raft,
            clock,
            turn: Arc::default(),
            staged_index: AtomicU64::new(0),
            received_at_ms: AtomicU64::new(0),
            installed_count: AtomicU64::new(0),
        })
    }

    /// Snapshots that were taken over since the node started.
    pub(in crate::raft) fn installed_count(&self) -> u64 {
        self.installed_count.load(Ordering::Relaxed)
    }

    /// Whether the log holds entries of a snapshot that may yet be installed. The state does not know of them, and
    /// still they must not be given up.
    pub(in crate::raft) fn has_staged(&self) -> bool {
        let received_at_ms = self.received_at_ms.load(Ordering::Acquire);
        received_at_ms > 0 && self.now_ms().saturating_sub(received_at_ms) < millis(RESUME_WITHIN)
    }

    /// Takes a snapshot, and answers its pieces.
    pub(in crate::raft) fn receive(
        self: &Arc<Self>,
        begin: SnapshotBegin,
        pieces: BoxStream<'static, Result<SnapshotPiece, String>>,
    ) -> impl Stream<Item = Result<SnapshotAnswer, ReceiveError>> + Send + use<> {
        let (answers, answered) = mpsc::channel(ANSWERS_MAX);
        let receiver = Arc::clone(self);
        tasks::spawn(async move {
            let shard = begin.shard;
            if let Err(error) = receiver.run(begin, pieces, &answers).await {
                tracing::warn!(%shard, %error, "a snapshot was not installed");
                // The sender may be gone.
                let _ = answers.send(Err(error)).await;
            }
        });
        ReceiverStream::new(answered)
    }

    async fn run(
        &self,
        begin: SnapshotBegin,
        pieces: BoxStream<'static, Result<SnapshotPiece, String>>,
        answers: &mpsc::Sender<Result<SnapshotAnswer, ReceiveError>>,
    ) -> Result<(), ReceiveError> {
        if let Some(vote) = self.higher_vote(begin.vote) {
            // The sender learns that it leads no more.
            let _ = answers.send(Ok(SnapshotAnswer::Installed(vote))).await;
            return Ok(());
        }
        let turn = Arc::clone(&self.turn).lock_owned().await;
        self.note_received();
        let position = records::decode_position(&begin.position)?;
        let _ = answers.send(Ok(SnapshotAnswer::Staged { index: self.resume_index() })).await;
        let staged = self.receive_pieces(pieces, answers).await?;
        let staged = on_blocking_thread(move || staged.finish(&begin.position).map(|()| staged)).await?;
        self.wait_applied().await;
        // Asked for here: a checkpoint that is being saved waits for the worker that will install this.
        let changing = self.saved.checkpoint.change().await;
        let snapshot = SnapshotData::Received(staged, changing);
        let snapshot = Snapshot { meta: snapshot_meta(&position), snapshot };
        let installed = self.raft.install_full_snapshot(begin.vote.into(), snapshot).await;
        let response = installed.map_err(|_| ReceiveError::Stopped)?;
        self.forget_staged(turn);
        self.installed_count.fetch_add(1, Ordering::Relaxed);
        let _ = answers.send(Ok(SnapshotAnswer::Installed(response.vote.into()))).await;
        Ok(())
    }

    async fn receive_pieces(
        &self,
        mut pieces: BoxStream<'static, Result<SnapshotPiece, String>>,
        answers: &mpsc::Sender<Result<SnapshotAnswer, ReceiveError>>,
    ) -> Result<Staged, ReceiveError> {
        let checkpoint = self.saved.checkpoint.clone();
        let mut staged = on_blocking_thread(move || checkpoint.stage()).await?;
        let (mut entries_seen, mut records_seen) = (0, 0);
        while let Some(piece) = pieces.next().await {
            match piece.map_err(ReceiveError::Broken)? {
                SnapshotPiece::Entries(entries) if records_seen == 0 => {
                    entries_seen += entries.len() as u64;
                    let index = self.keep(entries).await?;
                    let _ = answers.send(Ok(SnapshotAnswer::Staged { index })).await;
                }
                SnapshotPiece::Records(records) => {
                    records_seen += records.len() as u64;
                    staged = add(staged, records).await?;
                }
                SnapshotPiece::End { entry_count, record_count }
                    if (entry_count, record_count) == (entries_seen, records_seen) =>
                {
                    return Ok(staged);
                }
                SnapshotPiece::Begin(_) => return Err(ReceiveError::NotWhole("it begins twice")),
                SnapshotPiece::Entries(_) => {
                    return Err(ReceiveError::NotWhole("entries come after records"));
                }
                SnapshotPiece::End { .. } => return Err(ReceiveError::NotWhole("pieces are missing")),
            }
            self.note_received();
        }
        Err(ReceiveError::Broken("it has no end".to_owned()))
    }

    /// Writes entries down, and gives the last one's index when they are durable.
    async fn keep(&self, entries: Vec<KeptEntry>) -> Result<u64, ReceiveError> {
        let last = last_index(&entries, self.resume_index())?;
        let (done, durable) = oneshot::channel();
        let shard = self.saved.replica.shard();
        self.saved.log.keep(shard, &entries, Box::new(move |result| drop(done.send(result))));
        durable.await.map_err(|_| ReceiveError::Stopped)??;
        self.staged_index.store(last, Ordering::Release);
        Ok(last)
    }

    /// Where a sender may go on.
    fn resume_index(&self) -> u64 {
        self.staged_index.load(Ordering::Acquire)
    }

    fn forget_staged(&self, _: OwnedMutexGuard<()>) {
        self.staged_index.store(0, Ordering::Release);
        self.received_at_ms.store(0, Ordering::Release);
    }

    fn note_received(&self) {
        if !self.has_staged() {
            // Nobody protected what was staged before.
            self.staged_index.store(0, Ordering::Release);
        }
        self.received_at_ms.store(self.now_ms().max(1), Ordering::Release);
    }

    fn now_ms(&self) -> u64 {
        millis(self.clock.monotonic())
    }

    /// This node's vote, if it is for a later term than the sender's.
    fn higher_vote(&self, sender: Vote) -> Option<Vote> {
        let vote: Vote = self.raft.server_metrics().borrow_watched().vote.into();
        (vote.term > sender.term).then_some(vote)
    }

    /// Waits until everything that is known to be committed is applied: openraft must not find entries to apply that
    /// installing has just purged.
    async fn wait_applied(&self) {
        let committed = self.raft.metrics().borrow_watched().local_committed.map(|id| id.index());
        if let Some(committed) = committed {
            self.saved.replica.wait_applied(committed).await;
        }
    }
}

/// The index of the last of these entries, which follow those up to `before`.
pub(in crate::raft) fn last_index(entries: &[KeptEntry], before: u64) -> Result<u64, ReceiveError> {
    let rises = entries.is_sorted_by(|one, next| one.index < next.index);
    let Some(last) = entries.last().map(|entry| entry.index).filter(|_| rises) else {
        return Err(ReceiveError::NotWhole("entries are not in order"));
    };
    if entries.first().is_some_and(|first| first.index <= before) {
        return Err(ReceiveError::NotWhole("an entry came twice"));
    }
    Ok(last)
}

async fn add(staged: Staged, records: Vec<StoredRecord>) -> Result<Staged, ReceiveError> {
    on_blocking_thread(move || staged.add(&records).map(|()| staged)).await
}

async fn on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CheckpointError> + Send + 'static,
) -> Result<T, ReceiveError> {
    Ok(tasks::spawn_blocking(work).await.expect("writing a checkpoint does not panic")?)
}
