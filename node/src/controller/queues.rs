//! Opens and closes queues on the shards that this node leads, as the catalog on this node says.
//!
//! The catalog decides where a queue is; its shard has to open it. Between the two a node can fail, so nobody relies on
//! the one who created the queue to see to it: whoever leads the shard does.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{
    StreamExt as _,
    stream::{self},
};
use skein_proto::ids::{QueueId, ShardId};
use tokio_stream::wrappers::WatchStream;

use crate::{
    broker::{CatalogQueue, Command, Queue},
    clock::Clock,
    raft::{Group, Groups, Proposed},
};

/// The pause after a proposal failed, for leadership to settle.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// The pause after each look, so that many changes are met by few. Whoever creates a queue and uses it
/// has it opened at once, by the API.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// All queues are looked at now and then, and not only those that have changed: one may be opened for somebody who had
/// not heard yet that it was deleted.
const LOOK_AT_ALL_EVERY: Duration = Duration::from_secs(10);

/// How long one shard may take before the others are looked at again.
const SHARD_WAIT_MAX: Duration = Duration::from_secs(1);

/// Proposals of one shard that are in flight together.
const IN_FLIGHT_MAX: usize = 256;

/// What the catalog says of a queue, as far as its shard must know.
type Wanted<'a> = (QueueId, &'a str, &'a CatalogQueue);

/// Up to where a shard's queues are as the catalog says: what this node has seen to since it leads the shard.
#[derive(Debug, Clone, Copy)]
struct Reached {
    term: u64,
    revision: u64,
    /// When all of them were looked at, by the monotonic clock.
    all_at: Duration,
}

/// Reconciles for as long as it is polled.
pub async fn reconcile_queues(groups: Arc<Groups>, clock: Clock) {
    let catalog = groups.catalog();
    let catalog_changes = WatchStream::new(catalog.replica().applied_index()).map(drop).boxed();
    let leader_changes =
        groups.iter().map(|group| WatchStream::from_changes(group.leadership()).map(drop).boxed());
    let mut changes = stream::select_all(leader_changes.chain([catalog_changes]));
    let mut reached = BTreeMap::new();
    while changes.next().await.is_some() {
        while !reconcile(&groups, &mut reached, clock.monotonic()).await {
            tokio::time::sleep(RETRY_AFTER).await;
        }
        tokio::time::sleep(LOOK_AGAIN_AFTER).await;
    }
}

/// False when some shard is not as it should be yet.
async fn reconcile(groups: &Groups, reached: &mut BTreeMap<ShardId, Reached>, now: Duration) -> bool {
    let catalog = groups.catalog();
    let led: Vec<_> = groups.iter().skip(1).filter(|group| group.is_leader()).collect();
    // All at once and each for a while: a shard without a majority holds up no other.
    let shards = led.iter().map(|group| {
        let before = reached.get(&group.shard()).copied();
        tokio::time::timeout(SHARD_WAIT_MAX, reconcile_shard(catalog, group, before, now))
    });
    let done = futures::future::join_all(shards).await;
    let mut all_done = true;
    for (group, done) in led.iter().zip(done) {
        match done {
            Ok(Some(now)) => drop(reached.insert(group.shard(), now)),
            Ok(None) | Err(_) => all_done = false,
        }
    }
    all_done
}

