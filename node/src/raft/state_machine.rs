//! A raft group's state machine, as openraft wants it: applies entries to a [`Replica`](super::Replica) and checkpoints
//! it.
//!
//! What openraft calls a snapshot is the checkpoint: state only, for this node's restart. When it goes to another node,
//! the messages it refers to go with it (see [`super::snapshot`]).

use std::io;

use futures::{Stream, TryStreamExt as _};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder, alias,
    storage::{EntryResponder, RaftStateMachine, Snapshot},
};
use skein_proto::ids::ShardId;
use tokio::sync::oneshot;

use super::{
    codec, load,
    records::{self, Position},
    snapshot::{Saved, SnapshotData},
    types::{RaftLogId, SnapshotMeta, StoredMembership, TypeConfig},
    wire::{entry_id, log_id},
};
use crate::{
    broker::{CatalogOutcome, Outcome},
    checkpoint::{Changing, CheckpointError, Staged},
    log::Entry,
    planted::{Bug, is_planted},
    tasks,
};

/// What became of an entry's commands, in their order.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcomes {
    /// The entry carried no commands.
    None,
    /// Of a message shard's commands.
    Shard(Vec<Outcome>),
    /// Of the catalog's commands.
    Catalog(Vec<CatalogOutcome>),
}

/// Applies committed entries of one shard.
pub(super) struct StateMachine {
    saved: Saved,
}

/// Saves a checkpoint on openraft's behalf.
pub(super) struct Checkpointer {
    saved: Saved,
}

