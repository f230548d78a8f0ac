//! The only place that asks what time it is.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// A source of time. Cheap to clone; tests put their own behind it.
#[derive(Clone)]
pub struct Clock(Arc<dyn TimeSource>);

/// What a clock is made of.
pub trait TimeSource: Send + Sync {
    /// Time since some fixed moment; never goes back.
    fn monotonic(&self) -> Duration;
    /// Time since the Unix epoch; may jump.
    fn wall(&self) -> Duration;
}

impl Clock {
    /// The operating system's clocks.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    pub fn real() -> Self {
        Self(Arc::new(RealTime { start: Instant::now() }))
    }

    /// A clock made of something else.
    #[must_use]
    pub fn from_source(source: Arc<dyn TimeSource>) -> Self {
        Self(source)
    }

    /// Time since some fixed moment; never goes back. For measuring and for deadlines.
    #[must_use]
    pub fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    /// Milliseconds since the Unix epoch; may jump. For telling people and for replicated time, which the broker
    /// core makes monotonic.
    #[must_use]
    pub fn wall_ms(&self) -> u64 {
        millis(self.0.wall())
    }
}

/// A duration in whole milliseconds.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

struct RealTime {
    start: Instant,
}

#[allow(clippy::disallowed_methods, reason = "the one place that reads the clock")]
impl TimeSource for RealTime {
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn wall(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}
