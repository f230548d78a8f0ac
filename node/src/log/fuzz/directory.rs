//! Opens directories whose segments are made up, and uses the log when one opens.
//!
//! A segment comes in pieces: the beginning of its header, then one for each batch. They need no padding, and their
//! checksums are put right, except where a piece says that something is to be left as it is.

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use skein_proto::ids::ShardId;

use super::{
    super::{
        Entry, Log, LogFailure, OpenError, Operation, SEGMENT_BYTES_MIN, ShardReport,
        files::SegmentFiles,
        format::{
            BLOCK_BYTES, NUMBER_MAX, Seed, SegmentNumber, TRAILER_BYTES, Trailer, pad_to_block,
            reseal::{reseal_batch, reseal_header},
        },
        inspect,
    },
    dir, options,
};
use crate::disk::{Disk, faulty::FaultyDisk};

/// Where the header has what it needs, and where it says what is special about the segment: nothing reads the latter.
const LOG_ID_AT: usize = 16;
const NUMBER_AT: usize = 24;
pub(super) const CHOICES_AT: usize = 48;
/// What the trailer says, unless it is 0.
const TRAILER_AT: usize = 56;

/// What may be special about a segment.
pub(super) mod choice {
    /// The last piece reaches to the segment's end, and has a trailer.
    pub(in crate::log::fuzz) const SEALED: u8 = 1;
    /// The header is left as it is.
    pub(super) const RAW_HEADER: u8 = 2;
    /// The file's name is its place among the others, whatever the header says.
    pub(super) const NAMED_BY_PLACE: u8 = 4;
    /// The file is smaller than any that is written.
    pub(super) const SMALL: u8 = 8;
    /// The batches are left as they are.
    pub(super) const RAW_BATCHES: u8 = 16;
}

/// How many shards of a log that opened are looked at.
const SHARDS_MAX: usize = 8;

/// Opens a log of these segments, and goes on with it. Returns whether there was one.
pub(crate) fn directory(segments: &[&[&[u8]]]) -> bool {
    let disk = FaultyDisk::new(0);
    let files = SegmentFiles::to_read(Arc::new(disk.clone()), dir());
    for (place, pieces) in (1..).zip(segments) {
        let (number, bytes) = segment(pieces, place);
        let path = files.segment_path(number);
        // Two may have the same name: the later one is there.
        drop(disk.create(&path, 0));
        disk.overwrite(&path, bytes);
    }
    let inspected = inspect(Arc::new(disk.clone()), dir(), &mut |_| {}).and_then(|found| found.shards);
    let changes = disk.change_count();
    let failed = Arc::new(AtomicBool::new(false));
    match open(&disk, &failed) {
        Ok(log) => {
            let shards = inspected.expect("what opens can be looked at");
            look(&log, &shards);
            go_on(&disk, &failed, log, &shards);
            !shards.is_empty()
        }
        Err(OpenError::Damaged { .. } | OpenError::NewerVersion { .. }) => {
            assert_eq!(disk.change_count(), changes, "damage changes nothing");
            false
        }
        Err(_) => false,
    }
}

