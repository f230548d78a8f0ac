//! The core against a naive model, against itself, and against its own checkpoints.

mod blocks;
mod catalog;
mod holes;
mod model;
mod scenarios;

use std::{collections::BTreeMap, ops::Range};

use proptest::{collection::vec, prelude::*};
use skein_proto::ids::{GroupId, Offset, ProducerId, QueueId, Sequence};

use self::model::Model;
use super::{
    BlockSpan, Command, EntryMeta, GroupStart, Outcome, PRODUCER_IDLE_MAX_MS, Record, RecordKey, Return,
    Settings, Shard,
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
    }

    fn restart(&mut self) {
        self.checkpoint();
        self.shard = Shard::restore(self.store.clone().into_iter()).expect("a checkpoint can be restored");
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
    Settings { max_deliveries, dead_letter_queue: dead_letter_queue.map(str::to_owned), lease_ms: 30_000 }
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

fn command() -> impl Strategy<Value = Command> {
    let producer = prop::option::of((1..3_u64, 1..8_u64))
        .prop_map(|producer| producer.map(|(id, sequence)| (ProducerId::new(id), Sequence::new(sequence))));
    let block = (0..1_000_u32, 1..100_u32).prop_map(|(position, length)| BlockSpan { position, length });
    let start = prop_oneof![Just(GroupStart::First), Just(GroupStart::Next)];
    let back = (range(), 1..5_u32, 0..3_u64).prop_map(|(range, attempt, not_before_ms)| Return {
        range,
        attempt,
        not_before_ms,
    });
    let some_settings =
        (1..4_u32, any::<bool>()).prop_map(|(max, dead)| settings(max, dead.then_some("dead")));
    prop_oneof![
        2 => (queue_id(), "[ab]", some_settings)
            .prop_map(|(queue, name, settings)| Command::OpenQueue { queue, name, settings }),
        1 => closed_queue_id().prop_map(|queue| Command::CloseQueue { queue }),
        1 => queue_id().prop_map(|queue| Command::PurgeQueue { queue }),
        20 => (queue_id(), producer, 0..6_u32, block)
            .prop_map(|(queue, producer, count, block)| Command::Publish { queue, producer, count, block }),
        4 => (queue_id(), "[abc]", start)
            .prop_map(|(queue, name, start)| Command::CreateGroup { queue, name, start }),
        1 => (queue_id(), group_id()).prop_map(|(queue, group)| Command::DeleteGroup { queue, group }),
        20 => (queue_id(), group_id(), vec(range(), 0..3), vec(back, 0..3))
            .prop_map(|(queue, group, acks, returns)| Command::Settle { queue, group, acks, returns }),
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
        let open = Command::OpenQueue { queue, name: "a".into(), settings: settings(2, Some("dead")) };
        let create = Command::CreateGroup { queue, name: "a".into(), start: GroupStart::First };
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
        let open = Command::OpenQueue { queue, name: "a".into(), settings: settings(9, None) };
        let create = Command::CreateGroup { queue, name: "a".into(), start: GroupStart::First };
        restarted.shard.apply(meta(1, 0), &[open, create]);
        for (index, (blocks, acked, after)) in (2..).zip(steps) {
            let block = BlockSpan { position: 7, length: 10 };
            let publish = Command::Publish { queue, producer: None, count: 2, block };
            restarted.shard.apply(meta(index, index), &vec![publish; blocks as usize]);
            let floor = restarted.shard.queue(queue).unwrap().first_offset();
            let acks = vec![OffsetRange::new(floor, acked)];
            let settle = Command::Settle { queue, group, acks, returns: Vec::new() };
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
