//! Inputs to start from: entries that do everything once, and the checkpoints of the states that they make.

use bytes::Bytes;
use openraft::{BasicNode, EntryPayload, entry::RaftEntry as _};
use skein_proto::ids::{GroupId, NodeId, Offset, ProducerId, QueueId, Sequence, ShardId};

use super::super::{
    codec::{self, EntryHead, Proposed},
    records::{self, Position},
    replica::{Machine, Replica},
    types::{Membership, RaftEntry},
    wire::{AppendRequest, SnapshotBegin, SnapshotPiece, StoredRecord, Vote, log_id},
};
use crate::{
    broker::{
        BatchRun, Catalog, CatalogCommand, Command, Overflow, Position as ReadFrom, Properties, Retention,
        Return, Settings, Shard,
    },
    log::{Entry, EntryId, KeptEntry, Parts},
    offsets::OffsetRange,
};

const QUEUE: QueueId = QueueId::new(1);
const SHARD: ShardId = ShardId::new(1);

/// The entries of a shard with messages.
pub(crate) fn shard_entries() -> Vec<Bytes> {
    let group = GroupId::new(1);
    let range = |first, count| OffsetRange::new(Offset::new(first), count);
    let back = |first, attempt| Return {
        range: range(first, 2),
        attempt,
        not_before_ms: 500,
        rejected: attempt > 1,
    };
    let producer = |sequence| Some((ProducerId::new(77), Sequence::new(sequence)));
    let publish = |producer, count| Proposed::publish(QUEUE, producer, count, batch(count), &[], 0);
    let run = |count, length, priority| BatchRun {
        count,
        length,
        properties: Properties { ttl_ms: 3_000, deliver_at_ms: 9_000, priority, key_slot: 700 },
        delay_ms: 700,
    };
    let urgent = Proposed::publish(QUEUE, None, 3, batch(3), &[run(1, 5, 9), run(2, 10, 1)], 0);
    let start = |name: &str, start| Command::CreateGroup {
        queue: QUEUE,
        name: name.into(),
        start,
        filter: b"some".to_vec(),
    };
    let dead_letter_queue = Some("dead".to_owned());
    let settings = Settings { max_deliveries: 2, dead_letter_queue, lease_ms: 100, ..Settings::default() };
    let open = Command::OpenQueue { queue: QUEUE, name: "orders".into(), settings, revision: 1 };
    let settle = Command::Settle {
        queue: QUEUE,
        group,
        acks: vec![range(0, 1), range(3, 2)],
        returns: vec![back(5, 1), back(7, 2)],
        expired: vec![range(9, 1)],
        seek_count: 0,
    };
    let stream = Settings {
        retention: Retention::Limits,
        overflow: Overflow::DropOldest,
        max_age_ms: Some(1_000),
        max_messages: Some(9),
        ..Settings::default()
    };
    let second =
        Command::OpenQueue { queue: QueueId::new(2), name: "dead".into(), settings: stream, revision: 2 };
    vec![
        entry(1, &[Proposed::shard(&open), Proposed::shard(&second)]),
        entry(2, &[Proposed::shard(&start("first", ReadFrom::First)), publish(None, 4)]),
        entry(3, &[publish(producer(1), 3), publish(producer(2), 5), urgent]),
        entry(4, &[Proposed::shard(&settle), Proposed::shard(&start("next", ReadFrom::Next))]),
        entry(5, &[publish(None, 2), Proposed::shard(&Command::CloseQueue { queue: QueueId::new(2) })]),
    ]
}

/// Entries that take away what others made.
pub(crate) fn shard_ends() -> Vec<Bytes> {
    let group = GroupId::new(1);
    let moved = Command::DeadLettersMoved { queue: QUEUE, group, up_to: Sequence::new(1) };
    let mut entries = shard_entries();
    entries.push(entry(6, &[Proposed::shard(&moved)]));
    let to = ReadFrom::Offset(Offset::new(2));
    let trim = Proposed::shard(&Command::Trim { queue: QUEUE });
    entries.push(entry(6, &[Proposed::shard(&Command::SeekGroup { queue: QUEUE, group, to }), trim]));
    entries.push(entry(7, &[Proposed::shard(&Command::DeleteGroup { queue: QUEUE, group })]));
    entries.push(entry(8, &[Proposed::shard(&Command::PurgeQueue { queue: QUEUE })]));
    entries
}

