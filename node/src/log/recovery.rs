//! What a log that was closed, killed or cut off from power holds: everything that was durable, or an error. The only
//! thing left out is a batch that was being written, which nobody was told is durable.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::Bytes;

use super::{
    batch::AlignedBuffer,
    error::{Damage, OpenError},
    files::SegmentFiles,
    format::{BLOCK_BYTES, Kind, RECORD_HEADER_BYTES, Record, RecordHeader, SegmentNumber},
    found::{
        Found, Newest, check_none_later, check_none_missing, damaged, io_error, open_newest, open_segment,
        open_started,
    },
    index::{Inconsistent, Index},
    segment::{FoundBatch, IndexPlace, Segment, Slot},
    writer::write_durably,
};

/// What a directory holds.
pub(super) struct Recovered {
    pub(super) log_id: u64,
    pub(super) index: Index,
    pub(super) slots: BTreeMap<SegmentNumber, Slot>,
    pub(super) next_batch: u64,
    /// Where the next batch goes in the newest segment; `None` when that is sealed, or there is none.
    pub(super) tail: Option<u64>,
}

/// How far the batches of a segment go.
struct Scanned {
    next_batch: u64,
    /// Where the next batch would go.
    end: u64,
    /// Where the last sound batch starts.
    last_offset: u64,
    /// Where the index lies, when the last batch is one.
    index_offset: Option<u64>,
}

/// Reads the log; changes nothing unless it is sound. `None` when there is none yet.
pub(super) fn recover(files: &mut SegmentFiles) -> Result<Option<Recovered>, OpenError> {
    let numbers = files.scan_dir().map_err(io_error(&files.dir, "list"))?;
    check_none_missing(files, &numbers)?;
    let Some((&newest, older)) = numbers.split_last() else {
        return Ok(None);
    };
    let mut found = Vec::new();
    for number in older {
        found.push(open_started(files, *number, found.first())?);
    }
    let prepared = match open_newest(files, newest, found.first())? {
        Newest::Started(started) => {
            found.push(started);
            None
        }
        Newest::NotStarted(prepared) => Some(prepared),
    };
    let Some(log_id) = found.first().map(|first| first.header.log_id) else {
        if newest != SegmentNumber::FIRST {
            let damage = Damage::MissingSegment { number: newest.get() - 1 };
            return Err(damaged(&files.segment_path(newest), 0, damage));
        }
        files.disk.remove(&files.segment_path(newest)).map_err(io_error(&files.dir, "clear"))?;
        return Ok(None);
    };
    let Recovery { recovered, newest_batch } =
        Recovery::new(log_id, found[0].header.first_batch).run(found)?;
    if let Some((shard, index)) = recovered.index.first_missing() {
        let path = files.segment_path(recovered.index.active());
        return Err(OpenError::Damaged {
            path,
            offset: 0,
            shard: Some(shard),
            damage: Damage::MissingEntry { shard, index },
        });
    }
    if let Some(prepared) = prepared {
        let segment = open_segment(files, prepared, log_id)?;
        check_none_later(&segment, 0, recovered.next_batch)?;
        // It is made anew rather than taken over, because half of a first batch may be in it.
        files.disk.remove(&segment.path).map_err(io_error(&segment.path, "remove"))?;
    }
    let (_, newest) = recovered.slots.last_key_value().expect("one segment was found");
    make_durable(files, &newest.segment, newest_batch, recovered.tail.unwrap_or(newest.segment.bytes))?;
    Ok(Some(recovered))
}

/// Goes through the segments in order.
struct Recovery {
    recovered: Recovered,
    /// Where the newest batch starts in the newest segment.
    newest_batch: u64,
}

impl Recovery {
    fn new(log_id: u64, first_batch: u64) -> Self {
        let index = Index::new(SegmentNumber::new(0));
        let recovered =
            Recovered { log_id, index, slots: BTreeMap::new(), next_batch: first_batch, tail: None };
        Self { recovered, newest_batch: 0 }
    }

    fn run(mut self, found: Vec<Found>) -> Result<Self, OpenError> {
        let newest = found.last().map(|found| found.segment.number);
        let mut next_firsts =
            found.iter().skip(1).map(|found| found.header.first_batch).collect::<Vec<_>>().into_iter();
        for found in found {
            let is_newest = Some(found.segment.number) == newest;
            self.take_segment(found, next_firsts.next(), is_newest)?;
        }
        Ok(self)
    }

    /// `next_first` is the first batch of the segment that follows, if one does.
    fn take_segment(
        &mut self,
        found: Found,
        next_first: Option<u64>,
        is_newest: bool,
    ) -> Result<(), OpenError> {
        let Found { segment, header } = found;
        if header.first_batch != self.recovered.next_batch {
            let damage = Damage::Batch { number: self.recovered.next_batch };
            return Err(damaged(&segment.path, 0, damage));
        }
        self.recovered.index.begin_segment(segment.number);
        let place = match self.take_index(&segment)? {
            Some(place) => place,
            None => self.take_batches(&segment, next_first, is_newest)?,
        };
        self.recovered.tail = match place {
            Place::Sealed(_) => None,
            Place::Open { tail } => Some(tail),
        };
        let index = match place {
            Place::Sealed(index) => index,
            Place::Open { .. } => IndexPlace::Active,
        };
        self.recovered.slots.insert(segment.number, Slot { segment: Arc::new(segment), index });
        Ok(())
    }

