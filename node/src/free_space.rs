//! Watches how much room the data directory's disk has, and says when it is too little to take publishes.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{
    disk::{Disk, FreeSpace},
    tasks,
};

/// How often the disk is asked. A fast disk takes a segment or two in that time, which the mark leaves room for.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The mark is this part of the disk, unless something else is configured: 5 %.
const MARK_PART: u64 = 20;

/// On large disks 5 % would be far more than acks and what is in flight can need.
const MARK_BYTES_MAX: u64 = 1 << 30;

/// On small disks 5 % would be less than what the log takes in one step: a segment is reserved as a whole, well before
/// it is written to, and acks go on for a while after the last publish.
const MARK_SEGMENTS_MIN: u64 = 4;

/// Publishing resumes this part of the mark above it, so that it does not start and stop with every segment.
const RESUME_PART: u64 = 8;

/// How a node's disk stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskState {
    /// What the log can still take: free on the disk, or held by files that it can use again.
    pub free_bytes: u64,
    /// Below this, the disk is low.
    pub mark_bytes: u64,
    /// The node takes no publishes for the shards it leads.
    pub is_low: bool,
}

impl DiskState {
    /// With this much room, publishing resumes.
    #[must_use]
    pub fn resume_bytes(&self) -> u64 {
        self.mark_bytes.saturating_add(self.mark_bytes / RESUME_PART)
    }

    /// How it stands after another look.
    fn next(self, free_bytes: u64, mark_bytes: u64) -> Self {
        let next = Self { free_bytes, mark_bytes, is_low: self.is_low };
        let enough_bytes = if self.is_low { next.resume_bytes() } else { mark_bytes };
        Self { is_low: free_bytes < enough_bytes, ..next }
    }
}

/// What is watched.
pub struct Watched {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// The data directory.
    pub dir: PathBuf,
    /// The mark; 0 stands for what suits the disk.
    pub disk_low_bytes: u64,
    /// Bytes of one segment of the log.
    pub segment_bytes: u64,
}

impl Watched {
    fn mark_bytes(&self, total_bytes: u64) -> u64 {
        match self.disk_low_bytes {
            0 => (total_bytes / MARK_PART).min(MARK_BYTES_MAX).max(MARK_SEGMENTS_MIN * self.segment_bytes),
            configured => configured,
        }
    }

    fn note(&self, found: FreeSpace, spare_bytes: u64, state: &watch::Sender<DiskState>) {
        let before = *state.borrow();
        let now =
            before.next(found.free_bytes.saturating_add(spare_bytes), self.mark_bytes(found.total_bytes));
        tell(self, before, now);
        state.send_if_modified(|state| {
            *state = now;
            before.is_low != now.is_low
        });
    }

    async fn look(&self) -> io::Result<FreeSpace> {
        let (disk, dir) = (Arc::clone(&self.disk), self.dir.clone());
        // A disk that hangs must not take a thread that serves clients with it.
        tasks::spawn_blocking(move || disk.free_space(&dir))
            .await
            .unwrap_or_else(|_| Err(io::Error::other("panic")))
    }
}

/// Asks the disk again and again, for as long as anyone listens. `spare_bytes` says how much of what is taken the log
/// can use again. Listeners are woken when the disk becomes low, and when it no longer is.
pub async fn watch(watched: Watched, spare_bytes: impl Fn() -> u64, state: watch::Sender<DiskState>) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut is_silent = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = state.closed() => return,
        }
        match watched.look().await {
            Ok(found) => {
                is_silent = false;
                watched.note(found, spare_bytes(), &state);
            }
            // The last answer stands: a disk that cannot say how full it is may well take writes.
            Err(error) => {
                if !std::mem::replace(&mut is_silent, true) {
                    let dir = watched.dir.display();
                    tracing::warn!(%error, "the disk of {dir} does not say how much room it has");
                }
            }
        }
    }
}

fn tell(watched: &Watched, before: DiskState, now: DiskState) {
    let (dir, free_bytes) = (watched.dir.display(), now.free_bytes);
    if now.is_low && !before.is_low {
        tracing::warn!(
            free_bytes,
            mark_bytes = now.mark_bytes,
            resume_bytes = now.resume_bytes(),
            "the disk of {dir} is nearly full: publishes are refused until resume_bytes are free; consume or purge \
             what is kept, or make room on the disk"
        );
    } else if before.is_low && !now.is_low {
        tracing::info!(free_bytes, "the disk of {dir} has room again: publishes are taken");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::faulty::FaultyDisk;

    const MIB: u64 = 1 << 20;

    fn watched(disk: &FaultyDisk, disk_low_bytes: u64) -> Watched {
        Watched {
            disk: Arc::new(disk.clone()),
            dir: PathBuf::from("data"),
            disk_low_bytes,
            segment_bytes: 64 * MIB,
        }
    }

    #[test]
    fn the_mark_suits_the_disk_unless_configured() {
        let mark_mib = |disk_low_bytes, total_mib: u64| {
            watched(&FaultyDisk::new(0), disk_low_bytes).mark_bytes(total_mib * MIB) / MIB
        };
        assert_eq!(mark_mib(0, 4_000_000), 1_024, "at most 1 GiB");
        assert_eq!(mark_mib(0, 10_000), 500, "5 %");
        assert_eq!(mark_mib(0, 1_000), 256, "at least four segments");
        assert_eq!(mark_mib(100 * MIB, 10_000), 100);
    }

    #[test]
    fn publishing_resumes_an_eighth_above_the_mark() {
        let low_at = |state: DiskState, free_bytes| state.next(free_bytes, 800).is_low;
        let well = DiskState::default();
        assert!(!low_at(well, 800));
        let low = well.next(799, 800);
        assert!(low.is_low);
        assert!(low_at(low, 899));
        assert!(!low_at(low, 900));
    }

    #[tokio::test]
    async fn listeners_hear_of_changes_and_spare_segments_are_room() {
        let disk = FaultyDisk::new(0);
        let watched = watched(&disk, 0);
        let (sender, mut state) = watch::channel(DiskState::default());
        let mut hears = async |free_mib: u64, spare_mib: u64| {
            disk.set_free_space(Some(FreeSpace { free_bytes: free_mib * MIB, total_bytes: 2_000 * MIB }));
            watched.note(watched.look().await.unwrap(), spare_mib * MIB, &sender);
            let changed = state.has_changed().unwrap();
            (changed, state.borrow_and_update().is_low)
        };
        assert_eq!(hears(256, 0).await, (false, false));
        assert_eq!(hears(255, 1).await, (false, false));
        assert_eq!(hears(255, 0).await, (true, true));
        assert_eq!(hears(255, 32).await, (false, true));
        assert_eq!(hears(255, 33).await, (true, false));
        disk.set_free_space(None);
        assert!(watched.look().await.is_err());
    }

    #[tokio::test]
    async fn the_watch_asks_the_disk_and_ends_with_its_listeners() {
        let disk = FaultyDisk::new(0);
        disk.set_free_space(Some(FreeSpace { free_bytes: MIB, total_bytes: 2_000 * MIB }));
        let (sender, mut state) = watch::channel(DiskState::default());
        let watching = tasks::spawn(watch(watched(&disk, 0), || 0, sender));
        assert_eq!(state.wait_for(|state| state.is_low).await.unwrap().free_bytes, MIB);
        drop(state);
        watching.await.unwrap();
    }
}
