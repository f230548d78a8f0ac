//! Reads: from the cache, else from the segments that have the entries, or parts of them; several with one call to the
//! disk.
//!
//! An entry may lie in several places: where it was appended, and where parts of it, or all of it, were kept later.
//! They are the same as far as they go, because only what is committed is kept. So whatever is whole there will do;
//! but raft may still have an entry that was never committed at an index of which something was kept, so that its
//! reads compare terms.

use std::{io, ops::Range, sync::Arc};

use bytes::Bytes;
use skein_proto::ids::ShardId;

use super::{
    Entry, KeptEntry, Part, Parts,
    error::ReadError,
    format::{Kind, RECORD_HEADER_BYTES, SegmentNumber, decode_record, record_bytes},
    positions::{Position, SegmentPositions, ShardPositions},
    segment::{IndexPlace, Segment},
    state::{Shared, State},
};

/// The most that one call to the disk reads, in bytes, unless one entry alone is larger. As much as a batch: entries
/// that were written together are read together.
const READ_BYTES_MAX: usize = 4 << 20;
/// Up to this much of other records between two wanted ones is read along, in bytes. Reading it takes less time than
/// another call.
const READ_GAP_BYTES_MAX: usize = 64 << 10;

/// Where something is, with what lies near it.
pub(super) struct Found {
    pub(super) segment: Arc<Segment>,
    pub(super) kind: Kind,
    /// By rising index and offset; the first is what was looked for.
    pub(super) records: Vec<(u64, Position)>,
}

/// Something must be read before an answer can be given.
pub(super) struct NeedsIndex {
    segment: Arc<Segment>,
    offset: u64,
}

/// Why a record was not where it should be.
pub(super) enum Miss {
    Unsound { index: u64, offset: u64 },
    Io(io::Error),
}

/// How much may be read along.
#[derive(Clone, Copy)]
struct Limits {
    end: u64,
    bytes_max: usize,
}

impl Shared {
    /// See [`Log::read`](super::Log::read).
    pub(super) fn read(
        &self,
        shard: ShardId,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, ReadError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut left = bytes_max;
        let mut next = range.start;
        while next < range.end {
            let some = match self.read_some(shard, next..range.end, left) {
                Ok(some) => some,
                Err(error) if entries.is_empty() => return Err(error),
                // What was read is good; the caller meets the rest when it asks for it.
                Err(_) => break,
            };
            if !entries.is_empty() && some.first().is_none_or(|entry| entry.payload.len() > left) {
                break;
            }
            next += some.len() as u64;
            left = some.iter().fold(left, |left, entry| left.saturating_sub(entry.payload.len()));
            entries.extend(some);
        }
        Ok(entries)
    }

