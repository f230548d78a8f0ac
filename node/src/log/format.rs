//! How segments, batches and records lie on disk. The bytes are drawn in `docs/log-format.md`.

use std::fmt;

use bytes::Bytes;
use skein_proto::ids::ShardId;

use super::Entry;
use crate::disk::WRITE_ALIGNMENT_BYTES;

/// The version of the format that this program writes, and the newest that it reads.
pub(super) const FORMAT_VERSION: u32 = 1;
/// Segment headers and batches start on a multiple of this, so that a durable block is never written again.
pub(super) const BLOCK_BYTES: usize = WRITE_ALIGNMENT_BYTES;
/// The size of a batch's header, before its first record.
pub(super) const BATCH_HEADER_BYTES: usize = 32;
/// The size of a record's header, before its payload.
pub(super) const RECORD_HEADER_BYTES: usize = 32;
/// The size of a sealed segment's last bytes, which say where its index lies.
pub(super) const TRAILER_BYTES: usize = 32;

/// The highest number of a segment or a batch. No log gets there, and counting on from it overflows nothing.
pub(super) const NUMBER_MAX: u64 = u64::MAX >> 1;

const SEGMENT_MAGIC: [u8; 8] = *b"SKEINSEG";
const BATCH_MAGIC: [u8; 4] = *b"SKBT";
const TRAILER_MAGIC: [u8; 4] = *b"SKIX";
const RECORD_ALIGNMENT_BYTES: usize = 8;

/// The number of a segment: 1, 2, 3, ... over the log's whole life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SegmentNumber(u64);

impl SegmentNumber {
    pub(super) const FIRST: Self = Self(1);

    pub(super) const fn new(raw: u64) -> Self {
        Self(raw)
    }

    pub(super) const fn get(self) -> u64 {
        self.0
    }

    pub(super) const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for SegmentNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:020}", self.0)
    }
}

/// Where checksums start from: different for every segment of every log, so that what a recycled file held before
/// never passes for new, and nobody can publish a message that passes for a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seed(u32);

impl Seed {
    pub(super) fn new(log_id: u64, segment: SegmentNumber) -> Self {
        let from_log = crc32c::crc32c(&log_id.to_le_bytes());
        Self(crc32c::crc32c_append(from_log, &segment.0.to_le_bytes()))
    }

    fn checksum(self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.0, bytes)
    }
}

/// The first block of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) log_id: u64,
    pub(super) segment: SegmentNumber,
    pub(super) first_batch: u64,
    pub(super) segment_bytes: u64,
}

/// Why a block is no segment header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderProblem {
    Unreadable,
    NewerVersion { found: u32 },
}

impl SegmentHeader {
    /// Fills the block.
    pub(super) fn encode(&self, block: &mut [u8]) {
        assert_eq!(block.len(), BLOCK_BYTES, "a segment header fills one block");
        block.fill(0);
        put(block, 0, SEGMENT_MAGIC);
        put(block, 8, FORMAT_VERSION.to_le_bytes());
        put(block, 16, self.log_id.to_le_bytes());
        put(block, 24, self.segment.0.to_le_bytes());
        put(block, 32, self.first_batch.to_le_bytes());
        put(block, 40, self.segment_bytes.to_le_bytes());
        let checksum = Self::checksum(block);
        put(block, 12, checksum.to_le_bytes());
    }

    /// Magic, version and checksum keep their places in every version, so that a newer one is told from damage.
    pub(super) fn decode(block: &[u8]) -> Result<Self, HeaderProblem> {
        assert_eq!(block.len(), BLOCK_BYTES, "a segment header fills one block");
        if block[..8] != SEGMENT_MAGIC || u32_at(block, 12) != Self::checksum(block) {
            return Err(HeaderProblem::Unreadable);
        }
        match u32_at(block, 8) {
            FORMAT_VERSION if u64_at(block, 32) > NUMBER_MAX => Err(HeaderProblem::Unreadable),
            FORMAT_VERSION => Ok(Self {
                log_id: u64_at(block, 16),
                segment: SegmentNumber(u64_at(block, 24)),
                first_batch: u64_at(block, 32),
                segment_bytes: u64_at(block, 40),
            }),
            found => Err(HeaderProblem::NewerVersion { found }),
        }
    }

