//! Messages, and the bytes in which a batch of them travels.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::{Message as _, encoding};
use skein_proto::{broker, partitions};

use crate::{
    error::MalformedMessage,
    wire_time::{unix_ms, wall_time},
};

/// The key of `MessageBatch.messages` on the wire: field 1, length-delimited.
const BATCH_FIELD_KEY: u8 = field_key(1);

/// One message: a body, and what travels with it.
///
/// ```
/// # use skein_client::Message;
/// let order = Message::new("two geese").key("customer-7").header("trace", "4bf9").content_type("text/plain");
/// assert_eq!(order.body, "two geese");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// The content.
    pub body: Bytes,
    /// Messages about the same thing carry the same key. May be empty.
    pub key: Bytes,
    /// Whatever else the receiver should know.
    pub headers: BTreeMap<String, Bytes>,
    /// Identifies the message to the application. May be empty.
    pub message_id: String,
    /// Tells which request this is an answer to. May be empty.
    pub correlation_id: String,
    /// The queue that answers should go to. May be empty.
    pub reply_to: String,
    /// The media type of the body. May be empty.
    pub content_type: String,
    /// How long it may wait for a consumer, from when it was published or became due; then it is given up. Without one,
    /// as long as its queue says. In whole milliseconds, at least one.
    pub ttl: Option<Duration>,
    /// It is not delivered before this time, at most a year ahead. In whole milliseconds.
    pub deliver_at: Option<SystemTime>,
    /// It is not delivered before this long after it was published, at most a year. In whole milliseconds, at least
    /// one. Where there is a `deliver_at` as well, the later one counts.
    pub delay: Option<Duration>,
    /// 0 to 9: of the messages that wait, those with the highest go first.
    pub priority: u8,
}

impl Message {
    /// A message that is only a body.
    #[must_use]
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::default() }
    }

    /// Sets the key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = key.into();
        self
    }

    /// Adds a header, or replaces the one of that name.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// Adds headers, replacing those of the same names.
    #[must_use]
    pub fn headers<N: Into<String>, V: Into<Bytes>>(
        mut self,
        headers: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.headers.extend(headers.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// Sets the id by which the application knows the message.
    #[must_use]
    pub fn message_id(mut self, message_id: impl Into<String>) -> Self {
        self.message_id = message_id.into();
        self
    }

    /// Sets the id of the request that this message answers.
    #[must_use]
    pub fn correlation_id(mut self, correlation_id: impl Into<String>) -> Self {
        self.correlation_id = correlation_id.into();
        self
    }

    /// Sets the queue that answers should go to.
    #[must_use]
    pub fn reply_to(mut self, queue: impl Into<String>) -> Self {
        self.reply_to = queue.into();
        self
    }

    /// Sets the media type of the body.
    #[must_use]
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = content_type.into();
        self
    }

    /// Sets how long it may wait for a consumer before it is given up.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Sets the time until which it is held back.
    #[must_use]
    pub fn deliver_at(mut self, time: SystemTime) -> Self {
        self.deliver_at = Some(time);
        self
    }

    /// Sets how long it is held back after it was published.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// Sets the priority, 0 to 9.
    #[must_use]
    pub fn priority(mut self, priority: u8) -> Self {
        self.priority = priority;
        self
    }

    pub(crate) fn from_wire(bytes: Bytes) -> Result<Self, MalformedMessage> {
        broker::Message::decode(bytes).map(Self::from).map_err(|_| MalformedMessage)
    }
}

impl From<&'static str> for Message {
    fn from(body: &'static str) -> Self {
        Self::new(body)
    }
}

impl From<Vec<u8>> for Message {
    fn from(body: Vec<u8>) -> Self {
        Self::new(body)
    }
}

impl From<Bytes> for Message {
    fn from(body: Bytes) -> Self {
        Self::new(body)
    }
}

impl From<broker::Message> for Message {
    fn from(wire: broker::Message) -> Self {
        let duration = |ms: u64| (ms != 0).then(|| Duration::from_millis(ms));
        Self {
            body: wire.body,
            key: wire.key,
            headers: wire.headers,
            message_id: wire.message_id,
            correlation_id: wire.correlation_id,
            reply_to: wire.reply_to,
            content_type: wire.content_type,
            ttl: duration(wire.ttl_ms),
            deliver_at: (wire.deliver_at_ms != 0).then(|| wall_time(wire.deliver_at_ms)),
            delay: duration(wire.delay_ms),
            // Nodes take none over 9; whatever else comes is as high as can be said.
            priority: u8::try_from(wire.priority).unwrap_or(u8::MAX),
        }
    }
}

