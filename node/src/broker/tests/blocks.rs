//! Blocks against a list of them, and what they take in memory.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use proptest::{collection::vec, prelude::*};
use skein_proto::ids::{Offset, QueueId};

use super::range_of;
use crate::{
    broker::{
        Block, BlockSpan, Live, PAGE_BLOCKS, PageRecord, Properties, SavedPages, Spill, blocks::Blocks,
        live::LiveTally, packed::Packed, page::Sums,
    },
    offsets::{OffsetRange, OffsetSet},
};

#[derive(Debug, Clone)]
enum Step {
    /// How many blocks, and how each follows from the one before it.
    Push(u64, Block),
    /// Below this share of what was published.
    DropBelow(u64),
    /// From this share of what was published on, as many messages.
    DropInside(u64, u64),
    Checkpoint,
    /// After a checkpoint; so many bytes stay.
    Spill(u64),
    Restart(u64),
}

const QUEUE: QueueId = QueueId::new(1);

/// Shares are of this many parts.
const PARTS: u64 = 100;

fn step() -> impl Strategy<Value = Step> {
    let rise = (0..3_u64, 0..2_000_u64, 0..9_000_u32, 1..9_000_u32, 1..70_u32).prop_map(
        |(index, published_at_ms, position, length, count)| Block {
            index,
            first: Offset::ZERO,
            published_at_ms,
            span: BlockSpan { position, length },
            count,
            properties: Properties {
                ttl_ms: 0,
                deliver_at_ms: u64::from(position) % 2,
                ..Properties::default()
            },
        },
    );
    prop_oneof![
        3 => (1..700_u64, rise).prop_map(|(count, rise)| Step::Push(count, rise)),
        1 => (0..PARTS / 2).prop_map(Step::DropBelow),
        6 => (0..PARTS, 0..20_000_u64).prop_map(|(first, count)| Step::DropInside(first, count)),
        1 => Just(Step::Checkpoint),
        2 => (0..4_000_u64).prop_map(Step::Spill),
        1 => (0..4_000_u64).prop_map(Step::Restart),
    ]
}

/// Blocks, a list of the same, and the pages that a checkpoint has.
struct Checked {
    blocks: Blocks,
    list: Vec<Block>,
    last: Block,
    saved: Arc<SavedHere>,
}

/// What a checkpoint has, and how often it was asked for a page.
#[derive(Debug, Default)]
struct SavedHere {
    pages: Mutex<BTreeMap<u64, PageRecord>>,
    reads: AtomicUsize,
}

impl SavedPages for SavedHere {
    fn read(&self, queue: QueueId, page: u64) -> PageRecord {
        assert_eq!(queue, QUEUE);
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.pages.lock().unwrap()[&page].clone()
    }
}

impl SavedHere {
    fn spill(self: &Arc<Self>, keep_bytes: u64) -> Spill {
        Spill { pages: Arc::clone(self) as _, keep_bytes }
    }
}

impl Checked {
    fn new() -> Self {
        let span = BlockSpan { position: 0, length: 0 };
        let last = Block {
            index: 0,
            first: Offset::ZERO,
            published_at_ms: 0,
            span,
            count: 0,
            properties: Properties::default(),
        };
        Self { blocks: Blocks::starting_at(0), list: Vec::new(), last, saved: Arc::default() }
    }

    fn run(&mut self, step: &Step) {
        let share = |parts| Offset::new(self.last.end().get() / PARTS * parts);
        match *step {
            Step::Push(count, rise) => (0..count).for_each(|_| self.push(&rise)),
            Step::DropBelow(parts) => {
                let first_offset = share(parts);
                self.blocks.drop_below(first_offset);
                self.list.retain(|block| block.end() > first_offset);
            }
            Step::DropInside(parts, count) => {
                let range = OffsetRange::new(share(parts), count);
                self.blocks.drop_inside(range);
                self.list.retain(|block| block.first < range.first || block.end() > range.end());
            }
            Step::Checkpoint => self.checkpoint(),
            Step::Spill(keep_bytes) => {
                self.checkpoint();
                self.blocks.spill(QUEUE, self.blocks.row_bytes(), &self.saved.spill(keep_bytes));
            }
            Step::Restart(keep_bytes) => {
                self.checkpoint();
                let first_offset = self.list.first().map_or(self.last.end(), |block| block.first);
                self.blocks = Blocks::starting_at(self.blocks.next_number());
                let pages = self.saved.pages.lock().unwrap().clone();
                for (&number, page) in &pages {
                    self.blocks.restore_page(number, page).unwrap();
                    if self.blocks.row_bytes() > keep_bytes {
                        self.blocks.spill_last(QUEUE, &self.saved.spill(0).pages);
                    }
                }
                self.blocks.drop_below(first_offset);
            }
        }
    }

