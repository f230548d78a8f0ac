//! Decides where a call is served: on this node when it leads the shard, else on the node that does.

use std::{sync::Arc, time::Duration};

use skein_proto::ids::{NodeId, ShardId};
use tonic::{Request, Status, metadata::MetadataValue, transport::Channel};

use super::{Api, names::QueueRef, status};
use crate::{
    broker::{Command, Outcome},
    raft::{CommandOutcome, Group, Proposed},
    shard::{DeliveryHandle, ShardServer},
};

/// How long a call waits for a shard to have a leader: an election on timers takes up to about two seconds.
const LEADER_WAIT_MAX: Duration = Duration::from_secs(3);

/// Marks a call that a node passed on, so that two nodes that each take the other for the leader do not play
/// ball with it.
const FORWARDED: &str = "skein-forwarded";

/// Where to serve a call.
pub(super) enum Route {
    /// Here.
    Local,
    /// On that node.
    Remote(Channel),
}

/// Whether another node passed the call on.
pub(super) fn is_forwarded<T>(request: &Request<T>) -> bool {
    request.metadata().contains_key(FORWARDED)
}

/// Marks a passed-on Send whose message has grown by where it comes from.
const DEAD_LETTER: &str = "skein-dead-letter";

/// Whether another node passes on a dead letter, which may be larger than what a client may send.
pub(super) fn is_dead_letter<T>(request: &Request<T>) -> bool {
    is_forwarded(request) && request.metadata().contains_key(DEAD_LETTER)
}

/// Marks a call as passed on with a dead letter in it.
pub(super) fn dead_letter<T>(message: T) -> Request<T> {
    let mut request = forwarded(message);
    request.metadata_mut().insert(DEAD_LETTER, MetadataValue::from_static("1"));
    request
}

/// Marks a call as passed on.
pub(super) fn forwarded<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(FORWARDED, MetadataValue::from_static("1"));
    request
}

impl Api {
    /// Finds the shard's leader, waiting a while for one.
    pub(super) async fn route(&self, shard: ShardId, forwarded: bool) -> Result<Route, Status> {
        let group = self.group(shard)?;
        let mut leadership = group.leadership();
        let known = leadership.wait_for(|now| now.leader.is_some());
        let known = tokio::time::timeout(LEADER_WAIT_MAX, known).await.map(|now| now.map(|now| now.leader));
        let leader: NodeId = match known {
            Ok(Ok(leader)) => leader.ok_or_else(|| status::no_leader(shard))?,
            Ok(Err(_)) => return Err(status::shutting_down()),
            Err(_) => return Err(status::no_leader(shard)),
        };
        if leader == self.node {
            Ok(Route::Local)
        } else if forwarded {
            Err(status::not_leader(self.node))
        } else {
            // Whoever waits for an answer that does not come could have asked another node. One that has died is found
            // out at once, and may be followed by now.
            if self.sightings.borrow().silent.contains(&leader) {
                return Err(status::leader_not_heard(self.node, leader));
            }
            let channel = self.connections.clients(leader).ok_or_else(|| status::no_leader(shard))?;
            Ok(Route::Remote(channel))
        }
    }

    pub(super) fn group(&self, shard: ShardId) -> Result<&Arc<Group>, Status> {
        self.groups.get(shard).ok_or_else(|| status::no_leader(shard))
    }

    /// The server of a shard that this node leads.
    pub(super) fn server(&self, shard: ShardId) -> Result<&Arc<ShardServer>, Status> {
        self.shards.get(shard).ok_or_else(|| status::no_leader(shard))
    }

    /// The delivery task of a shard that this node leads, waiting for it to be ready.
    pub(super) async fn delivery(&self, shard: ShardId) -> Result<DeliveryHandle, Status> {
        let mut delivery = self.server(shard)?.delivery();
        match tokio::time::timeout(LEADER_WAIT_MAX, delivery.wait_for(Option::is_some)).await {
            Ok(Ok(handle)) => handle.clone().ok_or_else(|| status::no_leader(shard)),
            _ => Err(status::no_leader(shard)),
        }
    }

    /// Makes sure that the shard, which this node leads, has opened a queue that the catalog knows. It usually has:
    /// only a queue created a moment ago is not there yet.
    pub(super) async fn ensure_open(&self, queue: &QueueRef) -> Result<(), Status> {
        // A leader that a majority has not confirmed yet would be refused what it proposes.
        self.delivery(queue.shard).await?;
        let group = self.group(queue.shard)?;
        if group.replica().with_messages(|shard| shard.queue(queue.id).is_some()) {
            return self.ensure_groups_of_older(queue).await;
        }
        let open = Command::OpenQueue {
            queue: queue.id,
            name: queue.name.clone(),
            settings: queue.settings.clone(),
            revision: queue.settings_revision,
        };
        match self.propose(queue, open).await? {
            Outcome::Opened => self.ensure_groups_of_older(queue).await,
            outcome => Err(status::from_outcome(&outcome, &queue.name)),
        }
    }

    /// Proposes a command to a queue's shard, which this node leads.
    pub(super) async fn propose(&self, queue: &QueueRef, command: Command) -> Result<Outcome, Status> {
        let outcome = self.group(queue.shard)?.propose(Proposed::shard(&command)).await;
        match outcome.map_err(status::from_propose)? {
            CommandOutcome::Shard(outcome) => Ok(outcome),
            CommandOutcome::Catalog(outcome) => unreachable!("a message shard answered {outcome:?}"),
        }
    }
}
