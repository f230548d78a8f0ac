//! Attends to every other node: whether it is there and how its disk stands, for those who ask what the cluster looks
//! like and for leaders that count on its replica; and, within milliseconds, that its process has died.
//!
//! A node tells its peers how it is on a stream that stays open. When that breaks off in the middle of its beats, and
//! nobody takes a new connection where the node was, its process is gone. Silence is no such proof: the node may be
//! frozen or cut off, may lead others, and is left to raft's timers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use skein_proto::{ids::NodeId, peer::AttendRequest};
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
};

use super::{Connections, credentials};
use crate::{clock::Clock, tasks};

/// How often a node says that it is there.
pub(super) const BEAT_EVERY: Duration = Duration::from_millis(500);

/// A node that has not said so for this long is silent. Shorter than it takes a connection to be given up: when that
/// ends, it proves nothing any more.
const SILENCE_MAX: Duration = Duration::from_millis(1_500);

/// A node that cannot be attended to is tried again this often.
const RETRY_EVERY: Duration = Duration::from_millis(250);

/// A stream that broke off makes a node suspect for this long: it may take connections for a moment while it dies.
const SUSPECT_FOR: Duration = Duration::from_secs(1);

/// A suspect is looked at this often.
const SUSPECT_RETRY_EVERY: Duration = Duration::from_millis(5);

/// What the other nodes said lately.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sightings {
    /// The nodes that are there, this one included.
    pub reachable: BTreeSet<NodeId>,
    /// Those of the others that are there and said that their disk is nearly full.
    pub low_on_disk: BTreeSet<NodeId>,
    /// Those that fell silent and were not heard since: they stand still, or are cut off.
    pub silent: BTreeSet<NodeId>,
}

/// What happened to the stream from a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    /// It never began.
    NotThere,
    /// It ended while beats came: somebody closed the connection.
    BrokeOff,
    /// The node said that it was told to stop.
    Left,
    /// Nothing came any more.
    Silent,
}

/// Attends to the other nodes.
pub struct Presence {
    /// This node.
    pub node: NodeId,
    /// The ways to the others.
    pub connections: Arc<Connections>,
    /// The time.
    pub clock: Clock,
    /// What is known of them.
    pub sightings: watch::Sender<Sightings>,
    /// Told of each node whose process has died.
    pub deaths: mpsc::Sender<NodeId>,
    /// Told of each node that says that this one was removed from the cluster.
    pub removals: mpsc::Sender<NodeId>,
}

impl Sightings {
    /// Before anybody was heard.
    #[must_use]
    pub fn of_none_but(node: NodeId) -> Self {
        Self { reachable: BTreeSet::from([node]), ..Self::default() }
    }
}

impl Presence {
    /// Attends to every other node that the cluster has, for as long as it is polled.
    pub async fn attend(self) {
        let this = Arc::new(self);
        let mut members = this.connections.members();
        let mut attended: BTreeMap<NodeId, AbortHandle> = BTreeMap::new();
        loop {
            let others: BTreeSet<NodeId> =
                members.borrow_and_update().keys().copied().filter(|node| *node != this.node).collect();
            for (node, task) in attended.extract_if(.., |node, _| !others.contains(node)) {
                task.abort();
                this.note(node, None);
            }
            for node in others {
                let attend = || tasks::spawn(Arc::clone(&this).attend_to(node)).abort_handle();
                attended.entry(node).or_insert_with(attend);
            }
            if members.changed().await.is_err() {
                return;
            }
        }
    }

    async fn attend_to(self: Arc<Self>, node: NodeId) {
        let mut broke_off_at = None;
        let mut has_left = false;
        loop {
            let lost = self.listen(node).await;
            // It may take connections for a while yet.
            has_left = lost == Lost::Left || (has_left && lost == Lost::NotThere);
            self.note(node, None);
            match lost {
                Lost::BrokeOff | Lost::Left => broke_off_at = Some(self.clock.monotonic()),
                Lost::Silent => {
                    broke_off_at = None;
                    self.sightings.send_if_modified(|known| known.silent.insert(node));
                    tracing::warn!(%node, "the node says nothing any more: it stands still, or is cut off");
                }
                Lost::NotThere => {}
            }
            let now = self.clock.monotonic();
            let is_suspect = broke_off_at.is_some_and(|at| now.saturating_sub(at) < SUSPECT_FOR);
            if !is_suspect {
                tokio::time::sleep(RETRY_EVERY).await;
            } else if self.connections.is_taken(node).await {
                tokio::time::sleep(SUSPECT_RETRY_EVERY).await;
            } else {
                broke_off_at = None;
                if has_left {
                    tracing::info!(%node, "the node has left, as it was told to");
                } else {
                    tracing::warn!(%node, "the node's process has ended");
                }
                // Nobody needs to know when this node is stopping.
                let _ = self.deaths.send(node).await;
            }
        }
    }

    /// Listens to a node until nothing comes any more. Says so when one is there again that was silent.
    async fn listen(&self, node: NodeId) -> Lost {
        let Some(mut client) = self.connections.peer(node) else { return Lost::NotThere };
        let opened = client.attend(AttendRequest {});
        let mut beats = match tokio::time::timeout(SILENCE_MAX, opened).await {
            Ok(Ok(beats)) => beats.into_inner(),
            Ok(Err(refused)) => {
                if credentials::says_removed(&refused) {
                    // Nobody needs to hear it twice.
                    let _ = self.removals.try_send(node);
                }
                return Lost::NotThere;
            }
            Err(_) => return Lost::NotThere,
        };
        let mut was_there = false;
        loop {
            match tokio::time::timeout(SILENCE_MAX, beats.message()).await {
                Ok(Ok(Some(beat))) if beat.leaving => return Lost::Left,
                Ok(Ok(Some(beat))) => {
                    was_there = true;
                    if self.sightings.borrow().silent.contains(&node) {
                        tracing::info!(%node, "the node is heard again");
                    }
                    self.connections.note_heard(node, self.clock.monotonic());
                    self.note(node, Some(beat.low_on_disk));
                }
                Ok(Ok(None) | Err(_)) if was_there => return Lost::BrokeOff,
                Ok(Ok(None) | Err(_)) => return Lost::NotThere,
                Err(_) => return Lost::Silent,
            }
        }
    }

    /// Notes that a node is there, and whether it said that its disk is nearly full; or that it is not there.
    fn note(&self, node: NodeId, low_on_disk: Option<bool>) {
        self.sightings.send_if_modified(|known| {
            let before = known.clone();
            known.reachable.remove(&node);
            known.low_on_disk.remove(&node);
            // One that was removed meanwhile is not there for anybody.
            let is_member = self.connections.members().borrow().contains_key(&node);
            if low_on_disk.is_some() || !is_member {
                known.silent.remove(&node);
            }
            if let Some(low_on_disk) = low_on_disk.filter(|_| is_member) {
                known.reachable.insert(node);
                if low_on_disk {
                    known.low_on_disk.insert(node);
                }
            }
            *known != before
        });
    }
}
