//! The log's space: which segments hold what, writing anew what is left of one, and giving segments up.

use std::{
    collections::BTreeMap,
    fmt,
    ops::{ControlFlow, Range},
    sync::{Arc, mpsc},
};

use skein_proto::ids::ShardId;

use super::{
    Done, KeptEntry, Log, Part, Parts,
    error::{LogFailure, Operation, ReadError, RewriteError},
    format::{Kind, Record, SegmentNumber},
    index::IndexedShard,
    positions::{Position, SegmentPositions, ShardPositions},
    reader::Found,
    segment::{IndexPlace, Segment},
    segment_set::encode_numbers,
};
use crate::planted::{Bug, is_planted};

/// How many entries' worth of parts is asked for at a time.
const ASKED_ENTRIES_MAX: u64 = 4096;

/// How much is written anew at once, in bytes. Small, because whoever waits for the log's next write waits for it too.
const REWRITE_BYTES: usize = 256 << 10;

/// Names a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentId(pub(super) SegmentNumber);

impl SegmentId {
    pub(super) const fn of(number: SegmentNumber) -> Self {
        Self(number)
    }

    /// Its number, as in the file's name.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A segment, and which entries it has something of.
#[derive(Debug)]
pub struct SegmentSurvey {
    /// Which one.
    pub id: SegmentId,
    /// The length of its file.
    pub file_bytes: u64,
    /// Whether nothing is added to it any more.
    pub is_sealed: bool,
    /// Whether it has entries above some shard's purge point: it cannot be given up.
    pub has_raft_entries: bool,
    /// What it has of each shard.
    pub shards: Vec<ShardShare>,
}

/// What a segment has of one shard.
#[derive(Debug)]
pub struct ShardShare {
    /// The shard.
    pub shard: ShardId,
    /// It may have something of these entries, and has nothing of others. The ranges may overlap.
    pub entries: Vec<Range<u64>>,
}

/// What became of a segment's rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rewritten {
    /// Written anew, in bytes of payload.
    pub bytes: u64,
}

impl Log {
    /// How large new segments are, in bytes.
    #[must_use]
    pub fn segment_bytes(&self) -> u64 {
        self.shared.segment_bytes
    }

    /// All segments, oldest first.
    #[must_use]
    pub fn survey(&self) -> Vec<SegmentSurvey> {
        let state = self.shared.lock();
        let mut surveys: BTreeMap<_, _> = state
            .slots
            .iter()
            .map(|(number, slot)| {
                let survey = SegmentSurvey {
                    id: SegmentId(*number),
                    file_bytes: slot.segment.bytes,
                    is_sealed: !matches!(slot.index, IndexPlace::Active),
                    has_raft_entries: false,
                    shards: Vec::new(),
                };
                (*number, survey)
            })
            .collect();
        for (shard, indexed) in state.index.shards() {
            survey_shard(shard, indexed, &mut surveys);
        }
        surveys.into_values().collect()
    }

    /// What a shard's entries after `index` take in the log, in bytes, about.
    #[must_use]
    pub fn bytes_after(&self, shard: ShardId, index: u64) -> u64 {
        let state = self.shared.lock();
        let Some(indexed) = state.index.shard(shard) else { return 0 };
        let spans = indexed.spans().rev().take_while(|span| span.end > index.saturating_add(1));
        spans.map(|span| span.bytes_of(span.end - span.first.max(index + 1))).sum()
    }

    /// The oldest of the log's newest segments that take no more than `bytes` together; at least the one that is being
    /// written.
    #[must_use]
    pub fn oldest_within(&self, bytes: u64) -> SegmentId {
        let state = self.shared.lock();
        let mut left = bytes;
        let newest = state.slots.iter().rev().take_while(|(number, slot)| {
            let fits = left.checked_sub(slot.segment.bytes);
            left = fits.unwrap_or_default();
            fits.is_some() || **number == state.index.active()
        });
        SegmentId(newest.last().map_or(state.index.active(), |(number, _)| *number))
    }

    /// A shard's last entry that lies in a segment before this one.
    #[must_use]
    pub fn last_index_before(&self, shard: ShardId, segment: SegmentId) -> Option<u64> {
        let state = self.shared.lock();
        let mut spans = state.index.shard(shard)?.spans();
        spans.rfind(|span| span.segment < segment.0).map(|span| span.end - 1)
    }

