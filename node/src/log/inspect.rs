//! Looks at a log that no process has open, and changes nothing: what every segment holds, and what is wrong with it.

use std::{io, ops::Range, path::Path, sync::Arc};

use skein_proto::ids::ShardId;

use super::{
    OpenError, SegmentId, ShardShare, ShardState,
    files::SegmentFiles,
    format::{BLOCK_BYTES, BatchHeader, Kind, PlacedRecord, SegmentNumber},
    found::{find_batch, io_error, open_segment, read_known_header},
    positions::{KeptRanges, Position, SegmentPositions},
    recovery::examine,
    segment::{FoundBatch, Segment},
};
use crate::disk::Disk;

/// What a log holds.
#[derive(Debug)]
pub struct Inspection {
    /// Oldest first.
    pub segments: Vec<SegmentReport>,
    /// Files that are kept for new segments.
    pub spare_count: usize,
    /// The shards as a node would find them, or why it would refuse to open the log.
    pub shards: Result<Vec<ShardReport>, OpenError>,
}

/// A shard as a node would find it.
#[derive(Debug)]
pub struct ShardReport {
    /// Which one.
    pub shard: ShardId,
    /// What is known of it apart from its entries.
    pub state: ShardState,
    /// Entries that are damaged, as far as that shows without reading sealed segments.
    pub damaged: Vec<u64>,
}

/// What a segment holds.
#[derive(Debug)]
pub struct SegmentReport {
    /// Which one.
    pub id: SegmentId,
    /// The length of its file.
    pub file_bytes: u64,
    /// How much of the file was written.
    pub used_bytes: u64,
    /// How it stands.
    pub stage: Stage,
    /// Batches that can be read.
    pub batch_count: u64,
    /// Raft entries.
    pub entry_count: u64,
    /// Records with parts of older entries.
    pub kept_count: u64,
    /// What it has of each shard.
    pub shards: Vec<ShardShare>,
    /// What is wrong with it.
    pub faults: Vec<SegmentFault>,
}

/// How a segment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It was got ready, and nothing was written to it.
    Prepared,
    /// Records are being added to it.
    Open,
    /// It is full, and has an index.
    Sealed,
}

/// Something in a segment is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset}: {what}")]
pub struct SegmentFault {
    /// Where, in bytes from the start of the file.
    pub offset: u64,
    /// What, and what it means.
    pub what: String,
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordReport {
    /// In which segment.
    pub segment: SegmentId,
    /// Where, in bytes from the start of the file.
    pub offset: u64,
    /// Its kind, as `docs/log-format.md` names it.
    pub kind: &'static str,
    /// Its shard.
    pub shard: ShardId,
    /// Its index.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// The length of its payload.
    pub payload_bytes: usize,
    /// Its payload is not what was written.
    pub is_damaged: bool,
}

/// Reads a log through. Nobody may have it open. Every record is given to `on_record`.
///
/// # Errors
/// When files cannot be read at all.
pub fn inspect(
    disk: Arc<dyn Disk>,
    dir: &Path,
    on_record: &mut dyn FnMut(RecordReport),
) -> Result<Inspection, OpenError> {
    let mut files = SegmentFiles::to_read(disk, dir);
    let numbers = files.scan_dir().map_err(io_error(dir, "list"))?;
    let mut segments = Vec::new();
    let newest = numbers.last().copied();
    for number in numbers {
        let mut report = inspect_segment(&files, number, on_record)?;
        if report.stage == Stage::Prepared && Some(number) != newest {
            let what = "the header cannot be read, and without it nothing in the segment".to_owned();
            report.faults.push(SegmentFault { offset: 0, what });
        }
        segments.push(report);
    }
    let shards = examine(&mut files).map(|examined| {
        let (index, damaged) = examined.map(|examined| examined.into_index()).unwrap_or_default();
        let shard = |(shard, outline): (ShardId, &super::outline::Outline)| {
            let of_shard = damaged.iter().filter(|(of, _)| *of == shard);
            ShardReport {
                shard,
                state: outline.state(),
                damaged: of_shard.map(|(_, index)| *index).collect(),
            }
        };
        index.iter().flat_map(|index| index.outlines()).map(shard).collect()
    });
    Ok(Inspection { segments, spare_count: files.spares.len(), shards })
}

fn inspect_segment(
    files: &SegmentFiles,
    number: SegmentNumber,
    on_record: &mut dyn FnMut(RecordReport),
) -> Result<SegmentReport, OpenError> {
    let path = files.segment_path(number);
    let header = read_known_header(files, &path)?;
    let mut segment = open_segment(files, number, header.map_or(0, |header| header.log_id))?;
    let report = SegmentReport {
        id: SegmentId::of(number),
        file_bytes: segment.bytes,
        used_bytes: 0,
        stage: Stage::Prepared,
        batch_count: 0,
        entry_count: 0,
        kept_count: 0,
        shards: Vec::new(),
        faults: Vec::new(),
    };
    let Some(header) = header.filter(|header| header.segment == number) else {
        return Ok(report);
    };
    segment.bytes = segment.bytes.min(header.segment_bytes);
    let mut walk = Walk { report, positions: SegmentPositions::new(), on_record };
    walk.batches(&segment, header.first_batch).map_err(io_error(&path, "read"))?;
    walk.index(&segment).map_err(io_error(&path, "read"))?;
    Ok(walk.finish())
}

/// Goes through a segment.
struct Walk<'a> {
    report: SegmentReport,
    positions: SegmentPositions,
    on_record: &'a mut dyn FnMut(RecordReport),
}

