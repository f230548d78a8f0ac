//! The settings of a queue as arguments, and how they are shown.

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use skein_client::{Overflow, QueueSettings, QueueUpdate, Retention, Setting};

use crate::{args, output::span};

/// Settings, each as far as it is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(crate) struct SettingsArgs {
    /// Deliveries after which a message is given up; 20 unless set.
    #[arg(long, value_name = "COUNT")]
    max_deliveries: Option<u32>,
    /// Where messages go that are given up; without one they are dropped.
    #[arg(long, value_name = "QUEUE")]
    dead_letter_queue: Option<String>,
    /// How long a consumer may hold a message, such as 500ms, 30s or 5m; 30s unless set.
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    lease: Option<Duration>,
    /// How long a message that came back waits; at once unless set.
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    redelivery_delay: Option<Duration>,
    /// The longest that this delay grows to; 1h unless set.
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    redelivery_delay_max: Option<Duration>,
    /// By what it grows each time the message comes back; 2 unless set.
    #[arg(long, value_name = "FACTOR")]
    redelivery_delay_multiplier: Option<u32>,
    /// What becomes of messages that every group has acked; until-acked unless set.
    #[arg(long, value_enum)]
    retention: Option<RetentionArg>,
    /// How long messages are kept, such as 12h or 7d, with --retention limits.
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    max_age: Option<Duration>,
    /// The most messages that are kept.
    #[arg(long, value_name = "COUNT")]
    max_messages: Option<u64>,
    /// The most bytes of messages that are kept, such as 10MB or 1GiB.
    #[arg(long, value_name = "SIZE", value_parser = args::size)]
    max_bytes: Option<u64>,
    /// What happens when there are as many; reject-publish unless set, drop-oldest with --retention limits.
    #[arg(long, value_enum)]
    overflow: Option<OverflowArg>,
    /// How long a message may wait for a consumer before it is given up.
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    message_ttl: Option<Duration>,
    /// Only one consumer of a group gets messages; when it goes, the next one does.
    #[arg(long)]
    single_active_consumer: bool,
    /// Delete the queue when nobody publishes to it or consumes from it for so long, at least 5s.
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    expires: Option<Duration>,
    /// How much of what is delivered are less urgent messages while others wait, up to 50 percent; none unless set.
    #[arg(long, value_name = "PERCENT")]
    lower_priority_percent: Option<u32>,
    /// Messages with the same key go to one consumer at a time, in order.
    #[arg(long)]
    order_by_key: bool,
    /// Store no message with the id of one that was published less than this long ago, such as 2m; an hour at most.
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    dedup_window: Option<Duration>,
    /// Spread its messages by their keys over so many queues, which different nodes can lead; can only be raised.
    #[arg(long, value_name = "COUNT")]
    partitions: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RetentionArg {
    /// They are deleted.
    UntilAcked,
    /// They are kept until they are too old or too many.
    Limits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OverflowArg {
    /// Publishers are refused.
    RejectPublish,
    /// The oldest messages go.
    DropOldest,
}

impl SettingsArgs {
    pub(crate) fn into_settings(self) -> QueueSettings {
        QueueSettings {
            max_deliveries: self.max_deliveries,
            dead_letter_queue: self.dead_letter_queue,
            lease: self.lease,
            redelivery_delay: self.redelivery_delay,
            redelivery_delay_max: self.redelivery_delay_max,
            redelivery_delay_multiplier: self.redelivery_delay_multiplier,
            retention: self.retention.map(Retention::from).unwrap_or_default(),
            max_age: self.max_age,
            max_messages: self.max_messages,
            max_bytes: self.max_bytes,
            overflow: self.overflow.map(Overflow::from),
            message_ttl: self.message_ttl,
            single_active_consumer: self.single_active_consumer,
            expires: self.expires,
            lower_priority_percent: self.lower_priority_percent,
            order_by_key: self.order_by_key,
            dedup_window: self.dedup_window,
            partitions: self.partitions,
        }
    }

    /// Puts the settings in `clear` back to their defaults, and changes those that are given.
    pub(crate) fn into_update(self, clear: &[Setting]) -> QueueUpdate {
        fn with<T>(
            update: QueueUpdate,
            value: Option<T>,
            set: impl Fn(QueueUpdate, T) -> QueueUpdate,
        ) -> QueueUpdate {
            match value {
                Some(value) => set(update, value),
                None => update,
            }
        }
        let update = clear.iter().copied().fold(QueueUpdate::new(), QueueUpdate::reset);
        let update = with(update, self.max_deliveries, QueueUpdate::max_deliveries);
        let update = with(update, self.dead_letter_queue, QueueUpdate::dead_letter_queue);
        let update = with(update, self.lease, QueueUpdate::lease);
        let update = with(update, self.redelivery_delay, QueueUpdate::redelivery_delay);
        let update = with(update, self.redelivery_delay_max, QueueUpdate::redelivery_delay_max);
        let update = with(update, self.redelivery_delay_multiplier, QueueUpdate::redelivery_delay_multiplier);
        let update = with(update, self.retention.map(Retention::from), QueueUpdate::retention);
        let update = with(update, self.max_age, QueueUpdate::max_age);
        let update = with(update, self.max_messages, QueueUpdate::max_messages);
        let update = with(update, self.max_bytes, QueueUpdate::max_bytes);
        let update = with(update, self.overflow.map(Overflow::from), QueueUpdate::overflow);
        let update = with(update, self.message_ttl, QueueUpdate::message_ttl);
        let update = with(update, self.expires, QueueUpdate::expires);
        let update = with(update, self.lower_priority_percent, QueueUpdate::lower_priority_percent);
        let update = with(update, self.order_by_key.then_some(true), QueueUpdate::order_by_key);
        let update = with(update, self.dedup_window, QueueUpdate::dedup_window);
        let update = with(update, self.partitions, QueueUpdate::partitions);
        with(update, self.single_active_consumer.then_some(true), QueueUpdate::single_active_consumer)
    }
}

/// Reads the name of a setting as it is written in its option.
pub(crate) fn setting(text: &str) -> Result<Setting, String> {
    let option = |setting: Setting| setting.name().replace('_', "-");
    Setting::ALL.into_iter().find(|setting| option(*setting) == text).ok_or_else(|| {
        format!("there is no such setting; write one of {}", Setting::ALL.map(option).join(", "))
    })
}

/// Each setting and its value, for people.
pub(crate) fn settings_text(settings: &QueueSettings) -> Vec<[String; 2]> {
    let text = |value: Option<String>, unless_set: &str| value.unwrap_or_else(|| unless_set.to_owned());
    let time = |value: Option<Duration>, unless_set| text(value.map(span), unless_set);
    let yes = |value| if value { "yes" } else { "no" }.to_owned();
    let count = |value: Option<u64>, unless_set| text(value.map(|count| count.to_string()), unless_set);
    let rows = [
        ("max deliveries", count(settings.max_deliveries.map(u64::from), "default")),
        ("dead-letter queue", text(settings.dead_letter_queue.clone(), "none")),
        ("lease", time(settings.lease, "default")),
        ("redelivery delay", time(settings.redelivery_delay, "none")),
        ("redelivery delay max", time(settings.redelivery_delay_max, "default")),
        (
            "redelivery delay multiplier",
            count(settings.redelivery_delay_multiplier.map(u64::from), "default"),
        ),
        ("retention", retention_name(settings.retention).to_owned()),
        ("max age", time(settings.max_age, "none")),
        ("max messages", count(settings.max_messages, "none")),
        ("max bytes", count(settings.max_bytes, "none")),
        ("overflow", text(settings.overflow.map(|overflow| overflow_name(overflow).to_owned()), "default")),
        ("message ttl", time(settings.message_ttl, "none")),
        ("single active consumer", yes(settings.single_active_consumer)),
        ("expires unused after", time(settings.expires, "never")),
        ("lower priority percent", count(settings.lower_priority_percent.map(u64::from), "none")),
        ("order by key", yes(settings.order_by_key)),
        ("dedup window", time(settings.dedup_window, "none")),
        ("partitions", count(settings.partitions.map(u64::from), "none")),
    ];
    rows.map(|(name, value)| [name.to_owned(), value]).to_vec()
}

/// Adds each setting to an object, for programs.
pub(crate) fn add_settings(value: &mut Value, settings: &QueueSettings) {
    let ms = |time: Option<Duration>| time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    value["max_deliveries"] = json!(settings.max_deliveries);
    value["dead_letter_queue"] = json!(settings.dead_letter_queue);
    value["lease_ms"] = json!(ms(settings.lease));
    value["redelivery_delay_ms"] = json!(ms(settings.redelivery_delay));
    value["redelivery_delay_max_ms"] = json!(ms(settings.redelivery_delay_max));
    value["redelivery_delay_multiplier"] = json!(settings.redelivery_delay_multiplier);
    value["retention"] = json!(retention_name(settings.retention));
    value["max_age_ms"] = json!(ms(settings.max_age));
    value["max_messages"] = json!(settings.max_messages);
    value["max_bytes"] = json!(settings.max_bytes);
    value["overflow"] = json!(settings.overflow.map(overflow_name));
    value["message_ttl_ms"] = json!(ms(settings.message_ttl));
    value["single_active_consumer"] = json!(settings.single_active_consumer);
    value["expires_ms"] = json!(ms(settings.expires));
    value["lower_priority_percent"] = json!(settings.lower_priority_percent);
    value["order_by_key"] = json!(settings.order_by_key);
    value["dedup_window_ms"] = json!(ms(settings.dedup_window));
    value["partitions"] = json!(settings.partitions);
}

fn retention_name(retention: Retention) -> &'static str {
    match retention {
        Retention::UntilAcked => "until-acked",
        Retention::Limits => "limits",
    }
}

