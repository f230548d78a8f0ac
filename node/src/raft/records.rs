//! What consensus keeps in the log besides commands: votes, commit positions, memberships, and which entry is which.
//!
//! An entry's payload tells its kind without a byte spent on commands: empty is a leader's blank entry; one that
//! begins with 0, which no protobuf message can, is a membership; everything else is an `EntryBody`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut as _, Bytes, BytesMut};
use openraft::{BasicNode, EntryPayload, entry::RaftEntry as _};
use prost::Message as _;
use skein_proto::{ids::NodeId, storage};

use super::{
    types::{Body, Membership, RaftEntry},
    wire::{Vote, entry_id, log_id},
};
use crate::log::{Entry, EntryId};

/// The first byte of a membership's payload: a protobuf tag of field 0, which does not exist.
const MEMBERSHIP_MARK: u8 = 0;

/// A record that was read intact but cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not the protobuf message it should be.
    #[error("a record is not the {what} that it should be")]
    Malformed {
        /// What was expected.
        what: &'static str,
        /// What the decoder found.
        source: prost::DecodeError,
    },
    /// A membership that openraft refuses.
    #[error("a membership contradicts itself: {reason}")]
    Contradictory {
        /// What openraft says.
        reason: String,
    },
    /// A message without a field it must have.
    #[error("a {what} lacks its {field}")]
    Incomplete {
        /// What was read.
        what: &'static str,
        /// What is missing.
        field: &'static str,
    },
}

pub(super) fn entry_to_log(entry: RaftEntry) -> Entry {
    let id = entry_id(&entry.log_id);
    let payload = match entry.payload {
        EntryPayload::Blank => Bytes::new(),
        EntryPayload::Normal(body) => body.0,
        EntryPayload::Membership(membership) => encode_marked_membership(&membership),
    };
    Entry { index: id.index, term: id.term, payload }
}

pub(super) fn entry_from_log(entry: Entry) -> Result<RaftEntry, RecordError> {
    let payload = match entry.payload.first() {
        None => EntryPayload::Blank,
        Some(&MEMBERSHIP_MARK) => EntryPayload::Membership(decode_membership(&entry.payload[1..])?),
        Some(_) => EntryPayload::Normal(Body(entry.payload)),
    };
    Ok(RaftEntry::new(log_id(EntryId { term: entry.term, index: entry.index }), payload))
}

pub(super) fn encode_vote(vote: Vote) -> Bytes {
    let record = storage::VoteRecord { term: vote.term, node_id: vote.node.get(), committed: vote.committed };
    record.encode_to_vec().into()
}

pub(super) fn decode_vote(bytes: &[u8]) -> Result<Vote, RecordError> {
    let record = storage::VoteRecord::decode(bytes)
        .map_err(|source| RecordError::Malformed { what: "vote", source })?;
    Ok(Vote { term: record.term, node: NodeId::new(record.node_id), committed: record.committed })
}

pub(super) fn encode_log_id(id: EntryId) -> Bytes {
    storage::LogIdRecord { term: id.term, index: id.index }.encode_to_vec().into()
}

pub(super) fn decode_log_id(bytes: &[u8]) -> Result<EntryId, RecordError> {
    let record = storage::LogIdRecord::decode(bytes)
        .map_err(|source| RecordError::Malformed { what: "log id", source })?;
    Ok(EntryId { term: record.term, index: record.index })
}

/// Where a checkpoint stands: the entry it was taken after, and the membership in force there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Position {
    pub applied: Option<EntryId>,
    pub membership: Membership,
    pub membership_id: Option<EntryId>,
}

pub(super) fn encode_position(position: &Position) -> Vec<u8> {
    let record = storage::PositionRecord {
        applied: position.applied.map(log_id_record),
        membership: Some(membership_record(&position.membership)),
        membership_id: position.membership_id.map(log_id_record),
    };
    record.encode_to_vec()
}

pub(super) fn decode_position(bytes: &[u8]) -> Result<Position, RecordError> {
    let what = "checkpoint position";
    let record =
        storage::PositionRecord::decode(bytes).map_err(|source| RecordError::Malformed { what, source })?;
    let membership = record.membership.ok_or(RecordError::Incomplete { what, field: "membership" })?;
    Ok(Position {
        applied: record.applied.map(|id| EntryId { term: id.term, index: id.index }),
        membership: membership_from_record(membership)?,
        membership_id: record.membership_id.map(|id| EntryId { term: id.term, index: id.index }),
    })
}

fn log_id_record(id: EntryId) -> storage::LogIdRecord {
    storage::LogIdRecord { term: id.term, index: id.index }
}

fn encode_marked_membership(membership: &Membership) -> Bytes {
    let record = membership_record(membership);
    let mut bytes = BytesMut::with_capacity(1 + record.encoded_len());
    bytes.put_u8(MEMBERSHIP_MARK);
    bytes.put_slice(&record.encode_to_vec());
    bytes.freeze()
}

fn decode_membership(bytes: &[u8]) -> Result<Membership, RecordError> {
    let record = storage::MembershipRecord::decode(bytes)
        .map_err(|source| RecordError::Malformed { what: "membership", source })?;
    membership_from_record(record)
}

fn membership_record(membership: &Membership) -> storage::MembershipRecord {
    storage::MembershipRecord {
        voter_sets: membership
            .get_joint_config()
            .iter()
            .map(|voters| storage::VoterSet { node_ids: voters.iter().copied().collect() })
            .collect(),
        nodes: membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect(),
    }
}

fn membership_from_record(record: storage::MembershipRecord) -> Result<Membership, RecordError> {
    let voter_sets: Vec<BTreeSet<u64>> =
        record.voter_sets.into_iter().map(|voters| voters.node_ids.into_iter().collect()).collect();
    let nodes: BTreeMap<u64, BasicNode> =
        record.nodes.into_iter().map(|(id, address)| (id, BasicNode::new(address))).collect();
    if voter_sets.is_empty() {
        // Before a group is formed it has nobody in it, which openraft otherwise refuses to make.
        return Ok(Membership::default());
    }
    Membership::new(voter_sets, nodes)
        .map_err(|error| RecordError::Contradictory { reason: error.to_string() })
}
