//! A write or sync that failed stops the log for good, and says so once.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::disk::faulty::Fault;

fn check(direct_io: bool, later: u64, fault: Fault, operation: Operation) {
    let disk = FaultyDisk::new(later);
    let failures = Arc::new(AtomicUsize::new(0));
    let counted = failures.clone();
    let options = LogOptions { direct_io, ..small() };
    let log = Log::open(Arc::new(disk.clone()), &dir(), options, move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let log = log.unwrap();
    append(&log, A, entries(1..3, 1, 100));
    wait_until_prepared(&disk, 2);
    disk.inject(later, fault);

    let (sender, results) = channel();
    for index in 3..8 {
        let sender = sender.clone();
        let done = Box::new(move |result: Result<(), LogFailure>| sender.send(result).unwrap());
        log.append(A, entries(index..index + 1, 1, 100), done);
    }
    drop(sender);
    let results: Vec<_> = results.iter().collect();
    assert_eq!(results.len(), 5);
    let failed = results.iter().skip_while(|result| result.is_ok()).collect::<Vec<_>>();
    assert!(!failed.is_empty());
    for result in failed {
        let failure = result.as_ref().unwrap_err();
        assert_eq!((failure.operation, &failure.path), (operation, &segment(1)));
    }
    let (done, result) = callback();
    log.save_vote(A, Bytes::from_static(b"vote"), done);
    result.recv().unwrap().unwrap_err();
    log.save_committed(A, Bytes::from_static(b"committed"));
    log.purge(A, id(1, 2));
    log.truncate_after(A, None);
    assert_eq!(log.read(A, 1..3, usize::MAX).unwrap(), entries(1..3, 1, 100), "reads go on");
    drop(log);
    assert_eq!(failures.load(Ordering::SeqCst), 1);
    assert_eq!(disk.writes_after_failure(), 0, "nothing is written after a failure");

    disk.restart();
    let recovered = read_all(&open(&disk), A).unwrap();
    let confirmed = 2 + results.iter().filter(|result| result.is_ok()).count();
    assert!((confirmed..=7).contains(&recovered.len()));
    assert_eq!(recovered, entries(1..recovered.len() as u64 + 1, 1, 100));
}

/// Segments are prepared on a thread of their own, whose changes would be counted in.
fn wait_until_prepared(disk: &FaultyDisk, number: u64) {
    let mut changes = 0;
    while !disk.names().contains(&segment(number)) || changes != disk.change_count() {
        changes = disk.change_count();
        thread::yield_now();
    }
}

#[test]
fn a_failed_write_stops_the_log() {
    check(true, 0, Fault::Io, Operation::Write);
    check(false, 0, Fault::Io, Operation::Write);
    check(true, 0, Fault::NoSpace, Operation::Write);
    check(true, 0, Fault::PowerLoss, Operation::Write);
}

#[test]
fn a_failed_sync_stops_the_log() {
    check(false, 1, Fault::Io, Operation::Sync);
    check(false, 1, Fault::PowerLoss, Operation::Sync);
}

/// Appends until that fails or there are as many segments; returns how it failed, and the log.
fn fill(disk: &FaultyDisk, refused_count: u64) -> (Option<LogFailure>, Log) {
    let log = open(disk);
    wait_until_prepared(disk, 2);
    disk.refuse_creations(refused_count);
    for index in 1.. {
        let (done, result) = callback();
        log.append(A, vec![entry(index, 1, 5000)], done);
        if let Err(failure) = result.recv().unwrap() {
            return (Some(failure), log);
        }
        if log.stats().segment_count == 5 {
            break;
        }
    }
    (None, log)
}

#[test]
fn a_disk_that_was_full_for_a_while_stops_nothing() {
    let disk = FaultyDisk::new(0);
    let (failure, log) = fill(&disk, 1);
    assert_eq!(failure, None);
    drop(log);
    assert!(read_all(&open(&disk), A).unwrap().len() > 20);
}

#[test]
fn a_disk_that_stays_full_stops_the_log_when_it_needs_a_segment() {
    let disk = FaultyDisk::new(0);
    let (failure, log) = fill(&disk, 2);
    let failure = failure.unwrap();
    assert_eq!((failure.operation, failure.path), (Operation::Prepare, segment(3)));
    assert_eq!(log.stats().segment_count, 2);
    let confirmed = log.stats().live_entry_count - 1;
    drop(log);
    disk.restart();
    assert_eq!(read_all(&open(&disk), A).unwrap(), entries(1..confirmed + 1, 1, 5000));
}
