//! Damaged entries of this node's log: noted, fetched again from a peer, and written anew.
//!
//! A replica with damage neither votes nor stands for election nor keeps leading, as long as there is hope: it might be
//! counted for what it has lost. When every other replica has answered that it cannot help either, the entry is lost;
//! its messages are refused, and the replica takes part again, since keeping away would bring nothing back.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use skein_proto::ids::{NodeId, ShardId};
use tokio::sync::{Notify, oneshot, watch};

use super::{
    group::Group,
    network::{Transport, TransportError},
    records,
    replica::Replica,
};
use crate::{
    log::{KeptEntry, Log},
    tasks,
};

/// Repairs that are waited for at most this long before a reader is told of the damage.
const REPAIR_WAIT_MAX: Duration = Duration::from_secs(2);

/// When peers could not be asked, they are asked again after this long.
const RETRY_EVERY: Duration = Duration::from_millis(500);

/// What is known of a damaged entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    /// A peer may have it.
    Hoped,
    /// No other replica has it either.
    Lost,
}

/// The damaged entries of this node. Cheap to clone.
#[derive(Clone, Default)]
pub struct Repairs {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    damaged: Mutex<BTreeMap<(ShardId, u64), Damage>>,
    /// Told when there is something new to repair.
    work: Notify,
    /// Counts repairs and losses.
    settled: watch::Sender<u64>,
    repaired_count: AtomicU64,
}

/// How many damaged entries there are and were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepairCounts {
    /// Damaged now.
    pub damaged: usize,
    /// Those among them that no replica has.
    pub lost: usize,
    /// Repaired since the node started.
    pub repaired_total: u64,
}

/// What a peer said to a request for an entry.
enum Fetched {
    Entry(KeptEntry),
    /// It does not have the entry, or not all that is needed of it.
    Lacks,
    /// It could not be asked.
    Unreachable(TransportError),
}

impl Repairs {
    /// Notes that an entry is damaged. It is repaired in the background.
    pub fn report(&self, shard: ShardId, index: u64) {
        let mut damaged = self.lock();
        if damaged.contains_key(&(shard, index)) {
            return;
        }
        damaged.insert((shard, index), Damage::Hoped);
        drop(damaged);
        tracing::error!(%shard, index, "an entry in this node's log is damaged; it is fetched from the other replicas");
        self.inner.work.notify_one();
    }

    /// Waits until the entry is repaired, or known to be lost, up to [`REPAIR_WAIT_MAX`]. True when it is repaired.
    pub async fn wait(&self, shard: ShardId, index: u64) -> bool {
        let mut settled = self.inner.settled.subscribe();
        let repaired = settled.wait_for(|_| self.lock().get(&(shard, index)) != Some(&Damage::Hoped));
        // An error is impossible: the sender lives as long as this.
        let waited = tokio::time::timeout(REPAIR_WAIT_MAX, repaired).await.is_ok();
        waited && !self.lock().contains_key(&(shard, index))
    }

    /// Whether the shard's replica on this node has damage that may yet be repaired.
    #[must_use]
    pub fn is_unfit(&self, shard: ShardId) -> bool {
        self.lock().iter().any(|((damaged, _), damage)| *damaged == shard && *damage == Damage::Hoped)
    }

    /// How many entries there are of each kind.
    #[must_use]
    pub fn counts(&self) -> RepairCounts {
        let damaged = self.lock();
        let lost = damaged.values().filter(|damage| **damage == Damage::Lost).count();
        let repaired_total = self.inner.repaired_count.load(Ordering::Relaxed);
        RepairCounts { damaged: damaged.len(), lost, repaired_total }
    }

    fn hoped(&self) -> Vec<(ShardId, u64)> {
        let damaged = self.lock();
        damaged.iter().filter(|(_, damage)| **damage == Damage::Hoped).map(|(entry, _)| *entry).collect()
    }

