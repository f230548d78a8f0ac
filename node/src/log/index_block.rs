//! The index that a sealed segment ends in: every shard in outline, and where the segment's own entries lie. And the
//! outlines alone, with which a segment begins.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes};
use skein_proto::ids::ShardId;

use super::{
    EntryId,
    format::{BATCH_HEADER_BYTES, Record, TRAILER_BYTES, Trailer, encode_batch, pad_to_block, record_bytes},
    index::Index,
    outline::{Outline, TermRun},
    positions::{KeptPositions, Position, Positions, SegmentPositions, ShardPositions},
    segment::Segment,
    segment_set::{RUN_BYTES, RUN_COUNT_BYTES, SegmentSet},
};

/// What every shard takes: number, outline (flags, two lengths, purge point, two bounds, count), first position,
/// counts.
pub(super) const SHARD_BYTES: usize = 4 + (4 + 4 + 4 + 16 + 8 + 8 + 4) + 8 + 4 + 4;
/// What every run of one term takes.
pub(super) const TERM_RUN_BYTES: usize = 16;
/// What every entry of the segment takes.
pub(super) const POSITION_BYTES: usize = 8;
/// What everything kept of an older entry takes.
pub(super) const KEPT_POSITION_BYTES: usize = 8 + POSITION_BYTES;
const SHARD_COUNT_BYTES: usize = 4;

const HAS_VOTE: u32 = 1;
const HAS_COMMITTED: u32 = 2;
const HAS_PURGED: u32 = 4;

/// What the index of a sealed segment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IndexBlock {
    /// The segments of the log, this one being the newest.
    pub(super) segments: SegmentSet,
    pub(super) shards: Vec<ShardBlock>,
}

impl IndexBlock {
    /// Where the segment's records lie.
    pub(super) fn into_positions(self) -> SegmentPositions {
        self.shards.into_iter().map(|block| (block.shard, block.positions)).collect()
    }
}

/// One shard's part of an index block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ShardBlock {
    pub(super) shard: ShardId,
    pub(super) outline: Outline,
    pub(super) positions: ShardPositions,
}

/// What sealing a segment takes on disk when it has no entries, before padding. An alignment of the record is in it.
pub(super) fn sealed_bytes_without_entries(index: &Index) -> usize {
    BATCH_HEADER_BYTES + record_bytes(outline_bytes(index)) + TRAILER_BYTES
}

/// The batch that seals a segment, and where it starts; it reaches to the segment's end. `None` when it is larger than
/// the segment.
pub(super) fn encode_sealing_batch(index: &Index, segment: &Segment, number: u64) -> Option<(Vec<u8>, u64)> {
    let record = Record::index_block(encode(index));
    let used = BATCH_HEADER_BYTES + record.encoded_bytes();
    let mut batch = vec![0; pad_to_block(used)];
    encode_batch(&mut batch, segment.seed, number, std::iter::once(&record));
    // The trailer lies in the padding, which no checksum covers.
    batch.resize(pad_to_block(used + TRAILER_BYTES), 0);
    let index_offset = segment.bytes.checked_sub(batch.len() as u64)?;
    let at = batch.len() - TRAILER_BYTES;
    Trailer { index_offset }.encode(&mut batch[at..], segment.seed);
    Some((batch, index_offset))
}

fn outline_bytes(index: &Index) -> usize {
    let shards = index.outlines().map(|(_, outline)| {
        let state_bytes =
            [&outline.vote, &outline.committed].into_iter().flatten().map(Bytes::len).sum::<usize>();
        SHARD_BYTES + state_bytes + TERM_RUN_BYTES * outline.terms().len()
    });
    let set_bytes = RUN_COUNT_BYTES + RUN_BYTES * index.segments().run_count();
    set_bytes + SHARD_COUNT_BYTES + shards.sum::<usize>()
}

/// What the positions that the index has take.
pub(super) fn position_bytes(index: &Index) -> usize {
    let bytes = |ShardPositions { entries, kept }: &ShardPositions| {
        POSITION_BYTES * entries.list.len() + KEPT_POSITION_BYTES * kept.len()
    };
    index.positions().values().map(bytes).sum()
}