    fn push(&mut self, rise: &Block) {
        self.last = Block {
            index: self.last.index + rise.index,
            first: self.last.end(),
            published_at_ms: self.last.published_at_ms + rise.published_at_ms,
            ..*rise
        };
        self.blocks.push(self.last);
        self.list.push(self.last);
    }

    fn checkpoint(&mut self) {
        let (gone, written) = self.blocks.take_changes();
        let mut saved = self.saved.pages.lock().unwrap();
        saved.retain(|number, _| !gone.contains(number));
        saved.extend(written);
        let numbers: Vec<_> = self.blocks.page_numbers().collect();
        assert_eq!(saved.keys().copied().collect::<Vec<_>>(), numbers);
        assert_eq!(self.blocks.saved_pages().collect::<Vec<_>>(), numbers);
    }

    fn check(&self, offsets: OffsetRange, entries: &[Range<u64>]) {
        assert_eq!(self.blocks.iter().collect::<Vec<_>>(), self.list);
        let live = |range: &Range<u64>| {
            let mut sums = Sums::default();
            self.list.iter().filter(|block| range.contains(&block.index)).for_each(|block| {
                sums += Sums::of(block);
            });
            sums
        };
        assert_eq!(self.blocks.sums(), live(&(0..u64::MAX)));
        let mut tally = LiveTally::new(entries);
        self.blocks.tally_live(&mut tally);
        let expected: Vec<Live> = entries.iter().map(|range| live(range).live()).collect();
        assert_eq!(tally.answer(entries), expected);
        for range in entries {
            let inside: Vec<_> =
                self.list.iter().filter(|block| range.contains(&block.index)).copied().collect();
            assert_eq!(self.blocks.in_entries(range.clone()).collect::<Vec<_>>(), inside);
        }
        for offset in [offsets.first, offsets.end()] {
            let next = self.list.iter().find(|block| block.end() > offset).copied();
            assert_eq!(self.blocks.first_ending_after(offset), next);
            assert_eq!(self.blocks.find(offset), next.filter(|block| block.first <= offset));
        }
        let mut gaps: OffsetSet = [offsets].into_iter().collect();
        self.list.iter().for_each(|block| gaps.remove(OffsetRange::between(block.first, block.end())));
        let found = self.blocks.gaps(offsets).collect::<OffsetSet>();
        assert_eq!(found, gaps);
    }
}

proptest! {
    #[test]
    fn blocks_match_a_list(
        steps in vec(step(), 1..20),
        offsets in (0..100_000_u64, 0..50_000_u64),
        entries in vec((0..3_000_u64, 0..2_000_u64), 0..8),
    ) {
        let entries: Vec<_> = entries.into_iter().map(|(first, count)| first..first + count).collect();
        let mut checked = Checked::new();
        for step in &steps {
            checked.run(step);
            checked.check(range_of(offsets.0, offsets.1), &entries);
        }
    }

    #[test]
    fn packed_blocks_come_back(fields in vec(any::<(u64, u32, u64, u32, u32, u32, (u64, u64, u8, u16))>(), 0..300)) {
        let blocks: Vec<_> = fields
            .into_iter()
            .map(|(index, first, published_at_ms, position, length, count, properties)| Block {
                index,
                first: Offset::new(first.into()),
                published_at_ms,
                span: BlockSpan { position, length },
                count,
                properties: Properties {
                    ttl_ms: properties.0,
                    deliver_at_ms: properties.1,
                    priority: properties.2,
                    key_slot: properties.3,
                },
            })
            .collect();
        let packed = Packed::new(&blocks);
        prop_assert_eq!((0..packed.len()).map(|row| packed.get(row)).collect::<Vec<_>>(), &blocks[..]);
        for (row, block) in blocks.iter().enumerate() {
            let place = packed.place(row);
            let expected = (block.index, block.first, block.published_at_ms);
            prop_assert_eq!((place.index, place.first, place.published_at_ms), expected);
            prop_assert_eq!(place.end, block.end());
        }
    }
}

/// What a busy shard makes: entries with several batches of one queue among others, a few milliseconds apart, and now
/// and then a pause or a large batch.
fn busy(n: u64, count: u32) -> Block {
    let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let length = if n.is_multiple_of(1_000) { 1 << 20 } else { count * (20 + mixed as u32 % 2_000) };
    Block {
        index: 7_000_000_000 + 3 * n,
        first: Offset::new(5_000_000_000 + n * u64::from(count)),
        published_at_ms: 1_700_000_000_000 + 11 * n + n / 10_000 * 3_600_000,
        span: BlockSpan { position: mixed as u32 % (1 << 20), length },
        count,
        properties: Properties::default(),
    }
}

