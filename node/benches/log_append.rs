//! Appends from several shards at once; prints throughput, syncs and CPU time of the log alone.
//!
//! `cargo bench -p skein-node --bench log_append -- [DIR]`; DIR should be on the disk in question, not in memory.
#![allow(clippy::print_stdout, reason = "what a benchmark is for")]

use std::{
    env, fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result};
use bytes::Bytes;
use skein_node::{
    clock::Clock,
    disk::RealDisk,
    log::{Entry, EntryId, Log, LogOptions},
};
use skein_proto::ids::ShardId;
use tokio::sync::{Semaphore, mpsc};

const SHARD_COUNT: u32 = 8;
/// What a shard has unconfirmed at most: a proposer waits for the disk as well.
const IN_FLIGHT_MAX: usize = 4;
/// How far a shard's purge point trails, in bytes: segments are recycled once a few are full.
const RETAINED_BYTES: u64 = 16 << 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    // Cargo passes options such as --bench of its own.
    let dir = env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let dir = dir.map_or_else(|| env::temp_dir().join("skein-log-append"), PathBuf::from);
    println!(
        "{:>10} {:>7} {:>9} {:>9} {:>8} {:>10} {:>11} {:>9}",
        "entry", "direct", "MB/s", "syncs/s", "MB/sync", "CPU ms/GB", "CPU us/sync", "overhead"
    );
    for direct_io in [true, false] {
        for (entry_bytes, total_bytes) in
            [(1 << 10, 1 << 26), (16 << 10, 1 << 28), (256 << 10, 1 << 30), (1 << 20, 1 << 30)]
        {
            drop(fs::remove_dir_all(&dir));
            let options = LogOptions { direct_io, ..LogOptions::default() };
            let log = Log::open(Arc::new(RealDisk), &dir, options, |failure| panic!("{failure}"))?;
            // The first round fills fresh files; what counts is the second, in recycled ones.
            append(&log, entry_bytes, RETAINED_BYTES * 2 * u64::from(SHARD_COUNT), 0).await?;
            measure(&log, entry_bytes, total_bytes, direct_io).await?;
        }
    }
    drop(fs::remove_dir_all(&dir));
    Ok(())
}

async fn measure(log: &Log, entry_bytes: usize, total_bytes: u64, direct_io: bool) -> Result<()> {
    let clock = Clock::real();
    let (before, start, cpu_start) = (log.stats(), clock.monotonic(), cpu_ms()?);
    let first = log.shard_state(ShardId::new(0)).last.map_or(0, |last| last.index + 1);
    append(log, entry_bytes, total_bytes, first).await?;
    let (after, seconds) = (log.stats(), (clock.monotonic() - start).as_secs_f64());
    let cpu_ms = cpu_ms()? - cpu_start;
    let bytes = total_bytes as f64;
    let syncs = (after.sync_count - before.sync_count) as f64;
    println!(
        "{entry_bytes:>10} {direct_io:>7} {:>9.0} {:>9.0} {:>8.2} {:>10.0} {:>11.0} {:>9.3}",
        bytes / seconds / 1e6,
        syncs / seconds,
        bytes / syncs / 1e6,
        cpu_ms / (bytes / 1e9),
        cpu_ms * 1e3 / syncs,
        (after.bytes_written - before.bytes_written) as f64 / bytes,
    );
    Ok(())
}

/// Appends `total_bytes` over all shards, each keeping some entries in flight and purging what is old.
async fn append(log: &Log, entry_bytes: usize, total_bytes: u64, first: u64) -> Result<()> {
    let payload = Bytes::from(vec![0x5a; entry_bytes]);
    let per_shard = total_bytes / entry_bytes as u64 / u64::from(SHARD_COUNT);
    let retained = RETAINED_BYTES / entry_bytes as u64;
    let (ended, mut ends) = mpsc::channel(SHARD_COUNT as usize);
    for shard in (0..SHARD_COUNT).map(ShardId::new) {
        let (log, payload, ended) = (log.clone(), payload.clone(), ended.clone());
        skein_node::tasks::spawn(async move {
            let room = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
            let confirmed = Arc::new(AtomicU64::new(0));
            for index in first..first + per_shard {
                let Ok(permit) = room.clone().acquire_owned().await else {
                    return;
                };
                let confirmed = confirmed.clone();
                let entry = Entry { index, term: 1, payload: payload.clone() };
                let done = move |result: Result<(), _>| {
                    confirmed.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
                    drop(permit);
                };
                log.append(shard, vec![entry], Box::new(done));
                if index % 64 == 0 && index > retained {
                    log.purge(shard, EntryId { term: 1, index: index - retained });
                }
            }
            drop(room.acquire_many(IN_FLIGHT_MAX as u32).await);
            // Nobody listens any more when another shard has failed.
            let _ = ended.send(confirmed.load(Ordering::Relaxed)).await;
        });
    }
    drop(ended);
    for _ in 0..SHARD_COUNT {
        let confirmed = ends.recv().await.context("a shard's task ended early")?;
        anyhow::ensure!(confirmed == per_shard, "{confirmed} of {per_shard} entries were confirmed");
    }
    Ok(())
}

/// User and system time of this process so far.
fn cpu_ms() -> Result<f64> {
    #[allow(clippy::disallowed_methods, reason = "this is no file of the node's")]
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().context("a name in parentheses")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
    // USER_HZ is 100 on every architecture we run on.
    Ok(ticks * 10.0)
}
