//! The one thread that writes: takes what has queued up while the last batch was being written, writes it as one batch,
//! makes it durable and reports it.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::Arc,
    thread,
};

use skein_proto::ids::ShardId;

use super::{
    batch::{AlignedBuffer, BATCH_BYTES_MAX, BATCH_RECORDS_MAX},
    error::{LogFailure, Operation},
    files::{FileKeeper, PreparedSegment},
    format::{
        BATCH_HEADER_BYTES, BLOCK_BYTES, Kind, Record, Seed, SegmentHeader, SegmentNumber, encode_batch,
        pad_to_block,
    },
    index::Index,
    index_block::{self, KEPT_POSITION_BYTES, POSITION_BYTES, SHARD_BYTES, TERM_RUN_BYTES},
    segment::{IndexPlace, Segment, Slot},
    segment_set::RUN_BYTES,
    state::{Item, Shared},
};
use crate::{
    clock::Clock,
    disk::{DirLock, DiskFile},
};

/// The writer's own.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) keeper: FileKeeper,
    pub(super) log_id: u64,
    pub(super) active: ActiveSegment,
    pub(super) next_batch: u64,
    pub(super) buffer: AlignedBuffer,
    pub(super) taken: VecDeque<Item>,
    pub(super) failure: Option<LogFailure>,
    /// For how long the disk takes, which decides nothing.
    pub(super) clock: Clock,
    pub(super) on_failure: Box<dyn Fn(LogFailure) + Send>,
    /// Held as long as there may be writes.
    pub(super) _dir_lock: DirLock,
}

/// The segment being written to.
pub(super) struct ActiveSegment {
    pub(super) segment: Arc<Segment>,
    pub(super) file: Arc<dyn DiskFile>,
    /// Where the next batch goes.
    pub(super) tail: u64,
    /// What must stay free behind it.
    pub(super) reserve: SealReserve,
}

/// The part of the taken items that goes into the next batch.
struct Plan {
    item_count: usize,
    record_count: usize,
    /// Header and records, without padding.
    bytes: usize,
}

impl Writer {
    /// Writes until the log is closed.
    pub(super) fn run(mut self) {
        while self.shared.take(&mut self.taken) {
            while !self.taken.is_empty() {
                self.on_taken();
            }
        }
    }

    fn on_taken(&mut self) {
        if let Some(failure) = &self.failure {
            for item in self.taken.drain(..) {
                if let Item::Done(done) = item {
                    done(Err(failure.clone()));
                }
            }
        } else if let Err(failure) = self.write_some() {
            self.fail(failure);
        }
    }

    fn fail(&mut self, failure: LogFailure) {
        tracing::error!(%failure, "the log stops");
        self.shared.fail(&failure);
        self.failure = Some(failure.clone());
        (self.on_failure)(failure);
    }

    /// Writes one batch of what was taken; first goes on to the next segment when this one is full.
    fn write_some(&mut self) -> Result<(), LogFailure> {
        let mut plan = self.plan();
        if plan.item_count == 0 {
            self.roll()?;
            plan = self.plan();
        }
        if plan.item_count == 0 {
            let reason = "the votes and commit positions of all shards leave no room in a segment";
            return Err(LogFailure::new(&self.active.segment.path, Operation::Write, reason));
        }
        let mut written_bytes = 0;
        if plan.record_count > 0 {
            written_bytes = pad_to_block(plan.bytes);
            let out = self.buffer.take(written_bytes);
            let records = self.taken.iter().take(plan.item_count).filter_map(Item::record);
            encode_batch(out, self.active.segment.seed, self.next_batch, records);
            let begun = self.clock.monotonic();
            self.active.write(out, self.active.tail)?;
            self.shared.sync_times.record(self.clock.monotonic().saturating_sub(begun));
            self.next_batch += 1;
        }
        self.on_written(&plan, written_bytes as u64);
        Ok(())
    }

    /// Chooses how many of the taken items go into the next batch. None when the first record does not fit the segment.
    fn plan(&mut self) -> Plan {
        let mut plan = Plan { item_count: 0, record_count: 0, bytes: BATCH_HEADER_BYTES };
        for item in &self.taken {
            if let Some(record) = item.record() {
                let bytes = plan.bytes + record.encoded_bytes();
                let is_full = plan.record_count == BATCH_RECORDS_MAX || bytes > BATCH_BYTES_MAX;
                if (plan.record_count > 0 && is_full) || !self.active.has_room(bytes, record) {
                    break;
                }
                self.active.reserve.add(record);
                plan.record_count += 1;
                plan.bytes = bytes;
            }
            plan.item_count += 1;
        }
        plan
    }