    /// Reads at least one entry.
    fn read_some(
        &self,
        shard: ShardId,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, ReadError> {
        let index = range.start;
        // Goes round again only after a segment was given up meanwhile, which does not last.
        loop {
            let (limits, term) = {
                let state = self.lock();
                let (end, term) = state.check_live(shard, index)?;
                let cached = state.cache.read(shard, range.clone(), bytes_max);
                if !cached.is_empty() {
                    return Ok(cached);
                }
                // From where the cache starts, what is on disk may be about to be replaced.
                let cached_from = state.cache.first_index(shard).unwrap_or(u64::MAX);
                (Limits { end: range.end.min(end).min(cached_from), bytes_max }, term)
            };
            let mut miss = None;
            for found in self.find(shard, index, limits)? {
                let entries = found.read(shard).map(|records| as_entries(records, &found, term));
                match entries {
                    Ok(entries) if !entries.is_empty() => return Ok(entries),
                    // Only parts, or another term's.
                    Ok(_) => {}
                    Err(problem) => miss = Some((found.segment, problem)),
                }
            }
            if let Some(error) = self.explain(shard, index, miss) {
                return Err(error);
            }
        }
    }

    /// See [`Log::read_kept`](super::Log::read_kept).
    pub(super) fn read_kept(
        &self,
        shard: ShardId,
        index: u64,
        bytes_max: usize,
    ) -> Result<Vec<KeptEntry>, ReadError> {
        loop {
            let limits = Limits { end: u64::MAX, bytes_max };
            if let Some(entry) = self.lock().cached_kept(shard, index) {
                return Ok(vec![entry]);
            }
            let mut miss = None;
            for found in self.find(shard, index, limits)? {
                match found.read(shard) {
                    Ok(entries) => return Ok(entries),
                    Err(problem) => miss = Some((found.segment, problem)),
                }
            }
            if let Some(error) = self.explain(shard, index, miss) {
                return Err(error);
            }
        }
    }

    /// See [`Log::read_part`](super::Log::read_part).
    pub(super) fn read_part(&self, shard: ShardId, part: Part) -> Result<Bytes, ReadError> {
        let Part { index, position, length } = part;
        loop {
            let cached = self.lock().cached_kept(shard, index);
            if let Some(bytes) = cached.and_then(|entry| entry.parts.get(position, length)) {
                return Ok(bytes);
            }
            let mut miss = None;
            let places = self.find(shard, index, Limits { end: index + 1, bytes_max: 0 })?;
            for found in places {
                match found.read(shard) {
                    Ok(entries) => {
                        let parts = entries.first().map(|entry| &entry.parts);
                        if let Some(bytes) = parts.and_then(|parts| parts.get(position, length)) {
                            return Ok(bytes);
                        }
                    }
                    Err(problem) => miss = Some((found.segment, problem)),
                }
            }
            if let Some(error) = self.explain(shard, index, miss) {
                return Err(error);
            }
        }
    }

    /// Whether these parts of an entry are whole in some segment other than this one.
    pub(super) fn has_elsewhere(&self, shard: ShardId, parts: &[Part], except: SegmentNumber) -> bool {
        let index = parts.first().map_or(0, |part| part.index);
        self.any_place(shard, index, |found, entry| {
            let has = |part: &Part| entry.parts.get(part.position, part.length).is_some();
            found.segment.number != except && parts.iter().all(has)
        })
    }

    /// Whether parts of an entry were kept in a later segment than this one: all that was needed then.
    pub(super) fn is_kept_later(&self, shard: ShardId, index: u64, than: SegmentNumber) -> bool {
        self.any_place(shard, index, |found, _| found.kind == Kind::Kept && found.segment.number > than)
    }

    fn any_place(&self, shard: ShardId, index: u64, is_wanted: impl Fn(&Found, &KeptEntry) -> bool) -> bool {
        let places = self.find(shard, index, Limits { end: index + 1, bytes_max: 0 }).unwrap_or_default();
        places.iter().any(|found| {
            let read = found.read(shard).unwrap_or_default();
            read.first().is_some_and(|entry| is_wanted(found, entry))
        })
    }

    /// All places where an entry or parts of it are on disk, those of parts first, the newest of these foremost.
    fn find(&self, shard: ShardId, index: u64, limits: Limits) -> Result<Vec<Found>, ReadError> {
        loop {
            let needed = match self.lock().find(shard, index, limits) {
                Ok(found) => return Ok(found),
                Err(needed) => needed,
            };
            let NeedsIndex { segment, offset } = needed;
            let positions = segment.read_positions(offset);
            let mut state = self.lock();
            match positions {
                Ok(positions) => state.recent_indexes.insert(segment.number, Arc::new(positions)),
                Err(_) if !state.slots.contains_key(&segment.number) => {}
                Err(source) => return Err(ReadError::Io { path: segment.path.clone(), source }),
            }
        }
    }

    /// Why something could not be read; `None` when that has changed meanwhile, and it should be tried again.
    fn explain(&self, shard: ShardId, index: u64, miss: Option<(Arc<Segment>, Miss)>) -> Option<ReadError> {
        let state = self.lock();
        let Some((segment, miss)) = miss else {
            return Some(match state.check_live(shard, index) {
                Err(gone) => gone,
                // The index in memory says that some segment has the entry; the one on disk does not.
                Ok(_) => ReadError::Damaged { shard, index, path: self.dir.clone(), offset: 0 },
            });
        };
        if !state.slots.get(&segment.number).is_some_and(|slot| Arc::ptr_eq(&slot.segment, &segment)) {
            return None;
        }
        let path = segment.path.clone();
        Some(match miss {
            Miss::Unsound { index, offset } => ReadError::Damaged { shard, index, path, offset },
            Miss::Io(source) => ReadError::Io { path, source },
        })
    }
}

impl State {
    /// The end of the shard's live entries, and the term of this one.
    fn check_live(&self, shard: ShardId, index: u64) -> Result<(u64, u64), ReadError> {
        let not_found = ReadError::NotFound { shard, index };
        let Some(outline) = self.outlines.get(&shard) else {
            return Err(not_found);
        };
        if let Some(purged) = outline.purged.filter(|purged| purged.index >= index) {
            return Err(ReadError::Purged { shard, index, purged: purged.index });
        }
        let live = outline.live();
        match outline.term_at(index).filter(|_| live.contains(&index)) {
            Some(term) => Ok((live.end, term)),
            None => Err(not_found),
        }
    }

