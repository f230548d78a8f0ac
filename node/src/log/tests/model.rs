//! Random histories with crashes, against a model: whatever was confirmed is there, in order, and nothing else but a
//! prefix of what was asked for after it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use proptest::prelude::*;

use super::*;
use crate::disk::faulty::Fault;

#[derive(Debug, Clone, Copy)]
enum Step {
    Append {
        shard: u32,
        count: u64,
        payload_bytes: usize,
        is_new_term: bool,
    },
    Vote {
        shard: u32,
    },
    Committed {
        shard: u32,
    },
    Truncate {
        shard: u32,
        back: u64,
    },
    Purge {
        shard: u32,
        forward: u64,
    },
    /// Wait until all is durable.
    Flush,
    Read {
        shard: u32,
        skip: u64,
        bytes_max: usize,
    },
    /// Some of what was purged is needed no more.
    Forget {
        shard: u32,
        every: u64,
    },
    /// Rewrite and give up what is purged.
    Collect,
    Reopen,
    Inject {
        later: u64,
        fault: Fault,
    },
    LosePower,
}

fn step() -> impl Strategy<Value = Step> {
    let shard = 0u32..3;
    let fault = prop_oneof![Just(Fault::Io), Just(Fault::NoSpace), Just(Fault::PowerLoss)];
    prop_oneof![
        12 => (shard.clone(), 0u64..8, 0usize..6000, prop::bool::weighted(0.2)).prop_map(
            |(shard, count, payload_bytes, is_new_term)| Step::Append { shard, count, payload_bytes, is_new_term }
        ),
        2 => shard.clone().prop_map(|shard| Step::Vote { shard }),
        2 => shard.clone().prop_map(|shard| Step::Committed { shard }),
        2 => (shard.clone(), 0u64..12).prop_map(|(shard, back)| Step::Truncate { shard, back }),
        3 => (shard.clone(), 0u64..30).prop_map(|(shard, forward)| Step::Purge { shard, forward }),
        4 => Just(Step::Flush),
        5 => (shard.clone(), 0u64..20, 0usize..20_000)
            .prop_map(|(shard, skip, bytes_max)| Step::Read { shard, skip, bytes_max }),
        2 => (shard.clone(), 1u64..6).prop_map(|(shard, every)| Step::Forget { shard, every }),
        3 => Just(Step::Collect),
        1 => Just(Step::Reopen),
        1 => (0u64..12, fault).prop_map(|(later, fault)| Step::Inject { later, fault }),
        1 => Just(Step::LosePower),
    ]
}

#[derive(Debug, Clone)]
enum Change {
    Entry(Entry),
    Vote(Bytes),
    Truncate { first_removed: u64 },
    Purge(EntryId),
}

/// What a shard should be like, but for its commit position.
#[derive(Debug, Clone, Default, PartialEq)]
struct ModelShard {
    vote: Option<Bytes>,
    purged: Option<EntryId>,
    entries: Vec<Entry>,
}

impl ModelShard {
    fn next_index(&self) -> u64 {
        let after = |id: EntryId| id.index + 1;
        self.entries.last().map(|entry| entry.index + 1).or(self.purged.map(after)).unwrap_or(1)
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Entry(entry) => self.entries.push(entry.clone()),
            Change::Vote(vote) => self.vote = Some(vote.clone()),
            Change::Truncate { first_removed } => self.entries.retain(|entry| entry.index < *first_removed),
            Change::Purge(id) => {
                if self.purged.is_none_or(|purged| purged.index < id.index) {
                    self.purged = Some(*id);
                    self.entries.retain(|entry| entry.index > id.index);
                }
            }
        }
    }
}

type ModelShards = BTreeMap<ShardId, ModelShard>;

struct Run {
    disk: FaultyDisk,
    log: Option<Log>,
    direct_io: bool,
    /// With everything asked for.
    shards: ModelShards,
    /// As it was when `changes` began.
    base: ModelShards,
    changes: Vec<(ShardId, Change)>,
    /// How many of the changes are known to be durable.
    confirmed: Arc<AtomicUsize>,
    /// What each shard's commit position may be found to be.
    committed: BTreeMap<ShardId, Vec<Option<Bytes>>>,
    term: u64,
    counter: u64,
    is_armed: bool,
    /// What is needed of what was purged.
    needed: BTreeMap<ShardId, BTreeMap<u64, Entry>>,
}

