//! `skein-node dump`: what a stopped node has on disk, checked from end to end, and never written to.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use skein_proto::ids::ShardId;

use crate::{
    disk::{Disk, RealDisk},
    log::{self, Inspection, RecordReport, SegmentReport},
    raft::SavedStates,
};

mod print;

/// What `skein-node dump` takes.
#[derive(clap::Args)]
pub struct DumpOptions {
    /// The data_dir of a node that does not run.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Show every record.
    #[arg(long)]
    records: bool,
    /// Only this segment's records.
    #[arg(long, value_name = "NUMBER", requires = "records")]
    segment: Option<u64>,
    /// Only this shard's records.
    #[arg(long, value_name = "SHARD", requires = "records")]
    shard: Option<u32>,
    /// Print JSON, one object.
    #[arg(long, conflicts_with = "records")]
    json: bool,
}

/// Reads a node's log and checkpoints, prints what is in them, and says what is wrong.
///
/// # Errors
/// When the directory cannot be read or is in use, and when something in it is damaged.
pub fn dump(options: &DumpOptions) -> anyhow::Result<()> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let dir = &options.dir;
    let log_dir = dir.join("log");
    let names = disk.list(&log_dir).with_context(|| {
        format!("{} has no log that can be read; name the data_dir of a node", dir.display())
    })?;
    let _locked = lock(disk.as_ref(), dir, &names)?;
    let mut out = io::stdout().lock();
    let inspection = show_records(options, disk, &log_dir, &mut out)?;
    let states = saved_states(dir, &inspection);
    let report = Report { inspection: &inspection, states: states.as_ref() };
    let shown = match options.json {
        true => print::json(&mut out, &report),
        false => print::text(&mut out, &report),
    };
    unless_nobody_reads(shown)?;
    verdict(&inspection)
}

/// Reads the log through, and shows the records that are asked for.
fn show_records(
    options: &DumpOptions,
    disk: Arc<dyn Disk>,
    log_dir: &Path,
    out: &mut dyn io::Write,
) -> anyhow::Result<Inspection> {
    let mut shown = if options.records { print::record_header(out) } else { Ok(()) };
    let mut on_record = |record: RecordReport| {
        let is_wanted = options.segment.is_none_or(|number| record.segment.get() == number)
            && options.shard.is_none_or(|shard| record.shard.get() == shard);
        if options.records && is_wanted && shown.is_ok() {
            shown = print::record(out, &record);
        }
    };
    let inspection = log::inspect(disk, log_dir, &mut on_record)?;
    unless_nobody_reads(shown)?;
    Ok(inspection)
}

/// Whoever reads only the first lines, `head` for example, has seen enough.
fn unless_nobody_reads(shown: io::Result<()>) -> anyhow::Result<()> {
    match shown {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("cannot print"),
        _ => Ok(()),
    }
}

/// What is printed.
struct Report<'a> {
    inspection: &'a Inspection,
    states: Result<&'a SavedStates, &'a anyhow::Error>,
}

impl Report<'_> {
    /// How much of a segment's messages is still needed, in bytes; raft's entries count whole.
    fn live_bytes(&self, segment: &SegmentReport) -> Option<u64> {
        let states = self.states.ok()?;
        let live = segment.shards.iter().map(|share| states.live_bytes(share.shard, &share.entries));
        Some(live.sum())
    }
}

/// A node that runs has its log locked. Without a lock file, none ever did.
fn lock(disk: &dyn Disk, dir: &Path, names: &[String]) -> anyhow::Result<Option<crate::disk::DirLock>> {
    if !names.iter().any(|name| name == "lock") {
        return Ok(None);
    }
    match disk.lock_dir(&dir.join("log")).context("the log's directory cannot be locked")? {
        Some(lock) => Ok(Some(lock)),
        None => bail!("{} is in use by a running node; stop it first", dir.display()),
    }
}

/// Reads the checkpoints from a copy, since the store writes when it is opened.
fn saved_states(dir: &Path, inspection: &Inspection) -> anyhow::Result<SavedStates> {
    let copy = std::env::temp_dir().join(format!("skein-dump-{:016x}", crate::random::random_u64()));
    let loaded = copy_dir(&dir.join("checkpoint"), &copy)
        .context("the checkpoints cannot be copied")
        .and_then(|()| Ok(SavedStates::load(&copy, shards(inspection).into_iter())?));
    // What is left of a copy harms nobody.
    let _ = fs::remove_dir_all(&copy);
    loaded
}

fn shards(inspection: &Inspection) -> BTreeSet<ShardId> {
    let in_segments = inspection.segments.iter().flat_map(|segment| &segment.shards);
    let known = inspection.shards.iter().flatten().map(|report| report.shard);
    in_segments.map(|share| share.shard).chain(known).collect()
}

#[expect(clippy::disallowed_methods, reason = "copies a stopped node's files, as a person would")]
fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// The last word, and the exit code.
fn verdict(inspection: &Inspection) -> anyhow::Result<()> {
    if let Err(error) = &inspection.shards {
        bail!("a node would not start on this: {error}");
    }
    let faults: usize = inspection.segments.iter().map(|segment| segment.faults.len()).sum();
    match faults {
        0 => Ok(()),
        count => bail!("{count} faults; a node that starts on this fetches from its peers what it lacks"),
    }
}