    fn on_written(&mut self, plan: &Plan, written_bytes: u64) {
        let mut at = self.active.tail + BATCH_HEADER_BYTES as u64;
        self.active.tail += written_bytes;
        let mut dones = Vec::new();
        let retired = {
            let mut state = self.shared.lock();
            let (mut entry_count, mut has_retired) = (0, false);
            for item in self.taken.drain(..plan.item_count) {
                match item {
                    Item::Done(done) => dones.push(done),
                    Item::TrimSpares(count_max) => self.keeper.trim_spares(count_max),
                    Item::Record(record) => {
                        let offset = u32::try_from(at).expect("segments are below 4 GiB");
                        let applied = state.index.apply(&record, offset);
                        applied.expect("what is queued was checked against the outline that it continues");
                        at += record.encoded_bytes() as u64;
                        entry_count += u64::from(record.kind == Kind::Entry);
                        has_retired |= record.kind == Kind::Retire;
                    }
                }
            }
            state.cache.mark_written(entry_count);
            state.bytes_written += written_bytes;
            state.sync_count += u64::from(written_bytes > 0);
            if has_retired { state.remove_retired_segments() } else { Vec::new() }
        };
        // Only now: a segment may go when it is on disk that it does.
        retired.into_iter().for_each(|number| self.keeper.retire(number));
        for done in dones {
            done(Ok(()));
        }
    }

    /// Seals the active segment and goes on to the next.
    fn roll(&mut self) -> Result<(), LogFailure> {
        let segment = self.active.segment.clone();
        let sealing = index_block::encode_sealing_batch(&self.shared.lock().index, &segment, self.next_batch);
        let Some((batch, index_offset)) = sealing.filter(|(_, offset)| *offset >= self.active.tail) else {
            // It was kept, if it was a log that wrote the segment.
            return Err(LogFailure::new(&segment.path, Operation::Write, "there is no room for the index"));
        };
        let out = self.buffer.take(batch.len());
        out.copy_from_slice(&batch);
        self.active.write(out, index_offset)?;
        self.next_batch += 1;

        let prepared = self.keeper.take_prepared(segment.number.next())?;
        let start =
            SegmentStart::new(self.log_id, self.next_batch, prepared.number, &self.shared.lock().index);
        let started = start.write(prepared, &mut self.buffer)?;
        self.keeper.prepare(started.segment.number.next());
        self.next_batch += 1;
        let mut state = self.shared.lock();
        state.bytes_written += batch.len() as u64 + started.tail;
        state.sync_count += 2;
        let positions = state.index.begin_segment(started.segment.number);
        state.recent_indexes.insert(segment.number, Arc::new(positions));
        let sealed = Slot { segment, index: IndexPlace::OnDisk { offset: index_offset } };
        state.slots.insert(sealed.segment.number, sealed);
        let slot = Slot { segment: started.segment.clone(), index: IndexPlace::Active };
        state.slots.insert(slot.segment.number, slot);
        drop(state);
        self.active = started;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if thread::panicking() {
            let failure =
                LogFailure::new(&self.shared.dir, Operation::Run, "a callback panicked on the writer thread");
            self.shared.fail(&failure);
            self.shared.close();
            (self.on_failure)(failure);
        }
    }
}

/// What a segment begins with.
pub(super) struct SegmentStart {
    log_id: u64,
    first_batch: u64,
    /// They repeat the state of all shards, so that no older segment is needed for it.
    records: Vec<Record>,
    reserve: SealReserve,
}

impl SegmentStart {
    /// For segment `number`, which follows what the index knows.
    pub(super) fn new(log_id: u64, first_batch: u64, number: SegmentNumber, index: &Index) -> Self {
        let mut reserve = SealReserve::without_entries(index);
        // The segment itself may begin a run.
        reserve.bytes += RUN_BYTES;
        Self { log_id, first_batch, records: index.state_records(number), reserve }
    }

