//! What is purged stays readable for as long as it is needed, wherever it lies, and the rest of the space comes back.

use std::{collections::BTreeSet, ops::ControlFlow};

use super::{
    super::{format::BLOCK_BYTES, state::RECENT_INDEXES_MAX},
    *,
};
use crate::disk::faulty::Fault;

const PAYLOAD_BYTES: usize = 3000;

/// The part of every entry that is needed: all but its first and last hundred bytes.
fn part(index: u64) -> Part {
    Part { index, position: 100, length: u32::try_from(PAYLOAD_BYTES).unwrap() - 200 }
}

fn part_bytes(index: u64) -> Bytes {
    entry(index, 1, PAYLOAD_BYTES).payload.slice(100..PAYLOAD_BYTES - 100)
}

fn go_on(_: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn keep(log: &Log, shard: ShardId, entry: KeptEntry) {
    let (done, result) = callback();
    log.keep(shard, &[entry], done);
    result.recv().unwrap().unwrap();
}

/// Rewrites what may go and has something of the needed entries, and gives up all that may go.
fn collect(log: &Log, needed: &BTreeSet<u64>) -> Result<(), RewriteError> {
    let mut live = |shard, range: Range<u64>| {
        let needed = needed.range(range).copied();
        if shard == A { needed.map(part).collect() } else { Vec::new() }
    };
    let may_go: Vec<_> =
        log.survey().into_iter().filter(|segment| segment.is_sealed && !segment.has_raft_entries).collect();
    for segment in &may_go {
        log.rewrite(segment.id, &mut live, &mut go_on)?;
    }
    let ids: Vec<_> = may_go.iter().map(|segment| segment.id).collect();
    assert_eq!(log.retire(&ids)?, ids);
    Ok(())
}

fn check(log: &Log, needed: &BTreeSet<u64>) {
    for index in needed {
        assert_eq!(log.read_part(A, part(*index)).unwrap(), part_bytes(*index), "entry {index}");
        let kept = log.read_kept(A, *index, 0).unwrap();
        assert_eq!((kept[0].index, kept[0].term), (*index, 1));
        let part = part(*index);
        assert_eq!(kept[0].parts.get(part.position, part.length), Some(part_bytes(*index)));
    }
}

/// Entries 1 to 100, all of them purged.
fn purged(disk: &FaultyDisk) -> Log {
    let log = open(disk);
    for index in 1..=100 {
        append(&log, A, vec![entry(index, 1, PAYLOAD_BYTES)]);
    }
    log.purge(A, id(1, 100));
    append(&log, A, entries(101..104, 1, PAYLOAD_BYTES));
    flush(&log);
    log
}

#[test]
fn what_is_needed_moves_and_the_rest_of_a_segment_goes() {
    let disk = FaultyDisk::new(1);
    let mut log = purged(&disk);
    let before = log.stats().segment_count;
    assert!(before >= 5, "{before}");
    let mut needed: BTreeSet<_> = (1..=100).filter(|index| index % 10 == 0).collect();
    check(&log, &needed);
    while !needed.is_empty() {
        collect(&log, &needed).unwrap();
        check(&log, &needed);
        drop(log);
        log = open(&disk);
        check(&log, &needed);
        assert_eq!(read_all(&log, A).unwrap(), entries(101..104, 1, PAYLOAD_BYTES));
        let most = needed.len() / 2;
        needed = needed.into_iter().take(most).collect();
    }
    // Only what is live for raft, and what was written while collecting.
    assert!(log.stats().segment_count < before / 2, "{:?}", log.stats());
    assert!(matches!(log.read_kept(A, 5, 0), Err(ReadError::Purged { .. })));
}

#[test]
fn neighbours_are_read_along() {
    let disk = FaultyDisk::new(1);
    let log = purged(&disk);
    let needed: BTreeSet<_> = (1..=30).collect();
    collect(&log, &needed).unwrap();
    let several = log.read_kept(A, 5, 4 * PAYLOAD_BYTES).unwrap();
    let indexes: Vec<_> = several.iter().map(|entry| entry.index).collect();
    assert_eq!(indexes, [5, 6, 7, 8]);
}

#[test]
fn segments_that_raft_or_the_writer_needs_stay() {
    let disk = FaultyDisk::new(2);
    let log = open(&disk);
    for index in 1..=100 {
        append(&log, A, vec![entry(index, 1, PAYLOAD_BYTES)]);
    }
    log.purge(A, id(1, 50));
    flush(&log);
    let survey = log.survey();
    let all: Vec<_> = survey.iter().map(|segment| segment.id).collect();
    let retired = log.retire(&all).unwrap();
    assert!(!retired.is_empty() && retired.len() < all.len() / 2 + 1);
    assert_eq!(read_all(&log, A).unwrap(), entries(51..101, 1, PAYLOAD_BYTES));
    assert!(log.bytes_after(A, 50) >= 50 * PAYLOAD_BYTES as u64);
    assert!(log.bytes_after(A, 99) < 2 * PAYLOAD_BYTES as u64);
    assert_eq!((log.bytes_after(A, 100), log.bytes_after(B, 0)), (0, 0));
    let last = log.survey().pop().unwrap();
    assert!(!last.is_sealed);
    let rewritten = log.rewrite(last.id, &mut |_, _| Vec::new(), &mut go_on);
    assert!(matches!(rewritten, Err(RewriteError::Read(ReadError::NoSegment { .. }))));
}

#[test]
fn what_lies_further_back_than_so_many_bytes_is_told() {
    let disk = FaultyDisk::new(2);
    let log = open(&disk);
    append(&log, B, vec![entry(1, 1, PAYLOAD_BYTES)]);
    for index in 1..=100 {
        append(&log, A, vec![entry(index, 1, PAYLOAD_BYTES)]);
    }
    flush(&log);
    let survey = log.survey();
    let (newest, before) = (&survey[survey.len() - 1], &survey[survey.len() - 2]);
    assert_eq!(log.oldest_within(0), newest.id);
    assert_eq!(log.oldest_within(newest.file_bytes + before.file_bytes - 1), newest.id);
    assert_eq!(log.oldest_within(newest.file_bytes + before.file_bytes), before.id);
    assert_eq!(log.oldest_within(u64::MAX), survey[0].id);

    assert_eq!(log.last_index_before(A, survey[0].id), None);
    let shares: Vec<_> = newest.shards.iter().filter(|share| share.shard == A).collect();
    assert_eq!(log.last_index_before(A, newest.id), Some(shares[0].entries[0].start - 1));
    assert_eq!(log.last_index_before(B, newest.id), Some(1));
}

/// Power is lost at every call that the disk gets while segments are rewritten and given up, one after the other.
#[test]
fn power_may_be_lost_at_any_point_of_collecting() {
    let origin = FaultyDisk::new(3);
    drop(purged(&origin));
    let mut needed: BTreeSet<u64> = (1..=100).filter(|index| index % 7 == 0).collect();
    for later in 0..200 {
        let disk = origin.duplicate();
        let log = open(&disk);
        disk.inject(later, Fault::PowerLoss);
        let collected = collect(&log, &needed);
        drop(log);
        let is_over = disk.has_power();
        disk.restart();
        let log = open(&disk);
        check(&log, &needed);
        assert_eq!(read_all(&log, A).unwrap(), entries(101..104, 1, PAYLOAD_BYTES));
        // It goes on where it was, and converges.
        collect(&log, &needed).unwrap();
        collect(&log, &needed).unwrap();
        check(&log, &needed);
        needed.insert(1 + later % 100);
        check(&open_again(log, &disk), &(1..=100).filter(|index| index % 7 == 0).collect());
        needed.retain(|index| index % 7 == 0);
        if is_over {
            assert!(collected.is_ok());
            return;
        }
    }
    panic!("collecting makes more calls than were tried");
}

fn open_again(log: Log, disk: &FaultyDisk) -> Log {
    drop(log);
    open(disk)
}

/// A snapshot is being received for indexes at which the log has entries of a leader that was deposed.
#[test]
fn what_is_kept_is_never_taken_for_an_entry_of_another_term() {
    let disk = FaultyDisk::new(4);
    let log = open(&disk);
    append(&log, A, entries(1..50, 1, PAYLOAD_BYTES));
    for whole in [false, true] {
        let payload = entry(40, 2, PAYLOAD_BYTES).payload;
        let parts = match whole {
            true => Parts::whole(payload),
            false => Parts::new(vec![(100, payload.slice(100..200))]).unwrap(),
        };
        keep(&log, A, KeptEntry { index: 40, term: 2, parts });
        append(&log, B, entries(1..20, 1, PAYLOAD_BYTES));
        log.truncate_after(B, None);
        assert!(log.read_cached(A, 40..41, 1).is_none(), "it is read from disk");
        assert_eq!(log.read(A, 30..50, usize::MAX).unwrap(), entries(30..50, 1, PAYLOAD_BYTES));
    }
    // The snapshot is installed: what the log had is not what it says.
    log.truncate_after(A, Some(20));
    log.purge(A, id(2, 60));
    let check = |log: &Log| {
        assert_eq!(log.read_kept(A, 40, 0).unwrap()[0].term, 2);
        assert!(log.read_kept(A, 10, 0).is_err(), "it may never have been committed");
    };
    flush(&log);
    check(&log);
    append(&log, A, entries(61..90, 2, PAYLOAD_BYTES));
    drop(log);
    check(&open(&disk));
}

#[test]
fn a_scrub_finds_damage_until_it_is_repaired() {
    let disk = FaultyDisk::new(5);
    let log = purged(&disk);
    let sealed = log.survey().remove(0).id;
    assert_eq!(log.verify(sealed, &mut go_on).unwrap(), []);
    for at in [3 * BLOCK_BYTES + 100, 6 * BLOCK_BYTES + 100] {
        let mut bytes = disk.contents(&segment(1));
        bytes[at] ^= 1;
        disk.overwrite(&segment(1), bytes);
    }
    let damaged = log.verify(sealed, &mut go_on).unwrap();
    assert_eq!(damaged.len(), 2, "{damaged:?}");
    let index = damaged[0].index;
    let read = log.read_kept(A, index, 0);
    assert_eq!(read.unwrap_err().damaged_index(), Some(index));
    let mut live = |_, range: Range<u64>| range.map(part).collect();
    let rewritten = log.rewrite(sealed, &mut live, &mut go_on);
    assert_eq!(rewritten.unwrap_err().damaged_entry(), Some((A, index)));
    for DamagedRecord { index, .. } in &damaged {
        let parts = Parts::new(vec![(part(*index).position, part_bytes(*index))]).unwrap();
        keep(&log, A, KeptEntry { index: *index, term: 1, parts });
    }
    assert_eq!(log.verify(sealed, &mut go_on).unwrap(), []);
    check(&log, &(1..=100).collect());
    log.rewrite(sealed, &mut live, &mut go_on).unwrap();
}

/// Its file is used again, and has other records in it by the time that it is read.
#[test]
fn a_scrub_of_a_segment_that_is_given_up_meanwhile_finds_no_damage() {
    let disk = FaultyDisk::new(5);
    let log = open(&disk);
    append(&log, A, entries(1..3, 1, PAYLOAD_BYTES));
    append(&log, B, entries(1..100, 1, PAYLOAD_BYTES));
    log.purge(A, id(1, 2));
    log.purge(B, id(1, 99));
    flush(&log);
    let sealed = log.survey().remove(0).id;
    let mut next = 100;
    let mut use_again = |_| {
        log.retire(&[sealed]).unwrap();
        for _ in 0..100 {
            append(&log, B, entries(next..next + 1, 1, PAYLOAD_BYTES));
            next += 1;
        }
        flush(&log);
        ControlFlow::Continue(())
    };
    let verified = log.verify(sealed, &mut use_again);
    assert!(matches!(verified, Err(ReadError::NoSegment { .. })), "{verified:?}");
}

#[test]
fn a_rewrite_that_is_stopped_says_so_and_harms_nothing() {
    let disk = FaultyDisk::new(6);
    let log = purged(&disk);
    let first = log.survey().remove(0).id;
    let mut live = |_, range: Range<u64>| range.map(part).collect();
    let stopped = log.rewrite(first, &mut live, &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(RewriteError::Stopped)));
    check(&log, &(1..=100).collect());
}

#[test]
fn spares_can_be_given_back() {
    let disk = FaultyDisk::new(7);
    let log = purged(&disk);
    give_up(&log);
    drop(log);
    let log = open(&disk);
    let spares =
        |disk: &FaultyDisk| disk.names().iter().filter(|path| path.extension().unwrap() == "spare").count();
    assert!(spares(&disk) > 0);
    log.trim_spares(0);
    log.close();
    assert_eq!(spares(&disk), 0);
}

/// What a snapshot brings again and again, each time until it breaks off, lies in ever more segments.
#[test]
fn an_entry_may_be_kept_in_more_segments_than_there_are_indexes_in_memory() {
    let disk = FaultyDisk::new(1);
    let log = purged(&disk);
    let whole = |index| {
        let payload = entry(index, 1, PAYLOAD_BYTES).payload;
        KeptEntry { index, term: 1, parts: Parts::whole(payload) }
    };
    let first = log.stats().segment_count;
    while log.stats().segment_count < first + RECENT_INDEXES_MAX + 4 {
        keep(&log, A, whole(7));
    }
    check(&log, &BTreeSet::from([7]));
}
