//! Puts right the checksums and lengths of bytes that were made up: without that, nearly none of them are read.

use super::{
    BATCH_HEADER_BYTES, BATCH_MAGIC, BLOCK_BYTES, RECORD_HEADER_BYTES, SEGMENT_MAGIC, Seed, SegmentHeader,
    header_check, pad_to_block, put, record_bytes, u32_at,
};

/// Where a batch header says what is to be left wrong: a byte that nothing reads.
const BATCH_CHOICES_AT: usize = 28;

/// What is to be left wrong in a batch.
mod keep {
    pub(super) const PAYLOAD_CHECKSUMS: u8 = 1;
    pub(super) const RECORD_HEADERS: u8 = 2;
    pub(super) const NUMBERS: u8 = 4;
    pub(super) const RECORDS_CHECKSUM: u8 = 8;
}

/// The batch at the start of these bytes, padded. Its records reach as far as the bytes.
pub(in crate::log) fn reseal_batch(bytes: &[u8], seed: Seed) -> Vec<u8> {
    let mut batch = bytes.to_vec();
    batch.resize(pad_to_block(bytes.len().max(BATCH_HEADER_BYTES)), 0);
    let choices = batch[BATCH_CHOICES_AT];
    let is_kept = |part: u8| choices & part != 0;
    let (mut at, mut record_count, mut records_checksum) = (BATCH_HEADER_BYTES, 0_u32, seed.0);
    while at + RECORD_HEADER_BYTES <= bytes.len() {
        let room = bytes.len() - at - RECORD_HEADER_BYTES;
        let mut payload_bytes = u32_at(&batch, at + 4) as usize;
        if payload_bytes > room {
            if is_kept(keep::NUMBERS) {
                break;
            }
            payload_bytes = room;
            put(&mut batch, at + 4, as_u32(room).to_le_bytes());
        }
        let end = at + RECORD_HEADER_BYTES + payload_bytes;
        if !is_kept(keep::RECORD_HEADERS) {
            let check = header_check(&batch[at..], seed);
            put(&mut batch, at + 9, check);
        }
        if !is_kept(keep::PAYLOAD_CHECKSUMS) {
            let checksum = seed.checksum(&batch[at + 4..end]);
            put(&mut batch, at, checksum.to_le_bytes());
        }
        records_checksum = crc32c::crc32c_append(records_checksum, &batch[at..at + 4]);
        record_count += 1;
        at += record_bytes(payload_bytes);
    }
    put(&mut batch, 0, BATCH_MAGIC);
    if !is_kept(keep::NUMBERS) {
        put(&mut batch, 16, as_u32(at).to_le_bytes());
        put(&mut batch, 20, record_count.to_le_bytes());
    }
    if !is_kept(keep::RECORDS_CHECKSUM) {
        put(&mut batch, 24, records_checksum.to_le_bytes());
    }
    let checksum = seed.checksum(&batch[8..BATCH_HEADER_BYTES]);
    put(&mut batch, 4, checksum.to_le_bytes());
    batch
}

/// Makes the block the header of a segment of this length.
pub(in crate::log) fn reseal_header(block: &mut [u8; BLOCK_BYTES], segment_bytes: u64) {
    put(block, 0, SEGMENT_MAGIC);
    put(block, 40, segment_bytes.to_le_bytes());
    let checksum = SegmentHeader::checksum(block);
    put(block, 12, checksum.to_le_bytes());
}

fn as_u32(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("inputs are small")
}