fn payload_bytes(index: &Index) -> usize {
    outline_bytes(index) + position_bytes(index)
}

fn encode(index: &Index) -> Bytes {
    let mut out = Vec::with_capacity(payload_bytes(index));
    index.segments().encode(&mut out);
    out.put_u32_le(count(index.outlines().count()));
    for (shard, outline) in index.outlines() {
        encode_shard(&mut out, shard, outline, index.positions().get(&shard));
    }
    out.into()
}

fn encode_shard(out: &mut Vec<u8>, shard: ShardId, outline: &Outline, positions: Option<&ShardPositions>) {
    let none = ShardPositions::default();
    let ShardPositions { entries, kept } = positions.unwrap_or(&none);
    out.put_u32_le(shard.get());
    put_outline(out, outline);
    out.put_u64_le(entries.first);
    out.put_u32_le(count(entries.list.len()));
    for position in &entries.list {
        put_position(out, *position);
    }
    out.put_u32_le(count(kept.len()));
    for (index, position) in kept.iter() {
        out.put_u64_le(index);
        put_position(out, position);
    }
}

fn put_position(out: &mut Vec<u8>, position: Position) {
    out.put_u32_le(position.offset);
    out.put_u32_le(position.payload_bytes);
}

/// A shard's outline, to be repeated at the start of a segment.
pub(super) fn encode_outline(outline: &Outline) -> Bytes {
    let mut out = Vec::new();
    put_outline(&mut out, outline);
    out.into()
}

fn put_outline(out: &mut Vec<u8>, outline: &Outline) {
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    out.put_u32_le(
        flag(outline.vote.is_some(), HAS_VOTE)
            | flag(outline.committed.is_some(), HAS_COMMITTED)
            | flag(outline.purged.is_some(), HAS_PURGED),
    );
    for state in [&outline.vote, &outline.committed] {
        let state = state.as_deref().unwrap_or_default();
        out.put_u32_le(count(state.len()));
        out.put_slice(state);
    }
    let purged = outline.purged.unwrap_or(EntryId { term: 0, index: 0 });
    out.put_u64_le(purged.term);
    out.put_u64_le(purged.index);
    out.put_u64_le(outline.void_below);
    out.put_u64_le(outline.live().end);
    out.put_u32_le(count(outline.terms().len()));
    for run in outline.terms() {
        out.put_u64_le(run.first);
        out.put_u64_le(run.term);
    }
}

/// What an index block says; `None` when the bytes are none.
pub(super) fn decode(mut bytes: &[u8]) -> Option<IndexBlock> {
    let segments = SegmentSet::take(&mut bytes)?;
    let shard_count = bytes.try_get_u32_le().ok()?;
    let mut shards = Vec::new();
    for _ in 0..shard_count {
        shards.push(decode_shard(&mut bytes)?);
    }
    bytes.is_empty().then_some(IndexBlock { segments, shards })
}

fn decode_shard(bytes: &mut &[u8]) -> Option<ShardBlock> {
    let shard = ShardId::new(bytes.try_get_u32_le().ok()?);
    let outline = take_outline(bytes)?;
    let mut entries = Positions { first: bytes.try_get_u64_le().ok()?, list: VecDeque::new() };
    for _ in 0..bytes.try_get_u32_le().ok()? {
        entries.list.push_back(take_position(bytes)?);
    }
    let mut kept = KeptPositions::default();
    for _ in 0..bytes.try_get_u32_le().ok()? {
        let index = bytes.try_get_u64_le().ok().filter(|index| *index < u64::MAX)?;
        kept.insert(index, take_position(bytes)?);
    }
    Some(ShardBlock { shard, outline, positions: ShardPositions { entries, kept } })
}

fn take_position(bytes: &mut &[u8]) -> Option<Position> {
    let offset = bytes.try_get_u32_le().ok()?;
    Some(Position { offset, payload_bytes: bytes.try_get_u32_le().ok()? })
}

/// What [`encode_outline`] made; `None` when the bytes are no outline.
pub(super) fn decode_outline(mut bytes: &[u8]) -> Option<Outline> {
    take_outline(&mut bytes).filter(|_| bytes.is_empty())
}

