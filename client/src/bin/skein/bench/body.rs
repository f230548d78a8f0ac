//! Bodies that tell who sent them, as which message, and when.

use bytes::{BufMut, Bytes, BytesMut};

/// Producer, sequence and send time.
pub(super) const BODY_BYTES_MIN: usize = 4 + 8 + 8;

/// Bytes that are allocated at a time; one allocation serves many bodies.
const CHUNK_BYTES: usize = 64 << 10;

/// What a body tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) producer: u32,
    pub(super) sequence: u64,
    /// Nanoseconds since the measurement began.
    pub(super) sent_ns: u64,
}

/// Makes bodies of one size.
#[derive(Debug)]
pub(super) struct BodyMaker {
    body_bytes: usize,
    chunk: BytesMut,
}

impl BodyMaker {
    pub(super) fn new(body_bytes: usize) -> Self {
        Self { body_bytes: body_bytes.max(BODY_BYTES_MIN), chunk: BytesMut::new() }
    }

    pub(super) fn make(&mut self, stamp: Stamp) -> Bytes {
        if self.chunk.capacity() < self.body_bytes {
            self.chunk = BytesMut::with_capacity(self.body_bytes.max(CHUNK_BYTES));
        }
        self.chunk.put_u32_le(stamp.producer);
        self.chunk.put_u64_le(stamp.sequence);
        self.chunk.put_u64_le(stamp.sent_ns);
        self.chunk.put_bytes(0, self.body_bytes - BODY_BYTES_MIN);
        self.chunk.split().freeze()
    }
}

impl Stamp {
    /// None for a body that was not made here.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let (producer, rest) = body.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let (sent_ns, _) = rest.split_first_chunk()?;
        Some(Self {
            producer: u32::from_le_bytes(*producer),
            sequence: u64::from_le_bytes(*sequence),
            sent_ns: u64::from_le_bytes(*sent_ns),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_their_size_and_tell_their_stamp() {
        for body_bytes in [BODY_BYTES_MIN, 100, CHUNK_BYTES + 1] {
            let mut maker = BodyMaker::new(body_bytes);
            for sequence in 0..2_000 {
                let stamp = Stamp { producer: 7, sequence, sent_ns: u64::MAX - sequence };
                let body = maker.make(stamp);
                assert_eq!(body.len(), body_bytes);
                assert_eq!(Stamp::read(&body), Some(stamp));
            }
        }
        assert_eq!(Stamp::read(b"short"), None);
    }
}