impl StateMachine {
    pub(super) fn new(saved: Saved) -> Self {
        Self { saved }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Checkpointer;

    async fn applied_state(&mut self) -> Result<(Option<RaftLogId>, StoredMembership), io::Error> {
        let (applied, membership) = self.saved.replica.applied();
        Ok((applied.map(log_id), membership))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let id = entry_id(&entry.log_id);
            let outcomes = match entry.payload {
                EntryPayload::Normal(body) => {
                    let entry = Entry { index: id.index, term: id.term, payload: body.0 };
                    self.saved.replica.apply_commands(&entry).map_err(io::Error::other)?
                }
                EntryPayload::Blank => {
                    self.saved.replica.apply_consensus(id, None);
                    Outcomes::None
                }
                EntryPayload::Membership(membership) => {
                    self.saved.replica.apply_consensus(id, Some(membership));
                    Outcomes::None
                }
            };
            if let Some(responder) = responder {
                responder.send(outcomes);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Checkpointer {
        Checkpointer { saved: self.saved.clone() }
    }

    /// Takes over a state that was received and whose messages are in the log. Short, because the group waits for it:
    /// the state is on disk already.
    async fn install_snapshot(&mut self, _: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), io::Error> {
        // What the log was told before, such as to drop entries that contradict the snapshot, comes first on disk too.
        self.saved.wait_durable().await?;
        let saved = self.saved.clone();
        tasks::spawn_blocking(move || {
            let (staged, changing) = match snapshot {
                SnapshotData::Received(staged, changing) => (staged, changing),
                SnapshotData::Saved(other) => saved.copy_without_messages(&other)?,
            };
            let retired = saved.checkpoint.adopt(staged, &changing).map_err(io::Error::other)?;
            let loaded = load::machine(saved.replica.shard(), &saved.checkpoint, &saved.memory);
            let (machine, position) = loaded.map_err(io::Error::other)?;
            saved.replica.replace(machine, position);
            // Not before: the state that was replaced may have pages there.
            retired.clear().map_err(io::Error::other)
        })
        .await
        .map_err(io::Error::other)?
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<alias::SnapshotOf<TypeConfig, SnapshotData>>, io::Error> {
        let position = self.saved.checkpoint.position().map_err(io::Error::other)?;
        let position = position.map(|bytes| records::decode_position(&bytes)).transpose();
        Ok(position.map_err(io::Error::other)?.map(|position| snapshot(&position, self.saved.clone())))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Checkpointer {
    type SnapshotData = SnapshotData;

    /// Changes are taken and the position noted under one lock; only then does the disk have its say. A failure
    /// after that is final: the changes are gone from the dirty set, and openraft stops the node. Whoever asks for it
    /// has the right to [change](crate::checkpoint::Checkpoint::try_change) the checkpoint.
    async fn build_snapshot(&mut self) -> Result<alias::SnapshotOf<TypeConfig, SnapshotData>, io::Error> {
        let mut changes = self.saved.replica.take_changes();
        if is_planted(Bug::CheckpointLacks) {
            changes.records.pop();
        }
        self.saved.wait_durable().await?;
        let records: Vec<_> = changes
            .records
            .iter()
            .map(|(key, record)| (codec::encode_key(*key), record.as_ref().map(codec::encode_record)))
            .collect();
        let position = records::encode_position(&changes.position);
        let saved = self.saved.clone();
        let save = move || {
            saved.checkpoint.save(&position, records)?;
            saved.spill();
            Ok::<_, CheckpointError>(())
        };
        tasks::spawn_blocking(save).await.map_err(io::Error::other)?.map_err(io::Error::other)?;
        Ok(snapshot(&changes.position, self.saved.clone()))
    }
}

impl Saved {
    /// Lets go of pages that there is no memory for. Nobody may be saving: what is about to be written passes for
    /// written.
    pub(super) fn spill(&self) {
        if self.replica.shard() != ShardId::CATALOG {
            self.memory.spill(&self.replica, &self.checkpoint);
        }
    }

    /// Waits until every entry applied so far is on this node's disk. An entry is applied once a majority has it, which
    /// need not include this node; a checkpoint that is ahead of its own log would refer to bodies that a restart does
    /// not find.
    async fn wait_durable(&self) -> Result<(), io::Error> {
        let (done, durable) = oneshot::channel();
        // Appending nothing is done when everything appended before it is durable.
        self.log.append(self.replica.shard(), Vec::new(), Box::new(move |result| drop(done.send(result))));
        durable.await.map_err(io::Error::other)?.map_err(io::Error::other)
    }

    /// Stages a copy of another checkpoint on this node. Messages' bodies do not come along, so one that has any is
    /// refused.
    fn copy_without_messages(&self, other: &Self) -> Result<(Staged, Changing), io::Error> {
        let position = other.checkpoint.position().map_err(io::Error::other)?;
        // Read once: what is looked at is what is copied.
        let records = other.checkpoint.records().collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
        let stored = records.iter().cloned().map(Ok);
        let loaded = load::machine_of(self.replica.shard(), position.as_deref(), stored, None);
        let (machine, _) = loaded.map_err(io::Error::other)?;
        if machine.holds_messages() {
            let message = "a checkpoint that holds messages was to be installed without them";
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        let busy = || io::Error::new(io::ErrorKind::ResourceBusy, "the checkpoint is being saved or sent");
        let changing = self.checkpoint.try_change().ok_or_else(busy)?;
        let staged = self.checkpoint.stage().map_err(io::Error::other)?;
        staged.add(&records).map_err(io::Error::other)?;
        staged.finish(&position.unwrap_or_default()).map_err(io::Error::other)?;
        Ok((staged, changing))
    }
}

/// What openraft wants to know of a state at this position.
pub(super) fn snapshot_meta(position: &Position) -> SnapshotMeta {
    let membership = StoredMembership::new(position.membership_id.map(log_id), position.membership.clone());
    SnapshotMeta { last_log_id: position.applied.map(log_id), last_membership: membership }
}

fn snapshot(position: &Position, saved: Saved) -> alias::SnapshotOf<TypeConfig, SnapshotData> {
    Snapshot { meta: snapshot_meta(position), snapshot: SnapshotData::Saved(saved) }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use bytes::Bytes;

    use super::*;
    use crate::{
        broker::Shard,
        checkpoint::Checkpoints,
        disk::faulty::{Fault, FaultyDisk},
        log::{EntryId, Log, LogOptions},
        raft::{
            pages::PageMemory,
            replica::{Machine, Replica},
        },
    };

    /// An entry that a majority has is applied though this node's disk does not have it yet.
    #[tokio::test]
    async fn no_checkpoint_is_saved_ahead_of_the_nodes_own_log() {
        let dir = tempfile::tempdir().unwrap();
        let shard = ShardId::new(1);
        let disk = FaultyDisk::new(7);
        let log = Log::open(Arc::new(disk.clone()), Path::new("log"), LogOptions::default(), drop).unwrap();
        let checkpoint = Checkpoints::open(dir.path()).unwrap().shard(shard).unwrap();
        let replica = Arc::new(Replica::new(shard, Machine::Messages(Shard::new()), None));
        let memory = PageMemory::new(0);
        let saved = Saved { checkpoint, replica: Arc::clone(&replica), log: log.clone(), memory };
        let mut checkpointer = Checkpointer { saved };

        // Whatever the log does next on its disk fails, be it this entry or a segment that it prepares.
        for later in 0..100 {
            disk.inject(later, Fault::Io);
        }
        let entry = Entry { index: 0, term: 1, payload: Bytes::new() };
        log.append(shard, vec![entry], Box::new(drop));
        replica.apply_consensus(EntryId { term: 1, index: 0 }, None);

        assert!(checkpointer.build_snapshot().await.is_err());
        assert_eq!(checkpointer.saved.checkpoint.position().unwrap(), None);
    }
}
