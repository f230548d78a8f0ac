//! Entries and checkpoint records as bytes. The only user of the generated storage types.

mod catalog;
mod entry;
mod nodes;
mod record;
mod settings;
#[cfg(test)]
mod tests;

use skein_proto::{ids::Offset, storage as wire};

pub use entry::{Commands, DecodedEntry, EntryHead, Proposed, decode_entry, encode_entry};
pub use record::{KEY_BYTES_MAX, decode_record, encode_key, encode_record, queue_key_prefix};

use crate::{broker::IdHash, offsets::OffsetRange};

/// Why bytes are not an entry or a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They are not the protobuf message that they should be.
    #[error("a malformed protobuf message")]
    Malformed(#[from] prost::DecodeError),
    /// A part is missing without which the rest means nothing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A number has no meaning: a newer version wrote it.
    #[error("{field} has the unknown value {value}")]
    Unknown {
        /// Where it stands.
        field: &'static str,
        /// What it is.
        value: i64,
    },
    /// Commands for the catalog and for a shard with messages are in one entry.
    #[error("commands for different kinds of shards are in one entry")]
    MixedCommands,
    /// The payload is larger than positions in it can be.
    #[error("the payload is larger than 4 GiB")]
    TooLarge,
    /// A key has another length than its kind.
    #[error("the key has {0} bytes")]
    KeyLength(usize),
    /// The parts of a batch are not the whole.
    #[error("the parts of a batch are not the whole")]
    BatchRuns,
    /// What stands for the id of a message has another length.
    #[error("the hash of an id has {0} bytes")]
    IdHash(usize),
    /// Offsets go past the last possible one.
    #[error("offsets go past the last possible one")]
    OffsetOverflow,
}

fn id_from_wire(hash: &[u8]) -> Result<IdHash, DecodeError> {
    hash.try_into().map(IdHash).map_err(|_| DecodeError::IdHash(hash.len()))
}

fn range_to_wire(range: OffsetRange) -> wire::OffsetRange {
    wire::OffsetRange { first: range.first.get(), count: range.count }
}

fn range_from_wire(range: wire::OffsetRange) -> OffsetRange {
    OffsetRange::new(Offset::new(range.first), range.count)
}

fn required_range(range: Option<wire::OffsetRange>) -> Result<OffsetRange, DecodeError> {
    range.map(range_from_wire).ok_or(DecodeError::Missing("range"))
}
