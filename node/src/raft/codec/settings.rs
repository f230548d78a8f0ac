//! Settings and properties, which entries and records both carry.

use skein_proto::storage as wire;

use super::DecodeError;
use crate::broker::{Backoff, Overflow, Properties, Retention, Settings};

pub(super) fn settings_to_wire(settings: &Settings) -> wire::Settings {
    let Backoff { delay_ms, delay_max_ms, multiplier } = settings.redelivery;
    wire::Settings {
        max_deliveries: settings.max_deliveries,
        dead_letter_queue: settings.dead_letter_queue.clone().unwrap_or_default(),
        lease_ms: settings.lease_ms,
        redelivery_delay_ms: delay_ms,
        redelivery_delay_max_ms: delay_max_ms,
        redelivery_delay_multiplier: multiplier,
        retention: match settings.retention {
            Retention::UntilAcked => wire::Retention::UntilAcked,
            Retention::Limits => wire::Retention::Limits,
        }
        .into(),
        max_age_ms: settings.max_age_ms.unwrap_or_default(),
        max_messages: settings.max_messages.unwrap_or_default(),
        max_bytes: settings.max_bytes.unwrap_or_default(),
        overflow: match settings.overflow {
            Overflow::RejectPublish => wire::Overflow::RejectPublish,
            Overflow::DropOldest => wire::Overflow::DropOldest,
        }
        .into(),
        message_ttl_ms: settings.message_ttl_ms.unwrap_or_default(),
        single_active_consumer: settings.single_active_consumer,
        expires_ms: settings.expires_ms.unwrap_or_default(),
        lower_priority_percent: settings.lower_priority_percent,
        order_by_key: settings.order_by_key,
        dedup_window_ms: settings.dedup_window_ms.unwrap_or_default(),
        partitions: settings.partitions,
    }
}

pub(super) fn settings_from_wire(settings: Option<wire::Settings>) -> Result<Settings, DecodeError> {
    let wire = settings.ok_or(DecodeError::Missing("settings"))?;
    let some = |value: u64| (value != 0).then_some(value);
    Ok(Settings {
        max_deliveries: wire.max_deliveries,
        lease_ms: wire.lease_ms,
        redelivery: Backoff {
            delay_ms: wire.redelivery_delay_ms,
            delay_max_ms: wire.redelivery_delay_max_ms,
            multiplier: wire.redelivery_delay_multiplier,
        },
        // An unknown value reads as the default, which must not pass for what was meant.
        retention: match wire.retention() {
            wire::Retention::UntilAcked if wire.retention != 0 => {
                return Err(DecodeError::Unknown { field: "retention", value: wire.retention.into() });
            }
            wire::Retention::UntilAcked => Retention::UntilAcked,
            wire::Retention::Limits => Retention::Limits,
        },
        max_age_ms: some(wire.max_age_ms),
        max_messages: some(wire.max_messages),
        max_bytes: some(wire.max_bytes),
        overflow: match wire.overflow() {
            wire::Overflow::RejectPublish if wire.overflow != 0 => {
                return Err(DecodeError::Unknown { field: "overflow", value: wire.overflow.into() });
            }
            wire::Overflow::RejectPublish => Overflow::RejectPublish,
            wire::Overflow::DropOldest => Overflow::DropOldest,
        },
        message_ttl_ms: some(wire.message_ttl_ms),
        single_active_consumer: wire.single_active_consumer,
        expires_ms: some(wire.expires_ms),
        lower_priority_percent: wire.lower_priority_percent,
        order_by_key: wire.order_by_key,
        dedup_window_ms: some(wire.dedup_window_ms),
        partitions: wire.partitions,
        dead_letter_queue: (!wire.dead_letter_queue.is_empty()).then_some(wire.dead_letter_queue),
    })
}

/// Nothing for ordinary messages.
pub(super) fn properties_to_wire(properties: Properties) -> Option<wire::Properties> {
    let Properties { ttl_ms, deliver_at_ms, priority, key_slot } = properties;
    let (priority, key_slot) = (priority.into(), key_slot.into());
    (properties != Properties::default()).then_some(wire::Properties {
        ttl_ms,
        deliver_at_ms,
        priority,
        key_slot,
    })
}

pub(super) fn properties_from_wire(properties: Option<wire::Properties>) -> Result<Properties, DecodeError> {
    let wire::Properties { ttl_ms, deliver_at_ms, priority, key_slot } = properties.unwrap_or_default();
    let unknown = |field, value: u32| move |_| DecodeError::Unknown { field, value: value.into() };
    Ok(Properties {
        ttl_ms,
        deliver_at_ms,
        priority: u8::try_from(priority).map_err(unknown("priority", priority))?,
        key_slot: u16::try_from(key_slot).map_err(unknown("key_slot", key_slot))?,
    })
}
