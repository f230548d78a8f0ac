//! Blocks that go away before older ones do.

use super::*;
use crate::broker::{Live, LivePart, Queue, QueuePart, RestoreError};

const QUEUE: QueueId = QueueId::new(1);
const FIRST: GroupId = GroupId::new(1);
const SECOND: GroupId = GroupId::new(2);

/// Batches are as long as this.
const BYTES: u32 = 10;

/// A queue with a group, and one batch of two messages in each of the entries from 10 on.
fn shard(batches: u64, dead_letter_queue: Option<&str>) -> Shard {
    let mut shard = Shard::new();
    let open = Command::OpenQueue {
        queue: QUEUE,
        name: "orders".into(),
        settings: settings(1, dead_letter_queue),
        revision: 0,
    };
    shard.apply(meta(1, 0), &[open, create_group("first", Position::First)]);
    for index in 10..10 + batches {
        let block = BlockSpan { position: 7, length: BYTES };
        apply_one(
            &mut shard,
            index,
            0,
            Command::Publish {
                queue: QUEUE,
                producer: None,
                count: 2,
                block,
                runs: Vec::new(),
                partitions: 0,
            },
        );
    }
    shard
}

fn create_group(name: &str, start: Position) -> Command {
    Command::CreateGroup { queue: QUEUE, name: name.into(), start, filter: b"some".to_vec() }
}

fn settle(shard: &mut Shard, group: GroupId, acks: &[OffsetRange], returns: &[OffsetRange]) {
    let back = |&range| Return { range, attempt: 1, not_before_ms: 0, rejected: false };
    let returns = returns.iter().map(back).collect();
    let settle = Command::Settle {
        queue: QUEUE,
        group,
        acks: acks.to_vec(),
        returns,
        expired: Vec::new(),
        seek_count: 0,
    };
    assert_eq!(apply_one(shard, 1_000_000, 0, settle), Outcome::Settled);
}

fn ack(shard: &mut Shard, group: GroupId, first: u64, count: u64) {
    settle(shard, group, &[range_of(first, count)], &[]);
}

fn queue(shard: &Shard) -> &Queue {
    shard.queue(QUEUE).unwrap()
}

/// The entries that are needed, which must also be so after a restart.
fn live_indexes(shard: &Shard) -> Vec<u64> {
    let indexes = |shard: &Shard| -> Vec<_> {
        shard.live_parts(0..u64::MAX).into_iter().map(|part| part.index).collect()
    };
    let live = indexes(shard);
    assert_eq!(indexes(&Shard::restore(shard.records()).unwrap()), live);
    live
}

#[test]
fn an_old_message_keeps_only_itself() {
    const BATCHES: u64 = 50_000;
    let mut shard = shard(BATCHES, None);
    shard.take_changes();
    let full_bytes = queue(&shard).block_memory_bytes();
    // All but the first message, one by one.
    for message in 1..2 * BATCHES {
        ack(&mut shard, FIRST, message, 1);
    }
    let part = LivePart { index: 10, position: 7, length: BYTES };
    assert_eq!(shard.live_parts(0..u64::MAX), [part]);
    assert_eq!(shard.live_in(&[0..u64::MAX, 11..u64::MAX]), [Live { bytes: 10, parts: 1 }, Live::default()]);
    assert_eq!((shard.next_live_index(10), shard.next_live_index(11)), (Some(10), None));
    assert_eq!((queue(&shard).message_count(), queue(&shard).kept_bytes()), (2, 10));
    let changes = shard.take_changes();
    let written = changes.iter().filter(|(_, record)| matches!(record, Some(Record::Page(_))));
    assert_eq!(written.count(), 1);
    let gone = changes.iter().filter(|(_, record)| record.is_none()).count() as u64;
    assert_eq!(gone, BATCHES / 256, "pages that have no blocks any more");
    let bytes = queue(&shard).block_memory_bytes();
    assert!(bytes < 10_000 && bytes < full_bytes / 10, "{bytes} of {full_bytes} bytes for one block");
}

