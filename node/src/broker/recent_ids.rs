//! The ids of messages that were published to a queue lately, so that none is stored twice.

use std::{collections::VecDeque, ops::Range};

use super::IdsRecord;
use crate::planted::{Bug, is_planted};

/// The most ids that a queue remembers. At some 50 bytes each that is 50 MB on every node.
pub const QUEUE_IDS_MAX: usize = 1_000_000;

/// How many ids are saved together: a record of 24 KiB.
const PAGE_IDS: u64 = 1_024;

/// Stands for the id of a message: half of its SHA-256. Two ids never share one, for all that is known of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdHash(pub [u8; 16]);

impl IdHash {
    /// Its first eight bytes and its last eight, as numbers.
    #[must_use]
    pub const fn halves(self) -> (u64, u64) {
        let both = u128::from_be_bytes(self.0);
        ((both >> 64) as u64, both as u64)
    }

    /// The other way round.
    #[must_use]
    pub const fn from_halves(high: u64, low: u64) -> Self {
        Self((((high as u128) << 64) | low as u128).to_be_bytes())
    }
}

/// The ids of a queue, oldest first. They are numbered 0, 1, 2, ... over the life of the queue, and id `n` is saved on
/// page `n / PAGE_IDS`.
#[derive(Debug, Default)]
pub(super) struct RecentIds {
    /// Not a tree: among a million ids that takes a step for each of some five cache lines, which was a quarter of what
    /// such messages cost.
    #[expect(clippy::disallowed_types, reason = "it is never walked, so that its order cannot matter")]
    known: std::collections::HashSet<IdHash, foldhash::fast::RandomState>,
    /// The same ones, with the core's time when they were published.
    order: VecDeque<(u64, IdHash)>,
    /// The number of the first one.
    first: u64,
    /// Those with lower numbers are in the newest checkpoint.
    saved_to: u64,
    /// The pages in the newest checkpoint.
    saved_pages: Range<u64>,
}

impl RecentIds {
    /// No ids; the first one gets the number `first`.
    pub(super) fn starting_at(first: u64) -> Self {
        Self { first, saved_to: first, ..Self::default() }
    }

    pub(super) const fn first_number(&self) -> u64 {
        self.first
    }

    pub(super) fn contains(&self, id: IdHash) -> bool {
        self.known.contains(&id) && !is_planted(Bug::IdForgotten)
    }

    pub(super) fn has_room(&self, count: usize) -> bool {
        self.order.len() + count <= QUEUE_IDS_MAX
    }

    /// Remembers an id that it does not know.
    pub(super) fn insert(&mut self, id: IdHash, now_ms: u64) {
        self.known.insert(id);
        self.order.push_back((now_ms, id));
    }

    /// Whether some have been remembered for twice as long as they need to be.
    pub(super) fn is_long_due(&self, window_ms: u64, now_ms: u64) -> bool {
        self.order
            .front()
            .is_some_and(|&(at_ms, _)| now_ms.saturating_sub(at_ms) >= window_ms.saturating_mul(2))
    }

    /// Forgets those that were published so long ago.
    pub(super) fn forget(&mut self, window_ms: u64, now_ms: u64) {
        while let Some(&(at_ms, id)) = self.order.front()
            && now_ms.saturating_sub(at_ms) >= window_ms
        {
            self.order.pop_front();
            self.known.remove(&id);
            self.first += 1;
        }
    }

    pub(super) fn records(&self) -> impl Iterator<Item = (u64, IdsRecord)> {
        self.pages().map(|page| (page, self.record(page)))
    }

    /// What a checkpoint needs to write, and to delete, which is taken to be done.
    pub(super) fn take_changes(&mut self) -> Vec<(u64, Option<IdsRecord>)> {
        let (pages, end) = (self.pages(), self.end());
        let gone = self.saved_pages.clone().filter(|page| !pages.contains(page)).map(|page| (page, None));
        let mut changes: Vec<_> = gone.collect();
        if end > self.saved_to {
            let changed_from = (self.saved_to / PAGE_IDS).max(pages.start);
            changes.extend((changed_from..pages.end).map(|page| (page, Some(self.record(page)))));
        }
        self.saved_pages = pages;
        self.saved_to = end;
        changes
    }

