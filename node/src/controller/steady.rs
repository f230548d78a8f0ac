//! Since when each node has been there. One that comes and goes is not to be counted on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use skein_proto::ids::NodeId;
use tokio::sync::watch;

use crate::{clock::Clock, peer::Sightings, tasks};

/// Since when each node has been there without a break. Cheap to clone.
#[derive(Clone)]
pub struct Steady {
    clock: Clock,
    since: Arc<Mutex<BTreeMap<NodeId, Duration>>>,
}

impl Steady {
    /// Follows what this node sees of the others, for the node's life.
    #[must_use]
    pub fn follow(mut sightings: watch::Receiver<Sightings>, clock: Clock) -> Self {
        let steady = Self { clock, since: Arc::default() };
        let follower = steady.clone();
        tasks::spawn(async move {
            loop {
                let reachable = sightings.borrow_and_update().reachable.clone();
                follower.note(&reachable);
                // An error means that the node is stopping.
                if sightings.changed().await.is_err() {
                    return;
                }
            }
        });
        steady
    }

    fn note(&self, reachable: &BTreeSet<NodeId>) {
        let now = self.clock.monotonic();
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.retain(|node, _| reachable.contains(node));
        for node in reachable {
            since.entry(*node).or_insert(now);
        }
    }

    /// The nodes that have been there for at least this long.
    pub(super) fn for_at_least(&self, long: Duration) -> BTreeSet<NodeId> {
        let now = self.clock.monotonic();
        let since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.iter().filter(|(_, since)| now.saturating_sub(**since) >= long).map(|(node, _)| *node).collect()
    }
}