    /// The entry, if it is in memory.
    pub(super) fn cached_kept(&self, shard: ShardId, index: u64) -> Option<KeptEntry> {
        let entry = self.cache.read(shard, index..index + 1, usize::MAX).pop()?;
        Some(KeptEntry { index, term: entry.term, parts: Parts::whole(entry.payload) })
    }

    fn find(&mut self, shard: ShardId, index: u64, limits: Limits) -> Result<Vec<Found>, NeedsIndex> {
        let Some(indexed) = self.index.shard(shard) else {
            return Ok(Vec::new());
        };
        let span = indexed.span(index).copied();
        let kept_in: Vec<_> = indexed.kept_in(index).collect();
        let mut found = Vec::new();
        for number in kept_in {
            let records = self
                .with_positions(number, shard, |positions| near(positions.kept.from(index), index, limits))?;
            found.extend(self.found(number, Kind::Kept, records));
        }
        if let Some(span) = span {
            let records = self.with_positions(span.segment, shard, |positions| {
                let end = limits.end.min(span.end);
                let entries = (index..end).map_while(|index| Some((index, positions.entries.get(index)?)));
                near(entries, index, limits)
            })?;
            found.extend(self.found(span.segment, Kind::Entry, records));
        }
        Ok(found)
    }

    fn found(&self, number: SegmentNumber, kind: Kind, records: Vec<(u64, Position)>) -> Option<Found> {
        let segment = self.slots.get(&number)?.segment.clone();
        (!records.is_empty()).then_some(Found { segment, kind, records })
    }