/// A message with the number of its encoded bytes, so that they are counted once.
///
/// Encoded by hand: the generated code compares every empty `bytes` field with a constant, byte by byte across a crate
/// boundary. Measured, that was two thirds of what it costs to send a message of 100 bytes.
#[derive(Debug)]
pub(crate) struct EncodableMessage {
    message: Message,
    message_bytes: usize,
}

impl EncodableMessage {
    pub(crate) fn new(message: Message) -> Self {
        let headers = message.headers.iter().map(|(name, value)| nested_len(header_len(name, value)));
        let message_bytes = message.plain_fields().map(|(_, field)| field_len(field)).iter().sum::<usize>()
            + message.number_fields().map(|(_, number)| number_len(number)).iter().sum::<usize>()
            + headers.sum::<usize>();
        Self { message, message_bytes }
    }

    /// The message itself, encoded.
    pub(crate) fn message_bytes(&self) -> usize {
        self.message_bytes
    }

    /// What it adds to a batch: field key, length and the message.
    pub(crate) fn batch_bytes(&self) -> usize {
        nested_len(self.message_bytes)
    }

    /// Appends it to an encoded `MessageBatch`.
    pub(crate) fn append_to(&self, batch: &mut BytesMut) {
        batch.reserve(self.batch_bytes());
        put_key(batch, BATCH_FIELD_KEY, self.message_bytes);
        for (key, field) in self.message.plain_fields() {
            put_field(batch, key, field);
        }
        for (name, value) in &self.message.headers {
            put_key(batch, field_key(3), header_len(name, value));
            put_field(batch, field_key(1), name.as_bytes());
            put_field(batch, field_key(2), value);
        }
        for (key, number) in self.message.number_fields() {
            put_number(batch, key, number);
        }
    }

    pub(crate) fn message(&self) -> &Message {
        &self.message
    }

    pub(crate) fn into_message(self) -> Message {
        self.message
    }
}

impl Message {
    /// What decides to which partition of a queue it goes, if anything does.
    pub(crate) fn spread_by(&self) -> Option<&[u8]> {
        partitions::spread_by(&self.key, self.message_id.as_bytes())
    }

    /// The fields that are bytes or text, with their keys on the wire.
    fn plain_fields(&self) -> [(u8, &[u8]); 6] {
        [
            (field_key(1), &self.body),
            (field_key(2), &self.key),
            (field_key(4), self.message_id.as_bytes()),
            (field_key(5), self.correlation_id.as_bytes()),
            (field_key(6), self.reply_to.as_bytes()),
            (field_key(7), self.content_type.as_bytes()),
        ]
    }

    /// The fields that are numbers, with their keys on the wire.
    fn number_fields(&self) -> [(u8, u64); 4] {
        [
            (number_key(8), self.ttl.map_or(0, whole_ms)),
            (number_key(9), self.deliver_at.map_or(0, unix_ms)),
            (number_key(10), self.delay.map_or(0, whole_ms)),
            (number_key(11), self.priority.into()),
        ]
    }
}

/// Milliseconds, and never 0, which would say that there is no limit.
fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// The key of a length-delimited field.
const fn field_key(number: u8) -> u8 {
    number << 3 | 2
}

/// The key of a number, a varint.
const fn number_key(number: u8) -> u8 {
    number << 3
}

fn header_len(name: &str, value: &[u8]) -> usize {
    field_len(name.as_bytes()) + field_len(value)
}

/// An empty field is left out.
fn field_len(field: &[u8]) -> usize {
    if field.is_empty() { 0 } else { nested_len(field.len()) }
}

/// A number that is 0 is left out.
fn number_len(number: u64) -> usize {
    if number == 0 { 0 } else { 1 + encoding::encoded_len_varint(number) }
}

/// Key, length and content.
fn nested_len(content_bytes: usize) -> usize {
    1 + prost::length_delimiter_len(content_bytes) + content_bytes
}

fn put_field(batch: &mut BytesMut, key: u8, field: &[u8]) {
    if !field.is_empty() {
        put_key(batch, key, field.len());
        batch.put_slice(field);
    }
}

fn put_number(batch: &mut BytesMut, key: u8, number: u64) {
    if number != 0 {
        batch.put_u8(key);
        encoding::encode_varint(number, batch);
    }
}

