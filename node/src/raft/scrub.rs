//! Reads cold segments through, again and again and slowly, so that damage is found while another replica is whole.

use std::time::Duration;

use super::{repair::Repairs, space::pace};
use crate::{
    clock::Clock,
    log::{Log, ReadError, SegmentId},
    tasks,
};

/// How the log is scrubbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scrubbing {
    /// How fast; 0 for not at all.
    pub bytes_per_s: u64,
    /// From the beginning of a round to that of the next, at least.
    pub every: Duration,
}

/// Scrubs the log for the node's life.
pub(super) async fn scrub(log: Log, repairs: Repairs, scrubbing: Scrubbing, clock: Clock) {
    if scrubbing.bytes_per_s == 0 {
        return;
    }
    loop {
        let begun = clock.monotonic();
        for segment in log.survey().into_iter().filter(|segment| segment.is_sealed) {
            scrub_segment(&log, &repairs, scrubbing, segment.id).await;
        }
        tokio::time::sleep(scrubbing.every.saturating_sub(clock.monotonic() - begun)).await;
    }
}

async fn scrub_segment(log: &Log, repairs: &Repairs, scrubbing: Scrubbing, segment: SegmentId) {
    let reader = log.clone();
    let verified = tasks::spawn_blocking(move || {
        reader.verify(segment, &mut |chunk_bytes| pace(chunk_bytes, scrubbing.bytes_per_s))
    });
    match verified.await.expect("reading the log does not panic") {
        Ok(damaged) => damaged.into_iter().for_each(|record| repairs.report(record.shard, record.index)),
        // Given up meanwhile.
        Err(ReadError::NoSegment { .. }) => {}
        // Whoever needs what is in it meets the same error.
        Err(error) => tracing::warn!(%segment, %error, "a segment cannot be scrubbed"),
    }
}
