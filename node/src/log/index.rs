//! Where the records that are on disk lie. It follows the records in the order in which they were written, so the
//! writer and recovery arrive at the same.

use std::collections::{BTreeMap, VecDeque};

use skein_proto::ids::ShardId;

use super::{
    EntryId,
    format::{Kind, Record, SegmentNumber, record_bytes},
    index_block::{IndexBlock, decode_outline, encode_outline},
    outline::{Gap, Outline},
    positions::{KeptRanges, Position, SegmentPositions, ShardPositions},
    segment_set::{SegmentSet, decode_numbers},
};

/// All shards as they are on disk.
#[derive(Debug)]
pub(super) struct Index {
    shards: BTreeMap<ShardId, IndexedShard>,
    segments: SegmentSet,
    active: SegmentNumber,
    /// Whether all that came before the active segment is known, so that what it begins with must agree.
    follows: bool,
    /// Where the records of the active segment lie. Sealed segments carry theirs themselves.
    positions: SegmentPositions,
}

#[derive(Debug, Default)]
pub(super) struct IndexedShard {
    outline: Outline,
    /// Which segment has which entries: by rising index and rising segment, and without gaps where they are live.
    /// Entries below the purge point stay here for as long as their segment is part of the log.
    spans: VecDeque<Span>,
    /// Which segment may have kept parts of which entries.
    kept: BTreeMap<SegmentNumber, KeptRanges>,
}

/// The entries of one shard in one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) segment: SegmentNumber,
    pub(super) first: u64,
    pub(super) end: u64,
    /// What their records take, about.
    pub(super) bytes: u64,
}

/// A sound record that does not follow from those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inconsistent {
    pub(super) shard: ShardId,
    pub(super) index: u64,
}

impl Index {
    pub(super) fn new(active: SegmentNumber) -> Self {
        Self {
            shards: BTreeMap::new(),
            segments: SegmentSet::default(),
            active,
            follows: true,
            positions: BTreeMap::new(),
        }
    }

    /// The segment that records are being added to.
    pub(super) fn active(&self) -> SegmentNumber {
        self.active
    }

    /// The segments that are part of the log.
    pub(super) fn segments(&self) -> &SegmentSet {
        &self.segments
    }

    /// Where the active segment's records lie.
    pub(super) fn positions(&self) -> &SegmentPositions {
        &self.positions
    }

    pub(super) fn outlines(&self) -> impl Iterator<Item = (ShardId, &Outline)> {
        self.shards.iter().map(|(shard, indexed)| (*shard, &indexed.outline))
    }

    pub(super) fn shards(&self) -> impl Iterator<Item = (ShardId, &IndexedShard)> {
        self.shards.iter().map(|(shard, indexed)| (*shard, indexed))
    }

    pub(super) fn shard(&self, shard: ShardId) -> Option<&IndexedShard> {
        self.shards.get(&shard)
    }

    /// Goes on to a later segment; returns where the records of the one before lie.
    pub(super) fn begin_segment(&mut self, number: SegmentNumber) -> SegmentPositions {
        assert!(number > self.active, "segments follow one another");
        self.follows = number == self.active.next();
        self.active = number;
        self.segments.push(number);
        std::mem::take(&mut self.positions)
    }

    /// Takes over a record that lies at `offset` of the active segment.
    pub(super) fn apply(&mut self, record: &Record, offset: u32) -> Result<(), Inconsistent> {
        let Record { kind, shard, index, term, payload } = record;
        let inconsistent = Inconsistent { shard: *shard, index: *index };
        match kind {
            Kind::State => return self.apply_state(*shard, payload).ok_or(inconsistent),
            Kind::Segments => return self.apply_segments(payload).ok_or(inconsistent),
            Kind::Retire => return self.apply_retire(payload).ok_or(inconsistent),
            Kind::Index => return Err(inconsistent),
            Kind::Entry | Kind::Vote | Kind::Committed | Kind::Truncate | Kind::Purge | Kind::Kept => {}
        }
        let active = self.active;
        let indexed = self.shards.entry(*shard).or_default();
        let payload_bytes = u32::try_from(payload.len()).map_err(|_| inconsistent)?;
        let position = Position { offset, payload_bytes };
        match kind {
            Kind::Vote => indexed.outline.vote = Some(payload.clone()),
            Kind::Committed => indexed.outline.committed = Some(payload.clone()),
            Kind::Entry => {
                indexed.outline.push(EntryId { term: *term, index: *index }).map_err(|Gap| inconsistent)?;
                indexed.add_entry(active, *index, record.encoded_bytes() as u64);
                self.positions.entry(*shard).or_default().entries.push(*index, position);
            }
            Kind::Kept => {
                indexed.kept.entry(active).or_default().insert(*index);
                self.positions.entry(*shard).or_default().kept.insert(*index, position);
            }
            Kind::Truncate => {
                indexed.outline.truncate(*index);
                let end = indexed.outline.live().end;
                indexed.cut_back(end);
                if let Some(positions) = self.positions.get_mut(shard) {
                    positions.entries.truncate(end);
                }
            }
            Kind::Purge => {
                indexed.outline.purge(EntryId { term: *term, index: *index });
                indexed.cut_void();
                if let Some(positions) = self.positions.get_mut(shard)
                    && positions.entries.end() <= indexed.outline.void_below
                {
                    positions.entries.clear();
                }
            }
            Kind::State | Kind::Segments | Kind::Retire | Kind::Index => unreachable!("returned above"),
        }
        Ok(())
    }

