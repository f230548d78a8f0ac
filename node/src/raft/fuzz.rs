//! Reads made-up entries, checkpoints and snapshots, and asks what comes of them all that a node asks.

#[cfg(test)]
pub(crate) mod seeds;

use std::collections::BTreeMap;

use bytes::Bytes;
use skein_proto::ids::{Offset, ShardId};

use super::{
    codec::{self, Commands, DecodedEntry, Proposed},
    load, records,
    replica::{Machine, Replica},
    snapshot::last_index,
    state_machine::snapshot_meta,
    wire::{AppendRequest, SnapshotPiece, StoredRecord},
};
use crate::{
    broker::{Catalog, Command, PublishPart, Record, RecordKey, Shard},
    log::{self, Entry},
};

/// How many of a state's dead letters are looked at: one record can stand for 2^64.
const DEAD_LETTERS_MAX: usize = 100;

/// Applies entries with these payloads, as a replica does. Returns whether all were.
pub(crate) fn entries(shard: ShardId, payloads: &[&[u8]]) -> bool {
    let machine = match shard {
        ShardId::CATALOG => Machine::Catalog(Catalog::new()),
        _ => Machine::Messages(Shard::new()),
    };
    let replica = Replica::new(shard, machine, None);
    let mut are_all_applied = true;
    for (index, payload) in (1..).zip(payloads) {
        let payload = Bytes::copy_from_slice(payload);
        let entry = Entry { index, term: 1, payload };
        if let Ok(read) = records::entry_from_log(entry.clone()) {
            let again = records::entry_from_log(records::entry_to_log(read.clone()));
            assert_eq!(again.expect("it was written from an entry"), read);
        }
        if let Ok(decoded) = codec::decode_entry(&entry.payload) {
            let again = codec::decode_entry(&encode(&decoded, &entry.payload));
            assert_eq!(again.map(without_places), Ok(without_places(decoded)));
        }
        are_all_applied &= replica.apply_commands(&entry).is_ok();
    }
    ask(&replica);
    are_all_applied
}

fn encode(decoded: &DecodedEntry, payload: &Bytes) -> Bytes {
    let proposed: Vec<_> = match &decoded.commands {
        Commands::Shard(commands) => commands.iter().map(|command| propose(command, payload)).collect(),
        Commands::Catalog(commands) => commands.iter().map(Proposed::catalog).collect(),
    };
    codec::encode_entry(decoded.head, &proposed)
}

fn propose(command: &Command, payload: &Bytes) -> Proposed {
    match command {
        Command::Publish { queue, producer, count, block, runs, partitions } => {
            let start = block.position as usize;
            let batch = payload.slice(start..start + block.length as usize);
            Proposed::publish(*queue, *producer, *count, batch, runs, *partitions)
        }
        Command::PublishEach { queue, producer, block, messages, routed, partitions } => {
            let start = block.position as usize;
            let batch = payload.slice(start..start + block.length as usize);
            Proposed::publish_each(*queue, *producer, batch, messages, *routed, *partitions)
        }
        Command::PublishTogether { producer, parts } => {
            let batches = parts.iter().map(|PublishPart { queue, count, block, runs }| {
                let start = block.position as usize;
                (*queue, *count, payload.slice(start..start + block.length as usize), runs.clone())
            });
            Proposed::publish_together(*producer, batches.collect())
        }
        _ => Proposed::shard(command),
    }
}

/// Batches lie elsewhere in an entry that was encoded again: there are many ways to write the same message.
fn without_places(mut entry: DecodedEntry) -> DecodedEntry {
    if let Commands::Shard(commands) = &mut entry.commands {
        for command in commands {
            if let Command::Publish { block, .. } | Command::PublishEach { block, .. } = command {
                block.position = 0;
            }
            if let Command::PublishTogether { parts, .. } = command {
                parts.iter_mut().for_each(|part| part.block.position = 0);
            }
        }
    }
    entry
}

/// Loads a checkpoint. Returns whether it was one.
pub(crate) fn checkpoint(shard: ShardId, position: &[u8], stored: Vec<StoredRecord>) -> bool {
    // As the store has them: each key once, in order. The empty one is the position's.
    let stored: BTreeMap<_, _> = stored.into_iter().filter(|(key, _)| !key.is_empty()).collect();
    let position = (!position.is_empty()).then_some(position);
    let Ok((machine, position)) = load::machine_of(shard, position, stored.into_iter().map(Ok), None) else {
        return false;
    };
    if let Some(position) = &position {
        let again = records::decode_position(&records::encode_position(position));
        assert_eq!(again.expect("it was written from a position"), *position);
        let _ = snapshot_meta(position);
    }
    let _ = machine.holds_messages();
    ask(&Replica::new(shard, machine, position));
    true
}

