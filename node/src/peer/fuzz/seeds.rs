//! Inputs to start from: one message of each kind.

use prost::Message as _;
use skein_proto::ids::{NodeId, ShardId};

use super::super::{convert, snapshots};
use crate::{
    log::EntryId,
    raft::{
        fuzz::seeds,
        wire::{AppendResult, SnapshotAnswer, SnapshotPiece, TransferRequest, VoteRequest, VoteResponse},
    },
};

/// A snapshot's pieces.
pub(crate) fn pieces() -> Vec<Vec<u8>> {
    seeds::pieces().into_iter().map(|piece| snapshots::piece_to_proto(piece).encode_to_vec()).collect()
}

/// A leader's request.
pub(crate) fn append_request() -> Vec<u8> {
    convert::append_to_proto(seeds::append_request()).encode_to_vec()
}

/// The other messages, in the order of their kinds.
pub(crate) fn messages() -> Vec<Vec<u8>> {
    let (shard, vote, last) = (ShardId::new(1), seeds::vote(), Some(EntryId { term: 2, index: 9 }));
    let request = VoteRequest { shard, vote, last, leadership_transfer: true, pre_vote: false };
    let transfer = TransferRequest { shard, from: vote, to: NodeId::new(1), last };
    let mut pieces = seeds::pieces();
    let SnapshotPiece::Entries(entries) = pieces.remove(1) else { panic!("entries come second") };
    vec![
        convert::append_result_to_proto(AppendResult::Matched(last)).encode_to_vec(),
        convert::vote_request_to_proto(request).encode_to_vec(),
        convert::vote_response_to_proto(VoteResponse { vote, granted: true, last }).encode_to_vec(),
        convert::transfer_to_proto(transfer).encode_to_vec(),
        snapshots::answer_to_proto(SnapshotAnswer::Installed(vote)).encode_to_vec(),
        snapshots::entry_to_proto(&entries[1]).encode_to_vec(),
    ]
}