    /// Writes parts of a sealed segment anew, those that `live` says are still needed of the entries it is asked for.
    /// `pace` is called after each chunk with its size, and may sleep. Blocks. What was written is durable when this
    /// returns; the segment is still there.
    ///
    /// # Errors
    /// See [`RewriteError`].
    pub fn rewrite(
        &self,
        segment: SegmentId,
        live: &mut dyn FnMut(ShardId, Range<u64>) -> Vec<Part>,
        pace: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Rewritten, RewriteError> {
        let (segment, positions) = self.positions_of(segment)?;
        let mut rewrite = Rewrite { log: self, segment, pace, chunk: Vec::new(), chunk_bytes: 0, bytes: 0 };
        for (shard, ShardPositions { entries, kept }) in positions.iter() {
            rewrite.rewrite(*shard, Kind::Kept, &kept.iter().collect::<Vec<_>>(), live)?;
            let range = rewrite.valid_entries(*shard);
            let positions = range.filter_map(|index| Some((index, entries.get(index)?)));
            rewrite.rewrite(*shard, Kind::Entry, &positions.collect::<Vec<_>>(), live)?;
        }
        Ok(Rewritten { bytes: rewrite.bytes })
    }

    /// Gives segments up, except those that are not sealed or have entries above some shard's purge point. Blocks until
    /// that is durable, and says which are gone; their files are used again.
    ///
    /// # Errors
    /// When the log can no longer be written.
    pub fn retire(&self, segments: &[SegmentId]) -> Result<Vec<SegmentId>, LogFailure> {
        let surveyed = self.survey();
        let may_go = |id: &SegmentId| {
            surveyed.iter().any(|survey| survey.id == *id && survey.is_sealed && !survey.has_raft_entries)
        };
        // What may go now may also go later: nothing is added to it, and purge points only rise.
        let retired: Vec<_> = segments.iter().copied().filter(may_go).collect();
        if !retired.is_empty() {
            let numbers: Vec<_> = retired.iter().map(|id| id.0).collect();
            self.write_and_wait([Record::retire(encode_numbers(&numbers))])?;
        }
        Ok(retired)
    }

    /// Removes files that are kept for new segments, until so many are left.
    pub fn trim_spares(&self, count_max: usize) {
        self.shared.trim_spares(count_max);
    }

    pub(super) fn positions_of(
        &self,
        segment: SegmentId,
    ) -> Result<(Arc<Segment>, Arc<SegmentPositions>), ReadError> {
        let slot = self.shared.lock().slots.get(&segment.0).cloned();
        let slot = slot.ok_or(ReadError::NoSegment { segment })?;
        let positions = match slot.index {
            IndexPlace::Active => return Err(ReadError::NoSegment { segment }),
            IndexPlace::Rebuilt(positions) => positions,
            IndexPlace::OnDisk { offset } => {
                let positions = slot.segment.read_positions(offset);
                let path = slot.segment.path.clone();
                Arc::new(positions.map_err(|source| match self.shared.has(&slot.segment) {
                    true => ReadError::Io { path, source },
                    false => ReadError::NoSegment { segment },
                })?)
            }
        };
        Ok((slot.segment, positions))
    }

    /// Writes records and waits until they are durable.
    fn write_and_wait(&self, records: impl IntoIterator<Item = Record>) -> Result<(), LogFailure> {
        let (done, durable) = mpsc::channel();
        let done: Done = Box::new(move |result| drop(done.send(result)));
        self.enqueue(self.shared.lock(), records, Some(done));
        let gone = || LogFailure::new(&self.shared.dir, Operation::Run, "the log's writer is gone");
        durable.recv().unwrap_or_else(|_| Err(gone()))
    }
}

fn survey_shard(
    shard: ShardId,
    indexed: &IndexedShard,
    surveys: &mut BTreeMap<SegmentNumber, SegmentSurvey>,
) {
    let live_start = indexed.outline().live().start;
    let mut shares: BTreeMap<SegmentNumber, Vec<Range<u64>>> = BTreeMap::new();
    for span in indexed.spans() {
        shares.entry(span.segment).or_default().push(span.first..span.end);
        if let Some(survey) = surveys.get_mut(&span.segment) {
            survey.has_raft_entries |= span.end > live_start;
        }
    }
    for (number, ranges) in indexed.kept() {
        shares.entry(number).or_default().extend(ranges.iter());
    }
    for (number, entries) in shares {
        if let Some(survey) = surveys.get_mut(&number) {
            survey.shards.push(ShardShare { shard, entries });
        }
    }
}

/// One segment being written anew.
struct Rewrite<'a> {
    log: &'a Log,
    segment: Arc<Segment>,
    pace: &'a mut dyn FnMut(usize) -> ControlFlow<()>,
    chunk: Vec<Record>,
    chunk_bytes: usize,
    bytes: u64,
}