fn segment(pieces: &[&[u8]], place: u64) -> (SegmentNumber, Vec<u8>) {
    let (header, batches) = pieces.split_first().map_or((&[][..], pieces), |(first, rest)| (*first, rest));
    let mut block = [0; BLOCK_BYTES];
    let length = header.len().min(BLOCK_BYTES);
    block[..length].copy_from_slice(&header[..length]);
    let has = |choice: u8| block[CHOICES_AT] & choice != 0;
    let u64_at = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes"));
    let number = Some(u64_at(NUMBER_AT)).filter(|number| (1..=NUMBER_MAX).contains(number));
    let seed = Seed::new(u64_at(LOG_ID_AT), SegmentNumber::new(number.unwrap_or(place)));
    let sealed = |piece: &&[u8]| match has(choice::RAW_BATCHES) {
        true => {
            let mut batch = piece.to_vec();
            batch.resize(pad_to_block(piece.len()), 0);
            batch
        }
        false => reseal_batch(piece, seed),
    };
    let mut bytes = block.to_vec();
    let (last, before) = batches.split_last().map_or((None, batches), |(last, before)| (Some(last), before));
    bytes.extend(before.iter().flat_map(sealed));
    let mut last = last.map(sealed).unwrap_or_default();
    if has(choice::SEALED) && !last.is_empty() {
        let used = batches.last().map_or(0, |piece| piece.len());
        last.resize(pad_to_block(used + TRAILER_BYTES), 0);
    }
    let smallest = if has(choice::SMALL) { 0 } else { SEGMENT_BYTES_MIN as usize };
    let segment_bytes = smallest.max(bytes.len() + last.len());
    if has(choice::SEALED) && !last.is_empty() {
        bytes.resize(segment_bytes - last.len(), 0);
        let trailer = Some(u64_at(TRAILER_AT)).filter(|offset| *offset != 0);
        let index_offset = trailer.unwrap_or(bytes.len() as u64);
        let at = last.len() - TRAILER_BYTES;
        Trailer { index_offset }.encode(&mut last[at..], seed);
    }
    bytes.extend(last);
    bytes.resize(segment_bytes, 0);
    if !has(choice::RAW_HEADER) {
        reseal_header(&mut block, segment_bytes as u64);
        bytes[..BLOCK_BYTES].copy_from_slice(&block);
    }
    let name = number.filter(|_| block[CHOICES_AT] & choice::NAMED_BY_PLACE == 0).unwrap_or(place);
    (SegmentNumber::new(name), bytes)
}

fn open(disk: &FaultyDisk, failed: &Arc<AtomicBool>) -> Result<Log, OpenError> {
    let failed = failed.clone();
    Log::open(Arc::new(disk.clone()), dir(), options(), move |failure: LogFailure| {
        // A log whose segments are sound and contradict each other may stop. It may not panic.
        assert!(failure.operation != Operation::Run, "{failure}");
        failed.store(true, Ordering::Relaxed);
    })
}

/// Asks everything that a node asks.
fn look(log: &Log, shards: &[ShardReport]) {
    for ShardReport { shard, state, .. } in shards.iter().take(SHARDS_MAX) {
        assert_eq!(log.shard_state(*shard), *state);
        let live = state.live.clone();
        drop(log.read(*shard, live.clone(), SEGMENT_BYTES_MIN as usize));
        let purged = state.purged.map_or(0, |purged| purged.index);
        for index in [0, 1, purged, live.start, live.end.saturating_sub(1), live.end, u64::MAX] {
            drop(log.read(*shard, index..index.saturating_add(2), 0));
            drop(log.read_kept(*shard, index, SEGMENT_BYTES_MIN as usize));
            let term = log.term_at(*shard, index).expect("terms are in memory");
            assert!(!live.contains(&index) || term.is_some());
            let _ = log.bytes_after(*shard, index);
        }
    }
    for survey in log.survey() {
        drop(log.verify(survey.id, &mut |_| ControlFlow::Continue(())));
    }
    let _ = log.damaged();
    let _ = log.stats();
}

/// Adds to every shard, gives up what may go, and opens the log once more: it must be as it was.
fn go_on(disk: &FaultyDisk, failed: &Arc<AtomicBool>, log: Log, shards: &[ShardReport]) {
    let shards: Vec<ShardId> = shards.iter().take(SHARDS_MAX).map(|report| report.shard).collect();
    for shard in &shards {
        let state = log.shard_state(*shard);
        let index = state.last.map_or(1, |last| last.index.saturating_add(1));
        if index < u64::MAX {
            let entry = Entry { index, term: u64::MAX, payload: Bytes::from_static(b"more") };
            log.append(*shard, vec![entry], Box::new(drop));
        }
        log.save_vote(*shard, Bytes::from_static(b"vote"), Box::new(drop));
    }
    let all: Vec<_> = log.survey().iter().map(|survey| survey.id).collect();
    drop(log.retire(&all));
    let before: Vec<_> = shards.iter().map(|shard| log.shard_state(*shard)).collect();
    log.close();
    if failed.load(Ordering::Relaxed) {
        return;
    }
    let log = open(disk, failed).expect("what was opened and closed opens");
    let after: Vec<_> = shards.iter().map(|shard| log.shard_state(*shard)).collect();
    assert_eq!(before, after);
}
