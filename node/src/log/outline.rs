//! What is known of a shard's log without its entries: votes, bounds, and which term each index has.

use std::{collections::VecDeque, ops::Range};

use bytes::Bytes;

use super::{EntryId, ShardState};

/// A shard's log in outline. A shard nobody has written to yet is the default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Outline {
    pub(super) vote: Option<Bytes>,
    pub(super) committed: Option<Bytes>,
    pub(super) purged: Option<EntryId>,
    /// Entries below this that were written before are not those of the shard: it went on past its end, from another
    /// replica's snapshot, and they may never have been committed.
    pub(super) void_below: u64,
    /// Runs of one term, by rising index; the first starts at the first live entry. Terms change with leaders, so
    /// there are few however many entries there are.
    terms: VecDeque<TermRun>,
    /// One past the last live entry; 0 without term runs.
    end: u64,
}

/// From `first` on, until the next run, entries have this term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TermRun {
    pub(super) first: u64,
    pub(super) term: u64,
}

/// An entry that does not continue its shard's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap;

impl Outline {
    /// The outline whose term runs and end were read from disk; `None` when they contradict each other.
    pub(super) fn restored(
        vote: Option<Bytes>,
        committed: Option<Bytes>,
        purged: Option<EntryId>,
        void_below: u64,
        (terms, end): (VecDeque<TermRun>, u64),
    ) -> Option<Self> {
        let rising = terms.iter().zip(terms.iter().skip(1)).all(|(run, next)| run.first < next.first);
        let ends_after = terms.back().is_none_or(|run| run.first < end);
        // Not always right after it: the first entry may have any index, and a purge point may come below it.
        let starts_after = match (terms.front(), purged) {
            (Some(run), Some(purged)) => purged.index < run.first,
            _ => true,
        };
        // It goes up with the purge point.
        let voids_purged = void_below <= purged.map_or(0, |purged| purged.index.saturating_add(1));
        let end = if terms.is_empty() { 0 } else { end };
        (rising && ends_after && starts_after && voids_purged).then_some(Self {
            vote,
            committed,
            purged,
            void_below,
            terms,
            end,
        })
    }

    pub(super) fn terms(&self) -> impl ExactSizeIterator<Item = TermRun> {
        self.terms.iter().copied()
    }

    /// The indexes of the live entries.
    pub(super) fn live(&self) -> Range<u64> {
        match self.terms.front() {
            Some(run) => run.first..self.end,
            None => {
                let next = self.next_index().unwrap_or(0);
                next..next
            }
        }
    }

    /// The index that the next entry must have; `None` when it may start anywhere.
    pub(super) fn next_index(&self) -> Option<u64> {
        match self.terms.is_empty() {
            false => Some(self.end),
            true => self.purged.map(|purged| purged.index.saturating_add(1)),
        }
    }

    /// The last live entry, else the purge point.
    pub(super) fn last(&self) -> Option<EntryId> {
        match self.terms.back() {
            Some(run) => Some(EntryId { term: run.term, index: self.end - 1 }),
            None => self.purged,
        }
    }

    /// The term of a live entry, or of the purge point.
    pub(super) fn term_at(&self, index: u64) -> Option<u64> {
        if let Some(purged) = self.purged.filter(|purged| purged.index == index) {
            return Some(purged.term);
        }
        if !self.live().contains(&index) {
            return None;
        }
        let after = self.terms.partition_point(|run| run.first <= index);
        Some(self.terms[after - 1].term)
    }

    pub(super) fn push(&mut self, id: EntryId) -> Result<(), Gap> {
        let end = id.index.checked_add(1).ok_or(Gap)?;
        if self.next_index().is_some_and(|next| next != id.index) {
            return Err(Gap);
        }
        if self.terms.back().is_none_or(|run| run.term != id.term) {
            self.terms.push_back(TermRun { first: id.index, term: id.term });
        }
        self.end = end;
        Ok(())
    }

    /// Drops the entries from `first_removed` on.
    pub(super) fn truncate(&mut self, first_removed: u64) {
        while self.terms.pop_back_if(|run| run.first >= first_removed).is_some() {}
        self.end = if self.terms.is_empty() { 0 } else { self.end.min(first_removed) };
    }

    /// Moves the purge point up to `upto`; never down.
    pub(super) fn purge(&mut self, upto: EntryId) {
        if self.purged.is_some_and(|purged| purged.index >= upto.index) {
            return;
        }
        let start = upto.index.saturating_add(1);
        if self.next_index().is_none_or(|next| next < start) {
            self.void_below = start;
        }
        self.purged = Some(upto);
        if start >= self.end {
            self.terms.clear();
            self.end = 0;
        }
        while self.terms.get(1).is_some_and(|run| run.first <= start) {
            self.terms.pop_front();
        }
        if let Some(run) = self.terms.front_mut() {
            run.first = run.first.max(start);
        }
    }

    pub(super) fn state(&self) -> ShardState {
        ShardState {
            vote: self.vote.clone(),
            committed: self.committed.clone(),
            purged: self.purged,
            last: self.last(),
            live: self.live(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(term: u64, index: u64) -> EntryId {
        EntryId { term, index }
    }

    fn outline(terms: &[u64]) -> Outline {
        let mut outline = Outline::default();
        for (index, term) in (1..).zip(terms) {
            outline.push(id(*term, index)).unwrap();
        }
        outline
    }

    #[test]
    fn knows_the_term_of_every_live_entry() {
        let outline = outline(&[1, 1, 2, 2, 5]);
        let terms: Vec<_> = (0..=6).map(|index| outline.term_at(index)).collect();
        assert_eq!(terms, [None, Some(1), Some(1), Some(2), Some(2), Some(5), None]);
        assert_eq!(outline.last(), Some(id(5, 5)));
    }

    #[test]
    fn what_voids_live_entries_is_refused() {
        let restored = |void_below| {
            let terms = VecDeque::from([TermRun { first: 5, term: 1 }]);
            Outline::restored(None, None, Some(id(1, 4)), void_below, (terms, 9)).is_some()
        };
        assert_eq!([0, 5, 6, 9].map(restored), [true, true, false, false]);
    }

    #[test]
    fn truncation_ends_inside_a_run() {
        let mut outline = outline(&[1, 1, 2, 2, 5]);
        outline.truncate(4);
        assert_eq!(outline.last(), Some(id(2, 3)));
        assert_eq!(outline.push(id(6, 5)), Err(Gap));
        assert_eq!(outline.push(id(6, 4)), Ok(()));
        outline.truncate(0);
        assert_eq!((outline.last(), outline.live()), (None, 0..0));
    }

    #[test]
    fn purge_past_the_end_leaves_an_empty_log_that_goes_on_from_there() {
        let mut outline = outline(&[1, 1, 2]);
        outline.purge(id(2, 2));
        assert_eq!((outline.live(), outline.term_at(2)), (3..4, Some(2)));
        outline.purge(id(3, 10));
        assert_eq!((outline.live(), outline.last()), (11..11, Some(id(3, 10))));
        outline.purge(id(1, 1));
        assert_eq!(outline.purged, Some(id(3, 10)));
        assert_eq!(outline.push(id(3, 4)), Err(Gap));
        assert_eq!(outline.push(id(3, 11)), Ok(()));
        outline.truncate(5);
        assert_eq!(outline.last(), Some(id(3, 10)));
    }
}
