//! The way of a message, as spans: one batch in so many is followed from when this node takes it to when a group has
//! acked it. Each stage is a span inside that of the batch, and what they take is told when they end:
//!
//! | span | from, to |
//! |---|---|
//! | `message` | all of it |
//! | `queue` | checked and admitted; proposed, with what else waited |
//! | `replicate` | proposed; on disk on a majority, and applied here |
//! | `append` | handed to this node's log; on its disk |
//! | `wait` | applied; handed out to a consumer |
//! | `hold` | handed out; acked |
//!
//! Of several groups the first one counts that gets it.

use std::{
    ops::Range,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use skein_proto::ids::{Offset, QueueId, ShardId};
use tracing::{Span, field::Empty, info_span};

/// Batches that are followed at a time. Of more, the oldest are let go, such as those that nobody consumes.
const FOLLOWED_MAX: usize = 64;

/// A batch that is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(u64);

/// The batches that are followed on this node.
#[derive(Debug)]
pub struct Traces {
    /// Follows one batch in so many; none when 0.
    one_in: AtomicU64,
    taken: AtomicU64,
    followed_count: AtomicUsize,
    followed: Mutex<Vec<Followed>>,
}

#[derive(Debug)]
struct Followed {
    id: TraceId,
    queue: QueueId,
    whole: Span,
    /// Ends when it is dropped.
    _stage: Span,
    at: Place,
}

/// Where a followed batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Queued,
    /// In the entry whose body lies here in memory.
    Proposed {
        body: usize,
    },
    /// The first message's offset.
    Stored {
        first: Offset,
        is_held: bool,
    },
}

