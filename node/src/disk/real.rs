//! The operating system's file system.
#![allow(clippy::disallowed_methods, reason = "the one place that touches files")]

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
};

use rustix::{
    fs::{FallocateFlags, FlockOperation, OFlags, fallocate, flock, statvfs},
    io::Errno,
};

use super::{Access, DirLock, Disk, DiskFile, FreeSpace};
use crate::planted::{Bug, is_planted};

/// The file whose lock stands for its directory's.
const LOCK_FILE_NAME: &str = "lock";

/// The operating system's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        // The directory's own name lies in its parent.
        match dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => self.sync_dir(parent),
            None => Ok(()),
        }
    }

    fn lock_dir(&self, dir: &Path) -> io::Result<Option<DirLock>> {
        let path = dir.join(LOCK_FILE_NAME);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(DirLock::new(file))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            // A name that is not UTF-8 is none of ours.
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn create(&self, path: &Path, bytes: u64) -> io::Result<()> {
        let file = OpenOptions::new().create_new(true).write(true).open(path)?;
        match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => {}
            // Without reservation a full disk shows later, as a failed write, which is handled as well.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(bytes)?,
            Err(errno) => return Err(errno.into()),
        }
        file.sync_all()
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        match access {
            Access::Read => Ok(Arc::new(RealFile { file: File::open(path)?, durable: false })),
            Access::Write { direct: true } if !is_planted(Bug::NeverSynced) => match open_direct(path) {
                // What a file system without O_DIRECT answers.
                Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                    open_buffered(path)
                }
                opened => opened,
            },
            Access::Write { .. } => open_buffered(path),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn free_space(&self, dir: &Path) -> io::Result<FreeSpace> {
        let found = statvfs(dir)?;
        Ok(FreeSpace {
            free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
            total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
        })
    }
}

fn open_direct(path: &Path) -> io::Result<Arc<dyn DiskFile>> {
    let flags = (OFlags::DIRECT | OFlags::DSYNC).bits().cast_signed();
    let file = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
    Ok(Arc::new(RealFile { file, durable: true }))
}

fn open_buffered(path: &Path) -> io::Result<Arc<dyn DiskFile>> {
    let file = OpenOptions::new().write(true).open(path)?;
    Ok(Arc::new(RealFile { file, durable: is_planted(Bug::NeverSynced) }))
}

struct RealFile {
    file: File,
    durable: bool,
}

impl DiskFile for RealFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn writes_are_durable(&self) -> bool {
        self.durable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_takes_room_that_was_free() {
        let dir = tempfile::tempdir().unwrap();
        let before = RealDisk.free_space(dir.path()).unwrap();
        assert!(before.free_bytes <= before.total_bytes);
        // More than others are likely to free meanwhile.
        let bytes = 256 << 20;
        RealDisk.create(&dir.path().join("file"), bytes).unwrap();
        let after = RealDisk.free_space(dir.path()).unwrap();
        assert!(after.free_bytes < before.free_bytes, "{before:?}, then {after:?}");
    }
}
