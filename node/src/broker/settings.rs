//! How a queue behaves. All of it can be changed while the queue lives.

/// How a queue behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// A message that was returned after this many deliveries is given up.
    pub max_deliveries: u32,
    /// Where messages go that are given up. Without one they are dropped, and counted.
    pub dead_letter_queue: Option<String>,
    /// How long a consumer may hold a message before it is delivered again.
    pub lease_ms: u32,
    /// How long a message that came back waits.
    pub redelivery: Backoff,
    /// What becomes of messages that every group has acked.
    pub retention: Retention,
    /// How long messages are kept; only where acked ones are.
    pub max_age_ms: Option<u64>,
    /// The most messages that are kept.
    pub max_messages: Option<u64>,
    /// The most bytes of messages that are kept.
    pub max_bytes: Option<u64>,
    /// What happens when as much is kept as may be.
    pub overflow: Overflow,
    /// How long a message may wait before it is given up.
    pub message_ttl_ms: Option<u64>,
    /// Only one consumer of a group gets messages at a time.
    pub single_active_consumer: bool,
    /// For how long nobody may use the queue before it is deleted.
    pub expires_ms: Option<u64>,
    /// How much of what is delivered are less urgent messages, while more urgent ones wait, in percent.
    pub lower_priority_percent: u32,
    /// Of messages with the same key one is out at a time, in order.
    pub order_by_key: bool,
    /// For how long the ids of messages are remembered, so that none is stored twice.
    pub dedup_window_ms: Option<u64>,
    /// Of how many partitions it is one; 0 for a queue of its own. Never falls.
    pub partitions: u32,
}

/// How long a message that came back waits before it is delivered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// After the first delivery.
    pub delay_ms: u32,
    /// After any.
    pub delay_max_ms: u32,
    /// By what the delay grows from one delivery to the next.
    pub multiplier: u32,
}

/// What becomes of messages that every group has acked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// They are deleted. Without groups everything is kept for the first one.
    UntilAcked,
    /// They are kept until the queue's limits say otherwise.
    Limits,
}

/// What happens when as much is kept as may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// A batch that does not fit is refused.
    RejectPublish,
    /// The oldest messages go.
    DropOldest,
}

impl Default for Settings {
    /// Twenty deliveries, as elsewhere: high enough that only a message that can never be handled gets there. Half a
    /// minute to handle one.
    fn default() -> Self {
        Self {
            max_deliveries: 20,
            dead_letter_queue: None,
            lease_ms: 30_000,
            redelivery: Backoff::default(),
            retention: Retention::UntilAcked,
            max_age_ms: None,
            max_messages: None,
            max_bytes: None,
            overflow: Overflow::RejectPublish,
            message_ttl_ms: None,
            single_active_consumer: false,
            expires_ms: None,
            lower_priority_percent: 0,
            order_by_key: false,
            dedup_window_ms: None,
            partitions: 0,
        }
    }
}

impl Default for Backoff {
    /// No delay; where one is set, it doubles up to an hour.
    fn default() -> Self {
        Self { delay_ms: 0, delay_max_ms: 60 * 60 * 1_000, multiplier: 2 }
    }
}

impl Backoff {
    /// How long a message waits after its delivery number `attempt`.
    #[must_use]
    pub fn delay_after(self, attempt: u32) -> u32 {
        let factor = self.multiplier.saturating_pow(attempt.saturating_sub(1));
        self.delay_ms.saturating_mul(factor).min(self.delay_max_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_up_to_the_longest() {
        let backoff = Backoff { delay_ms: 100, delay_max_ms: 1_000, multiplier: 3 };
        let delays = [0, 1, 2, 3, 4, u32::MAX].map(|attempt| backoff.delay_after(attempt));
        assert_eq!(delays, [100, 100, 300, 900, 1_000, 1_000]);
        assert_eq!(Backoff::default().delay_after(u32::MAX), 0);
    }
}
