//! What the limits do, and what the observer hears.

use skein_proto::limits::{PRODUCER_BATCHES_IN_FLIGHT_MAX, QUEUE_GROUPS_MAX};

use super::*;
use crate::broker::{Catalog, Event, PRODUCER_IDLE_MAX_MS, QUEUE_PRODUCERS_MAX, QueuePart, RestoreError};

const QUEUE: QueueId = QueueId::new(1);
const GROUP: GroupId = GroupId::new(1);

fn publish(producer: u64, sequence: u64) -> Command {
    let producer = Some((ProducerId::new(producer), Sequence::new(sequence)));
    Command::Publish {
        queue: QUEUE,
        producer,
        count: 1,
        block: BlockSpan { position: 0, length: 1 },
        runs: Vec::new(),
        partitions: 0,
    }
}

fn publish_many(count: u32) -> Command {
    Command::Publish {
        queue: QUEUE,
        producer: None,
        count,
        block: BlockSpan { position: 0, length: 1 },
        runs: Vec::new(),
        partitions: 0,
    }
}

fn settle(acks: &[OffsetRange], returns: &[Return]) -> Command {
    Command::Settle {
        queue: QUEUE,
        group: GROUP,
        acks: acks.to_vec(),
        returns: returns.to_vec(),
        expired: Vec::new(),
        seek_count: 0,
    }
}

fn back(range: OffsetRange, attempt: u32) -> Return {
    Return { range, attempt, not_before_ms: 0, rejected: false }
}

fn shard_with_queue(dead_letter_queue: Option<&str>) -> Shard {
    let mut shard = Shard::new();
    let settings = settings(2, dead_letter_queue);
    apply_one(
        &mut shard,
        1,
        0,
        Command::OpenQueue { queue: QUEUE, name: "orders".into(), settings, revision: 0 },
    );
    let name = "mail".into();
    apply_one(
        &mut shard,
        2,
        0,
        Command::CreateGroup { queue: QUEUE, name, start: Position::First, filter: Vec::new() },
    );
    shard
}

fn published(first_offset: u64, duplicate: bool) -> Outcome {
    Outcome::Published { first_offset: Offset::new(first_offset), count: 1, duplicate }
}

fn gap(expected: u64) -> Outcome {
    Outcome::SequenceGap { expected: Sequence::new(expected) }
}

#[test]
fn as_many_batches_are_remembered_as_may_be_in_flight() {
    let mut shard = shard_with_queue(None);
    let last = PRODUCER_BATCHES_IN_FLIGHT_MAX as u64 + 5;
    for sequence in 1..=last {
        assert_eq!(apply_one(&mut shard, 3, 0, publish(7, sequence)), published(sequence - 1, false));
    }
    assert_eq!(apply_one(&mut shard, 3, 0, publish(7, last)), published(last - 1, true));
    assert_eq!(apply_one(&mut shard, 3, 0, publish(7, 6)), published(5, true));
    assert_eq!(apply_one(&mut shard, 3, 0, publish(7, 5)), Outcome::SequenceTooOld);
    assert_eq!(apply_one(&mut shard, 3, 0, publish(7, 0)), Outcome::SequenceTooOld);
    assert_eq!(apply_one(&mut shard, 3, 0, publish(7, last + 2)), gap(last + 1));
    assert_eq!(apply_one(&mut shard, 3, 0, publish(8, 2)), gap(1));
}

/// Entries every minute until the leader's clock says `until_ms`.
fn let_pass(shard: &mut Shard, until_ms: u64) {
    while shard.time_ms() < until_ms {
        shard.apply(meta(3, until_ms.min(shard.time_ms() + 60_000)), &[]);
    }
}

#[test]
fn a_producer_is_forgotten_after_a_day() {
    let mut shard = shard_with_queue(None);
    apply_one(&mut shard, 3, 10, publish(7, 1));
    // Using it, even for a duplicate, keeps it.
    let_pass(&mut shard, PRODUCER_IDLE_MAX_MS);
    assert_eq!(apply_one(&mut shard, 4, 0, publish(7, 1)), published(0, true));
    let_pass(&mut shard, 2 * PRODUCER_IDLE_MAX_MS - 1);
    assert_eq!(apply_one(&mut shard, 5, 0, publish(7, 2)), published(1, false));
    let_pass(&mut shard, 3 * PRODUCER_IDLE_MAX_MS - 1);
    assert_eq!(apply_one(&mut shard, 6, 0, publish(7, 3)), gap(1));
}

