//! A batch of messages in its wire form: checked once when it arrives, then cut and passed on without being decoded.
//!
//! The wire form of `MessageBatch` is `(0x0a, length, message)*`. Checking walks the bytes of every message the way
//! a decoder would, so that what is stored can be decoded by whoever consumes it; it allocates nothing.

mod fields;
mod runs;
mod wire;

use bytes::Bytes;
use skein_proto::limits;

pub use self::fields::Fields;
use self::{
    runs::{DeliveryFields, Runs},
    wire::{MESSAGE_TAG, skip, take_delimited, take_message, take_tag, take_varint},
};
use crate::broker::BatchRun;

/// Fields of `Message` by number; see the schema.
const FIELD_BODY: u64 = 1;
const FIELD_KEY: u64 = 2;
const FIELD_HEADERS: u64 = 3;
const FIELD_MESSAGE_ID: u64 = 4;
const FIELDS_STRING: std::ops::RangeInclusive<u64> = 4..=7;
const FIELD_TTL_MS: u64 = 8;
const FIELD_DELIVER_AT_MS: u64 = 9;
const FIELD_DELAY_MS: u64 = 10;
const FIELD_PRIORITY: u64 = 11;

/// What is allowed of a message.
#[derive(Debug, Clone, Copy)]
pub struct MessageLimits {
    /// The largest one, encoded, in bytes.
    pub bytes_max: usize,
    /// The latest time of delivery, in milliseconds since the Unix epoch.
    pub deliver_at_ms_max: u64,
    /// The queue keeps the order of messages with the same key, so that keys are told apart.
    pub by_key: bool,
    /// Each message is a part of its own.
    pub one_by_one: bool,
}

impl MessageLimits {
    /// Messages up to this size, whenever they are to be delivered.
    #[must_use]
    pub const fn up_to(bytes_max: usize) -> Self {
        Self { bytes_max, deliver_at_ms_max: u64::MAX, by_key: false, one_by_one: false }
    }
}

/// A batch that was found to be sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// How many messages it has.
    pub count: u32,
    /// Its parts that are to be treated alike; none where all is ordinary.
    pub runs: Vec<BatchRun>,
}

/// Why a batch is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Nothing in it.
    #[error("the batch has no messages; send at least one")]
    Empty,
    /// Over the limit of bytes.
    #[error("the batch has {bytes} bytes, and {bytes_max} is the most; send smaller batches")]
    TooManyBytes {
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// Over the limit of messages.
    #[error("the batch has more than {messages_max} messages; send smaller batches")]
    TooManyMessages {
        /// The limit.
        messages_max: usize,
    },
    /// One message is over the limit.
    #[error(
        "message {position} of the batch has {bytes} bytes, and {bytes_max} is the most; \
         send a smaller one, or raise limits.message_bytes_max on every node"
    )]
    MessageTooLarge {
        /// Which one, counted from 0.
        position: usize,
        /// Its size, encoded.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// A number is out of range.
    #[error("message {position} of the batch has {field} {value}, and {value_max} is the most")]
    Property {
        /// Which one, counted from 0.
        position: usize,
        /// Which number.
        field: &'static str,
        /// What it is.
        value: u64,
        /// The most it may be.
        value_max: u64,
    },
    /// Not the protobuf it should be.
    #[error(
        "message {position} of the batch is not a skein.broker.v1.Message; encode it with the published \
        schema"
    )]
    Malformed {
        /// Which one, counted from 0.
        position: usize,
    },
}

/// Checks a batch, counts its messages, and finds those that are to be treated differently.
///
/// # Errors
/// See [`BatchError`].
pub fn check(batch: &[u8], limits: &MessageLimits) -> Result<Checked, BatchError> {
    if batch.len() > limits::BATCH_BYTES_MAX {
        return Err(BatchError::TooManyBytes { bytes: batch.len(), bytes_max: limits::BATCH_BYTES_MAX });
    }
    let mut rest = batch;
    let mut position = 0;
    let mut runs = Runs::new(limits.one_by_one);
    while !rest.is_empty() {
        if position == limits::BATCH_MESSAGES_MAX {
            return Err(BatchError::TooManyMessages { messages_max: limits::BATCH_MESSAGES_MAX });
        }
        let before = rest.len();
        let message = take_message(&mut rest).ok_or(BatchError::Malformed { position })?;
        if message.len() > limits.bytes_max {
            let bytes = message.len();
            return Err(BatchError::MessageTooLarge { position, bytes, bytes_max: limits.bytes_max });
        }
        let mut delivery = check_message(message).ok_or(BatchError::Malformed { position })?;
        if limits.by_key {
            delivery.key_slot = key_slot(Fields::of(message).key());
        }
        delivery.check(limits, position)?;
        runs.push(delivery, before - rest.len());
        position += 1;
    }
    match u32::try_from(position).expect("bounded by BATCH_MESSAGES_MAX") {
        0 => Err(BatchError::Empty),
        count => Ok(Checked { count, runs: runs.finish() }),
    }
}

