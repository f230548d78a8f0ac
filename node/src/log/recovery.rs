//! What a log that was closed, killed or cut off from power holds: everything that was durable, or an error. The only
//! thing left out is a batch that was being written, which nobody was told is durable.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::Bytes;
use skein_proto::ids::ShardId;

use super::{
    batch::AlignedBuffer,
    error::{Damage, OpenError},
    files::SegmentFiles,
    format::{
        BLOCK_BYTES, Kind, PlacedRecord, RECORD_HEADER_BYTES, Record, RecordHeader, SegmentHeader,
        SegmentNumber,
    },
    found::{
        Found, Newest, check_none_later, damaged, has_later, io_error, open_newest, open_segment,
        open_started,
    },
    index::{Inconsistent, Index},
    segment::{FoundBatch, IndexPlace, Segment, Slot},
    writer::write_durably,
};
use crate::planted::{Bug, is_planted};

/// What a directory holds.
pub(super) struct Recovered {
    pub(super) log_id: u64,
    pub(super) index: Index,
    pub(super) slots: BTreeMap<SegmentNumber, Slot>,
    pub(super) next_batch: u64,
    /// Where the next batch goes in the newest segment; `None` when that is sealed, or there is none.
    pub(super) tail: Option<u64>,
    /// Entries whose payload is not what was written.
    pub(super) damaged: Vec<(ShardId, u64)>,
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

/// A sound log, as it was found.
pub(super) struct Examined {
    recovered: Recovered,
    /// Where the newest batch starts in the newest segment.
    newest_batch: u64,
    /// It was got ready and not begun.
    prepared: Option<Segment>,
}

impl Examined {
    /// Where everything is, and which entries are damaged.
    pub(super) fn into_index(self) -> (Option<Index>, Vec<(ShardId, u64)>) {
        (Some(self.recovered.index), self.recovered.damaged)
    }
}

/// Reads the log, and makes it ready to go on; changes nothing unless it is sound. `None` when there is none yet.
pub(super) fn recover(files: &mut SegmentFiles) -> Result<Option<Recovered>, OpenError> {
    let Some(Examined { mut recovered, newest_batch, prepared }) = examine(files)? else {
        if let Some(number) = files.scan_dir().map_err(io_error(&files.dir, "list"))?.first() {
            files.disk.remove(&files.segment_path(*number)).map_err(io_error(&files.dir, "clear"))?;
        }
        return Ok(None);
    };
    if let Some(segment) = prepared {
        // It is made anew rather than taken over, because half of a first batch may be in it.
        files.disk.remove(&segment.path).map_err(io_error(&segment.path, "remove"))?;
    }
    let (_, newest) = recovered.slots.last_key_value().expect("one segment was found");
    make_durable(files, &newest.segment, newest_batch, recovered.tail.unwrap_or(newest.segment.bytes))?;
    // It was written down that they are given up, but not done.
    let segments = recovered.index.segments();
    for (number, _) in recovered.slots.extract_if(.., |number, _| !segments.contains(*number)) {
        files.retire(number)?;
    }
    Ok(Some(recovered))
}

/// Reads the log and changes nothing. `None` when there is none, or one that was never begun.
pub(super) fn examine(files: &mut SegmentFiles) -> Result<Option<Examined>, OpenError> {
    let numbers = files.scan_dir().map_err(io_error(&files.dir, "list"))?;
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
        return Ok(None);
    };
    let Recovery { recovered, newest_batch } =
        Recovery::new(log_id, found[0].header.first_batch).run(found)?;
    check_none_missing(files, &recovered, prepared)?;
    if let Some((shard, index)) = recovered.index.first_missing() {
        let path = files.segment_path(recovered.index.active());
        return Err(OpenError::Damaged {
            path,
            offset: 0,
            shard: Some(shard),
            damage: Damage::MissingEntry { shard, index },
        });
    }
    let prepared = prepared.map(|number| open_segment(files, number, log_id)).transpose()?;
    if let Some(segment) = &prepared {
        check_none_later(segment, 0, recovered.next_batch)?;
    }
    Ok(Some(Examined { recovered, newest_batch, prepared }))
}

