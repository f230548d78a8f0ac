//! A page of a queue's blocks: which of them are kept, and what they come to.

use std::{
    ops::{AddAssign, SubAssign},
    sync::Arc,
};

use skein_proto::ids::{Offset, QueueId};

use super::{Block, Live, PAGE_BLOCKS, PageRecord, SavedPages, packed::Packed, spill::Spilled};
use crate::offsets::OffsetRange;

/// Words of a [`RowSet`].
const ROW_WORDS: usize = PAGE_BLOCKS as usize / 64;

/// What some blocks come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) blocks: u64,
    pub(super) messages: u64,
    pub(super) bytes: u64,
    /// How many of the blocks have messages that are not ordinary.
    pub(super) special_blocks: u64,
}

/// Up to [`PAGE_BLOCKS`] blocks, whose offsets and raft indexes rise.
#[derive(Debug)]
pub(super) struct Page {
    number: u64,
    rows: Rows,
    /// The rows that are kept. Taking a row out of this is cheaper than to pack the others anew.
    kept: RowSet,
    /// The first and the last row that are kept: pages are looked for by them, more often than anything else is done.
    ends: Option<(Place, Place)>,
    sums: Sums,
    saved: Saved,
}

/// What the newest checkpoint has of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Saved {
    Nothing,
    /// Too few blocks, or some that are gone.
    Outdated,
    /// All that are kept, and perhaps others below the queue's first offset.
    Current,
}

/// Where a block lies, as far as it can be looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) index: u64,
    pub(super) first: Offset,
    pub(super) end: Offset,
    pub(super) published_at_ms: u64,
}

#[derive(Debug)]
enum Rows {
    /// Blocks may be appended.
    Open(Vec<Block>),
    Packed(Packed),
    /// As many of them as are kept, as the newest checkpoint has them.
    Spilled(Box<Spilled>),
}

impl Page {
    /// A page to append to.
    pub(super) fn new(number: u64) -> Self {
        Self {
            number,
            rows: Rows::Open(Vec::new()),
            kept: RowSet::default(),
            ends: None,
            sums: Sums::default(),
            saved: Saved::Nothing,
        }
    }

    /// A page as the newest checkpoint has it.
    pub(super) fn restore(number: u64, record: &PageRecord) -> Self {
        let mut page = Self::new(number);
        for &block in &record.blocks {
            page.push(block);
        }
        page.saved = Saved::Current;
        page
    }

    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    pub(super) const fn sums(&self) -> Sums {
        self.sums
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.sums.blocks == 0
    }

    /// Where the first kept block lies.
    pub(super) fn first_place(&self) -> Place {
        self.ends.expect("only pages with blocks are asked").0
    }

    /// Where the last kept block lies.
    pub(super) fn last_place(&self) -> Place {
        self.ends.expect("only pages with blocks are asked").1
    }

    /// The messages from its first to its last kept block, when none is missing between them.
    pub(super) fn unbroken(&self) -> Option<OffsetRange> {
        let reach = OffsetRange::between(self.first_place().first, self.last_place().end);
        (reach.count == self.sums.messages).then_some(reach)
    }

