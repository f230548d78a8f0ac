//! Which messages were confirmed, and which of them arrived how often.

use super::load::{Consumed, Published};

/// A set of sequences that are mostly dense: one bit each.
#[derive(Debug, Default, Clone)]
pub(super) struct SequenceSet {
    words: Vec<u64>,
    count: u64,
}

impl SequenceSet {
    /// Says whether it was new.
    pub(super) fn insert(&mut self, sequence: u64) -> bool {
        let word =
            usize::try_from(sequence / 64).expect("a measurement has fewer messages than memory has bits");
        if word >= self.words.len() {
            self.words.resize((word + 1).next_power_of_two(), 0);
        }
        let bit = 1 << (sequence % 64);
        let is_new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.count += u64::from(is_new);
        is_new
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Takes over another set. Returns how many were in both.
    fn merge(&mut self, other: &Self) -> u64 {
        self.words.resize(self.words.len().max(other.words.len()), 0);
        let mut common_count = 0;
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            common_count += u64::from((*word & other).count_ones());
            *word |= other;
        }
        self.count += other.count - common_count;
        common_count
    }

    /// How many are here and not in the other.
    fn missing_from(&self, other: &Self) -> u64 {
        let others = other.words.iter().chain(std::iter::repeat(&0));
        self.words.iter().zip(others).map(|(word, other)| u64::from((word & !other).count_ones())).sum()
    }
}

/// What became of the messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Confirmed and never received.
    pub(super) lost_count: u64,
    /// Received again, counted each time.
    pub(super) duplicated_count: u64,
}

impl Verdict {
    /// Both together.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            lost_count: self.lost_count + other.lost_count,
            duplicated_count: self.duplicated_count + other.duplicated_count,
        }
    }

    pub(super) fn of(published: &[Published], consumed: &[Consumed]) -> Self {
        let mut verdict = Self::default();
        for consumed in consumed {
            verdict.duplicated_count += consumed.duplicated_count;
        }
        for published in published {
            let mut received = SequenceSet::default();
            for consumed in consumed {
                verdict.duplicated_count += received.merge(&consumed.received[published.producer as usize]);
            }
            verdict.lost_count += published.confirmed.missing_from(&received);
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(sequences: impl IntoIterator<Item = u64>) -> SequenceSet {
        let mut set = SequenceSet::default();
        for sequence in sequences {
            set.insert(sequence);
        }
        set
    }

    #[test]
    fn sets_count_what_is_new() {
        let mut sequences = set([0, 1, 63, 64, 1_000]);
        assert!(!sequences.insert(64));
        assert_eq!(sequences.count(), 5);
        assert_eq!(sequences.merge(&set([1, 2, 5_000])), 1);
        assert_eq!(sequences.count(), 7);
    }

    #[test]
    fn what_is_missing_is_lost_and_what_came_twice_is_duplicated() {
        let published = [Published { producer: 0, confirmed: set(0..100), ..Published::default() }];
        let consumed = [
            Consumed { received: vec![set(0..50)], duplicated_count: 2, ..Consumed::default() },
            Consumed { received: vec![set(45..98)], ..Consumed::default() },
        ];
        let verdict = Verdict::of(&published, &consumed);
        assert_eq!(verdict, Verdict { lost_count: 2, duplicated_count: 7 });
    }
}