fn put_key(batch: &mut BytesMut, key: u8, content_bytes: usize) {
    batch.put_u8(key);
    prost::encode_length_delimiter(content_bytes, batch).expect("the buffer grows");
}

/// Takes an encoded `MessageBatch` apart, message by message, without copying bodies.
#[derive(Debug, Clone)]
pub(crate) struct BatchReader {
    rest: Bytes,
}

impl BatchReader {
    pub(crate) fn new(batch: Bytes) -> Self {
        Self { rest: batch }
    }

    /// What has not been read, still encoded.
    pub(crate) fn into_rest(self) -> Bytes {
        self.rest
    }

    fn read(&mut self) -> Result<Message, MalformedMessage> {
        if self.rest.get_u8() != BATCH_FIELD_KEY {
            return Err(MalformedMessage);
        }
        let message_bytes = prost::decode_length_delimiter(&mut self.rest).map_err(|_| MalformedMessage)?;
        if message_bytes > self.rest.len() {
            return Err(MalformedMessage);
        }
        Message::from_wire(self.rest.split_to(message_bytes))
    }
}

impl Iterator for BatchReader {
    type Item = Result<Message, MalformedMessage>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let message = self.read();
        if message.is_err() {
            self.rest.clear();
        }
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, option, prelude::*};

    use super::*;

    fn any_message() -> impl Strategy<Value = Message> {
        let bytes = || collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
        let headers = collection::btree_map(".{0,8}", bytes(), 0..3);
        let texts = [".{0,20}", ".{0,20}", ".{0,20}", ".{0,20}"];
        (bytes(), bytes(), headers, texts, any_schedule()).prop_map(
            |(body, key, headers, texts, schedule)| {
                let [message_id, correlation_id, reply_to, content_type] = texts;
                Message { body, key, headers, message_id, correlation_id, reply_to, content_type, ..schedule }
            },
        )
    }

    /// What a message says of when it is to be delivered, in the milliseconds that travel.
    fn any_schedule() -> impl Strategy<Value = Message> {
        let ms = || option::of(prop_oneof![1..200_u64, 1..=i64::MAX as u64]);
        (ms(), ms(), ms(), any::<u8>()).prop_map(|(ttl, deliver_at, delay, priority)| Message {
            ttl: ttl.map(Duration::from_millis),
            deliver_at: deliver_at.map(wall_time),
            delay: delay.map(Duration::from_millis),
            priority,
            ..Message::default()
        })
    }

    proptest! {
        #[test]
        fn a_batch_reads_as_the_schema_says_and_by_us(messages in collection::vec(any_message(), 0..20)) {
            let mut batch = BytesMut::new();
            let mut expected_bytes = 0;
            for message in &messages {
                let message = EncodableMessage::new(message.clone());
                expected_bytes += message.batch_bytes();
                message.append_to(&mut batch);
            }
            prop_assert_eq!(batch.len(), expected_bytes);

            let by_schema = broker::MessageBatch::decode(batch.clone().freeze()).unwrap();
            let by_schema: Vec<_> = by_schema.messages.into_iter().map(Message::from).collect();
            prop_assert_eq!(&by_schema, &messages);

            let by_us: Result<Vec<_>, _> = BatchReader::new(batch.freeze()).collect();
            prop_assert_eq!(by_us.unwrap(), messages);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in collection::vec(any::<u8>(), 0..200)) {
            BatchReader::new(Bytes::from(bytes)).for_each(drop);
        }
    }

    #[test]
    fn the_shortest_durations_are_a_millisecond_and_the_past_is_left_out() {
        let message = Message::new("body")
            .ttl(Duration::ZERO)
            .delay(Duration::from_micros(1))
            .deliver_at(wall_time(0) - Duration::from_secs(1));
        let mut batch = BytesMut::new();
        EncodableMessage::new(message).append_to(&mut batch);
        let read: Result<Vec<_>, _> = BatchReader::new(batch.freeze()).collect();
        let millisecond = Duration::from_millis(1);
        assert_eq!(read.unwrap(), [Message::new("body").ttl(millisecond).delay(millisecond)]);
    }

    #[test]
    fn a_cut_batch_is_an_error() {
        let mut batch = BytesMut::new();
        EncodableMessage::new(Message::new("body")).append_to(&mut batch);
        batch.truncate(batch.len() - 1);
        let read: Vec<_> = BatchReader::new(batch.freeze()).collect();
        assert_eq!(read, [Err(MalformedMessage)]);
    }
}
