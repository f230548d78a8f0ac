//! Reads made-up bytes as batches of records, and writes again what they say.

mod directory;
#[cfg(test)]
pub(crate) mod seeds;

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use skein_proto::ids::ShardId;

pub(crate) use directory::directory;

use super::{
    KeptEntry, Log, LogOptions, Parts, SEGMENT_BYTES_MIN,
    format::{
        BATCH_HEADER_BYTES, BatchHeader, Kind, Record, Seed, SegmentNumber, decode_batch, encode_batch,
        pad_to_block, reseal::reseal_batch,
    },
    index::Index,
    index_block::{self, decode_outline, encode_outline},
    recovery::read_record,
};
use crate::disk::faulty::FaultyDisk;

/// The log that made-up segments are taken to be of.
const LOG_ID: u64 = 7;

/// Reads a batch, as it is and with right checksums. Returns whether the latter was one.
pub(crate) fn record(bytes: &[u8]) -> bool {
    let seed = Seed::new(LOG_ID, SegmentNumber::FIRST);
    batch(bytes, seed);
    batch(&reseal_batch(bytes, seed), seed)
}

fn batch(bytes: &[u8], seed: Seed) -> bool {
    let Some(header) = BatchHeader::decode(bytes, seed) else { return false };
    let Ok((placed, damaged)) = decode_batch(bytes, &header, seed) else { return false };
    let whole = Bytes::copy_from_slice(bytes);
    let records: Vec<_> = placed.iter().map(|(at, header)| read_record(header, &whole, *at)).collect();
    if damaged.is_empty() {
        let used = BATCH_HEADER_BYTES + records.iter().map(Record::encoded_bytes).sum::<usize>();
        let mut again = vec![0; pad_to_block(used)];
        encode_batch(&mut again, seed, header.number, records.iter());
        assert_eq!(BatchHeader::decode(&again, seed), Some(header));
        assert_eq!(decode_batch(&again, &header, seed), Ok((placed, damaged)));
    }
    records.iter().for_each(payload);
    index(&records);
    true
}

/// What a payload says must come back when it is written again.
fn payload(record: &Record) {
    match record.kind {
        Kind::Kept => {
            if let Some(parts) = Parts::decode(&record.payload) {
                assert_eq!(parts.encode(), record.payload);
                assert!(parts.iter().all(|(at, bytes)| parts.get(at, bytes.len() as u32).is_some()));
            }
        }
        Kind::State => {
            if let Some(outline) = decode_outline(&record.payload) {
                assert_eq!(decode_outline(&encode_outline(&outline)), Some(outline));
            }
        }
        Kind::Index => {
            if let Some(block) = index_block::decode(&record.payload) {
                let mut index = Index::new(SegmentNumber::new(0));
                index.begin_segment(SegmentNumber::FIRST);
                if index.apply_sealed(&block).is_ok() {
                    go_on(index);
                }
                drop(block.into_positions());
            }
        }
        Kind::Entry | Kind::Vote | Kind::Committed | Kind::Truncate | Kind::Purge => {}
        Kind::Retire | Kind::Segments => {}
    }
}

/// Follows the records as recovery does.
fn index(records: &[Record]) {
    let mut index = Index::new(SegmentNumber::new(0));
    index.begin_segment(SegmentNumber::FIRST);
    for (offset, record) in (0..).zip(records) {
        if index.apply(record, offset).is_err() {
            return;
        }
    }
    go_on(index);
}

/// An index that was accepted begins the next segment, and agrees with what it says there.
fn go_on(mut index: Index) {
    if index.first_missing().is_some() {
        return;
    }
    for (shard, outline) in index.outlines() {
        let (state, live) = (outline.state(), outline.live());
        assert_eq!(state.last.is_some(), outline.last().is_some());
        for at in [live.start, live.end, live.start.saturating_sub(1), live.end.saturating_sub(1)] {
            assert!(!live.contains(&at) || outline.term_at(at).is_some(), "entry {at} of {shard}");
        }
    }
    let next = index.active().next();
    let records = index.state_records(next);
    index.begin_segment(next);
    for (offset, record) in (0..).zip(&records) {
        index.apply(record, offset).expect("a segment begins with what was known");
    }
    assert_eq!(index.first_missing(), None);
}

/// Writes down what a peer sent, and reads it again.
pub(crate) fn keep(shard: ShardId, entries: &[KeptEntry]) {
    let disk = FaultyDisk::new(0);
    // No input is larger than half of it.
    let options = LogOptions { segment_bytes: 4 * SEGMENT_BYTES_MIN, ..options() };
    let open = || Log::open(Arc::new(disk.clone()), dir(), options, |failure| panic!("{failure}"));
    let read = |log: &Log| {
        for entry in entries {
            let found = log.read_kept(shard, entry.index, 0).expect("it was kept");
            assert_eq!(found.first(), Some(entry));
        }
    };
    let log = open().expect("the disk is sound");
    log.keep(shard, entries, Box::new(|kept| kept.expect("the disk is sound")));
    log.close();
    read(&open().expect("the log is sound"));
}

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: SEGMENT_BYTES_MIN,
        cache_bytes: 8 << 10,
        spare_segments_max: 2,
        direct_io: true,
    }
}

fn dir() -> &'static Path {
    Path::new("/log")
}
