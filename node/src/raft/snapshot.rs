//! Snapshots: how a replica that needs entries which the leader no longer has gets to where the leader is.
//!
//! A snapshot is the leader's checkpoint at some entry S, and what is still needed of the entries up to S. It is never
//! in memory as a whole, on neither side: entries go from log to log, records from checkpoint to checkpoint, a piece
//! at a time. Entries that lose their last message while a snapshot is on its way are left out: the receiver learns
//! of the acks from the log after S, and it cannot lead, and so cannot be asked for them, before it has.

mod receive;
mod send;

use std::sync::Arc;

use super::{pages::PageMemory, replica::Replica};
use crate::{
    checkpoint::{Changing, Checkpoint, Staged},
    log::Log,
};

pub use receive::ReceiveError;
pub(super) use receive::Receiver;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) use receive::last_index;

/// How many bytes of entries or of records make a piece. Small, because on the receiver's disk each is in the way of
/// everybody's next write.
const PIECE_BYTES: usize = 256 << 10;

/// What openraft hands about as a snapshot's contents.
pub(super) enum SnapshotData {
    /// This node's checkpoint, to send.
    Saved(Saved),
    /// Another node's state, complete and on disk, to be taken over.
    Received(Staged, Changing),
}

/// What a snapshot is made of.
#[derive(Clone)]
pub(super) struct Saved {
    pub checkpoint: Checkpoint,
    pub replica: Arc<Replica>,
    pub log: Log,
    pub memory: Arc<PageMemory>,
}