    /// The kept blocks.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Block> {
        self.blocks_from_row(0)
    }

    /// The same for whoever looks at many pages once: what is not in memory is read, and not kept there.
    pub(super) fn scan(&self) -> impl Iterator<Item = Block> {
        let passing = self.read_past();
        let kept = passing.is_none().then(|| self.blocks());
        passing.into_iter().flatten().chain(kept.into_iter().flatten())
    }

    /// The same from the first one on for which `is_before`, which is true up to some block, is false.
    pub(super) fn scan_after(&self, is_before: impl Fn(&Place) -> bool) -> impl Iterator<Item = Block> {
        let passing = self.read_past();
        let first_row = passing.is_none().then(|| self.rows.partition_point(&is_before));
        let kept = first_row.map(|row| self.blocks_from_row(row));
        let passing = passing.into_iter().flatten().skip_while(move |block| is_before(&Place::of(block)));
        kept.into_iter().flatten().chain(passing)
    }

    /// The kept blocks from the first one on for which `is_before`, which is true up to some block, is false.
    pub(super) fn blocks_after(&self, is_before: impl Fn(&Place) -> bool) -> impl Iterator<Item = Block> {
        self.blocks_from_row(self.rows.partition_point(is_before))
    }

    /// The kept blocks that hold messages from `offset` on.
    pub(super) fn blocks_from(&self, offset: Offset) -> impl Iterator<Item = Block> {
        self.blocks_from_row(self.rows.first_ending_after(offset))
    }

    /// Appends a block to a page that was never closed.
    pub(super) fn push(&mut self, block: Block) {
        let Rows::Open(rows) = &mut self.rows else {
            unreachable!("the last page is closed when it has its last block");
        };
        self.kept.insert(rows.len());
        rows.push(block);
        let place = Place::of(&block);
        self.ends = Some((self.ends.map_or(place, |(first, _)| first), place));
        self.sums += Sums::of(&block);
        self.touch();
    }

    /// Packs the page: nothing will be appended to it.
    pub(super) fn close(&mut self) {
        self.rows = Rows::Packed(Packed::new(&self.blocks().collect::<Vec<_>>()));
        self.kept = RowSet::first(self.rows.len());
    }

    /// Drops the blocks that lie entirely in `range`. A checkpoint has to hear of it.
    pub(super) fn drop_inside(&mut self, range: OffsetRange) {
        if self.first_place().first >= range.first && self.last_place().end <= range.end() {
            self.touch();
            return self.clear();
        }
        let row = self.rows.first_ending_after(range.first);
        let is_cut = row < self.rows.len() && self.rows.place(row).first < range.first;
        let before = self.sums;
        self.drop_rows(row + usize::from(is_cut), range.end());
        if self.sums != before {
            self.touch();
        }
    }

    /// Drops the blocks that have only messages below `first_offset`. A checkpoint need not hear of it.
    pub(super) fn drop_below(&mut self, first_offset: Offset) {
        if self.last_place().end <= first_offset {
            return self.clear();
        }
        self.drop_rows(0, first_offset);
    }

    /// Lets go of the memory of its rows, if the newest checkpoint, which `pages` reads, has all of them.
    pub(super) fn spill(&mut self, queue: QueueId, pages: &Arc<dyn SavedPages>) {
        if self.saved != Saved::Current || matches!(self.rows, Rows::Open(_)) || self.heap_bytes() == 0 {
            return;
        }
        let (first, row_count) = (self.first_place().first, self.kept.len());
        let spilled = Spilled::new(Arc::clone(pages), queue, self.number, first, row_count);
        self.rows = Rows::Spilled(Box::new(spilled));
        self.kept = RowSet::first(row_count);
    }

    /// Whether a checkpoint has something under this page's number.
    pub(super) fn is_saved(&self) -> bool {
        self.saved != Saved::Nothing
    }

    /// What a checkpoint needs to write, if anything. It is taken to be written.
    pub(super) fn take_change(&mut self) -> Option<PageRecord> {
        let is_changed = self.saved != Saved::Current;
        self.saved = Saved::Current;
        is_changed.then(|| self.record())
    }

    pub(super) fn record(&self) -> PageRecord {
        PageRecord { blocks: self.blocks().collect() }
    }

    /// What its rows take in memory.
    pub(super) fn heap_bytes(&self) -> usize {
        match &self.rows {
            Rows::Open(rows) => rows.capacity() * size_of::<Block>(),
            Rows::Packed(packed) => packed.heap_bytes(),
            Rows::Spilled(spilled) => spilled.heap_bytes(),
        }
    }

    /// Drops all blocks, without a look at any.
    fn clear(&mut self) {
        self.kept = RowSet::default();
        self.ends = None;
        self.sums = Sums::default();
    }

    /// All blocks of a page whose rows are not in memory.
    fn read_past(&self) -> Option<Vec<Block>> {
        match &self.rows {
            Rows::Spilled(spilled) => spilled.read_past(),
            Rows::Open(_) | Rows::Packed(_) => None,
        }
    }

    fn blocks_from_row(&self, row: usize) -> impl Iterator<Item = Block> {
        let next = |&row: &usize| self.kept.first_from(row + 1);
        std::iter::successors(self.kept.first_from(row), next).map(|row| self.rows.get(row))
    }

    fn drop_rows(&mut self, first_row: usize, end: Offset) {
        let mut next = self.kept.first_from(first_row);
        while let Some(row) = next {
            let block = self.rows.get(row);
            if block.end() > end {
                break;
            }
            self.kept.remove(row);
            self.sums -= Sums::of(&block);
            next = self.kept.first_from(row + 1);
        }
        let place = |row: Option<usize>| row.map(|row| self.rows.place(row));
        self.ends = place(self.kept.first_from(0)).zip(place(self.kept.last()));
        // At half, so that packing the kept ones costs no more than dropping the others did.
        if !self.is_empty() && self.sums.blocks * 2 <= self.rows.len() as u64 {
            self.compact();
        }
    }

    /// Lets go of the memory of rows that are not kept.
    fn compact(&mut self) {
        match &self.rows {
            Rows::Open(_) => {
                self.rows = Rows::Open(self.blocks().collect());
                self.kept = RowSet::first(self.rows.len());
            }
            Rows::Packed(_) | Rows::Spilled(_) => self.close(),
        }
    }

    fn touch(&mut self) {
        if self.saved == Saved::Current {
            self.saved = Saved::Outdated;
        }
    }
}

