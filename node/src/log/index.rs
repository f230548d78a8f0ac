//! Where the entries that are on disk lie. It follows the records in the order in which they were written, so the
//! writer and recovery arrive at the same.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
};

use skein_proto::ids::ShardId;

use super::{
    EntryId,
    format::{Kind, Record, SegmentNumber},
    index_block::{decode_outline, encode_outline},
    outline::{Gap, Outline},
};

/// All shards as they are on disk.
#[derive(Debug)]
pub(super) struct Index {
    shards: BTreeMap<ShardId, IndexedShard>,
    active: SegmentNumber,
    /// Where the entries of the active segment lie. Sealed segments carry theirs themselves.
    positions: SegmentPositions,
}

/// Where a segment's entries lie, by shard.
pub(super) type SegmentPositions = BTreeMap<ShardId, Positions>;

#[derive(Debug, Default)]
struct IndexedShard {
    outline: Outline,
    /// Which segment has which entries: without gaps, by rising index and rising segment.
    spans: VecDeque<Span>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    segment: SegmentNumber,
    first: u64,
    end: u64,
}

/// Where a record starts in its segment, and how long its payload is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) offset: u32,
    pub(super) payload_bytes: u32,
}

/// Positions of consecutive entries of one shard in one segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Positions {
    pub(super) first: u64,
    pub(super) list: VecDeque<Position>,
}

impl Positions {
    pub(super) fn get(&self, index: u64) -> Option<Position> {
        self.list.get(usize::try_from(index.checked_sub(self.first)?).ok()?).copied()
    }

    pub(super) fn end(&self) -> u64 {
        self.first.saturating_add(self.list.len() as u64)
    }

    fn push(&mut self, index: u64, position: Position) {
        if self.list.is_empty() {
            self.first = index;
        }
        assert_eq!(self.end(), index, "the outline was asked first");
        self.list.push_back(position);
    }

    fn truncate(&mut self, first_removed: u64) {
        let kept = first_removed.saturating_sub(self.first);
        self.list.truncate(usize::try_from(kept).unwrap_or(usize::MAX));
    }

    fn purge(&mut self, start: u64) {
        let removed = usize::try_from(start.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.list.drain(..removed.min(self.list.len()));
        self.first = self.first.max(start);
    }
}

/// A sound record that does not follow from those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inconsistent {
    pub(super) shard: ShardId,
    pub(super) index: u64,
}

impl Index {
    pub(super) fn new(active: SegmentNumber) -> Self {
        Self { shards: BTreeMap::new(), active, positions: BTreeMap::new() }
    }

    /// The segment that entries are being added to.
    pub(super) fn active(&self) -> SegmentNumber {
        self.active
    }

    /// Where the active segment's entries lie.
    pub(super) fn positions(&self) -> &SegmentPositions {
        &self.positions
    }

    pub(super) fn outlines(&self) -> impl Iterator<Item = (ShardId, &Outline)> {
        self.shards.iter().map(|(shard, indexed)| (*shard, &indexed.outline))
    }

    /// Goes on to the next segment; returns where the entries of the one before lie.
    pub(super) fn begin_segment(&mut self, number: SegmentNumber) -> SegmentPositions {
        assert!(number > self.active, "segments follow one another");
        self.active = number;
        std::mem::take(&mut self.positions)
    }

    /// Takes over a record that lies at `offset` of the active segment.
    pub(super) fn apply(&mut self, record: &Record, offset: u32) -> Result<(), Inconsistent> {
        let Record { kind, shard, index, term, payload } = record;
        let inconsistent = Inconsistent { shard: *shard, index: *index };
        if *kind == Kind::State {
            return self.apply_state(*shard, payload).ok_or(inconsistent);
        }
        let indexed = self.shards.entry(*shard).or_default();
        match kind {
            Kind::Vote => indexed.outline.vote = Some(payload.clone()),
            Kind::Committed => indexed.outline.committed = Some(payload.clone()),
            Kind::Entry => {
                let payload_bytes = u32::try_from(payload.len()).map_err(|_| inconsistent)?;
                indexed.outline.push(EntryId { term: *term, index: *index }).map_err(|Gap| inconsistent)?;
                indexed.add_entry(self.active, *index);
                self.positions.entry(*shard).or_default().push(*index, Position { offset, payload_bytes });
            }
            Kind::Truncate | Kind::Purge => {
                match kind {
                    Kind::Truncate => indexed.outline.truncate(*index),
                    _ => indexed.outline.purge(EntryId { term: *term, index: *index }),
                }
                let live = indexed.outline.live();
                indexed.trim_spans(&live);
                if let Some(positions) = self.positions.get_mut(shard) {
                    positions.truncate(live.end);
                    positions.purge(live.start);
                }
            }
            Kind::Index | Kind::State => return Err(inconsistent),
        }
        Ok(())
    }