/// See [`Properties::key_slot`](crate::broker::Properties::key_slot). Of a thousand keys some fifteen share their slot
/// with another one, and wait for each other.
fn key_slot(key: &[u8]) -> u16 {
    if key.is_empty() {
        return 0;
    }
    let slot = crc32c::crc32c(key) % u32::from(u16::MAX);
    u16::try_from(slot).expect("a remainder is smaller than the divisor") + 1
}

/// The part of a checked batch that holds `take` messages after the first `skip`. Shares the batch's memory.
/// `None` when the batch has fewer, or was never checked.
#[must_use]
pub fn cut(batch: &Bytes, skip: u32, take: u32) -> Option<Bytes> {
    let mut rest = &batch[..];
    for _ in 0..skip {
        take_message(&mut rest)?;
    }
    let start = batch.len() - rest.len();
    for _ in 0..take {
        take_message(&mut rest)?;
    }
    Some(batch.slice(start..batch.len() - rest.len()))
}

/// The messages of a checked batch, one by one. Shares the batch's memory.
pub fn messages(batch: &Bytes) -> impl Iterator<Item = Bytes> {
    let mut rest = &batch[..];
    std::iter::from_fn(move || take_message(&mut rest).map(|message| batch.slice_ref(message)))
}

/// The messages of a checked batch one by one: each as it lies in the batch, and without what marks it there.
pub fn encoded_messages(batch: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = batch;
    std::iter::from_fn(move || {
        let before = rest;
        let message = take_message(&mut rest)?;
        Some((&before[..before.len() - rest.len()], message))
    })
}

/// A checked batch in parts whose messages are all wanted, or all not. Shares the batch's memory.
pub fn split(batch: &Bytes, wants: impl Fn(&[u8]) -> bool) -> Vec<(bool, u32, Bytes)> {
    let mut parts: Vec<(bool, u32, std::ops::Range<usize>)> = Vec::new();
    let mut rest = &batch[..];
    while let Some(message) = take_message(&mut rest) {
        let is_wanted = wants(message);
        let end = batch.len() - rest.len();
        match parts.last_mut() {
            Some((last, count, range)) if *last == is_wanted => {
                *count += 1;
                range.end = end;
            }
            last => {
                let start = last.map_or(0, |(_, _, range)| range.end);
                parts.push((is_wanted, 1, start..end));
            }
        }
    }
    parts.into_iter().map(|(is_wanted, count, range)| (is_wanted, count, batch.slice(range))).collect()
}

/// Wraps one encoded message as a batch of one, with more encoded fields at its end.
#[must_use]
pub fn single(message: &[u8], more_fields: &[u8]) -> Bytes {
    let mut batch = Vec::with_capacity(message.len() + more_fields.len() + 6);
    batch.push(MESSAGE_TAG);
    prost::encode_length_delimiter(message.len() + more_fields.len(), &mut batch)
        .expect("a Vec has room for ten bytes more");
    batch.extend_from_slice(message);
    batch.extend_from_slice(more_fields);
    batch.into()
}