impl Rewrite<'_> {
    /// The shard's entries of which the segment has the valid record.
    fn valid_entries(&self, shard: ShardId) -> Range<u64> {
        let state = self.log.shared.lock();
        let mut spans = state.index.shard(shard).into_iter().flat_map(IndexedShard::spans);
        let span = spans.rfind(|span| span.segment == self.segment.number);
        span.map_or(0..0, |span| span.first..span.end)
    }

    fn rewrite(
        &mut self,
        shard: ShardId,
        kind: Kind,
        records: &[(u64, Position)],
        live: &mut dyn FnMut(ShardId, Range<u64>) -> Vec<Part>,
    ) -> Result<(), RewriteError> {
        let mut rest = records;
        while let Some((first, _)) = rest.first() {
            let asked = *first..first.saturating_add(ASKED_ENTRIES_MAX);
            let (now, later) = rest.split_at(rest.partition_point(|(index, _)| *index < asked.end));
            rest = later;
            let end = now.last().map_or(asked.end, |(index, _)| index + 1);
            let parts = live(shard, asked.start..end);
            for parts in parts.chunk_by(|one, next| one.index == next.index) {
                let at = now.binary_search_by_key(&parts[0].index, |(index, _)| *index);
                if let Ok(at) = at {
                    self.copy(shard, kind, now[at], parts)?;
                }
            }
            self.flush()?;
        }
        Ok(())
    }

    /// Copies these parts of an entry, unless they are kept elsewhere.
    fn copy(
        &mut self,
        shard: ShardId,
        kind: Kind,
        record: (u64, Position),
        parts: &[Part],
    ) -> Result<(), RewriteError> {
        let is_lost = is_planted(Bug::RewriteLoses) && record.0.is_multiple_of(4);
        if is_lost || self.is_kept_elsewhere(shard, parts) {
            return Ok(());
        }
        let found = Found { segment: self.segment.clone(), kind, records: vec![record] };
        let Ok(entries) = found.read(shard) else {
            let path = self.segment.path.clone();
            let (index, offset) = (record.0, record.1.offset.into());
            return Err(ReadError::Damaged { shard, index, path, offset }.into());
        };
        for entry in entries {
            // Of what is kept the state may name more than there is, until it has caught up with whoever sent it.
            let slices: Vec<_> = parts
                .iter()
                .filter_map(|part| Some((part.position, entry.parts.get(part.position, part.length)?)))
                .collect();
            let KeptEntry { index, term, .. } = entry;
            let slices = Parts::new(slices).ok_or(RewriteError::Contradiction { shard, index })?;
            self.chunk_bytes += slices.bytes();
            self.chunk.push(Record::kept(shard, index, term, slices.encode()));
        }
        if self.chunk_bytes >= REWRITE_BYTES { self.flush() } else { Ok(()) }
    }

    /// Another segment may have them since an earlier attempt that was cut off, or a repair.
    fn is_kept_elsewhere(&self, shard: ShardId, parts: &[Part]) -> bool {
        let is_candidate = {
            let state = self.log.shared.lock();
            let indexed = state.index.shard(shard);
            let mut segments = indexed.into_iter().flat_map(|indexed| indexed.kept_in(parts[0].index));
            segments.any(|number| number != self.segment.number)
        };
        is_candidate && self.log.shared.has_elsewhere(shard, parts, self.segment.number)
    }

    fn flush(&mut self) -> Result<(), RewriteError> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        self.log.write_and_wait(std::mem::take(&mut self.chunk))?;
        let chunk_bytes = std::mem::take(&mut self.chunk_bytes);
        self.bytes += chunk_bytes as u64;
        match (self.pace)(chunk_bytes) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(RewriteError::Stopped),
        }
    }
}