fn overflow_name(overflow: Overflow) -> &'static str {
    match overflow {
        Overflow::RejectPublish => "reject-publish",
        Overflow::DropOldest => "drop-oldest",
    }
}

impl From<RetentionArg> for Retention {
    fn from(arg: RetentionArg) -> Self {
        match arg {
            RetentionArg::UntilAcked => Self::UntilAcked,
            RetentionArg::Limits => Self::Limits,
        }
    }
}

impl From<OverflowArg> for Overflow {
    fn from(arg: OverflowArg) -> Self {
        match arg {
            OverflowArg::RejectPublish => Self::RejectPublish,
            OverflowArg::DropOldest => Self::DropOldest,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Settings {
        #[command(flatten)]
        args: SettingsArgs,
    }

    const ALL: [&str; 35] = [
        "skein",
        "--max-deliveries=5",
        "--dead-letter-queue",
        "dead",
        "--lease",
        "10s",
        "--redelivery-delay",
        "100ms",
        "--redelivery-delay-max",
        "1m",
        "--redelivery-delay-multiplier",
        "3",
        "--retention",
        "limits",
        "--max-age",
        "7d",
        "--max-messages",
        "1000",
        "--max-bytes",
        "1GiB",
        "--overflow",
        "reject-publish",
        "--message-ttl",
        "90s",
        "--single-active-consumer",
        "--expires",
        "10m",
        "--lower-priority-percent",
        "10",
        "--order-by-key",
        "--dedup-window",
        "2m",
        "--partitions",
        "4",
        "--",
    ];

    #[test]
    fn every_setting_is_an_option_and_is_shown() {
        let settings = Settings::parse_from(ALL).args.into_settings();
        let mut value = json!({});
        add_settings(&mut value, &settings);
        let expected = json!({
            "max_deliveries": 5,
            "dead_letter_queue": "dead",
            "lease_ms": 10_000,
            "redelivery_delay_ms": 100,
            "redelivery_delay_max_ms": 60_000,
            "redelivery_delay_multiplier": 3,
            "retention": "limits",
            "max_age_ms": 604_800_000,
            "max_messages": 1_000,
            "max_bytes": 1_073_741_824,
            "overflow": "reject-publish",
            "message_ttl_ms": 90_000,
            "single_active_consumer": true,
            "expires_ms": 600_000,
            "lower_priority_percent": 10,
            "order_by_key": true,
            "dedup_window_ms": 120_000,
            "partitions": 4,
        });
        assert_eq!(value, expected);
        let shown = settings_text(&settings).into_iter().map(|[_, value]| value).collect::<Vec<_>>();
        let expected = [
            "5",
            "dead",
            "10s",
            "100ms",
            "1m",
            "3",
            "limits",
            "7d",
            "1000",
            "1073741824",
            "reject-publish",
            "90s",
            "yes",
            "10m",
            "10",
            "yes",
            "2m",
            "4",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn an_update_has_what_is_given_and_what_is_cleared() {
        let given = Settings::parse_from(["skein", "--max-age", "1h", "--single-active-consumer"]).args;
        let update = given.into_update(&[setting("message-ttl").unwrap(), setting("lease").unwrap()]);
        let expected = QueueUpdate::new()
            .max_age(Duration::from_secs(3_600))
            .single_active_consumer(true)
            .no_message_ttl()
            .reset(Setting::Lease);
        assert_eq!(update, expected);
        assert!(setting("max_age").unwrap_err().contains("max-age"));
    }

    #[test]
    fn an_update_can_change_every_setting() {
        let all = Settings::parse_from(ALL).args;
        let QueueSettings { retention, single_active_consumer, order_by_key, .. } =
            all.clone().into_settings();
        let settings = all.clone().into_settings();
        let expected = QueueUpdate::new()
            .max_deliveries(settings.max_deliveries.unwrap())
            .dead_letter_queue(settings.dead_letter_queue.unwrap())
            .lease(settings.lease.unwrap())
            .redelivery_delay(settings.redelivery_delay.unwrap())
            .redelivery_delay_max(settings.redelivery_delay_max.unwrap())
            .redelivery_delay_multiplier(settings.redelivery_delay_multiplier.unwrap())
            .retention(retention)
            .max_age(settings.max_age.unwrap())
            .max_messages(settings.max_messages.unwrap())
            .max_bytes(settings.max_bytes.unwrap())
            .overflow(settings.overflow.unwrap())
            .message_ttl(settings.message_ttl.unwrap())
            .single_active_consumer(single_active_consumer)
            .expires(settings.expires.unwrap())
            .lower_priority_percent(settings.lower_priority_percent.unwrap())
            .order_by_key(order_by_key)
            .dedup_window(settings.dedup_window.unwrap())
            .partitions(settings.partitions.unwrap());
        assert_eq!(all.into_update(&Setting::ALL), expected);
    }
}
