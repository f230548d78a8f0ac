//! A raft group's state machine, as openraft wants it: applies entries to a [`Replica`] and checkpoints it.
//!
//! What openraft calls a snapshot is a checkpoint: state only, for this node's restart. The messages it refers to
//! stay in the log, and the log is never purged past what any replica lacks, so none is ever sent to another node.

use std::{io, sync::Arc};

use futures::{Stream, TryStreamExt as _};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder, alias,
    storage::{EntryResponder, RaftStateMachine, Snapshot},
};
use tokio::sync::oneshot;

use super::{
    codec, load,
    records::{self, Position},
    replica::Replica,
    types::{RaftLogId, SnapshotMeta, StoredMembership, TypeConfig},
    wire::{entry_id, log_id},
};
use crate::{
    broker::{CatalogOutcome, Outcome},
    checkpoint::Checkpoint,
    log::{Entry, Log},
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
    replica: Arc<Replica>,
    checkpoint: Checkpoint,
    log: Log,
}

/// Saves a checkpoint on openraft's behalf.
pub(super) struct Checkpointer {
    replica: Arc<Replica>,
    checkpoint: Checkpoint,
    log: Log,
}

impl StateMachine {
    pub(super) fn new(replica: Arc<Replica>, checkpoint: Checkpoint, log: Log) -> Self {
        Self { replica, checkpoint, log }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Checkpoint;
    type SnapshotBuilder = Checkpointer;

    async fn applied_state(&mut self) -> Result<(Option<RaftLogId>, StoredMembership), io::Error> {
        let (applied, membership) = self.replica.applied();
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
                    self.replica.apply_commands(&entry).map_err(io::Error::other)?
                }
                EntryPayload::Blank => {
                    self.replica.apply_consensus(id, None);
                    Outcomes::None
                }
                EntryPayload::Membership(membership) => {
                    self.replica.apply_consensus(id, Some(membership));
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
        Checkpointer {
            replica: Arc::clone(&self.replica),
            checkpoint: self.checkpoint.clone(),
            log: self.log.clone(),
        }
    }

    /// Takes over another checkpoint's state. Bodies do not come with it, so one that holds messages is refused.
    async fn install_snapshot(&mut self, _: &SnapshotMeta, snapshot: Checkpoint) -> Result<(), io::Error> {
        let (replica, checkpoint) = (Arc::clone(&self.replica), self.checkpoint.clone());
        tasks::spawn_blocking(move || {
            let loaded = snapshot.load().map_err(io::Error::other)?;
            let (machine, position) = load::machine(replica.shard(), &loaded).map_err(io::Error::other)?;
            if machine.holds_messages() {
                let message = "a checkpoint that holds messages was to be installed without them";
                return Err(io::Error::new(io::ErrorKind::Unsupported, message));
            }
            checkpoint.replace(&loaded).map_err(io::Error::other)?;
            replica.replace(machine, position);
            Ok(())
        })
        .await
        .map_err(io::Error::other)?
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<alias::SnapshotOf<TypeConfig, Checkpoint>>, io::Error> {
        let position = self.checkpoint.position().map_err(io::Error::other)?;
        let position = position.map(|bytes| records::decode_position(&bytes)).transpose();
        Ok(position.map_err(io::Error::other)?.map(|position| snapshot(&position, self.checkpoint.clone())))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Checkpointer {
    type SnapshotData = Checkpoint;

    /// Changes are taken and the position noted under one lock; only then does the disk have its say. A failure
    /// after that is final: the changes are gone from the dirty set, and openraft stops the node.
    async fn build_snapshot(&mut self) -> Result<alias::SnapshotOf<TypeConfig, Checkpoint>, io::Error> {
        let changes = self.replica.take_changes();
        self.wait_durable().await?;
        let records: Vec<_> = changes
            .records
            .iter()
            .map(|(key, record)| (codec::encode_key(*key), record.as_ref().map(codec::encode_record)))
            .collect();
        let position = records::encode_position(&changes.position);
        let checkpoint = self.checkpoint.clone();
        tasks::spawn_blocking(move || checkpoint.save(&position, records))
            .await
            .map_err(io::Error::other)?
            .map_err(io::Error::other)?;
        Ok(snapshot(&changes.position, self.checkpoint.clone()))
    }
}

impl Checkpointer {
    /// Waits until every entry applied so far is on this node's disk. An entry is applied once a majority has it, which
    /// need not include this node; a checkpoint that is ahead of its own log would refer to bodies that a restart does
    /// not find.
    async fn wait_durable(&self) -> Result<(), io::Error> {
        let (done, durable) = oneshot::channel();
        // Appending nothing is done when everything appended before it is durable.
        self.log.append(self.replica.shard(), Vec::new(), Box::new(move |result| drop(done.send(result))));
        durable.await.map_err(io::Error::other)?.map_err(io::Error::other)
    }
}

fn snapshot(position: &Position, checkpoint: Checkpoint) -> alias::SnapshotOf<TypeConfig, Checkpoint> {
    let membership = StoredMembership::new(position.membership_id.map(log_id), position.membership.clone());
    Snapshot {
        meta: SnapshotMeta { last_log_id: position.applied.map(log_id), last_membership: membership },
        snapshot: checkpoint,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;
    use skein_proto::ids::ShardId;

    use super::*;
    use crate::{
        broker::Shard,
        checkpoint::Checkpoints,
        disk::faulty::{Fault, FaultyDisk},
        log::{EntryId, LogOptions},
        raft::replica::Machine,
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
        let mut checkpointer = Checkpointer { replica: Arc::clone(&replica), checkpoint, log: log.clone() };

        // Whatever the log does next on its disk fails, be it this entry or a segment that it prepares.
        for later in 0..100 {
            disk.inject(later, Fault::Io);
        }
        let entry = Entry { index: 0, term: 1, payload: Bytes::new() };
        log.append(shard, vec![entry], Box::new(drop));
        replica.apply_consensus(EntryId { term: 1, index: 0 }, None);

        assert!(checkpointer.build_snapshot().await.is_err());
        assert_eq!(checkpointer.checkpoint.position().unwrap(), None);
    }
}
