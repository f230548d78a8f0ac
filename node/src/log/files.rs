//! The directory of segment files: names, spares, and the thread that gets the next segment ready ahead of its use, so
//! that the writer never waits for a directory to be synced.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
};

use super::{
    error::{LogFailure, Operation},
    format::{NUMBER_MAX, SegmentNumber},
};
use crate::{
    disk::{Access, Disk, DiskFile},
    tasks,
};

const SEGMENT_SUFFIX: &str = ".seg";
const SPARE_SUFFIX: &str = ".spare";
/// Segment numbers have as many digits as the largest u64, so that names sort like numbers.
const NAME_DIGITS: usize = 20;

/// The files of one log.
pub(super) struct SegmentFiles {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) segment_bytes: u64,
    pub(super) spare_segments_max: usize,
    pub(super) direct_io: bool,
    /// Files of segments that nobody needs any more, by the number they had.
    pub(super) spares: Vec<SegmentNumber>,
    pub(super) spare_count: Arc<AtomicUsize>,
}

/// A file that is ready to become a segment: it has its name and its length, but not its header.
pub(super) struct PreparedSegment {
    pub(super) number: SegmentNumber,
    pub(super) path: PathBuf,
    pub(super) reader: Arc<dyn DiskFile>,
    pub(super) writer: Arc<dyn DiskFile>,
    pub(super) bytes: u64,
}

impl SegmentFiles {
    /// Of a log that is only read.
    pub(super) fn to_read(disk: Arc<dyn Disk>, dir: &Path) -> Self {
        Self {
            disk,
            dir: dir.to_owned(),
            segment_bytes: 0,
            spare_segments_max: 0,
            direct_io: false,
            spares: Vec::new(),
            spare_count: Arc::default(),
        }
    }

    pub(super) fn segment_path(&self, number: SegmentNumber) -> PathBuf {
        self.dir.join(format!("{number}{SEGMENT_SUFFIX}"))
    }

    fn spare_path(&self, number: SegmentNumber) -> PathBuf {
        self.dir.join(format!("{number}{SPARE_SUFFIX}"))
    }

    pub(super) fn open_to_write(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.open(path, Access::Write { direct: self.direct_io })
    }

    /// The numbers of the segments in the directory, rising. Notes the spares as well.
    pub(super) fn scan_dir(&mut self) -> io::Result<Vec<SegmentNumber>> {
        let names = self.disk.list(&self.dir)?;
        let numbered = |suffix: &str| {
            let mut numbers: Vec<_> = names.iter().filter_map(|name| parse_name(name, suffix)).collect();
            numbers.sort();
            numbers
        };
        self.spares = numbered(SPARE_SUFFIX);
        self.spare_count.store(self.spares.len(), Ordering::Relaxed);
        Ok(numbered(SEGMENT_SUFFIX))
    }

    /// Gets a segment's file ready, from a spare if there is one.
    pub(super) fn prepare(&mut self, number: SegmentNumber) -> Result<PreparedSegment, LogFailure> {
        let path = self.segment_path(number);
        let at = &path;
        let failed = |operation| move |error: io::Error| LogFailure::new(at, operation, error);
        self.name_file(&path).map_err(failed(Operation::Prepare))?;
        self.disk.sync_dir(&self.dir).map_err(failed(Operation::Sync))?;
        let reader = self.disk.open(&path, Access::Read).map_err(failed(Operation::Prepare))?;
        let writer = self.open_to_write(&path).map_err(failed(Operation::Prepare))?;
        Ok(PreparedSegment { number, path, reader, writer, bytes: self.segment_bytes })
    }

    fn name_file(&mut self, path: &Path) -> io::Result<()> {
        while let Some(spare) = self.spares.pop() {
            self.spare_count.store(self.spares.len(), Ordering::Relaxed);
            let spare_path = self.spare_path(spare);
            // Its length differs when the log was opened with another segment size meanwhile.
            if self.disk.open(&spare_path, Access::Read)?.bytes()? == self.segment_bytes {
                return self.disk.rename(&spare_path, path);
            }
            self.disk.remove(&spare_path)?;
        }
        self.disk.create(path, self.segment_bytes).inspect_err(|_| {
            // What was created before the disk was full would be in the way of the next attempt.
            drop(self.disk.remove(path));
        })
    }

