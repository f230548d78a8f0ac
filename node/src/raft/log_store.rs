//! A raft group's log, as openraft wants it, on the node's shared [`Log`].

use std::{fmt, io, ops::Bound, ops::Range, ops::RangeBounds, time::Duration};

use openraft::{
    OptionalSend, RaftLogReader,
    storage::{IOFlushed, LogState, RaftLogStorage},
};
use skein_proto::ids::ShardId;
use tokio::sync::oneshot;

use super::{
    records,
    repair::Repairs,
    types::{RaftEntry, RaftLogId, RaftVote, TypeConfig},
    wire::{entry_id, log_id},
};
use crate::{
    log::{Entry, Log, LogFailure, ReadError},
    planted::{Bug, is_planted},
    tasks,
    telemetry::TRACES,
};

/// The most bytes of entries in one AppendEntries, except that one entry always goes. Matches what the proposer
/// puts into one entry, so that a follower that keeps up gets them one by one and one that lags gets few at a time.
const APPEND_BYTES_MAX: usize = 1 << 20;

/// An entry that no replica has is asked for again this often: somebody may yet restore a peer's disk.
const REREAD_EVERY: Duration = Duration::from_secs(1);

/// Cheap to clone; openraft gives each replication task its own.
#[derive(Clone)]
pub(super) struct LogStore {
    log: Log,
    shard: ShardId,
    repairs: Repairs,
}

impl LogStore {
    /// The log of one shard.
    #[must_use]
    pub(super) fn new(log: Log, shard: ShardId, repairs: Repairs) -> Self {
        Self { log, shard, repairs }
    }

    async fn read(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<RaftEntry>, io::Error> {
        let entries = match self.log.read_cached(self.shard, range.clone(), bytes_max) {
            Some(entries) => entries,
            None => self.read_from_disk(range, bytes_max).await?,
        };
        entries.into_iter().map(records::entry_from_log).collect::<Result<_, _>>().map_err(io::Error::other)
    }

    /// A damaged entry is waited for until it is repaired: an error would end the node, and nothing else can be done.
    async fn read_from_disk(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<Entry>, io::Error> {
        loop {
            let (log, shard, range) = (self.log.clone(), self.shard, range.clone());
            let read = tasks::spawn_blocking(move || log.read(shard, range, bytes_max)).await;
            let error = match read.map_err(io::Error::other)? {
                Ok(entries) => return Ok(entries),
                // openraft asks for ranges that a truncation or purge has just taken, and expects them to be empty.
                Err(ReadError::Purged { .. } | ReadError::NotFound { .. }) => return Ok(Vec::new()),
                Err(error) => error,
            };
            let Some(index) = error.damaged_index() else { return Err(io::Error::other(error)) };
            self.repairs.report(self.shard, index);
            if !self.repairs.wait(self.shard, index).await {
                tokio::time::sleep(REREAD_EVERY).await;
            }
        }
    }

    /// The half-open range of indexes that exist within what was asked for.
    fn clamp(&self, range: &impl RangeBounds<u64>) -> Range<u64> {
        let live = self.log.shard_state(self.shard).live;
        let from = match range.start_bound() {
            Bound::Included(&start) => start,
            Bound::Excluded(&before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(&last) => last.saturating_add(1),
            Bound::Excluded(&end) => end,
            Bound::Unbounded => u64::MAX,
        };
        from.max(live.start)..to.min(live.end)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<RaftEntry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + fmt::Debug + OptionalSend,
    {
        let mut wanted = self.clamp(&range);
        let mut entries = Vec::new();
        while wanted.start < wanted.end {
            let read = self.read(wanted.clone(), usize::MAX).await?;
            if read.is_empty() {
                break;
            }
            wanted.start += read.len() as u64;
            entries.extend(read);
        }
        Ok(entries)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<RaftEntry>, io::Error> {
        let wanted = self.clamp(&(start..end));
        // Where the first ones were purged meanwhile, the rest would be sent as if it followed what comes before them.
        // openraft takes nothing for a heartbeat.
        if wanted.is_empty() || wanted.start != start {
            return Ok(Vec::new());
        }
        self.read(wanted, APPEND_BYTES_MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<RaftVote>, io::Error> {
        let vote = self.log.shard_state(self.shard).vote;
        vote.map(|bytes| records::decode_vote(&bytes).map(RaftVote::from))
            .transpose()
            .map_err(io::Error::other)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.log.shard_state(self.shard);
        Ok(LogState { last_purged_log_id: state.purged.map(log_id), last_log_id: state.last.map(log_id) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> Result<(), io::Error> {
        if is_planted(Bug::VoteForgotten) {
            return Ok(());
        }
        let (done, saved) = oneshot::channel();
        self.log.save_vote(
            self.shard,
            records::encode_vote((*vote).into()),
            Box::new(move |result| drop(done.send(result))),
        );
        saved.await.map_err(io::Error::other)?.map_err(io::Error::other)
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> Result<(), io::Error> {
        if let Some(committed) = committed {
            self.log.save_committed(self.shard, records::encode_log_id(entry_id(&committed)));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<RaftLogId>, io::Error> {
        let state = self.log.shard_state(self.shard);
        let Some(bytes) = state.committed else { return Ok(None) };
        let committed = records::decode_log_id(&bytes).map_err(io::Error::other)?;
        // The position may have reached the disk with a write that the entries it names did not survive.
        let durable = state.last.filter(|last| last.index < committed.index).unwrap_or(committed);
        Ok(state.last.map(|_| log_id(durable)))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().map(records::entry_to_log).collect();
        let followed: Vec<_> = entries.iter().filter_map(|entry| TRACES.append(&entry.payload)).collect();
        let done = move |result: Result<(), LogFailure>| {
            drop(followed);
            callback.io_completed(result.map_err(io::Error::other));
        };
        self.log.append(self.shard, entries, Box::new(done));
        Ok(())
    }

    async fn truncate_after(&mut self, last_kept: Option<RaftLogId>) -> Result<(), io::Error> {
        self.log.truncate_after(self.shard, last_kept.map(|id| id.index()));
        Ok(())
    }

    async fn purge(&mut self, upto: RaftLogId) -> Result<(), io::Error> {
        self.log.purge(self.shard, entry_id(&upto));
        Ok(())
    }
}
