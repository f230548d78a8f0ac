//! How openraft is configured: the types it is generic over, and short names for the ones we use.

use std::fmt;

use bytes::Bytes;
use openraft::{EntryPayload, RaftTypeConfig, Vote, alias, impls::leader_id_std::LeaderId};

use super::state_machine::{Outcomes, StateMachine};

/// The type configuration of every raft group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = Body;
    type R = Outcomes;
    type NodeId = u64;
    type Node = openraft::BasicNode;
    type Term = u64;
    // Standard Raft: one leader a term, so that a log id is a term and an index.
    type LeaderId = LeaderId<u64, u64>;
    type Vote = Vote<Self::LeaderId>;
    type Payload = EntryPayload<Body, u64, openraft::BasicNode>;
    type Entry = alias::DefaultEntryOf<Self>;
    type Responder<T>
        = openraft::impls::OneshotResponder<Self, T>
    where
        T: Send + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: Send + 'static;
    type AsyncRuntime = openraft_rt_tokio::TokioRuntime;
    type ErrorSource = openraft::AnyError;
}

pub(super) type Raft = openraft::Raft<TypeConfig, StateMachine>;
pub(super) type RaftEntry = alias::EntryOf<TypeConfig>;
pub(super) type RaftVote = alias::VoteOf<TypeConfig>;
pub(super) type RaftLogId = alias::LogIdOf<TypeConfig>;
pub(super) type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
pub(super) type Membership = openraft::Membership<u64, openraft::BasicNode>;
pub(super) type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;

/// The body of a normal entry, encoded by [`super::codec`]. Cheap to clone: openraft clones it for every follower.
#[derive(Clone, PartialEq, Eq)]
pub struct Body(pub Bytes);

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.0.len())
    }
}

impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
