//! The core against a naive model, against itself, and against its own checkpoints.

mod blocks;
mod catalog;
mod holes;
mod model;
mod scenarios;

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use proptest::{collection::vec, prelude::*};
use skein_proto::ids::{GroupId, Offset, ProducerId, QueueId, Sequence};

use self::model::Model;
use super::{
    BatchRun, BlockSpan, Command, EachMessage, EntryMeta, IdHash, Outcome, Overflow, PRODUCER_IDLE_MAX_MS,
    PageRecord, Position, Properties, PublishPart, QueuePart, Record, RecordKey, Retention, Return, Routed,
    SavedPages, Settings, Shard, Spill,
};
use crate::offsets::OffsetRange;

/// A shard whose checkpoints go into a map.
#[derive(Default)]
struct Checkpointed {
    shard: Shard,
    store: BTreeMap<RecordKey, Record>,
}

impl Checkpointed {
    fn checkpoint(&mut self) {
        for (key, record) in self.shard.take_changes() {
            match record {
                Some(record) => self.store.insert(key, record),
                None => self.store.remove(&key),
            };
        }
        let stored: Vec<_> = self.store.keys().copied().filter(|key| *key != RecordKey::Shard).collect();
        let live: Vec<_> =
            self.shard.records().map(|(key, _)| key).filter(|key| *key != RecordKey::Shard).collect();
        assert_eq!(stored, live, "the checkpoint holds other records than the state");
        assert!(self.shard.take_changes().is_empty(), "a checkpoint leaves changes behind");
        self.shard.spill(&self.spill());
    }

    fn restart(&mut self) {
        self.checkpoint();
        let records = self.store.clone().into_iter();
        self.shard =
            Shard::restore_within(Some(&self.spill()), records).expect("a checkpoint can be restored");
    }

    /// Nothing stays in memory that can be spilled.
    fn spill(&self) -> Spill {
        Spill { pages: Arc::new(SavedRecords(self.store.clone())), keep_bytes: 0 }
    }
}

#[derive(Debug)]
struct SavedRecords(BTreeMap<RecordKey, Record>);

impl SavedPages for SavedRecords {
    fn read(&self, queue: QueueId, page: u64) -> PageRecord {
        match &self.0[&RecordKey::Queue { queue, part: QueuePart::Page(page) }] {
            Record::Page(page) => page.clone(),
            other => panic!("{other:?} in the place of a page"),
        }
    }
}

