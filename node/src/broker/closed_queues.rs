//! The ids of queues that were closed, none of which opens again.

use std::collections::BTreeMap;

use skein_proto::ids::QueueId;

/// A set of queue ids, kept as ranges that do not touch. It is never emptied: what grows with every deleted queue is
/// only the number of gaps between them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ClosedQueues {
    /// The last id of each range, by the first.
    ranges: BTreeMap<QueueId, QueueId>,
}

impl ClosedQueues {
    pub(super) fn contains(&self, id: QueueId) -> bool {
        self.ranges.range(..=id).next_back().is_some_and(|(_, &last)| id <= last)
    }

    pub(super) fn insert(&mut self, id: QueueId) {
        if self.contains(id) {
            return;
        }
        let before = self.ranges.range(..id).next_back().filter(|&(_, &last)| follows(last, id));
        let first = before.map_or(id, |(&first, _)| first);
        let after = self.ranges.range(id..).next().filter(|&(&first, _)| follows(id, first));
        let after = after.map(|(&first, &last)| (first, last));
        if let Some((first, _)) = after {
            self.ranges.remove(&first);
        }
        self.ranges.insert(first, after.map_or(id, |(_, last)| last));
    }

    /// The first and the last id of each range, lowest first.
    pub(super) fn record(&self) -> Vec<(QueueId, QueueId)> {
        self.ranges.iter().map(|(&first, &last)| (first, last)).collect()
    }

    pub(super) fn restore(record: &[(QueueId, QueueId)]) -> Result<Self, &'static str> {
        let ordered = record.iter().all(|(first, last)| first <= last)
            && record.windows(2).all(|pair| pair[0].1 < pair[1].0 && !follows(pair[0].1, pair[1].0));
        if !ordered {
            return Err("the ranges of closed queues are not in order");
        }
        Ok(Self { ranges: record.iter().copied().collect() })
    }
}

/// Whether `next` is the id after `id`.
fn follows(id: QueueId, next: QueueId) -> bool {
    id.get().checked_add(1) == Some(next.get())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn ranges_match_a_set(ids in vec(prop_oneof![0..24_u64, u64::MAX - 2..=u64::MAX], 0..40)) {
            let mut closed = ClosedQueues::default();
            let mut expected = BTreeSet::new();
            for id in ids {
                closed.insert(QueueId::new(id));
                expected.insert(id);
                // Fails when two ranges touch.
                closed = ClosedQueues::restore(&closed.record()).unwrap();
                for id in (0..26).chain(u64::MAX - 4..=u64::MAX) {
                    prop_assert_eq!(closed.contains(QueueId::new(id)), expected.contains(&id), "{}", id);
                }
            }
        }
    }

    #[test]
    fn ranges_out_of_order_are_refused() {
        let restore = |ranges: &[(u64, u64)]| {
            let ranges = ranges.iter().map(|&(first, last)| (QueueId::new(first), QueueId::new(last)));
            ClosedQueues::restore(&ranges.collect::<Vec<_>>()).is_ok()
        };
        assert!(restore(&[(1, 4), (6, u64::MAX)]));
        assert!(!restore(&[(4, 1)]));
        assert!(!restore(&[(1, 4), (5, 6)]));
        assert!(!restore(&[(6, 7), (1, 4)]));
    }
}