    /// Takes over what was known of a shard when the active segment was begun. Where the segments before are all there,
    /// this must be what they say; where some were given up, this is all that is left of what they said.
    fn apply_state(&mut self, shard: ShardId, payload: &[u8]) -> Option<()> {
        let outline = decode_outline(payload)?;
        let follows = self.follows;
        let indexed = self
            .shards
            .entry(shard)
            .or_insert_with(|| IndexedShard { outline: outline.clone(), ..IndexedShard::default() });
        if follows && indexed.outline != outline {
            return None;
        }
        indexed.cut_back(outline.live().end);
        indexed.outline = outline;
        indexed.cut_void();
        Some(())
    }

    fn apply_segments(&mut self, payload: &[u8]) -> Option<()> {
        let segments =
            SegmentSet::decode(payload).filter(|segments| segments.newest() == Some(self.active))?;
        self.retain_segments(segments);
        Some(())
    }

    fn retain_segments(&mut self, segments: SegmentSet) {
        if segments == self.segments {
            return;
        }
        for indexed in self.shards.values_mut() {
            indexed.retain_segments(|number| segments.contains(number));
        }
        self.segments = segments;
    }

    fn apply_retire(&mut self, payload: &[u8]) -> Option<()> {
        let numbers = decode_numbers(payload).filter(|numbers| !numbers.contains(&self.active))?;
        for number in &numbers {
            self.segments.remove(*number);
        }
        for indexed in self.shards.values_mut() {
            indexed.retain_segments(|number| !numbers.contains(&number));
        }
        Some(())
    }

    /// Takes over what a sealed segment, the active one, says of itself.
    pub(super) fn apply_sealed(&mut self, block: &IndexBlock) -> Result<(), Inconsistent> {
        let inconsistent = Inconsistent { shard: ShardId::CATALOG, index: 0 };
        if block.segments.newest() != Some(self.active) {
            return Err(inconsistent);
        }
        self.retain_segments(block.segments.clone());
        for block in &block.shards {
            self.apply_sealed_shard(block.shard, &block.outline, &block.positions)?;
        }
        Ok(())
    }

    fn apply_sealed_shard(
        &mut self,
        shard: ShardId,
        outline: &Outline,
        positions: &ShardPositions,
    ) -> Result<(), Inconsistent> {
        let indexed = self.shards.entry(shard).or_default();
        let ShardPositions { entries, kept } = positions;
        indexed.outline = outline.clone();
        indexed.cut_void();
        let end = outline.live().end;
        if entries.list.is_empty() {
            indexed.cut_back(end);
        } else {
            if entries.end() != end {
                return Err(Inconsistent { shard, index: entries.end() });
            }
            indexed.cut_back(entries.first);
            let record_overhead = record_bytes(0) as u64 * entries.list.len() as u64;
            let bytes = entries.payload_bytes() + record_overhead;
            indexed.spans.push_back(Span { segment: self.active, first: entries.first, end, bytes });
        }
        if kept.len() > 0 {
            indexed.kept.insert(self.active, KeptRanges::of(kept));
        }
        Ok(())
    }

    /// The first live entry that is in no segment, if there is one.
    pub(super) fn first_missing(&self) -> Option<(ShardId, u64)> {
        self.shards.iter().find_map(|(shard, indexed)| Some((*shard, indexed.first_missing()?)))
    }

