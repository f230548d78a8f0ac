//! Between protobuf's types for peers and the plain ones of [`raft::wire`](crate::raft::wire).

use skein_proto::{
    ids::{NodeId, ShardId},
    peer,
};

use crate::{
    log::{Entry, EntryId},
    raft::wire::{AppendRequest, AppendResult, Standing, TransferRequest, Vote, VoteRequest, VoteResponse},
};

/// A message from a peer that lacks what it must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a peer's {message} lacks its {field}; do all nodes run the same version?")]
pub(super) struct Incomplete {
    message: &'static str,
    field: &'static str,
}

pub(super) fn required<T>(
    value: Option<T>,
    message: &'static str,
    field: &'static str,
) -> Result<T, Incomplete> {
    value.ok_or(Incomplete { message, field })
}

pub(super) fn vote_to_proto(vote: Vote) -> peer::Vote {
    peer::Vote { term: vote.term, node_id: vote.node.get(), committed: vote.committed }
}

pub(super) fn vote_from_proto(vote: peer::Vote) -> Vote {
    Vote { term: vote.term, node: NodeId::new(vote.node_id), committed: vote.committed }
}

fn id_to_proto(id: EntryId) -> peer::LogId {
    peer::LogId { term: id.term, index: id.index }
}

fn id_from_proto(id: peer::LogId) -> EntryId {
    EntryId { term: id.term, index: id.index }
}

pub(super) fn append_to_proto(request: AppendRequest) -> peer::AppendRequest {
    let entry = |entry: Entry| peer::LogEntry {
        id: Some(peer::LogId { term: entry.term, index: entry.index }),
        payload: entry.payload,
    };
    peer::AppendRequest {
        shard_id: request.shard.get(),
        vote: Some(vote_to_proto(request.vote)),
        prev_log_id: request.previous.map(id_to_proto),
        leader_commit: request.leader_commit.map(id_to_proto),
        entries: request.entries.into_iter().map(entry).collect(),
    }
}

pub(super) fn append_from_proto(request: peer::AppendRequest) -> Result<AppendRequest, Incomplete> {
    let message = "AppendRequest";
    let entry = |entry: peer::LogEntry| {
        let id = required(entry.id, message, "entries.id")?;
        Ok(Entry { index: id.index, term: id.term, payload: entry.payload })
    };
    Ok(AppendRequest {
        shard: ShardId::new(request.shard_id),
        vote: vote_from_proto(required(request.vote, message, "vote")?),
        previous: request.prev_log_id.map(id_from_proto),
        leader_commit: request.leader_commit.map(id_from_proto),
        entries: request.entries.into_iter().map(entry).collect::<Result<_, _>>()?,
    })
}

pub(super) fn append_result_to_proto(result: AppendResult) -> peer::AppendResponse {
    use peer::append_response::Result as Proto;
    let result = match result {
        AppendResult::Matched(id) => Proto::Matched(peer::AppendMatched { log_id: id.map(id_to_proto) }),
        AppendResult::Conflict(id) => Proto::Conflict(id_to_proto(id)),
        AppendResult::HigherVote(vote) => Proto::HigherVote(vote_to_proto(vote)),
    };
    peer::AppendResponse { result: Some(result) }
}

pub(super) fn append_result_from_proto(response: peer::AppendResponse) -> Result<AppendResult, Incomplete> {
    use peer::append_response::Result as Proto;
    Ok(match required(response.result, "AppendResponse", "result")? {
        Proto::Matched(matched) => AppendResult::Matched(matched.log_id.map(id_from_proto)),
        Proto::Conflict(id) => AppendResult::Conflict(id_from_proto(id)),
        Proto::HigherVote(vote) => AppendResult::HigherVote(vote_from_proto(vote)),
    })
}

pub(super) fn vote_request_to_proto(request: VoteRequest) -> peer::VoteRequest {
    peer::VoteRequest {
        shard_id: request.shard.get(),
        vote: Some(vote_to_proto(request.vote)),
        last_log_id: request.last.map(id_to_proto),
        leadership_transfer: request.leadership_transfer,
        pre_vote: request.pre_vote,
    }
}

pub(super) fn vote_request_from_proto(request: peer::VoteRequest) -> Result<VoteRequest, Incomplete> {
    Ok(VoteRequest {
        shard: ShardId::new(request.shard_id),
        vote: vote_from_proto(required(request.vote, "VoteRequest", "vote")?),
        last: request.last_log_id.map(id_from_proto),
        leadership_transfer: request.leadership_transfer,
        pre_vote: request.pre_vote,
    })
}

pub(super) fn vote_response_to_proto(response: VoteResponse) -> peer::VoteResponse {
    peer::VoteResponse {
        vote: Some(vote_to_proto(response.vote)),
        vote_granted: response.granted,
        last_log_id: response.last.map(id_to_proto),
    }
}

pub(super) fn vote_response_from_proto(response: peer::VoteResponse) -> Result<VoteResponse, Incomplete> {
    Ok(VoteResponse {
        vote: vote_from_proto(required(response.vote, "VoteResponse", "vote")?),
        granted: response.vote_granted,
        last: response.last_log_id.map(id_from_proto),
    })
}

pub(super) fn transfer_to_proto(request: TransferRequest) -> peer::TransferLeaderRequest {
    peer::TransferLeaderRequest {
        shard_id: request.shard.get(),
        from_leader: Some(vote_to_proto(request.from)),
        to_node_id: request.to.get(),
        last_log_id: request.last.map(id_to_proto),
    }
}

pub(super) fn transfer_from_proto(
    request: peer::TransferLeaderRequest,
) -> Result<TransferRequest, Incomplete> {
    Ok(TransferRequest {
        shard: ShardId::new(request.shard_id),
        from: vote_from_proto(required(request.from_leader, "TransferLeaderRequest", "from_leader")?),
        to: NodeId::new(request.to_node_id),
        last: request.last_log_id.map(id_from_proto),
    })
}

pub(super) fn standing_to_proto(shard: ShardId, standing: Standing) -> peer::Standing {
    peer::Standing {
        shard_id: shard.get(),
        vote: Some(vote_to_proto(standing.vote)),
        last_log_id: standing.last.map(id_to_proto),
    }
}

pub(super) fn standing_from_proto(standing: peer::Standing) -> Result<(ShardId, Standing), Incomplete> {
    let vote = vote_from_proto(required(standing.vote, "Standing", "vote")?);
    let last = standing.last_log_id.map(id_from_proto);
    Ok((ShardId::new(standing.shard_id), Standing { vote, last }))
}
