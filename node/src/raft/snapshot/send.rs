//! Sends a snapshot: live entries first, then the checkpoint.

use std::{cmp::Ordering, collections::BTreeMap, ops::Range, time::Duration};

use futures::StreamExt as _;
use skein_proto::ids::{NodeId, ShardId};
use tokio::sync::mpsc;

use super::{PIECE_BYTES, Saved, SnapshotData};
use crate::{
    broker::LivePart,
    checkpoint::CheckpointError,
    log::{KeptEntry, Part, Parts, ReadError},
    planted::{Bug, is_planted},
    raft::{
        network::{SnapshotAnswers, SnapshotPieces, Transport, TransportError},
        records::{self, RecordError},
        wire::{SnapshotAnswer, SnapshotBegin, SnapshotPiece, Vote},
    },
    tasks,
};

/// Pieces with entries that are on their way and not on the receiver's disk yet.
const PIECES_IN_FLIGHT_MAX: usize = 8;

/// How many entries the state is asked for at a time, while its lock is held.
const LIVE_ENTRIES_MAX: u64 = 4_096;

/// A receiver that says nothing for this long is given up.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);

/// ... but it may take this long to install what it has: it reads the whole state.
const INSTALL_WAIT_MAX: Duration = Duration::from_secs(120);

/// Why a snapshot did not arrive.
#[derive(Debug, thiserror::Error)]
pub(in crate::raft) enum SendError {
    /// The receiver, or the way to it.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The checkpoint does not say where it stands.
    #[error("there is no checkpoint that could be sent: {0}")]
    NoCheckpoint(String),
    /// Reading the checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Reading the log.
    #[error(transparent)]
    Log(#[from] ReadError),
    /// The receiver stopped answering.
    #[error("node {node} has not answered for {waited:?}")]
    Silent {
        /// The receiver.
        node: NodeId,
        /// How long.
        waited: Duration,
    },
    /// The receiver answered what does not belong there.
    #[error("node {node} ended the stream early")]
    Ended {
        /// The receiver.
        node: NodeId,
    },
}

impl SendError {
    /// The receiver is not there, which others say loud enough.
    pub(in crate::raft) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Transport(TransportError::Unreachable { .. }))
    }
}

impl From<RecordError> for SendError {
    fn from(error: RecordError) -> Self {
        Self::NoCheckpoint(error.to_string())
    }
}

impl SnapshotData {
    /// Sends the snapshot as it stands now, which may be newer than when it was made. Returns the receiver's vote.
    pub(in crate::raft) async fn send(
        self,
        transport: &dyn Transport,
        to: NodeId,
        vote: Vote,
    ) -> Result<Vote, SendError> {
        let Self::Saved(saved) = self else {
            return Err(SendError::NoCheckpoint("it was received and is not installed yet".to_owned()));
        };
        // Nothing is saved meanwhile, and so nothing after S is purged, which the receiver will need next.
        let _held = saved.checkpoint.hold().await;
        let position = saved.checkpoint.position()?;
        let position = position.ok_or_else(|| SendError::NoCheckpoint("none was saved yet".to_owned()))?;
        let last = records::decode_position(&position)?.applied.map_or(0, |applied| applied.index);
        let (pieces, outgoing) = mpsc::channel(PIECES_IN_FLIGHT_MAX);
        let begin = SnapshotBegin { shard: saved.replica.shard(), vote, position: position.into() };
        // Cannot fail: the channel is empty, and its receiver is here.
        let _ = pieces.try_send(SnapshotPiece::Begin(begin));
        let answers = transport.snapshot(to, SnapshotPieces::new(outgoing)).await?;
        let mut call = Call { to, pieces, answers, unanswered: 0, entry_count: 0, record_count: 0 };
        let staged = match call.answer(ANSWER_WAIT_MAX).await? {
            SnapshotAnswer::Staged { index } => index,
            SnapshotAnswer::Installed(vote) => return Ok(vote),
        };
        tracing::info!(shard = %saved.replica.shard(), %to, last, from = staged + 1, "sending a snapshot");
        saved.send_entries(&mut call, staged + 1..last + 1).await?;
        saved.send_records(&mut call).await?;
        call.finish().await
    }
}

impl Saved {
    async fn send_entries(&self, call: &mut Call, entries: Range<u64>) -> Result<(), SendError> {
        let mut next = entries.start;
        let mut piece = Vec::new();
        let mut bytes = 0;
        while let Some(first) = self.replica.next_live_index(next).filter(|first| *first < entries.end) {
            let range = first..entries.end.min(first + LIVE_ENTRIES_MAX);
            next = range.end;
            let mut wanted = by_entry(self.replica.live_parts(range));
            while let Some((&index, _)) = wanted.first_key_value() {
                for entry in self.read(index, &mut wanted).await? {
                    if is_planted(Bug::SnapshotLacks) && entry.index.is_multiple_of(4) {
                        continue;
                    }
                    bytes += entry.parts.bytes();
                    piece.push(entry);
                    if bytes >= PIECE_BYTES {
                        bytes = 0;
                        call.send_entries(std::mem::take(&mut piece)).await?;
                    }
                }
            }
        }
        if !piece.is_empty() {
            call.send_entries(piece).await?;
        }
        Ok(())
    }