    /// The records that segment `next` begins with. They repeat all that is known but the entries, so that no older
    /// segment is needed for it.
    pub(super) fn state_records(&self, next: SegmentNumber) -> Vec<Record> {
        let mut segments = self.segments.clone();
        segments.push(next);
        let states = self.outlines().map(|(shard, outline)| Record::state(shard, encode_outline(outline)));
        [Record::segments(segments.encoded())].into_iter().chain(states).collect()
    }
}

impl IndexedShard {
    pub(super) fn outline(&self) -> &Outline {
        &self.outline
    }

    pub(super) fn spans(&self) -> impl DoubleEndedIterator<Item = &Span> {
        self.spans.iter()
    }

    pub(super) fn kept(&self) -> impl Iterator<Item = (SegmentNumber, &KeptRanges)> {
        self.kept.iter().map(|(number, ranges)| (*number, ranges))
    }

    /// The segments that may have kept parts of this entry, newest first.
    pub(super) fn kept_in(&self, index: u64) -> impl Iterator<Item = SegmentNumber> {
        self.kept.iter().rev().filter(move |(_, ranges)| ranges.contains(index)).map(|(number, _)| *number)
    }

    /// Where the entry lies, if it is on disk.
    pub(super) fn span(&self, index: u64) -> Option<&Span> {
        let span = self.spans.get(self.spans.partition_point(|span| span.end <= index))?;
        (span.first <= index).then_some(span)
    }

    fn add_entry(&mut self, segment: SegmentNumber, index: u64, bytes: u64) {
        match self.spans.back_mut().filter(|span| span.segment == segment && span.end == index) {
            Some(span) => {
                span.end = index + 1;
                span.bytes += bytes;
            }
            None => self.spans.push_back(Span { segment, first: index, end: index + 1, bytes }),
        }
    }

    /// Forgets where entries from `end` on lie.
    fn cut_back(&mut self, end: u64) {
        while self.spans.pop_back_if(|span| span.first >= end).is_some() {}
        if let Some(span) = self.spans.back_mut().filter(|span| span.end > end) {
            span.bytes = span.bytes_of(end - span.first);
            span.end = end;
        }
    }

    /// Forgets where entries lie that are none of the shard's any more.
    fn cut_void(&mut self) {
        let start = self.outline.void_below;
        while self.spans.pop_front_if(|span| span.end <= start).is_some() {}
        if let Some(span) = self.spans.front_mut().filter(|span| span.first < start) {
            span.bytes = span.bytes_of(span.end - start);
            span.first = start;
        }
    }

    fn retain_segments(&mut self, is_part: impl Fn(SegmentNumber) -> bool) {
        self.spans.retain(|span| is_part(span.segment));
        self.kept.retain(|number, _| is_part(*number));
    }

    fn first_missing(&self) -> Option<u64> {
        let live = self.outline.live();
        let mut next = live.start;
        for span in self.spans.iter().filter(|span| span.end > live.start) {
            if span.first.max(live.start) != next {
                return Some(next);
            }
            next = span.end;
        }
        (next != live.end).then_some(next)
    }
}

impl Span {
    /// What so many of its entries take, about.
    pub(super) fn bytes_of(&self, entry_count: u64) -> u64 {
        let all = u128::from((self.end - self.first).max(1));
        let part = u128::from(self.bytes) * u128::from(entry_count) / all;
        u64::try_from(part).unwrap_or(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_that_names_later_ones_or_gives_itself_up_is_refused() {
        let set = |newest: u64| {
            let mut segments = SegmentSet::default();
            (1..=newest).for_each(|number| segments.push(SegmentNumber::new(number)));
            segments
        };
        let mut index = Index::new(SegmentNumber::new(0));
        (1..3).for_each(|number| drop(index.begin_segment(SegmentNumber::new(number))));
        let retire = |number| Record::retire(SegmentNumber::new(number).get().to_le_bytes().to_vec().into());
        for newest in [0, 1, 3, 9] {
            assert!(index.apply(&Record::segments(set(newest).encoded()), 0).is_err(), "{newest} segments");
            assert!(index.apply_sealed(&IndexBlock { segments: set(newest), shards: Vec::new() }).is_err());
        }
        assert!(index.apply(&retire(2), 0).is_err());
        assert_eq!(index.apply(&retire(1), 0), Ok(()));
        index.begin_segment(SegmentNumber::new(3));
        assert_eq!(index.apply(&Record::segments(set(3).encoded()), 0), Ok(()));
    }
}