impl Walk<'_> {
    fn batches(&mut self, segment: &Segment, first_batch: u64) -> io::Result<()> {
        let (mut offset, mut expected) = (BLOCK_BYTES as u64, first_batch);
        while offset < segment.bytes {
            match segment.read_batch(offset)? {
                FoundBatch::Sound { header, records, damaged, .. } if header.number == expected => {
                    self.batch(offset, &header, &records, &damaged);
                    offset += header.padded_bytes() as u64;
                    expected += 1;
                }
                // Not the same place once more: its header may be sound, and what follows not.
                _ => match find_batch(segment, offset + BLOCK_BYTES as u64, expected)? {
                    None => break,
                    Some((later, number)) => {
                        // The index lies at the end, with nothing between it and the batch before.
                        if number > expected {
                            let skipped = later - offset;
                            let what =
                                format!("batch {expected} cannot be read; {skipped} bytes are skipped");
                            self.fault(offset, what);
                        }
                        (offset, expected) = (later, number);
                    }
                },
            }
        }
        Ok(())
    }

    fn batch(
        &mut self,
        offset: u64,
        header: &BatchHeader,
        records: &[PlacedRecord],
        damaged: &[PlacedRecord],
    ) {
        self.report.stage = self.report.stage.max_of(Stage::Open);
        self.report.batch_count += 1;
        self.report.used_bytes += header.padded_bytes() as u64;
        for placed in records {
            let (at, record) = placed;
            let offset = offset + *at as u64;
            let is_damaged = damaged.contains(placed);
            let place = (u32::try_from(offset), u32::try_from(record.payload_bytes));
            let (Ok(place), Ok(payload_bytes)) = place else { continue };
            let position = Position { offset: place, payload_bytes };
            let shard = self.positions.entry(record.shard).or_default();
            match record.kind {
                Kind::Entry => {
                    self.report.entry_count += 1;
                    shard.entries.replace(record.index, position);
                }
                Kind::Kept => {
                    self.report.kept_count += 1;
                    shard.kept.insert(record.index, position);
                }
                Kind::Index => self.report.stage = Stage::Sealed,
                _ => {}
            }
            (self.on_record)(RecordReport {
                segment: self.report.id,
                offset,
                kind: record.kind.name(),
                shard: record.shard,
                index: record.index,
                term: record.term,
                payload_bytes: record.payload_bytes,
                is_damaged,
            });
            if is_damaged {
                let (shard, index, kind) = (record.shard, record.index, record.kind.name());
                let what = format!("the payload of {kind} {index} of shard {shard} is not what was written");
                self.fault(offset, what);
            }
        }
    }

    /// Compares a sealed segment's index with what was found.
    fn index(&mut self, segment: &Segment) -> io::Result<()> {
        let Some(offset) = segment.read_index_offset()? else {
            if self.report.stage == Stage::Sealed {
                let what =
                    "the trailer is damaged; the index is found by reading the whole segment".to_owned();
                self.fault(segment.bytes, what);
            }
            return Ok(());
        };
        self.report.stage = Stage::Sealed;
        let Some((_, block)) = segment.read_index(offset)? else {
            self.fault(offset, "the index is damaged; it is made again from the records".to_owned());
            return Ok(());
        };
        for (shard, indexed) in block.into_positions() {
            let found = self.positions.remove(&shard).unwrap_or_default();
            let is_same = |one: &[Position], other: &[Position]| one == other;
            let lists = (indexed.entries.list.clone(), found.entries.list.clone());
            let (indexed_list, found_list) = (Vec::from(lists.0), Vec::from(lists.1));
            // What was truncated or voided later in the segment is not in the index.
            let agrees = indexed_list.is_empty() || is_same(&indexed_list, &found_list);
            if self.report.faults.is_empty() && (!agrees || indexed.kept != found.kept) {
                self.fault(offset, format!("the index does not say where the records of shard {shard} lie"));
            }
            self.positions.insert(shard, indexed);
        }
        Ok(())
    }

    fn fault(&mut self, offset: u64, what: String) {
        self.report.faults.push(SegmentFault { offset, what });
    }

    fn finish(mut self) -> SegmentReport {
        // The header.
        self.report.used_bytes += BLOCK_BYTES as u64;
        for (shard, positions) in self.positions {
            let mut entries: Vec<Range<u64>> = KeptRanges::of(&positions.kept).iter().collect();
            if !positions.entries.list.is_empty() {
                entries.push(positions.entries.first..positions.entries.end());
            }
            if !entries.is_empty() {
                self.report.shards.push(ShardShare { shard, entries });
            }
        }
        self.report
    }
}

impl Stage {
    fn max_of(self, other: Self) -> Self {
        if self == Self::Sealed { self } else { other }
    }
}
