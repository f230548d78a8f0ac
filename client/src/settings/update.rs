//! Changes of a queue's settings: some of them, by name.

use std::{collections::BTreeSet, time::Duration};

use skein_proto::broker;

use super::{Overflow, QueueSettings, Retention};
use crate::error::Error;

/// Which settings of a queue to change, and how. The others stay as they are.
///
/// ```
/// # use skein_client::{QueueUpdate, Setting};
/// let update = QueueUpdate::new().max_deliveries(5).no_dead_letter_queue().reset(Setting::Lease);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueUpdate {
    settings: QueueSettings,
    named: BTreeSet<Setting>,
}

/// One of the [`QueueSettings`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Setting {
    /// [`QueueSettings::max_deliveries`]
    MaxDeliveries,
    /// [`QueueSettings::dead_letter_queue`]
    DeadLetterQueue,
    /// [`QueueSettings::lease`]
    Lease,
    /// [`QueueSettings::redelivery_delay`]
    RedeliveryDelay,
    /// [`QueueSettings::redelivery_delay_max`]
    RedeliveryDelayMax,
    /// [`QueueSettings::redelivery_delay_multiplier`]
    RedeliveryDelayMultiplier,
    /// [`QueueSettings::retention`]
    Retention,
    /// [`QueueSettings::max_age`]
    MaxAge,
    /// [`QueueSettings::max_messages`]
    MaxMessages,
    /// [`QueueSettings::max_bytes`]
    MaxBytes,
    /// [`QueueSettings::overflow`]
    Overflow,
    /// [`QueueSettings::message_ttl`]
    MessageTtl,
    /// [`QueueSettings::single_active_consumer`]
    SingleActiveConsumer,
    /// [`QueueSettings::expires`]
    Expires,
    /// [`QueueSettings::lower_priority_percent`]
    LowerPriorityPercent,
    /// [`QueueSettings::order_by_key`]
    OrderByKey,
    /// [`QueueSettings::dedup_window`]
    DedupWindow,
    /// [`QueueSettings::partitions`]
    Partitions,
}

impl QueueUpdate {
    /// Changes nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// After so many deliveries a message is given up.
    #[must_use]
    pub fn max_deliveries(mut self, count: u32) -> Self {
        self.settings.max_deliveries = Some(count);
        self.name(Setting::MaxDeliveries)
    }

    /// Messages that are given up go to this queue, which must exist.
    #[must_use]
    pub fn dead_letter_queue(mut self, queue: impl Into<String>) -> Self {
        self.settings.dead_letter_queue = Some(queue.into());
        self.name(Setting::DeadLetterQueue)
    }

    /// Messages that are given up are dropped.
    #[must_use]
    pub fn no_dead_letter_queue(self) -> Self {
        self.reset(Setting::DeadLetterQueue)
    }