impl Rows {
    fn len(&self) -> usize {
        match self {
            Self::Open(rows) => rows.len(),
            Self::Packed(packed) => packed.len(),
            Self::Spilled(spilled) => spilled.len(),
        }
    }

    fn get(&self, row: usize) -> Block {
        match self {
            Self::Open(rows) => rows[row],
            Self::Packed(packed) => packed.get(row),
            Self::Spilled(spilled) => spilled.rows().get(row),
        }
    }

    fn place(&self, row: usize) -> Place {
        match self {
            Self::Open(rows) => Place::of(&rows[row]),
            Self::Packed(packed) => packed.place(row),
            Self::Spilled(spilled) => spilled.rows().place(row),
        }
    }

    /// The first row that has messages from `offset` on.
    fn first_ending_after(&self, offset: Offset) -> usize {
        let Some(last) = self.len().checked_sub(1) else { return 0 };
        // Each row begins at least one offset after the one before it: the row looked for is this one or one before it.
        // It is this one where each row is one message.
        let highest = offset.get().saturating_sub(self.place(0).first.get());
        let highest = usize::try_from(highest).map_or(last, |row| row.min(last));
        let place = self.place(highest);
        if place.first > offset {
            return self.partition_point_below(highest, |place| place.end <= offset);
        }
        highest + usize::from(place.end <= offset)
    }

    /// The first row for which `is_before`, which is true up to some row, is false.
    fn partition_point(&self, is_before: impl Fn(&Place) -> bool) -> usize {
        self.partition_point_below(self.len(), is_before)
    }

    fn partition_point_below(&self, end: usize, is_before: impl Fn(&Place) -> bool) -> usize {
        let (mut low, mut high) = (0, end);
        while low < high {
            let middle = usize::midpoint(low, high);
            if is_before(&self.place(middle)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

impl Place {
    const fn of(block: &Block) -> Self {
        let Block { index, first, published_at_ms, .. } = *block;
        Self { index, first, end: block.end(), published_at_ms }
    }
}

impl Sums {
    pub(super) fn of(block: &Block) -> Self {
        let special_blocks = u64::from(!block.properties.are_ordinary());
        Self { blocks: 1, messages: block.count.into(), bytes: block.span.length.into(), special_blocks }
    }

    pub(super) const fn live(self) -> Live {
        Live { bytes: self.bytes, parts: self.blocks }
    }
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.special_blocks += other.special_blocks;
    }
}

impl SubAssign for Sums {
    fn sub_assign(&mut self, other: Self) {
        self.blocks -= other.blocks;
        self.messages -= other.messages;
        self.bytes -= other.bytes;
        self.special_blocks -= other.special_blocks;
    }
}

/// Some of a page's rows.
#[derive(Debug, Clone, Copy, Default)]
struct RowSet([u64; ROW_WORDS]);

impl RowSet {
    /// The first `count` rows.
    fn first(count: usize) -> Self {
        let mut rows = Self::default();
        (0..count).for_each(|row| rows.insert(row));
        rows
    }

    const fn insert(&mut self, row: usize) {
        self.0[row / 64] |= 1 << (row % 64);
    }

    const fn remove(&mut self, row: usize) {
        self.0[row / 64] &= !(1 << (row % 64));
    }

    /// The first row of the set that is not below `row`.
    fn first_from(&self, row: usize) -> Option<usize> {
        let mut word = row / 64;
        let mut bits = self.0.get(word)? & (u64::MAX << (row % 64));
        while bits == 0 {
            word += 1;
            bits = *self.0.get(word)?;
        }
        Some(word * 64 + bits.trailing_zeros() as usize)
    }

    fn len(&self) -> usize {
        self.0.iter().map(|bits| bits.count_ones() as usize).sum()
    }

    fn last(&self) -> Option<usize> {
        let word = self.0.iter().rposition(|&bits| bits != 0)?;
        Some(word * 64 + self.0[word].ilog2() as usize)
    }
}