impl Traces {
    pub(super) const fn new() -> Self {
        Self {
            one_in: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            followed_count: AtomicUsize::new(0),
            followed: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn set_one_in(&self, one_in: u64) {
        self.one_in.store(one_in, Ordering::Relaxed);
    }

    /// A batch was taken. Gives how to follow it, if it is one of those that are.
    pub fn take(&self, shard: ShardId, (queue, name): (QueueId, &str), bytes: usize) -> Option<TraceId> {
        let one_in = self.one_in.load(Ordering::Relaxed);
        if one_in == 0 {
            return None;
        }
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        if !number.is_multiple_of(one_in) {
            return None;
        }
        let whole = info_span!("message", %shard, queue = name, bytes, offset = Empty, count = Empty);
        let stage = info_span!(parent: &whole, "queue");
        let id = TraceId(number);
        self.change(|followed| {
            if followed.len() >= FOLLOWED_MAX {
                followed.remove(0);
            }
            followed.push(Followed { id, queue, whole, _stage: stage, at: Place::Queued });
        });
        Some(id)
    }

    /// It is proposed, in an entry with this body.
    pub fn propose(&self, id: TraceId, body: &Bytes) {
        let body = body.as_ptr() as usize;
        self.advance(
            |followed| followed.id == id,
            |whole, _| Some((info_span!(parent: whole, "replicate"), Place::Proposed { body })),
        );
    }

    /// An entry is handed to the log. Gives what is to be dropped when it is on disk, if something is followed in it.
    pub fn append(&self, body: &Bytes) -> Option<Span> {
        let place = Place::Proposed { body: body.as_ptr() as usize };
        self.any()?.iter().find(|followed| followed.at == place).map(|followed| {
            let Followed { whole, .. } = followed;
            info_span!(parent: whole, "append")
        })
    }

    /// It is applied, and lies here.
    pub fn store(&self, id: TraceId, first: Offset, count: u32) {
        self.advance(
            |followed| followed.id == id,
            |whole, _| {
                whole.record("offset", first.get());
                whole.record("count", count);
                Some((info_span!(parent: whole, "wait"), Place::Stored { first, is_held: false }))
            },
        );
    }

    /// Messages were handed out to a consumer.
    pub fn deliver(&self, queue: QueueId, range: Range<Offset>) {
        self.advance(
            |followed| followed.lies_in(queue, &range),
            |whole, at| match at {
                Place::Stored { first, is_held: false } => {
                    Some((info_span!(parent: whole, "hold"), Place::Stored { first, is_held: true }))
                }
                _ => None,
            },
        );
    }

    /// Messages were acked.
    pub fn ack(&self, queue: QueueId, range: Range<Offset>) {
        if self.any().is_some() {
            self.change(|followed| followed.retain(|followed| !followed.lies_in(queue, &range)));
        }
    }

    /// It was refused, or nobody knows what became of it.
    pub fn give_up(&self, id: TraceId) {
        self.change(|followed| followed.retain(|followed| followed.id != id));
    }

    /// Those that are followed, if there are any: where there are none, it costs one load.
    fn any(&self) -> Option<MutexGuard<'_, Vec<Followed>>> {
        (self.followed_count.load(Ordering::Relaxed) > 0).then(|| self.lock())
    }

    /// Lets those come to their next stage that are meant.
    fn advance(
        &self,
        is_meant: impl Fn(&Followed) -> bool,
        next: impl Fn(&Span, Place) -> Option<(Span, Place)>,
    ) {
        let Some(mut all) = self.any() else { return };
        for followed in all.iter_mut().filter(|followed| is_meant(followed)) {
            if let Some((stage, at)) = next(&followed.whole, followed.at) {
                (followed._stage, followed.at) = (stage, at);
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Followed>)) {
        let mut followed = self.lock();
        change(&mut followed);
        self.followed_count.store(followed.len(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Followed>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Followed {
    /// Whether its first message is one of these.
    fn lies_in(&self, queue: QueueId, range: &Range<Offset>) -> bool {
        let is_there = matches!(self.at, Place::Stored { first, .. } if range.contains(&first));
        is_there && self.queue == queue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: QueueId = QueueId::new(3);

    fn places(traces: &Traces) -> Vec<Place> {
        traces.lock().iter().map(|followed| followed.at).collect()
    }

    #[test]
    fn one_in_so_many_is_followed_to_its_ack() {
        let traces = Traces::new();
        let take = || traces.take(ShardId::new(1), (QUEUE, "orders"), 7);
        assert_eq!(take(), None, "it is off");
        traces.set_one_in(3);
        let taken: Vec<_> = (0..6).map(|_| take()).collect();
        assert_eq!(taken.iter().flatten().count(), 2);
        let [one, other] = [taken[0].unwrap(), taken[3].unwrap()];
        traces.give_up(other);

        let body = Bytes::from_static(b"entry");
        assert!(traces.append(&body).is_none());
        traces.propose(one, &body);
        assert!(traces.append(&body).is_some() && traces.append(&Bytes::from(vec![1])).is_none());
        traces.store(one, Offset::new(10), 4);
        let first = Offset::new(10);
        let range = |from, to| Offset::new(from)..Offset::new(to);
        traces.deliver(QUEUE, range(11, 14));
        assert_eq!(places(&traces), [Place::Stored { first, is_held: false }]);
        traces.deliver(QUEUE, range(10, 14));
        assert_eq!(places(&traces), [Place::Stored { first, is_held: true }]);
        traces.ack(QueueId::new(4), range(10, 14));
        assert_eq!(places(&traces).len(), 1, "another queue's");
        traces.ack(QUEUE, range(0, 11));
        assert_eq!(places(&traces), []);
        assert!(traces.any().is_none());
    }

    #[test]
    fn the_oldest_are_let_go() {
        let traces = Traces::new();
        traces.set_one_in(1);
        let ids: Vec<_> =
            (0..=FOLLOWED_MAX).map(|_| traces.take(ShardId::new(1), (QUEUE, "orders"), 7).unwrap()).collect();
        assert_eq!(traces.lock().first().map(|followed| followed.id), Some(ids[1]));
        assert_eq!(traces.lock().len(), FOLLOWED_MAX);
    }
}