fn check_message(mut rest: &[u8]) -> Option<DeliveryFields> {
    let mut delivery = DeliveryFields::default();
    while !rest.is_empty() {
        let (field, wire_type) = take_tag(&mut rest)?;
        match (field, wire_type) {
            (FIELD_BODY | FIELD_KEY, 2) => drop(take_delimited(&mut rest)?),
            (FIELD_HEADERS, 2) => check_header(take_delimited(&mut rest)?)?,
            (field, 2) if FIELDS_STRING.contains(&field) => check_string(take_delimited(&mut rest)?)?,
            (FIELD_TTL_MS, 0) => delivery.ttl_ms = take_varint(&mut rest)?,
            (FIELD_DELIVER_AT_MS, 0) => delivery.deliver_at_ms = take_varint(&mut rest)?,
            (FIELD_DELAY_MS, 0) => delivery.delay_ms = take_varint(&mut rest)?,
            (FIELD_PRIORITY, 0) => delivery.priority = take_varint(&mut rest)?,
            (field, _) if field <= FIELD_PRIORITY => return None,
            (_, wire_type) => skip(&mut rest, wire_type)?,
        }
    }
    Some(delivery)
}

/// A map entry: field 1 the name, a string; field 2 the value, bytes.
fn check_header(mut rest: &[u8]) -> Option<()> {
    while !rest.is_empty() {
        match take_tag(&mut rest)? {
            (1, 2) => check_string(take_delimited(&mut rest)?)?,
            (2, 2) => drop(take_delimited(&mut rest)?),
            (1 | 2, _) => return None,
            (_, wire_type) => skip(&mut rest, wire_type)?,
        }
    }
    Some(())
}

