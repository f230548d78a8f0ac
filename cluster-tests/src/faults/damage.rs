//! Disks that change what was written, and directories that are lost. The node must be down for it.

use std::{
    fs::{self, OpenOptions},
    ops::Range,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use crate::{cluster::Cluster, recorder::Recorder};

/// Bits of a segment that is written no more changed.
pub const DAMAGE_COLD: &str = "damage a cold segment";
/// Bits of the segment that is being written changed, not in its last batch.
pub const DAMAGE_NEWEST: &str = "damage the newest segment";
/// Bits of the last batch changed, which looks like a write that was cut off.
pub const DAMAGE_LAST_BATCH: &str = "damage the newest batch";
/// A node's data directory was empty when it started.
pub const LOSE_DIRECTORY: &str = "lose a data directory";

/// Bits that change at a time: enough that some of them belong to bodies.
const FLIPS: usize = 32;

// `docs/log-format.md`.
const BLOCK_BYTES: usize = 4096;
const SEGMENT_MAGIC: &[u8] = b"SKEINSEG";
const SEGMENT_NUMBER_AT: usize = 24;
const BATCH_MAGIC: &[u8] = b"SKBT";
const BATCH_NUMBER_AT: usize = 8;
const BATCH_LENGTH_AT: usize = 16;
const BATCH_HEADER_BYTES: usize = 32;
const RECORD_LENGTH_AT: usize = 4;
const RECORD_HEADER_BYTES: usize = 32;
const RECORD_ALIGN_BYTES: usize = 8;
const TRAILER_MAGIC: &[u8] = b"SKIX";
const TRAILER_BYTES: usize = 32;

/// Batches that must lie in the newest segment for its middle to be damaged.
const BATCHES_MIN: usize = 8;

/// A payload this large is an entry with messages in it.
const PAYLOAD_BYTES_MIN: usize = 1_024;

/// What is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The oldest sealed segment.
    ColdSegment,
    /// Entries in the segment that was being written, where sound ones follow. Only their payloads: where the records
    /// themselves cannot be told apart any more, a node refuses to start, since a vote may be among them.
    NewestSegment,
    /// The last batch of that segment.
    LastBatch,
}

impl Place {
    /// The fault that damage there is.
    #[must_use]
    pub const fn fault(self) -> &'static str {
        match self {
            Self::ColdSegment => DAMAGE_COLD,
            Self::NewestSegment => DAMAGE_NEWEST,
            Self::LastBatch => DAMAGE_LAST_BATCH,
        }
    }
}

/// Flips bits of a node's log, drawn from a seed. False when its log has no such place just now, because its newest
/// segment has only begun.
///
/// # Errors
/// When the file system fails.
pub fn flip(cluster: &Cluster, recorder: &Recorder, node_id: u64, place: Place, seed: u64) -> Result<bool> {
    let segments = segments(&cluster.data_dir(node_id)?.join("log"))?;
    let segment = match place {
        Place::ColdSegment => segments.iter().find(|segment| segment.is_sealed),
        Place::NewestSegment | Place::LastBatch => segments.last().filter(|segment| !segment.is_sealed),
    };
    let Some(segment) = segment else { return Ok(false) };
    // The first batch holds what raft knows besides entries. Every segment has it again.
    let batches = segment.batches.get(1..).unwrap_or_default();
    if batches.len() < BATCHES_MIN {
        return Ok(false);
    }
    let mut random = SmallRng::seed_from_u64(seed);
    let mut bytes = fs::read(&segment.path).context("cannot read a segment")?;
    let places = match place {
        Place::ColdSegment => batches.to_vec(),
        Place::NewestSegment => {
            batches[..batches.len() / 2].iter().flat_map(|batch| payloads(&bytes, batch.clone())).collect()
        }
        Place::LastBatch => batches[batches.len() - 1..].to_vec(),
    };
    if places.is_empty() {
        return Ok(false);
    }
    let file = OpenOptions::new().write(true).open(&segment.path).context("cannot open a segment")?;
    let mut flipped = 0;
    while flipped < FLIPS {
        let range = random.random_range(0..places.len());
        let at = random.random_range(places[range].clone());
        // Zeros may be padding, which nobody reads.
        if bytes[at] != 0 {
            bytes[at] ^= 1 << random.random_range(0..8);
            file.write_all_at(&bytes[at..=at], at as u64).context("cannot damage a segment")?;
            flipped += 1;
        }
    }
    recorder.disturbed(format!("{flipped} bits of {} changed", segment.path.display()));
    recorder.fault_done(place.fault());
    Ok(true)
}

/// A data directory that was put away.
#[derive(Debug)]
pub struct PutAway {
    dir: PathBuf,
    away: PathBuf,
}

/// Leaves a node with an empty data directory.
///
/// # Errors
/// When the file system fails.
pub fn lose_directory(cluster: &Cluster, recorder: &Recorder, node_id: u64) -> Result<PutAway> {
    let dir = cluster.data_dir(node_id)?;
    let away = dir.with_extension("away");
    fs::rename(&dir, &away).and_then(|()| fs::create_dir(&dir)).context("cannot put a directory away")?;
    recorder.disturbed(format!("the directory of node {node_id} is empty"));
    recorder.fault_done(LOSE_DIRECTORY);
    Ok(PutAway { dir, away })
}