    /// Takes over what was known of a shard when the active segment was begun. In the oldest segment that is left, this
    /// is where the shard comes from; in others it must be what the segments before say.
    fn apply_state(&mut self, shard: ShardId, payload: &[u8]) -> Option<()> {
        let outline = decode_outline(payload)?;
        match self.shards.get(&shard) {
            Some(indexed) => (indexed.outline == outline).then_some(()),
            None => {
                self.shards.insert(shard, IndexedShard { outline, spans: VecDeque::new() });
                Some(())
            }
        }
    }

    /// Takes over what a sealed segment, the active one, says of a shard and of its entries in that segment.
    pub(super) fn apply_sealed(
        &mut self,
        shard: ShardId,
        outline: Outline,
        positions: &Positions,
    ) -> Result<(), Inconsistent> {
        let indexed = self.shards.entry(shard).or_default();
        let live = outline.live();
        let here = positions.first.max(live.start)..positions.end().max(live.start);
        if positions.list.is_empty() || here.is_empty() {
            indexed.trim_spans(&live);
        } else {
            if here.end != live.end {
                return Err(Inconsistent { shard, index: here.end });
            }
            indexed.trim_spans(&(live.start..here.start));
            indexed.spans.push_back(Span { segment: self.active, first: here.start, end: here.end });
        }
        indexed.outline = outline;
        Ok(())
    }

    /// Which segment has this entry, and up to which index (not included); `None` when the entry is not on disk.
    pub(super) fn locate(&self, shard: ShardId, index: u64) -> Option<(SegmentNumber, u64)> {
        let spans = &self.shards.get(&shard)?.spans;
        let span = spans.get(spans.partition_point(|span| span.end <= index))?;
        (span.first <= index).then_some((span.segment, span.end))
    }

    /// The oldest segment that has entries somebody may ask for; those before it are dead.
    pub(super) fn oldest_needed(&self) -> SegmentNumber {
        let firsts = self.shards.values().filter_map(|indexed| indexed.spans.front());
        firsts.map(|span| span.segment).min().unwrap_or(self.active)
    }

    /// The first live entry that is in no segment, if there is one.
    pub(super) fn first_missing(&self) -> Option<(ShardId, u64)> {
        self.shards.iter().find_map(|(shard, indexed)| Some((*shard, indexed.first_missing()?)))
    }

    /// The records that repeat all that is known but the entries, so that no older segment is needed for it.
    pub(super) fn state_records(&self) -> Vec<Record> {
        self.outlines().map(|(shard, outline)| Record::state(shard, encode_outline(outline))).collect()
    }
}

impl IndexedShard {
    fn add_entry(&mut self, segment: SegmentNumber, index: u64) {
        match self.spans.back_mut().filter(|span| span.segment == segment) {
            Some(span) => span.end = index + 1,
            None => self.spans.push_back(Span { segment, first: index, end: index + 1 }),
        }
    }

    fn trim_spans(&mut self, live: &Range<u64>) {
        while self.spans.pop_back_if(|span| span.first >= live.end).is_some() {}
        while self.spans.pop_front_if(|span| span.end <= live.start).is_some() {}
        if let Some(span) = self.spans.back_mut() {
            span.end = span.end.min(live.end);
        }
        if let Some(span) = self.spans.front_mut() {
            span.first = span.first.max(live.start);
        }
    }

    fn first_missing(&self) -> Option<u64> {
        let live = self.outline.live();
        let mut next = live.start;
        for span in &self.spans {
            if span.first != next {
                return Some(next);
            }
            next = span.end;
        }
        (next != live.end).then_some(next)
    }
}