fn take_outline(bytes: &mut &[u8]) -> Option<Outline> {
    let flags = bytes.try_get_u32_le().ok()?;
    let vote = decode_state(bytes)?;
    let committed = decode_state(bytes)?;
    let purged = EntryId { term: bytes.try_get_u64_le().ok()?, index: bytes.try_get_u64_le().ok()? };
    let void_below = bytes.try_get_u64_le().ok()?;
    let end = bytes.try_get_u64_le().ok()?;
    let mut terms = VecDeque::new();
    for _ in 0..bytes.try_get_u32_le().ok()? {
        let first = bytes.try_get_u64_le().ok()?;
        terms.push_back(TermRun { first, term: bytes.try_get_u64_le().ok()? });
    }
    Outline::restored(
        (flags & HAS_VOTE != 0).then_some(vote),
        (flags & HAS_COMMITTED != 0).then_some(committed),
        (flags & HAS_PURGED != 0).then_some(purged),
        void_below,
        (terms, end),
    )
}

fn decode_state(bytes: &mut &[u8]) -> Option<Bytes> {
    let length = bytes.try_get_u32_le().ok()? as usize;
    let (state, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(Bytes::copy_from_slice(state))
}

fn count(count: usize) -> u32 {
    u32::try_from(count).expect("what is counted lies in a segment, which is below 4 GiB")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::format::SegmentNumber, *};

    fn record(choice: (u8, u32, u64, usize), next: &mut [u64; 3]) -> Record {
        let (kind, shard, number, payload_bytes) = choice;
        let (id, slot) = (ShardId::new(shard), &mut next[shard as usize]);
        match kind {
            0 => Record::vote(id, Bytes::from(vec![1; payload_bytes])),
            1 => Record::committed(id, Bytes::from(vec![2; payload_bytes])),
            2 => {
                let first_removed = slot.saturating_sub(number);
                Record::truncate(id, first_removed)
            }
            3 => Record::kept(id, number * 3, 1, Bytes::from(vec![4; payload_bytes])),
            4 => Record::purge(id, (*slot + number).saturating_sub(2), 1),
            _ => {
                *slot += 1;
                let payload = Bytes::from(vec![3; payload_bytes]);
                Record::entry(id, &super::super::Entry { index: *slot - 1, term: number, payload })
            }
        }
    }

    proptest! {
        #[test]
        fn comes_back_as_it_went(choices in prop::collection::vec((0u8..9, 0u32..3, 0u64..4, 0usize..40), 0..60)) {
            let mut index = Index::new(SegmentNumber::new(0));
            index.begin_segment(SegmentNumber::FIRST);
            let mut next = [2; 3];
            for (offset, choice) in (0..).zip(choices) {
                let record = record(choice, &mut next);
                index.apply(&record, offset).unwrap();
                let outline = index.outlines().find(|(shard, _)| *shard == record.shard).unwrap().1;
                next[record.shard.get() as usize] = outline.next_index().unwrap_or(2);
            }
            let encoded = encode(&index);
            prop_assert_eq!(encoded.len(), payload_bytes(&index));
            let block = decode(&encoded).unwrap();
            prop_assert_eq!(&block.segments, index.segments());
            prop_assert_eq!(block.shards.len(), index.outlines().count());
            for (block, (shard, outline)) in block.shards.iter().zip(index.outlines()) {
                prop_assert_eq!((block.shard, &block.outline), (shard, outline));
                let positions = index.positions().get(&shard).cloned().unwrap_or_default();
                prop_assert_eq!(&block.positions.entries.list, &positions.entries.list);
                prop_assert_eq!(&block.positions.kept, &positions.kept);
            }
            let mut again = Index::new(SegmentNumber::new(0));
            again.begin_segment(SegmentNumber::FIRST);
            again.apply_sealed(&block).unwrap();
            prop_assert_eq!(again.first_missing(), None);
        }

        #[test]
        fn arbitrary_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = (decode(&bytes), decode_outline(&bytes));
        }
    }
}
