//! The node's log: entries of all shards in one sequence of segment files, written by one thread, one sync for all that
//! queued up during the last. Opaque bytes by shard and index; it knows nothing of Raft.
//!
//! An append goes: [`Log::append`] takes it into the outline and the cache, where it is readable at once, and queues
//! its records ([`state`]); the [`writer`] puts everything queued into one batch ([`mod@format`]), writes it and makes
//! it durable, notes in the [`index`] where the entries lie, and calls back. Bytes on disk are described in
//! `docs/log-format.md`.

mod batch;
mod cache;
mod error;
mod files;
mod format;
mod found;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod index;
mod index_block;
mod inspect;
mod kept;
mod outline;
mod positions;
mod reader;
mod recovery;
mod segment;
mod segment_set;
mod space;
mod state;
mod verify;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicUsize},
    thread::{self, JoinHandle},
};

use bytes::Bytes;
use skein_proto::ids::ShardId;

pub use error::{Damage, LogFailure, OpenError, Operation, ReadError, RewriteError};
pub use inspect::{Inspection, RecordReport, SegmentFault, SegmentReport, ShardReport, Stage, inspect};
pub use kept::{KeptEntry, Part, Parts};
pub use space::{Rewritten, SegmentId, SegmentSurvey, ShardShare};
pub use verify::DamagedRecord;

use crate::{clock::Clock, disk::Disk, random, tasks, telemetry::Histogram};
use batch::AlignedBuffer;
use files::{FileKeeper, SegmentFiles};
use format::{BLOCK_BYTES, Record, SegmentNumber};
use index::Index;
use recovery::{Recovered, recover};
use segment::{IndexPlace, Slot};
use state::{Shared, State};
use writer::{ActiveSegment, SealReserve, SegmentStart, Writer};

/// The smallest segment: room for a header, some batches and an index.
pub const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// The largest segment: positions in it are 32 bits on disk and in memory.
pub const SEGMENT_BYTES_MAX: u64 = 2 << 30;
/// The largest vote or commit position, in bytes. Every segment and every index repeats those of all shards.
pub const STATE_BYTES_MAX: usize = 1024;

/// How a log is kept.
#[derive(Debug, Clone, Copy)]
pub struct LogOptions {
    /// The size of a segment file, a multiple of 4096 from [`SEGMENT_BYTES_MIN`] to [`SEGMENT_BYTES_MAX`].
    pub segment_bytes: u64,
    /// How much of the newest entries is kept in memory, in bytes, all shards together. An entry whose payload is a
    /// slice of something larger counts as the slice only.
    pub cache_bytes: usize,
    /// How many files of dead segments are kept for new ones.
    pub spare_segments_max: usize,
    /// Write past the page cache where the file system can do that.
    pub direct_io: bool,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            // Some seconds of full load: sealing and starting a segment (two syncs) is then far below 1 % of all syncs.
            segment_bytes: 64 << 20,
            // A second or so of full load, so that followers and consumers that keep up never read from disk.
            cache_bytes: 32 << 20,
            spare_segments_max: 4,
            direct_io: true,
        }
    }
}

impl LogOptions {
    fn check(&self) -> Result<(), OpenError> {
        let (bytes, min, max) = (self.segment_bytes, SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        match bytes.is_multiple_of(BLOCK_BYTES as u64) && (min..=max).contains(&bytes) {
            true => Ok(()),
            false => Err(OpenError::SegmentBytes { bytes, min, max }),
        }
    }
}

/// One entry of a shard's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the shard's log; without gaps.
    pub index: u64,
    /// The term that it was created in.
    pub term: u64,
    /// What it holds.
    pub payload: Bytes,
}

/// Names an entry of a shard's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId {
    /// The term that it was created in.
    pub term: u64,
    /// Its place in the shard's log.
    pub index: u64,
}

/// What is known of a shard apart from its entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardState {
    /// What [`Log::save_vote`] was given last.
    pub vote: Option<Bytes>,
    /// What [`Log::save_committed`] was given last; after a crash, one that it was given earlier.
    pub committed: Option<Bytes>,
    /// The last purged entry.
    pub purged: Option<EntryId>,
    /// The last live entry, else the last purged one.
    pub last: Option<EntryId>,
    /// The indexes of the live entries.
    pub live: Range<u64>,
}

