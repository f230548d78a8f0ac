//! Which segments are part of the log. Written into every segment, so that one that was given up is told from one that
//! was lost.

use bytes::{Buf, BufMut, Bytes};

use super::format::SegmentNumber;

/// What a run of consecutive segments takes.
pub(super) const RUN_BYTES: usize = 16;
/// What the number of runs takes.
pub(super) const RUN_COUNT_BYTES: usize = 4;

/// Rising runs of consecutive numbers: first and count. A segment that is given up leaves a gap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SegmentSet {
    runs: Vec<(u64, u64)>,
}

impl SegmentSet {
    pub(super) fn contains(&self, number: SegmentNumber) -> bool {
        let after = self.runs.partition_point(|(first, _)| *first <= number.get());
        after.checked_sub(1).is_some_and(|at| number.get() - self.runs[at].0 < self.runs[at].1)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = SegmentNumber> {
        self.runs.iter().flat_map(|(first, count)| (*first..first + count).map(SegmentNumber::new))
    }

    pub(super) fn newest(&self) -> Option<SegmentNumber> {
        self.runs.last().map(|(first, count)| SegmentNumber::new(first + count - 1))
    }

    /// Adds one that is newer than all others.
    pub(super) fn push(&mut self, number: SegmentNumber) {
        let number = number.get();
        match self.runs.last_mut() {
            Some((first, count)) if *first + *count == number => *count += 1,
            last => {
                assert!(
                    last.is_none_or(|(first, count)| *first + *count < number),
                    "segments follow one another"
                );
                self.runs.push((number, 1));
            }
        }
    }

    /// Takes out one of them.
    pub(super) fn remove(&mut self, number: SegmentNumber) {
        if !self.contains(number) {
            return;
        }
        let number = number.get();
        let at = self.runs.partition_point(|(first, _)| *first <= number) - 1;
        let (first, count) = self.runs[at];
        let parts = [(first, number - first), (number + 1, first + count - number - 1)];
        self.runs.splice(at..=at, parts.into_iter().filter(|(_, count)| *count > 0));
    }

    pub(super) fn run_count(&self) -> usize {
        self.runs.len()
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32_le(u32::try_from(self.runs.len()).expect("there are fewer segments than fit a disk"));
        for (first, count) in &self.runs {
            out.put_u64_le(*first);
            out.put_u64_le(*count);
        }
    }

    pub(super) fn encoded(&self) -> Bytes {
        let mut out = Vec::with_capacity(RUN_COUNT_BYTES + RUN_BYTES * self.runs.len());
        self.encode(&mut out);
        out.into()
    }

    /// Takes a set off the front of the bytes; `None` when there is none.
    pub(super) fn take(bytes: &mut &[u8]) -> Option<Self> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for _ in 0..bytes.try_get_u32_le().ok()? {
            let run = (bytes.try_get_u64_le().ok()?, bytes.try_get_u64_le().ok()?);
            let follows = runs.last().is_none_or(|(first, count)| first + count < run.0);
            if !follows || run.1 == 0 || run.0.checked_add(run.1).is_none() {
                return None;
            }
            runs.push(run);
        }
        Some(Self { runs })
    }

    /// What [`encoded`](Self::encoded) made, and nothing behind it.
    pub(super) fn decode(mut bytes: &[u8]) -> Option<Self> {
        Self::take(&mut bytes).filter(|_| bytes.is_empty())
    }
}

/// Numbers of segments that are given up, as a record has them.
pub(super) fn encode_numbers(numbers: &[SegmentNumber]) -> Bytes {
    numbers.iter().flat_map(|number| number.get().to_le_bytes()).collect::<Vec<_>>().into()
}

/// What [`encode_numbers`] made.
pub(super) fn decode_numbers(bytes: &[u8]) -> Option<Vec<SegmentNumber>> {
    let (numbers, rest) = bytes.as_chunks();
    let number = |bytes: &[u8; 8]| SegmentNumber::new(u64::from_le_bytes(*bytes));
    rest.is_empty().then(|| numbers.iter().map(number).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_a_set_and_comes_back_as_it_went(removed in prop::collection::vec(1u64..40, 0..40)) {
            let mut set = SegmentSet::default();
            let mut model = BTreeSet::new();
            for (number, removed) in (1u64..).zip(removed) {
                set.push(SegmentNumber::new(number));
                set.remove(SegmentNumber::new(removed));
                model.insert(number);
                model.remove(&removed);
            }
            let numbers: Vec<_> = set.iter().map(SegmentNumber::get).collect();
            prop_assert_eq!(&numbers, &model.iter().copied().collect::<Vec<_>>());
            prop_assert!((1..50).all(|number| set.contains(SegmentNumber::new(number)) == model.contains(&number)));
            prop_assert_eq!(SegmentSet::decode(&set.encoded()), Some(set));
        }

        #[test]
        fn arbitrary_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = (SegmentSet::decode(&bytes), decode_numbers(&bytes));
        }
    }
}
