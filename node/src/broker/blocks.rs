//! A queue's messages, as references to the batches in the log that hold them.

use std::{collections::VecDeque, ops::Range};

use skein_proto::ids::Offset;

use super::{BlockSpan, PageRecord};

/// How many blocks are saved together: 256 of about 20 bytes are a record of some 5 KiB, small enough to write again
/// whenever its end grows and large enough that a million blocks are only 4,000 records.
pub const PAGE_BLOCKS: u64 = 256;

/// A published batch: consecutive messages of a queue, stored together. Kept for every batch, hence small.
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
}

const _: () = assert!(size_of::<Block>() <= 40);

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

/// All blocks of a queue, oldest first. Blocks are numbered 0, 1, 2, ... over the life of the queue; block `n` lies on
/// page `n / PAGE_BLOCKS`. Pages bound what growing and freeing moves about, and what a checkpoint rewrites.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// Never an empty page.
    pages: VecDeque<VecDeque<Block>>,
    /// The number of the next block.
    next: u64,
    kept_bytes: u64,
    /// The pages in the newest checkpoint.
    saved_pages: Range<u64>,
    /// Blocks below this number are in the newest checkpoint, or gone.
    saved_next: u64,
}

impl Blocks {
    /// No blocks; the first one gets the number `next`.
    pub(super) fn starting_at(next: u64) -> Self {
        Self { next, saved_next: next, ..Self::default() }
    }

    pub(super) const fn next_number(&self) -> u64 {
        self.next
    }

    pub(super) const fn kept_bytes(&self) -> u64 {
        self.kept_bytes
    }

    pub(super) fn front(&self) -> Option<&Block> {
        self.pages.front()?.front()
    }

    pub(super) fn back(&self) -> Option<&Block> {
        self.pages.back()?.back()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Block> {
        self.pages.iter().flatten()
    }

    /// The block that holds the message at `offset`.
    pub(super) fn find(&self, offset: Offset) -> Option<&Block> {
        let begins_before = |block: &Block| block.first <= offset;
        let page =
            self.pages.partition_point(|page| page.front().is_some_and(begins_before)).checked_sub(1)?;
        let page = self.pages.get(page)?;
        let block = page.get(page.partition_point(begins_before).checked_sub(1)?)?;
        (offset < block.end()).then_some(block)
    }

    pub(super) fn push(&mut self, block: Block) {
        self.kept_bytes += u64::from(block.span.length);
        let begins_page = self.next.is_multiple_of(PAGE_BLOCKS);
        match self.pages.back_mut() {
            Some(page) if !begins_page => page.push_back(block),
            _ => self.pages.push_back(VecDeque::from([block])),
        }
        self.next += 1;
    }

    /// Drops the blocks that have only messages below `first_offset`.
    pub(super) fn drop_below(&mut self, first_offset: Offset) {
        while let Some(page) = self.pages.front_mut() {
            while let Some(block) = page.front()
                && block.end() <= first_offset
            {
                self.kept_bytes -= u64::from(block.span.length);
                page.pop_front();
            }
            if !page.is_empty() {
                return;
            }
            self.pages.pop_front();
        }
    }

    /// Puts back a saved page. Pages come in order.
    pub(super) fn restore_page(&mut self, number: u64, record: &PageRecord) -> Result<(), &'static str> {
        let mut previous_end = self.back().map(Block::end);
        let fits_page = self.next / PAGE_BLOCKS >= number
            && record.blocks.len() as u64 <= PAGE_BLOCKS
            && !record.blocks.is_empty();
        if !fits_page {
            return Err("a page does not hold the blocks that its number says");
        }
        for block in &record.blocks {
            if previous_end.is_some_and(|end| end != block.first) {
                return Err("there is a gap between blocks");
            }
            previous_end = Some(block.end());
            self.kept_bytes += u64::from(block.span.length);
        }
        if self.pages.is_empty() {
            self.saved_pages.start = number;
        } else if self.saved_pages.end != number {
            return Err("a page is missing");
        }
        self.saved_pages.end = number + 1;
        self.pages.push_back(record.blocks.iter().copied().collect());
        Ok(())
    }

    /// All pages, by number.
    pub(super) fn pages(&self) -> impl Iterator<Item = (u64, PageRecord)> {
        self.page_records(self.live_pages())
    }

    /// The pages that a checkpoint has and should not have any more, and those that it should have as they are now.
    pub(super) fn take_changes(&mut self) -> (Range<u64>, Vec<(u64, PageRecord)>) {
        let live = self.live_pages();
        let gone = self.saved_pages.start..self.saved_pages.end.min(live.start);
        let changed = if self.saved_next == self.next {
            live.end..live.end
        } else {
            live.start.max(self.saved_next / PAGE_BLOCKS)..live.end
        };
        let written = self.page_records(changed).collect();
        self.saved_pages = live;
        self.saved_next = self.next;
        (gone, written)
    }

    /// The pages that the newest checkpoint has.
    pub(super) fn saved_pages(&self) -> Range<u64> {
        self.saved_pages.clone()
    }

    fn page_records(&self, numbers: Range<u64>) -> impl Iterator<Item = (u64, PageRecord)> {
        let skipped = numbers.start - self.live_pages().start.min(numbers.start);
        let pages = self.pages.iter().skip(usize::try_from(skipped).unwrap_or(usize::MAX));
        numbers
            .zip(pages)
            .map(|(number, page)| (number, PageRecord { blocks: page.iter().copied().collect() }))
    }

    /// Without blocks, the empty range at the page after the last one that had any.
    fn live_pages(&self) -> Range<u64> {
        let end = self.next.div_ceil(PAGE_BLOCKS);
        end - self.pages.len() as u64..end
    }
}
