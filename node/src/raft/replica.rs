//! One shard's replicated state on this node: written by the apply worker, read by everybody else.

use std::{
    ops::Range,
    sync::{Mutex, MutexGuard},
};

use skein_proto::ids::ShardId;
use tokio::sync::watch;

use super::{
    codec::{self, Commands, DecodeError},
    records::Position,
    state_machine::Outcomes,
    types::{Membership, StoredMembership},
    wire::{entry_id, log_id},
};
use crate::{
    broker::{Catalog, Live, LivePart, Record, RecordKey, Shard},
    log::{Entry, EntryId},
};

/// What a shard replicates.
#[derive(Debug)]
pub(super) enum Machine {
    /// Shard 0.
    Catalog(Catalog),
    /// Every other shard.
    Messages(Shard),
}

impl Machine {
    /// Whether the state refers to bodies in the log.
    pub(super) fn holds_messages(&self) -> bool {
        match self {
            Self::Catalog(_) => false,
            Self::Messages(shard) => shard.next_live_index(0).is_some(),
        }
    }
}

/// A shard's state and how far it has come. The lock is held for one entry at a time, and never over an await.
pub struct Replica {
    shard: ShardId,
    state: Mutex<State>,
    applied_index: watch::Sender<u64>,
}

struct State {
    machine: Machine,
    applied: Option<EntryId>,
    membership: StoredMembership,
    bytes_since_checkpoint: u64,
}

impl State {
    fn at(machine: Machine, position: Option<Position>) -> Self {
        let applied = position.as_ref().and_then(|position| position.applied);
        let membership = position.map_or_else(StoredMembership::default, |position| {
            StoredMembership::new(position.membership_id.map(log_id), position.membership)
        });
        Self { machine, applied, membership, bytes_since_checkpoint: 0 }
    }
}

/// An entry that was read intact but does not belong to this shard, or cannot be understood.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    /// The body does not decode.
    #[error("entry {index} of shard {shard} cannot be decoded")]
    Undecodable {
        /// The shard.
        shard: ShardId,
        /// The entry's index.
        index: u64,
        /// What the decoder found.
        source: DecodeError,
    },
    /// Catalog commands in a message shard, or the other way round.
    #[error("entry {index} of shard {shard} holds commands of the other kind of shard")]
    WrongKind {
        /// The shard.
        shard: ShardId,
        /// The entry's index.
        index: u64,
    },
}

/// What a checkpoint saves: the records that changed since the last one, and where the state stands with them.
pub(super) struct Changes {
    pub records: Vec<(RecordKey, Option<Record>)>,
    pub position: Position,
}

impl Replica {
    pub(super) fn new(shard: ShardId, machine: Machine, position: Option<Position>) -> Self {
        let state = State::at(machine, position);
        let applied_index = watch::Sender::new(state.applied.map_or(0, |applied| applied.index));
        Self { shard, state: Mutex::new(state), applied_index }
    }

    /// Forgets the state for another one.
    pub(super) fn replace(&self, machine: Machine, position: Option<Position>) {
        let state = State::at(machine, position);
        let index = state.applied.map_or(0, |applied| applied.index);
        *self.lock() = state;
        self.applied_index.send_replace(index);
    }

    /// The shard.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Reads the catalog.
    ///
    /// # Panics
    /// When this is not the catalog's shard.
    pub fn with_catalog<T>(&self, read: impl FnOnce(&Catalog) -> T) -> T {
        match &self.lock().machine {
            Machine::Catalog(catalog) => read(catalog),
            Machine::Messages(_) => unreachable!("shard {} is not the catalog", self.shard),
        }
    }

    /// Reads a message shard, or takes its events.
    ///
    /// # Panics
    /// When this is the catalog's shard.
    pub fn with_messages<T>(&self, read: impl FnOnce(&mut Shard) -> T) -> T {
        match &mut self.lock().machine {
            Machine::Messages(shard) => read(shard),
            Machine::Catalog(_) => unreachable!("shard {} carries no messages", self.shard),
        }
    }

    /// The index of the newest applied entry, now and as it grows.
    #[must_use]
    pub fn applied_index(&self) -> watch::Receiver<u64> {
        self.applied_index.subscribe()
    }

    /// Waits until the entry at `index` is applied.
    pub async fn wait_applied(&self, index: u64) {
        // Cannot fail: the sender lives as long as `self`.
        let _ = self.applied_index.subscribe().wait_for(|applied| *applied >= index).await;
    }

