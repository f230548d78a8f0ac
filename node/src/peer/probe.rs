//! Keeps asking every other node whether it is there and how its disk stands, for those who ask what the cluster looks
//! like and for leaders that count on its replica.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use skein_proto::{ids::NodeId, peer::HelloRequest};
use tokio::sync::watch;

use super::Connections;

/// How often each node is asked, and how long an answer may take.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// What the other nodes answered lately.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sightings {
    /// The nodes that answered, this one included.
    pub reachable: BTreeSet<NodeId>,
    /// Those of the others that answered and said that their disk is nearly full.
    pub low_on_disk: BTreeSet<NodeId>,
}

impl Sightings {
    /// Before anybody was asked.
    #[must_use]
    pub fn of_none_but(node: NodeId) -> Self {
        Self { reachable: BTreeSet::from([node]), low_on_disk: BTreeSet::new() }
    }
}

/// Asks every other node for as long as it is polled.
pub async fn probe(
    node: NodeId,
    cluster_id: String,
    connections: Arc<Connections>,
    sightings: watch::Sender<Sightings>,
) {
    let mut ticks = tokio::time::interval(PROBE_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let asked = connections.members().keys().filter(|id| **id != node).map(|id| {
            let (client, cluster_id) = (connections.peer(*id), cluster_id.clone());
            async move {
                let request = HelloRequest { node_id: node.get(), cluster_id, ..HelloRequest::default() };
                let answer = tokio::time::timeout(PROBE_EVERY, client?.hello(request)).await;
                Some((*id, answer.ok()?.ok()?.into_inner()))
            }
        });
        let mut seen = Sightings::of_none_but(node);
        for (id, answer) in futures::future::join_all(asked).await.into_iter().flatten() {
            seen.reachable.insert(id);
            if answer.low_on_disk {
                seen.low_on_disk.insert(id);
            }
        }
        sightings.send_if_modified(|known| {
            let changed = *known != seen;
            *known = seen;
            changed
        });
    }
}
