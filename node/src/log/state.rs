//! What the log's handles and its writer share: the log as its users see it, as it is on disk, and the queue between.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use skein_proto::ids::ShardId;

use super::{
    Done, LogStats,
    batch::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX},
    cache::TailCache,
    error::LogFailure,
    format::{Record, SegmentNumber},
    index::Index,
    outline::Outline,
    positions::SegmentPositions,
    segment::Slot,
};
use crate::telemetry::Histogram;

/// How many indexes of sealed segments are kept after use. Readers of old entries go forward one at a time; this is
/// room for two per shard of a default cluster, of which one may be in vain.
pub(super) const RECENT_INDEXES_MAX: usize = 16;

/// Shared by the log's handles and its writer.
pub(super) struct Shared {
    pub(super) dir: PathBuf,
    /// The largest payload of an entry, in bytes.
    pub(super) payload_bytes_max: usize,
    /// The size of new segments.
    pub(super) segment_bytes: u64,
    /// Found damaged when the log was opened.
    pub(super) damaged: Vec<(ShardId, u64)>,
    pub(super) spare_count: Arc<AtomicUsize>,
    /// How long batches took to be on disk.
    pub(super) sync_times: Histogram,
    state: Mutex<State>,
    /// Signalled when the writer has something to do.
    work: Condvar,
}

/// All that is behind the lock. It is never held while waiting for the disk.
pub(super) struct State {
    /// Every shard as its users see it: with what is queued.
    pub(super) outlines: BTreeMap<ShardId, Outline>,
    /// Every shard as it is on disk. A live entry is here or in the cache; what the cache has is newer.
    pub(super) index: Index,
    pub(super) cache: TailCache,
    pub(super) slots: BTreeMap<SegmentNumber, Slot>,
    pub(super) recent_indexes: RecentIndexes,
    /// Bounded by those who append: each keeps its unconfirmed bytes within limits of its own.
    queue: VecDeque<Item>,
    /// Shards whose commit position is newer than what is queued or on disk.
    committed_unsaved: BTreeSet<ShardId>,
    writer_waits: bool,
    closing: bool,
    failure: Option<LogFailure>,
    pub(super) bytes_written: u64,
    pub(super) sync_count: u64,
}

/// What waits for the writer.
pub(super) enum Item {
    Record(Record),
    /// Called when everything before it is durable.
    Done(Done),
    /// Remove files that are kept for new segments until so many are left.
    TrimSpares(usize),
}

impl State {
    pub(super) fn new(index: Index, slots: BTreeMap<SegmentNumber, Slot>, cache_bytes: usize) -> Self {
        Self {
            outlines: index.outlines().map(|(shard, outline)| (shard, outline.clone())).collect(),
            index,
            cache: TailCache::new(cache_bytes),
            slots,
            recent_indexes: RecentIndexes::default(),
            queue: VecDeque::new(),
            committed_unsaved: BTreeSet::new(),
            writer_waits: false,
            closing: false,
            failure: None,
            bytes_written: 0,
            sync_count: 0,
        }
    }

    /// Whether what is written now has a chance to become durable.
    pub(super) fn is_writable(&self) -> bool {
        !self.closing && self.failure.is_none()
    }

    /// Forgets the segments that were given up, and says which.
    pub(super) fn remove_retired_segments(&mut self) -> Vec<SegmentNumber> {
        let segments = self.index.segments();
        let retired: Vec<_> = self
            .slots
            .extract_if(.., |number, _| !segments.contains(*number))
            .map(|(number, _)| number)
            .collect();
        self.recent_indexes.remove(&retired);
        retired
    }

    fn next_committed(&mut self) -> Vec<Record> {
        let shards = std::mem::take(&mut self.committed_unsaved).into_iter();
        let records = shards.filter_map(|shard| {
            let committed = self.outlines.get(&shard)?.committed.clone()?;
            Some(Record::committed(shard, committed))
        });
        records.collect()
    }
}

impl Shared {
    pub(super) fn new(
        dir: PathBuf,
        segment_bytes: u64,
        damaged: Vec<(ShardId, u64)>,
        spare_count: Arc<AtomicUsize>,
        state: State,
    ) -> Self {
        let payload_bytes_max = usize::try_from(segment_bytes / 2).unwrap_or(usize::MAX);
        let (state, work) = (Mutex::new(state), Condvar::new());
        let sync_times = Histogram::default();
        Self { dir, payload_bytes_max, segment_bytes, damaged, spare_count, sync_times, state, work }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the log's lock, unless the log was misused")
    }

