//! A log that is looked at is read to its end, judged rightly, and left as it is.

use super::{super::format::BLOCK_BYTES, *};

fn look(disk: &FaultyDisk) -> (Inspection, Vec<RecordReport>) {
    let contents = || disk.names().iter().map(|path| disk.contents(path)).collect::<Vec<_>>();
    let (names, before) = (disk.names(), contents());
    let mut records = Vec::new();
    let inspection = inspect(Arc::new(disk.clone()), &dir(), &mut |record| records.push(record)).unwrap();
    assert_eq!(names, disk.names());
    assert_eq!(before, contents());
    (inspection, records)
}

/// Sealed segments with truncation, a purge past the end, and kept parts in them.
fn lively() -> FaultyDisk {
    let disk = FaultyDisk::new(1);
    let log = open(&disk);
    for index in 1..40 {
        append(&log, A, vec![entry(index, 1, 5000)]);
    }
    log.truncate_after(A, Some(37));
    append(&log, A, entries(38..45, 2, 5000));
    append(&log, B, entries(1..4, 1, 300));
    log.purge(B, id(1, 20));
    append(&log, B, entries(21..30, 2, 300));
    log.purge(A, id(1, 30));
    flush(&log);
    let first = log.survey().remove(0).id;
    let part = |index| Part { index, position: 10, length: 100 };
    log.rewrite(first, &mut |_, range| range.map(part).collect(), &mut |_| {
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    give_up(&log);
    disk
}

#[test]
fn a_sound_log_has_no_faults_and_every_record_is_seen() {
    let disk = lively();
    let (inspection, records) = look(&disk);
    let faults: Vec<_> = inspection.segments.iter().flat_map(|segment| &segment.faults).collect();
    assert!(faults.is_empty(), "{faults:?}");
    let stages: Vec<_> = inspection.segments.iter().map(|segment| segment.stage).collect();
    assert!(stages.contains(&Stage::Sealed) && stages.contains(&Stage::Open), "{stages:?}");
    let entries = records.iter().filter(|record| record.kind == "entry").count() as u64;
    assert_eq!(entries, inspection.segments.iter().map(|segment| segment.entry_count).sum::<u64>());
    assert!(records.iter().any(|record| record.kind == "kept"));
    let shards = inspection.shards.unwrap();
    let log = open(&disk);
    for report in shards {
        assert_eq!(report.state, log.shard_state(report.shard));
        assert!(report.damaged.is_empty());
    }
}

#[test]
fn damage_is_found_wherever_it_is_and_explained() {
    let disk = lively();
    let (sound, records) = look(&disk);
    let victim = records.iter().find(|record| record.kind == "entry").unwrap();
    let path = segment(victim.segment.get());
    let end = disk.contents(&path).len();
    let offset = usize::try_from(victim.offset).unwrap();
    let cases = [
        (offset + 40, "the payload of entry"),
        (offset + 20, "cannot be read"),
        (end - 1, "trailer"),
        (end - BLOCK_BYTES + 40, "index"),
        (5, "the header cannot be read"),
    ];
    for (at, expected) in cases {
        let damaged = disk.duplicate();
        let mut bytes = damaged.contents(&path);
        bytes[at] ^= 4;
        damaged.overwrite(&path, bytes);
        let (inspection, _) = look(&damaged);
        let place = sound.segments.iter().position(|segment| segment.id == victim.segment).unwrap();
        let faults = &inspection.segments[place].faults;
        assert!(faults.iter().any(|fault| fault.what.contains(expected)), "{expected}: {faults:?}");
        assert_eq!(inspection.shards.is_ok(), try_open(&damaged).is_ok(), "{expected}");
    }
}

#[test]
fn an_empty_directory_and_an_unbegun_log_are_no_trouble() {
    let disk = FaultyDisk::new(1);
    disk.create_dir_all(&dir()).unwrap();
    assert!(look(&disk).0.segments.is_empty());
    drop(open(&disk));
    let (inspection, _) = look(&disk);
    assert_eq!(inspection.shards.unwrap().len(), 0);
}
