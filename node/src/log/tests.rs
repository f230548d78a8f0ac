//! The log as its users see it: on a faulty disk, on a real one, and against a model.

mod damage;
mod failure;
mod inspect;
mod model;
mod space;

use std::{
    path::PathBuf,
    sync::mpsc::{Receiver, channel},
};

use super::*;
use crate::disk::{Disk, RealDisk, faulty::FaultyDisk};

const A: ShardId = ShardId::new(1);
const B: ShardId = ShardId::new(2);

/// Small, so that sealing and recycling happen within a test.
fn small() -> LogOptions {
    LogOptions {
        segment_bytes: SEGMENT_BYTES_MIN,
        cache_bytes: 8 << 10,
        spare_segments_max: 2,
        direct_io: true,
    }
}

fn dir() -> PathBuf {
    PathBuf::from("/log")
}

fn segment(number: u64) -> PathBuf {
    dir().join(format!("{number:020}.seg"))
}

fn try_open(disk: &FaultyDisk) -> Result<Log, OpenError> {
    Log::open(Arc::new(disk.clone()), &dir(), small(), |_| {})
}

fn open(disk: &FaultyDisk) -> Log {
    try_open(disk).unwrap()
}

fn entry(index: u64, term: u64, payload_bytes: usize) -> Entry {
    // Told apart by index and term, and no two bytes in a row the same.
    let payload: Vec<u8> =
        (0..payload_bytes as u64).map(|at| (at * 31 + index * 7 + term * 3) as u8).collect();
    Entry { index, term, payload: payload.into() }
}

fn entries(range: Range<u64>, term: u64, payload_bytes: usize) -> Vec<Entry> {
    range.map(|index| entry(index, term, payload_bytes)).collect()
}

fn id(term: u64, index: u64) -> EntryId {
    EntryId { term, index }
}

/// A callback, and where what it was called with arrives.
fn callback() -> (Done, Receiver<Result<(), LogFailure>>) {
    let (sender, receiver) = channel();
    (Box::new(move |result| drop(sender.send(result))), receiver)
}

fn append(log: &Log, shard: ShardId, entries: Vec<Entry>) {
    let (done, result) = callback();
    log.append(shard, entries, done);
    result.recv().unwrap().unwrap();
}

/// Gives up every segment that may go, as if nobody needed what was purged.
fn give_up(log: &Log) {
    flush(log);
    let all = || log.survey().iter().map(|segment| segment.id).collect::<Vec<_>>();
    // Saying so can fill a segment.
    while !log.retire(&all()).unwrap().is_empty() {}
}

/// Waits until everything queued is on disk.
fn flush(log: &Log) {
    append(log, ShardId::new(99), Vec::new());
}

fn read_all(log: &Log, shard: ShardId) -> Result<Vec<Entry>, ReadError> {
    let state = log.shard_state(shard);
    let start = state.purged.map_or(0, |purged| purged.index + 1);
    let end = state.last.map_or(0, |last| last.index + 1);
    // Without a purge point, the first entry may have any index.
    let first = (start..end).find(|index| log.term_at(shard, *index).unwrap().is_some());
    first.map_or(Ok(Vec::new()), |first| log.read(shard, first..end, usize::MAX))
}

#[test]
fn what_was_appended_comes_back_from_cache_disk_and_after_reopening() {
    let disk = FaultyDisk::new(1);
    let log = open(&disk);
    let (all_a, all_b) = (entries(0..40, 3, 5000), entries(1..41, 3, 700));
    for (a, b) in all_a.iter().zip(&all_b) {
        append(&log, A, vec![a.clone()]);
        append(&log, B, vec![b.clone()]);
    }
    assert!(log.stats().segment_count > 3, "several segments were sealed");
    assert!(log.read_cached(A, 0..40, usize::MAX).is_none());
    assert_eq!(log.read_cached(A, 39..40, usize::MAX), Some(vec![all_a[39].clone()]));
    let check = |log: &Log| {
        assert_eq!(log.read(A, 0..40, usize::MAX).unwrap(), all_a);
        assert_eq!(log.read(B, 1..41, usize::MAX).unwrap(), all_b);
        assert_eq!(log.read(A, 10..40, 12_000).unwrap(), all_a[10..12]);
        assert_eq!(log.read(A, 10..40, 1).unwrap(), all_a[10..11]);
        assert!(log.read(A, 10..10, 1).unwrap().is_empty());
        assert!(matches!(log.read(A, 40..41, 1), Err(ReadError::NotFound { index: 40, .. })));
        assert_eq!(log.read_kept_cached(A, u64::MAX), None);
        assert!(matches!(log.read(B, 0..41, 1), Err(ReadError::NotFound { index: 0, .. })));
        assert_eq!(log.term_at(A, 39).unwrap(), Some(3));
        assert_eq!(log.shard_state(A).last, Some(id(3, 39)));
    };
    check(&log);
    drop(log);
    check(&open(&disk));
}