/// One entry, and what happens to the process after it.
#[derive(Debug, Clone)]
struct Step {
    time_ms: u64,
    commands: Vec<Command>,
    after: After,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum After {
    Nothing,
    Checkpoint,
    Restart,
}

fn dump(shard: &Shard) -> Vec<(RecordKey, Record)> {
    shard.records().collect()
}

fn settings(max_deliveries: u32, dead_letter_queue: Option<&str>) -> Settings {
    let dead_letter_queue = dead_letter_queue.map(str::to_owned);
    Settings { max_deliveries, dead_letter_queue, ..Settings::default() }
}

fn acks_of(queue: QueueId, group: GroupId, acks: Vec<OffsetRange>) -> Command {
    Command::Settle { queue, group, acks, returns: Vec::new(), expired: Vec::new(), seek_count: 0 }
}

fn range_of(first: u64, count: u64) -> OffsetRange {
    OffsetRange::new(Offset::new(first), count)
}

fn queue_id() -> impl Strategy<Value = QueueId> {
    prop_oneof![4 => Just(1), 1 => 2..4_u64].prop_map(QueueId::new)
}

/// Rarely the first one, with which most of what happens would be over.
fn closed_queue_id() -> impl Strategy<Value = QueueId> {
    prop_oneof![1 => Just(1), 9 => 2..4_u64].prop_map(QueueId::new)
}

fn group_id() -> impl Strategy<Value = GroupId> {
    (1..4_u32).prop_map(GroupId::new)
}

fn range() -> impl Strategy<Value = OffsetRange> {
    (0..40_u64, 0..12_u64).prop_map(|(first, count)| range_of(first, count))
}

fn any_settings() -> impl Strategy<Value = Settings> {
    let limit = |max: u64| prop_oneof![2 => Just(None), 1 => (1..max).prop_map(Some)];
    let dedup_window = limit(600);
    let choices = (any::<(bool, bool, bool)>(), 0..4_u32);
    (1..4_u32, choices, limit(12), limit(400), limit(900), limit(900), dedup_window).prop_map(
        |(
            max,
            ((dead, keeps, drops), partitions),
            max_messages,
            max_bytes,
            max_age_ms,
            message_ttl_ms,
            dedup_window_ms,
        )| Settings {
            dedup_window_ms,
            partitions,
            max_messages,
            max_bytes,
            message_ttl_ms,
            max_age_ms: max_age_ms.filter(|_| keeps),
            retention: if keeps { Retention::Limits } else { Retention::UntilAcked },
            overflow: if drops { Overflow::DropOldest } else { Overflow::RejectPublish },
            ..settings(max, dead.then_some("dead"))
        },
    )
}

fn position() -> impl Strategy<Value = Position> {
    prop_oneof![
        Just(Position::First),
        Just(Position::Next),
        (0..40_u64).prop_map(|offset| Position::Offset(Offset::new(offset))),
        (0..1_000_u64).prop_map(Position::Time),
    ]
}

/// A batch in parts: mostly in none, which means that all of it is ordinary.
fn runs() -> impl Strategy<Value = Vec<BatchRun>> {
    let run = (1..4_u32, 1..30_u32, (0..3_u64, 0..3_u64, 0..3_u64, 0..3_u8)).prop_map(
        |(count, length, (ttl, deliver_at, delay, priority))| BatchRun {
            count,
            length,
            properties: Properties {
                ttl_ms: 300 * ttl,
                deliver_at_ms: 400 * deliver_at,
                priority,
                key_slot: priority.into(),
            },
            delay_ms: 250 * delay,
        },
    );
    prop_oneof![3 => Just(Vec::new()), 1 => vec(run, 1..4)]
}

/// Mostly none, and few enough that they often are as many as the queue has.
fn partitions() -> impl Strategy<Value = u32> {
    prop_oneof![3 => Just(0), 1 => 1..4_u32]
}

fn publish() -> impl Strategy<Value = Command> {
    let producer = prop::option::of((1..3_u64, 1..8_u64))
        .prop_map(|producer| producer.map(|(id, sequence)| (ProducerId::new(id), Sequence::new(sequence))));
    let block = (0..1_000_u32, 1..100_u32).prop_map(|(position, length)| BlockSpan { position, length });
    let publish = (queue_id(), producer, 0..6_u32, block, runs(), partitions());
    publish.prop_map(|(queue, producer, count, block, runs, partitions)| {
        if runs.is_empty() {
            return Command::Publish { queue, producer, count, block, runs, partitions };
        }
        let count = runs.iter().map(|run| run.count).sum();
        let block = BlockSpan { length: runs.iter().map(|run| run.length).sum(), ..block };
        Command::Publish { queue, producer, count, block, runs, partitions }
    })
}

/// Each queue once.
fn publish_together() -> impl Strategy<Value = Command> {
    vec(publish(), 1..4).prop_map(|publishes| {
        let mut parts: Vec<PublishPart> = Vec::new();
        let mut producer = None;
        for publish in publishes {
            let Command::Publish { queue, producer: of_this, count, block, runs, .. } = publish else {
                continue;
            };
            producer = producer.or(of_this);
            if parts.iter().all(|part| part.queue != queue) {
                parts.push(PublishPart { queue, count, block, runs });
            }
        }
        Command::PublishTogether { producer, parts }
    })
}

fn publish_each() -> impl Strategy<Value = Command> {
    let producer = prop::option::of((1..3_u64, 1..8_u64))
        .prop_map(|producer| producer.map(|(id, sequence)| (ProducerId::new(id), Sequence::new(sequence))));
    let follows = prop_oneof![2 => Just(None), 1 => (1..8_u64).prop_map(|last| Some(Sequence::new(last)))];
    let routed = prop::option::of(follows.prop_map(|follows| Routed { follows }));
    let message = (1..3_u32, 1..30_u32, 0..2_u8, prop::option::of(0..20_u8));
    (queue_id(), producer, routed, 0..1_000_u32, vec(message, 1..6), partitions()).prop_map(
        |(queue, producer, routed, position, messages, partitions)| {
            let mut place = 0;
            let messages: Vec<_> = messages
                .into_iter()
                .map(|(skipped, length, priority, id)| {
                    place += skipped;
                    let properties = Properties { priority, ..Properties::default() };
                    EachMessage { place, length, properties, delay_ms: 0, id: id.map(|id| IdHash([id; 16])) }
                })
                .collect();
            let length = messages.iter().map(|message| message.length).sum();
            let block = BlockSpan { position, length };
            Command::PublishEach { queue, producer, block, messages, routed, partitions }
        },
    )
}

fn command() -> impl Strategy<Value = Command> {
    let rejected = prop::bool::weighted(0.2);
    let back =
        (range(), 1..5_u32, 0..3_u64, rejected).prop_map(|(range, attempt, not_before_ms, rejected)| {
            Return { range, attempt, not_before_ms, rejected }
        });
    let settle = (queue_id(), group_id(), vec(range(), 0..3), vec(back, 0..3), vec(range(), 0..2), 0..9_u32);
    prop_oneof![
        2 => (queue_id(), "[ab]", any_settings(), 0..3_u64).prop_map(|(queue, name, settings, revision)| {
            Command::OpenQueue { queue, name, settings, revision }
        }),
        1 => closed_queue_id().prop_map(|queue| Command::CloseQueue { queue }),
        1 => queue_id().prop_map(|queue| Command::PurgeQueue { queue }),
        20 => publish(),
        10 => publish_each(),
        4 => publish_together(),
        4 => (queue_id(), "[abc]", position(), vec(0..3_u8, 0..2))
            .prop_map(|(queue, name, start, filter)| Command::CreateGroup { queue, name, start, filter }),
        1 => (queue_id(), group_id(), vec(0..3_u8, 0..2))
            .prop_map(|(queue, group, filter)| Command::UpdateGroup { queue, group, filter }),
        3 => (queue_id(), group_id(), position())
            .prop_map(|(queue, group, to)| Command::SeekGroup { queue, group, to }),
        1 => (queue_id(), group_id()).prop_map(|(queue, group)| Command::DeleteGroup { queue, group }),
        20 => settle.prop_map(|(queue, group, acks, returns, expired, seek_count)| {
            // Mostly those of a group that was never moved.
            let seek_count = seek_count.saturating_sub(6);
            Command::Settle { queue, group, acks, returns, expired, seek_count }
        }),
        3 => queue_id().prop_map(|queue| Command::Trim { queue }),
        4 => (queue_id(), group_id(), 0..20_u64).prop_map(|(queue, group, up_to)| Command::DeadLettersMoved {
            queue,
            group,
            up_to: Sequence::new(up_to),
        }),
    ]
}

/// Begins with an open queue and a group, so that most of what follows finds them.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let after =
        prop_oneof![3 => Just(After::Nothing), 1 => Just(After::Checkpoint), 1 => Just(After::Restart)];
    // Clocks that are days off change nothing: see the model, which forgets no producer.
    let time_ms = prop_oneof![4 => 0..1_000_u64, 1 => 0..3 * PRODUCER_IDLE_MAX_MS];
    let step = (time_ms, vec(command(), 1..5), after).prop_map(|(time_ms, commands, after)| Step {
        time_ms,
        commands,
        after,
    });
    vec(step, 1..40).prop_map(|mut steps| {
        let queue = QueueId::new(1);
        let open =
            Command::OpenQueue { queue, name: "a".into(), settings: settings(2, Some("dead")), revision: 0 };
        let create =
            Command::CreateGroup { queue, name: "a".into(), start: Position::First, filter: Vec::new() };
        steps.insert(0, Step { time_ms: 5, commands: vec![open, create], after: After::Nothing });
        steps
    })
}