#[test]
fn a_clock_that_jumps_ahead_forgets_no_producer() {
    let mut shard = shard_with_queue(None);
    let noon = 20_000 * PRODUCER_IDLE_MAX_MS;
    apply_one(&mut shard, 3, noon, publish(7, 1));
    let jumped = noon + 7 * PRODUCER_IDLE_MAX_MS;
    assert_eq!(apply_one(&mut shard, 4, jumped, publish(7, 2)), published(1, false));
    let block = shard.locate(QUEUE, Offset::new(1), 1).unwrap();
    assert_eq!(
        (shard.time_ms(), block.published_at_ms),
        (jumped, jumped),
        "what people see is the wall clock"
    );
    // When the clock has been set right, nothing passes until it gets there, and no more than that afterwards.
    let mut shard = Shard::restore(shard.records()).unwrap();
    assert_eq!(apply_one(&mut shard, 5, noon + 9, publish(7, 3)), published(2, false));
    let_pass(&mut shard, jumped + PRODUCER_IDLE_MAX_MS - 1);
    assert_eq!(apply_one(&mut shard, 6, noon, publish(8, 1)), published(3, false));
    assert_eq!(apply_one(&mut shard, 7, jumped + PRODUCER_IDLE_MAX_MS, publish(7, 4)), gap(1));
}

#[test]
fn the_longest_idle_producer_makes_room() {
    let mut shard = shard_with_queue(None);
    let count = QUEUE_PRODUCERS_MAX as u64;
    for producer in 1..=count {
        apply_one(&mut shard, 3, producer, publish(producer, 1));
    }
    apply_one(&mut shard, 4, count + 1, publish(1, 2));
    apply_one(&mut shard, 4, count + 1, publish(count + 1, 1));
    assert_eq!(apply_one(&mut shard, 5, count + 1, publish(2, 2)), gap(1));
    assert_eq!(apply_one(&mut shard, 5, count + 1, publish(1, 3)), published(count + 2, false));
    assert_eq!(apply_one(&mut shard, 5, count + 1, publish(3, 2)), published(count + 3, false));
}

#[test]
fn groups_are_bounded_and_their_ids_not_used_again() {
    let mut shard = shard_with_queue(None);
    let create = |name: &str| Command::CreateGroup {
        queue: QUEUE,
        name: name.to_owned(),
        start: Position::First,
        filter: Vec::new(),
    };
    apply_one(&mut shard, 3, 0, Command::DeleteGroup { queue: QUEUE, group: GROUP });
    for number in 0..QUEUE_GROUPS_MAX as u32 {
        let group = GroupId::new(number + 2);
        let outcome = apply_one(&mut shard, 4, 0, create(&number.to_string()));
        assert_eq!(outcome, Outcome::GroupCreated { group, created: true });
    }
    assert_eq!(apply_one(&mut shard, 5, 0, create("more")), Outcome::TooManyGroups);
    let existing = Outcome::GroupCreated { group: GroupId::new(2), created: false };
    assert_eq!(apply_one(&mut shard, 5, 0, create("0")), existing);
}

#[test]
fn a_closed_queue_never_opens_again() {
    let mut shard = shard_with_queue(None);
    let open =
        |queue| Command::OpenQueue { queue, name: "orders".into(), settings: settings(2, None), revision: 0 };
    let close = |queue| Command::CloseQueue { queue };
    assert_eq!(apply_one(&mut shard, 3, 0, open(QUEUE)), Outcome::Opened, "it is open");
    assert_eq!(apply_one(&mut shard, 3, 0, close(QUEUE)), Outcome::Closed);
    assert_eq!(apply_one(&mut shard, 3, 0, close(QUEUE)), Outcome::QueueNotFound);
    let never_opened = QueueId::new(3);
    assert_eq!(apply_one(&mut shard, 3, 0, close(never_opened)), Outcome::QueueNotFound);
    for mut shard in [Shard::restore(shard.records()).unwrap(), shard] {
        shard.observe(true);
        for closed in [QUEUE, never_opened] {
            assert_eq!(apply_one(&mut shard, 4, 0, open(closed)), Outcome::QueueNotFound);
            assert!(shard.queue(closed).is_none());
        }
        assert_eq!(shard.take_events(), []);
        assert_eq!(apply_one(&mut shard, 4, 0, open(QueueId::new(2))), Outcome::Opened);
    }
}

#[test]
fn without_groups_everything_is_kept() {
    let mut shard = shard_with_queue(None);
    apply_one(&mut shard, 3, 0, publish_many(4));
    apply_one(&mut shard, 4, 0, settle(&[range_of(0, 1)], &[]));
    apply_one(&mut shard, 5, 0, Command::DeleteGroup { queue: QUEUE, group: GROUP });
    let queue = shard.queue(QUEUE).unwrap();
    assert_eq!((queue.first_offset(), queue.message_count()), (Offset::new(1), 3));
    assert_eq!(shard.next_live_index(0), Some(3));
}