    fn settle(&self, entry: (ShardId, u64), outcome: Option<Damage>) {
        let mut damaged = self.lock();
        match outcome {
            Some(damage) => drop(damaged.insert(entry, damage)),
            None => drop(damaged.remove(&entry)),
        }
        drop(damaged);
        self.inner.settled.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(ShardId, u64), Damage>> {
        self.inner.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A shard whose entries can be repaired. Its group may still be starting, and wait for a repair to do so.
struct Subject {
    replica: Arc<Replica>,
    /// Committed when the node started.
    committed_index: u64,
    group: Option<Arc<Group>>,
}

/// Repairs what is reported.
pub(super) struct Repairer {
    repairs: Repairs,
    log: Log,
    transport: Arc<dyn Transport>,
    node: NodeId,
    subjects: Mutex<BTreeMap<ShardId, Subject>>,
}

impl Repairer {
    pub(super) fn new(repairs: Repairs, log: Log, transport: Arc<dyn Transport>, node: NodeId) -> Self {
        Self { repairs, log, transport, node, subjects: Mutex::default() }
    }

    /// Makes a shard known before its group starts.
    pub(super) fn add_replica(&self, replica: &Arc<Replica>) {
        let committed = self.log.shard_state(replica.shard()).committed;
        let committed = committed.and_then(|bytes| records::decode_log_id(&bytes).ok());
        let committed_index = committed.map_or(0, |id| id.index);
        let subject = Subject { replica: Arc::clone(replica), committed_index, group: None };
        self.subjects().insert(replica.shard(), subject);
    }

    /// Makes a shard's group known once it has started.
    pub(super) fn add_group(&self, group: &Arc<Group>) {
        if let Some(subject) = self.subjects().get_mut(&group.shard()) {
            subject.group = Some(Arc::clone(group));
        }
    }

    /// Runs for the node's life.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            let hoped = self.repairs.hoped();
            if hoped.is_empty() {
                self.repairs.inner.work.notified().await;
                continue;
            }
            for (shard, index) in hoped {
                if self.forget_unneeded(shard, index) {
                    continue;
                }
                let group = self.subjects().get(&shard).and_then(|subject| subject.group.clone());
                if let Some(group) = &group {
                    group.step_back().await;
                }
                self.repair(shard, index).await;
                if let Some(group) = group.filter(|_| !self.repairs.is_unfit(shard)) {
                    group.step_forward();
                }
            }
            if !self.repairs.hoped().is_empty() {
                tokio::time::sleep(RETRY_EVERY).await;
            }
        }
    }

    /// Forgets damage that harms nobody, for which nobody needs to stop leading.
    fn forget_unneeded(&self, shard: ShardId, index: u64) -> bool {
        let known = self.subjects().get(&shard).map(Subject::known);
        let Some((replica, _)) = known.filter(|(replica, _)| !self.is_needed(replica, index)) else {
            return false;
        };
        self.repairs.settle((shard, index), None);
        tracing::info!(shard = %replica.shard(), index, "a damaged entry is no longer needed");
        true
    }

    async fn repair(&self, shard: ShardId, index: u64) {
        let known = self.subjects().get(&shard).map(Subject::known);
        let Some((replica, committed_index)) = known else { return };
        // Nobody can give an entry that is not known to be committed; it may also be replaced by another one.
        let mut everybody_answered = committed_index >= index;
        for peer in self.peers(&replica) {
            match self.fetch(&replica, peer, index).await {
                Fetched::Entry(entry) => {
                    if self.keep(shard, entry).await {
                        self.repairs.settle((shard, index), None);
                        self.repairs.inner.repaired_count.fetch_add(1, Ordering::Relaxed);
                        tracing::info!(%shard, index, from = %peer, "a damaged entry was repaired");
                        return;
                    }
                }
                Fetched::Lacks => {}
                Fetched::Unreachable(error) => {
                    tracing::debug!(%shard, index, %peer, %error, "a peer cannot be asked for an entry");
                    everybody_answered = false;
                }
            }
        }
        // The others may lack it since nobody needs it any more.
        if everybody_answered && !self.forget_unneeded(shard, index) {
            self.repairs.settle((shard, index), Some(Damage::Lost));
            tracing::error!(%shard, index, "no replica has the entry any more: its messages are refused from now on");
        }
    }

    /// Whoever may have a replica: as the cluster's nodes are known here, and as the shard itself says, since either
    /// may be behind. One that nobody can reach is waited for.
    fn peers(&self, replica: &Replica) -> BTreeSet<NodeId> {
        let (_, membership) = replica.applied();
        let members = membership.nodes().map(|(id, _)| NodeId::new(*id));
        members.chain(self.transport.peers()).filter(|peer| *peer != self.node).collect()
    }

    /// Raft needs what it has not purged; the state needs what some group may still read.
    fn is_needed(&self, replica: &Replica, index: u64) -> bool {
        self.is_in_raft(replica.shard(), index) || !replica.live_parts(index..index + 1).is_empty()
    }

    fn is_in_raft(&self, shard: ShardId, index: u64) -> bool {
        self.log.shard_state(shard).live.contains(&index)
    }

    async fn fetch(&self, replica: &Replica, peer: NodeId, index: u64) -> Fetched {
        let shard = replica.shard();
        let entry = match self.transport.fetch_entry(peer, shard, index).await {
            Ok(Some(entry)) if entry.index == index => entry,
            Ok(_) => return Fetched::Lacks,
            Err(error) => return Fetched::Unreachable(error),
        };
        let live = replica.live_parts(index..index + 1);
        let has_live = live.iter().all(|part| entry.parts.get(part.position, part.length).is_some());
        // Raft wants all of it, and the very entry that was there.
        let term = self.log.term_at(shard, index).ok().flatten();
        let suits_raft = entry.parts.is_whole() && term.is_none_or(|term| term == entry.term);
        match has_live && (suits_raft || !self.is_in_raft(shard, index)) {
            true => Fetched::Entry(entry),
            false => Fetched::Lacks,
        }
    }

    async fn keep(&self, shard: ShardId, entry: KeptEntry) -> bool {
        let (done, durable) = oneshot::channel();
        self.log.keep(shard, &[entry], Box::new(move |result| drop(done.send(result))));
        // A failure stops the node, which the log itself sees to.
        matches!(durable.await, Ok(Ok(())))
    }

    fn subjects(&self) -> MutexGuard<'_, BTreeMap<ShardId, Subject>> {
        self.subjects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subject {
    fn known(&self) -> (Arc<Replica>, u64) {
        let committed_index = self.group.as_ref().and_then(|group| group.committed_index());
        (Arc::clone(&self.replica), committed_index.unwrap_or(self.committed_index))
    }
}

/// What this node can give a peer of an entry; nothing when it does not have it, or not intact.
pub(super) async fn give(log: &Log, repairs: &Repairs, shard: ShardId, index: u64) -> Option<KeptEntry> {
    let reader = log.clone();
    let read = tasks::spawn_blocking(move || reader.read_kept(shard, index, 0));
    match read.await.expect("reading the log does not panic") {
        Ok(entries) => entries.into_iter().next(),
        Err(error) => {
            if let Some(index) = error.damaged_index() {
                repairs.report(shard, index);
            }
            None
        }
    }
}
