//! What every test message carries in its body, so that each one can be told from all others and from damage.

use bytes::{BufMut, Bytes, BytesMut};

/// Which message this is: given by its publisher, before it is sent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// The queue it is published to.
    pub queue: String,
    /// The publisher, numbered by the harness. Not the producer id of the protocol, which changes over a run.
    pub producer: u64,
    /// 1, 2, 3, ... for each publisher and queue.
    pub sequence: u64,
    /// Random; no two messages share it.
    pub uuid: u64,
}

/// A body that no publisher wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Garbled {
    /// What is wrong with it.
    pub why: &'static str,
}

/// Marks a body as one of ours.
const MAGIC: [u8; 4] = *b"SKTM";
const HEADER_BYTES: usize = MAGIC.len() + 4 + 3 * 8 + 2;

/// A body with this identity and a checksum over all of it, filled up to `body_bytes` where that is more.
///
/// # Panics
/// When the queue's name is longer than any name may be.
#[must_use]
pub fn seal(identity: &Identity, body_bytes: usize) -> Bytes {
    let name = identity.queue.as_bytes();
    let mut rest = BytesMut::with_capacity(body_bytes.max(HEADER_BYTES + name.len()));
    rest.put_u64(identity.producer);
    rest.put_u64(identity.sequence);
    rest.put_u64(identity.uuid);
    rest.put_u16(u16::try_from(name.len()).expect("names of queues are short"));
    rest.put_slice(name);
    // Filler that differs between messages, so that bytes of one cannot pass for bytes of another. Eight at a time:
    // load of many megabytes a second is made by programs that are not optimised.
    let bytes = body_bytes.saturating_sub(MAGIC.len() + 4).max(rest.len());
    let filler = identity.uuid.rotate_right(rest.len() as u32 % 8 * 8).to_le_bytes();
    while rest.len() < bytes {
        rest.put_slice(&filler);
    }
    rest.truncate(bytes);

    let mut body = BytesMut::with_capacity(rest.len() + MAGIC.len() + 4);
    body.put_slice(&MAGIC);
    body.put_u32(crc32c::crc32c(&rest));
    body.put_slice(&rest);
    body.freeze()
}

/// The identity in a body.
///
/// # Errors
/// When no publisher can have written these bytes.
pub fn open(body: &[u8]) -> Result<Identity, Garbled> {
    let garbled = |why| Garbled { why };
    let rest = body.strip_prefix(&MAGIC).ok_or(garbled("not a test message"))?;
    let (crc, rest) = rest.split_first_chunk::<4>().ok_or(garbled("cut short"))?;
    if u32::from_be_bytes(*crc) != crc32c::crc32c(rest) {
        return Err(garbled("bad checksum"));
    }
    let (producer, rest) = rest.split_first_chunk::<8>().ok_or(garbled("cut short"))?;
    let (sequence, rest) = rest.split_first_chunk::<8>().ok_or(garbled("cut short"))?;
    let (uuid, rest) = rest.split_first_chunk::<8>().ok_or(garbled("cut short"))?;
    let (name_bytes, rest) = rest.split_first_chunk::<2>().ok_or(garbled("cut short"))?;
    let name = rest.get(..usize::from(u16::from_be_bytes(*name_bytes))).ok_or(garbled("cut short"))?;
    Ok(Identity {
        queue: String::from_utf8(name.to_vec()).map_err(|_| garbled("queue name is not UTF-8"))?,
        producer: u64::from_be_bytes(*producer),
        sequence: u64::from_be_bytes(*sequence),
        uuid: u64::from_be_bytes(*uuid),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn opens_what_it_sealed_and_notices_any_damage(
            producer: u64, sequence: u64, uuid: u64, size in 0_usize..300,
            damage_at: prop::sample::Index, bit in 0_u32..8,
        ) {
            let identity = Identity { queue: "orders".to_owned(), producer, sequence, uuid };
            let mut body = seal(&identity, size).to_vec();
            prop_assert!(body.len() >= size);
            prop_assert_eq!(open(&body), Ok(identity));

            let at = damage_at.index(body.len());
            body[at] ^= 1_u8 << bit;
            prop_assert!(open(&body).is_err());
            body[at] ^= 1_u8 << bit;
            body.truncate(at);
            prop_assert!(open(&body).is_err());
        }

        #[test]
        fn never_panics(bytes: Vec<u8>) {
            prop_assert!(open(&bytes).is_err());
        }
    }
}
