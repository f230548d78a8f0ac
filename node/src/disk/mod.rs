//! What the log asks of a file system: little enough that a faulty twin can stand in for it.

#[cfg(any(test, feature = "fuzzing"))]
pub mod faulty;
mod real;
mod text;

use std::{fmt, io, path::Path, sync::Arc};

pub use real::RealDisk;
pub use text::{read_text, replace_text};

/// Offsets, lengths and buffer addresses of writes to a file opened with [`Access::Write`] are multiples of this. The
/// page size of the machines we run on, and no smaller than the logical block of any disk in use.
pub const WRITE_ALIGNMENT_BYTES: usize = 4096;

/// A file system. What every implementation owes:
///
/// 1. After [`sync_dir`](Disk::sync_dir), every earlier creation, rename and removal in that directory survives a
///    loss of power. Before it, any of them may be undone.
/// 2. A name refers to the old file or the new one, never to a mixture.
/// 3. Files stay readable through open handles after they were renamed or removed.
pub trait Disk: Send + Sync + 'static {
    /// Creates the directory and its parents where they do not exist.
    ///
    /// # Errors
    /// Whatever the file system reports; so for all functions here.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Takes the directory for this process until the lock is dropped; `None` when somebody else has it.
    ///
    /// # Errors
    /// See [`create_dir_all`](Disk::create_dir_all).
    fn lock_dir(&self, dir: &Path) -> io::Result<Option<DirLock>>;

    /// The names of the files in the directory, in no particular order.
    ///
    /// # Errors
    /// See [`create_dir_all`](Disk::create_dir_all).
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Creates a file of `bytes` zeros whose space is reserved, and makes its length durable (but not its name). An
    /// existing file of that name is an error.
    ///
    /// # Errors
    /// See [`create_dir_all`](Disk::create_dir_all).
    fn create(&self, path: &Path, bytes: u64) -> io::Result<()>;

    /// Opens an existing file.
    ///
    /// # Errors
    /// See [`create_dir_all`](Disk::create_dir_all).
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives a file another name, replacing whatever had it.
    ///
    /// # Errors
    /// See [`create_dir_all`](Disk::create_dir_all).
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name.
    ///
    /// # Errors
    /// See [`create_dir_all`](Disk::create_dir_all).
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes creations, renames and removals in the directory durable.
    ///
    /// # Errors
    /// See [`create_dir_all`](Disk::create_dir_all).
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// How much room there is on the file system that the directory lies on.
    ///
    /// # Errors
    /// See [`create_dir_all`](Disk::create_dir_all).
    fn free_space(&self, dir: &Path) -> io::Result<FreeSpace>;
}

/// The room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeSpace {
    /// What a process without privileges may still take.
    pub free_bytes: u64,
    /// The file system's size.
    pub total_bytes: u64,
}

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only reading, at any offset.
    Read,
    /// Only writing, aligned to [`WRITE_ALIGNMENT_BYTES`].
    Write {
        /// Past the page cache, each write durable when it returns, where the file system can do that.
        direct: bool,
    },
}

/// An open file. Reads through one handle see what was written through another.
pub trait DiskFile: Send + Sync + 'static {
    /// The file's length in bytes.
    ///
    /// # Errors
    /// Whatever the file system reports; so for all functions here.
    fn bytes(&self) -> io::Result<u64>;

    /// Fills the buffer from `offset`. Ending before it is full is an error.
    ///
    /// # Errors
    /// See [`bytes`](DiskFile::bytes).
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`. A loss of power before they are durable leaves any part of them on disk.
    ///
    /// # Errors
    /// See [`bytes`](DiskFile::bytes).
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes earlier writes durable. After an error nobody knows which of them are: it must not be retried.
    ///
    /// # Errors
    /// See [`bytes`](DiskFile::bytes).
    fn sync_data(&self) -> io::Result<()>;

    /// Whether writes are durable when they return, so that [`sync_data`](DiskFile::sync_data) is not needed.
    fn writes_are_durable(&self) -> bool;
}

/// A directory taken for this process, until dropped.
pub struct DirLock {
    _held: Box<dyn Send + Sync>,
}

impl DirLock {
    fn new(held: impl Send + Sync + 'static) -> Self {
        Self { _held: Box::new(held) }
    }
}

impl fmt::Debug for DirLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DirLock")
    }
}
