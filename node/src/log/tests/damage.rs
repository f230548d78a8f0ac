//! What is wrong on disk is cut off when nobody was told of it, and refused otherwise.

use proptest::prelude::*;

use super::{super::format::BLOCK_BYTES, *};

/// A disk whose log, in its first segment, has batches of one append each; where each batch starts, and the entries.
fn batches(count: u64, payload_bytes: usize) -> (FaultyDisk, Vec<usize>, Vec<Entry>) {
    let disk = FaultyDisk::new(count);
    let log = open(&disk);
    let all = entries(1..count + 1, 1, payload_bytes);
    let mut starts = Vec::new();
    for entry in &all {
        starts.push(BLOCK_BYTES + usize::try_from(log.stats().bytes_written).unwrap() + BLOCK_BYTES);
        append(&log, A, vec![entry.clone()]);
    }
    drop(log);
    (disk, starts, all)
}

fn flip(disk: &FaultyDisk, path: &Path, at: usize) {
    let mut bytes = disk.contents(path);
    bytes[at] ^= 1 << (at % 8);
    disk.overwrite(path, bytes);
}

fn unchanged(disk: &FaultyDisk, check: impl FnOnce(Result<Log, OpenError>)) {
    let contents = || disk.names().iter().map(|path| disk.contents(path)).collect::<Vec<_>>();
    let (names, before) = (disk.names(), contents());
    check(try_open(disk));
    assert_eq!(names, disk.names());
    assert_eq!(before, contents());
}

#[test]
fn a_tail_cut_at_any_byte_loses_the_newest_batch_at_most() {
    let (disk, starts, all) = batches(4, 900);
    let whole = disk.contents(&segment(1));
    let last = starts[3];
    for cut in last..last + 1024 {
        let torn = disk.duplicate();
        let mut bytes = whole.clone();
        bytes[cut..].fill(0);
        torn.overwrite(&segment(1), bytes);
        let log = open(&torn);
        let recovered = read_all(&log, A).unwrap();
        let is_whole = cut >= last + 32 + 32 + 900;
        assert_eq!(recovered, all[..if is_whole { 4 } else { 3 }], "cut at {cut}");
        // It goes on as if the newest batch had never been.
        let next = recovered.len() as u64 + 1;
        append(&log, A, entries(next..next + 2, 2, 50));
        drop(log);
        let again = read_all(&open(&torn), A).unwrap();
        assert_eq!(again, [recovered, entries(next..next + 2, 2, 50)].concat());
    }
}

#[test]
fn a_flipped_bit_in_a_header_before_the_newest_batch_is_refused_and_nothing_is_changed() {
    let (disk, starts, _) = batches(4, 900);
    for start in &starts[..3] {
        for at in (0..32).chain(36..64) {
            // Nothing depends on the reserved bytes of a batch's header but its checksum.
            let damaged = disk.duplicate();
            flip(&damaged, &segment(1), start + at);
            unchanged(&damaged, |opened| {
                let error = opened.expect_err("damaged");
                let OpenError::Damaged { offset, damage: Damage::Batch { .. }, .. } = &error else {
                    panic!("{error}")
                };
                assert_eq!(*offset, *start as u64);
            });
        }
    }
}

#[test]
fn a_damaged_entry_before_the_newest_batch_is_told_and_can_be_replaced() {
    let (disk, starts, all) = batches(4, 900);
    for (index, start) in (1..4).zip(&starts) {
        for at in [32, 64, 500, 32 + 32 + 899] {
            let damaged = disk.duplicate();
            flip(&damaged, &segment(1), start + at);
            let log = open(&damaged);
            assert_eq!(log.damaged(), [(A, index)]);
            let read = log.read(A, index..5, usize::MAX);
            assert!(matches!(read, Err(ReadError::Damaged { index: at, .. }) if at == index), "{read:?}");
            assert_eq!(log.shard_state(A).last, Some(id(1, 4)));

            let (done, result) = callback();
            let entry = &all[usize::try_from(index).unwrap() - 1];
            let parts = Parts::whole(entry.payload.clone());
            log.keep(A, &[KeptEntry { index, term: 1, parts }], done);
            result.recv().unwrap().unwrap();
            assert_eq!(log.read(A, 1..5, usize::MAX).unwrap(), all);
            drop(log);
            let log = open(&damaged);
            assert!(log.damaged().is_empty());
            assert_eq!(read_all(&log, A).unwrap(), all);
        }
    }
}

#[test]
fn a_damaged_vote_before_the_newest_batch_is_refused() {
    let disk = FaultyDisk::new(1);
    let log = open(&disk);
    let (done, result) = callback();
    log.save_vote(A, Bytes::from_static(b"vote"), done);
    result.recv().unwrap().unwrap();
    let end = BLOCK_BYTES + usize::try_from(log.stats().bytes_written).unwrap() + BLOCK_BYTES;
    append(&log, A, entries(1..2, 1, 10));
    drop(log);
    flip(&disk, &segment(1), end - BLOCK_BYTES + 32 + 32);
    let error = open_error(&disk);
    assert!(matches!(error, OpenError::Damaged { damage: Damage::Batch { .. }, .. }), "{error}");
}

#[test]
fn a_flipped_bit_in_the_newest_batch_looks_like_a_torn_write() {
    let (disk, starts, all) = batches(3, 6000);
    flip(&disk, &segment(1), starts[2] + 5000);
    assert_eq!(read_all(&open(&disk), A).unwrap(), all[..2]);
}

/// Fills three segments and a bit.
fn sealed() -> (FaultyDisk, Vec<Entry>) {
    let disk = FaultyDisk::new(0);
    let log = open(&disk);
    let all = entries(1..42, 1, 5000);
    for entry in &all {
        append(&log, A, vec![entry.clone()]);
    }
    assert!(log.stats().segment_count >= 4);
    drop(log);
    (disk, all)
}