/// All of a payload but its first byte, when there is more.
fn part(entry: &Entry) -> Option<Part> {
    let length = u32::try_from(entry.payload.len()).unwrap().checked_sub(1)?;
    (length > 0).then_some(Part { index: entry.index, position: 1, length })
}

impl Run {
    fn new(seed: u64, direct_io: bool) -> Self {
        let mut run = Self {
            disk: FaultyDisk::new(seed),
            log: None,
            direct_io,
            shards: BTreeMap::new(),
            base: BTreeMap::new(),
            changes: Vec::new(),
            confirmed: Arc::default(),
            committed: BTreeMap::new(),
            term: 1,
            counter: 0,
            is_armed: false,
            needed: BTreeMap::new(),
        };
        run.log = run.open().ok();
        run
    }

    fn open(&self) -> Result<Log, OpenError> {
        let options = LogOptions { direct_io: self.direct_io, ..small() };
        Log::open(Arc::new(self.disk.clone()), &dir(), options, |_| {})
    }

    fn log(&self) -> &Log {
        self.log.as_ref().unwrap()
    }

    fn change(&mut self, shard: ShardId, change: Change) {
        self.shards.entry(shard).or_default().apply(&change);
        self.changes.push((shard, change));
    }

    fn done(&self) -> Done {
        let (confirmed, count) = (self.confirmed.clone(), self.changes.len());
        Box::new(move |result| {
            if result.is_ok() {
                confirmed.fetch_max(count, Ordering::SeqCst);
            }
        })
    }

