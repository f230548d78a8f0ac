//! Opens and closes queues on the shards that this node leads, as the catalog on this node says.
//!
//! The catalog decides where a queue is; its shard has to open it. Between the two a node can fail, so nobody relies on
//! the one who created the queue to see to it: whoever leads the shard does.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::{
    StreamExt as _,
    stream::{self},
};
use skein_proto::ids::QueueId;
use tokio_stream::wrappers::WatchStream;

use crate::{
    broker::{Command, Settings},
    raft::{Group, Groups, Proposed},
};

/// The pause after a proposal failed, for leadership to settle.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// The pause after each look at all queues, so that many changes are met by few. Whoever creates a queue and uses it
/// has it opened at once, by the API.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// How long one shard may take before the others are looked at again.
const SHARD_WAIT_MAX: Duration = Duration::from_secs(1);

/// Proposals of one shard that are in flight together.
const IN_FLIGHT_MAX: usize = 256;

/// What the catalog says of a queue, as far as its shard must know.
type Wanted<'a> = (QueueId, &'a str, &'a Settings);

/// Reconciles for as long as it is polled.
pub async fn reconcile_queues(groups: Arc<Groups>) {
    let catalog = groups.catalog();
    let catalog_changes = WatchStream::new(catalog.replica().applied_index()).map(drop).boxed();
    let leader_changes =
        groups.iter().map(|group| WatchStream::from_changes(group.leadership()).map(drop).boxed());
    let mut changes = stream::select_all(leader_changes.chain([catalog_changes]));
    while changes.next().await.is_some() {
        while !reconcile(&groups).await {
            tokio::time::sleep(RETRY_AFTER).await;
        }
        tokio::time::sleep(LOOK_AGAIN_AFTER).await;
    }
}

/// False when some shard is not as it should be yet.
async fn reconcile(groups: &Groups) -> bool {
    let catalog = groups.catalog();
    let led = groups.iter().skip(1).filter(|group| group.is_leader());
    // All at once and each for a while: a shard without a majority holds up no other.
    let shards = led.map(|group| tokio::time::timeout(SHARD_WAIT_MAX, reconcile_shard(catalog, group)));
    futures::future::join_all(shards).await.into_iter().all(|done| done.is_ok_and(|done| done))
}

/// False when a proposal failed.
async fn reconcile_shard(catalog: &Group, group: &Group) -> bool {
    // First, so that the catalog is the newer of the two: opening an open queue and closing a closed one do no harm.
    let actual: Vec<QueueId> =
        group.replica().with_messages(|shard| shard.queues().map(crate::broker::Queue::id).collect());
    let commands = catalog.replica().with_catalog(|catalog| {
        let here = catalog.queues().filter(|(_, queue)| queue.shard == group.shard());
        let wanted = here.map(|(name, queue)| (queue.queue, name, &queue.settings));
        difference(wanted, &actual, catalog.next_queue())
    });
    let outcomes = stream::iter(commands.iter().map(Proposed::shard).map(|proposed| group.propose(proposed)))
        .buffered(IN_FLIGHT_MAX)
        .collect::<Vec<_>>()
        .await;
    outcomes.iter().all(Result::is_ok)
}

/// What it takes to get from the open queues to the wanted ones. A queue from `next` on was created after this node's
/// catalog stopped hearing of it, and is none of its business.
fn difference<'a>(
    wanted: impl Iterator<Item = Wanted<'a>>,
    actual: &[QueueId],
    next: QueueId,
) -> Vec<Command> {
    let mut open = Vec::new();
    let mut surplus: BTreeSet<_> = actual.iter().copied().filter(|queue| *queue < next).collect();
    for (queue, name, settings) in wanted {
        surplus.remove(&queue);
        if actual.binary_search(&queue).is_err() {
            open.push(Command::OpenQueue { queue, name: name.to_owned(), settings: settings.clone() });
        }
    }
    surplus.into_iter().map(|queue| Command::CloseQueue { queue }).chain(open).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_queues_are_opened_and_surplus_ones_closed_but_not_those_the_catalog_has_not_heard_of() {
        let settings = Settings { max_deliveries: 1, dead_letter_queue: None, lease_ms: 1_000 };
        let queue = |id| QueueId::new(id);
        let names = [1, 2, 4].map(|id| (queue(id), format!("queue-{id}")));
        let wanted = names.iter().map(|(queue, name)| (*queue, name.as_str(), &settings));
        let commands = difference(wanted, &[queue(2), queue(3), queue(5)], queue(5));
        let open = |id| Command::OpenQueue {
            queue: queue(id),
            name: format!("queue-{id}"),
            settings: settings.clone(),
        };
        assert_eq!(commands, [Command::CloseQueue { queue: queue(3) }, open(1), open(4)]);
    }
}