/// Brings a shard's queues from where they were to what the catalog says now: those that have changed since, or all of
/// them when nobody can tell which those are. Nothing when a proposal failed.
async fn reconcile_shard(
    catalog: &Group,
    group: &Group,
    before: Option<Reached>,
    now: Duration,
) -> Option<Reached> {
    let term = group.leadership().borrow().term;
    let before = before.filter(|before| before.term == term && now < before.all_at + LOOK_AT_ALL_EVERY);
    let (changed, revision) = catalog.replica().with_catalog(|catalog| {
        (before.and_then(|before| catalog.queues_changed_since(before.revision)), catalog.revision())
    });
    // Before the catalog is asked, so that that is the newer of the two: opening an open queue and closing a closed
    // one do no harm.
    let revision_of = |queue: &Queue| (queue.id(), queue.settings_revision());
    let actual: Vec<_> = group.replica().with_messages(|shard| match &changed {
        Some(changed) => changed.iter().filter_map(|queue| shard.queue(*queue)).map(revision_of).collect(),
        None => shard.queues().map(revision_of).collect(),
    });
    let shard = group.shard();
    let commands = catalog.replica().with_catalog(|catalog| match &changed {
        Some(changed) => {
            let name_of = |queue: &QueueId| catalog.queue_name(*queue);
            let known =
                changed.iter().filter_map(name_of).filter_map(|name| Some((name, catalog.queue(name)?)));
            difference(known.filter_map(|queue| wanted_in(shard, queue)), &actual, catalog.next_queue())
        }
        None => {
            let wanted = catalog.queues().filter_map(|queue| wanted_in(shard, queue));
            difference(wanted, &actual, catalog.next_queue())
        }
    });
    let outcomes = stream::iter(commands.iter().map(Proposed::shard).map(|proposed| group.propose(proposed)))
        .buffered(IN_FLIGHT_MAX)
        .collect::<Vec<_>>()
        .await;
    let all_at = before.filter(|_| changed.is_some()).map_or(now, |before| before.all_at);
    outcomes.iter().all(Result::is_ok).then_some(Reached { term, revision, all_at })
}

/// A queue as this shard must know it, if it carries it.
fn wanted_in<'a>(shard: ShardId, (name, queue): (&'a str, &'a CatalogQueue)) -> Option<Wanted<'a>> {
    (queue.shard == shard).then_some((queue.queue, name, queue))
}

/// What it takes to get from the open queues, each with the revision of its settings, to the wanted ones. A queue from
/// `next` on was created after this node's catalog stopped hearing of it, and is none of its business.
fn difference<'a>(
    wanted: impl Iterator<Item = Wanted<'a>>,
    actual: &[(QueueId, u64)],
    next: QueueId,
) -> Vec<Command> {
    let mut open = Vec::new();
    let mut surplus: BTreeSet<_> =
        actual.iter().map(|&(queue, _)| queue).filter(|&queue| queue < next).collect();
    for (queue, name, CatalogQueue { settings, settings_revision, .. }) in wanted {
        surplus.remove(&queue);
        let open_as = actual.binary_search_by_key(&queue, |&(queue, _)| queue).map(|place| actual[place].1);
        if open_as.is_ok_and(|revision| revision >= *settings_revision) {
            continue;
        }
        let (name, settings) = (name.to_owned(), settings.clone());
        open.push(Command::OpenQueue { queue, name, settings, revision: *settings_revision });
    }
    surplus.into_iter().map(|queue| Command::CloseQueue { queue }).chain(open).collect()
}

#[cfg(test)]
mod tests {
    use skein_proto::ids::ShardId;

    use super::*;
    use crate::broker::Settings;

    #[test]
    fn queues_are_opened_or_changed_or_closed_but_not_those_the_catalog_has_not_heard_of() {
        let queue = |id| QueueId::new(id);
        let as_known = |(id, settings_revision)| {
            let (shard, settings) = (ShardId::new(1), Settings::default());
            (format!("queue-{id}"), CatalogQueue { queue: queue(id), shard, settings, settings_revision })
        };
        let known = [(1, 0), (2, 7), (4, 3), (6, 9)].map(as_known);
        let wanted = known.iter().map(|(name, known)| (known.queue, name.as_str(), known));
        let actual = [(queue(2), 8), (queue(3), 0), (queue(6), 2), (queue(7), 0)];
        let commands = difference(wanted, &actual, queue(7));
        let open = |id, revision| Command::OpenQueue {
            queue: queue(id),
            name: format!("queue-{id}"),
            settings: Settings::default(),
            revision,
        };
        assert_eq!(commands, [Command::CloseQueue { queue: queue(3) }, open(1, 0), open(4, 3), open(6, 9)]);
    }
}