    /// Reads the entry and those of the wanted that lie near it, and takes them off the list. Gives nothing when it is
    /// no longer needed.
    async fn read(
        &self,
        index: u64,
        wanted: &mut BTreeMap<u64, Vec<LivePart>>,
    ) -> Result<Vec<KeptEntry>, SendError> {
        let (log, shard) = (self.log.clone(), self.replica.shard());
        let list = std::mem::take(wanted);
        let (read, mut list) = tasks::spawn_blocking(move || (read_live(&log, shard, index, &list), list))
            .await
            .expect("reading the log does not panic");
        let found = match read {
            Ok(found) => found,
            Err(error) => {
                let is_live = !self.replica.live_parts(index..index + 1).is_empty();
                if is_live {
                    return Err(error.into());
                }
                list.remove(&index);
                Vec::new()
            }
        };
        for entry in &found {
            list.remove(&entry.index);
        }
        *wanted = list;
        Ok(found)
    }

    async fn send_records(&self, call: &mut Call) -> Result<(), SendError> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let checkpoint = self.checkpoint.clone();
            let read = tasks::spawn_blocking(move || checkpoint.read_after(after.as_deref(), PIECE_BYTES));
            let records = read.await.expect("reading the checkpoint does not panic")?;
            let Some((key, _)) = records.last() else { return Ok(()) };
            after = Some(key.clone());
            call.record_count += records.len() as u64;
            call.send(SnapshotPiece::Records(records)).await?;
        }
    }
}

fn by_entry(parts: Vec<LivePart>) -> BTreeMap<u64, Vec<LivePart>> {
    let mut entries: BTreeMap<u64, Vec<LivePart>> = BTreeMap::new();
    for part in parts {
        entries.entry(part.index).or_default().push(part);
    }
    entries
}

/// The live parts of the entry at `first`, and of those listed that one read of the log brings along.
fn read_live(
    log: &crate::log::Log,
    shard: ShardId,
    first: u64,
    list: &BTreeMap<u64, Vec<LivePart>>,
) -> Result<Vec<KeptEntry>, ReadError> {
    let mut live = Vec::new();
    let mut wanted = list.range(first..).peekable();
    for stored in log.read_kept(shard, first, PIECE_BYTES)? {
        // What lies near may leave out entries that lie elsewhere, and the receiver takes them in order.
        let Some((index, parts)) = wanted.peek() else { break };
        match stored.index.cmp(index) {
            Ordering::Less => continue,
            Ordering::Greater => break,
            Ordering::Equal => {}
        }
        let slices = parts.iter().map(|part| {
            let LivePart { index, position, length } = *part;
            let bytes = match stored.parts.get(position, length) {
                Some(bytes) => bytes,
                // Another copy of the entry has more of it.
                None => log.read_part(shard, Part { index, position, length })?,
            };
            Ok((position, bytes))
        });
        let slices = slices.collect::<Result<Vec<_>, ReadError>>()?;
        let parts = Parts::new(slices).expect("the state's parts of an entry rise and do not overlap");
        live.push(KeptEntry { index: stored.index, term: stored.term, parts });
        wanted.next();
    }
    Ok(live)
}

/// The stream to the receiver.
struct Call {
    to: NodeId,
    pieces: mpsc::Sender<SnapshotPiece>,
    answers: SnapshotAnswers,
    unanswered: usize,
    entry_count: u64,
    record_count: u64,
}

impl Call {
    async fn send_entries(&mut self, entries: Vec<KeptEntry>) -> Result<(), SendError> {
        while self.unanswered >= PIECES_IN_FLIGHT_MAX {
            self.answer(ANSWER_WAIT_MAX).await?;
            self.unanswered -= 1;
        }
        self.entry_count += entries.len() as u64;
        self.unanswered += 1;
        self.send(SnapshotPiece::Entries(entries)).await
    }

    async fn send(&mut self, piece: SnapshotPiece) -> Result<(), SendError> {
        match tokio::time::timeout(ANSWER_WAIT_MAX, self.pieces.send(piece)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => {
                Err(self.answer(ANSWER_WAIT_MAX).await.err().unwrap_or(SendError::Ended { node: self.to }))
            }
            Err(_) => Err(SendError::Silent { node: self.to, waited: ANSWER_WAIT_MAX }),
        }
    }

    async fn finish(mut self) -> Result<Vote, SendError> {
        let (entry_count, record_count) = (self.entry_count, self.record_count);
        self.send(SnapshotPiece::End { entry_count, record_count }).await?;
        loop {
            if let SnapshotAnswer::Installed(vote) = self.answer(INSTALL_WAIT_MAX).await? {
                tracing::info!(to = %self.to, entry_count, record_count, "the snapshot is installed");
                return Ok(vote);
            }
        }
    }

    async fn answer(&mut self, wait: Duration) -> Result<SnapshotAnswer, SendError> {
        match tokio::time::timeout(wait, self.answers.next()).await {
            Ok(Some(answer)) => Ok(answer?),
            Ok(None) => Err(SendError::Ended { node: self.to }),
            Err(_) => Err(SendError::Silent { node: self.to, waited: wait }),
        }
    }
}
