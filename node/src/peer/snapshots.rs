//! Between protobuf's pieces of a snapshot, and entries that are repaired, and the plain ones of
//! [`raft::wire`](crate::raft::wire). What is large is checked: what it is made of becomes somebody's disk.

use bytes::Bytes;
use skein_proto::{ids::ShardId, peer};
use tonic::Status;

use super::convert::{Incomplete, required, vote_from_proto, vote_to_proto};
use crate::{
    log::{KeptEntry, Parts},
    raft::wire::{SnapshotAnswer, SnapshotBegin, SnapshotPiece, StoredRecord},
};

pub(super) fn piece_to_proto(piece: SnapshotPiece) -> peer::SnapshotPiece {
    use peer::snapshot_piece::Piece as Proto;
    let piece = match piece {
        SnapshotPiece::Begin(begin) => Proto::Begin(peer::SnapshotBegin {
            shard_id: begin.shard.get(),
            vote: Some(vote_to_proto(begin.vote)),
            position: begin.position,
        }),
        SnapshotPiece::Entries(entries) => {
            let entries: Vec<_> = entries.iter().map(entry_to_proto).collect();
            let checksum = entries_checksum(&entries);
            Proto::Entries(peer::SnapshotEntries { entries, checksum })
        }
        SnapshotPiece::Records(records) => {
            let record =
                |(key, value): StoredRecord| peer::SnapshotRecord { key: key.into(), value: value.into() };
            let records: Vec<_> = records.into_iter().map(record).collect();
            let checksum = records_checksum(&records);
            Proto::Records(peer::SnapshotRecords { records, checksum })
        }
        SnapshotPiece::End { entry_count, record_count } => {
            Proto::End(peer::SnapshotEnd { entry_count, record_count })
        }
    };
    peer::SnapshotPiece { piece: Some(piece) }
}

pub(super) fn piece_from_proto(piece: peer::SnapshotPiece) -> Result<SnapshotPiece, Status> {
    use peer::snapshot_piece::Piece as Proto;
    let invalid = |error: Incomplete| Status::invalid_argument(error.to_string());
    let piece = required(piece.piece, "SnapshotPiece", "piece").map_err(invalid)?;
    Ok(match piece {
        Proto::Begin(begin) => SnapshotPiece::Begin(SnapshotBegin {
            shard: ShardId::new(begin.shard_id),
            vote: vote_from_proto(required(begin.vote, "SnapshotBegin", "vote").map_err(invalid)?),
            position: begin.position,
        }),
        Proto::Entries(peer::SnapshotEntries { entries, checksum }) => {
            check(entries_checksum(&entries), checksum)?;
            let entries = entries.into_iter().map(|entry| entry_from_proto(entry).map_err(invalid));
            SnapshotPiece::Entries(entries.collect::<Result<_, _>>()?)
        }
        Proto::Records(peer::SnapshotRecords { records, checksum }) => {
            check(records_checksum(&records), checksum)?;
            let record = |record: peer::SnapshotRecord| (record.key.to_vec(), record.value.to_vec());
            SnapshotPiece::Records(records.into_iter().map(record).collect())
        }
        Proto::End(peer::SnapshotEnd { entry_count, record_count }) => {
            SnapshotPiece::End { entry_count, record_count }
        }
    })
}

pub(super) fn answer_to_proto(answer: SnapshotAnswer) -> peer::SnapshotAnswer {
    use peer::snapshot_answer::Answer as Proto;
    let answer = match answer {
        SnapshotAnswer::Staged { index } => Proto::StagedIndex(index),
        SnapshotAnswer::Installed(vote) => Proto::Installed(vote_to_proto(vote)),
    };
    peer::SnapshotAnswer { answer: Some(answer) }
}

pub(super) fn answer_from_proto(answer: peer::SnapshotAnswer) -> Result<SnapshotAnswer, Incomplete> {
    use peer::snapshot_answer::Answer as Proto;
    Ok(match required(answer.answer, "SnapshotAnswer", "answer")? {
        Proto::StagedIndex(index) => SnapshotAnswer::Staged { index },
        Proto::Installed(vote) => SnapshotAnswer::Installed(vote_from_proto(vote)),
    })
}

pub(super) fn entry_to_proto(entry: &KeptEntry) -> peer::KeptEntry {
    let part = |(position, bytes): (u32, &Bytes)| peer::KeptPart { position, bytes: bytes.clone() };
    peer::KeptEntry {
        id: Some(peer::LogId { term: entry.term, index: entry.index }),
        parts: entry.parts.iter().map(part).collect(),
    }
}

pub(super) fn entry_from_proto(entry: peer::KeptEntry) -> Result<KeptEntry, Incomplete> {
    // Nothing has the last index: no range of indexes could end behind it.
    let id = required(entry.id.filter(|id| id.index < u64::MAX), "KeptEntry", "id")?;
    let parts = entry.parts.into_iter().map(|part| (part.position, part.bytes)).collect();
    let parts = required(Parts::new(parts), "KeptEntry", "order of parts")?;
    Ok(KeptEntry { index: id.index, term: id.term, parts })
}

fn entries_checksum(entries: &[peer::KeptEntry]) -> u32 {
    let parts = entries.iter().flat_map(|entry| &entry.parts);
    parts.fold(0, |checksum, part| crc32c::crc32c_append(checksum, &part.bytes))
}

fn records_checksum(records: &[peer::SnapshotRecord]) -> u32 {
    records.iter().fold(0, |checksum, record| {
        crc32c::crc32c_append(crc32c::crc32c_append(checksum, &record.key), &record.value)
    })
}

/// Gives a piece the checksum that it should have.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn reseal(piece: &mut peer::SnapshotPiece) {
    use peer::snapshot_piece::Piece as Proto;
    match &mut piece.piece {
        Some(Proto::Entries(entries)) => entries.checksum = entries_checksum(&entries.entries),
        Some(Proto::Records(records)) => records.checksum = records_checksum(&records.records),
        Some(Proto::Begin(_) | Proto::End(_)) | None => {}
    }
}

fn check(computed: u32, sent: u32) -> Result<(), Status> {
    match computed == sent {
        true => Ok(()),
        false => Err(Status::data_loss("a piece of a snapshot is not as it was sent")),
    }
}