    /// Writes header and first batch, with one write: the segment counts as begun when both are there.
    pub(super) fn write(
        self,
        prepared: PreparedSegment,
        buffer: &mut AlignedBuffer,
    ) -> Result<ActiveSegment, LogFailure> {
        let PreparedSegment { number, path, reader, writer, bytes } = prepared;
        let Self { log_id, first_batch, records, reserve } = self;
        let seed = Seed::new(log_id, number);
        let batch_bytes = BATCH_HEADER_BYTES + records.iter().map(Record::encoded_bytes).sum::<usize>();
        let out = buffer.take(BLOCK_BYTES + pad_to_block(batch_bytes));
        SegmentHeader { log_id, segment: number, first_batch, segment_bytes: bytes }
            .encode(&mut out[..BLOCK_BYTES]);
        encode_batch(&mut out[BLOCK_BYTES..], seed, first_batch, records.iter());
        write_durably(&*writer, &path, out, 0)?;
        let tail = out.len() as u64;
        let segment = Arc::new(Segment { number, path, file: reader, seed, bytes });
        Ok(ActiveSegment { segment, file: writer, tail, reserve })
    }
}

/// Writes whole blocks; they are durable when this returns.
pub(super) fn write_durably(
    file: &dyn DiskFile,
    path: &Path,
    bytes: &[u8],
    offset: u64,
) -> Result<(), LogFailure> {
    file.write_at(bytes, offset).map_err(|error| LogFailure::new(path, Operation::Write, error))?;
    if file.writes_are_durable() {
        return Ok(());
    }
    file.sync_data().map_err(|error| LogFailure::new(path, Operation::Sync, error))
}

impl ActiveSegment {
    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), LogFailure> {
        write_durably(&*self.file, &self.segment.path, bytes, offset)
    }

    /// Whether a batch that grows to `batch_bytes` with this record leaves room for the index.
    fn has_room(&self, batch_bytes: usize, record: &Record) -> bool {
        let sealed_bytes = self.reserve.bytes + self.reserve.growth_by(record);
        self.tail + (pad_to_block(batch_bytes) + pad_to_block(sealed_bytes)) as u64 <= self.segment.bytes
    }
}

/// What the index of a segment can take at most when it is sealed.
pub(super) struct SealReserve {
    bytes: usize,
    /// The shards the index has, with the term of their newest entry.
    terms: BTreeMap<ShardId, Option<u64>>,
}

impl SealReserve {
    /// For a segment that has the entries of which the index knows where they lie.
    pub(super) fn with_entries(index: &Index) -> Self {
        let mut reserve = Self::without_entries(index);
        reserve.bytes += index_block::position_bytes(index);
        reserve
    }

    /// For a segment without entries.
    fn without_entries(index: &Index) -> Self {
        let terms =
            index.outlines().map(|(shard, outline)| (shard, outline.terms().last().map(|run| run.term)));
        Self { bytes: index_block::sealed_bytes_without_entries(index), terms: terms.collect() }
    }

    fn growth_by(&self, record: &Record) -> usize {
        let known = self.terms.get(&record.shard);
        let shard_bytes = if known.is_none() { SHARD_BYTES } else { 0 };
        let record_bytes = match record.kind {
            Kind::Entry if known == Some(&Some(record.term)) => POSITION_BYTES,
            Kind::Entry => POSITION_BYTES + TERM_RUN_BYTES,
            Kind::Kept => KEPT_POSITION_BYTES,
            Kind::Vote | Kind::Committed => record.payload.len(),
            // Each may leave a gap. Its payload has 8 bytes for each.
            Kind::Retire => record.payload.len() / 8 * RUN_BYTES,
            Kind::Truncate | Kind::Purge | Kind::Index | Kind::State | Kind::Segments => 0,
        };
        shard_bytes + record_bytes
    }

    fn add(&mut self, record: &Record) {
        self.bytes += self.growth_by(record);
        let term = self.terms.entry(record.shard).or_default();
        match record.kind {
            Kind::Entry => *term = Some(record.term),
            // What the newest entry's term is afterwards is not worth knowing: the next counts as a change.
            Kind::Truncate | Kind::Purge => *term = None,
            Kind::Vote | Kind::Committed | Kind::Kept | Kind::Retire => {}
            Kind::Index | Kind::State | Kind::Segments => {}
        }
    }
}

impl Item {
    fn record(&self) -> Option<&Record> {
        match self {
            Self::Record(record) => Some(record),
            Self::Done(_) | Self::TrimSpares(_) => None,
        }
    }
}
