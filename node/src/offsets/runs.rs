//! A map from offsets to values that stores a run of equal values once.

use std::{cmp, collections::BTreeMap, fmt};

use skein_proto::ids::Offset;

use super::OffsetRange;

/// Disjoint ranges of offsets, each with a value. Neighbours with equal values are one run.
#[derive(Clone, PartialEq, Eq)]
pub struct OffsetRuns<T> {
    runs: BTreeMap<Offset, Run<T>>,
    offset_count: u64,
}

#[derive(Clone, PartialEq, Eq)]
struct Run<T> {
    end: Offset,
    value: T,
}

impl<T: Clone + PartialEq> OffsetRuns<T> {
    /// Without any offset.
    #[must_use]
    pub const fn new() -> Self {
        Self { runs: BTreeMap::new(), offset_count: 0 }
    }

    /// How many offsets have a value.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.offset_count
    }

    /// Whether no offset has a value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many runs there are, which is what memory and time are proportional to.
    #[must_use]
    pub fn run_count(&self) -> usize {
        self.runs.len()
    }

    /// The run that `offset` lies in.
    #[must_use]
    pub fn get(&self, offset: Offset) -> Option<(OffsetRange, &T)> {
        let (&first, run) = self.runs.range(..=offset).next_back()?;
        (offset < run.end).then(|| (OffsetRange::between(first, run.end), &run.value))
    }

    /// The run with the lowest offsets.
    #[must_use]
    pub fn first(&self) -> Option<(OffsetRange, &T)> {
        self.iter().next()
    }

    /// The offset after the highest one that has a value.
    #[must_use]
    pub fn end(&self) -> Option<Offset> {
        self.runs.last_key_value().map(|(_, run)| run.end)
    }

    /// All runs, lowest offsets first.
    pub fn iter(&self) -> impl Iterator<Item = (OffsetRange, &T)> {
        self.runs.iter().map(|(&first, run)| (OffsetRange::between(first, run.end), &run.value))
    }

    /// The parts of runs that lie inside `range`, lowest offsets first.
    pub fn overlapping(&self, range: OffsetRange) -> impl Iterator<Item = (OffsetRange, &T)> {
        let straddling = self.get(range.first).map_or(range.first, |(run, _)| run.first);
        let inside = cmp::min(straddling, range.end())..range.end();
        self.runs.range(inside).filter_map(move |(&first, run)| {
            let part = OffsetRange::between(first, run.end).intersect(range);
            (!part.is_empty()).then_some((part, &run.value))
        })
    }

    /// The parts of `range` that have no value, lowest offsets first.
    pub fn gaps(&self, range: OffsetRange) -> impl Iterator<Item = OffsetRange> {
        let runs = self.overlapping(range).map(|(run, _)| run);
        let end = OffsetRange::new(range.end(), 0);
        runs.chain([end])
            .scan(range.first, |reached, run| {
                let gap = OffsetRange::between(*reached, run.first);
                *reached = run.end();
                Some(gap)
            })
            .filter(|gap| !gap.is_empty())
    }

    /// Gives every offset of `range` this value, whatever it had before.
    pub fn insert(&mut self, range: OffsetRange, value: T) {
        let (first, end) = (range.first, range.end());
        if first >= end {
            return;
        }
        // Most ranges lie in a gap, or at the end of a run: only the last run before their end is looked at.
        match self.runs.range_mut(..=end).next_back() {
            Some((&before, run)) if before < first && run.end == first && run.value == value => {
                run.end = end;
                self.offset_count += end.since(first);
            }
            Some((&before, run)) if before >= first || run.end >= first => self.insert_over(range, value),
            _ => {
                self.runs.insert(first, Run { end, value });
                self.offset_count += end.since(first);
            }
        }
    }

    /// Gives a range that touches runs this value.
    fn insert_over(&mut self, range: OffsetRange, value: T) {
        self.remove(range);
        let (mut first, mut end) = (range.first, range.end());
        self.offset_count += end.since(first);
        if let Some((&before, run)) = self.runs.range(..first).next_back()
            && run.end == first
            && run.value == value
        {
            first = before;
        }
        if let Some(run) = self.runs.get(&end)
            && run.value == value
        {
            let after = end;
            end = run.end;
            self.runs.remove(&after);
        }
        self.runs.insert(first, Run { end, value });
    }

    /// Takes the value from every offset of `range` that has one.
    pub fn remove(&mut self, range: OffsetRange) {
        let (first, end) = (range.first, range.end());
        if first >= end {
            return;
        }
        // From the last one back, since most ranges have none or one.
        while let Some((&start, run)) = self.runs.range_mut(..end).next_back()
            && run.end > first
        {
            let removed = OffsetRange::between(start, run.end).intersect(range);
            self.offset_count -= removed.count;
            let tail = (run.end > end).then(|| run.clone());
            if start < first {
                run.end = first;
            } else {
                self.runs.remove(&start);
            }
            if let Some(tail) = tail {
                self.runs.insert(end, tail);
            }
        }
    }

    /// Takes the lowest offsets, up to `count_max` of them out of one run.
    pub fn take_first(&mut self, count_max: u64) -> Option<(OffsetRange, T)> {
        if count_max == 0 {
            return None;
        }
        let (first, mut run) = self.runs.pop_first()?;
        let (taken, rest) = OffsetRange::between(first, run.end).split_at(
            // Saturating: `count_max` may be "all of them".
            OffsetRange::new(first, count_max).end(),
        );
        self.offset_count -= taken.count;
        let value = run.value.clone();
        if !rest.is_empty() {
            run.end = rest.end();
            self.runs.insert(rest.first, run);
        }
        Some((taken, value))
    }

    /// Takes all offsets.
    pub fn clear(&mut self) {
        *self = Self::new();
    }
}

impl<T: Clone + PartialEq> Default for OffsetRuns<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Clone + PartialEq> FromIterator<(OffsetRange, T)> for OffsetRuns<T> {
    fn from_iter<I: IntoIterator<Item = (OffsetRange, T)>>(runs: I) -> Self {
        let mut collected = Self::new();
        for (range, value) in runs {
            collected.insert(range, value);
        }
        collected
    }
}

impl<T: Clone + PartialEq + fmt::Debug> fmt::Debug for OffsetRuns<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(range, value)| (range.to_string(), value))).finish()
    }
}