#[test]
fn ranges_beyond_all_offsets_do_no_harm() {
    let mut shard = shard_with_queue(None);
    apply_one(&mut shard, 3, 0, publish_many(4));
    let endless = range_of(2, u64::MAX);
    let beyond = range_of(u64::MAX, u64::MAX);
    let outcome =
        apply_one(&mut shard, 4, 0, settle(&[endless, beyond], &[back(beyond, 1), back(endless, u32::MAX)]));
    assert_eq!(outcome, Outcome::Settled);
    let group = shard.queue(QUEUE).unwrap().group(GROUP).unwrap();
    assert_eq!(group.unacked_count(Offset::new(4)), 2);
    let moved = Command::DeadLettersMoved { queue: QUEUE, group: GROUP, up_to: Sequence::new(u64::MAX) };
    assert_eq!(apply_one(&mut shard, 5, 0, moved), Outcome::DeadLettersMoved);
}

#[test]
fn the_observer_hears_what_can_be_delivered() {
    let mut shard = shard_with_queue(Some("dead"));
    apply_one(&mut shard, 3, 0, publish_many(4));
    assert_eq!(shard.take_events(), [], "nobody observes");
    shard.observe(true);
    let commands = [
        publish_many(4),
        settle(&[range_of(0, 2)], &[back(range_of(1, 3), 1)]),
        publish_many(2),
        settle(&[], &[back(range_of(3, 2), 2)]),
        Command::PurgeQueue { queue: QUEUE },
        Command::DeleteGroup { queue: QUEUE, group: GROUP },
        Command::DeleteGroup { queue: QUEUE, group: GROUP },
    ];
    shard.apply(meta(4, 0), &commands);
    let returned =
        Event::Returned { queue: QUEUE, group: GROUP, range: range_of(2, 2), attempts: 1, not_before_ms: 0 };
    let given_up = |offset| Event::GivenUp { queue: QUEUE, group: GROUP, range: range_of(offset, 1) };
    let expected = [
        returned,
        given_up(3),
        given_up(4),
        Event::DeadLettersPending { queue: QUEUE, group: GROUP },
        Event::Purged { queue: QUEUE, below: Offset::new(10) },
        Event::GroupDeleted { queue: QUEUE, group: GROUP },
        Event::Appended { queue: QUEUE, next_offset: Offset::new(10) },
    ];
    assert_eq!(shard.take_events(), expected);
    shard.apply(meta(5, 0), &[Command::CloseQueue { queue: QUEUE }]);
    assert_eq!(shard.take_events(), [Event::QueueClosed { queue: QUEUE }]);
    shard.observe(false);
    shard.apply(meta(6, 0), &[publish_many(1)]);
    assert_eq!(shard.take_events(), []);
}

#[test]
fn a_checkpoint_writes_only_what_changed() {
    let mut shard = shard_with_queue(None);
    let other = QueueId::new(2);
    apply_one(
        &mut shard,
        3,
        0,
        Command::OpenQueue { queue: other, name: "b".into(), settings: settings(1, None), revision: 0 },
    );
    apply_one(&mut shard, 3, 0, publish(7, 1));
    shard.take_changes();
    apply_one(&mut shard, 4, 0, settle(&[range_of(0, 1)], &[]));
    let keys: Vec<_> =
        shard.take_changes().into_iter().map(|(key, record)| (key, record.is_some())).collect();
    let part = |part| RecordKey::Queue { queue: QUEUE, part };
    let expected = [
        (RecordKey::Shard, true),
        (part(QueuePart::Head), true),
        (part(QueuePart::Group(GROUP)), true),
        (part(QueuePart::Page(0)), false),
    ];
    assert_eq!(keys, expected);
}

#[test]
fn records_that_contradict_each_other_are_refused() {
    let mut shard = shard_with_queue(None);
    apply_one(&mut shard, 3, 0, publish(7, 1));
    let all: Vec<_> = shard.records().collect();
    let without = |missing: RecordKey| {
        let records = all.iter().filter(|(key, _)| *key != missing).cloned();
        Shard::restore(records).err()
    };
    let part = |part| RecordKey::Queue { queue: QUEUE, part };
    assert!(matches!(without(part(QueuePart::Head)), Some(RestoreError::Orphan(_))));
    assert!(matches!(without(part(QueuePart::Page(0))), Some(RestoreError::Contradiction { .. })));
    assert!(Catalog::restore(all.iter().cloned()).is_err());
    let swapped = (RecordKey::Shard, all[1].1.clone());
    assert!(matches!(Shard::restore([swapped].into_iter()), Err(RestoreError::Misplaced(RecordKey::Shard))));
}