    /// Every page that a checkpoint may have.
    pub(super) fn saved_pages(&self) -> impl Iterator<Item = u64> + use<> {
        self.saved_pages.clone()
    }

    /// Puts back a saved page. Pages come in order, and may have ids before the first that is kept.
    pub(super) fn restore_page(&mut self, page: u64, record: &IdsRecord) -> Result<(), &'static str> {
        for (number, &(at_ms, id)) in (record.first_number..).zip(&record.ids) {
            if number / PAGE_IDS != page {
                return Err("a page does not hold the ids that its number says");
            }
            if number < self.first {
                continue;
            }
            if number != self.end() || !self.known.insert(id) {
                return Err("ids are missing, or there twice");
            }
            self.order.push_back((at_ms, id));
        }
        self.saved_to = self.end();
        self.saved_pages =
            if self.saved_pages.is_empty() { page..page + 1 } else { self.saved_pages.start..page + 1 };
        Ok(())
    }

    fn end(&self) -> u64 {
        self.first + self.order.len() as u64
    }

    /// The pages that have ids.
    fn pages(&self) -> Range<u64> {
        let end = self.end();
        if end == self.first { 0..0 } else { self.first / PAGE_IDS..(end - 1) / PAGE_IDS + 1 }
    }

    fn record(&self, page: u64) -> IdsRecord {
        let first_number = (page * PAGE_IDS).max(self.first);
        let end = ((page + 1) * PAGE_IDS).min(self.end());
        let place = |number: u64| usize::try_from(number - self.first).expect("they are in memory");
        let ids = self.order.range(place(first_number)..place(end)).copied().collect();
        IdsRecord { first_number, ids }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        /// So many ids.
        Insert(u64),
        /// So much time passes, and is all that is remembered.
        Forget(u64),
        Checkpoint,
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..2_000_u64).prop_map(Step::Insert),
            2 => (0..3_000_u64).prop_map(Step::Forget),
            1 => Just(Step::Checkpoint),
            1 => Just(Step::Restart),
        ]
    }

    fn hash(number: u64) -> IdHash {
        IdHash(u128::from(number).to_be_bytes())
    }

    proptest! {
        #[test]
        fn ids_survive_restarts(steps in vec(step(), 1..20)) {
            let mut ids = RecentIds::default();
            let mut store = BTreeMap::new();
            // Each id is published at its own time, one after the other.
            let (mut first, mut next) = (0, 0);
            for step in steps {
                match step {
                    Step::Insert(count) => {
                        (next..next + count).for_each(|number| ids.insert(hash(number), number));
                        next += count;
                    }
                    Step::Forget(window_ms) => {
                        ids.forget(window_ms, next);
                        first = first.max((next + 1).saturating_sub(window_ms)).min(next);
                    }
                    Step::Checkpoint | Step::Restart => {
                        for (page, record) in ids.take_changes() {
                            match record {
                                Some(record) => store.insert(page, record),
                                None => store.remove(&page),
                            };
                        }
                        prop_assert!(ids.take_changes().is_empty());
                        prop_assert!(store.keys().copied().eq(ids.records().map(|(page, _)| page)));
                        prop_assert!(store.keys().copied().eq(ids.saved_pages()));
                        if let Step::Restart = step {
                            let mut restarted = RecentIds::starting_at(ids.first_number());
                            for (&page, record) in &store {
                                prop_assert_eq!(restarted.restore_page(page, record), Ok(()));
                            }
                            prop_assert!(restarted.records().eq(ids.records()));
                            ids = restarted;
                        }
                    }
                }
                prop_assert_eq!((ids.first_number(), ids.end()), (first, next));
                for number in [first.wrapping_sub(1), first, next.wrapping_sub(1), next] {
                    prop_assert_eq!(ids.contains(hash(number)), (first..next).contains(&number));
                }
            }
        }
    }
}
