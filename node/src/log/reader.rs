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
    positions::{Position, SegmentPositions},
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

/// A segment in which an entry, or parts of it, may be found.
#[derive(Clone, Copy)]
struct Place {
    segment: SegmentNumber,
    kind: Kind,
    limits: Limits,
}

/// What a place turned out to be.
enum Look {
    Found(Found),
    /// The segment has other entries only.
    Nothing,
    /// The segment is not there any more: what it had lies elsewhere, or nobody needs it.
    GivenUp,
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
            let entries = self.visit(shard, index, limits, |found| {
                match found.read(shard).map(|records| as_entries(records, &found, term)) {
                    // Otherwise only parts, or another term's.
                    Ok(entries) => return Some(entries).filter(|entries| !entries.is_empty()),
                    Err(problem) => miss = Some((found.segment, problem)),
                }
                None
            })?;
            if let Some(entries) = entries {
                return Ok(entries);
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
            let entries = self.visit(shard, index, limits, |found| {
                found.read(shard).map_err(|problem| miss = Some((found.segment, problem))).ok()
            })?;
            if let Some(entries) = entries {
                return Ok(entries);
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
            let bytes = self.visit(shard, index, Limits::only(index), |found| {
                match found.read(shard) {
                    Ok(entries) => return entries.first()?.parts.get(position, length),
                    Err(problem) => miss = Some((found.segment, problem)),
                }
                None
            })?;
            if let Some(bytes) = bytes {
                return Ok(bytes);
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
        let wanted = self.visit(shard, index, Limits::only(index), |found| {
            let read = found.read(shard).unwrap_or_default();
            read.first().filter(|entry| is_wanted(&found, entry)).map(drop)
        });
        wanted.is_ok_and(|wanted| wanted.is_some())
    }

    /// Looks at the places where an entry or parts of it are on disk, until `visit` has what it wants: those of parts
    /// first, the newest of these foremost. One at a time: they may be more than there are indexes in memory.
    fn visit<T>(
        &self,
        shard: ShardId,
        index: u64,
        limits: Limits,
        mut visit: impl FnMut(Found) -> Option<T>,
    ) -> Result<Option<T>, ReadError> {
        // Goes round again only after a segment was given up meanwhile, which does not last.
        loop {
            let places = self.lock().places(shard, index, limits);
            let mut are_all_there = true;
            for place in places {
                match self.look(shard, index, place)? {
                    Look::Found(found) => {
                        if let Some(wanted) = visit(found) {
                            return Ok(Some(wanted));
                        }
                    }
                    Look::Nothing => {}
                    Look::GivenUp => are_all_there = false,
                }
            }
            if are_all_there {
                return Ok(None);
            }
        }
    }

    /// Looks at one place, for which the segment's index may have to be read first.
    fn look(&self, shard: ShardId, index: u64, place: Place) -> Result<Look, ReadError> {
        let (segment, offset) = {
            let mut state = self.lock();
            let Some(slot) = state.slots.get(&place.segment) else { return Ok(Look::GivenUp) };
            let segment = Arc::clone(&slot.segment);
            let offset = match &slot.index {
                IndexPlace::Active => return Ok(place.look(segment, shard, index, state.index.positions())),
                IndexPlace::Rebuilt(positions) => return Ok(place.look(segment, shard, index, positions)),
                IndexPlace::OnDisk { offset } => *offset,
            };
            if let Some(positions) = state.recent_indexes.get(place.segment) {
                return Ok(place.look(segment, shard, index, &positions));
            }
            (segment, offset)
        };
        let positions = segment.read_positions(offset);
        let mut state = self.lock();
        match positions {
            Ok(positions) => {
                let positions = Arc::new(positions);
                state.recent_indexes.insert(place.segment, Arc::clone(&positions));
                drop(state);
                Ok(place.look(segment, shard, index, &positions))
            }
            Err(_) if !state.slots.contains_key(&place.segment) => Ok(Look::GivenUp),
            Err(source) => Err(ReadError::Io { path: segment.path.clone(), source }),
        }
    }

    /// Whether a segment is part of the log still. Once it is not, its file may be used again, and what is read there
    /// means nothing.
    pub(super) fn has(&self, segment: &Arc<Segment>) -> bool {
        self.lock().slots.get(&segment.number).is_some_and(|slot| Arc::ptr_eq(&slot.segment, segment))
    }

    /// Why something could not be read; `None` when that has changed meanwhile, and it should be tried again.
    fn explain(&self, shard: ShardId, index: u64, miss: Option<(Arc<Segment>, Miss)>) -> Option<ReadError> {
        let Some((segment, miss)) = miss else {
            let state = self.lock();
            return Some(match state.check_live(shard, index) {
                Err(gone) => gone,
                // The index in memory says that some segment has the entry; the one on disk does not.
                Ok(_) => ReadError::Damaged { shard, index, path: self.dir.clone(), offset: 0 },
            });
        };
        if !self.has(&segment) {
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
        let entry = self.cache.read(shard, index..index.saturating_add(1), usize::MAX).pop()?;
        Some(KeptEntry { index, term: entry.term, parts: Parts::whole(entry.payload) })
    }

    /// The segments in which an entry, or parts of it, may be found.
    fn places(&self, shard: ShardId, index: u64, limits: Limits) -> Vec<Place> {
        let Some(indexed) = self.index.shard(shard) else { return Vec::new() };
        let kept = indexed.kept_in(index).map(|segment| Place { segment, kind: Kind::Kept, limits });
        let appended = indexed.span(index).map(|span| Place {
            segment: span.segment,
            kind: Kind::Entry,
            limits: Limits { end: limits.end.min(span.end), ..limits },
        });
        kept.chain(appended).collect()
    }
}

impl Place {
    /// Finds the entry by the segment's index.
    fn look(self, segment: Arc<Segment>, shard: ShardId, index: u64, positions: &SegmentPositions) -> Look {
        let Some(positions) = positions.get(&shard) else { return Look::Nothing };
        let Self { kind, limits, .. } = self;
        let records = match kind {
            Kind::Kept => near(positions.kept.from(index), index, limits),
            _ => {
                let entries =
                    (index..limits.end).map_while(|index| Some((index, positions.entries.get(index)?)));
                near(entries, index, limits)
            }
        };
        if records.is_empty() { Look::Nothing } else { Look::Found(Found { segment, kind, records }) }
    }
}

impl Limits {
    /// Nothing is read along.
    fn only(index: u64) -> Self {
        Self { end: index.saturating_add(1), bytes_max: 0 }
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
        // An index may be sound, and still not say how the records lie.
        let at = position.start().checked_sub(start)?;
        let record = decode_record(bytes.get(at..)?, self.segment.seed).ok().filter(|record| {
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
