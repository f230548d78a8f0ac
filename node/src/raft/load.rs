//! From a checkpoint's records to a shard's state.

use skein_proto::ids::ShardId;

use super::{
    codec,
    records::{self, Position},
    replica::Machine,
};
use crate::{
    broker::{Catalog, RestoreError, Shard},
    checkpoint::Loaded,
};

/// Why a checkpoint is not a state.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
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

/// The state that a checkpoint holds, and where it stands; an empty state for an empty checkpoint.
pub(super) fn machine(shard: ShardId, loaded: &Loaded) -> Result<(Machine, Option<Position>), LoadError> {
    let position = loaded.position.as_deref().map(records::decode_position).transpose();
    let position = position.map_err(|source| LoadError::Position { shard, source })?;
    let records = loaded.records.iter().map(|(key, value)| codec::decode_record(key, value));
    let records: Vec<_> =
        records.collect::<Result<_, _>>().map_err(|source| LoadError::Record { shard, source })?;
    let restore = |source| LoadError::Restore { shard, source };
    let machine = if shard == ShardId::CATALOG {
        Machine::Catalog(Catalog::restore(records.into_iter()).map_err(restore)?)
    } else {
        Machine::Messages(Shard::restore(records.into_iter()).map_err(restore)?)
    };
    Ok((machine, position))
}