    /// Bytes of entries applied since the last checkpoint.
    #[must_use]
    pub fn bytes_since_checkpoint(&self) -> u64 {
        self.lock().bytes_since_checkpoint
    }

    /// The highest entry that is known to be on the disks of all replicas.
    #[must_use]
    pub fn replicated_index(&self) -> u64 {
        match &self.lock().machine {
            Machine::Catalog(catalog) => catalog.replicated_index(),
            Machine::Messages(shard) => shard.replicated_index(),
        }
    }

    /// What of these entries some group may still need. The catalog keeps all it needs in its state.
    pub(super) fn live_parts(&self, entries: Range<u64>) -> Vec<LivePart> {
        match &self.lock().machine {
            Machine::Catalog(_) => Vec::new(),
            Machine::Messages(shard) => shard.live_parts(entries),
        }
    }

    /// How much of each of these ranges of entries, which rise, some group may still need.
    pub(super) fn live_in(&self, ranges: &[Range<u64>]) -> Vec<Live> {
        match &self.lock().machine {
            Machine::Catalog(_) => vec![Live::default(); ranges.len()],
            Machine::Messages(shard) => shard.live_in(ranges),
        }
    }

    /// The lowest entry from `from` on that some group may still need.
    pub(super) fn next_live_index(&self, from: u64) -> Option<u64> {
        match &self.lock().machine {
            Machine::Catalog(_) => None,
            Machine::Messages(shard) => shard.next_live_index(from),
        }
    }

    pub(super) fn applied(&self) -> (Option<EntryId>, StoredMembership) {
        let state = self.lock();
        (state.applied, state.membership.clone())
    }

    /// Applies a committed entry that carries commands. The state must not have seen it.
    pub(super) fn apply_commands(&self, entry: &Entry) -> Result<Outcomes, ApplyError> {
        let (shard, index) = (self.shard, entry.index);
        let decoded = codec::decode_entry(&entry.payload).map_err(|source| ApplyError::Undecodable {
            shard,
            index,
            source,
        })?;
        let meta = decoded.head.at(index);
        let mut state = self.lock();
        let outcomes = match (&mut state.machine, &decoded.commands) {
            (Machine::Messages(shard), Commands::Shard(commands)) => {
                Outcomes::Shard(shard.apply(meta, commands))
            }
            (Machine::Catalog(catalog), Commands::Catalog(commands)) => {
                Outcomes::Catalog(catalog.apply(meta, commands))
            }
            // An entry without commands is of either kind.
            (Machine::Catalog(catalog), Commands::Shard(commands)) if commands.is_empty() => {
                Outcomes::Catalog(catalog.apply(meta, &[]))
            }
            _ => return Err(ApplyError::WrongKind { shard, index }),
        };
        state.bytes_since_checkpoint += entry.payload.len() as u64;
        self.advance(state, EntryId { term: entry.term, index });
        Ok(outcomes)
    }

    /// Notes a committed entry without commands: a leader's first entry, or a change of membership.
    pub(super) fn apply_consensus(&self, id: EntryId, membership: Option<Membership>) {
        let mut state = self.lock();
        if let Some(membership) = membership {
            state.membership = StoredMembership::new(Some(log_id(id)), membership);
        }
        self.advance(state, id);
    }

    /// Takes what a checkpoint must save.
    pub(super) fn take_changes(&self) -> Changes {
        let mut state = self.lock();
        state.bytes_since_checkpoint = 0;
        let records = match &mut state.machine {
            Machine::Catalog(catalog) => catalog.take_changes(),
            Machine::Messages(shard) => shard.take_changes(),
        };
        let position = Position {
            applied: state.applied,
            membership: state.membership.membership().clone(),
            membership_id: state.membership.log_id().as_ref().map(entry_id),
        };
        Changes { records, position }
    }

    fn advance(&self, mut state: MutexGuard<'_, State>, id: EntryId) {
        assert!(
            state.applied.is_none_or(|applied| applied.index < id.index),
            "entry {} of shard {} applied twice, or after a later one",
            id.index,
            self.shard
        );
        state.applied = Some(id);
        drop(state);
        self.applied_index.send_replace(id.index);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("applying panicked: the state may be half changed, and the node must stop")
    }
}