    fn checksum(block: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&block[..12]), &block[16..])
    }
}

/// What precedes the records that were written and made durable together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchHeader {
    /// 1, 2, 3, ... over the log's whole life.
    pub(super) number: u64,
    /// Header and records, without the padding to the next block.
    pub(super) bytes: u32,
    pub(super) record_count: u32,
    /// Over the records' own checksums: what is left of two torn batches never passes for one.
    pub(super) records_checksum: u32,
}

impl BatchHeader {
    /// Header, records and padding.
    pub(super) fn padded_bytes(&self) -> usize {
        pad_to_block(self.bytes as usize)
    }

    fn encode(&self, out: &mut [u8], seed: Seed) {
        put(out, 0, BATCH_MAGIC);
        put(out, 8, self.number.to_le_bytes());
        put(out, 16, self.bytes.to_le_bytes());
        put(out, 20, self.record_count.to_le_bytes());
        put(out, 24, self.records_checksum.to_le_bytes());
        put(out, 28, [0; 4]);
        let checksum = seed.checksum(&out[8..BATCH_HEADER_BYTES]);
        put(out, 4, checksum.to_le_bytes());
    }

    /// The header at the start of `bytes`, if one of this segment is there.
    pub(super) fn decode(bytes: &[u8], seed: Seed) -> Option<Self> {
        let bytes = bytes.first_chunk::<BATCH_HEADER_BYTES>()?;
        let sound = has_batch_magic(bytes)
            && u32_at(bytes, 4) == seed.checksum(&bytes[8..])
            && u32_at(bytes, 16) as usize >= BATCH_HEADER_BYTES
            && u64_at(bytes, 8) <= NUMBER_MAX;
        sound.then(|| Self {
            number: u64_at(bytes, 8),
            bytes: u32_at(bytes, 16),
            record_count: u32_at(bytes, 20),
            records_checksum: u32_at(bytes, 24),
        })
    }
}

/// Whether a batch of some segment of some log might start here.
pub(super) fn has_batch_magic(bytes: &[u8]) -> bool {
    bytes.starts_with(&BATCH_MAGIC)
}

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A raft entry.
    Entry = 1,
    /// The shard's vote.
    Vote = 2,
    /// How far the shard's log is known to be committed.
    Committed = 3,
    /// Entries from `index` on are gone.
    Truncate = 4,
    /// Entries up to `index`, of `term`, are gone.
    Purge = 5,
    /// Parts of an entry that are still needed though the entry itself is not, or is damaged.
    Kept = 6,
    /// Where a sealed segment's entries lie.
    Index = 7,
    /// What was known of the shard when the segment was begun.
    State = 8,
    /// These segments are no longer part of the log.
    Retire = 9,
    /// These segments, and no others before this one, are part of the log.
    Segments = 10,
}

impl Kind {
    /// As `docs/log-format.md` has it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Entry => "entry",
            Self::Vote => "vote",
            Self::Committed => "committed",
            Self::Truncate => "truncate",
            Self::Purge => "purge",
            Self::Kept => "kept",
            Self::Index => "index",
            Self::State => "state",
            Self::Retire => "retire",
            Self::Segments => "segments",
        }
    }

    fn from_raw(raw: u8) -> Option<Self> {
        use Kind::{Committed, Entry, Index, Kept, Purge, Retire, Segments, State, Truncate, Vote};
        [Entry, Vote, Committed, Truncate, Purge, Kept, Index, State, Retire, Segments]
            .into_iter()
            .find(|kind| *kind as u8 == raw)
    }
}

/// One thing to write down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) shard: ShardId,
    pub(super) index: u64,
    pub(super) term: u64,
    pub(super) payload: Bytes,
}

impl Record {
    pub(super) fn entry(shard: ShardId, entry: &Entry) -> Self {
        let payload = entry.payload.clone();
        Self { kind: Kind::Entry, shard, index: entry.index, term: entry.term, payload }
    }

    pub(super) fn vote(shard: ShardId, vote: Bytes) -> Self {
        Self { kind: Kind::Vote, shard, index: 0, term: 0, payload: vote }
    }

    pub(super) fn committed(shard: ShardId, committed: Bytes) -> Self {
        Self { kind: Kind::Committed, shard, index: 0, term: 0, payload: committed }
    }