    /// A consumer may hold a message for so long.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = Some(lease);
        self.name(Setting::Lease)
    }

    /// A message that came back for the first time waits for so long, unless its consumer said how long.
    #[must_use]
    pub fn redelivery_delay(mut self, delay: Duration) -> Self {
        self.settings.redelivery_delay = Some(delay);
        self.name(Setting::RedeliveryDelay)
    }

    /// A message that came back is delivered again at once, unless its consumer said otherwise.
    #[must_use]
    pub fn no_redelivery_delay(self) -> Self {
        self.reset(Setting::RedeliveryDelay)
    }

    /// The redelivery delay grows no longer than this.
    #[must_use]
    pub fn redelivery_delay_max(mut self, delay: Duration) -> Self {
        self.settings.redelivery_delay_max = Some(delay);
        self.name(Setting::RedeliveryDelayMax)
    }

    /// The redelivery delay grows by this factor each time a message comes back.
    #[must_use]
    pub fn redelivery_delay_multiplier(mut self, multiplier: u32) -> Self {
        self.settings.redelivery_delay_multiplier = Some(multiplier);
        self.name(Setting::RedeliveryDelayMultiplier)
    }

    /// What becomes of messages that every group has acked.
    #[must_use]
    pub fn retention(mut self, retention: Retention) -> Self {
        self.settings.retention = retention;
        self.name(Setting::Retention)
    }

    /// Messages are kept for so long, with [`Retention::Limits`].
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.settings.max_age = Some(age);
        self.name(Setting::MaxAge)
    }

    /// Messages are kept however old they are.
    #[must_use]
    pub fn no_max_age(self) -> Self {
        self.reset(Setting::MaxAge)
    }

    /// So many messages are kept at most.
    #[must_use]
    pub fn max_messages(mut self, messages: u64) -> Self {
        self.settings.max_messages = Some(messages);
        self.name(Setting::MaxMessages)
    }

    /// Any number of messages is kept.
    #[must_use]
    pub fn no_max_messages(self) -> Self {
        self.reset(Setting::MaxMessages)
    }

    /// So many bytes of messages are kept at most.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.settings.max_bytes = Some(bytes);
        self.name(Setting::MaxBytes)
    }

    /// Any number of bytes is kept.
    #[must_use]
    pub fn no_max_bytes(self) -> Self {
        self.reset(Setting::MaxBytes)
    }

    /// What happens when as much is kept as may be.
    #[must_use]
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.settings.overflow = Some(overflow);
        self.name(Setting::Overflow)
    }

    /// A message that has waited for so long is given up.
    #[must_use]
    pub fn message_ttl(mut self, ttl: Duration) -> Self {
        self.settings.message_ttl = Some(ttl);
        self.name(Setting::MessageTtl)
    }

    /// Messages wait for ever, unless they say otherwise.
    #[must_use]
    pub fn no_message_ttl(self) -> Self {
        self.reset(Setting::MessageTtl)
    }

    /// Whether only one consumer of a group gets messages.
    #[must_use]
    pub fn single_active_consumer(mut self, single: bool) -> Self {
        self.settings.single_active_consumer = single;
        self.name(Setting::SingleActiveConsumer)
    }

    /// The queue is deleted when nobody uses it for so long.
    #[must_use]
    pub fn expires(mut self, after: Duration) -> Self {
        self.settings.expires = Some(after);
        self.name(Setting::Expires)
    }

    /// The queue stays until somebody deletes it.
    #[must_use]
    pub fn no_expiry(self) -> Self {
        self.reset(Setting::Expires)
    }

    /// So much of what is delivered are less urgent messages, while more urgent ones wait.
    #[must_use]
    pub fn lower_priority_percent(mut self, percent: u32) -> Self {
        self.settings.lower_priority_percent = Some(percent);
        self.name(Setting::LowerPriorityPercent)
    }

    /// Strictly the most urgent messages first.
    #[must_use]
    pub fn no_lower_priority_percent(self) -> Self {
        self.reset(Setting::LowerPriorityPercent)
    }

    /// Messages with the same key go to one consumer at a time, or not.
    #[must_use]
    pub fn order_by_key(mut self, by_key: bool) -> Self {
        self.settings.order_by_key = by_key;
        self.name(Setting::OrderByKey)
    }

    /// For so long no message is stored with the id of one that was published before.
    #[must_use]
    pub fn dedup_window(mut self, window: Duration) -> Self {
        self.settings.dedup_window = Some(window);
        self.name(Setting::DedupWindow)
    }

    /// Ids of messages are not looked at.
    #[must_use]
    pub fn no_dedup_window(self) -> Self {
        self.reset(Setting::DedupWindow)
    }

    /// The queue consists of so many queues, no fewer than before.
    #[must_use]
    pub fn partitions(mut self, count: u32) -> Self {
        self.settings.partitions = Some(count);
        self.name(Setting::Partitions)
    }

    /// Puts a setting back to its default.
    #[must_use]
    pub fn reset(mut self, setting: Setting) -> Self {
        let settings = &mut self.settings;
        match setting {
            Setting::MaxDeliveries => settings.max_deliveries = None,
            Setting::DeadLetterQueue => settings.dead_letter_queue = None,
            Setting::Lease => settings.lease = None,
            Setting::RedeliveryDelay => settings.redelivery_delay = None,
            Setting::RedeliveryDelayMax => settings.redelivery_delay_max = None,
            Setting::RedeliveryDelayMultiplier => settings.redelivery_delay_multiplier = None,
            Setting::Retention => settings.retention = Retention::default(),
            Setting::MaxAge => settings.max_age = None,
            Setting::MaxMessages => settings.max_messages = None,
            Setting::MaxBytes => settings.max_bytes = None,
            Setting::Overflow => settings.overflow = None,
            Setting::MessageTtl => settings.message_ttl = None,
            Setting::SingleActiveConsumer => settings.single_active_consumer = false,
            Setting::Expires => settings.expires = None,
            Setting::LowerPriorityPercent => settings.lower_priority_percent = None,
            Setting::OrderByKey => settings.order_by_key = false,
            Setting::DedupWindow => settings.dedup_window = None,
            Setting::Partitions => settings.partitions = None,
        }
        self.name(setting)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    pub(crate) fn try_into_wire(self, queue: &str) -> Result<broker::UpdateQueueRequest, Error> {
        Ok(broker::UpdateQueueRequest {
            name: queue.to_owned(),
            settings: Some(self.settings.try_into_wire()?),
            update_fields: self.named.into_iter().map(|setting| setting.field().to_owned()).collect(),
        })
    }

    fn name(mut self, setting: Setting) -> Self {
        self.named.insert(setting);
        self
    }
}

