//! Durations and wall-clock times as they travel: whole milliseconds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Whole milliseconds; the longest that can be said where it is longer.
pub(crate) fn duration_ms(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// The time that a node told.
pub(crate) fn wall_time(unix_ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(unix_ms)
}

/// Milliseconds since the Unix epoch; 0 for all that was before.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_kept_to_the_millisecond() {
        assert_eq!(unix_ms(wall_time(1_234)), 1_234);
        assert_eq!(unix_ms(wall_time(5) + Duration::from_micros(999)), 5);
        assert_eq!(unix_ms(UNIX_EPOCH - Duration::from_secs(1)), 0);
        assert_eq!(duration_ms(Duration::from_secs(1 << 40)), u32::MAX);
    }
}