/// Indexes of entries, most of which [`steps`] makes.
fn entries() -> impl Strategy<Value = Range<u64>> {
    (0..45_u64, 0..20_u64).prop_map(|(first, count)| first..first + count)
}

fn meta(index: u64, time_ms: u64) -> EntryMeta {
    EntryMeta { index, leader_time_ms: time_ms, replicated_index: index / 2 }
}

proptest! {
    #[test]
    fn core_matches_a_naive_model(steps in steps(), entries in vec(entries(), 0..6)) {
        let mut core = Checkpointed::default();
        let mut model = Model::default();
        for (index, step) in (1..).zip(&steps) {
            for command in step.commands.chunks(1) {
                let outcomes = core.shard.apply(meta(index, step.time_ms), command);
                let expected: Vec<_> = model.apply(index, step.time_ms, command);
                prop_assert_eq!(outcomes, expected, "entry {}", index);
                model.check(&core.shard, &entries);
            }
            match step.after {
                After::Nothing => model.check(&Shard::restore(core.shard.records()).unwrap(), &entries),
                After::Checkpoint => core.checkpoint(),
                After::Restart => core.restart(),
            }
            model.check(&core.shard, &entries);
        }
    }

    #[test]
    fn restarts_and_observers_change_nothing(steps in steps()) {
        let mut steady = Shard::new();
        steady.observe(true);
        let mut restarted = Checkpointed::default();
        for (index, step) in (1..).zip(&steps) {
            let outcomes = steady.apply(meta(index, step.time_ms), &step.commands);
            steady.take_events();
            prop_assert_eq!(restarted.shard.apply(meta(index, step.time_ms), &step.commands), outcomes);
            match step.after {
                After::Nothing => {}
                After::Checkpoint => restarted.checkpoint(),
                After::Restart => restarted.restart(),
            }
            prop_assert_eq!(dump(&steady), dump(&restarted.shard));
        }
        restarted.restart();
        prop_assert_eq!(dump(&steady), dump(&restarted.shard));
        let copy = Shard::restore(steady.records()).unwrap();
        prop_assert_eq!(dump(&steady), dump(&copy));
    }

    /// Enough blocks for several pages, freed from the front.
    #[test]
    fn pages_survive_restarts(steps in vec((0..400_u64, 0..600_u64, 0..3_u8), 1..12)) {
        let queue = QueueId::new(1);
        let group = GroupId::new(1);
        let mut restarted = Checkpointed::default();
        let open = Command::OpenQueue { queue, name: "a".into(), settings: settings(9, None), revision: 0 };
        let create = Command::CreateGroup { queue, name: "a".into(), start: Position::First, filter: Vec::new() };
        restarted.shard.apply(meta(1, 0), &[open, create]);
        for (index, (blocks, acked, after)) in (2..).zip(steps) {
            let block = BlockSpan { position: 7, length: 10 };
            let publish = Command::Publish { queue, producer: None, count: 2, block, runs: Vec::new(), partitions: 0 };
            restarted.shard.apply(meta(index, index), &vec![publish; blocks as usize]);
            let floor = restarted.shard.queue(queue).unwrap().first_offset();
            let acks = vec![OffsetRange::new(floor, acked)];
            let settle = acks_of(queue, group, acks);
            restarted.shard.apply(meta(index, index), &[settle]);
            match after {
                0 => restarted.checkpoint(),
                1 => restarted.restart(),
                _ => {}
            }
            let queue = restarted.shard.queue(queue).unwrap();
            let kept = OffsetRange::between(queue.first_offset(), queue.next_offset());
            for offset in [kept.first, Offset::new(kept.first.get() + kept.count / 2), kept.end()] {
                let found = queue.locate(offset, 9);
                prop_assert_eq!(found.is_some(), kept.contains(offset));
                if let Some(slice) = found {
                    prop_assert_eq!(slice.block_first.plus(slice.skip.into()), offset);
                    prop_assert_eq!((slice.skip + slice.take, slice.block_count), (2, 2));
                }
            }
            let first_block = queue.first_offset().get() / 2;
            prop_assert_eq!(queue.kept_bytes(), 10 * (queue.next_offset().get() / 2 - first_block));
            prop_assert_eq!(queue.kept_bytes(), 10 * queue.blocks().count() as u64);
        }
    }
}

/// The outcome of one command in an entry of its own.
fn apply_one(shard: &mut Shard, index: u64, time_ms: u64, command: Command) -> Outcome {
    shard.apply(meta(index, time_ms), &[command]).remove(0)
}