fn check_string(bytes: &[u8]) -> Option<()> {
    std::str::from_utf8(bytes).ok().map(drop)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection, prelude::*};
    use prost::Message as _;
    use skein_proto::broker::{Message, MessageBatch};

    use super::*;
    use crate::broker::Properties;

    const ANY: MessageLimits = MessageLimits { deliver_at_ms_max: 1_000, ..MessageLimits::up_to(1 << 20) };

    fn any_message() -> impl Strategy<Value = Message> {
        let bytes = || collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        let headers = collection::btree_map(".{0,8}", bytes(), 0..4);
        let numbers = prop_oneof![
            3 => Just((0, 0, 0, 0)),
            1 => (0..3_u64, 0..3_u64, 0..3_u64, 0..3_u32),
        ];
        (bytes(), bytes(), headers, ".{0,8}", numbers).prop_map(
            |(body, key, headers, message_id, numbers)| {
                let (ttl_ms, deliver_at_ms, delay_ms, priority) = numbers;
                let message = Message { body, key, headers, message_id, ..Message::default() };
                Message { ttl_ms, deliver_at_ms, delay_ms, priority, ..message }
            },
        )
    }

    /// What is wrong with a batch.
    fn refused(batch: &[u8], bytes_max: usize) -> Option<BatchError> {
        check(batch, &MessageLimits { bytes_max, ..ANY }).err()
    }

    /// How each message of a batch is to be treated, by its parts.
    fn treated(batch: &Bytes) -> Vec<(Message, Properties, u64)> {
        let Checked { count, runs } = check(batch, &ANY).unwrap();
        let whole =
            BatchRun { count, length: batch.len() as u32, properties: Properties::default(), delay_ms: 0 };
        let mut rest = batch.clone();
        let mut treated = Vec::new();
        for run in if runs.is_empty() { vec![whole] } else { runs } {
            let messages = MessageBatch::decode(rest.split_to(run.length as usize)).unwrap().messages;
            assert_eq!(messages.len(), run.count as usize);
            treated.extend(messages.into_iter().map(|message| (message, run.properties, run.delay_ms)));
        }
        assert!(rest.is_empty());
        treated
    }

    proptest! {
        #[test]
        fn what_a_client_encodes_is_accepted_and_cut_as_it_was(
            messages in collection::vec(any_message(), 1..20),
            at in any::<(prop::sample::Index, prop::sample::Index)>(),
        ) {
            let bytes = Bytes::from(MessageBatch { messages: messages.clone() }.encode_to_vec());
            let checked = check(&bytes, &ANY).unwrap();
            prop_assert_eq!(checked.count, messages.len() as u32);
            let expected: Vec<_> = messages.iter().cloned().map(|message| {
                let Message { ttl_ms, deliver_at_ms, delay_ms, priority, .. } = message;
                let properties = Properties { ttl_ms, deliver_at_ms, priority: priority as u8, key_slot: 0 };
                (message, properties, delay_ms)
            }).collect();
            prop_assert_eq!(treated(&bytes), expected);
            let ordinary = |message: &Message| {
                (message.ttl_ms, message.deliver_at_ms, message.delay_ms, message.priority) == (0, 0, 0, 0)
            };
            prop_assert_eq!(checked.runs.is_empty(), messages.iter().all(ordinary));
            let skip = at.0.index(messages.len());
            let take = at.1.index(messages.len() - skip + 1);
            let part = cut(&bytes, skip as u32, take as u32).unwrap();
            prop_assert_eq!(&MessageBatch::decode(part).unwrap().messages[..], &messages[skip..skip + take]);
            let mut rest = &messages[..];
            for (is_wanted, count, part) in split(&bytes, |message| Fields::of(message).key().len().is_multiple_of(2)) {
                let (expected, after) = rest.split_at(count as usize);
                prop_assert_eq!(&MessageBatch::decode(part).unwrap().messages[..], expected);
                prop_assert!(expected.iter().all(|message| message.key.len().is_multiple_of(2) == is_wanted));
                rest = after;
            }
            prop_assert!(rest.is_empty());
            for message in &messages {
                let encoded = message.encode_to_vec();
                for (name, value) in &message.headers {
                    prop_assert_eq!(Fields::of(&encoded).header(name), Some(&value[..]));
                }
                prop_assert_eq!(Fields::of(&encoded).header("no such header"), None);
            }
        }

        #[test]
        fn what_is_accepted_decodes(
            messages in collection::vec(any_message(), 1..4),
            flips in collection::vec(any::<(prop::sample::Index, u8)>(), 0..6),
        ) {
            let mut bytes = MessageBatch { messages }.encode_to_vec();
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Ok(checked) = check(&bytes, &ANY) {
                let decoded = MessageBatch::decode(&bytes[..]);
                prop_assert_eq!(decoded.map(|batch| batch.messages.len() as u32), Ok(checked.count));
            }
        }
    }

    #[test]
    fn each_limit_has_its_error() {
        let batch = |messages: Vec<Message>| MessageBatch { messages }.encode_to_vec();
        let body = |bytes: usize| Message { body: vec![7; bytes].into(), ..Message::default() };
        assert_eq!(refused(&[], 10), Some(BatchError::Empty));
        assert_eq!(
            refused(&batch(vec![body(1), body(9)]), 10),
            Some(BatchError::MessageTooLarge { position: 1, bytes: 11, bytes_max: 10 })
        );
        assert_eq!(
            refused(&batch(vec![Message::default(); limits::BATCH_MESSAGES_MAX + 1]), 10),
            Some(BatchError::TooManyMessages { messages_max: limits::BATCH_MESSAGES_MAX })
        );
        assert!(matches!(
            refused(&vec![0; limits::BATCH_BYTES_MAX + 1], 10),
            Some(BatchError::TooManyBytes { .. })
        ));
        assert_eq!(refused(b"GET / HTTP/1.1", 10), Some(BatchError::Malformed { position: 0 }));
    }

    #[test]
    fn a_number_out_of_range_is_named() {
        let ordinary = Message::default();
        let wrong = [
            ("ttl_ms", Message { ttl_ms: u64::MAX, ..ordinary.clone() }),
            ("deliver_at_ms", Message { deliver_at_ms: 1_001, ..ordinary.clone() }),
            ("delay_ms", Message { delay_ms: limits::DELAY_MS_MAX + 1, ..ordinary.clone() }),
            ("priority", Message { priority: 10, ..ordinary.clone() }),
        ];
        for (wrong_field, message) in wrong {
            let batch = MessageBatch { messages: vec![ordinary.clone(), message] }.encode_to_vec();
            match refused(&batch, 100) {
                Some(BatchError::Property { position: 1, field, .. }) => assert_eq!(field, wrong_field),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn fields_added_at_the_end_join_the_message() {
        let headers = |name: &str| BTreeMap::from([(name.to_owned(), Bytes::from_static(b"x"))]);
        let message = Message { body: "b".into(), headers: headers("one"), ..Message::default() };
        let more = Message { headers: headers("two"), ..Message::default() };
        let batch = single(&message.encode_to_vec(), &more.encode_to_vec());
        assert_eq!(check(&batch, &ANY), Ok(Checked { count: 1, runs: Vec::new() }));
        let joined = MessageBatch::decode(batch).unwrap().messages.remove(0);
        assert_eq!(joined.body, "b");
        assert_eq!(joined.headers.len(), 2);
    }
}
