//! How fast queues and their groups are, by what was counted at two times.

use std::collections::BTreeMap;

use skein_client::{Group, Queue};
use skein_proto::partitions;
use tokio::time::Instant;

use super::By;

/// What was counted at one time.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    queues: BTreeMap<String, Counted>,
}

/// A queue, or all partitions of one.
#[derive(Debug, Default)]
struct Counted {
    published: u64,
    messages: u64,
    bytes: u64,
    /// What each group has not acked.
    groups: BTreeMap<String, u64>,
}

/// A queue, and how busy it was between two times.
#[derive(Debug, PartialEq)]
pub(super) struct Busy {
    pub(super) name: String,
    pub(super) published_per_s: f64,
    /// Messages that are kept.
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) groups: Vec<BusyGroup>,
}

#[derive(Debug, PartialEq)]
pub(super) struct BusyGroup {
    pub(super) name: String,
    /// Acked or given up.
    pub(super) done_per_s: f64,
    pub(super) unacked: u64,
    /// What only the queue's leader knows; nothing when that was not asked, or did not answer.
    pub(super) known: Option<Group>,
}

impl Sample {
    /// Partitions count together.
    pub(super) fn of(at: Instant, listed: Vec<Queue>) -> Self {
        let mut queues: BTreeMap<String, Counted> = BTreeMap::new();
        for queue in listed {
            let whole = partitions::parse(&queue.name).filter(|_| queue.settings.partitions.is_some());
            let name = whole.map_or(queue.name.as_str(), |(whole, _)| whole);
            let counted = queues.entry(name.to_owned()).or_default();
            counted.published += queue.next_offset.get();
            counted.messages += queue.message_count;
            counted.bytes += queue.message_bytes;
            for group in queue.groups {
                *counted.groups.entry(group.name).or_default() += group.unacked_count;
            }
        }
        Self { at, queues }
    }
}

impl Busy {
    /// Adds what the queue's leader says of its groups.
    pub(super) fn take_in(&mut self, groups: &[Group]) {
        for busy in &mut self.groups {
            busy.known = groups.iter().find(|group| group.name == busy.name).cloned();
        }
    }

    fn done_per_s(&self) -> f64 {
        self.groups.iter().map(|group| group.done_per_s).sum()
    }

    fn backlog(&self) -> u64 {
        self.groups.iter().map(|group| group.unacked).max().unwrap_or(self.messages)
    }
}

/// How busy the queues were that there are now. One that is new began with nothing.
pub(super) fn between(before: &Sample, after: &Sample) -> Vec<Busy> {
    let seconds = after.at.saturating_duration_since(before.at).as_secs_f64().max(f64::EPSILON);
    let rate = |count: u64| count as f64 / seconds;
    let nothing = Counted::default();
    let busy = after.queues.iter().map(|(name, now)| {
        let then = before.queues.get(name).unwrap_or(&nothing);
        let groups = now.groups.iter().map(|(name, &unacked)| {
            let done = |counted: &Counted, unacked: u64| counted.published.saturating_sub(unacked);
            // A group that was not there had everything before it. One that was moved back has less done than before.
            let unacked_then = then.groups.get(name).copied().unwrap_or(then.published);
            let done_meanwhile = done(now, unacked).saturating_sub(done(then, unacked_then));
            BusyGroup { name: name.clone(), done_per_s: rate(done_meanwhile), unacked, known: None }
        });
        Busy {
            name: name.clone(),
            // One that was deleted and created again has fewer.
            published_per_s: rate(now.published.saturating_sub(then.published)),
            messages: now.messages,
            bytes: now.bytes,
            groups: groups.collect(),
        }
    });
    busy.collect()
}

/// The busiest first, or those where most waits; of equal ones, by name.
pub(super) fn sort(queues: &mut [Busy], by: By) {
    let rate = |queue: &Busy| queue.published_per_s + queue.done_per_s();
    queues.sort_by(|one, other| {
        let by_rate = rate(other).total_cmp(&rate(one));
        let by_backlog = other.backlog().cmp(&one.backlog());
        let order = match by {
            By::Rate => by_rate.then(by_backlog),
            By::Backlog => by_backlog.then(by_rate),
        };
        order.then_with(|| one.name.cmp(&other.name))
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A queue, how much was published to it, and what its groups have not acked.
    type Given<'a> = (&'a str, u64, &'a [(&'a str, u64)]);

    fn sample(at: Instant, queues: &[Given<'_>]) -> Sample {
        let counted = queues.iter().map(|(name, published, groups)| {
            let groups = groups.iter().map(|(name, unacked)| ((*name).to_owned(), *unacked)).collect();
            ((*name).to_owned(), Counted { published: *published, messages: *published, bytes: 0, groups })
        });
        Sample { at, queues: counted.collect() }
    }

    fn names(queues: &[Busy]) -> Vec<&str> {
        queues.iter().map(|queue| queue.name.as_str()).collect()
    }

    #[test]
    fn rates_are_what_came_to_be_meanwhile() {
        let begin = Instant::now();
        let before = sample(begin, &[("a", 100, &[("mail", 40)]), ("b", 7, &[("all", 0)])]);
        let later = begin + Duration::from_secs(2);
        let after = sample(later, &[("a", 160, &[("mail", 20)]), ("b", 7, &[("all", 7)]), ("c", 5, &[])]);
        let mut busy = between(&before, &after);
        let rates = |queue: &Busy| (queue.published_per_s, queue.done_per_s());
        assert_eq!(busy.iter().map(rates).collect::<Vec<_>>(), [(30.0, 40.0), (0.0, 0.0), (2.5, 0.0)]);
        sort(&mut busy, By::Rate);
        assert_eq!(names(&busy), ["a", "c", "b"]);
        sort(&mut busy, By::Backlog);
        assert_eq!(names(&busy), ["a", "b", "c"], "b was moved back");
    }
}
