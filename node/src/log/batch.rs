//! The buffer that batches are put together in, aligned as direct writes demand.

use super::format::{BLOCK_BYTES, pad_to_block};
use crate::disk::WRITE_ALIGNMENT_BYTES;

/// The size that a batch is filled up to, in bytes. Beyond a few MiB a larger write is no faster per byte, and whoever
/// waits for the batch waits longer.
pub(super) const BATCH_BYTES_MAX: usize = 4 << 20;
/// The most records in a batch. Bounds the time between a batch being durable and the last callback.
pub(super) const BATCH_RECORDS_MAX: usize = 4096;

/// Bytes whose first lies at a multiple of [`WRITE_ALIGNMENT_BYTES`] in memory. Made once and used for every batch.
#[derive(Default)]
pub(super) struct AlignedBuffer {
    storage: Vec<u8>,
    start: usize,
}

impl AlignedBuffer {
    /// `bytes` of the buffer, a multiple of a block. What they hold is left from earlier use.
    pub(super) fn take(&mut self, bytes: usize) -> &mut [u8] {
        assert_eq!(bytes, pad_to_block(bytes), "writes are whole blocks");
        let is_too_small = self.start + bytes > self.storage.len();
        // A single huge entry must not hold its memory for ever.
        let is_far_too_large = self.storage.len() > 2 * BATCH_BYTES_MAX && bytes <= BATCH_BYTES_MAX;
        if is_too_small || is_far_too_large {
            let wanted = bytes.max(16 * BLOCK_BYTES).next_power_of_two();
            self.storage = vec![0; wanted + WRITE_ALIGNMENT_BYTES];
            self.start = self.storage.as_ptr().align_offset(WRITE_ALIGNMENT_BYTES);
        }
        &mut self.storage[self.start..self.start + bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_aligned_at_every_size() {
        let mut buffer = AlignedBuffer::default();
        for blocks in [1, 3, 1000, 5000, 2, 700] {
            let bytes = buffer.take(blocks * BLOCK_BYTES);
            assert_eq!(bytes.len(), blocks * BLOCK_BYTES);
            assert_eq!(bytes.as_ptr().addr() % WRITE_ALIGNMENT_BYTES, 0);
        }
        assert!(buffer.storage.len() <= 2 * BATCH_BYTES_MAX, "a huge batch's memory is given back");
    }
}
