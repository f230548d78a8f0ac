//! The only user of openraft: groups that agree on commands, keep them in the node's log, and apply them.
//!
//! A command's way: [`Group::propose_later`] → [`proposer`] gathers what has queued into one entry → openraft appends
//! it ([`log_store`]) and sends it to the followers ([`network`]) → once it is on disk on a majority,
//! [`state_machine`] applies it to the [`Replica`] on every node → the proposer hands out the outcomes.
//!
//! Types of openraft do not leave this module, nor does anything here know protobuf services or sockets: peers are
//! reached through [`Transport`], in the plain types of [`wire`].

pub mod codec;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod group;
mod groups;
mod leadership;
mod load;
mod log_store;
mod membership;
mod network;
mod offline;
mod pages;
mod pause;
mod proposer;
mod records;
mod repair;
mod replica;
mod scrub;
mod snapshot;
mod space;
mod state_machine;
mod succession;
#[cfg(test)]
mod suite;
mod transfer;
mod types;
pub mod wire;

pub use codec::Proposed;
pub use group::{Group, GroupError, GroupFailure, Timers};
pub use groups::{Groups, GroupsParts, OpenGroupsError, UpkeepFailure};
pub use leadership::Leadership;
pub use load::LoadError;
pub use membership::{MembershipError, ReplicaSet};
pub use network::{
    AppendRequests, AppendResults, SnapshotAnswers, SnapshotPieces, Transport, TransportError,
};
pub use offline::{SavedStates, SavedStatesError};
pub use pages::PageMemory;
pub use proposer::{CommandOutcome, ProposeError};
pub use repair::Repairs;
pub use replica::Replica;
pub use scrub::Scrubbing;
pub use snapshot::ReceiveError;
pub use succession::Succession;
pub use transfer::TransferError;