#[test]
fn what_is_remembered_of_routed_batches_is_bounded() {
    let mut shard = shard_with_queue(None);
    // Every second message, in as many batches as a producer may have on their way: half a million ranges.
    let each = |producer: u64, sequence: u64| Command::PublishEach {
        queue: QUEUE,
        producer: Some((ProducerId::new(producer), Sequence::new(sequence))),
        block: BlockSpan { position: 0, length: 8_000 },
        messages: (0..8_000)
            .map(|place| EachMessage {
                place: 2 * place,
                length: 1,
                properties: Properties::default(),
                delay_ms: 0,
                id: None,
            })
            .collect(),
        routed: Some(Routed { follows: None }),
        partitions: 0,
    };
    let duplicates = |shard: &mut Shard, producer| match shard.apply(meta(9, 0), &[each(producer, 1)])[..] {
        [Outcome::Published { duplicate, .. }] => duplicate,
        ref other => panic!("{other:?}"),
    };
    for producer in 1..=2 {
        for sequence in 1..=PRODUCER_BATCHES_IN_FLIGHT_MAX as u64 {
            shard.apply(meta(9, 0), &[each(producer, sequence)]);
        }
    }
    assert!(!duplicates(&mut shard, 1), "the first one was forgotten when there were a million");
    assert!(duplicates(&mut shard, 2), "the other one was not");
}

#[test]
fn a_partition_that_is_one_of_more_takes_nothing_from_those_who_know_of_fewer() {
    let mut shard = Shard::new();
    let open = |partitions, revision| {
        let settings = Settings { partitions, ..settings(2, None) };
        Command::OpenQueue { queue: QUEUE, name: "a/0".into(), settings, revision }
    };
    let publish = |sequence, partitions| match publish(1, sequence) {
        Command::Publish { queue, producer, count, block, runs, .. } => {
            Command::Publish { queue, producer, count, block, runs, partitions }
        }
        other => other,
    };
    let stored =
        |first, duplicate| Outcome::Published { first_offset: Offset::new(first), count: 1, duplicate };
    let commands = [
        (open(2, 1), Outcome::Opened),
        (publish(1, 2), stored(0, false)),
        (open(4, 2), Outcome::Opened),
        // It was stored when there were two, and stays so.
        (publish(1, 2), stored(0, true)),
        (publish(2, 2), Outcome::PartitionsChanged),
        (publish(3, 2), Outcome::SequenceGap { expected: Sequence::new(2) }),
        (publish(2, 4), stored(1, false)),
        (publish(3, 0), stored(2, false)),
        (open(5, 3), Outcome::Opened),
    ];
    for (command, expected) in commands {
        assert_eq!(shard.apply(meta(1, 0), &[command]), [expected]);
    }
    let restored = Shard::restore(shard.records()).unwrap();
    for shard in [&shard, &restored] {
        let queue = shard.queue(QUEUE).unwrap();
        let moved_before = [0, 1, 2, 3, 4, 5].map(|newer| queue.moved_before(newer).map(Offset::get));
        assert_eq!(moved_before, [Some(0), Some(0), Some(1), Some(1), Some(3), None]);
    }
}

#[test]
fn a_new_partition_waits_for_what_older_ones_have_but_not_for_what_is_scheduled() {
    let mut shard = Shard::new();
    let open = |partitions, revision| {
        let settings = Settings { partitions, ..settings(2, None) };
        Command::OpenQueue { queue: QUEUE, name: "a/0".into(), settings, revision }
    };
    let scheduled = Command::Publish {
        queue: QUEUE,
        producer: None,
        count: 1,
        block: BlockSpan { position: 0, length: 1 },
        runs: vec![BatchRun {
            count: 1,
            length: 1,
            properties: Properties { deliver_at_ms: 500, ..Properties::default() },
            delay_ms: 0,
        }],
        partitions: 0,
    };
    let group =
        Command::CreateGroup { queue: QUEUE, name: "g".into(), start: Position::First, filter: Vec::new() };
    shard.apply(meta(1, 0), &[open(2, 1), group, scheduled, publish_many(2)]);
    let is_done = |shard: &Shard, now_ms| shard.queue(QUEUE).unwrap().is_done_with_moved(2, "g", now_ms);
    assert!(!is_done(&shard, 0), "it has not heard of the third one");
    shard.apply(meta(2, 0), &[open(3, 2), publish_many(9)]);
    assert!(!is_done(&shard, 0), "two messages are waiting");
    shard.apply(meta(3, 0), &[settle(&[range_of(1, 2)], &[])]);
    assert!(is_done(&shard, 499) && !is_done(&shard, 500), "one is due then");
    assert!(shard.queue(QUEUE).unwrap().is_done_with_moved(2, "another", 500));
    shard.apply(meta(4, 0), &[settle(&[range_of(0, 1)], &[])]);
    assert!(is_done(&shard, 500));
}