    /// Takes the sealed segment's word for what is in it; `None` when it is not sealed or its index not sound.
    fn take_index(&mut self, segment: &Segment) -> Result<Option<Place>, OpenError> {
        let read = || match segment.read_index_offset()? {
            Some(offset) => Ok(segment.read_index(offset)?.map(|(number, shards)| (offset, number, shards))),
            None => Ok(None),
        };
        let Some((offset, number, shards)) = read().map_err(io_error(&segment.path, "read"))? else {
            return Ok(None);
        };
        if number <= self.recovered.next_batch {
            return Ok(None);
        }
        for block in shards {
            let applied = self.recovered.index.apply_sealed(block.shard, block.outline, &block.positions);
            applied.map_err(|problem| inconsistent(&segment.path, offset, problem))?;
        }
        self.recovered.next_batch = number + 1;
        self.newest_batch = offset;
        Ok(Some(Place::Sealed(IndexPlace::OnDisk { offset })))
    }

    /// Reads all batches of a segment that is not sealed, or whose index cannot be read.
    fn take_batches(
        &mut self,
        segment: &Segment,
        next_first: Option<u64>,
        is_newest: bool,
    ) -> Result<Place, OpenError> {
        let scanned = self.scan(segment)?;
        self.recovered.next_batch = scanned.next_batch;
        self.newest_batch = scanned.last_offset;
        if let Some(offset) = scanned.index_offset {
            return Ok(Place::Sealed(IndexPlace::OnDisk { offset }));
        }
        if is_newest {
            check_none_later(segment, scanned.end, scanned.next_batch)?;
            tracing::info!(segment = %segment.path.display(), tail = scanned.end, "the log goes on here");
            return Ok(Place::Open { tail: scanned.end });
        }
        if next_first != Some(scanned.next_batch + 1) {
            let damage = Damage::Batch { number: scanned.next_batch };
            return Err(damaged(&segment.path, scanned.end, damage));
        }
        // All that is missing is the index, and every record it was made from is there.
        tracing::warn!(segment = %segment.path.display(), "an index is damaged; it was made again");
        self.recovered.next_batch += 1;
        let positions = Arc::new(self.recovered.index.positions().clone());
        Ok(Place::Sealed(IndexPlace::Rebuilt(positions)))
    }

    fn scan(&mut self, segment: &Segment) -> Result<Scanned, OpenError> {
        let start = BLOCK_BYTES as u64;
        let mut scanned = Scanned {
            next_batch: self.recovered.next_batch,
            end: start,
            last_offset: start,
            index_offset: None,
        };
        while scanned.index_offset.is_none() {
            let batch = segment.read_batch(scanned.end).map_err(io_error(&segment.path, "read"))?;
            let (header, bytes, records) = match batch {
                FoundBatch::Sound { header, bytes, records } if header.number == scanned.next_batch => {
                    (header, bytes, records)
                }
                FoundBatch::UnknownKind { kind } => {
                    return Err(damaged(&segment.path, scanned.end, Damage::UnknownKind { kind }));
                }
                FoundBatch::Sound { .. } | FoundBatch::Unsound => break,
            };
            if records.iter().any(|(_, record)| record.kind == Kind::Index) {
                scanned.index_offset = Some(scanned.end);
            } else {
                self.apply(segment, scanned.end, &bytes, &records)?;
            }
            scanned.last_offset = scanned.end;
            scanned.end += header.padded_bytes() as u64;
            scanned.next_batch += 1;
        }
        Ok(scanned)
    }

    fn apply(
        &mut self,
        segment: &Segment,
        batch_offset: u64,
        bytes: &Bytes,
        records: &[(usize, RecordHeader)],
    ) -> Result<(), OpenError> {
        for (at, header) in records {
            let offset = batch_offset + *at as u64;
            let record = read_record(header, bytes, *at);
            // A segment is below 4 GiB, or it would have been refused by its header.
            let applied = self.recovered.index.apply(&record, u32::try_from(offset).unwrap_or(u32::MAX));
            applied.map_err(|problem| inconsistent(&segment.path, offset, problem))?;
        }
        Ok(())
    }
}

/// What became of a segment.
enum Place {
    Sealed(IndexPlace),
    Open { tail: u64 },
}

fn read_record(header: &RecordHeader, bytes: &Bytes, at: usize) -> Record {
    let start = at + RECORD_HEADER_BYTES;
    let payload = bytes.slice(start..start + header.payload_bytes);
    let payload = match header.kind {
        // What is kept must not keep the whole batch.
        Kind::Vote | Kind::Committed => Bytes::copy_from_slice(&payload),
        Kind::Entry | Kind::Truncate | Kind::Purge | Kind::Index | Kind::State => payload,
    };
    let RecordHeader { kind, shard, index, term, .. } = *header;
    Record { kind, shard, index, term, payload }
}

/// Writes the newest batch once more as it is. A process that was killed, or whose sync failed, can leave it in the
/// page cache only, where it reads like any other; but what is reported as part of the log must be durable.
fn make_durable(files: &SegmentFiles, segment: &Segment, batch: u64, end: u64) -> Result<(), OpenError> {
    // The segment's header is written together with its first batch.
    let start = if batch == BLOCK_BYTES as u64 { 0 } else { batch };
    let file = files.open_to_write(&segment.path).map_err(io_error(&segment.path, "open"))?;
    let mut buffer = AlignedBuffer::default();
    let bytes = buffer.take(usize::try_from(end - start).expect("a batch fits in memory: it was read"));
    segment.file.read_at(bytes, start).map_err(io_error(&segment.path, "read"))?;
    write_durably(&*file, &segment.path, bytes, start)?;
    files.disk.sync_dir(&files.dir).map_err(io_error(&files.dir, "sync"))
}

fn inconsistent(path: &Path, offset: u64, problem: Inconsistent) -> OpenError {
    let Inconsistent { shard, index } = problem;
    OpenError::Damaged {
        path: path.to_owned(),
        offset,
        shard: Some(shard),
        damage: Damage::Inconsistent { shard, index },
    }
}
