//! Starts what sees to it that things are as they should be, once there is what it looks at.

use std::sync::Arc;

use skein_proto::ids::NodeId;
use tokio::sync::{mpsc, watch};

use super::{NodeFailure, seat::Seat};
use crate::{
    clock::Clock,
    controller::{self, Activities, LeaderBalance, ReplicaKeeper, RosterKeeper, Steady},
    datadir::Owner,
    peer::{Connections, Identity, Presence, Sightings},
    raft::{Groups, Succession, Transport},
    tasks,
};

/// Dead nodes whose shards wait to be seen to.
const DEATHS_MAX: usize = 16;

/// What sees to it that things are as they should be, once there is what it looks at.
pub(super) struct Controllers<'a> {
    pub(super) owner: &'a Owner,
    pub(super) seat: Seat,
    pub(super) identity: watch::Sender<Identity>,
    pub(super) failures: mpsc::UnboundedSender<NodeFailure>,
}

impl Controllers<'_> {
    /// Starts them, and gives what is seen of the others and what is being done about replicas.
    pub(super) fn start(
        self,
        groups: &Arc<Groups>,
        connections: &Arc<Connections>,
        transport: &Arc<dyn Transport>,
        clock: &Clock,
    ) -> (watch::Receiver<Sightings>, watch::Receiver<Activities>) {
        let node = self.owner.node();
        let (activities, activities_watch) = watch::channel(Activities::new());
        tasks::spawn(controller::reconcile_queues(Arc::clone(groups), clock.clone()));
        let roster = RosterKeeper {
            groups: Arc::clone(groups),
            connections: Arc::clone(connections),
            transport: Arc::clone(transport),
            identity: self.identity,
            is_founder: !self.owner.has_joined(),
            configured: self.seat.members,
        };
        tasks::spawn(roster.run());
        let sightings = attend(node, groups, connections, transport, clock, self.failures);
        let steady = Steady::follow(sightings.clone(), clock.clone());
        let replicas = ReplicaKeeper {
            node,
            groups: Arc::clone(groups),
            transport: Arc::clone(transport),
            steady: steady.clone(),
            activities,
        };
        tasks::spawn(replicas.run());
        let balance = LeaderBalance {
            node,
            groups: Arc::clone(groups),
            transport: Arc::clone(transport),
            steady,
            clock: clock.clone(),
        };
        tasks::spawn(balance.run());
        (sightings, activities_watch)
    }
}

/// Keeps an eye on the other nodes, finds new leaders for the shards of those that die, and hears from them when this
/// one was removed.
fn attend(
    node: NodeId,
    groups: &Arc<Groups>,
    connections: &Arc<Connections>,
    transport: &Arc<dyn Transport>,
    clock: &Clock,
    failures: mpsc::UnboundedSender<NodeFailure>,
) -> watch::Receiver<Sightings> {
    let (sightings, sightings_watch) = watch::channel(Sightings::of_none_but(node));
    let (deaths, dead) = mpsc::channel(DEATHS_MAX);
    let (removals, mut removed) = mpsc::channel(1);
    let presence = Presence {
        node,
        connections: Arc::clone(connections),
        clock: clock.clone(),
        sightings,
        deaths,
        removals,
    };
    tasks::spawn(presence.attend());
    tasks::spawn(Succession::new(node, Arc::clone(groups), Arc::clone(transport)).run(dead));
    tasks::spawn(async move {
        if let Some(by) = removed.recv().await {
            // Nobody listens any more when the node is stopping.
            let _ = failures.send(NodeFailure::Removed { by });
        }
    });
    sightings_watch
}
