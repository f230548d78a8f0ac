//! The headers of a dead letter, which tell where it comes from.

/// What the names of all of them begin with.
pub const HEADER_PREFIX: &str = "skein-dead-letter-";

/// The queue that it was given up in, by the name of the whole where that has partitions.
pub const HEADER_QUEUE: &str = "skein-dead-letter-queue";

/// The number of the partition, where the queue has some.
pub const HEADER_PARTITION: &str = "skein-dead-letter-partition";

/// The group that gave it up.
pub const HEADER_GROUP: &str = "skein-dead-letter-group";

/// Its offset there.
pub const HEADER_OFFSET: &str = "skein-dead-letter-offset";

/// How often it was delivered.
pub const HEADER_ATTEMPTS: &str = "skein-dead-letter-attempts";

/// Why it was given up: one of the reasons below.
pub const HEADER_REASON: &str = "skein-dead-letter-reason";

/// When it was given up, in milliseconds since the Unix epoch.
pub const HEADER_TIME: &str = "skein-dead-letter-time-ms";

/// It was delivered as often as the queue lets it be.
pub const REASON_MAX_DELIVERIES: &str = "max_deliveries";

/// Nobody took it within its time to live.
pub const REASON_EXPIRED: &str = "expired";

/// A consumer would not have it, and nobody else was to.
pub const REASON_REJECTED: &str = "rejected";

/// Its queue was full and let its oldest messages go.
pub const REASON_OVERFLOW: &str = "overflow";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_header_has_the_prefix() {
        let where_from = [HEADER_QUEUE, HEADER_PARTITION, HEADER_GROUP, HEADER_OFFSET];
        for name in where_from.into_iter().chain([HEADER_ATTEMPTS, HEADER_REASON, HEADER_TIME]) {
            assert!(name.starts_with(HEADER_PREFIX), "{name}");
        }
    }
}
