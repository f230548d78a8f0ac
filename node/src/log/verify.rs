//! Reads a segment's records through and says which are damaged.

use std::{ops::ControlFlow, sync::Arc};

use skein_proto::ids::ShardId;

use super::{
    Log, SegmentId,
    error::ReadError,
    format::Kind,
    positions::{Position, ShardPositions},
    reader::{Found, Miss},
    segment::Segment,
};

/// How much is read between two calls of `pace`, in bytes, about.
const CHUNK_BYTES: usize = 1 << 20;

/// A record that is not as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DamagedRecord {
    /// The shard of the entry that it is of.
    pub shard: ShardId,
    /// The entry.
    pub index: u64,
}

impl Log {
    /// Reads all that a sealed segment has. `pace` is called after each chunk with its size, and may sleep. What is
    /// whole elsewhere in the log does not count as damaged.
    ///
    /// # Errors
    /// When the segment is gone, or cannot be read at all.
    pub fn verify(
        &self,
        segment: SegmentId,
        pace: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<DamagedRecord>, ReadError> {
        let (segment, positions) = self.positions_of(segment)?;
        let mut damaged = Vec::new();
        for (shard, ShardPositions { entries, kept }) in positions.iter() {
            let entries: Vec<_> = (entries.first..).zip(entries.list.iter().copied()).collect();
            for (kind, records) in [(Kind::Entry, entries), (Kind::Kept, kept.iter().collect())] {
                let mut rest = &records[..];
                while !rest.is_empty() {
                    let read = self.verify_some(&segment, *shard, kind, rest, &mut damaged)?;
                    let (done, later) = rest.split_at(read);
                    rest = later;
                    let bytes = done.iter().map(|(_, position)| position.payload_bytes as usize).sum();
                    if pace(bytes).is_break() {
                        return Ok(damaged);
                    }
                }
            }
        }
        Ok(damaged)
    }

    /// Says how many of the records are done with.
    fn verify_some(
        &self,
        segment: &Arc<Segment>,
        shard: ShardId,
        kind: Kind,
        records: &[(u64, Position)],
        damaged: &mut Vec<DamagedRecord>,
    ) -> Result<usize, ReadError> {
        let start = records.first().map_or(0, |(_, position)| position.start());
        let is_chunk = |(_, position): &&(u64, Position)| {
            position.start() >= start && position.end() - start <= CHUNK_BYTES
        };
        let chunk = records.iter().take_while(is_chunk).count().max(1);
        let found = Found { segment: segment.clone(), kind, records: records[..chunk].to_vec() };
        match found.read(shard) {
            // If not all, the next one is the first of the next chunk, and found damaged then.
            Ok(read) => Ok(read.len()),
            // Its file may have been used again before it was read.
            Err(_) if !self.shared.has(segment) => {
                Err(ReadError::NoSegment { segment: SegmentId(segment.number) })
            }
            Err(Miss::Unsound { index, .. }) => {
                if !self.shared.is_kept_later(shard, index, segment.number) {
                    damaged.push(DamagedRecord { shard, index });
                }
                Ok(1)
            }
            Err(Miss::Io(source)) => Err(ReadError::Io { path: segment.path.clone(), source }),
        }
    }

    /// The entries that were found damaged when the log was opened, and of which there is no other record.
    #[must_use]
    pub fn damaged(&self) -> Vec<(ShardId, u64)> {
        let found = self.shared.damaged.iter().copied();
        let is_damaged = |(shard, index): &(ShardId, u64)| {
            self.shared.read_kept(*shard, *index, 0).is_err_and(|error| error.damaged_index() == Some(*index))
        };
        found.filter(is_damaged).collect()
    }
}
