//! openraft's own tests of what it demands of storage, on the real log and the real checkpoint store.

use std::sync::Arc;

use openraft::{
    RaftLogReader as _, StorageError,
    entry::RaftEntry as _,
    storage::{IOFlushed, RaftLogStorage as _},
    testing::log::{StoreBuilder, Suite},
};
use skein_proto::ids::ShardId;
use tempfile::TempDir;

use super::{
    log_store::LogStore,
    pages::PageMemory,
    repair::Repairs,
    replica::{Machine, Replica},
    snapshot::Saved,
    state_machine::StateMachine,
    types::{RaftEntry, TypeConfig},
    wire::log_id,
};
use crate::{
    broker::Shard,
    checkpoint::Checkpoints,
    disk::RealDisk,
    log::{EntryId, Log, LogOptions},
};

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let shard = ShardId::new(1);
        let options = LogOptions { segment_bytes: 1 << 20, ..LogOptions::default() };
        let fail = |failure| panic!("the log failed: {failure}");
        let log = Log::open(Arc::new(RealDisk), &dir.path().join("log"), options, fail).unwrap();
        let checkpoint = Checkpoints::open(&dir.path().join("checkpoint")).unwrap().shard(shard).unwrap();
        let replica = Arc::new(Replica::new(shard, Machine::Messages(Shard::new()), None));
        let store = LogStore::new(log.clone(), shard, Repairs::default());
        Ok((dir, store, StateMachine::new(Saved { checkpoint, replica, log, memory: PageMemory::new(0) })))
    }
}

#[tokio::test]
async fn the_store_keeps_every_promise_that_openraft_relies_on() {
    Suite::test_all(Builder).await.unwrap();
}

#[tokio::test]
async fn entries_are_read_from_where_they_were_asked_for_or_not_at_all() {
    let (_dir, mut store, _) = Builder.build().await.unwrap();
    let at = |index| log_id(EntryId { term: 1, index });
    store.append((0..10).map(|index| RaftEntry::new_blank(at(index))), IOFlushed::noop()).await.unwrap();
    store.purge(at(5)).await.unwrap();
    assert_eq!(store.limited_get_log_entries(3, 8).await.unwrap(), []);
    let read = store.limited_get_log_entries(6, 8).await.unwrap();
    assert_eq!(read.iter().map(|entry| entry.log_id.index).collect::<Vec<_>>(), [6, 7]);
}
