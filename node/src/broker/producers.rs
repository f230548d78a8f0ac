//! The producers of a queue: which batches they published, so that a batch sent again is not stored again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use skein_proto::{
    ids::{Offset, ProducerId, Sequence},
    limits::PRODUCER_BATCHES_IN_FLIGHT_MAX,
};

use super::{ProducerRecord, RoutedBatch};
use crate::{
    offsets::{OffsetRange, OffsetSet},
    planted::{Bug, is_planted},
};

/// A producer that published nothing for this long, by the shard's elapsed time, is forgotten. A day outlives every
/// outage that a producer would wait out with a batch in its hands.
pub const PRODUCER_IDLE_MAX_MS: u64 = 24 * 60 * 60 * 1_000;

/// The most producers that a queue remembers; beyond it the longest idle is forgotten. With 64 batches each of 16 bytes
/// this bounds a queue's memory for them at some 10 MiB, without what topics route.
pub const QUEUE_PRODUCERS_MAX: usize = 10_000;

/// The most ranges of places that a queue remembers of what topics route to it; beyond it the longest idle producer is
/// forgotten as well. At some 50 bytes each that is 50 MB, and a single producer cannot have as many: 64 batches of
/// half as many ranges as messages.
const ROUTED_RANGES_MAX: usize = 1_000_000;

/// The offsets that a batch got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedBatch {
    /// The offset of its first message.
    pub first: Offset,
    /// How many messages it has.
    pub count: u32,
}

/// What a producer's next batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SequenceCheck {
    /// The one that follows.
    Next,
    /// One that was published before.
    Duplicate(PublishedBatch),
    /// One so old that its offsets are forgotten.
    TooOld,
    /// One too far ahead.
    Gap {
        /// The sequence that follows.
        expected: Sequence,
    },
}

/// What is to be stored of a batch that a topic routes here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RoutedCheck {
    /// The messages at these places; none of it when all are stored.
    Store(OffsetSet),
    /// It is so old that nobody knows.
    TooOld,
    /// One that came before it on its way is missing.
    Gap {
        /// That one.
        expected: Sequence,
    },
}

#[derive(Debug, Default)]
pub(super) struct Producers {
    by_id: BTreeMap<ProducerId, Producer>,
    /// The same producers, longest idle first.
    by_use: BTreeSet<(u64, ProducerId)>,
    /// How many ranges all of them have of what was routed. Follows from `by_id`.
    routed_ranges: usize,
    changed: BTreeSet<ProducerId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Producer {
    last: Sequence,
    used_at_ms: u64,
    /// Oldest first; the last one has the sequence `last`.
    recent: VecDeque<PublishedBatch>,
    /// By sequence, the places of what is stored.
    routed: BTreeMap<Sequence, OffsetSet>,
}

impl Producers {
    /// Says what a batch is, and takes note that the producer lives.
    pub(super) fn check(&mut self, id: ProducerId, sequence: Sequence, now_ms: u64) -> SequenceCheck {
        self.forget_idle(now_ms);
        let Some(producer) = self.by_id.get(&id) else {
            return if sequence == Sequence::FIRST {
                SequenceCheck::Next
            } else {
                SequenceCheck::Gap { expected: Sequence::FIRST }
            };
        };
        let check = producer.check(sequence);
        self.touch(id, now_ms);
        check
    }

    /// Says what is to be stored of a batch that a topic routes here, of which there are messages at these places; and
    /// takes note that the producer lives. Its batches come in order, but not all of them come here.
    pub(super) fn check_routed(
        &mut self,
        id: ProducerId,
        sequence: Sequence,
        follows: Option<Sequence>,
        places: &OffsetSet,
        now_ms: u64,
    ) -> RoutedCheck {
        self.forget_idle(now_ms);
        let check = match self.by_id.get(&id) {
            Some(producer) => producer.check_routed(sequence, follows, places),
            None => match follows {
                Some(expected) => RoutedCheck::Gap { expected },
                None => RoutedCheck::Store(places.clone()),
            },
        };
        self.touch(id, now_ms);
        check
    }

    /// Remembers that messages were stored which [`Producers::check_routed`] found missing.
    pub(super) fn record_routed(
        &mut self,
        id: ProducerId,
        sequence: Sequence,
        stored: &OffsetSet,
        now_ms: u64,
    ) {
        let producer = self.get_or_insert(id, now_ms);
        let places = producer.routed.entry(sequence).or_default();
        let before = places.range_count();
        stored.iter().for_each(|range| places.insert(range));
        let after = places.range_count();
        let is_full = producer.routed.len() > PRODUCER_BATCHES_IN_FLIGHT_MAX;
        let oldest = if is_full { producer.routed.pop_first() } else { None };
        let forgotten = oldest.map_or(0, |(_, places)| places.range_count());
        self.routed_ranges = self.routed_ranges + after - before - forgotten;
        while self.routed_ranges > ROUTED_RANGES_MAX && self.by_id.len() > 1 {
            self.forget_longest_idle();
        }
    }

    /// Remembers a batch that [`Producers::check`] found to be the next.
    pub(super) fn record(&mut self, id: ProducerId, sequence: Sequence, batch: PublishedBatch, now_ms: u64) {
        let producer = self.get_or_insert(id, now_ms);
        producer.last = sequence;
        if producer.recent.len() == PRODUCER_BATCHES_IN_FLIGHT_MAX {
            producer.recent.pop_front();
        }
        producer.recent.push_back(batch);
    }

