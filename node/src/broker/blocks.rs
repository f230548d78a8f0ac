//! A queue's messages, as references to the batches in the log that hold them.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use skein_proto::ids::{Offset, QueueId};

use super::{
    BlockSpan, PageRecord, Properties, SavedPages, Spill,
    live::LiveTally,
    page::{Page, Place, Sums},
};
use crate::offsets::OffsetRange;

/// How many blocks are saved together: 256 of about 20 bytes are a record of some 5 KiB, small enough to write again
/// whenever its end grows and large enough that a million blocks are only 4,000 records.
pub const PAGE_BLOCKS: u64 = 256;

/// Places for pages that a queue may have and not use, besides some in proportion to its pages: about 2 KiB.
const SPARE_PAGES_MAX: usize = 16;

/// A published batch: consecutive messages of a queue, stored together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// The raft index of the entry that holds it.
    pub index: u64,
    /// The offset of its first message.
    pub first: Offset,
    /// The core's time when it was published.
    pub published_at_ms: u64,
    /// Where it lies in the entry's payload.
    pub span: BlockSpan,
    /// How many messages it has.
    pub count: u32,
    /// How to treat them.
    pub properties: Properties,
}

/// Some messages of one stored block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSlice {
    /// The raft index of the entry that holds the block.
    pub index: u64,
    /// Where the block begins, in bytes from the start of the entry's payload.
    pub position: u32,
    /// How many bytes the block has.
    pub length: u32,
    /// The offset of the block's first message.
    pub block_first: Offset,
    /// How many messages the block has.
    pub block_count: u32,
    /// When the block was published.
    pub published_at_ms: u64,
    /// How many messages of the block come before the wanted ones.
    pub skip: u32,
    /// How many messages of the block are wanted.
    pub take: u32,
}

impl Block {
    /// The offset after its last message.
    #[must_use]
    pub const fn end(&self) -> Offset {
        self.first.plus(self.count as u64)
    }
}

/// The kept blocks of a queue, oldest first, with or without others that are gone between them. Blocks are numbered
/// 0, 1, 2, ... over the life of the queue; block `n` lies, or lay, on page `n / PAGE_BLOCKS`. Pages bound what growing
/// and freeing moves about, and what a checkpoint rewrites.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// Never an empty page.
    pages: VecDeque<Page>,
    /// The number of the next block.
    next: u64,
    sums: Sums,
    /// Pages in the newest checkpoint that have no blocks any more.
    gone_pages: Vec<u64>,
}

impl Blocks {
    /// No blocks; the first one gets the number `next`.
    pub(super) fn starting_at(next: u64) -> Self {
        Self { next, ..Self::default() }
    }

    pub(super) const fn next_number(&self) -> u64 {
        self.next
    }

    pub(super) const fn sums(&self) -> Sums {
        self.sums
    }

    /// Where the first block lies.
    pub(super) fn front(&self) -> Option<Place> {
        Some(self.pages.front()?.first_place())
    }

