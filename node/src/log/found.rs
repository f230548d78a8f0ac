//! Which segments a directory has, which of them were begun, and what may not be missing between or after them.

use std::{io, path::Path};

use super::{
    error::{Damage, OpenError},
    files::SegmentFiles,
    format::{
        BLOCK_BYTES, BatchHeader, FORMAT_VERSION, HeaderProblem, Seed, SegmentHeader, SegmentNumber,
        has_batch_magic,
    },
    segment::{FoundBatch, Segment, read_header},
};
use crate::disk::Access;

/// What is read at once when looking for batches after a damaged one, in bytes.
const SEARCH_BYTES: usize = 1 << 20;

/// A segment whose header was read.
pub(super) struct Found {
    pub(super) segment: Segment,
    pub(super) header: SegmentHeader,
}

/// Opens a segment that others follow, so that it must be whole.
pub(super) fn open_started(
    files: &SegmentFiles,
    number: SegmentNumber,
    first: Option<&Found>,
) -> Result<Found, OpenError> {
    let path = files.segment_path(number);
    let header = read_known_header(files, &path)?.ok_or_else(|| damaged(&path, 0, Damage::Header))?;
    if header.segment != number {
        return Err(damaged(&path, 0, Damage::Misplaced));
    }
    if first.is_some_and(|first| first.header.log_id != header.log_id) {
        return Err(damaged(&path, 0, Damage::ForeignLog));
    }
    let segment = open_segment(files, number, header.log_id)?;
    if segment.bytes != header.segment_bytes {
        return Err(damaged(&path, 0, Damage::Header));
    }
    Ok(Found { segment, header })
}

pub(super) enum Newest {
    Started(Found),
    /// It was prepared, or its first write was cut off.
    NotStarted(SegmentNumber),
}

/// Opens the newest segment. Unlike the others it may have been got ready and not written to yet: it then has the
/// header of its earlier life, or none.
pub(super) fn open_newest(
    files: &SegmentFiles,
    number: SegmentNumber,
    first: Option<&Found>,
) -> Result<Newest, OpenError> {
    let path = files.segment_path(number);
    let header = read_known_header(files, &path)?.filter(|header| header.segment == number);
    if let Some(header) = header {
        let found = open_started(files, number, first)?;
        let batch = found.segment.read_batch(BLOCK_BYTES as u64).map_err(io_error(&path, "read"))?;
        match batch {
            FoundBatch::Sound { header: batch, damaged, .. }
                if batch.number == header.first_batch && damaged.is_empty() =>
            {
                return Ok(Newest::Started(found));
            }
            // Reading it again, in order, says what is wrong with it.
            FoundBatch::UnknownKind { number, .. } if number == header.first_batch => {
                return Ok(Newest::Started(found));
            }
            _ if first.is_none() => {
                let from = BLOCK_BYTES as u64;
                check_none_later(&found.segment, from, header.first_batch)?;
            }
            _ => {}
        }
    } else if first.is_none() {
        check_nothing_followed(files, number)?;
    }
    Ok(Newest::NotStarted(number))
}

/// The only segment's header is unreadable. That is how a crash leaves a log that was just being created, whose first
/// batch is a single block. Without the header no checksum can be told, but a batch further on shows itself.
fn check_nothing_followed(files: &SegmentFiles, number: SegmentNumber) -> Result<(), OpenError> {
    let path = files.segment_path(number);
    let segment = open_segment(files, number, 0)?;
    let followed =
        segment.find_block(2 * BLOCK_BYTES as u64, has_batch_magic).map_err(io_error(&path, "read"))?;
    match followed {
        Some(_) => Err(damaged(&path, 0, Damage::Header)),
        None => Ok(()),
    }
}

pub(super) fn read_known_header(
    files: &SegmentFiles,
    path: &Path,
) -> Result<Option<SegmentHeader>, OpenError> {
    let file = files.disk.open(path, Access::Read).map_err(io_error(path, "open"))?;
    match read_header(&*file).map_err(io_error(path, "read"))? {
        Ok(header) => Ok(Some(header)),
        Err(HeaderProblem::Unreadable) => Ok(None),
        Err(HeaderProblem::NewerVersion { found }) => {
            Err(OpenError::NewerVersion { path: path.to_owned(), found, supported: FORMAT_VERSION })
        }
    }
}

pub(super) fn open_segment(
    files: &SegmentFiles,
    number: SegmentNumber,
    log_id: u64,
) -> Result<Segment, OpenError> {
    let path = files.segment_path(number);
    let opened = files.disk.open(&path, Access::Read).and_then(|file| Ok((file.bytes()?, file)));
    let (bytes, file) = opened.map_err(io_error(&path, "open"))?;
    // Whatever is behind the last whole block was not written by us.
    let bytes = bytes - bytes % BLOCK_BYTES as u64;
    Ok(Segment { number, path, file, seed: Seed::new(log_id, number), bytes })
}

/// A batch is written when the one before it is durable. So a batch that follows shows that number `expected`, which
/// cannot be read, was durable once: that is damage, not the end of the log.
pub(super) fn check_none_later(segment: &Segment, from: u64, expected: u64) -> Result<(), OpenError> {
    match has_later(segment, from, expected)? {
        false => Ok(()),
        true => Err(damaged(&segment.path, from, Damage::Batch { number: expected })),
    }
}

/// The first batch at or after `from` with at least this number, and its number.
pub(super) fn find_batch(segment: &Segment, from: u64, number: u64) -> io::Result<Option<(u64, u64)>> {
    let header = |block: &[u8]| BatchHeader::decode(block, segment.seed).map(|header| header.number);
    let is_it = |block: &[u8]| header(block).is_some_and(|found| found >= number);
    let Some(offset) = segment.find_block(from, is_it)? else { return Ok(None) };
    let mut block = vec![0; BLOCK_BYTES];
    segment.file.read_at(&mut block, offset)?;
    Ok(header(&block).map(|number| (offset, number)))
}

/// Whether there is a batch at or after `from` with a higher number.
pub(super) fn has_later(segment: &Segment, from: u64, number: u64) -> Result<bool, OpenError> {
    let is_later =
        |block: &[u8]| BatchHeader::decode(block, segment.seed).is_some_and(|header| header.number > number);
    let found = segment.find_block(from, is_later).map_err(io_error(&segment.path, "read"))?;
    Ok(found.is_some())
}

impl Segment {
    /// The first block at or after `from` that is as wanted.
    fn find_block(&self, from: u64, is_wanted: impl Fn(&[u8]) -> bool) -> io::Result<Option<u64>> {
        let mut buffer = vec![0; SEARCH_BYTES];
        let mut offset = from;
        while offset < self.bytes {
            let left = usize::try_from(self.bytes - offset).unwrap_or(usize::MAX);
            let bytes = &mut buffer[..left.min(SEARCH_BYTES)];
            self.file.read_at(bytes, offset)?;
            if let Some(at) = bytes.chunks(BLOCK_BYTES).position(&is_wanted) {
                return Ok(Some(offset + (at * BLOCK_BYTES) as u64));
            }
            offset += bytes.len() as u64;
        }
        Ok(None)
    }
}

pub(super) fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { path, action, source }
}

pub(super) fn damaged(path: &Path, offset: u64, damage: Damage) -> OpenError {
    OpenError::Damaged { path: path.to_owned(), offset, shard: None, damage }
}
