//! Keeps asking every other node whether it is there, for those who ask what the cluster looks like.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use skein_proto::{ids::NodeId, peer::HelloRequest};
use tokio::sync::watch;

use super::Connections;

/// How often each node is asked, and how long an answer may take.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// The nodes that answered lately, this one included.
pub type Reachability = watch::Receiver<BTreeSet<NodeId>>;

/// Asks every other node for as long as it is polled.
pub async fn probe(
    node: NodeId,
    cluster_id: String,
    connections: Arc<Connections>,
    reachable: watch::Sender<BTreeSet<NodeId>>,
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
                matches!(answer, Ok(Ok(_))).then_some(*id)
            }
        });
        let mut answered: BTreeSet<_> =
            futures::future::join_all(asked).await.into_iter().flatten().collect();
        answered.insert(node);
        reachable.send_if_modified(|known| {
            let changed = *known != answered;
            *known = answered;
            changed
        });
    }
}
