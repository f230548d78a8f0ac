//! Queue settings as clients write them: checked, merged, and told back.

use skein_proto::{
    limits::{self, LOWER_PRIORITY_PERCENT_MAX, NAME_BYTES_MAX, PARTITIONS_MAX},
    node::{Overflow as OverflowChoice, QueueSettings, Retention as RetentionChoice},
    partitions,
};
use tonic::Status;

use super::{
    consume::{DURATION_MS_MAX, check_duration},
    names, status,
};
use crate::broker::{Backoff, Overflow, Retention, Settings};

/// The shortest lease. Anything shorter expires on its way to the consumer.
const LEASE_MS_MIN: u32 = 100;

/// The shortest time for which nobody may use a queue before it goes. A failover takes less.
const EXPIRES_MS_MIN: u64 = 5_000;

/// The longest time for which ids of messages are remembered.
const DEDUP_WINDOW_MS_MAX: u64 = 60 * 60 * 1_000;

/// The largest factor by which a redelivery delay grows.
const MULTIPLIER_MAX: u32 = 100;

/// Calls a macro with each setting's field, so that none is forgotten.
macro_rules! with_each_setting {
    ($with:ident) => {
        $with!(
            max_deliveries,
            dead_letter_queue,
            lease_ms,
            redelivery_delay_ms,
            redelivery_delay_max_ms,
            redelivery_delay_multiplier,
            retention,
            max_age_ms,
            max_messages,
            max_bytes,
            overflow,
            message_ttl_ms,
            single_active_consumer,
            expires_ms,
            lower_priority_percent,
            order_by_key,
            dedup_window_ms,
            partitions
        )
    };
}

/// Settings that a queue may have; what is not given has its default.
pub(super) fn check(queue: &str, given: QueueSettings) -> Result<Settings, Status> {
    let default = Settings::default();
    let retention = retention(&given)?;
    let settings = Settings {
        max_deliveries: or_default(given.max_deliveries, default.max_deliveries),
        lease_ms: check_lease(given.lease_ms, default.lease_ms)?,
        redelivery: check_redelivery(&given, default.redelivery)?,
        retention,
        max_age_ms: check_span("max_age_ms", given.max_age_ms)?,
        max_messages: some(given.max_messages),
        max_bytes: some(given.max_bytes),
        overflow: overflow(&given, retention)?,
        message_ttl_ms: check_span("message_ttl_ms", given.message_ttl_ms)?,
        single_active_consumer: given.single_active_consumer,
        expires_ms: check_expiry(given.expires_ms)?,
        lower_priority_percent: check_lower_priority_percent(given.lower_priority_percent)?,
        order_by_key: given.order_by_key,
        dedup_window_ms: check_dedup_window(given.dedup_window_ms)?,
        partitions: check_partitions(queue, &given)?,
        dead_letter_queue: check_dead_letter_queue(queue, given.dead_letter_queue)?,
    };
    if settings.max_age_ms.is_some() && settings.retention == Retention::UntilAcked {
        let message = "max_age_ms is only for retention \"limits\", which keeps messages that are acked; set that, or \
                       message_ttl_ms to give up messages that nobody takes in time";
        return Err(status::invalid_setting(message));
    }
    if settings.overflow == Overflow::DropOldest
        && settings.retention == Retention::UntilAcked
        && settings.max_messages.or(settings.max_bytes).is_none()
    {
        let message =
            "overflow \"drop oldest\" says what happens at max_messages or max_bytes; set one of them";
        return Err(status::invalid_setting(message));
    }
    Ok(settings)
}

/// What `from` says of the named settings, and of the others what `into` says. All are taken when none is named.
pub(super) fn merge(
    into: QueueSettings,
    from: QueueSettings,
    fields: &[String],
) -> Result<QueueSettings, Status> {
    if fields.is_empty() {
        return Ok(from);
    }
    let mut merged = into;
    for field in fields {
        macro_rules! take {
            ($($name:ident),*) => {
                match field.as_str() {
                    $(stringify!($name) => merged.$name = from.$name.clone(),)*
                    other => {
                        let known = [$(stringify!($name)),*].join(", ");
                        let message = format!("update_fields names {other:?}; the settings are {known}");
                        return Err(status::invalid_setting(message));
                    }
                }
            };
        }
        with_each_setting!(take);
    }
    let names = |name: &str| fields.iter().any(|field| field == name);
    if names("retention") && !names("overflow") {
        // Each retention has its own default.
        merged.overflow = OverflowChoice::Default.into();
    }
    Ok(merged)
}

