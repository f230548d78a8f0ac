//! Which queues were changed lately, so that whoever follows the catalog need not look at all of them each time.

use std::collections::VecDeque;

use skein_proto::ids::QueueId;

/// How many changes are remembered, at 16 bytes each. Who is further behind looks at everything.
const CHANGES_MAX: usize = 16_384;

/// The newest changes of queues. Not part of what is replicated: it follows from when this node began to listen.
#[derive(Debug, Default)]
pub(super) struct RecentChanges {
    /// Each with the catalog's revision. These rise.
    changes: VecDeque<(u64, QueueId)>,
    /// All changes after this revision are here.
    complete_after: u64,
}

impl RecentChanges {
    /// Without changes, from this revision on.
    pub(super) fn starting_at(revision: u64) -> Self {
        Self { changes: VecDeque::new(), complete_after: revision }
    }

    /// Notes that a queue is created, changed or deleted at this revision.
    pub(super) fn push(&mut self, revision: u64, queue: QueueId) {
        if self.changes.len() >= CHANGES_MAX
            && let Some((forgotten, _)) = self.changes.pop_front()
        {
            self.complete_after = forgotten;
        }
        self.changes.push_back((revision, queue));
    }

    /// The queues that were changed after this revision; nothing when that is too long ago.
    pub(super) fn since(&self, revision: u64) -> Option<impl Iterator<Item = QueueId>> {
        let first = self.changes.partition_point(|(changed, _)| *changed <= revision);
        let later = self.changes.range(first..).map(|(_, queue)| *queue);
        (revision >= self.complete_after).then_some(later)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn since(recent: &RecentChanges, revision: u64) -> Option<Vec<u64>> {
        recent.since(revision).map(|queues| queues.map(QueueId::get).collect())
    }

    #[test]
    fn what_is_forgotten_is_not_passed_over() {
        let mut recent = RecentChanges::starting_at(5);
        assert_eq!((since(&recent, 4), since(&recent, 5)), (None, Some(vec![])));
        for (revision, queue) in [(6, 1), (7, 2), (7, 3), (9, 1)] {
            recent.push(revision, QueueId::new(queue));
        }
        assert_eq!(since(&recent, 5), Some(vec![1, 2, 3, 1]));
        assert_eq!(since(&recent, 7), Some(vec![1]));
        assert_eq!(since(&recent, 9), Some(vec![]));
        // The second of three is forgotten: who has not seen the third, of the same revision, has to look at all.
        let more = CHANGES_MAX as u64 - 2;
        (10..10 + more).for_each(|revision| recent.push(revision, QueueId::new(revision)));
        assert_eq!((since(&recent, 5), since(&recent, 6)), (None, None));
        assert_eq!(since(&recent, 7).map(|queues| queues.len() as u64), Some(more + 1));
    }
}
