//! How long something took, counted in buckets, as metrics tell it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The upper bounds of the buckets, in microseconds: from a fast disk's sync to what nobody should wait for.
const BOUNDS_US: [u64; 15] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000,
];

/// Counts of how long something took. Written by many, without a lock.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One for each bound, and one for what took longer than the last.
    counts: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

/// What a histogram has counted.
#[derive(Debug, Clone, PartialEq)]
pub struct Counted {
    /// Each bound in seconds, and how many took that long at most.
    pub up_to: Vec<(f64, u64)>,
    /// How many there were.
    pub count: u64,
    /// How long all of them took together, in seconds.
    pub sum_s: f64,
}

impl Histogram {
    /// Counts one.
    pub fn record(&self, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound_us| *bound_us < took_us);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(took_us, Ordering::Relaxed);
    }

    /// What was counted so far.
    #[must_use]
    pub fn counted(&self) -> Counted {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let mut count = 0;
        let mut up_to = Vec::with_capacity(BOUNDS_US.len());
        for (place, in_bucket) in counts.enumerate() {
            count += in_bucket;
            up_to.extend(BOUNDS_US.get(place).map(|bound_us| (seconds(*bound_us), count)));
        }
        Counted { up_to, count, sum_s: seconds(self.sum_us.load(Ordering::Relaxed)) }
    }
}

fn seconds(us: u64) -> f64 {
    Duration::from_micros(us).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_in_every_bucket_that_it_fits() {
        let histogram = Histogram::default();
        for us in [0, 100, 101, 5_000_000, 9_000_000] {
            histogram.record(Duration::from_micros(us));
        }
        let Counted { up_to, count, sum_s } = histogram.counted();
        assert_eq!((up_to[0], up_to[1], up_to[14]), ((0.0001, 2), (0.00025, 3), (5.0, 4)));
        assert!(count == 5 && (sum_s - 14.000_201).abs() < 1e-9, "{count} in {sum_s} s");
    }
}