    pub(super) fn truncate(shard: ShardId, first_removed: u64) -> Self {
        Self { kind: Kind::Truncate, shard, index: first_removed, term: 0, payload: Bytes::new() }
    }

    pub(super) fn purge(shard: ShardId, index: u64, term: u64) -> Self {
        Self { kind: Kind::Purge, shard, index, term, payload: Bytes::new() }
    }

    pub(super) fn state(shard: ShardId, outline: Bytes) -> Self {
        Self { kind: Kind::State, shard, index: 0, term: 0, payload: outline }
    }

    pub(super) fn kept(shard: ShardId, index: u64, term: u64, parts: Bytes) -> Self {
        Self { kind: Kind::Kept, shard, index, term, payload: parts }
    }

    pub(super) fn retire(numbers: Bytes) -> Self {
        Self::of_log(Kind::Retire, numbers)
    }

    pub(super) fn segments(runs: Bytes) -> Self {
        Self::of_log(Kind::Segments, runs)
    }

    pub(super) fn index_block(payload: Bytes) -> Self {
        Self::of_log(Kind::Index, payload)
    }

    /// One that concerns no shard in particular.
    fn of_log(kind: Kind, payload: Bytes) -> Self {
        Self { kind, shard: ShardId::CATALOG, index: 0, term: 0, payload }
    }

    /// What the record takes in a batch.
    pub(super) fn encoded_bytes(&self) -> usize {
        record_bytes(self.payload.len())
    }
}

/// What a record with such a payload takes in a batch.
pub(super) const fn record_bytes(payload_bytes: usize) -> usize {
    RECORD_HEADER_BYTES + payload_bytes.next_multiple_of(RECORD_ALIGNMENT_BYTES)
}

/// The next multiple of a block.
pub(super) const fn pad_to_block(bytes: usize) -> usize {
    bytes.next_multiple_of(BLOCK_BYTES)
}

/// Writes a batch over the whole of `out`, whose length is that of the padded batch.
///
/// # Panics
/// When `out` is not exactly the size it takes.
pub(super) fn encode_batch<'a>(
    out: &mut [u8],
    seed: Seed,
    number: u64,
    records: impl Iterator<Item = &'a Record>,
) {
    let mut at = BATCH_HEADER_BYTES;
    let mut record_count = 0;
    let mut records_checksum = seed.0;
    for record in records {
        let end = at + record.encoded_bytes();
        let checksum = encode_record(&mut out[at..end], seed, record);
        records_checksum = crc32c::crc32c_append(records_checksum, &checksum);
        record_count += 1;
        at = end;
    }
    assert_eq!(out.len(), pad_to_block(at), "the batch fills its blocks");
    out[at..].fill(0);
    let bytes = u32::try_from(at).expect("a batch fits a segment, which is below 4 GiB");
    BatchHeader { number, bytes, record_count, records_checksum }.encode(out, seed);
}

fn encode_record(out: &mut [u8], seed: Seed, record: &Record) -> [u8; 4] {
    let payload_bytes =
        u32::try_from(record.payload.len()).expect("a payload fits a segment, which is below 4 GiB");
    put(out, 4, payload_bytes.to_le_bytes());
    put(out, 8, [record.kind as u8]);
    put(out, 12, record.shard.get().to_le_bytes());
    put(out, 16, record.index.to_le_bytes());
    put(out, 24, record.term.to_le_bytes());
    let check = header_check(out, seed);
    put(out, 9, check);
    let end = RECORD_HEADER_BYTES + record.payload.len();
    out[RECORD_HEADER_BYTES..end].copy_from_slice(&record.payload);
    out[end..].fill(0);
    let checksum = seed.checksum(&out[4..end]).to_le_bytes();
    put(out, 0, checksum);
    checksum
}

/// Over a record's header alone, so that a record with a damaged payload still says what it was.
fn header_check(bytes: &[u8], seed: Seed) -> [u8; 3] {
    let kind_and_length = seed.checksum(&bytes[4..9]);
    let [low, middle, high, _] =
        crc32c::crc32c_append(kind_and_length, &bytes[12..RECORD_HEADER_BYTES]).to_le_bytes();
    [low, middle, high]
}

