//! Reads: from the cache, else from the segment that has the entries, several with one call to the disk.

use std::{io, ops::Range, sync::Arc};

use bytes::Bytes;
use skein_proto::ids::ShardId;

use super::{
    Entry,
    error::ReadError,
    format::{Kind, RECORD_HEADER_BYTES, decode_record, record_bytes},
    index::{Position, Positions},
    segment::{IndexPlace, Segment},
    state::{Shared, State},
};

/// The most that one call to the disk reads, in bytes, unless one entry alone is larger. As much as a batch: entries
/// that were written together are read together.
const READ_BYTES_MAX: usize = 4 << 20;
/// Up to this much of other shards' records between two entries is read along, in bytes. Reading it takes less time
/// than another call.
const READ_GAP_BYTES_MAX: usize = 64 << 10;

/// How to get at some entries.
enum Plan {
    Cached(Vec<Entry>),
    /// Consecutive entries that lie close to each other in one segment.
    OnDisk {
        segment: Arc<Segment>,
        first: u64,
        positions: Vec<Position>,
    },
    /// First the segment's index must be read.
    LoadIndex {
        segment: Arc<Segment>,
        offset: u64,
    },
}

/// Why entries were not where the plan said.
enum Miss {
    Unsound { index: u64, offset: u64 },
    Io(io::Error),
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
        // Goes round again only after an index was loaded or a segment retired, neither of which lasts.
        loop {
            let plan = plan(&mut self.lock(), shard, range.clone(), bytes_max)?;
            let (segment, index, missed) = match plan {
                Plan::Cached(entries) => return Ok(entries),
                Plan::OnDisk { segment, first, positions } => {
                    match read_from_disk(&segment, shard, first, &positions) {
                        Ok(entries) => return Ok(entries),
                        Err(Miss::Unsound { index, offset }) => {
                            (segment, index, Miss::Unsound { index, offset })
                        }
                        Err(miss) => (segment, first, miss),
                    }
                }
                Plan::LoadIndex { segment, offset } => match segment.read_index(offset) {
                    Ok(Some((_, shards))) => {
                        let positions =
                            shards.into_iter().map(|block| (block.shard, block.positions)).collect();
                        self.lock().recent_indexes.insert(segment.number, Arc::new(positions));
                        continue;
                    }
                    Ok(None) => (segment, range.start, Miss::Unsound { index: range.start, offset }),
                    Err(error) => (segment, range.start, Miss::Io(error)),
                },
            };
            let is_still_there = {
                let state = self.lock();
                state.index.locate(shard, index).is_some_and(|(number, _)| number == segment.number)
            };
            if is_still_there {
                let path = segment.path.clone();
                return Err(match missed {
                    Miss::Unsound { index, offset } => ReadError::Damaged { shard, index, path, offset },
                    Miss::Io(source) => ReadError::Io { path, source },
                });
            }
        }
    }
}

fn plan(state: &mut State, shard: ShardId, range: Range<u64>, bytes_max: usize) -> Result<Plan, ReadError> {
    let index = range.start;
    let not_found = ReadError::NotFound { shard, index };
    let Some(outline) = state.outlines.get(&shard) else {
        return Err(not_found);
    };
    if let Some(purged) = outline.purged.filter(|purged| purged.index >= index) {
        return Err(ReadError::Purged { shard, index, purged: purged.index });
    }
    let live = outline.live();
    if !live.contains(&index) {
        return Err(not_found);
    }
    let cached = state.cache.read(shard, range.clone(), bytes_max);
    if !cached.is_empty() {
        return Ok(Plan::Cached(cached));
    }
    let (number, span_end) =
        state.index.locate(shard, index).expect("a live entry is cached until it is on disk");
    // From where the cache starts, what is on disk may be about to be replaced.
    let cached_from = state.cache.first_index(shard).unwrap_or(u64::MAX);
    let range = index..range.end.min(live.end).min(span_end).min(cached_from);
    let slot = &state.slots[&number];
    let segment = slot.segment.clone();
    let loaded;
    let positions = match &slot.index {
        IndexPlace::Active => state.index.positions().get(&shard),
        IndexPlace::Rebuilt(positions) => positions.get(&shard),
        IndexPlace::OnDisk { offset } => match state.recent_indexes.get(number) {
            None => {
                return Ok(Plan::LoadIndex { segment, offset: *offset });
            }
            Some(positions) => {
                loaded = positions;
                loaded.get(&shard)
            }
        },
    };
    let positions = positions.map(|positions| consecutive(positions, range, bytes_max)).unwrap_or_default();
    if positions.is_empty() {
        // The index in memory says that the segment has the entry; the one on disk does not.
        return Err(ReadError::Damaged { shard, index, path: segment.path.clone(), offset: 0 });
    }
    Ok(Plan::OnDisk { segment, first: index, positions })
}

/// The positions that one call to the disk serves: at least one, if there is one.
fn consecutive(positions: &Positions, range: Range<u64>, bytes_max: usize) -> Vec<Position> {
    let mut chosen: Vec<Position> = Vec::new();
    let mut bytes: usize = 0;
    for position in range.map_while(|index| positions.get(index)) {
        bytes = bytes.saturating_add(position.payload_bytes as usize);
        if let (Some(first), Some(last)) = (chosen.first(), chosen.last()) {
            let is_near =
                last.end() <= position.start() && position.start() - last.end() <= READ_GAP_BYTES_MAX;
            if !is_near || bytes > bytes_max || position.end() - first.start() > READ_BYTES_MAX {
                break;
            }
        }
        chosen.push(position);
    }
    chosen
}

fn read_from_disk(
    segment: &Segment,
    shard: ShardId,
    first: u64,
    positions: &[Position],
) -> Result<Vec<Entry>, Miss> {
    let (Some(front), Some(back)) = (positions.first(), positions.last()) else {
        return Ok(Vec::new());
    };
    let start = front.start();
    if back.end() as u64 > segment.bytes {
        return Err(Miss::Unsound { index: first, offset: start as u64 });
    }
    let mut bytes = vec![0; back.end() - start];
    segment.file.read_at(&mut bytes, start as u64).map_err(Miss::Io)?;
    let bytes = Bytes::from(bytes);
    let entries = (first..).zip(positions).map(|(index, position)| {
        let at = position.start() - start;
        let is_it = |record: &super::format::RecordHeader| {
            record.kind == Kind::Entry
                && (record.shard, record.index) == (shard, index)
                && record.payload_bytes == position.payload_bytes as usize
        };
        let record = decode_record(&bytes[at..], segment.seed).ok().filter(is_it);
        let record = record.ok_or(Miss::Unsound { index, offset: position.offset.into() })?;
        let payload = at + RECORD_HEADER_BYTES..at + RECORD_HEADER_BYTES + record.payload_bytes;
        Ok(Entry { index, term: record.term, payload: bytes.slice(payload) })
    });
    entries.collect()
}

impl Position {
    fn start(self) -> usize {
        self.offset as usize
    }

    fn end(self) -> usize {
        self.start() + record_bytes(self.payload_bytes as usize)
    }
}