/// Every segment that was not given up must be there, and one that was got ready follows the newest of them.
fn check_none_missing(
    files: &SegmentFiles,
    recovered: &Recovered,
    prepared: Option<SegmentNumber>,
) -> Result<(), OpenError> {
    let newest = recovered.index.active();
    let missing = recovered.index.segments().iter().find(|number| !recovered.slots.contains_key(number));
    let missing = missing.or(prepared.filter(|prepared| *prepared != newest.next()).map(|_| newest.next()));
    match missing {
        None => Ok(()),
        Some(number) => {
            Err(damaged(&files.segment_path(number), 0, Damage::MissingSegment { number: number.get() }))
        }
    }
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
        let recovered = Recovered {
            log_id,
            index,
            slots: BTreeMap::new(),
            next_batch: first_batch,
            tail: None,
            damaged: Vec::new(),
        };
        Self { recovered, newest_batch: 0 }
    }

    fn run(mut self, found: Vec<Found>) -> Result<Self, OpenError> {
        let newest = found.last().map(|found| found.segment.number);
        let mut headers = found.iter().skip(1).map(|found| found.header).collect::<Vec<_>>().into_iter();
        for found in found {
            let is_newest = Some(found.segment.number) == newest;
            self.take_segment(found, headers.next(), is_newest)?;
        }
        Ok(self)
    }

    /// `next` is the header of the next segment that is there.
    fn take_segment(
        &mut self,
        found: Found,
        next: Option<SegmentHeader>,
        is_newest: bool,
    ) -> Result<(), OpenError> {
        let Found { segment, header } = found;
        let follows = segment.number == self.recovered.index.active().next();
        let is_expected = match follows {
            true => header.first_batch == self.recovered.next_batch,
            // What was written between is given up, or will be found missing.
            false => header.first_batch >= self.recovered.next_batch,
        };
        if !is_expected {
            let damage = Damage::Batch { number: self.recovered.next_batch };
            return Err(damaged(&segment.path, 0, damage));
        }
        self.recovered.next_batch = header.first_batch;
        self.recovered.index.begin_segment(segment.number);
        let place = match self.take_index(&segment)? {
            Some(place) => place,
            None => self.take_batches(&segment, next, is_newest)?,
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
            Some(offset) => Ok(segment.read_index(offset)?.map(|(number, block)| (offset, number, block))),
            None => Ok(None),
        };
        let Some((offset, number, block)) = read().map_err(io_error(&segment.path, "read"))? else {
            return Ok(None);
        };
        if number <= self.recovered.next_batch {
            return Ok(None);
        }
        let applied = self.recovered.index.apply_sealed(&block);
        applied.map_err(|problem| inconsistent(&segment.path, offset, problem))?;
        self.recovered.next_batch = number + 1;
        self.newest_batch = offset;
        Ok(Some(Place::Sealed(IndexPlace::OnDisk { offset })))
    }

    /// Reads all batches of a segment that is not sealed, or whose index cannot be read.
    fn take_batches(
        &mut self,
        segment: &Segment,
        next: Option<SegmentHeader>,
        is_newest: bool,
    ) -> Result<Place, OpenError> {
        let scanned = self.scan(segment, is_newest)?;
        self.recovered.next_batch = scanned.next_batch;
        self.newest_batch = scanned.last_offset;
        if let Some(offset) = scanned.index_offset {
            return Ok(Place::Sealed(IndexPlace::OnDisk { offset }));
        }
        if is_newest {
            if !is_planted(Bug::DamageEndsLog) {
                check_none_later(segment, scanned.end, scanned.next_batch)?;
            }
            tracing::info!(segment = %segment.path.display(), tail = scanned.end, "the log goes on here");
            return Ok(Place::Open { tail: scanned.end });
        }
        let is_whole = match next.filter(|next| next.segment == segment.number.next()) {
            Some(next) => next.first_batch == scanned.next_batch + 1,
            // The segments between are given up, or will be found missing.
            None => !has_later(segment, scanned.end, scanned.next_batch)?,
        };
        if !is_whole {
            let damage = Damage::Batch { number: scanned.next_batch };
            return Err(damaged(&segment.path, scanned.end, damage));
        }
        // All that is missing is the index, and every record it was made from is there.
        tracing::warn!(segment = %segment.path.display(), "an index is damaged; it was made again");
        self.recovered.next_batch += 1;
        let positions = Arc::new(self.recovered.index.positions().clone());
        Ok(Place::Sealed(IndexPlace::Rebuilt(positions)))
    }

    fn scan(&mut self, segment: &Segment, is_newest: bool) -> Result<Scanned, OpenError> {
        let start = BLOCK_BYTES as u64;
        let mut scanned = Scanned {
            next_batch: self.recovered.next_batch,
            end: start,
            last_offset: start,
            index_offset: None,
        };
        while scanned.index_offset.is_none() {
            let batch = segment.read_batch(scanned.end).map_err(io_error(&segment.path, "read"))?;
            let (header, bytes, records, damaged_records) = match batch {
                FoundBatch::Sound { header, bytes, records, damaged }
                    if header.number == scanned.next_batch =>
                {
                    (header, bytes, records, damaged)
                }
                FoundBatch::UnknownKind { number, kind } if number == scanned.next_batch => {
                    return Err(damaged(&segment.path, scanned.end, Damage::UnknownKind { kind }));
                }
                FoundBatch::Sound { .. } | FoundBatch::UnknownKind { .. } | FoundBatch::Unsound => break,
            };
            let end = scanned.end + header.padded_bytes() as u64;
            if !damaged_records.is_empty() {
                // Without anything behind it, it was being written when the process or the machine stopped.
                let was_durable = !is_newest || has_later(segment, end, header.number)?;
                let was_durable = was_durable && !is_planted(Bug::DamageEndsLog);
                if !was_durable || !self.take_damage(segment, scanned.end, &damaged_records) {
                    break;
                }
            }
            if records.iter().any(|(_, record)| record.kind == Kind::Index) {
                scanned.index_offset = Some(scanned.end);
            } else {
                self.apply(segment, scanned.end, &bytes, &records)?;
            }
            scanned.last_offset = scanned.end;
            scanned.end = end;
            scanned.next_batch += 1;
        }
        Ok(scanned)
    }

    /// Notes which entries are damaged. False when something is that no other replica can give.
    fn take_damage(&mut self, segment: &Segment, batch_offset: u64, records: &[PlacedRecord]) -> bool {
        let is_repairable = |(_, record): &PlacedRecord| matches!(record.kind, Kind::Entry | Kind::Kept);
        if !records.iter().all(is_repairable) {
            return false;
        }
        for (at, record) in records {
            let RecordHeader { shard, index, .. } = *record;
            let offset = batch_offset + *at as u64;
            tracing::error!(segment = %segment.path.display(), offset, %shard, index, "an entry is damaged");
            self.recovered.damaged.push((shard, index));
        }
        true
    }

    fn apply(
        &mut self,
        segment: &Segment,
        batch_offset: u64,
        bytes: &Bytes,
        records: &[PlacedRecord],
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

pub(super) fn read_record(header: &RecordHeader, bytes: &Bytes, at: usize) -> Record {
    let start = at + RECORD_HEADER_BYTES;
    let payload = bytes.slice(start..start + header.payload_bytes);
    let payload = match header.kind {
        // What is kept must not keep the whole batch.
        Kind::Vote | Kind::Committed => Bytes::copy_from_slice(&payload),
        Kind::Entry | Kind::Truncate | Kind::Purge | Kind::Kept => payload,
        Kind::Index | Kind::State | Kind::Retire | Kind::Segments => payload,
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