/// Figures about a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogStats {
    /// Segment files in use.
    pub segment_count: usize,
    /// Files kept for new segments.
    pub spare_segment_count: usize,
    /// Written to disk since the log was opened, padding and indexes included.
    pub bytes_written: u64,
    /// How often the disk was made to keep what was written, since the log was opened.
    pub sync_count: u64,
    /// Entries of all shards above their purge points.
    pub live_entry_count: u64,
    /// What the tail cache holds.
    pub cache_bytes: usize,
}

/// Called on the writer thread when the data is durable, or with why it never will be. Must not block or panic.
pub type Done = Box<dyn FnOnce(Result<(), LogFailure>) + Send>;

/// A handle to the log. The log is closed with its last handle.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
    thread: Arc<WriterThread>,
}

impl Log {
    /// Opens the log in `dir`, or creates one there.
    ///
    /// `on_failure` is called at most once, on the writer thread, when a write or a sync failed: the node must stop,
    /// since nothing is retried. From then on every callback gets the failure; reads go on.
    ///
    /// # Errors
    /// When the log is in use, damaged, or written by a newer version, or the disk fails. Damage changes nothing on
    /// disk.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: LogOptions,
        on_failure: impl Fn(LogFailure) + Send + 'static,
    ) -> Result<Self, OpenError> {
        let LogOptions { segment_bytes, cache_bytes, spare_segments_max, direct_io } = options;
        options.check()?;
        let io_error = |action| {
            let path = dir.to_owned();
            move |source| OpenError::Io { path, action, source }
        };
        disk.create_dir_all(dir).map_err(io_error("create"))?;
        let dir_lock = disk.lock_dir(dir).map_err(io_error("lock"))?;
        let dir_lock = dir_lock.ok_or_else(|| OpenError::Locked { dir: dir.to_owned() })?;
        let spare_count = Arc::new(AtomicUsize::new(0));
        let mut files = SegmentFiles {
            disk,
            dir: dir.to_owned(),
            segment_bytes,
            spare_segments_max,
            direct_io,
            spares: Vec::new(),
            spare_count: spare_count.clone(),
        };
        let mut recovered = recover(&mut files)?.unwrap_or_else(new_log);
        let mut buffer = AlignedBuffer::default();
        let active = activate(&mut files, &mut recovered, &mut buffer)?;
        let Recovered { log_id, index, slots, next_batch, damaged, .. } = recovered;

        let state = State::new(index, slots, cache_bytes);
        let shared = Arc::new(Shared::new(dir.to_owned(), segment_bytes, damaged, spare_count, state));
        let keeper = FileKeeper::start(files, active.segment.number.next()).map_err(io_error("keep"))?;
        let writer = Writer {
            shared: shared.clone(),
            keeper,
            log_id,
            active,
            next_batch,
            buffer,
            taken: VecDeque::new(),
            failure: None,
            clock: Clock::real(),
            on_failure: Box::new(on_failure),
            _dir_lock: dir_lock,
        };
        let thread = tasks::spawn_thread("log-writer", move || writer.run()).map_err(io_error("serve"))?;
        let thread = WriterThread { shared: shared.clone(), handle: Mutex::new(Some(thread)) };
        Ok(Self { shared, thread: Arc::new(thread) })
    }

    /// What is known of a shard, with what is not durable yet. A shard never written to has nothing.
    #[must_use]
    pub fn shard_state(&self, shard: ShardId) -> ShardState {
        self.shared.lock().outlines.get(&shard).map(outline::Outline::state).unwrap_or_default()
    }

    /// Adds entries to a shard's log. Never waits for the disk; the entries are readable when this returns, and durable
    /// when `done` is called. Callbacks come in the order of the calls. After the log was closed or by a failure, they
    /// get that, and the entries are dropped; when it was closed, on the calling thread.
    ///
    /// # Panics
    /// When the entries do not continue the shard's log without a gap, or a payload is larger than half a segment.
    pub fn append(&self, shard: ShardId, entries: Vec<Entry>, done: Done) {
        let too_large = |entry: &&Entry| entry.payload.len() > self.shared.payload_bytes_max;
        if let Some(entry) = entries.iter().find(too_large) {
            panic!(
                "entry {} of shard {shard} has {} bytes, more than half a segment",
                entry.index,
                entry.payload.len()
            );
        }
        let mut state = self.shared.lock();
        if !state.is_writable() {
            return self.enqueue(state, None, Some(done));
        }
        let outline = state.outlines.entry(shard).or_default();
        let next = outline.next_index().or(entries.first().map(|entry| entry.index)).unwrap_or(0);
        if let Some((entry, _)) = entries.iter().zip(next..).find(|(entry, index)| entry.index != *index) {
            // Not while holding the lock: others may still read.
            drop(state);
            panic!("entry {} of shard {shard} does not continue a log whose next is {next}", entry.index);
        }
        for entry in &entries {
            let pushed = outline.push(EntryId { term: entry.term, index: entry.index });
            pushed.expect("the indexes were checked");
        }
        let records: Vec<_> = entries.iter().map(|entry| Record::entry(shard, entry)).collect();
        entries.into_iter().for_each(|entry| state.cache.push(shard, entry));
        self.enqueue(state, records, Some(done));
    }

    /// Replaces a shard's vote. In order with appends; durable when `done` is called.
    ///
    /// # Panics
    /// When the vote is larger than [`STATE_BYTES_MAX`].
    pub fn save_vote(&self, shard: ShardId, vote: Bytes, done: Done) {
        assert!(vote.len() <= STATE_BYTES_MAX, "a vote of {} bytes is too large", vote.len());
        let mut state = self.shared.lock();
        if !state.is_writable() {
            return self.enqueue(state, None, Some(done));
        }
        state.outlines.entry(shard).or_default().vote = Some(vote.clone());
        self.enqueue(state, [Record::vote(shard, vote)], Some(done));
    }

    /// Replaces a shard's commit position. It is written along with whatever is written next, after the entries that
    /// were appended before it.
    ///
    /// # Panics
    /// When it is larger than [`STATE_BYTES_MAX`].
    pub fn save_committed(&self, shard: ShardId, committed: Bytes) {
        assert!(
            committed.len() <= STATE_BYTES_MAX,
            "a commit position of {} bytes is too large",
            committed.len()
        );
        let mut state = self.shared.lock();
        state.outlines.entry(shard).or_default().committed = Some(committed);
        self.shared.note_committed(state, shard);
    }

    /// Drops a shard's entries after `last_kept`; all of them when it is `None`. In order with appends.
    pub fn truncate_after(&self, shard: ShardId, last_kept: Option<u64>) {
        let first_removed = last_kept.map_or(0, |kept| kept.saturating_add(1));
        let mut state = self.shared.lock();
        if !state.is_writable() {
            return;
        }
        let outline = state.outlines.entry(shard).or_default();
        if first_removed >= outline.live().end {
            return;
        }
        outline.truncate(first_removed);
        state.cache.truncate(shard, first_removed);
        self.enqueue(state, [Record::truncate(shard, first_removed)], None);
    }

    /// Drops a shard's entries up to `upto`, which may lie past the end: the log then goes on after it. A purge point
    /// never moves down. What was purged can still be read with [`read_kept`](Self::read_kept), until its segment is
    /// [given up](Self::retire).
    pub fn purge(&self, shard: ShardId, upto: EntryId) {
        let mut state = self.shared.lock();
        if !state.is_writable() {
            return;
        }
        let outline = state.outlines.entry(shard).or_default();
        if outline.purged.is_some_and(|purged| purged.index >= upto.index) {
            return;
        }
        outline.purge(upto);
        state.cache.purge(shard, upto.index);
        self.enqueue(state, [Record::purge(shard, upto.index, upto.term)], None);
    }

    /// Reads a shard's entries from the range's start on: up to its end, the log's end, or `bytes_max` of payload,
    /// but at least one. From the cache, else from disk, which blocks; ask [`read_cached`](Self::read_cached) first
    /// when on an async thread. An empty range reads nothing.
    ///
    /// # Errors
    /// When the first entry was purged, does not exist, is damaged or cannot be read. When that befalls a later one,
    /// what comes before it is returned.
    pub fn read(&self, shard: ShardId, range: Range<u64>, bytes_max: usize) -> Result<Vec<Entry>, ReadError> {
        self.shared.read(shard, range, bytes_max)
    }

    /// Like [`read`](Self::read), but only as far as the entries are in memory; `None` when the first is not.
    #[must_use]
    pub fn read_cached(&self, shard: ShardId, range: Range<u64>, bytes_max: usize) -> Option<Vec<Entry>> {
        let entries = self.shared.lock().cache.read(shard, range, bytes_max);
        (!entries.is_empty()).then_some(entries)
    }

    /// Writes down parts of entries, which need not be in the shard's log: what another replica has of them. Durable,
    /// and readable, when `done` is called. Of an entry that is above the purge point only all of it counts.
    ///
    /// # Panics
    /// When the parts of an entry are larger than half a segment.
    pub fn keep(&self, shard: ShardId, entries: &[KeptEntry], done: Done) {
        let records = entries.iter().map(|KeptEntry { index, term, parts }| {
            assert!(
                parts.bytes() <= self.shared.payload_bytes_max,
                "entry {index} of shard {shard} is too large"
            );
            Record::kept(shard, *index, *term, parts.encode())
        });
        let records: Vec<_> = records.collect();
        self.enqueue(self.shared.lock(), records, Some(done));
    }

    /// Reads what there is of a committed entry, purged or not, and of some that lie behind it, up to `bytes_max` of
    /// payload. Blocks.
    ///
    /// # Errors
    /// See [`read`](Self::read).
    pub fn read_kept(
        &self,
        shard: ShardId,
        index: u64,
        bytes_max: usize,
    ) -> Result<Vec<KeptEntry>, ReadError> {
        self.shared.read_kept(shard, index, bytes_max)
    }

    /// Like [`read_kept`](Self::read_kept), but only if the entry is in memory.
    #[must_use]
    pub fn read_kept_cached(&self, shard: ShardId, index: u64) -> Option<KeptEntry> {
        self.shared.lock().cached_kept(shard, index)
    }

    /// Reads a part of a committed entry, wherever it lies. Blocks.
    ///
    /// # Errors
    /// See [`read`](Self::read).
    pub fn read_part(&self, shard: ShardId, part: Part) -> Result<Bytes, ReadError> {
        self.shared.read_part(shard, part)
    }

    /// The term of a live entry or of the last purged one; `None` for any other index. Never reads from disk.
    ///
    /// # Errors
    /// None today; a read may become necessary when terms change often.
    pub fn term_at(&self, shard: ShardId, index: u64) -> Result<Option<u64>, ReadError> {
        Ok(self.shared.lock().outlines.get(&shard).and_then(|outline| outline.term_at(index)))
    }

    /// Figures about the log.
    #[must_use]
    pub fn stats(&self) -> LogStats {
        self.shared.stats()
    }

    /// How long batches took to be on disk, since the log was opened.
    #[must_use]
    pub fn sync_times(&self) -> &Histogram {
        &self.shared.sync_times
    }

    /// Writes what is queued and stops. Later appends through other handles fail; reads go on.
    pub fn close(self) {
        self.thread.stop();
    }

    fn enqueue(
        &self,
        state: MutexGuard<'_, State>,
        records: impl IntoIterator<Item = Record>,
        done: Option<Done>,
    ) {
        if let Some(done) = self.shared.enqueue(state, records.into_iter(), done) {
            done(Err(LogFailure::new(&self.shared.dir, Operation::Append, "the log is closed")));
        }
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

fn new_log() -> Recovered {
    Recovered {
        log_id: random::random_u64(),
        index: Index::new(SegmentNumber::new(0)),
        slots: BTreeMap::new(),
        next_batch: 1,
        tail: None,
        damaged: Vec::new(),
    }
}

/// Goes on in the newest segment, or starts the next one when that is sealed.
fn activate(
    files: &mut SegmentFiles,
    recovered: &mut Recovered,
    buffer: &mut AlignedBuffer,
) -> Result<ActiveSegment, OpenError> {
    if let (Some(tail), Some((_, slot))) = (recovered.tail, recovered.slots.last_key_value()) {
        let segment = slot.segment.clone();
        let file = files.open_to_write(&segment.path).map_err(|source| OpenError::Io {
            path: segment.path.clone(),
            action: "open",
            source,
        })?;
        let reserve = SealReserve::with_entries(&recovered.index);
        return Ok(ActiveSegment { segment, file, tail, reserve });
    }
    let prepared = files.prepare(recovered.index.active().next())?;
    let start = SegmentStart::new(recovered.log_id, recovered.next_batch, prepared.number, &recovered.index);
    let active = start.write(prepared, buffer)?;
    recovered.next_batch += 1;
    recovered.index.begin_segment(active.segment.number);
    let slot = Slot { segment: active.segment.clone(), index: IndexPlace::Active };
    recovered.slots.insert(active.segment.number, slot);
    Ok(active)
}

/// Ends the writer with the last handle.
struct WriterThread {
    shared: Arc<Shared>,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl WriterThread {
    fn stop(&self) {
        self.shared.close();
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The last handle may go with a callback, on the very thread that would be waited for.
        if let Some(handle) = handle.filter(|handle| handle.thread().id() != thread::current().id()) {
            // A panic on that thread was reported as a failure.
            drop(handle.join());
        }
    }
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        self.stop();
    }
}