    fn stamp(&mut self) -> Bytes {
        self.counter += 1;
        Bytes::from(format!("number {}", self.counter))
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Append { shard, count, payload_bytes, is_new_term } => {
                self.term += u64::from(is_new_term);
                let shard = ShardId::new(shard);
                let next = self.shards.entry(shard).or_default().next_index();
                let all = entries(next..next + count, self.term, payload_bytes);
                all.iter().for_each(|entry| self.change(shard, Change::Entry(entry.clone())));
                self.log().append(shard, all, self.done());
            }
            Step::Vote { shard } => {
                let (shard, vote) = (ShardId::new(shard), self.stamp());
                self.change(shard, Change::Vote(vote.clone()));
                self.log().save_vote(shard, vote, self.done());
            }
            Step::Committed { shard } => {
                let (shard, committed) = (ShardId::new(shard), self.stamp());
                self.committed.entry(shard).or_insert_with(|| vec![None]).push(Some(committed.clone()));
                self.log().save_committed(shard, committed);
            }
            Step::Truncate { shard, back } => self.on_truncate(ShardId::new(shard), back),
            Step::Purge { shard, forward } => self.on_purge(ShardId::new(shard), forward),
            Step::Flush => self.on_flush(),
            Step::Read { shard, skip, bytes_max } => self.on_read(ShardId::new(shard), skip, bytes_max),
            Step::Forget { shard, every } => {
                let needed = self.needed.entry(ShardId::new(shard)).or_default();
                needed.retain(|index, _| index % every != 0);
            }
            Step::Collect => self.on_collect(),
            Step::Reopen => self.on_reopen(),
            Step::Inject { later, fault } => {
                self.is_armed = true;
                self.disk.inject(later, fault);
            }
            Step::LosePower => self.on_power_loss(),
        }
    }

    fn on_truncate(&mut self, shard: ShardId, back: u64) {
        let next = self.shards.entry(shard).or_default().next_index();
        let last_kept = next.checked_sub(back + 1);
        let first_removed = last_kept.map_or(0, |kept| kept + 1);
        self.change(shard, Change::Truncate { first_removed });
        // An entry whose purge was lost in a crash may be truncated after all.
        let purged = self.shards[&shard].purged.map_or(0, |purged| purged.index);
        let needed = self.needed.entry(shard).or_default();
        needed.retain(|index, _| *index < first_removed || *index <= purged);
        self.log().truncate_after(shard, last_kept);
    }

    fn on_purge(&mut self, shard: ShardId, forward: u64) {
        let model = self.shards.entry(shard).or_default();
        let first = model.entries.first().map_or(model.next_index(), |entry| entry.index);
        let index = first + forward;
        let term =
            model.entries.iter().find(|entry| entry.index == index).map_or(self.term, |entry| entry.term);
        let needed = self.needed.entry(shard).or_default();
        if index < model.next_index() {
            let purged = model.entries.iter().filter(|entry| entry.index <= index && part(entry).is_some());
            needed.extend(purged.map(|entry| (entry.index, entry.clone())));
        } else {
            // Past its end: as if a snapshot replaced what there was.
            needed.clear();
        }
        self.change(shard, Change::Purge(id(term, index)));
        self.log().purge(shard, id(term, index));
    }

    fn on_collect(&mut self) {
        self.on_flush();
        if self.is_armed {
            return;
        }
        let needed = self.needed.clone();
        let mut live = |shard, range: Range<u64>| {
            let entries = needed.get(&shard).into_iter().flat_map(|entries| entries.range(range.clone()));
            entries.filter_map(|(_, entry)| part(entry)).collect()
        };
        let may_go = |segment: &SegmentSurvey| segment.is_sealed && !segment.has_raft_entries;
        let ids: Vec<_> = self.log().survey().into_iter().filter(may_go).map(|segment| segment.id).collect();
        for segment in &ids {
            self.log().rewrite(*segment, &mut live, &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
        }
        assert_eq!(self.log().retire(&ids).unwrap(), ids);
        self.check_needed();
    }

    fn check_needed(&self) {
        for (shard, entries) in &self.needed {
            for entry in entries.values() {
                let part = part(entry).unwrap();
                let read = self.log().read_part(*shard, part).unwrap();
                assert_eq!(read, entry.payload.slice(1..), "entry {} of shard {shard}", entry.index);
                let kept = self.log().read_kept(*shard, entry.index, 10_000).unwrap();
                assert_eq!((kept[0].index, kept[0].term), (entry.index, entry.term));
            }
        }
    }

    /// What was never on disk, or is not what is there, was never committed.
    fn forget_what_is_lost(&mut self, found: &ModelShards) {
        for (shard, needed) in &mut self.needed {
            let found = found.get(shard).cloned().unwrap_or_default();
            let purged = found.purged.map_or(0, |purged| purged.index);
            needed.retain(|index, entry| *index <= purged || found.entries.contains(entry));
        }
    }

    fn on_flush(&mut self) {
        let (done, result) = callback();
        self.log().append(ShardId::new(0), Vec::new(), done);
        match result.recv().unwrap() {
            Ok(()) => {
                self.confirmed.fetch_max(self.changes.len(), Ordering::SeqCst);
            }
            // A process that is told to stop and started again, or a machine that goes down with it.
            Err(_) if self.counter.is_multiple_of(2) => self.on_crash(),
            Err(_) => self.on_power_loss(),
        }
    }

    fn on_read(&mut self, shard: ShardId, skip: u64, bytes_max: usize) {
        if self.is_armed {
            // What a failed log took over at last cannot be told.
            return self.on_flush();
        }
        let model = self.shards.entry(shard).or_default().clone();
        let start = model.entries.first().map_or(model.next_index(), |entry| entry.index) + skip;
        let read = self.log().read(shard, start..u64::MAX, bytes_max);
        let live: Vec<_> = model.entries.iter().filter(|entry| entry.index >= start).cloned().collect();
        match read {
            Ok(read) => {
                assert_eq!(read, live[..read.len()]);
                let bytes: usize = read.iter().map(|entry| entry.payload.len()).sum();
                assert!(read.len() == 1 || bytes <= bytes_max);
                let next = live.get(read.len()).map_or(usize::MAX, |entry| entry.payload.len());
                assert!(read.len() == live.len() || bytes + next > bytes_max, "no fewer than fit");
            }
            Err(ReadError::NotFound { index, .. }) => assert!(index == start && live.is_empty()),
            Err(error) => panic!("{error}"),
        }
        for entry in live {
            assert_eq!(self.log().term_at(shard, entry.index).unwrap(), Some(entry.term));
        }
        if let Some(purged) = model.purged {
            assert!(matches!(
                self.log().read(shard, purged.index..u64::MAX, 1),
                Err(ReadError::Purged { .. })
            ));
        }
    }

    fn on_reopen(&mut self) {
        if !self.is_armed {
            // What is queued is written when the log is closed.
            self.confirmed.fetch_max(self.changes.len(), Ordering::SeqCst);
            for found in self.committed.values_mut() {
                found.drain(..found.len() - 1);
            }
        }
        self.on_crash();
    }

    fn on_power_loss(&mut self) {
        // Only when the writer is gone can nothing more be confirmed.
        self.disk.inject(0, Fault::PowerLoss);
        self.log = None;
        self.disk.restart();
        self.is_armed = false;
        self.on_crash();
    }

    /// Opens the log again and finds out what is left of the changes.
    fn on_crash(&mut self) {
        self.log = None;
        let fired_count = self.disk.fired_count();
        let log = self.open().or_else(|error| {
            assert!(self.is_armed && !matches!(error, OpenError::Damaged { .. }), "{error}");
            self.disk.restart();
            self.open()
        });
        self.log = Some(log.unwrap());
        self.disk.clear_faults();
        // One that fired may have hit the preparation of a segment, and shows when that is needed.
        self.is_armed = self.disk.fired_count() != fired_count;
        if !self.disk.has_power() {
            self.log = None;
            self.disk.restart();
            self.log = Some(self.open().unwrap());
        }

        let found = self.observe();
        let confirmed = self.confirmed.load(Ordering::SeqCst);
        let mut expected = self.base.clone();
        let mut is_prefix = false;
        for count in 0..=self.changes.len() {
            is_prefix = count >= confirmed && is_same(&expected, &found);
            if is_prefix {
                break;
            }
            if let Some((shard, change)) = self.changes.get(count) {
                expected.entry(*shard).or_default().apply(change);
            }
        }
        assert!(
            is_prefix,
            "{confirmed} of {} changes were confirmed; found {}\nasked for {}",
            self.changes.len(),
            summary(&found),
            summary(&self.shards),
        );
        self.forget_what_is_lost(&found);
        self.check_needed();
        self.shards = expected.clone();
        self.base = expected;
        self.changes.clear();
        self.confirmed = Arc::default();
    }

    fn observe(&mut self) -> ModelShards {
        let mut found = BTreeMap::new();
        for shard in (0..3).map(ShardId::new) {
            let state = self.log().shard_state(shard);
            let candidates = self.committed.entry(shard).or_insert_with(|| vec![None]);
            assert!(candidates.contains(&state.committed), "{:?} not in {candidates:?}", state.committed);
            *candidates = vec![state.committed.clone()];
            let entries = read_from_first(self.log(), shard, &state);
            assert_eq!(
                state.last.map(|last| last.index),
                entries.last().map(|entry| entry.index).or(state.purged.map(|id| id.index))
            );
            found.insert(shard, ModelShard { vote: state.vote, purged: state.purged, entries });
        }
        found
    }
}