    /// The places of what was stored of the newest batches that topics have routed here from a producer.
    pub(super) fn routed_by(&self, id: ProducerId) -> impl Iterator<Item = (Sequence, &OffsetSet)> {
        let producer = self.by_id.get(&id).into_iter();
        producer.flat_map(|producer| producer.routed.iter().map(|(sequence, places)| (*sequence, places)))
    }

    pub(super) fn restore(&mut self, id: ProducerId, record: &ProducerRecord) {
        let recent = record.recent.iter().copied().collect();
        let places = |batch: &RoutedBatch| (batch.sequence, batch.places.iter().copied().collect());
        let routed = record.routed.iter().map(places).collect();
        let restored = Producer { last: record.last, used_at_ms: record.used_at_ms, recent, routed };
        self.routed_ranges += restored.routed_ranges();
        self.by_id.insert(id, restored);
        self.by_use.insert((record.used_at_ms, id));
    }

    pub(super) fn records(&self) -> impl Iterator<Item = (ProducerId, ProducerRecord)> {
        self.by_id.iter().map(|(&id, producer)| (id, producer.record()))
    }

    /// The producers that changed since the last call; those without a record are forgotten.
    pub(super) fn take_changes(&mut self) -> impl Iterator<Item = (ProducerId, Option<ProducerRecord>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|id| (id, self.by_id.get(&id).map(Producer::record)))
    }

    /// Every producer that a checkpoint may know.
    pub(super) fn ids(&self) -> impl Iterator<Item = ProducerId> {
        self.by_id.keys().chain(&self.changed).copied()
    }

    fn get_or_insert(&mut self, id: ProducerId, now_ms: u64) -> &mut Producer {
        if !self.by_id.contains_key(&id) {
            self.make_room();
            self.by_use.insert((now_ms, id));
            self.changed.insert(id);
        }
        self.by_id.entry(id).or_insert_with(|| Producer {
            last: Sequence::new(0),
            used_at_ms: now_ms,
            recent: VecDeque::new(),
            routed: BTreeMap::new(),
        })
    }

    fn touch(&mut self, id: ProducerId, now_ms: u64) {
        let Some(producer) = self.by_id.get_mut(&id) else {
            return;
        };
        self.changed.insert(id);
        if producer.used_at_ms != now_ms {
            self.by_use.remove(&(producer.used_at_ms, id));
            producer.used_at_ms = now_ms;
            self.by_use.insert((now_ms, id));
        }
    }

    fn forget_idle(&mut self, now_ms: u64) {
        while let Some(&(used_at_ms, _)) = self.by_use.first()
            && now_ms.saturating_sub(used_at_ms) >= PRODUCER_IDLE_MAX_MS
        {
            self.forget_longest_idle();
        }
    }

    fn make_room(&mut self) {
        while self.by_id.len() >= QUEUE_PRODUCERS_MAX {
            self.forget_longest_idle();
        }
    }

    fn forget_longest_idle(&mut self) {
        if let Some((_, id)) = self.by_use.pop_first() {
            let forgotten = self.by_id.remove(&id);
            self.routed_ranges -= forgotten.map_or(0, |producer| producer.routed_ranges());
            self.changed.insert(id);
        }
    }
}

impl Producer {
    fn check(&self, sequence: Sequence) -> SequenceCheck {
        let next = self.last.next();
        if sequence > next {
            return SequenceCheck::Gap { expected: next };
        }
        // 0 is the next one, 1 the last one published.
        let age = usize::try_from(next.get() - sequence.get()).unwrap_or(usize::MAX);
        match self.recent.len().checked_sub(age) {
            _ if age == 0 || is_planted(Bug::SequenceIgnored) => SequenceCheck::Next,
            Some(place) => SequenceCheck::Duplicate(self.recent[place]),
            None => SequenceCheck::TooOld,
        }
    }

    fn check_routed(&self, sequence: Sequence, follows: Option<Sequence>, places: &OffsetSet) -> RoutedCheck {
        if let Some(stored) = self.routed.get(&sequence) {
            let missing = places.iter().flat_map(|range| stored.gaps(range).collect::<Vec<OffsetRange>>());
            return RoutedCheck::Store(missing.collect());
        }
        let oldest = self.routed.first_key_value().map(|(oldest, _)| *oldest);
        if self.routed.len() == PRODUCER_BATCHES_IN_FLIGHT_MAX && oldest > Some(sequence) {
            return RoutedCheck::TooOld;
        }
        match follows {
            Some(expected) if !self.routed.contains_key(&expected) => RoutedCheck::Gap { expected },
            _ => RoutedCheck::Store(places.clone()),
        }
    }

    fn routed_ranges(&self) -> usize {
        self.routed.values().map(OffsetSet::range_count).sum()
    }

    fn record(&self) -> ProducerRecord {
        let recent = self.recent.iter().copied().collect();
        let routed = self
            .routed
            .iter()
            .map(|(&sequence, places)| RoutedBatch { sequence, places: places.iter().collect() });
        ProducerRecord { last: self.last, used_at_ms: self.used_at_ms, recent, routed: routed.collect() }
    }
}