    /// Looks at where the shard's records lie in a segment.
    fn with_positions(
        &mut self,
        number: SegmentNumber,
        shard: ShardId,
        look: impl FnOnce(&ShardPositions) -> Vec<(u64, Position)>,
    ) -> Result<Vec<(u64, Position)>, NeedsIndex> {
        let Some(slot) = self.slots.get(&number) else { return Ok(Vec::new()) };
        let recent;
        let positions: &SegmentPositions = match &slot.index {
            IndexPlace::Active => self.index.positions(),
            IndexPlace::Rebuilt(positions) => positions,
            IndexPlace::OnDisk { offset } => match self.recent_indexes.get(number) {
                None => return Err(NeedsIndex { segment: slot.segment.clone(), offset: *offset }),
                Some(positions) => {
                    recent = positions;
                    &recent
                }
            },
        };
        Ok(positions.get(&shard).map(look).unwrap_or_default())
    }
}

/// The records that one call to the disk serves; none when the first is not the wanted one.
fn near(records: impl Iterator<Item = (u64, Position)>, wanted: u64, limits: Limits) -> Vec<(u64, Position)> {
    let mut chosen: Vec<(u64, Position)> = Vec::new();
    let mut bytes: usize = 0;
    for (index, position) in records.take_while(|(index, _)| *index < limits.end) {
        bytes = bytes.saturating_add(position.payload_bytes as usize);
        match (chosen.first(), chosen.last()) {
            (Some((_, first)), Some((_, last))) => {
                let is_near =
                    last.end() <= position.start() && position.start() - last.end() <= READ_GAP_BYTES_MAX;
                let is_much = || bytes > limits.bytes_max || position.end() - first.start() > READ_BYTES_MAX;
                if !is_near || is_much() {
                    break;
                }
            }
            _ if index != wanted => break,
            _ => {}
        }
        chosen.push((index, position));
    }
    chosen
}

impl Found {
    /// Reads the first record, and those after it up to the first that is not sound.
    pub(super) fn read(&self, shard: ShardId) -> Result<Vec<KeptEntry>, Miss> {
        let (Some((first, front)), Some((_, back))) = (self.records.first(), self.records.last()) else {
            return Ok(Vec::new());
        };
        let start = front.start();
        if back.end() as u64 > self.segment.bytes {
            return Err(Miss::Unsound { index: *first, offset: start as u64 });
        }
        let mut bytes = vec![0; back.end() - start];
        self.segment.file.read_at(&mut bytes, start as u64).map_err(Miss::Io)?;
        let bytes = Bytes::from(bytes);
        let mut entries = Vec::with_capacity(self.records.len());
        for (index, position) in &self.records {
            match self.decode(shard, *index, *position, &bytes, start) {
                Some(entry) => entries.push(entry),
                None if entries.is_empty() => {
                    return Err(Miss::Unsound { index: *index, offset: position.offset.into() });
                }
                None => break,
            }
        }
        Ok(entries)
    }

    /// The record at `position` in what was read from `start` on.
    fn decode(
        &self,
        shard: ShardId,
        index: u64,
        position: Position,
        bytes: &Bytes,
        start: usize,
    ) -> Option<KeptEntry> {
        let at = position.start() - start;
        let record = decode_record(&bytes[at..], self.segment.seed).ok().filter(|record| {
            (record.kind, record.shard, record.index) == (self.kind, shard, index)
                && record.payload_bytes == position.payload_bytes as usize
        })?;
        let payload = at + RECORD_HEADER_BYTES..at + RECORD_HEADER_BYTES + record.payload_bytes;
        let payload = bytes.slice(payload);
        let parts = match self.kind {
            Kind::Kept => Parts::decode(&payload)?,
            _ => Parts::whole(payload),
        };
        Some(KeptEntry { index, term: record.term, parts })
    }
}

/// What of this was appended by raft in this way: all of consecutive entries, the first one of `term`.
fn as_entries(records: Vec<KeptEntry>, found: &Found, term: u64) -> Vec<Entry> {
    let first = found.records.first().map_or(0, |(index, _)| *index);
    // Of kept ones only the first, whose term is known.
    let count_max = if found.kind == Kind::Kept { 1 } else { usize::MAX };
    let entries = records.into_iter().zip(first..).take(count_max).map_while(|(record, index)| {
        let is_next = record.index == index && (index > first || record.term == term);
        let payload = record.parts.as_whole().filter(|_| is_next)?.clone();
        Some(Entry { index, term: record.term, payload })
    });
    entries.collect()
}

impl Position {
    pub(super) fn start(self) -> usize {
        self.offset as usize
    }

    pub(super) fn end(self) -> usize {
        self.start() + record_bytes(self.payload_bytes as usize)
    }
}
