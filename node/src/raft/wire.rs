//! What raft groups say to each other, in plain types: openraft's stay inside this module, protobuf's inside `peer`.

use bytes::Bytes;
use openraft::{
    alias,
    raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest},
};
use skein_proto::ids::{NodeId, ShardId};

use super::{
    records,
    types::{RaftLogId, RaftVote, TypeConfig},
};
use crate::log::{Entry, EntryId, KeptEntry};

/// A record of a checkpoint.
pub use crate::checkpoint::StoredRecord;

/// A vote: whose leadership in which term, and whether a majority granted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vote {
    /// The term voted in.
    pub term: u64,
    /// The node voted for.
    pub node: NodeId,
    /// A majority granted it.
    pub committed: bool,
}

/// Entries for a follower, or a heartbeat when there are none.
#[derive(Debug, Clone)]
pub struct AppendRequest {
    /// The shard.
    pub shard: ShardId,
    /// The leader's vote.
    pub vote: Vote,
    /// The entry before the first one sent.
    pub previous: Option<EntryId>,
    /// The newest committed entry the leader knows of.
    pub leader_commit: Option<EntryId>,
    /// The entries, as they lie in the log.
    pub entries: Vec<Entry>,
}

/// A follower's answer to an [`AppendRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendResult {
    /// Everything up to it is on the follower's disk.
    Matched(Option<EntryId>),
    /// The follower's log does not have this entry.
    Conflict(EntryId),
    /// The follower has voted higher.
    HigherVote(Vote),
}

/// A candidate asks for a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VoteRequest {
    /// The shard.
    pub shard: ShardId,
    /// The vote asked for.
    pub vote: Vote,
    /// The end of the candidate's log.
    pub last: Option<EntryId>,
    /// The leader asked for this election: grant it though the leader's lease has not ended.
    pub leadership_transfer: bool,
    /// Only ask what the answer would be.
    pub pre_vote: bool,
}

/// The answer to a [`VoteRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VoteResponse {
    /// The highest vote the answering replica knows.
    pub vote: Vote,
    /// Granted.
    pub granted: bool,
    /// The end of the answering replica's log.
    pub last: Option<EntryId>,
}

/// Where a replica stands: what decides whether it can win an election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The highest vote it knows.
    pub vote: Vote,
    /// The end of its log.
    pub last: Option<EntryId>,
}

/// A leader asks a follower to take over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferRequest {
    /// The shard.
    pub shard: ShardId,
    /// The leader's vote.
    pub from: Vote,
    /// Who shall lead.
    pub to: NodeId,
    /// What the new leader must have on disk.
    pub last: Option<EntryId>,
}

/// A piece of a snapshot on its way to a replica: a begin, entries by rising index, records by rising key, an end.
#[derive(Debug, Clone)]
pub enum SnapshotPiece {
    /// Whose snapshot it is.
    Begin(SnapshotBegin),
    /// What is still needed of entries that the state covers.
    Entries(Vec<KeptEntry>),
    /// The state.
    Records(Vec<StoredRecord>),
    /// How much was sent on this stream.
    End {
        /// Entries.
        entry_count: u64,
        /// Records.
        record_count: u64,
    },
}

/// How a snapshot begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotBegin {
    /// The shard.
    pub shard: ShardId,
    /// The leader's vote.
    pub vote: Vote,
    /// Where the state stands, encoded.
    pub position: Bytes,
}

/// What a replica says to a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotAnswer {
    /// What is needed of the entries up to this one is on its disk.
    Staged {
        /// The entry.
        index: u64,
    },
    /// The snapshot is its state, unless its vote is higher than the leader's.
    Installed(Vote),
}

impl From<RaftVote> for Vote {
    fn from(vote: RaftVote) -> Self {
        Self {
            term: vote.leader_id.term,
            node: NodeId::new(vote.leader_id.voted_for),
            committed: vote.committed,
        }
    }
}

