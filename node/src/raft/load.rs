//! From a checkpoint's records to a shard's state.

use skein_proto::ids::ShardId;

use super::{
    codec,
    pages::PageMemory,
    records::{self, Position},
    replica::Machine,
};
use crate::{
    broker::{Catalog, Record, RecordKey, RestoreError, Shard, Spill},
    checkpoint::{Checkpoint, CheckpointError, StoredRecord},
};

/// Why a checkpoint is not a state.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Its position.
    #[error("the checkpoint of shard {shard} does not say where it stands")]
    Position {
        /// The shard.
        shard: ShardId,
        /// What is wrong with it.
        source: records::RecordError,
    },
    /// A record.
    #[error("a record in the checkpoint of shard {shard} is unreadable")]
    Record {
        /// The shard.
        shard: ShardId,
        /// What is wrong with it.
        source: codec::DecodeError,
    },
    /// Records that do not fit each other.
    #[error("the checkpoint of shard {shard} contradicts itself")]
    Restore {
        /// The shard.
        shard: ShardId,
        /// What is wrong with it.
        source: RestoreError,
    },
}

/// The state that a checkpoint holds, and where it stands; an empty state for an empty checkpoint. Pages that there is
/// no memory for stay in the checkpoint.
pub(super) fn machine(
    shard: ShardId,
    checkpoint: &Checkpoint,
    memory: &PageMemory,
) -> Result<(Machine, Option<Position>), LoadError> {
    let spill = memory.spill_loading(shard, checkpoint);
    let position = checkpoint.position()?;
    let loaded = machine_of(shard, position.as_deref(), checkpoint.records(), Some(&spill))?;
    if let Machine::Messages(messages) = &loaded.0 {
        memory.note(shard, messages.page_bytes());
    }
    Ok(loaded)
}

/// The state that these records make. They are taken one by one, and need not all be in memory.
pub(super) fn machine_of(
    shard: ShardId,
    position: Option<&[u8]>,
    records: impl Iterator<Item = Result<StoredRecord, CheckpointError>>,
    spill: Option<&Spill>,
) -> Result<(Machine, Option<Position>), LoadError> {
    let position = position.map(records::decode_position).transpose();
    let position = position.map_err(|source| LoadError::Position { shard, source })?;
    let mut unread = None;
    let records = records.map_while(|stored| match decode(shard, stored) {
        Ok(record) => Some(record),
        Err(error) => {
            unread = Some(error);
            None
        }
    });
    let machine = if shard == ShardId::CATALOG {
        Catalog::restore(records).map(Machine::Catalog)
    } else {
        Shard::restore_within(spill, records).map(Machine::Messages)
    };
    // What was made of the records before it is not what was saved.
    match unread {
        Some(error) => Err(error),
        None => Ok((machine.map_err(|source| LoadError::Restore { shard, source })?, position)),
    }
}

fn decode(
    shard: ShardId,
    stored: Result<StoredRecord, CheckpointError>,
) -> Result<(RecordKey, Record), LoadError> {
    let (key, value) = stored?;
    codec::decode_record(&key, &value).map_err(|source| LoadError::Record { shard, source })
}