#[test]
fn the_states_of_a_shard_survive_and_are_visible_at_once() {
    let disk = FaultyDisk::new(2);
    let log = open(&disk);
    assert_eq!(log.shard_state(A), ShardState::default());
    let (done, result) = callback();
    log.save_vote(A, Bytes::from_static(b"vote"), done);
    log.save_committed(A, Bytes::from_static(b"committed"));
    log.append(A, entries(1..9, 1, 10), Box::new(|_| {}));
    log.truncate_after(A, Some(6));
    log.append(A, entries(7..8, 2, 10), Box::new(|_| {}));
    log.purge(A, id(1, 3));
    let expected = ShardState {
        vote: Some(Bytes::from_static(b"vote")),
        committed: Some(Bytes::from_static(b"committed")),
        purged: Some(id(1, 3)),
        last: Some(id(2, 7)),
        live: 4..8,
    };
    assert_eq!(log.shard_state(A), expected);
    result.recv().unwrap().unwrap();
    log.close();
    let log = open(&disk);
    assert_eq!(log.shard_state(A), expected);
    let terms: Vec<_> = (2..=8).map(|index| log.term_at(A, index).unwrap()).collect();
    assert_eq!(terms, [None, Some(1), Some(1), Some(1), Some(1), Some(2), None]);
    assert!(matches!(log.read(A, 3..8, 1), Err(ReadError::Purged { index: 3, purged: 3, .. })));
    assert_eq!(log.read(A, 4..8, usize::MAX).unwrap(), [entries(4..7, 1, 10), entries(7..8, 2, 10)].concat());
}

#[test]
fn segments_that_are_given_up_are_used_again_and_bounded() {
    let disk = FaultyDisk::new(3);
    let log = open(&disk);
    for index in 1..200 {
        append(&log, A, vec![entry(index, 1, 5000)]);
        if index > 20 {
            log.purge(A, id(1, index - 20));
        }
        if index % 5 == 0 {
            give_up(&log);
        }
    }
    give_up(&log);
    // A segment has room for six of them, and the live ones may start and end within one.
    assert!(log.stats().segment_count <= 6, "{:?}", log.stats());
    log.purge(A, id(1, 199));
    give_up(&log);
    assert_eq!(log.stats().segment_count, 1);
    let read = log.read(A, 1..2, 1);
    assert!(matches!(read, Err(ReadError::Purged { .. })), "{read:?}");
    assert!(matches!(log.read_kept(A, 1, 1), Err(ReadError::Purged { .. })));
    log.close();
    let files = disk.names().len();
    assert!(files <= 1 + 1 + small().spare_segments_max, "active, prepared and spares: {files}");
    assert_eq!(open(&disk).shard_state(A).last, Some(id(1, 199)));
}

#[test]
fn a_lagging_shard_keeps_its_segments() {
    let disk = FaultyDisk::new(4);
    let log = open(&disk);
    append(&log, B, entries(5..7, 1, 100));
    for index in 1..60 {
        append(&log, A, vec![entry(index, 1, 5000)]);
    }
    log.purge(A, id(1, 59));
    give_up(&log);
    assert_eq!(log.stats().segment_count, 2, "its own, and the active one");
    assert_eq!(log.read(B, 5..7, usize::MAX).unwrap(), entries(5..7, 1, 100));
    drop(log);
    let log = open(&disk);
    assert_eq!(log.read(B, 5..7, usize::MAX).unwrap(), entries(5..7, 1, 100));
    log.truncate_after(B, None);
    give_up(&log);
    assert_eq!(log.stats().segment_count, 1);
    append(&log, B, entries(0..2, 9, 100));
    drop(log);
    assert_eq!(read_all(&open(&disk), B).unwrap(), entries(0..2, 9, 100));
}

#[test]
fn a_purge_past_the_end_makes_room_for_a_snapshot() {
    let disk = FaultyDisk::new(5);
    let log = open(&disk);
    append(&log, A, entries(1..4, 1, 100));
    log.purge(A, id(7, 1000));
    append(&log, A, entries(1001..1003, 7, 100));
    drop(log);
    let log = open(&disk);
    assert_eq!(log.shard_state(A).purged, Some(id(7, 1000)));
    assert_eq!(read_all(&log, A).unwrap(), entries(1001..1003, 7, 100));
}