#[test]
fn a_block_is_kept_for_the_last_group_that_needs_it() {
    let mut shard = shard(5, None);
    apply_one(&mut shard, 1_000, 0, create_group("second", Position::First));
    ack(&mut shard, FIRST, 3, 6);
    assert_eq!(live_indexes(&shard), [10, 11, 12, 13, 14]);
    // The second group's last ack of each block decides: of that with messages 4 and 5, and not of its neighbours.
    ack(&mut shard, SECOND, 5, 2);
    assert_eq!(live_indexes(&shard), [10, 11, 12, 13, 14]);
    ack(&mut shard, SECOND, 4, 1);
    assert_eq!(live_indexes(&shard), [10, 11, 13, 14]);
    assert_eq!(shard.locate(QUEUE, Offset::new(4), 1), None);
    assert_eq!(queue(&shard).next_kept(Offset::new(4)), Some(Offset::new(6)));
    // Without the second group, what the first one has acked is needed by nobody.
    apply_one(&mut shard, 1_001, 0, Command::DeleteGroup { queue: QUEUE, group: SECOND });
    assert_eq!(live_indexes(&shard), [10, 11, 14]);
    assert_eq!(queue(&shard).first_offset(), Offset::ZERO);
}

#[test]
fn a_new_group_does_not_wait_for_what_is_gone() {
    let mut shard = shard(5, None);
    ack(&mut shard, FIRST, 2, 2);
    ack(&mut shard, FIRST, 6, 4);
    apply_one(&mut shard, 1_000, 0, create_group("second", Position::First));
    let group = queue(&shard).group(SECOND).unwrap();
    let open: Vec<_> = group.deliverable().iter().map(|(range, _)| range).collect();
    assert_eq!(open, [range_of(0, 2), range_of(4, 2)]);
    assert_eq!((group.untouched_from(), group.unacked_count(Offset::new(10))), (Offset::new(10), 4));
    ack(&mut shard, SECOND, 0, 2);
    assert_eq!(queue(&shard).group(SECOND).unwrap().acked_floor(), Offset::new(4));
    ack(&mut shard, SECOND, 4, 2);
    assert_eq!(queue(&shard).group(SECOND).unwrap().acked_floor(), Offset::new(10));
    assert_eq!(live_indexes(&shard), [10, 12], "the first group still needs them");
    ack(&mut shard, FIRST, 0, 6);
    assert_eq!(live_indexes(&shard), [0; 0]);
}

#[test]
fn holes_outlive_the_groups_that_made_them() {
    let mut shard = shard(5, None);
    ack(&mut shard, FIRST, 4, 2);
    ack(&mut shard, FIRST, 8, 2);
    apply_one(&mut shard, 1_000, 0, Command::DeleteGroup { queue: QUEUE, group: FIRST });
    assert_eq!(live_indexes(&shard), [10, 11, 13]);
    assert_eq!((queue(&shard).message_count(), queue(&shard).kept_bytes()), (6, 30));
    let block = BlockSpan { position: 7, length: BYTES };
    apply_one(
        &mut shard,
        1_001,
        0,
        Command::Publish { queue: QUEUE, producer: None, count: 2, block, runs: Vec::new(), partitions: 0 },
    );
    apply_one(&mut shard, 1_002, 0, create_group("second", Position::First));
    ack(&mut shard, SECOND, 0, 4);
    ack(&mut shard, SECOND, 6, 2);
    assert_eq!(queue(&shard).first_offset(), Offset::new(10));
    assert_eq!(live_indexes(&shard), [1_001]);
}

#[test]
fn a_dead_letter_keeps_its_block_until_it_is_moved() {
    let mut shard = shard(3, Some("dead"));
    settle(&mut shard, FIRST, &[range_of(2, 1), range_of(4, 2)], &[range_of(3, 1)]);
    assert_eq!(live_indexes(&shard), [10, 11]);
    assert!(shard.locate(QUEUE, Offset::new(3), 1).is_some());
    let moved = Command::DeadLettersMoved { queue: QUEUE, group: FIRST, up_to: Sequence::FIRST };
    assert_eq!(apply_one(&mut shard, 1_000, 0, moved), Outcome::DeadLettersMoved);
    assert_eq!(live_indexes(&shard), [10]);
}

