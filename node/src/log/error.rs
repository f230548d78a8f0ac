//! What can go wrong with the log, one type per operation.

use std::{fmt, io, path::PathBuf};

use skein_proto::ids::ShardId;

use super::SegmentId;

/// Why nothing can be written any more. The first failure is the one that counts; nothing is retried after it, because
/// after a failed sync nobody knows what is on disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation} {} failed: {reason}; nothing more is written, restart the node", .path.display())]
pub struct LogFailure {
    /// The file or directory concerned.
    pub path: PathBuf,
    /// What was being done.
    pub operation: Operation,
    /// What the file system said.
    pub reason: String,
}

/// What the writer was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Getting a segment file ready.
    Prepare,
    /// Writing a batch.
    Write,
    /// Making a batch durable.
    Sync,
    /// Putting aside a segment that nobody needs.
    Retire,
    /// Running at all: a callback panicked on the writer thread.
    Run,
    /// Taking another append after the log was closed.
    Append,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepare => "preparing",
            Self::Write => "writing",
            Self::Sync => "syncing",
            Self::Retire => "retiring",
            Self::Run => "serving",
            Self::Append => "appending to",
        })
    }
}

impl LogFailure {
    pub(super) fn new(path: impl Into<PathBuf>, operation: Operation, reason: impl fmt::Display) -> Self {
        Self { path: path.into(), operation, reason: reason.to_string() }
    }
}

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The segment size asked for is out of bounds.
    #[error("segments of {bytes} bytes: must be a multiple of 4096 from {min} to {max}")]
    SegmentBytes {
        /// What was asked for.
        bytes: u64,
        /// The smallest allowed.
        min: u64,
        /// The largest allowed.
        max: u64,
    },
    /// Another process has the log.
    #[error("{} is in use by another process; stop it first", .dir.display())]
    Locked {
        /// The log's directory.
        dir: PathBuf,
    },
    /// The file system failed.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// The file or directory concerned.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// What the file system said.
        source: io::Error,
    },
    /// A later version of Skein wrote this.
    #[error("{} has format version {found}, newer than {supported}, the newest this program reads; \
    upgrade it", .path.display())]
    NewerVersion {
        /// The segment.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version this program reads.
        supported: u32,
    },
    /// What is on disk is not what was written. Nothing was changed.
    #[error(
        "{} is damaged at byte {offset}: {damage}; nothing was changed. Check the disk and restore the data \
         directory from a copy; never start the node on an empty one, which could lose what was confirmed",
        .path.display()
    )]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// The shard whose record is damaged, where that can be told.
        shard: Option<ShardId>,
        /// What is wrong there.
        damage: Damage,
    },
    /// The writer could not be started, or its first segment not be written.
    #[error(transparent)]
    Failed(#[from] LogFailure),
}

/// What is wrong at a place in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The header of a segment that is in use cannot be read.
    #[error("the segment's header is unreadable")]
    Header,
    /// The header says it is another segment.
    #[error("the header is that of another segment")]
    Misplaced,
    /// The segment is of another log.
    #[error("the segment belongs to another log")]
    ForeignLog,
    /// A segment between others is not there.
    #[error("segment {number} is missing")]
    MissingSegment {
        /// The missing one.
        number: u64,
    },
    /// A batch cannot be read although a later one can.
    #[error("batch {number} is unreadable or missing, though later ones were written")]
    Batch {
        /// The batch.
        number: u64,
    },
    /// A sound record that makes no sense here.
    #[error("a record of shard {shard} at index {index} does not follow from those before it")]
    Inconsistent {
        /// Its shard.
        shard: ShardId,
        /// Its index.
        index: u64,
    },
    /// A record of a kind this version does not know.
    #[error("record kind {kind} is unknown")]
    UnknownKind {
        /// The kind.
        kind: u8,
    },
    /// Entries that should be in some segment are in none.
    #[error("entry {index} of shard {shard} is nowhere in the log")]
    MissingEntry {
        /// Its shard.
        shard: ShardId,
        /// The first that is missing.
        index: u64,
    },
}

/// Why what is left of a segment was not written anew, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// Whoever asked for it ended it.
    #[error("it was stopped")]
    Stopped,
    /// The segment cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The log cannot be written.
    #[error(transparent)]
    Log(#[from] LogFailure),
    /// The parts that were asked for do not rise, or overlap.
    #[error("the parts of entry {index} of shard {shard} contradict each other")]
    Contradiction {
        /// The shard.
        shard: ShardId,
        /// The entry.
        index: u64,
    },
}

impl RewriteError {
    /// The entry that is damaged, if that is why.
    #[must_use]
    pub fn damaged_entry(&self) -> Option<(ShardId, u64)> {
        match self {
            Self::Read(ReadError::Damaged { shard, index, .. }) => Some((*shard, *index)),
            _ => None,
        }
    }
}

/// Why entries cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The entry lies below the shard's purge point.
    #[error("entry {index} of shard {shard} was purged; the log starts after {purged}")]
    Purged {
        /// The shard.
        shard: ShardId,
        /// The first index asked for.
        index: u64,
        /// The last index that was purged.
        purged: u64,
    },
    /// The entry lies past the end: it never was, or was truncated.
    #[error("entry {index} of shard {shard} does not exist")]
    NotFound {
        /// The shard.
        shard: ShardId,
        /// The first index asked for.
        index: u64,
    },
    /// The entry was written but cannot be read any more: it must come from another replica.
    #[error("entry {index} of shard {shard} is damaged, in {} at byte {offset}", .path.display())]
    Damaged {
        /// The shard.
        shard: ShardId,
        /// The entry.
        index: u64,
        /// The segment.
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
    },
    /// There is no such segment, or it is not sealed.
    #[error("segment {segment} is not there any more, or not sealed")]
    NoSegment {
        /// Which one.
        segment: SegmentId,
    },
    /// The file system failed.
    #[error("cannot read {}", .path.display())]
    Io {
        /// The segment.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
}

impl ReadError {
    /// The damaged entry, if that is why. It need not be the first one that was asked for.
    #[must_use]
    pub fn damaged_index(&self) -> Option<u64> {
        match self {
            Self::Damaged { index, .. } => Some(*index),
            _ => None,
        }
    }
}