/// The entries of the catalog.
pub(crate) fn catalog_entries() -> Vec<Bytes> {
    let create = |name: &str, dead_letter_queue: Option<&str>| {
        let dead_letter_queue = dead_letter_queue.map(str::to_owned);
        let settings = Settings { max_deliveries: 3, dead_letter_queue, ..Settings::default() };
        let (name, shard_count, colocated_with) = (name.into(), 4, None);
        Proposed::catalog(&CatalogCommand::CreateQueue { name, settings, shard_count, colocated_with })
    };
    let delete =
        |name: &str| Proposed::catalog(&CatalogCommand::DeleteQueue { name: name.into(), queue: None });
    let update = Proposed::catalog(&CatalogCommand::UpdateQueue {
        name: "dead".into(),
        expected: Settings { max_deliveries: 3, ..Settings::default() },
        settings: Settings { max_bytes: Some(1 << 20), ..Settings::default() },
        shard_count: 4,
    });
    vec![
        entry(1, &[create("dead", None), create("orders", Some("dead"))]),
        entry(2, &[delete("dead"), create("gone", None)]),
        entry(3, &[delete("gone"), update]),
    ]
}

/// A checkpoint of what these entries make: where it stands, and its records.
pub(crate) fn checkpoint(shard: ShardId, payloads: &[Bytes]) -> (Vec<u8>, Vec<StoredRecord>) {
    let machine = match shard {
        ShardId::CATALOG => Machine::Catalog(Catalog::new()),
        _ => Machine::Messages(Shard::new()),
    };
    let applied = Some(EntryId { term: 1, index: 9 });
    let position = Position { applied: None, membership: membership(), membership_id: applied };
    let replica = Replica::new(shard, machine, Some(position.clone()));
    for (index, payload) in (1..).zip(payloads) {
        replica.apply_commands(&Entry { index, term: 1, payload: payload.clone() }).unwrap();
    }
    let changes = replica.take_changes().records.into_iter();
    let records = changes
        .filter_map(|(key, record)| Some((codec::encode_key(key), codec::encode_record(&record?))))
        .collect();
    (records::encode_position(&Position { applied, ..position }), records)
}

/// A snapshot in pieces.
pub(crate) fn pieces() -> Vec<SnapshotPiece> {
    let payloads = shard_entries();
    let (position, stored) = checkpoint(SHARD, &payloads);
    let part = Parts::new(vec![(11, Bytes::from_static(b"some")), (15, Bytes::from_static(b"more"))]);
    let entries = vec![
        KeptEntry { index: 2, term: 1, parts: Parts::whole(payloads[1].clone()) },
        KeptEntry { index: 3, term: 1, parts: part.unwrap() },
    ];
    let (first, rest) = stored.split_at(2);
    let end = SnapshotPiece::End { entry_count: 2, record_count: stored.len() as u64 };
    vec![
        SnapshotPiece::Begin(SnapshotBegin { shard: SHARD, vote: vote(), position: position.into() }),
        SnapshotPiece::Entries(entries),
        SnapshotPiece::Records(first.to_vec()),
        SnapshotPiece::Records(rest.to_vec()),
        end,
    ]
}

/// A leader's request, with an entry of every kind.
pub(crate) fn append_request() -> AppendRequest {
    let id = |index| EntryId { term: 3, index };
    let membership = RaftEntry::new(log_id(id(6)), EntryPayload::Membership(membership()));
    let entries = vec![
        Entry { index: 5, term: 3, payload: Bytes::new() },
        records::entry_to_log(membership),
        Entry { index: 7, term: 3, payload: catalog_entries().remove(0) },
    ];
    let (previous, leader_commit) = (Some(id(4)), Some(id(3)));
    AppendRequest { shard: SHARD, vote: vote(), previous, leader_commit, entries }
}

/// A vote.
pub(crate) fn vote() -> Vote {
    Vote { term: 3, node: NodeId::new(2), committed: true }
}

fn membership() -> Membership {
    let node = |id: u64| (id, BasicNode::new(format!("127.0.0.1:{id}")));
    Membership::new(vec![[1, 2, 3].into()], std::collections::BTreeMap::from([1, 2, 3].map(node))).unwrap()
}

fn entry(index: u64, commands: &[Proposed]) -> Bytes {
    let head = EntryHead { leader_time_ms: 1_000 * index, replicated_index: index - 1 };
    codec::encode_entry(head, commands)
}

/// So many messages with a body of one byte.
fn batch(count: u32) -> Bytes {
    [0x0a, 3, 0x0a, 1, 7].repeat(count as usize).into()
}