#[test]
fn damage_in_a_sealed_segment_shows_when_it_is_read() {
    let (disk, all) = sealed();
    flip(&disk, &segment(1), 3 * BLOCK_BYTES);
    let log = open(&disk);
    let read = log.read(A, 1..42, usize::MAX);
    let Err(ReadError::Damaged { index: 1, path, .. }) = &read else { panic!("{read:?}") };
    assert_eq!(*path, segment(1));
    assert_eq!(log.read(A, 2..42, usize::MAX).unwrap(), all[1..]);
    assert_eq!(
        log.read(A, 42..43, usize::MAX).unwrap_err().to_string(),
        "entry 42 of shard 1 does not exist"
    );
}

#[test]
fn a_damaged_index_is_made_again_but_not_from_damaged_records() {
    let (disk, all) = sealed();
    let end = usize::try_from(SEGMENT_BYTES_MIN).unwrap();
    for number in 1..=3 {
        for at in [end - 1, end - BLOCK_BYTES + 50] {
            let damaged = disk.duplicate();
            flip(&damaged, &segment(number), at);
            assert_eq!(read_all(&open(&damaged), A).unwrap(), all);
            flip(&damaged, &segment(number), 3 * BLOCK_BYTES);
            assert_eq!(open(&damaged).damaged().len(), 1);
            // The header of the segment's second batch.
            flip(&damaged, &segment(number), 2 * BLOCK_BYTES + 10);
            let opened = open_error(&damaged);
            assert!(matches!(opened, OpenError::Damaged { damage: Damage::Batch { .. }, .. }), "{opened}");
        }
    }
}

fn open_error(disk: &FaultyDisk) -> OpenError {
    try_open(disk).expect_err("something is wrong on disk")
}

#[test]
fn damaged_headers_and_missing_segments_are_refused() {
    let (disk, _) = sealed();
    for number in 1..=4 {
        let damaged = disk.duplicate();
        flip(&damaged, &segment(number), 30);
        unchanged(&damaged, |opened| {
            assert!(matches!(opened, Err(OpenError::Damaged { .. })), "header of {number}");
        });
    }
    for number in 1..=4 {
        let damaged = disk.duplicate();
        damaged.remove(&segment(number)).unwrap();
        let error = open_error(&damaged);
        assert!(matches!(error, OpenError::Damaged { damage: Damage::MissingSegment { .. }, .. }), "{error}");
    }
    let foreign = disk.duplicate();
    let (other, _) = sealed();
    foreign.overwrite(&segment(2), other.contents(&segment(2)));
    let error = open_error(&foreign);
    assert!(matches!(error, OpenError::Damaged { damage: Damage::ForeignLog, .. }), "{error}");
}

#[test]
fn the_only_segments_damaged_header_is_not_taken_for_an_empty_log() {
    let (disk, ..) = batches(2, 100);
    flip(&disk, &segment(1), 40);
    disk.remove(&segment(2)).unwrap();
    unchanged(&disk, |opened| {
        assert!(matches!(opened, Err(OpenError::Damaged { damage: Damage::Header, .. })));
    });
}

#[test]
fn a_newer_version_is_not_taken_for_damage() {
    let (disk, _) = sealed();
    for number in [1, 4] {
        let newer = disk.duplicate();
        let mut bytes = newer.contents(&segment(number));
        bytes[8] = 2;
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..BLOCK_BYTES]);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        newer.overwrite(&segment(number), bytes);
        unchanged(&newer, |opened| {
            assert!(matches!(opened, Err(OpenError::NewerVersion { found: 2, supported: 1, .. })));
        });
    }
}

#[test]
fn a_recycled_file_never_gives_back_what_it_held_before() {
    let disk = FaultyDisk::new(11);
    let log = open(&disk);
    // Every round lays out its segments alike: same sizes, same boundaries.
    let mut next = 1;
    for round in 1..20 {
        let all = entries(next..next + 30, round, 5000);
        for entry in &all {
            append(&log, A, vec![entry.clone()]);
        }
        next += 30;
        log.purge(A, id(round, next - 1));
        give_up(&log);
    }
    append(&log, A, entries(next..next + 3, 20, 5000));
    let spares = log.stats().spare_segment_count;
    drop(log);
    assert!(spares > 0 || disk.names().len() > 1, "files were used again");
    let log = open(&disk);
    assert_eq!(read_all(&log, A).unwrap(), entries(next..next + 3, 20, 5000));
    assert_eq!(log.shard_state(A).purged, Some(id(19, next - 1)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Recovery refuses or recovers, but never panics, and never invents an entry.
    #[test]
    fn arbitrary_bytes_anywhere_are_survived(
        file in 0usize..6,
        at in 0usize..65_536,
        bytes in prop::collection::vec(any::<u8>(), 1..600),
        shortened in prop::option::of(0usize..65_536),
    ) {
        let (disk, all) = sealed();
        let names = disk.names();
        let path = &names[file % names.len()];
        let mut contents = disk.contents(path);
        let end = (at + bytes.len()).min(contents.len());
        contents[at..end].copy_from_slice(&bytes[..end - at]);
        contents.truncate(shortened.unwrap_or(usize::MAX));
        disk.overwrite(path, contents);
        if let Ok(log) = try_open(&disk) {
            let last = log.shard_state(A).last.map_or(0, |last| last.index);
            for index in 1..=last {
                if let Ok(read) = log.read(A, index..index + 1, usize::MAX) {
                    prop_assert_eq!(&read[0], &all[usize::try_from(index).unwrap() - 1]);
                }
            }
        }
    }
}
