//! Serves message shards on this node for as long as it leads them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use skein_proto::ids::{QueueId, ShardId};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    bodies::Bodies,
    dead_letters::{self, Courier},
    delivery,
    handle::DeliveryHandle,
    idle,
};
use crate::{
    broker::{Command, Outcome, Position},
    clock::Clock,
    log::Log,
    raft::{CommandOutcome, Group, Groups, Leadership, ProposeError, Proposed},
    tasks,
};

/// The pause before asking again whether this node leads: a new leader needs one round trip to a majority.
const CONFIRM_AGAIN_AFTER: Duration = Duration::from_millis(5);

/// One message shard on this node.
pub struct ShardServer {
    group: Arc<Group>,
    bodies: Bodies,
    clock: Clock,
    /// Set while this node leads and delivers.
    delivery: watch::Sender<Option<DeliveryHandle>>,
}

impl ShardServer {
    fn new(group: Arc<Group>, log: Log, clock: Clock) -> Self {
        let bodies = Bodies::new(log, Arc::clone(&group));
        Self { group, bodies, clock, delivery: watch::Sender::new(None) }
    }

    /// The raft group.
    #[must_use]
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// Reads message bodies.
    #[must_use]
    pub fn bodies(&self) -> &Bodies {
        &self.bodies
    }

    /// The delivery task, while this node leads; now and whenever that changes.
    #[must_use]
    pub fn delivery(&self) -> watch::Receiver<Option<DeliveryHandle>> {
        self.delivery.subscribe()
    }

    /// Makes sure that a group exists, and gives what became of that.
    ///
    /// # Errors
    /// When the command could not be replicated.
    pub async fn ensure_group(
        &self,
        queue: QueueId,
        name: &str,
        start: Position,
    ) -> Result<Outcome, ProposeError> {
        let known = self.group.replica().with_messages(|shard| {
            let group = shard.queue(queue)?.group_by_name(name)?;
            Some(Outcome::GroupCreated { group: group.id(), created: false })
        });
        if let Some(known) = known {
            return Ok(known);
        }
        let create = Command::CreateGroup { queue, name: name.to_owned(), start, filter: Vec::new() };
        match self.group.propose(Proposed::shard(&create)).await? {
            CommandOutcome::Shard(outcome) => Ok(outcome),
            CommandOutcome::Catalog(outcome) => unreachable!("a message shard answered {outcome:?}"),
        }
    }

    /// Serves whenever this node leads. Runs until aborted.
    async fn run(self: Arc<Self>, courier: Arc<dyn Courier>) {
        let mut leadership = self.group.leadership();
        loop {
            let held = *leadership.borrow_and_update();
            if !self.group.is_leader() {
                if leadership.changed().await.is_err() {
                    return;
                }
            } else if self.group.confirm_leadership().await {
                self.serve(held, &mut leadership, &courier).await;
            } else {
                tokio::time::sleep(CONFIRM_AGAIN_AFTER).await;
            }
        }
    }

    async fn serve(
        &self,
        held: Leadership,
        leadership: &mut watch::Receiver<Leadership>,
        courier: &Arc<dyn Courier>,
    ) {
        tracing::info!(shard = %self.group.shard(), term = held.term, "serving as leader");
        let (dead_letters, pending) = mpsc::unbounded_channel();
        let (unused, to_delete) = mpsc::unbounded_channel();
        let (depose, deposed) = oneshot::channel();
        let (group, clock) = (Arc::clone(&self.group), self.clock.clone());
        let (handle, mut task) = delivery::start(group, clock, held.term, dead_letters, unused, deposed);
        let janitor = tasks::spawn(idle::run(Arc::clone(courier), to_delete));
        let mover = tasks::spawn(dead_letters::run(
            Arc::clone(&self.group),
            self.bodies.clone(),
            Arc::clone(courier),
            pending,
        ));
        self.delivery.send_replace(Some(handle));
        let is_deposed = tokio::select! {
            // An error means that the group is gone, and the leadership with it.
            _ = leadership.wait_for(|now| *now != held) => true,
            _ = &mut task => false,
        };
        self.delivery.send_replace(None);
        mover.abort();
        janitor.abort();
        if is_deposed {
            // Fails when it has ended by itself.
            let _ = depose.send(());
            // Only once it has ended may a successor hear of events.
            let _ = task.await;
        }
        self.group.replica().with_messages(|shard| shard.observe(false));
        tracing::info!(shard = %self.group.shard(), term = held.term, "stopped serving as leader");
    }
}

/// All message shards on this node.
pub struct ShardServers {
    servers: BTreeMap<ShardId, Arc<ShardServer>>,
}

impl ShardServers {
    /// Makes a server for each message shard. They serve once [`Self::start`] was called.
    #[must_use]
    pub fn new(groups: &Groups, log: &Log, clock: &Clock) -> Self {
        let servers = groups
            .iter()
            .filter(|group| group.shard() != ShardId::CATALOG)
            .map(|group| {
                let server = ShardServer::new(Arc::clone(group), log.clone(), clock.clone());
                (group.shard(), Arc::new(server))
            })
            .collect();
        Self { servers }
    }

    /// Begins to serve whatever this node leads. `courier` takes messages that are given up to their queues.
    pub fn start(&self, courier: &Arc<dyn Courier>) {
        for server in self.servers.values() {
            tasks::spawn(Arc::clone(server).run(Arc::clone(courier)));
        }
    }

    /// One shard's server, if this node hosts it.
    #[must_use]
    pub fn get(&self, shard: ShardId) -> Option<&Arc<ShardServer>> {
        self.servers.get(&shard)
    }

    /// All servers.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<ShardServer>> {
        self.servers.values()
    }
}
