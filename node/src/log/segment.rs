//! One segment file, open for reading, and the place of its index once it is sealed.

use std::{io, path::PathBuf, sync::Arc};

use bytes::Bytes;

use super::{
    format::{
        BLOCK_BYTES, BatchHeader, HeaderProblem, Kind, RECORD_HEADER_BYTES, RecordHeader, Seed,
        SegmentHeader, SegmentNumber, TRAILER_BYTES, Trailer, Unsound, decode_batch,
    },
    index::SegmentPositions,
    index_block::{self, ShardBlock},
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
    /// A batch whose every checksum is right, with the places of its records in `bytes`.
    Sound { header: BatchHeader, bytes: Bytes, records: Vec<(usize, RecordHeader)> },
    /// No batch, or one that is not as it was written.
    Unsound,
    /// A batch as it was written, by a program that knows more.
    UnknownKind { kind: u8 },
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
            Ok(records) => FoundBatch::Sound { header, bytes: bytes.into(), records },
            Err(Unsound::Checksum) => FoundBatch::Unsound,
            Err(Unsound::UnknownKind(kind)) => FoundBatch::UnknownKind { kind },
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
    pub(super) fn read_index(&self, offset: u64) -> io::Result<Option<(u64, Vec<ShardBlock>)>> {
        let FoundBatch::Sound { header, bytes, records } = self.read_batch(offset)? else {
            return Ok(None);
        };
        let [(at, record)] = records[..] else {
            return Ok(None);
        };
        if record.kind != Kind::Index {
            return Ok(None);
        }
        let start = at + RECORD_HEADER_BYTES;
        let shards = index_block::decode(&bytes[start..start + record.payload_bytes]);
        Ok(shards.map(|shards| (header.number, shards)))
    }
}