/// What differs from what was asked, in words.
pub(super) fn differences(existing: &Settings, asked: &Settings) -> String {
    let (existing, asked) = (to_wire(existing), to_wire(asked));
    let mut differences = Vec::new();
    macro_rules! compare {
        ($($name:ident),*) => {
            $(if existing.$name != asked.$name {
                differences.push(format!(
                    "{} is {:?} there, and {:?} was asked for", stringify!($name), existing.$name, asked.$name
                ));
            })*
        };
    }
    with_each_setting!(compare);
    differences.join("; ")
}

/// Settings as clients read them, each with its value.
pub(super) fn to_wire(settings: &Settings) -> QueueSettings {
    let Backoff { delay_ms, delay_max_ms, multiplier } = settings.redelivery;
    QueueSettings {
        max_deliveries: settings.max_deliveries,
        dead_letter_queue: settings.dead_letter_queue.clone().unwrap_or_default(),
        lease_ms: settings.lease_ms,
        redelivery_delay_ms: delay_ms,
        redelivery_delay_max_ms: delay_max_ms,
        redelivery_delay_multiplier: multiplier,
        retention: match settings.retention {
            Retention::UntilAcked => RetentionChoice::UntilAcked,
            Retention::Limits => RetentionChoice::Limits,
        }
        .into(),
        max_age_ms: settings.max_age_ms.unwrap_or_default(),
        max_messages: settings.max_messages.unwrap_or_default(),
        max_bytes: settings.max_bytes.unwrap_or_default(),
        overflow: match settings.overflow {
            Overflow::RejectPublish => OverflowChoice::RejectPublish,
            Overflow::DropOldest => OverflowChoice::DropOldest,
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

fn check_lease(lease_ms: u32, default_ms: u32) -> Result<u32, Status> {
    let lease_ms = or_default(check_duration("lease_ms", lease_ms)?, default_ms);
    if lease_ms < LEASE_MS_MIN {
        let message =
            format!("lease_ms is {lease_ms}; give {LEASE_MS_MIN} to {DURATION_MS_MAX}, or 0 for the default");
        return Err(status::invalid_setting(message));
    }
    Ok(lease_ms)
}

fn check_expiry(expires_ms: u64) -> Result<Option<u64>, Status> {
    let expires_ms = check_span("expires_ms", expires_ms)?;
    if expires_ms.is_some_and(|expires_ms| expires_ms < EXPIRES_MS_MIN) {
        let message =
            format!("expires_ms is less than {EXPIRES_MS_MIN}, a moment that nobody would notice; give more");
        return Err(status::invalid_setting(message));
    }
    Ok(expires_ms)
}

fn check_dedup_window(window_ms: u64) -> Result<Option<u64>, Status> {
    if window_ms > DEDUP_WINDOW_MS_MAX {
        let message = format!(
            "dedup_window_ms is {window_ms}; an hour, {DEDUP_WINDOW_MS_MAX}, is the most, since every id is remembered"
        );
        return Err(status::invalid_setting(message));
    }
    Ok(some(window_ms))
}

fn check_partitions(queue: &str, given: &QueueSettings) -> Result<u32, Status> {
    let partitions = given.partitions;
    if partitions > PARTITIONS_MAX {
        let message = format!("partitions is {partitions}; {PARTITIONS_MAX} is the most");
        return Err(status::invalid_setting(message));
    }
    if partitions > 0 && given.expires_ms != 0 {
        let message = "partitions and expires_ms do not go together: each partition would be deleted when nobody uses \
                       it; take one of them away";
        return Err(status::invalid_setting(message));
    }
    if partitions > 0 && partitions::name(queue, PARTITIONS_MAX - 1).len() > NAME_BYTES_MAX {
        let message =
            format!("partitions of {queue:?} would have names that are too long; shorten it by four letters");
        return Err(status::invalid_setting(message));
    }
    Ok(partitions)
}

fn check_lower_priority_percent(percent: u32) -> Result<u32, Status> {
    if percent > LOWER_PRIORITY_PERCENT_MAX {
        let message = format!(
            "lower_priority_percent is {percent}; {LOWER_PRIORITY_PERCENT_MAX} is the most, since with more the less \
             urgent messages would be the more urgent ones"
        );
        return Err(status::invalid_setting(message));
    }
    Ok(percent)
}

fn check_redelivery(given: &QueueSettings, default: Backoff) -> Result<Backoff, Status> {
    let delay_ms = check_duration("redelivery_delay_ms", given.redelivery_delay_ms)?;
    let delay_max_ms = check_duration("redelivery_delay_max_ms", given.redelivery_delay_max_ms)?;
    let delay_max_ms = or_default(delay_max_ms, default.delay_max_ms.max(delay_ms));
    let multiplier = or_default(given.redelivery_delay_multiplier, default.multiplier);
    if delay_ms > delay_max_ms {
        let message = format!(
            "redelivery_delay_ms is {delay_ms}, more than redelivery_delay_max_ms, {delay_max_ms}; raise that or \
             lower this"
        );
        return Err(status::invalid_setting(message));
    }
    if multiplier > MULTIPLIER_MAX {
        let message = format!("redelivery_delay_multiplier is {multiplier}; {MULTIPLIER_MAX} is the most");
        return Err(status::invalid_setting(message));
    }
    Ok(Backoff { delay_ms, delay_max_ms, multiplier })
}

fn check_dead_letter_queue(queue: &str, dead_letter_queue: String) -> Result<Option<String>, Status> {
    if dead_letter_queue.is_empty() {
        return Ok(None);
    }
    names::check_queue_name(&dead_letter_queue)?;
    if dead_letter_queue == queue {
        let message = format!("dead_letter_queue is the queue {queue:?} itself; name another one");
        return Err(status::invalid_setting(message));
    }
    Ok(Some(dead_letter_queue))
}

fn retention(given: &QueueSettings) -> Result<Retention, Status> {
    match RetentionChoice::try_from(given.retention) {
        Ok(RetentionChoice::UntilAcked) => Ok(Retention::UntilAcked),
        Ok(RetentionChoice::Limits) => Ok(Retention::Limits),
        Err(_) => {
            Err(status::invalid_setting("retention is neither RETENTION_UNTIL_ACKED nor RETENTION_LIMITS"))
        }
    }
}

fn overflow(given: &QueueSettings, retention: Retention) -> Result<Overflow, Status> {
    match (OverflowChoice::try_from(given.overflow), retention) {
        (Ok(OverflowChoice::RejectPublish), _) | (Ok(OverflowChoice::Default), Retention::UntilAcked) => {
            Ok(Overflow::RejectPublish)
        }
        (Ok(OverflowChoice::DropOldest), _) | (Ok(OverflowChoice::Default), Retention::Limits) => {
            Ok(Overflow::DropOldest)
        }
        (Err(_), _) => {
            let message =
                "overflow is none of OVERFLOW_DEFAULT, OVERFLOW_REJECT_PUBLISH and OVERFLOW_DROP_OLDEST";
            Err(status::invalid_setting(message))
        }
    }
}

/// A span of time; none where it is 0.
fn check_span(field: &str, span_ms: u64) -> Result<Option<u64>, Status> {
    if span_ms > limits::DELAY_MS_MAX {
        let max = limits::DELAY_MS_MAX;
        return Err(status::invalid_setting(format!("{field} is {span_ms}; a year, {max}, is the most")));
    }
    Ok(some(span_ms))
}

fn some(value: u64) -> Option<u64> {
    (value != 0).then_some(value)
}

const fn or_default(value: u32, default: u32) -> u32 {
    if value == 0 { default } else { value }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn refusal(given: QueueSettings) -> String {
        let status = check("orders", given).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        status.message().to_owned()
    }

    #[test]
    fn settings_come_back_as_they_were_given() {
        let given = QueueSettings {
            max_deliveries: 3,
            dead_letter_queue: "dead".to_owned(),
            lease_ms: 500,
            redelivery_delay_ms: 100,
            redelivery_delay_max_ms: 1_000,
            redelivery_delay_multiplier: 3,
            retention: RetentionChoice::Limits.into(),
            max_age_ms: 60_000,
            max_messages: 7,
            max_bytes: 8,
            overflow: OverflowChoice::RejectPublish.into(),
            message_ttl_ms: 9,
            single_active_consumer: true,
            expires_ms: 0,
            lower_priority_percent: 50,
            order_by_key: true,
            dedup_window_ms: 120_000,
            partitions: 4,
        };
        let settings = check("orders", given.clone()).unwrap();
        assert_eq!(to_wire(&settings), given);
        let given = QueueSettings { expires_ms: 5_000, partitions: 0, ..given };
        assert_eq!(to_wire(&check("orders", given.clone()).unwrap()), given);
        assert_eq!(check("orders", QueueSettings::default()).unwrap(), Settings::default());
        assert_eq!(check("orders", to_wire(&Settings::default())).unwrap(), Settings::default());
        let differences = differences(&settings, &Settings { max_deliveries: 4, ..settings.clone() });
        assert_eq!(differences, "max_deliveries is 3 there, and 4 was asked for");
    }

    #[test]
    fn what_contradicts_itself_is_refused_by_name() {
        let default = QueueSettings::default;
        let limits = RetentionChoice::Limits.into();
        assert_eq!(
            check("orders", QueueSettings { retention: limits, ..default() }).unwrap().overflow,
            Overflow::DropOldest
        );
        for (field, given) in [
            ("max_age_ms", QueueSettings { max_age_ms: 5, ..default() }),
            ("overflow", QueueSettings { overflow: OverflowChoice::DropOldest.into(), ..default() }),
            ("overflow", QueueSettings { overflow: 9, ..default() }),
            ("retention", QueueSettings { retention: -1, ..default() }),
            ("expires_ms", QueueSettings { expires_ms: 4_999, ..default() }),
            ("lower_priority_percent", QueueSettings { lower_priority_percent: 51, ..default() }),
            ("dedup_window_ms", QueueSettings { dedup_window_ms: 3_600_001, ..default() }),
            ("partitions", QueueSettings { partitions: 257, ..default() }),
            ("partitions", QueueSettings { partitions: 2, expires_ms: 5_000, ..default() }),
            ("lease_ms", QueueSettings { lease_ms: 99, ..default() }),
            ("lease_ms", QueueSettings { lease_ms: u32::MAX, ..default() }),
            ("message_ttl_ms", QueueSettings { message_ttl_ms: u64::MAX, ..default() }),
            ("max_age_ms", QueueSettings { retention: limits, max_age_ms: u64::MAX, ..default() }),
            (
                "redelivery_delay_ms",
                QueueSettings { redelivery_delay_ms: 9, redelivery_delay_max_ms: 8, ..default() },
            ),
            ("redelivery_delay_multiplier", QueueSettings { redelivery_delay_multiplier: 101, ..default() }),
            ("dead_letter_queue", QueueSettings { dead_letter_queue: "orders".into(), ..default() }),
        ] {
            let message = refusal(given);
            assert!(message.starts_with(field), "{message}");
        }
    }

    #[test]
    fn only_named_settings_change() {
        let old = QueueSettings { max_deliveries: 3, max_bytes: 9, ..QueueSettings::default() };
        let new = QueueSettings { lease_ms: 500, ..QueueSettings::default() };
        let fields = ["lease_ms".to_owned(), "max_bytes".to_owned()];
        let merged = merge(old.clone(), new.clone(), &fields).unwrap();
        assert_eq!(merged, QueueSettings { max_deliveries: 3, lease_ms: 500, ..QueueSettings::default() });
        assert_eq!(merge(old.clone(), new.clone(), &[]).unwrap(), new);
        let refused = merge(old, new, &["colour".to_owned()]).unwrap_err();
        assert!(refused.message().contains("\"colour\"; the settings are max_deliveries, "));
    }
}
