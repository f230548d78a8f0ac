//! Reads made-up messages as a peer's, and says them again.

#[cfg(test)]
pub(crate) mod seeds;

use std::fmt::Debug;

use prost::Message;
use skein_proto::peer;

use super::{convert, snapshots};
use crate::raft::wire::{AppendRequest, SnapshotPiece};

/// Reads a snapshot's pieces, with checksums put right; `None` when one is none.
pub(crate) fn pieces(encoded: &[&[u8]]) -> Option<Vec<SnapshotPiece>> {
    encoded.iter().map(|encoded| piece(encoded)).collect()
}

fn piece(encoded: &[u8]) -> Option<SnapshotPiece> {
    let mut message = peer::SnapshotPiece::decode(encoded).ok()?;
    drop(snapshots::piece_from_proto(message.clone()));
    snapshots::reseal(&mut message);
    let piece = snapshots::piece_from_proto(message).ok()?;
    let message = snapshots::piece_to_proto(piece.clone());
    let again = peer::SnapshotPiece::decode(&message.encode_to_vec()[..]).expect("it was just encoded");
    assert_eq!(again, message);
    let again = snapshots::piece_from_proto(again).expect("it was made from a piece");
    assert_eq!(snapshots::piece_to_proto(again), message);
    Some(piece)
}

/// Reads a leader's request.
pub(crate) fn append_request(encoded: &[u8]) -> Option<AppendRequest> {
    both_ways(encoded, convert::append_from_proto, convert::append_to_proto)
}

/// Reads any other message, of this kind. Returns whether it was one.
pub(crate) fn message(kind: u8, encoded: &[u8]) -> bool {
    match kind {
        0 => both_ways(encoded, convert::append_result_from_proto, convert::append_result_to_proto).is_some(),
        1 => both_ways(encoded, convert::vote_request_from_proto, convert::vote_request_to_proto).is_some(),
        2 => both_ways(encoded, convert::vote_response_from_proto, convert::vote_response_to_proto).is_some(),
        3 => both_ways(encoded, convert::transfer_from_proto, convert::transfer_to_proto).is_some(),
        4 => both_ways(encoded, snapshots::answer_from_proto, snapshots::answer_to_proto).is_some(),
        _ => {
            let to_proto = |entry| snapshots::entry_to_proto(&entry);
            both_ways(encoded, snapshots::entry_from_proto, to_proto).is_some()
        }
    }
}

/// What a message says; said again, it says the same.
fn both_ways<M, T, E>(encoded: &[u8], from: fn(M) -> Result<T, E>, to: fn(T) -> M) -> Option<T>
where
    M: Message + Default + PartialEq + Debug,
    T: Clone,
    E: Debug,
{
    let value = from(M::decode(encoded).ok()?).ok()?;
    let message = to(value.clone());
    let again = M::decode(&message.encode_to_vec()[..]).expect("it was just encoded");
    assert_eq!(again, message);
    let again = from(again).expect("it was made from a value");
    assert_eq!(to(again), message);
    Some(value)
}