    /// Queues items for the writer; gives the callback back when there is no writer to take it any more.
    pub(super) fn enqueue(
        &self,
        mut state: MutexGuard<'_, State>,
        items: impl Iterator<Item = Record>,
        done: Option<Done>,
    ) -> Option<Done> {
        if state.closing {
            return done;
        }
        if state.failure.is_none() {
            state.queue.extend(items.map(Item::Record));
        }
        state.queue.extend(done.map(Item::Done));
        self.wake_writer(state);
        None
    }

    /// Has the files that are kept for new segments removed, until so many are left.
    pub(super) fn trim_spares(&self, count_max: usize) {
        let mut state = self.lock();
        if state.is_writable() {
            state.queue.push_back(Item::TrimSpares(count_max));
            self.wake_writer(state);
        }
    }

    fn wake_writer(&self, mut state: MutexGuard<'_, State>) {
        if state.writer_waits {
            state.writer_waits = false;
            drop(state);
            self.work.notify_one();
        }
    }

    /// Has the shard's commit position written along with whatever is written next.
    pub(super) fn note_committed(&self, mut state: MutexGuard<'_, State>, shard: ShardId) {
        if state.is_writable() {
            state.committed_unsaved.insert(shard);
        }
    }

    /// Waits for work and takes as much of it as makes a batch. `false` when the log is closed and all is taken.
    pub(super) fn take(&self, taken: &mut VecDeque<Item>) -> bool {
        let mut state = self.lock();
        loop {
            if !state.queue.is_empty() || (state.closing && !state.committed_unsaved.is_empty()) {
                break;
            }
            if state.closing {
                return false;
            }
            state.writer_waits = true;
            state = self.work.wait(state).expect("nothing panics while it holds the log's lock");
        }
        let mut bytes = 0;
        while bytes < BATCH_BYTES_MAX && taken.len() < BATCH_RECORDS_MAX {
            let Some(item) = state.queue.pop_front() else {
                break;
            };
            if let Item::Record(record) = &item {
                bytes += record.encoded_bytes();
            }
            taken.push_back(item);
        }
        // A commit position must not get to disk before the entries it covers, so it goes after all of them.
        if state.queue.is_empty() {
            taken.extend(state.next_committed().into_iter().map(Item::Record));
        }
        true
    }

    /// Stops taking new work; the writer ends when what is queued is done.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.work.notify_one();
    }

    /// Nothing is written after this.
    pub(super) fn fail(&self, failure: &LogFailure) {
        let mut state = self.lock();
        state.failure.get_or_insert_with(|| failure.clone());
        state.committed_unsaved.clear();
    }

    pub(super) fn stats(&self) -> LogStats {
        let state = self.lock();
        let live = state.outlines.values().map(|outline| outline.live());
        LogStats {
            segment_count: state.slots.len(),
            spare_segment_count: self.spare_count.load(Ordering::Relaxed),
            bytes_written: state.bytes_written,
            sync_count: state.sync_count,
            live_entry_count: live.map(|live| live.end - live.start).sum(),
            cache_bytes: state.cache.bytes(),
        }
    }
}

/// Indexes of sealed segments, the last used first.
#[derive(Default)]
pub(super) struct RecentIndexes {
    indexes: VecDeque<(SegmentNumber, Arc<SegmentPositions>)>,
}

impl RecentIndexes {
    pub(super) fn get(&mut self, segment: SegmentNumber) -> Option<Arc<SegmentPositions>> {
        let at = self.indexes.iter().position(|(number, _)| *number == segment)?;
        let found = self.indexes.remove(at)?;
        let positions = found.1.clone();
        self.indexes.push_front(found);
        Some(positions)
    }

    pub(super) fn insert(&mut self, segment: SegmentNumber, positions: Arc<SegmentPositions>) {
        self.remove(&[segment]);
        self.indexes.push_front((segment, positions));
        self.indexes.truncate(RECENT_INDEXES_MAX);
    }

    fn remove(&mut self, segments: &[SegmentNumber]) {
        self.indexes.retain(|(number, _)| !segments.contains(number));
    }
}