    /// Puts the file of a segment that was given up aside, or removes it when there are spares enough.
    pub(super) fn retire(&mut self, number: SegmentNumber) -> Result<(), LogFailure> {
        let path = self.segment_path(number);
        let retired = if self.spares.len() < self.spare_segments_max {
            self.disk.rename(&path, &self.spare_path(number)).map(|()| self.spares.push(number))
        } else {
            self.disk.remove(&path)
        };
        self.spare_count.store(self.spares.len(), Ordering::Relaxed);
        retired
            .and_then(|()| self.disk.sync_dir(&self.dir))
            .map_err(|error| LogFailure::new(path, Operation::Retire, error))
    }
}

impl SegmentFiles {
    /// Removes spares until so many are left.
    fn trim_spares(&mut self, count_max: usize) -> Result<(), LogFailure> {
        while self.spares.len() > count_max
            && let Some(spare) = self.spares.pop()
        {
            self.spare_count.store(self.spares.len(), Ordering::Relaxed);
            let path = self.spare_path(spare);
            self.disk.remove(&path).map_err(|error| LogFailure::new(path, Operation::Retire, error))?;
        }
        Ok(())
    }
}

fn parse_name(name: &str, suffix: &str) -> Option<SegmentNumber> {
    let digits = name.strip_suffix(suffix)?;
    let is_ours = digits.len() == NAME_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    let is_number = |number: &u64| is_ours && (1..=NUMBER_MAX).contains(number);
    digits.parse().ok().filter(is_number).map(SegmentNumber::new)
}

/// The handle to the thread that owns the directory while the log is open.
pub(super) struct FileKeeper {
    /// Bounded by the number of segments: one preparation, and one retirement for each; trimming is asked for seldom.
    jobs: Option<Sender<Job>>,
    prepared: Receiver<Result<PreparedSegment, LogFailure>>,
    thread: Option<JoinHandle<()>>,
}

enum Job {
    Prepare(SegmentNumber),
    Retire(SegmentNumber),
    TrimSpares(usize),
}

impl FileKeeper {
    /// Starts the thread, which at once gets segment `next` ready.
    pub(super) fn start(mut files: SegmentFiles, next: SegmentNumber) -> io::Result<Self> {
        let (jobs, queue) = channel();
        let (done, prepared) = channel();
        let body = move || {
            let mut first_failure: Option<LogFailure> = None;
            while let Ok(job) = queue.recv() {
                match (job, &first_failure) {
                    (Job::Prepare(_), Some(failure)) => drop(done.send(Err(failure.clone()))),
                    (Job::Prepare(number), None) => drop(done.send(files.prepare(number))),
                    (Job::Retire(_) | Job::TrimSpares(_), Some(_)) => {}
                    (Job::Retire(number), None) => first_failure = files.retire(number).err(),
                    (Job::TrimSpares(count_max), None) => first_failure = files.trim_spares(count_max).err(),
                }
            }
        };
        let thread = tasks::spawn_thread("log-files", body)?;
        let keeper = Self { jobs: Some(jobs), prepared, thread: Some(thread) };
        keeper.prepare(next);
        Ok(keeper)
    }

    /// The segment that was got ready last; waits for it if need be. A preparation that failed is tried once more,
    /// since the disk may have been full then and no longer be; a failed sync is not.
    pub(super) fn take_prepared(&self, number: SegmentNumber) -> Result<PreparedSegment, LogFailure> {
        let prepared = self.receive(number).or_else(|failure| match failure.operation {
            Operation::Prepare => {
                self.prepare(number);
                self.receive(number)
            }
            _ => Err(failure),
        })?;
        assert_eq!(prepared.number, number, "segments are prepared in order");
        Ok(prepared)
    }

    /// Gets the next segment ready. Only when the one before it has begun: recovery takes no more than one segment that
    /// has not for normal.
    pub(super) fn prepare(&self, number: SegmentNumber) {
        self.send(Job::Prepare(number));
    }

    /// Puts a dead segment aside. A failure shows at the next [`take_prepared`](Self::take_prepared).
    pub(super) fn retire(&self, number: SegmentNumber) {
        self.send(Job::Retire(number));
    }

    /// Removes spares until so many are left.
    pub(super) fn trim_spares(&self, count_max: usize) {
        self.send(Job::TrimSpares(count_max));
    }

    fn receive(&self, number: SegmentNumber) -> Result<PreparedSegment, LogFailure> {
        self.prepared.recv().unwrap_or_else(|_| {
            let path = format!("{number}{SEGMENT_SUFFIX}");
            Err(LogFailure::new(path, Operation::Prepare, "the thread that prepares segments is gone"))
        })
    }

    fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // A thread that is gone shows when its answer is missing.
            drop(jobs.send(job));
        }
    }
}

impl Drop for FileKeeper {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It ends with its queue; had it panicked, the panic was reported already.
            drop(thread.join());
        }
    }
}
