//! Blocks at rest: each field takes as many bits as tell its values on this page apart.
//!
//! All rows are equally long, so that any of them is read without the ones before it, and looked for by halving.

use skein_proto::ids::Offset;

use super::{Block, BlockSpan, Properties, page::Place};

/// The fields of a [`Block`].
const FIELDS: usize = 10;

/// Rising blocks, to be read only.
#[derive(Debug)]
pub(super) struct Packed {
    /// The lowest value of each field, and then the rows without a bit between them: how far each field lies above its
    /// lowest value.
    words: Box<[u64]>,
    /// The bits of each field in a row.
    widths: [u8; FIELDS],
    row_count: u16,
}

impl Packed {
    pub(super) fn new(blocks: &[Block]) -> Self {
        let mut lows = [u64::MAX; FIELDS];
        let mut highs = [0; FIELDS];
        for values in blocks.iter().map(fields) {
            for field in 0..FIELDS {
                lows[field] = lows[field].min(values[field]);
                highs[field] = highs[field].max(values[field]);
            }
        }
        let mut widths = [0; FIELDS];
        for field in 0..FIELDS {
            let spread = highs[field].saturating_sub(lows[field]);
            widths[field] = u8::try_from(u64::BITS - spread.leading_zeros()).expect("64 at most");
        }
        let row_count = u16::try_from(blocks.len()).expect("a page has far fewer blocks");
        let mut packed = Self { words: Box::default(), widths, row_count };
        let bit_count = FIELDS * 64 + blocks.len() * packed.row_bits();
        let mut words = vec![0; bit_count.div_ceil(64)];
        words[..FIELDS].copy_from_slice(&lows);
        let mut at = FIELDS * 64;
        for values in blocks.iter().map(fields) {
            for field in 0..FIELDS {
                write(&mut words, at, widths[field], values[field] - lows[field]);
                at += usize::from(widths[field]);
            }
        }
        packed.words = words.into();
        packed
    }

    pub(super) fn len(&self) -> usize {
        self.row_count.into()
    }

    /// The block of a row, which must be there.
    pub(super) fn get(&self, row: usize) -> Block {
        let mut at = FIELDS * 64 + row * self.row_bits();
        let mut values = [0; FIELDS];
        for (field, value) in values.iter_mut().enumerate() {
            *value = self.words[field] + read(&self.words, at, self.widths[field]);
            at += usize::from(self.widths[field]);
        }
        block(values)
    }

    /// Where the block of a row lies. Reads no more than it takes to look for a row by halving.
    pub(super) fn place(&self, row: usize) -> Place {
        let mut at = FIELDS * 64 + row * self.row_bits();
        let mut next = |field: usize| {
            let value = self.words[field] + read(&self.words, at, self.widths[field]);
            at += usize::from(self.widths[field]);
            value
        };
        let (index, first, published_at_ms) = (next(0), next(1), next(2));
        at += usize::from(self.widths[3]) + usize::from(self.widths[4]);
        let count = self.words[5] + read(&self.words, at, self.widths[5]);
        Place { index, first: Offset::new(first), end: Offset::new(first + count), published_at_ms }
    }

    /// What it takes besides itself.
    pub(super) fn heap_bytes(&self) -> usize {
        size_of_val(&*self.words)
    }

    fn row_bits(&self) -> usize {
        self.widths.iter().copied().map(usize::from).sum()
    }
}

const fn fields(block: &Block) -> [u64; FIELDS] {
    let Block { index, first, published_at_ms, span, count, properties } = *block;
    let Properties { ttl_ms, deliver_at_ms, priority, key_slot } = properties;
    [
        index,
        first.get(),
        published_at_ms,
        span.position as u64,
        span.length as u64,
        count as u64,
        ttl_ms,
        deliver_at_ms,
        priority as u64,
        key_slot as u64,
    ]
}

fn block(fields: [u64; FIELDS]) -> Block {
    let [index, first, published_at_ms, position, length, count, ttl_ms, deliver_at_ms, priority, key_slot] =
        fields;
    let narrow = |value| u32::try_from(value).expect("it was one when it was packed");
    let priority = u8::try_from(priority).expect("it was one when it was packed");
    let key_slot = u16::try_from(key_slot).expect("it was one when it was packed");
    Block {
        index,
        first: Offset::new(first),
        published_at_ms,
        span: BlockSpan { position: narrow(position), length: narrow(length) },
        count: narrow(count),
        properties: Properties { ttl_ms, deliver_at_ms, priority, key_slot },
    }
}

/// The number of `width` bits that begins at bit `at`.
fn read(words: &[u64], at: usize, width: u8) -> u64 {
    if width == 0 {
        return 0;
    }
    let (word, shift) = (at / 64, at % 64);
    let mut value = words[word] >> shift;
    if shift + usize::from(width) > 64 {
        value |= words[word + 1] << (64 - shift);
    }
    value & (u64::MAX >> (64 - width))
}

/// Puts a number of `width` bits at bit `at`, where there are zeros.
fn write(words: &mut [u64], at: usize, width: u8, value: u64) {
    if width == 0 {
        return;
    }
    let (word, shift) = (at / 64, at % 64);
    words[word] |= value << shift;
    if shift + usize::from(width) > 64 {
        words[word + 1] |= value >> (64 - shift);
    }
}