impl Setting {
    /// All there are.
    pub const ALL: [Self; 18] = [
        Self::MaxDeliveries,
        Self::DeadLetterQueue,
        Self::Lease,
        Self::RedeliveryDelay,
        Self::RedeliveryDelayMax,
        Self::RedeliveryDelayMultiplier,
        Self::Retention,
        Self::MaxAge,
        Self::MaxMessages,
        Self::MaxBytes,
        Self::Overflow,
        Self::MessageTtl,
        Self::SingleActiveConsumer,
        Self::Expires,
        Self::LowerPriorityPercent,
        Self::OrderByKey,
        Self::DedupWindow,
        Self::Partitions,
    ];

    /// What its field in [`QueueSettings`] is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.field().trim_end_matches("_ms")
    }

    /// What its field is called on the wire.
    fn field(self) -> &'static str {
        match self {
            Self::MaxDeliveries => "max_deliveries",
            Self::DeadLetterQueue => "dead_letter_queue",
            Self::Lease => "lease_ms",
            Self::RedeliveryDelay => "redelivery_delay_ms",
            Self::RedeliveryDelayMax => "redelivery_delay_max_ms",
            Self::RedeliveryDelayMultiplier => "redelivery_delay_multiplier",
            Self::Retention => "retention",
            Self::MaxAge => "max_age_ms",
            Self::MaxMessages => "max_messages",
            Self::MaxBytes => "max_bytes",
            Self::Overflow => "overflow",
            Self::MessageTtl => "message_ttl_ms",
            Self::SingleActiveConsumer => "single_active_consumer",
            Self::Expires => "expires_ms",
            Self::LowerPriorityPercent => "lower_priority_percent",
            Self::OrderByKey => "order_by_key",
            Self::DedupWindow => "dedup_window_ms",
            Self::Partitions => "partitions",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::unusual, *};

    #[test]
    fn only_what_is_named_is_changed() {
        let update = QueueUpdate::new().message_ttl(Duration::from_secs(1)).max_deliveries(5).no_max_age();
        let wire = update.try_into_wire("orders").unwrap();
        assert_eq!(wire.name, "orders");
        assert_eq!(wire.update_fields, ["max_deliveries", "max_age_ms", "message_ttl_ms"]);
        let expected = broker::QueueSettings {
            max_deliveries: 5,
            message_ttl_ms: 1_000,
            ..broker::QueueSettings::default()
        };
        assert_eq!(wire.settings, Some(expected));
    }

    #[test]
    fn every_setting_can_be_set_and_put_back() {
        let settings = unusual();
        let all = QueueUpdate::new()
            .max_deliveries(settings.max_deliveries.unwrap())
            .dead_letter_queue(settings.dead_letter_queue.clone().unwrap())
            .lease(settings.lease.unwrap())
            .redelivery_delay(settings.redelivery_delay.unwrap())
            .redelivery_delay_max(settings.redelivery_delay_max.unwrap())
            .redelivery_delay_multiplier(settings.redelivery_delay_multiplier.unwrap())
            .retention(settings.retention)
            .max_age(settings.max_age.unwrap())
            .max_messages(settings.max_messages.unwrap())
            .max_bytes(settings.max_bytes.unwrap())
            .overflow(settings.overflow.unwrap())
            .message_ttl(settings.message_ttl.unwrap())
            .single_active_consumer(settings.single_active_consumer)
            .expires(settings.expires.unwrap())
            .lower_priority_percent(settings.lower_priority_percent.unwrap())
            .order_by_key(settings.order_by_key)
            .dedup_window(settings.dedup_window.unwrap())
            .partitions(settings.partitions.unwrap());
        assert_eq!(all.settings, settings);
        assert_eq!(all.named, BTreeSet::from(Setting::ALL));
        let none = Setting::ALL.into_iter().fold(all, QueueUpdate::reset);
        assert_eq!(none.settings, QueueSettings::default());
        assert_eq!(none.named, BTreeSet::from(Setting::ALL));
    }

    #[test]
    fn what_is_cleared_is_named() {
        let update = QueueUpdate::new()
            .no_dead_letter_queue()
            .no_redelivery_delay()
            .no_max_age()
            .no_max_messages()
            .no_max_bytes()
            .no_message_ttl()
            .no_expiry();
        let wire = update.try_into_wire("orders").unwrap();
        assert_eq!(wire.settings, Some(broker::QueueSettings::default()));
        assert_eq!(wire.update_fields.len(), 7);
    }
}
