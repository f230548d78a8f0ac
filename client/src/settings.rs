//! How a queue treats its messages.

mod update;

use std::time::Duration;

use skein_proto::broker::{self, Reason};
use tonic::Code;

pub use self::update::{QueueUpdate, Setting};
use crate::error::{Cause, Error};

/// How a queue treats its messages. What is not set, or 0, is as the cluster sees fit. Durations are in whole
/// milliseconds, and what is shorter than one is one.
///
/// ```
/// # use std::time::Duration;
/// # use skein_client::{QueueSettings, Retention};
/// let settings = QueueSettings {
///     retention: Retention::Limits,
///     max_age: Some(Duration::from_secs(24 * 60 * 60)),
///     ..QueueSettings::default()
/// };
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueSettings {
    /// Deliveries after which a message is given up: moved to the dead-letter queue, or dropped without one. 20
    /// unless set.
    pub max_deliveries: Option<u32>,
    /// Where messages go that are given up; must exist.
    pub dead_letter_queue: Option<String>,
    /// How long a consumer may hold a message before it is delivered again. 30 s unless set, at most a day.
    pub lease: Option<Duration>,
    /// How long a message that came back waits before it is delivered again, unless its consumer said how long. At once
    /// unless set, at most a day.
    pub redelivery_delay: Option<Duration>,
    /// The most that the delay grows to. An hour unless set, at most a day.
    pub redelivery_delay_max: Option<Duration>,
    /// By what the delay grows each time the message comes back. 2 unless set.
    pub redelivery_delay_multiplier: Option<u32>,
    /// What becomes of messages that every group has acked.
    pub retention: Retention,
    /// How long messages are kept, with [`Retention::Limits`]. For ever unless set.
    pub max_age: Option<Duration>,
    /// The most messages that are kept. As many as come unless set.
    pub max_messages: Option<u64>,
    /// The most bytes of messages that are kept. As many as come unless set.
    pub max_bytes: Option<u64>,
    /// What happens when as much is kept as may be. As the retention suggests unless set: publishes are refused with
    /// [`Retention::UntilAcked`], the oldest messages go with [`Retention::Limits`].
    pub overflow: Option<Overflow>,
    /// How long a message may wait for a consumer, from when it was published or became due; then it is given up. A
    /// shorter time of its own counts instead. For ever unless set.
    pub message_ttl: Option<Duration>,
    /// Only one consumer of a group gets messages; when it goes, the next one does.
    pub single_active_consumer: bool,
    /// The queue is deleted when for so long nobody has published to it or consumed from it. Never unless set.
    pub expires: Option<Duration>,
    /// Of what is delivered while messages of several priorities wait, this percentage are the ones that have waited
    /// longest among the less urgent. None unless set, at most 50.
    pub lower_priority_percent: Option<u32>,
    /// Messages with the same key go to one consumer at a time, in order: the next one when the one before is settled.
    /// Messages without a key go to anybody. Holds for what is published from then on.
    pub order_by_key: bool,
    /// A message with the id of one that was published less than this long ago is confirmed, and not stored again. An
    /// hour at most; two minutes are usual. Ids are not looked at when it is not set.
    pub dedup_window: Option<Duration>,
    /// How many queues it consists of, over which its messages are spread by their keys; they are called like it, with
    /// their numbers behind a slash. One queue unless set. Can only be raised, and not on one queue; at most 256.
    pub partitions: Option<u32>,
}

/// What becomes of messages that every group has acked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Retention {
    /// They are deleted. Without groups everything is kept, for the first one.
    #[default]
    UntilAcked,
    /// They are kept, and can be read again, until they are too old or too many.
    Limits,
}

/// What happens when a queue has as many messages or bytes as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// A batch that does not fit is refused with [`Reason::QueueFull`].
    RejectPublish,
    /// The oldest messages go. With [`Retention::UntilAcked`] groups that have not acked them give them up.
    DropOldest,
}

impl QueueSettings {
    pub(crate) fn try_into_wire(self) -> Result<broker::QueueSettings, Error> {
        let overflow = self.overflow.map_or(broker::Overflow::Default, |overflow| match overflow {
            Overflow::RejectPublish => broker::Overflow::RejectPublish,
            Overflow::DropOldest => broker::Overflow::DropOldest,
        });
        let retention = match self.retention {
            Retention::UntilAcked => broker::Retention::UntilAcked,
            Retention::Limits => broker::Retention::Limits,
        };
        Ok(broker::QueueSettings {
            max_deliveries: self.max_deliveries.unwrap_or_default(),
            dead_letter_queue: self.dead_letter_queue.unwrap_or_default(),
            lease_ms: short_ms("lease", self.lease)?,
            redelivery_delay_ms: short_ms("redelivery delay", self.redelivery_delay)?,
            redelivery_delay_max_ms: short_ms("longest redelivery delay", self.redelivery_delay_max)?,
            redelivery_delay_multiplier: self.redelivery_delay_multiplier.unwrap_or_default(),
            retention: retention.into(),
            max_age_ms: long_ms(self.max_age),
            max_messages: self.max_messages.unwrap_or_default(),
            max_bytes: self.max_bytes.unwrap_or_default(),
            overflow: overflow.into(),
            message_ttl_ms: long_ms(self.message_ttl),
            single_active_consumer: self.single_active_consumer,
            expires_ms: long_ms(self.expires),
            lower_priority_percent: self.lower_priority_percent.unwrap_or_default(),
            order_by_key: self.order_by_key,
            dedup_window_ms: long_ms(self.dedup_window),
            partitions: self.partitions.unwrap_or_default(),
        })
    }
}