/// Reads all live entries of a shard, wherever they begin.
fn read_from_first(log: &Log, shard: ShardId, state: &ShardState) -> Vec<Entry> {
    let first = state.purged.map_or(1, |purged| purged.index + 1);
    match log.read(shard, first..u64::MAX, usize::MAX) {
        Ok(entries) => entries,
        Err(ReadError::NotFound { .. }) => Vec::new(),
        Err(error) => panic!("{error}"),
    }
}

fn is_same(expected: &ModelShards, found: &ModelShards) -> bool {
    found.iter().all(|(shard, found)| expected.get(shard).unwrap_or(&ModelShard::default()) == found)
}

fn summary(shards: &ModelShards) -> String {
    let lines = shards.iter().map(|(shard, model)| {
        let ids: Vec<_> = model.entries.iter().map(|entry| (entry.index, entry.term)).collect();
        format!("\n  shard {shard}: vote {:?}, purged {:?}, entries {ids:?}", model.vote, model.purged)
    });
    lines.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, max_shrink_iters: 500, ..ProptestConfig::default() })]

    #[test]
    fn any_history_with_crashes_keeps_what_was_confirmed(
        seed in any::<u64>(),
        direct_io in any::<bool>(),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut run = Run::new(seed, direct_io);
        steps.into_iter().for_each(|step| run.step(step));
        run.on_flush();
        run.on_reopen();
    }
}
