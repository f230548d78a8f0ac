//! One segment file, open for reading, and the place of its index once it is sealed.

use std::{io, path::PathBuf, sync::Arc};

use bytes::Bytes;

use super::{
    format::{
        BLOCK_BYTES, BatchHeader, HeaderProblem, Kind, PlacedRecord, RECORD_HEADER_BYTES, Seed,
        SegmentHeader, SegmentNumber, TRAILER_BYTES, Trailer, Unsound, decode_batch,
    },
    index_block::{self, IndexBlock},
    positions::{Position, SegmentPositions},
};
use crate::disk::DiskFile;

/// A segment that entries are read from. Outlives its place in the log: whoever still reads from a file that was
/// recycled meanwhile finds checksums that do not fit.
pub(super) struct Segment {
    pub(super) number: SegmentNumber,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) seed: Seed,
    /// The length of the file, a multiple of a block.
    pub(super) bytes: u64,
}

/// A segment of the log, with the way to its index.
#[derive(Clone)]
pub(super) struct Slot {
    pub(super) segment: Arc<Segment>,
    pub(super) index: IndexPlace,
}

/// Where a segment's index is.
#[derive(Clone)]
pub(super) enum IndexPlace {
    /// With the log's own: the segment is the active one.
    Active,
    /// In a batch at this offset, which reaches to the end of the segment.
    OnDisk { offset: u64 },
    /// In memory, because the one on disk could not be read and was made again from the records.
    Rebuilt(Arc<SegmentPositions>),
}

/// What is at a batch's place.
pub(super) enum FoundBatch {
    /// A batch, with the places of its records in `bytes`, and of those whose payload is not as it was written. When
    /// there are such, the batch may also be one that was cut off.
    Sound { header: BatchHeader, bytes: Bytes, records: Vec<PlacedRecord>, damaged: Vec<PlacedRecord> },
    /// No batch, or one that is not as it was written.
    Unsound,
    /// A batch as it was written, by a program that knows more.
    UnknownKind { number: u64, kind: u8 },
}

/// Reads a segment's header.
pub(super) fn read_header(file: &dyn DiskFile) -> io::Result<Result<SegmentHeader, HeaderProblem>> {
    let mut block = vec![0; BLOCK_BYTES];
    if file.bytes()? < BLOCK_BYTES as u64 {
        return Ok(Err(HeaderProblem::Unreadable));
    }
    file.read_at(&mut block, 0)?;
    Ok(SegmentHeader::decode(&block))
}

impl Segment {
    /// Reads the batch at `offset`.
    pub(super) fn read_batch(&self, offset: u64) -> io::Result<FoundBatch> {
        let Some(header) = self.read_batch_header(offset)? else {
            return Ok(FoundBatch::Unsound);
        };
        if header.padded_bytes() as u64 > self.bytes - offset {
            return Ok(FoundBatch::Unsound);
        }
        let mut bytes = vec![0; header.padded_bytes()];
        self.file.read_at(&mut bytes, offset)?;
        Ok(match decode_batch(&bytes, &header, self.seed) {
            Ok((records, damaged)) => FoundBatch::Sound { header, bytes: bytes.into(), records, damaged },
            Err(Unsound::Checksum | Unsound::Payload(_)) => FoundBatch::Unsound,
            Err(Unsound::UnknownKind(kind)) => FoundBatch::UnknownKind { number: header.number, kind },
        })
    }

    fn read_batch_header(&self, offset: u64) -> io::Result<Option<BatchHeader>> {
        if offset + BLOCK_BYTES as u64 > self.bytes {
            return Ok(None);
        }
        let mut block = vec![0; BLOCK_BYTES];
        self.file.read_at(&mut block, offset)?;
        Ok(BatchHeader::decode(&block, self.seed))
    }

    /// Where the segment's index lies, if the segment was sealed.
    pub(super) fn read_index_offset(&self) -> io::Result<Option<u64>> {
        let mut trailer = [0; TRAILER_BYTES];
        let Some(at) = self.bytes.checked_sub(TRAILER_BYTES as u64) else {
            return Ok(None);
        };
        self.file.read_at(&mut trailer, at)?;
        let offset = Trailer::decode(&trailer, self.seed).map(|trailer| trailer.index_offset);
        Ok(offset.filter(|offset| offset.is_multiple_of(BLOCK_BYTES as u64) && *offset < self.bytes))
    }

    /// Reads the index at `offset`, with the number of its batch; `None` when it is not sound.
    pub(super) fn read_index(&self, offset: u64) -> io::Result<Option<(u64, IndexBlock)>> {
        let FoundBatch::Sound { header, bytes, records, damaged } = self.read_batch(offset)? else {
            return Ok(None);
        };
        let [(at, record)] = records[..] else {
            return Ok(None);
        };
        if record.kind != Kind::Index || !damaged.is_empty() {
            return Ok(None);
        }
        let start = at + RECORD_HEADER_BYTES;
        let block = index_block::decode(&bytes[start..start + record.payload_bytes]);
        Ok(block.map(|block| (header.number, block)))
    }

    /// Where the records of a sealed segment lie, from its index at `offset`; when that is damaged, from the records.
    pub(super) fn read_positions(&self, offset: u64) -> io::Result<SegmentPositions> {
        match self.read_index(offset)? {
            Some((_, block)) => Ok(block.into_positions()),
            None => {
                tracing::warn!(segment = %self.path.display(), "an index is damaged; it is made again");
                self.rebuild_positions(offset)
            }
        }
    }

    /// Where the records before `end` lie, as far as batches follow one another.
    fn rebuild_positions(&self, end: u64) -> io::Result<SegmentPositions> {
        let mut positions = SegmentPositions::new();
        let mut batch_offset = BLOCK_BYTES as u64;
        while batch_offset < end
            && let FoundBatch::Sound { header, records, .. } = self.read_batch(batch_offset)?
        {
            for (at, record) in records {
                let place = (u32::try_from(batch_offset + at as u64), u32::try_from(record.payload_bytes));
                let (Ok(offset), Ok(payload_bytes)) = place else { break };
                let shard = positions.entry(record.shard).or_default();
                match record.kind {
                    Kind::Entry => shard.entries.replace(record.index, Position { offset, payload_bytes }),
                    Kind::Kept => shard.kept.insert(record.index, Position { offset, payload_bytes }),
                    _ => {}
                }
            }
            batch_offset += header.padded_bytes() as u64;
        }
        Ok(positions)
    }
}