impl From<broker::QueueSettings> for QueueSettings {
    fn from(wire: broker::QueueSettings) -> Self {
        let count = |count: u32| (count != 0).then_some(count);
        let limit = |limit: u64| (limit != 0).then_some(limit);
        let duration = |ms: u64| limit(ms).map(Duration::from_millis);
        Self {
            max_deliveries: count(wire.max_deliveries),
            lease: duration(wire.lease_ms.into()),
            redelivery_delay: duration(wire.redelivery_delay_ms.into()),
            redelivery_delay_max: duration(wire.redelivery_delay_max_ms.into()),
            redelivery_delay_multiplier: count(wire.redelivery_delay_multiplier),
            retention: match wire.retention() {
                broker::Retention::UntilAcked => Retention::UntilAcked,
                broker::Retention::Limits => Retention::Limits,
            },
            max_age: duration(wire.max_age_ms),
            max_messages: limit(wire.max_messages),
            max_bytes: limit(wire.max_bytes),
            overflow: match wire.overflow() {
                broker::Overflow::Default => None,
                broker::Overflow::RejectPublish => Some(Overflow::RejectPublish),
                broker::Overflow::DropOldest => Some(Overflow::DropOldest),
            },
            message_ttl: duration(wire.message_ttl_ms),
            single_active_consumer: wire.single_active_consumer,
            expires: duration(wire.expires_ms),
            lower_priority_percent: count(wire.lower_priority_percent),
            order_by_key: wire.order_by_key,
            dedup_window: duration(wire.dedup_window_ms),
            partitions: count(wire.partitions),
            dead_letter_queue: (!wire.dead_letter_queue.is_empty()).then_some(wire.dead_letter_queue),
        }
    }
}

/// Whole milliseconds; of what is longer than nothing at least one, because 0 stands for the default.
fn long_ms(duration: Option<Duration>) -> u64 {
    let duration = duration.unwrap_or_default();
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if duration.is_zero() { 0 } else { ms.max(1) }
}

/// The same for a setting with less room on the wire. A duration that was cut short in silence would be a surprise.
fn short_ms(setting: &str, duration: Option<Duration>) -> Result<u32, Error> {
    u32::try_from(long_ms(duration)).map_err(|_| {
        let sentence = format!("the {setting} is too long; give at most a day");
        Error::NotAccepted(Cause::new(Code::InvalidArgument, Reason::InvalidSetting, sentence))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every setting is another than the default.
    pub(super) fn unusual() -> QueueSettings {
        QueueSettings {
            max_deliveries: Some(5),
            dead_letter_queue: Some("dead".into()),
            lease: Some(Duration::from_secs(10)),
            redelivery_delay: Some(Duration::from_millis(100)),
            redelivery_delay_max: Some(Duration::from_secs(60)),
            redelivery_delay_multiplier: Some(3),
            retention: Retention::Limits,
            max_age: Some(Duration::from_secs(3_600)),
            max_messages: Some(1_000),
            max_bytes: Some(1 << 30),
            overflow: Some(Overflow::RejectPublish),
            message_ttl: Some(Duration::from_secs(90)),
            single_active_consumer: true,
            expires: Some(Duration::from_secs(600)),
            lower_priority_percent: Some(10),
            order_by_key: true,
            dedup_window: Some(Duration::from_secs(120)),
            partitions: Some(4),
        }
    }

    #[test]
    fn settings_travel_unchanged() {
        let drop_oldest = QueueSettings { overflow: Some(Overflow::DropOldest), ..unusual() };
        for settings in [QueueSettings::default(), unusual(), drop_oldest] {
            let wire = settings.clone().try_into_wire().unwrap();
            assert_eq!(QueueSettings::from(wire), settings);
        }
        assert_eq!(QueueSettings::default().try_into_wire().unwrap(), broker::QueueSettings::default());
    }

    #[test]
    fn a_short_duration_does_not_become_the_default() {
        let settings = QueueSettings {
            lease: Some(Duration::from_micros(1)),
            max_age: Some(Duration::from_micros(1)),
            message_ttl: Some(Duration::ZERO),
            ..QueueSettings::default()
        };
        let wire = settings.try_into_wire().unwrap();
        assert_eq!((wire.lease_ms, wire.max_age_ms, wire.message_ttl_ms), (1, 1, 0));
    }

    #[test]
    fn a_duration_that_does_not_fit_is_refused() {
        let days = Some(Duration::from_secs(50 * 24 * 60 * 60));
        let long_lease = QueueSettings { lease: days, ..QueueSettings::default() };
        let long_delay = QueueSettings { redelivery_delay_max: days, ..QueueSettings::default() };
        for settings in [long_lease, long_delay] {
            let refused = settings.try_into_wire().unwrap_err();
            assert_eq!(refused.reason(), Reason::InvalidSetting);
        }
        let long_age = QueueSettings { max_age: days, ..QueueSettings::default() };
        assert!(long_age.try_into_wire().is_ok());
    }
}