/// A record whose checksum was right, or at least that of its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) kind: Kind,
    pub(super) shard: ShardId,
    pub(super) index: u64,
    pub(super) term: u64,
    pub(super) payload_bytes: usize,
}

/// Why bytes are no record, or no batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsound {
    /// They are not what was written.
    Checksum,
    /// The payload of this record is not what was written.
    Payload(RecordHeader),
    /// They are, but by a program that knows more.
    UnknownKind(u8),
}

/// The record at the start of `bytes`.
pub(super) fn decode_record(bytes: &[u8], seed: Seed) -> Result<RecordHeader, Unsound> {
    let header = bytes.first_chunk::<RECORD_HEADER_BYTES>().ok_or(Unsound::Checksum)?;
    if header[9..12] != header_check(header, seed) {
        return Err(Unsound::Checksum);
    }
    let record = RecordHeader {
        kind: Kind::from_raw(header[8]).ok_or(Unsound::UnknownKind(header[8]))?,
        shard: ShardId::new(u32_at(header, 12)),
        index: u64_at(header, 16),
        term: u64_at(header, 24),
        payload_bytes: u32_at(header, 4) as usize,
    };
    if record.index == u64::MAX {
        // Nothing has that index: no range of indexes could end behind it.
        return Err(Unsound::Checksum);
    }
    let summed = bytes.get(4..RECORD_HEADER_BYTES + record.payload_bytes).ok_or(Unsound::Checksum)?;
    match u32_at(header, 0) == seed.checksum(summed) {
        true => Ok(record),
        false => Err(Unsound::Payload(record)),
    }
}

/// A record's place, in bytes from its batch's start, and what its header says.
pub(super) type PlacedRecord = (usize, RecordHeader);

/// The records of a batch, and which of them have a damaged payload, if every header is right. A batch that was cut off
/// while it was being written may look the same.
pub(super) fn decode_batch(
    bytes: &[u8],
    header: &BatchHeader,
    seed: Seed,
) -> Result<(Vec<PlacedRecord>, Vec<PlacedRecord>), Unsound> {
    let bytes = bytes.get(..header.bytes as usize).ok_or(Unsound::Checksum)?;
    let (mut records, mut damaged) = (Vec::new(), Vec::new());
    let mut records_checksum = seed.0;
    let mut at = BATCH_HEADER_BYTES;
    while at < bytes.len() {
        let record = match decode_record(&bytes[at..], seed) {
            Ok(record) => record,
            Err(Unsound::Payload(record)) => {
                damaged.push((at, record));
                record
            }
            Err(unsound) => return Err(unsound),
        };
        records_checksum = crc32c::crc32c_append(records_checksum, &bytes[at..at + 4]);
        records.push((at, record));
        at += record_bytes(record.payload_bytes);
    }
    let is_whole = at == bytes.len() && records.len() == header.record_count as usize;
    // The checksum of a damaged record may be what is damaged.
    let is_sound = is_whole && (records_checksum == header.records_checksum || !damaged.is_empty());
    if is_sound { Ok((records, damaged)) } else { Err(Unsound::Checksum) }
}

/// The last bytes of a sealed segment: where its index lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trailer {
    /// Where the batch with the index starts; it reaches to the end of the segment.
    pub(super) index_offset: u64,
}

impl Trailer {
    pub(super) fn encode(&self, out: &mut [u8], seed: Seed) {
        assert_eq!(out.len(), TRAILER_BYTES, "the trailer has a fixed size");
        out.fill(0);
        put(out, 0, TRAILER_MAGIC);
        put(out, 8, self.index_offset.to_le_bytes());
        let checksum = seed.checksum(&out[8..]);
        put(out, 4, checksum.to_le_bytes());
    }

    pub(super) fn decode(bytes: &[u8], seed: Seed) -> Option<Self> {
        let bytes = bytes.first_chunk::<TRAILER_BYTES>()?;
        let sound = bytes.starts_with(&TRAILER_MAGIC) && u32_at(bytes, 4) == seed.checksum(&bytes[8..]);
        sound.then(|| Self { index_offset: u64_at(bytes, 8) })
    }
}

fn put<const N: usize>(out: &mut [u8], at: usize, bytes: [u8; N]) {
    out[at..at + N].copy_from_slice(&bytes);
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod reseal;
#[cfg(test)]
mod tests;