#[test]
fn a_message_given_up_without_a_dead_letter_queue_is_not_kept() {
    let mut shard = shard(3, None);
    settle(&mut shard, FIRST, &[], &[range_of(2, 2)]);
    assert_eq!(live_indexes(&shard), [10, 12]);
}

#[test]
fn purging_empties_a_queue_with_holes() {
    let mut shard = shard(3, None);
    ack(&mut shard, FIRST, 2, 2);
    let purge = Command::PurgeQueue { queue: QUEUE };
    assert_eq!(apply_one(&mut shard, 1_000, 0, purge), Outcome::Purged { messages: 4 });
    assert_eq!(live_indexes(&shard), [0; 0]);
}

#[test]
fn a_checkpoint_has_the_same_holes() {
    let mut core = Checkpointed { shard: shard(600, None), ..Checkpointed::default() };
    core.checkpoint();
    ack(&mut core.shard, FIRST, 600, 2);
    let page = |number| RecordKey::Queue { queue: QUEUE, part: QueuePart::Page(number) };
    let written: Vec<_> = core.shard.take_changes().into_iter().map(|(key, _)| key).collect();
    assert!(written.contains(&page(1)) && !written.contains(&page(0)) && !written.contains(&page(2)));
    // Page 1 goes as a whole.
    ack(&mut core.shard, FIRST, 512, 512);
    let changes = core.shard.take_changes();
    assert!(changes.contains(&(page(1), None)));
    assert_eq!(live_indexes(&core.shard).len(), 600 - 256);
}

#[test]
fn a_hole_that_a_group_needs_is_refused() {
    let mut shard = shard(3, None);
    ack(&mut shard, FIRST, 2, 2);
    let with = |change: fn(&mut Record)| {
        let mut records: Vec<_> = shard.records().collect();
        records.iter_mut().for_each(|(_, record)| change(record));
        Shard::restore(records.into_iter()).err()
    };
    assert_eq!(with(|_| {}), None);
    let changes: [fn(&mut Record); 6] = [
        |record| {
            if let Record::Group(group) = record {
                group.acked.clear();
            }
        },
        |record| {
            if let Record::Group(group) = record {
                group.acked[0] = range_of(0, 4);
            }
        },
        |record| {
            if let Record::Group(group) = record {
                group.acked_floor = Offset::new(1);
            }
        },
        |record| {
            if let Record::Page(page) = record {
                page.blocks.pop();
            }
        },
        |record| {
            if let Record::Queue(queue) = record {
                queue.message_count += 1;
            }
        },
        |record| {
            if let Record::Queue(queue) = record {
                queue.next_offset = Offset::new(5);
            }
        },
    ];
    for change in changes {
        assert!(matches!(with(change), Some(RestoreError::Contradiction { .. })));
    }
}

#[test]
fn what_is_left_of_a_range_is_found_block_by_block() {
    let mut shard = shard(4, None);
    let left = |shard: &Shard, first, count| -> Vec<_> {
        let slices = queue(shard).locate_kept(range_of(first, count)).into_iter();
        slices.map(|slice| (slice.index, slice.skip, slice.take)).collect()
    };
    assert_eq!(left(&shard, 1, 6), [(10, 1, 1), (11, 0, 2), (12, 0, 2), (13, 0, 1)]);
    ack(&mut shard, FIRST, 2, 2);
    assert_eq!(left(&shard, 1, 6), [(10, 1, 1), (12, 0, 2), (13, 0, 1)]);
    assert_eq!(left(&shard, 2, 2), []);
    ack(&mut shard, FIRST, 0, 1);
    assert_eq!(left(&shard, 0, 100), [(10, 1, 1), (12, 0, 2), (13, 0, 2)]);
}