impl PutAway {
    /// Puts the directory back in its place.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn restore(self) -> Result<()> {
        fs::remove_dir_all(&self.dir)
            .and_then(|()| fs::rename(&self.away, &self.dir))
            .context("cannot put a directory back")
    }
}

/// One segment file with records in it.
struct Segment {
    path: PathBuf,
    is_sealed: bool,
    /// Where the records of its batches lie, in order.
    batches: Vec<Range<usize>>,
}

/// The segments of a log that were begun, by rising number.
fn segments(dir: &Path) -> Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for file in fs::read_dir(dir).context("cannot list a log")? {
        let path = file.context("cannot list a log")?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let number = stem.and_then(|stem| stem.parse::<u64>().ok());
        let Some(number) = number.filter(|_| path.extension().is_some_and(|ext| ext == "seg")) else {
            continue;
        };
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let batches = batches(&bytes);
        // One that was got ready and not begun has the header of its earlier life, or none.
        let is_begun = bytes.starts_with(SEGMENT_MAGIC) && u64_at(&bytes, SEGMENT_NUMBER_AT) == Some(number);
        if is_begun && !batches.is_empty() {
            let trailer = bytes.len().checked_sub(TRAILER_BYTES).and_then(|at| bytes.get(at..));
            let is_sealed = trailer.is_some_and(|trailer| trailer.starts_with(TRAILER_MAGIC));
            segments.push((number, Segment { path, is_sealed, batches }));
        }
    }
    segments.sort_by_key(|(number, _)| *number);
    Ok(segments.into_iter().map(|(_, segment)| segment).collect())
}

/// Where the records of a segment's batches lie. What an earlier life of the file left behind has other numbers.
fn batches(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut batches = Vec::new();
    let (mut at, mut next_number) = (BLOCK_BYTES, None);
    while let Some(batch) = bytes.get(at..).filter(|batch| batch.starts_with(BATCH_MAGIC)) {
        let (Some(number), Some(length)) = (u64_at(batch, BATCH_NUMBER_AT), u32_at(batch, BATCH_LENGTH_AT))
        else {
            break;
        };
        let length = length as usize;
        if next_number.is_some_and(|next| next != number)
            || !(BATCH_HEADER_BYTES..batch.len()).contains(&length)
        {
            break;
        }
        batches.push(at + BATCH_HEADER_BYTES..at + length);
        next_number = Some(number + 1);
        at += length.next_multiple_of(BLOCK_BYTES);
    }
    batches
}

/// Where the payloads of a batch's large records lie.
fn payloads(bytes: &[u8], batch: Range<usize>) -> Vec<Range<usize>> {
    let mut payloads = Vec::new();
    let mut at = batch.start;
    while let Some(length) = u32_at(bytes, at + RECORD_LENGTH_AT).filter(|_| at < batch.end) {
        let start = at + RECORD_HEADER_BYTES;
        let end = start + length as usize;
        if length as usize >= PAYLOAD_BYTES_MIN && end <= batch.end {
            payloads.push(start..end);
        }
        at = end.next_multiple_of(RECORD_ALIGN_BYTES);
    }
    payloads
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch with this number and so many bytes of records, padded.
    fn batch(number: u64, records_bytes: usize) -> Vec<u8> {
        let length = BATCH_HEADER_BYTES + records_bytes;
        let mut batch = vec![7; length.next_multiple_of(BLOCK_BYTES)];
        batch[..BATCH_MAGIC.len()].copy_from_slice(BATCH_MAGIC);
        batch[BATCH_NUMBER_AT..][..8].copy_from_slice(&number.to_le_bytes());
        batch[BATCH_LENGTH_AT..][..4].copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
        batch
    }

    #[test]
    fn finds_the_batches_of_this_life_only() {
        let mut bytes = vec![0; BLOCK_BYTES];
        for batch in [batch(5, 100), batch(6, 5_000), batch(9, 100)] {
            bytes.extend(batch);
        }
        let at = |block: usize, records_bytes: usize| {
            let start = block * BLOCK_BYTES + BATCH_HEADER_BYTES;
            start..start + records_bytes
        };
        assert_eq!(batches(&bytes), [at(1, 100), at(2, 5_000)]);
        assert_eq!(batches(&bytes[..BLOCK_BYTES + 10]), []);
    }

    #[test]
    fn finds_large_payloads_among_small_ones() {
        let mut bytes = vec![0; BLOCK_BYTES + BATCH_HEADER_BYTES];
        for length in [20_u32, 2_001, 1_500] {
            let start = bytes.len();
            bytes.resize((start + RECORD_HEADER_BYTES + length as usize).next_multiple_of(8), 7);
            bytes[start + RECORD_LENGTH_AT..][..4].copy_from_slice(&length.to_le_bytes());
        }
        let first = BLOCK_BYTES + BATCH_HEADER_BYTES;
        // Each begins behind its header, the second behind the first small record, the third behind both.
        let large = first + 56 + 32..first + 56 + 32 + 2_001;
        let last = large.end.next_multiple_of(8) + 32..large.end.next_multiple_of(8) + 32 + 1_500;
        assert_eq!(payloads(&bytes, first..bytes.len()), [large, last]);
    }
}
