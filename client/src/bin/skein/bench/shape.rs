//! What messages of a measurement ask for, besides being carried.

use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use skein_client::{Filter, Message, QueueSettings};
use skein_proto::limits::PARTITIONS_MAX;

use crate::args;

/// Keys of messages that groups want, and of others.
const WANTED: &str = "wanted";
const OTHER: &str = "other";

/// For how long ids are looked for.
const DEDUP_WINDOW: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct Shape {
    /// Give messages the priorities 0 to 9 in turn.
    #[arg(long)]
    priority: bool,
    /// Let messages be delivered so much later, such as 500ms.
    #[arg(long, value_parser = args::duration, value_name = "TIME")]
    delay: Option<Duration>,
    /// Give messages a time to live.
    #[arg(long, value_parser = args::duration, value_name = "TIME")]
    ttl: Option<Duration>,
    /// Let groups want only every second message, by its key.
    #[arg(long)]
    filter: bool,
    /// Give messages so many keys in turn, and let the queues keep the order of each.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "filter")]
    keys: Option<u64>,
    /// Let each queue consist of so many partitions.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=i64::from(PARTITIONS_MAX)))]
    #[arg(conflicts_with = "bindings")]
    partitions: Option<u32>,
    /// Give each message an id, and let queues look for those of the last three seconds.
    #[arg(long)]
    dedup: bool,
    /// Publish to a topic with so many bindings, of which each message matches one, and which share out the queues.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    #[arg(conflicts_with_all = ["filter", "keys"])]
    bindings: Option<u64>,
}

impl Shape {
    /// The message of a producer with this number.
    pub(super) fn message(&self, producer: u32, sequence: u64, body: Bytes) -> Message {
        let mut message = Message::new(body);
        if self.priority {
            message.priority = (sequence % 10) as u8;
        }
        if self.filter {
            message.key = Bytes::from_static(if self.wants(sequence) { WANTED } else { OTHER }.as_bytes());
        }
        if let Some(count) = self.keys {
            message.key = (sequence % count).to_string().into();
        }
        if let Some(count) = self.bindings {
            message.key = format!("bench.{}.event", sequence % count).into();
        }
        if self.dedup {
            message.message_id = format!("{producer}-{sequence}");
        }
        message.delay = self.delay;
        message.ttl = self.ttl;
        message
    }

    /// The bindings of the topic that is published to; none where queues are.
    pub(super) fn bindings(&self) -> impl Iterator<Item = Filter> + use<> {
        (0..self.bindings.unwrap_or_default()).map(|number| Filter::key_matches(format!("bench.{number}.*")))
    }

    /// What queues are to be like.
    pub(super) fn settings(&self) -> QueueSettings {
        QueueSettings {
            order_by_key: self.keys.is_some(),
            partitions: self.partitions,
            dedup_window: self.dedup.then_some(DEDUP_WINDOW),
            ..QueueSettings::default()
        }
    }

    /// Whether groups want the message with this number.
    pub(super) fn wants(&self, sequence: u64) -> bool {
        !self.filter || sequence.is_multiple_of(2)
    }

    /// What groups want; none for everything.
    pub(super) fn filter(&self) -> Option<Filter> {
        self.filter.then(|| Filter::key_equals(WANTED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_as_they_were_asked_for() {
        let plain = Shape::default().message(0, 7, Bytes::from_static(b"x"));
        assert_eq!(plain, Message::new("x"));
        let (delay, ttl) = (Some(Duration::from_millis(5)), Some(Duration::from_secs(9)));
        let shape = Shape { priority: true, delay, ttl, filter: true, ..Shape::default() };
        let message = shape.message(0, 17, Bytes::new());
        assert_eq!((message.priority, message.delay, message.ttl), (7, delay, ttl));
        assert_eq!((&message.key[..], shape.wants(17)), (&b"other"[..], false));
        assert!(!shape.settings().order_by_key);
        assert_eq!((&shape.message(0, 18, Bytes::new()).key[..], shape.wants(18)), (&b"wanted"[..], true));
        let keyed = Shape { keys: Some(10), ..Shape::default() };
        assert_eq!(
            (&keyed.message(0, 17, Bytes::new()).key[..], keyed.settings().order_by_key),
            (&b"7"[..], true)
        );
    }
}