/// Takes the pieces of a snapshot in, as a replica does. Returns whether it was one.
pub(crate) fn receive(pieces: Vec<SnapshotPiece>) -> bool {
    let mut pieces = pieces.into_iter();
    let Some(SnapshotPiece::Begin(begin)) = pieces.next() else { return false };
    if records::decode_position(&begin.position).is_err() {
        return false;
    }
    let (mut staged, mut stored) = (0, Vec::new());
    for piece in pieces {
        match piece {
            SnapshotPiece::Entries(entries) => {
                let Ok(last) = last_index(&entries, staged) else { return false };
                log::fuzz::keep(begin.shard, &entries);
                staged = last;
            }
            SnapshotPiece::Records(records) => stored.extend(records),
            SnapshotPiece::End { .. } => return checkpoint(begin.shard, &begin.position, stored),
            SnapshotPiece::Begin(_) => return false,
        }
    }
    false
}

/// Hands a leader's request to openraft's types and back.
pub(crate) fn append(request: AppendRequest) {
    let shard = request.shard;
    if let Ok(request) = request.into_raft() {
        let again = AppendRequest::from_raft(shard, request.clone()).into_raft();
        let again = again.expect("it was made from openraft's");
        assert_eq!(
            (again.vote, again.prev_log_id, again.leader_commit),
            (request.vote, request.prev_log_id, request.leader_commit)
        );
        assert_eq!(again.entries, request.entries);
    }
}

/// Reads all that there is to read of a state. What it saves must make the same state.
fn ask(replica: &Replica) {
    let shard = replica.shard();
    let ranges = [0..10, 5..u64::MAX, 7..7];
    let _ = (replica.live_parts(0..u64::MAX), replica.live_in(&ranges), replica.next_live_index(0));
    let _ = (replica.applied(), replica.replicated_index());
    let saved = if shard == ShardId::CATALOG {
        replica.with_catalog(|catalog| {
            for (name, queue) in catalog.queues() {
                assert_eq!(catalog.queue(name), Some(queue));
            }
            assert_eq!(
                catalog.queues_after("").count(),
                catalog.queues().filter(|(name, _)| !name.is_empty()).count()
            );
            encode_records(catalog.records())
        })
    } else {
        replica.with_messages(|shard| {
            ask_queues(shard);
            encode_records(shard.records())
        })
    };
    let stored = saved.iter().cloned().map(Ok);
    let (machine, _) = load::machine_of(shard, None, stored, None).expect("it is what a state saves");
    let again = match machine {
        Machine::Catalog(catalog) => encode_records(catalog.records()),
        Machine::Messages(shard) => encode_records(shard.records()),
    };
    assert_eq!(again, saved);
    drop(replica.take_changes());
}

fn ask_queues(shard: &Shard) {
    for queue in shard.queues() {
        let (first, next) = (queue.first_offset(), queue.next_offset());
        let mut kept = 0;
        for block in queue.blocks() {
            kept += u64::from(block.count);
            let slice = queue.locate(block.first.max(first), u32::MAX).expect("it lies in a block");
            assert_eq!(slice.block_first, block.first);
        }
        assert!(queue.message_count() <= kept && queue.message_count() <= next.since(first));
        let _ = (queue.kept_bytes(), queue.next_kept(first), queue.next_kept(next));
        let _ = (queue.locate(next, 1), queue.locate(Offset::new(u64::MAX), 1));
        for group in queue.groups() {
            assert!(queue.group(group.id()).is_some() && queue.group_by_name(group.name()).is_some());
            assert!(group.unacked_count(next) <= next.since(first));
            assert_eq!(
                group.dead_letters().take(DEAD_LETTERS_MAX).count() == 0,
                group.dead_letter_count() == 0
            );
            let _ = (group.deliverable().len(), group.returned_count(), group.untouched_from());
            let _ = (group.dead_lettered_total(), group.dropped_total());
        }
    }
}

fn encode_records(records: impl IntoIterator<Item = (RecordKey, Record)>) -> Vec<StoredRecord> {
    records.into_iter().map(|(key, record)| (codec::encode_key(key), codec::encode_record(&record))).collect()
}
