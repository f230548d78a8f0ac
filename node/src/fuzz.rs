//! What the fuzz targets in `node/fuzz` call, and the tests with what those found: one function for each target.
//!
//! A function takes any bytes, and panics when the code that it tries does, or breaks a promise. It returns whether
//! the bytes were good, so that seeds can be told from noise. Inputs in parts are the parts one after another, each
//! behind its length.

#[cfg(test)]
mod replay;

use bytes::Bytes;
use prost::Message as _;
use skein_proto::{broker::MessageBatch, ids::ShardId};

use crate::{
    batch::{self, Checked, MessageLimits},
    log, peer, raft,
};

/// What is before each part: its length, in bytes.
const LENGTH_BYTES: usize = 2;

/// A batch of log records.
pub fn record(bytes: &[u8]) -> bool {
    log::fuzz::record(bytes)
}

/// A log's directory. Each segment is its header and its batches; an empty part begins the next one.
pub fn segment(bytes: &[u8]) -> bool {
    let parts = parts(bytes);
    let segments: Vec<_> = parts.split(|part| part.is_empty()).collect();
    log::fuzz::directory(&segments)
}

/// What a peer sends. The first part says what it is; for a snapshot, the others are its pieces.
pub fn snapshot(bytes: &[u8]) -> bool {
    let parts = parts(bytes);
    match parts.split_first() {
        Some((&[0], pieces)) => peer::fuzz::pieces(pieces).is_some_and(raft::fuzz::receive),
        Some((&[1], [request])) => {
            let request = peer::fuzz::append_request(request);
            request.map(raft::fuzz::append).is_some()
        }
        Some((&[kind], [message])) => peer::fuzz::message(kind - 2, message),
        _ => false,
    }
}

/// A checkpoint: its shard, where it stands, and keys and values in turn.
pub fn checkpoint(bytes: &[u8]) -> bool {
    let parts = parts(bytes);
    let [shard, position, records @ ..] = &parts[..] else { return false };
    let (records, _) = records.as_chunks();
    let records = records.iter().map(|[key, value]| (key.to_vec(), value.to_vec()));
    raft::fuzz::checkpoint(shard_of(shard), position, records.collect())
}

/// The entries of a shard's log, and batches of messages.
pub fn entry(bytes: &[u8]) -> bool {
    let parts = parts(bytes);
    let Some((shard, payloads)) = parts.split_first() else { return false };
    if shard.is_empty() {
        return payloads.iter().all(|batch| messages(batch));
    }
    raft::fuzz::entries(shard_of(shard), payloads)
}

/// A batch that is accepted is one to whoever decodes it, and to whoever cuts it.
fn messages(bytes: &[u8]) -> bool {
    let batch = Bytes::copy_from_slice(bytes);
    let limits = MessageLimits { by_key: true, ..MessageLimits::up_to(bytes.len()) };
    let Ok(Checked { count, runs }) = batch::check(&batch, &limits) else {
        let _ = (batch::messages(&batch).count(), batch::cut(&batch, 1, 2));
        return false;
    };
    let decoded = MessageBatch::decode(&batch[..]).expect("it was accepted");
    assert_eq!(decoded.messages.len(), count as usize);
    assert_eq!(batch::messages(&batch).count(), count as usize);
    if !runs.is_empty() {
        assert_eq!(runs.iter().map(|run| run.count).sum::<u32>(), count);
        assert_eq!(runs.iter().map(|run| run.length as usize).sum::<usize>(), batch.len());
    }
    assert_eq!(batch::cut(&batch, 0, count), Some(batch.clone()));
    assert_eq!(batch::cut(&batch, count, 1), None);
    for (message, at) in batch::messages(&batch).zip(0..) {
        let cut = batch::cut(&batch, at, 1).expect("there are so many");
        let checked = batch::check(&batch::single(&message, &[]), &limits);
        assert_eq!(checked.map(|checked| checked.count), Ok(1));
        assert_eq!(
            MessageBatch::decode(cut).expect("a part is a batch").messages,
            decoded.messages[at as usize..][..1]
        );
    }
    true
}

fn shard_of(part: &[u8]) -> ShardId {
    ShardId::new(part.first().copied().unwrap_or_default().into())
}

/// Cuts an input into its parts. The last one may end early.
fn parts(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() {
        let (part, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*length).into()));
        parts.push(part);
        bytes = rest;
    }
    parts
}
