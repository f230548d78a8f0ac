//! How long to wait before trying again. Pure: the random part is an argument.

use std::time::Duration;

/// The first wait. A planned handover takes about this long, so the first retry already has a chance.
pub(crate) const DELAY_MIN: Duration = Duration::from_millis(5);

/// The longest wait. Short enough that a cluster that comes back is used at once, long enough that ten thousand
/// clients of a dead cluster do not burn it down while it starts.
pub(crate) const DELAY_MAX: Duration = Duration::from_millis(500);

/// Waits that double from [`DELAY_MIN`] to [`DELAY_MAX`].
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    attempt: u32,
}

impl Backoff {
    /// How often it has failed since the last success.
    pub(crate) fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Starts over, after a success.
    pub(crate) fn reset(&mut self) {
        self.attempt = 0;
    }

    /// Notes a failure and says how long to wait: between half and all of the doubled delay, so that clients that
    /// failed together do not come back together. `jitter` is uniform in `0.0..1.0`.
    pub(crate) fn next_delay(&mut self, jitter: f64) -> Duration {
        let doublings = self.attempt.min(DELAY_MAX.as_millis().ilog2());
        self.attempt = self.attempt.saturating_add(1);
        let full = (DELAY_MIN * 2_u32.pow(doublings)).min(DELAY_MAX);
        full.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let mut backoff = Backoff::default();
        let delays_ms: Vec<_> = (0..9).map(|_| backoff.next_delay(1.0).as_millis()).collect();
        assert_eq!(delays_ms, [5, 10, 20, 40, 80, 160, 320, 500, 500]);
        assert_eq!(backoff.attempt(), 9);
    }

    #[test]
    fn jitter_takes_away_at_most_half() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next_delay(0.0), DELAY_MIN / 2);
    }

    #[test]
    fn a_success_starts_over() {
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            backoff.next_delay(0.5);
        }
        backoff.reset();
        assert_eq!(backoff.next_delay(1.0), DELAY_MIN);
    }
}