#[test]
fn entries_of_half_a_segment_fit_and_larger_ones_are_refused() {
    let disk = FaultyDisk::new(6);
    let log = open(&disk);
    let largest = usize::try_from(SEGMENT_BYTES_MIN / 2).unwrap();
    append(&log, A, entries(1..6, 1, largest));
    assert_eq!(log.read(A, 1..6, usize::MAX).unwrap(), entries(1..6, 1, largest));
    let too_large = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        log.append(A, entries(6..7, 1, largest + 1), Box::new(|_| {}));
    }));
    assert!(too_large.is_err());
    append(&log, A, entries(6..7, 1, 1));
}

#[test]
fn a_gap_is_refused_and_does_no_harm() {
    let disk = FaultyDisk::new(7);
    let log = open(&disk);
    append(&log, A, entries(4..6, 1, 10));
    for first in [4, 7] {
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            log.append(A, entries(first..first + 1, 1, 10), Box::new(|_| {}));
        }));
        assert!(refused.is_err());
    }
    append(&log, A, entries(6..7, 1, 10));
    assert_eq!(read_all(&log, A).unwrap(), entries(4..7, 1, 10));
}

#[test]
fn callbacks_come_in_order_and_the_last_handle_may_go_with_one() {
    let disk = FaultyDisk::new(8);
    let log = open(&disk);
    let (sender, order) = channel();
    for index in 0..500 {
        let (sender, last) = (sender.clone(), (index == 499).then(|| log.clone()));
        let done: Done = Box::new(move |result| {
            result.unwrap();
            drop(last);
            sender.send(index).unwrap();
        });
        log.append(A, entries(index..index + 1, 1, 1000), done);
    }
    drop((log, sender));
    assert_eq!(order.iter().collect::<Vec<_>>(), (0..500).collect::<Vec<_>>());
}

#[test]
fn a_closed_log_says_so_and_can_still_be_read() {
    let disk = FaultyDisk::new(9);
    let log = open(&disk);
    assert!(matches!(try_open(&disk), Err(OpenError::Locked { .. })));
    append(&log, A, entries(1..3, 1, 10));
    log.clone().close();
    let (done, result) = callback();
    log.append(A, entries(3..4, 1, 10), done);
    assert_eq!(result.recv().unwrap().unwrap_err().operation, Operation::Append);
    assert_eq!(read_all(&log, A).unwrap(), entries(1..3, 1, 10));
    assert_eq!(read_all(&open(&disk), A).unwrap(), entries(1..3, 1, 10));
}

#[test]
fn a_segment_size_out_of_bounds_is_refused() {
    for segment_bytes in [0, SEGMENT_BYTES_MIN - 4096, SEGMENT_BYTES_MIN + 1, SEGMENT_BYTES_MAX + 4096] {
        let options = LogOptions { segment_bytes, ..small() };
        let opened = Log::open(Arc::new(FaultyDisk::new(0)), &dir(), options, |_| {});
        assert!(matches!(opened, Err(OpenError::SegmentBytes { .. })));
    }
}

#[test]
fn the_real_disk_keeps_it_with_and_without_direct_writes() {
    for direct_io in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let open = |segment_bytes| {
            let disk: Arc<dyn Disk> = Arc::new(RealDisk);
            let options = LogOptions { segment_bytes, direct_io, ..small() };
            Log::open(disk, &dir.path().join("log"), options, |_| {}).unwrap()
        };
        let log = open(SEGMENT_BYTES_MIN);
        for index in 1..100 {
            append(&log, A, vec![entry(index, 1, 3000)]);
            if index == 50 {
                log.purge(A, id(1, 30));
            }
        }
        assert_eq!(read_all(&log, A).unwrap(), entries(31..100, 1, 3000));
        drop(log);
        // Another segment size from now on; spares of the old size are of no use.
        let log = open(4 * SEGMENT_BYTES_MIN);
        append(&log, A, entries(100..200, 1, 3000));
        assert_eq!(read_all(&log, A).unwrap(), entries(31..200, 1, 3000));
    }
}

#[test]
fn a_purge_point_may_come_below_the_first_entry() {
    let disk = FaultyDisk::new(5);
    let log = open(&disk);
    append(&log, A, entries(5..8, 1, 20 << 10));
    log.purge(A, id(1, 2));
    append(&log, A, entries(8..11, 1, 20 << 10));
    assert!(log.stats().segment_count > 1, "the next segment says it again");
    let state = log.shard_state(A);
    log.close();
    assert_eq!(open(&disk).shard_state(A), state);
}