    /// Where the last block lies.
    pub(super) fn back(&self) -> Option<Place> {
        Some(self.pages.back()?.last_place())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Block> {
        self.pages.iter().flat_map(Page::scan)
    }

    /// The block that holds the message at `offset`.
    pub(super) fn find(&self, offset: Offset) -> Option<Block> {
        self.first_ending_after(offset).filter(|block| block.first <= offset)
    }

    /// The block that holds the first kept message from `offset` on.
    pub(super) fn first_ending_after(&self, offset: Offset) -> Option<Block> {
        self.ending_after(offset).next()
    }

    /// The blocks that hold messages from `offset` on.
    pub(super) fn ending_after(&self, offset: Offset) -> impl Iterator<Item = Block> {
        let page = self.pages.partition_point(|page| page.last_place().end <= offset);
        self.pages.range(page..).flat_map(move |page| page.blocks_from(offset))
    }

    /// The first block that was published at this time or later.
    pub(super) fn first_published_from(&self, time_ms: u64) -> Option<Block> {
        let page = self.pages.partition_point(|page| page.last_place().published_at_ms < time_ms);
        self.pages.get(page)?.blocks_after(|place| place.published_at_ms < time_ms).next()
    }

    /// What the blocks that hold messages from `offset` on come to. Looks at each page before it.
    pub(super) fn sums_from(&self, offset: Offset) -> Sums {
        let mut sums = self.sums;
        for page in &self.pages {
            if page.last_place().end <= offset {
                sums -= page.sums();
                continue;
            }
            page.blocks()
                .take_while(|block| block.end() <= offset)
                .for_each(|block| sums -= Sums::of(&block));
            break;
        }
        sums
    }

    /// The parts of `range` that are in no block.
    pub(super) fn gaps(&self, range: OffsetRange) -> impl Iterator<Item = OffsetRange> {
        let end = OffsetRange::new(range.end(), 0);
        self.covered()
            .chain([end])
            .scan(range.first, move |reached, run| {
                let gap = OffsetRange::between(*reached, run.first).intersect(range);
                *reached = run.end().max(*reached);
                Some(gap)
            })
            .filter(|gap| !gap.is_empty())
    }

    pub(super) fn push(&mut self, block: Block) {
        let number = self.next / PAGE_BLOCKS;
        self.next += 1;
        self.sums += Sums::of(&block);
        // The page may have lost all of its blocks, and have gone with them.
        if self.pages.back().is_none_or(|page| page.number() != number) {
            self.pages.push_back(Page::new(number));
        }
        let page = self.pages.back_mut().expect("one was put there if there was none");
        page.push(block);
        if self.next.is_multiple_of(PAGE_BLOCKS) {
            page.close();
        }
    }

    /// Drops the blocks that have only messages below `first_offset`.
    pub(super) fn drop_below(&mut self, first_offset: Offset) {
        while let Some(page) = self.pages.front()
            && page.first_place().end <= first_offset
        {
            self.change_page(0, |page| page.drop_below(first_offset));
        }
    }

    /// Drops the blocks that lie entirely in `range`.
    pub(super) fn drop_inside(&mut self, range: OffsetRange) {
        let mut place = self.pages.partition_point(|page| page.last_place().first < range.first);
        while let Some(page) = self.pages.get(place)
            && page.first_place().first < range.end()
        {
            // Otherwise the next page has taken its place.
            if self.change_page(place, |page| page.drop_inside(range)) {
                place += 1;
            }
        }
    }

    /// The blocks whose entries' indexes are in `entries`.
    pub(super) fn in_entries(&self, entries: Range<u64>) -> impl Iterator<Item = Block> {
        let Range { start, end } = entries;
        let page = self.pages.partition_point(|page| page.last_place().index < start);
        self.pages
            .range(page..)
            .flat_map(move |page| page.scan_after(move |place| place.index < start))
            .take_while(move |block| block.index < end)
    }

    /// Adds all blocks to the tally. Looks into those pages only that a border parts.
    pub(super) fn tally_live(&self, tally: &mut LiveTally) {
        for page in &self.pages {
            let (first, last) = (page.first_place().index, page.last_place().index);
            if tally.is_one_slot(first, last) {
                tally.add(first, page.sums().live());
            } else {
                page.scan().for_each(|block| tally.add(block.index, Sums::of(&block).live()));
            }
        }
    }

    /// Puts back a saved page. Pages come in order.
    pub(super) fn restore_page(&mut self, number: u64, record: &PageRecord) -> Result<(), &'static str> {
        let last_number = self.pages.back().map(Page::number);
        // How many blocks ever got a number on this page.
        let begun = self.next.saturating_sub(number.saturating_mul(PAGE_BLOCKS)).min(PAGE_BLOCKS);
        let fits_page = !record.blocks.is_empty() && record.blocks.len() as u64 <= begun;
        if !fits_page || last_number >= Some(number) {
            return Err("a page does not hold the blocks that its number says");
        }
        let mut previous = self.back().map(|back| (back.index, back.end));
        for block in &record.blocks {
            let end = block.first.get().checked_add(block.count.into());
            let (index, end) = (block.index, end.map(Offset::new).ok_or("a block has no end")?);
            if previous.is_some_and(|previous| index < previous.0 || block.first < previous.1) {
                return Err("blocks are not in order");
            }
            if block.count == 0 {
                return Err("a block has no messages");
            }
            previous = Some((index, end));
        }
        let mut page = Page::restore(number, record);
        if begun == PAGE_BLOCKS {
            page.close();
        }
        self.sums += page.sums();
        self.pages.push_back(page);
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn page_numbers(&self) -> impl Iterator<Item = u64> {
        self.pages.iter().map(Page::number)
    }

    /// All pages, by number.
    pub(super) fn pages(&self) -> impl Iterator<Item = (u64, PageRecord)> {
        self.pages.iter().map(|page| (page.number(), page.record()))
    }

    /// The pages that a checkpoint has and should not have any more, and then those that it should have as they are
    /// now. A page that was emptied and then appended to is both.
    pub(super) fn take_changes(&mut self) -> (Vec<u64>, Vec<(u64, PageRecord)>) {
        let gone = std::mem::take(&mut self.gone_pages);
        let changed = self.pages.iter_mut().filter_map(|page| Some((page.number(), page.take_change()?)));
        (gone, changed.collect())
    }

    /// The pages that the newest checkpoint has.
    pub(super) fn saved_pages(&self) -> impl Iterator<Item = u64> {
        let kept = self.pages.iter().filter(|page| page.is_saved()).map(Page::number);
        kept.chain(self.gone_pages.iter().copied())
    }

    /// What the pages' rows take in memory.
    pub(super) fn row_bytes(&self) -> u64 {
        self.pages.iter().map(|page| page.heap_bytes() as u64).sum()
    }

    /// Lets go of the memory of saved pages, of which all take `bytes`, up to `spill.keep_bytes`: those go first that
    /// come last, but for the last one. The first ones are wanted next. Gives what is left.
    pub(super) fn spill(&mut self, queue: QueueId, mut bytes: u64, spill: &Spill) -> u64 {
        for page in self.pages.iter_mut().rev().skip(1) {
            if bytes <= spill.keep_bytes {
                break;
            }
            bytes -= page.heap_bytes() as u64;
            page.spill(queue, &spill.pages);
            bytes += page.heap_bytes() as u64;
        }
        bytes
    }

    /// Lets go of the memory of the page that was put back last. Gives how much it still takes.
    pub(super) fn spill_last(&mut self, queue: QueueId, pages: &Arc<dyn SavedPages>) -> u64 {
        self.pages.back_mut().map_or(0, |page| {
            page.spill(queue, pages);
            page.heap_bytes() as u64
        })
    }

    /// What the page takes that was put back last.
    pub(super) fn last_row_bytes(&self) -> u64 {
        self.pages.back().map_or(0, |page| page.heap_bytes() as u64)
    }

    /// What the blocks take in memory.
    #[cfg(test)]
    pub(super) fn memory_bytes(&self) -> usize {
        let pages: usize = self.pages.iter().map(Page::heap_bytes).sum();
        pages + self.pages.capacity() * size_of::<Page>() + self.gone_pages.capacity() * size_of::<u64>()
    }

    /// Takes blocks from the page at `place`, and the page away with its last one. Whether it is still there.
    fn change_page(&mut self, place: usize, change: impl FnOnce(&mut Page)) -> bool {
        let page = &mut self.pages[place];
        self.sums -= page.sums();
        change(page);
        self.sums += page.sums();
        if !page.is_empty() {
            return true;
        }
        if page.is_saved() {
            self.gone_pages.push(page.number());
        }
        self.pages.remove(place);
        if self.pages.capacity() > SPARE_PAGES_MAX + 4 * self.pages.len() {
            self.pages.shrink_to(SPARE_PAGES_MAX + self.pages.len());
        }
        false
    }

    /// Ranges that together are the kept messages; few where nothing is missing.
    fn covered(&self) -> impl Iterator<Item = OffsetRange> {
        self.pages.iter().flat_map(|page| {
            let unbroken = page.unbroken();
            let broken = unbroken.is_none().then(|| page.scan());
            let blocks = broken.into_iter().flatten();
            unbroken.into_iter().chain(blocks.map(|block| OffsetRange::between(block.first, block.end())))
        })
    }
}