#[test]
fn a_block_takes_few_bytes() {
    const BLOCKS: u64 = 100_000;
    let bytes_per_block = |count| {
        let mut blocks = Blocks::starting_at(0);
        (0..BLOCKS).for_each(|n| blocks.push(busy(n, count)));
        assert_eq!(blocks.iter().last(), Some(busy(BLOCKS - 1, count)));
        blocks.memory_bytes() as f64 / BLOCKS as f64
    };
    let (single, batches) = (bytes_per_block(1), bytes_per_block(64));
    assert!(single <= 16.0, "{single} bytes for each block");
    assert!(batches / 64.0 <= 2.0, "{batches} bytes for each block of 64 messages");
}

#[test]
fn spilled_pages_take_next_to_nothing_and_are_read_when_they_are_needed() {
    const BLOCKS: u64 = 1_000 * PAGE_BLOCKS;
    let mut checked = Checked::new();
    (0..BLOCKS).for_each(|n| checked.blocks.push(busy(n, 1)));
    let full_bytes = checked.blocks.memory_bytes();
    let spill = checked.saved.spill(0);
    checked.blocks.spill(QUEUE, checked.blocks.row_bytes(), &spill);
    assert_eq!(checked.blocks.memory_bytes(), full_bytes, "no checkpoint has them");
    checked.checkpoint();
    checked.blocks.spill(QUEUE, checked.blocks.row_bytes(), &spill);
    let reads = || checked.saved.reads.load(Ordering::Relaxed);
    let bytes_per_block = checked.blocks.memory_bytes() as f64 / BLOCKS as f64;
    assert!(bytes_per_block < 1.5, "{bytes_per_block} bytes for each block");

    // What the pages come to, and where they begin and end, is known without them.
    let (first, offset) = (busy(0, 1).first, busy(700 * PAGE_BLOCKS + 9, 1).first);
    let reach = OffsetRange::between(first, busy(BLOCKS - 1, 1).end());
    assert_eq!(checked.blocks.gaps(reach).next(), None);
    checked.blocks.drop_below(busy(10 * PAGE_BLOCKS, 1).first);
    assert_eq!(reads(), 0);
    assert_eq!(checked.blocks.find(offset), Some(busy(700 * PAGE_BLOCKS + 9, 1)));
    assert_eq!(checked.blocks.find(offset.plus(1)), Some(busy(700 * PAGE_BLOCKS + 10, 1)));
    assert_eq!(reads(), 1);
    assert!(checked.blocks.row_bytes() > 0);
    checked.blocks.spill(QUEUE, checked.blocks.row_bytes(), &spill);
    assert_eq!(checked.blocks.find(offset), Some(busy(700 * PAGE_BLOCKS + 9, 1)));
    assert_eq!(reads(), 2);
}

#[test]
fn pages_that_contradict_each_other_are_refused() {
    let block = |n: u64| Block { first: Offset::new(n), ..busy(n, 1) };
    let page = |blocks: Range<u64>| PageRecord { blocks: blocks.map(block).collect() };
    let restore = |pages: &[(u64, PageRecord)]| {
        let mut blocks = Blocks::starting_at(PAGE_BLOCKS + 5);
        pages.iter().try_for_each(|(number, page)| blocks.restore_page(*number, page))
    };
    let holes = |page: &PageRecord| PageRecord { blocks: page.blocks.iter().copied().step_by(3).collect() };
    assert_eq!(restore(&[(0, page(0..256)), (1, page(256..261))]), Ok(()));
    assert_eq!(restore(&[(0, holes(&page(0..256))), (1, page(258..260))]), Ok(()));
    let reversed = PageRecord { blocks: [block(2), block(1)].into() };
    let overlapping = PageRecord { blocks: [Block { count: 3, ..block(1) }, block(2)].into() };
    let endless = PageRecord { blocks: [Block { first: Offset::new(u64::MAX), ..block(1) }].into() };
    let empty = PageRecord { blocks: [Block { count: 0, ..block(1) }].into() };
    let back_in_time = PageRecord { blocks: [block(1), Block { index: 0, ..block(2) }].into() };
    for page in [page(0..0), page(0..257), reversed, overlapping, endless, empty, back_in_time] {
        assert!(restore(&[(0, page.clone())]).is_err(), "{page:?}");
    }
    for (first, second) in [((1, page(0..5)), (1, page(5..9))), ((0, page(0..6)), (1, page(5..9)))] {
        assert!(restore(&[first, second]).is_err());
    }
    for number in [1, 2, u64::MAX] {
        assert!(restore(&[(number, page(0..6))]).is_err(), "page {number} is not so long");
    }
}
