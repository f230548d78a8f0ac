//! Inputs to start from: batches and segments as the log writes them.

use std::sync::{Arc, mpsc::channel};

use bytes::Bytes;
use skein_proto::ids::ShardId;

use super::{
    super::{
        Entry, EntryId, KeptEntry, Log, Parts,
        files::SegmentFiles,
        format::{
            BATCH_HEADER_BYTES, BLOCK_BYTES, BatchHeader, Record, Seed, SegmentHeader, SegmentNumber,
            encode_batch, pad_to_block,
        },
        found::open_segment,
        index::Index,
        index_block::encode_outline,
        outline::Outline,
        segment_set::encode_numbers,
    },
    LOG_ID, dir,
    directory::{CHOICES_AT, choice},
    options,
};
use crate::disk::faulty::FaultyDisk;

const A: ShardId = ShardId::new(1);
const B: ShardId = ShardId::new(2);

/// As much of a header as a piece has: the rest is padding.
const HEADER_PIECE_BYTES: usize = 64;

/// A segment in pieces.
pub(crate) type Pieces = Vec<Vec<u8>>;

/// Batches, with what they are about.
pub(crate) fn records() -> Vec<(&'static str, Vec<u8>)> {
    let entries = || (1..4).map(|index| Record::entry(A, &entry(index, 9 * index as usize)));
    let mut outline = Outline::default();
    outline.vote = Some(Bytes::from_static(b"vote"));
    outline.purge(EntryId { term: 1, index: 2 });
    outline.push(EntryId { term: 2, index: 3 }).unwrap();
    let mut index = Index::new(SegmentNumber::new(0));
    index.begin_segment(SegmentNumber::FIRST);
    let parts = |parts: &[(u32, &'static [u8])]| {
        let parts = parts.iter().map(|(at, bytes)| (*at, Bytes::from_static(bytes))).collect();
        Parts::new(parts).unwrap().encode()
    };
    let changes = [
        Record::vote(A, Bytes::from_static(b"vote")),
        Record::committed(A, Bytes::from_static(b"committed")),
        Record::truncate(A, 3),
        Record::purge(A, 1, 1),
        Record::purge(B, 9, 4),
    ];
    let kept = [
        Record::kept(A, 1, 1, parts(&[(0, b"all of it")])),
        Record::kept(A, 7, 2, parts(&[(3, b"some"), (9, b"and more"), (17, b"")])),
    ];
    vec![
        ("entries", encode(entries())),
        ("changes", encode(entries().chain(changes))),
        ("kept", encode(kept.into_iter())),
        ("outline", encode([Record::state(B, encode_outline(&outline))].into_iter())),
        ("begin", encode([Record::segments(index.segments().encoded())].into_iter())),
        ("retire", encode([Record::retire(encode_numbers(&[SegmentNumber::new(3)]))].into_iter())),
        ("index", index_batch()),
    ]
}

/// Directories, with what they hold.
pub(crate) fn directories() -> Vec<(&'static str, Vec<Pieces>)> {
    let one = written(|log| {
        append(log, A, 1..4, 30);
        log.save_committed(A, Bytes::from_static(b"committed"));
        append(log, B, 5..6, 3);
        log.purge(A, EntryId { term: 1, index: 1 });
        log.truncate_after(A, Some(2));
        append(log, A, 3..4, 10);
    });
    let mut sealed = written(|log| append(log, A, 1..8, 12 << 10));
    // Positions are all there is of them in the index, and entries of this size would be most of a seed.
    sealed.iter_mut().flatten().for_each(|piece| piece.truncate(1 << 10));
    let mut given_up = written(|log| {
        append(log, A, 1..8, 12 << 10);
        log.purge(A, EntryId { term: 1, index: 4 });
        let parts = Parts::new(vec![(5, Bytes::from_static(b"some"))]).unwrap();
        let (done, durable) = channel();
        let kept = [KeptEntry { index: 2, term: 1, parts }];
        log.keep(A, &kept, Box::new(move |result| drop(done.send(result))));
        durable.recv().unwrap().unwrap();
        let all: Vec<_> = log.survey().iter().map(|segment| segment.id).collect();
        log.retire(&all).unwrap();
    });
    given_up.iter_mut().flatten().for_each(|piece| piece.truncate(1 << 10));
    vec![("one", one), ("sealed", sealed), ("given-up", given_up)]
}

fn entry(index: u64, payload_bytes: usize) -> Entry {
    Entry { index, term: 1, payload: vec![index as u8; payload_bytes].into() }
}

fn append(log: &Log, shard: ShardId, indexes: std::ops::Range<u64>, payload_bytes: usize) {
    for index in indexes {
        let (done, durable) = channel();
        log.append(shard, vec![entry(index, payload_bytes)], Box::new(move |result| drop(done.send(result))));
        durable.recv().unwrap().unwrap();
    }
}

fn encode(records: impl Iterator<Item = Record>) -> Vec<u8> {
    let records: Vec<_> = records.collect();
    let used = BATCH_HEADER_BYTES + records.iter().map(Record::encoded_bytes).sum::<usize>();
    let mut batch = vec![0; pad_to_block(used)];
    encode_batch(&mut batch, Seed::new(LOG_ID, SegmentNumber::FIRST), 1, records.iter());
    batch.truncate(used);
    batch
}

/// The last batch of a segment that was sealed.
fn index_batch() -> Vec<u8> {
    let mut segments = written(|log| append(log, A, 1..8, 12 << 10));
    segments.remove(0).pop().unwrap()
}

/// The segments of the log that was written like this.
fn written(write: impl FnOnce(&Log)) -> Vec<Pieces> {
    let disk = FaultyDisk::new(0);
    let log = Log::open(Arc::new(disk.clone()), dir(), options(), |failure| panic!("{failure}")).unwrap();
    write(&log);
    log.close();
    let mut files = SegmentFiles::to_read(Arc::new(disk.clone()), dir());
    let numbers = files.scan_dir().unwrap();
    numbers.into_iter().filter_map(|number| pieces(&files, number, &disk)).collect()
}

/// A segment in pieces; none when it was not begun.
fn pieces(files: &SegmentFiles, number: SegmentNumber, disk: &FaultyDisk) -> Option<Pieces> {
    let bytes = disk.contents(&files.segment_path(number));
    let header = SegmentHeader::decode(&bytes[..BLOCK_BYTES]).ok()?;
    let segment = open_segment(files, number, header.log_id).unwrap();
    let index_offset = segment.read_index_offset().unwrap();
    // Logs have random numbers, and seeds should not change without need.
    let mut block = [0; BLOCK_BYTES];
    SegmentHeader { log_id: LOG_ID, ..header }.encode(&mut block);
    block[CHOICES_AT] = if index_offset.is_some() { choice::SEALED } else { 0 };
    let mut pieces = vec![block[..HEADER_PIECE_BYTES].to_vec()];
    let mut at = BLOCK_BYTES;
    loop {
        let batch = BatchHeader::decode(&bytes[at..], segment.seed);
        let Some(batch) = batch else {
            let next = index_offset.map(|offset| usize::try_from(offset).unwrap());
            match next.filter(|next| *next > at) {
                Some(next) => at = next,
                None => return Some(pieces),
            }
            continue;
        };
        pieces.push(bytes[at..at + batch.bytes as usize].to_vec());
        at += batch.padded_bytes();
        if at >= bytes.len() {
            return Some(pieces);
        }
    }
}