impl From<Vote> for RaftVote {
    fn from(vote: Vote) -> Self {
        let leader_id = alias::LeaderIdOf::<TypeConfig> { term: vote.term, voted_for: vote.node.get() };
        Self { leader_id, committed: vote.committed }
    }
}

pub(super) fn entry_id(id: &RaftLogId) -> EntryId {
    EntryId { term: id.committed_leader_id().term, index: id.index() }
}

pub(super) fn log_id(id: EntryId) -> RaftLogId {
    RaftLogId::new(alias::CommittedLeaderIdOf::<TypeConfig>::new(id.term), id.index)
}

impl AppendRequest {
    pub(super) fn from_raft(shard: ShardId, request: AppendEntriesRequest<TypeConfig>) -> Self {
        Self {
            shard,
            vote: request.vote.into(),
            previous: request.prev_log_id.as_ref().map(entry_id),
            leader_commit: request.leader_commit.as_ref().map(entry_id),
            entries: request.entries.into_iter().map(records::entry_to_log).collect(),
        }
    }

    pub(super) fn into_raft(self) -> Result<AppendEntriesRequest<TypeConfig>, records::RecordError> {
        Ok(AppendEntriesRequest {
            vote: self.vote.into(),
            prev_log_id: self.previous.map(log_id),
            leader_commit: self.leader_commit.map(log_id),
            entries: self.entries.into_iter().map(records::entry_from_log).collect::<Result<_, _>>()?,
        })
    }
}

impl AppendResult {
    pub(super) fn from_raft(result: &StreamAppendResult<TypeConfig>) -> Self {
        match result {
            Ok(matched) => Self::Matched(matched.as_ref().map(entry_id)),
            Err(StreamAppendError::Conflict(id)) => Self::Conflict(entry_id(id)),
            Err(StreamAppendError::HigherVote(vote)) => Self::HigherVote((*vote).into()),
        }
    }

    pub(super) fn into_raft(self) -> StreamAppendResult<TypeConfig> {
        match self {
            Self::Matched(id) => Ok(id.map(log_id)),
            Self::Conflict(id) => Err(StreamAppendError::Conflict(log_id(id))),
            Self::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote.into())),
        }
    }
}

impl VoteRequest {
    pub(super) fn from_raft(
        shard: ShardId,
        request: &openraft::raft::VoteRequest<TypeConfig>,
        pre_vote: bool,
    ) -> Self {
        Self {
            shard,
            vote: request.vote.into(),
            last: request.last_log_id.as_ref().map(entry_id),
            leadership_transfer: request.leadership_transfer,
            pre_vote,
        }
    }

    pub(super) fn into_raft(self) -> openraft::raft::VoteRequest<TypeConfig> {
        openraft::raft::VoteRequest {
            vote: self.vote.into(),
            last_log_id: self.last.map(log_id),
            leadership_transfer: self.leadership_transfer,
        }
    }
}

impl VoteResponse {
    pub(super) fn from_raft(response: &openraft::raft::VoteResponse<TypeConfig>) -> Self {
        Self {
            vote: response.vote.into(),
            granted: response.vote_granted,
            last: response.last_log_id.as_ref().map(entry_id),
        }
    }

    pub(super) fn into_raft(self) -> openraft::raft::VoteResponse<TypeConfig> {
        openraft::raft::VoteResponse {
            vote: self.vote.into(),
            vote_granted: self.granted,
            last_log_id: self.last.map(log_id),
        }
    }
}

impl TransferRequest {
    pub(super) fn from_raft(shard: ShardId, request: &TransferLeaderRequest<TypeConfig>) -> Self {
        Self {
            shard,
            from: (*request.from_leader()).into(),
            to: NodeId::new(*request.to_node_id()),
            last: request.last_log_id().map(entry_id),
        }
    }

    pub(super) fn into_raft(self) -> TransferLeaderRequest<TypeConfig> {
        TransferLeaderRequest::new(self.from.into(), self.to.get(), self.last.map(log_id))
    }
}
