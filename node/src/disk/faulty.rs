//! A file system in memory that loses power, tears writes and fails on demand, the same way for the same seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Access, DirLock, Disk, DiskFile, FreeSpace, WRITE_ALIGNMENT_BYTES};

/// What a disk writes whole or not at all, in bytes.
const SECTOR_BYTES: usize = 512;

/// The faulty file system. Clones are the same one.
#[derive(Clone)]
pub struct FaultyDisk(Arc<Mutex<Twin>>);

/// What the n-th change does instead of what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Fails with EIO. A write has happened in part; a sync has made part of it durable and forgets the rest.
    Io,
    /// Fails with ENOSPC; nothing has happened.
    NoSpace,
    /// The power goes, in the midst of it.
    PowerLoss,
}

#[derive(Default)]
struct Twin {
    files: Vec<FileState>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    /// What happened to names since their directory was synced.
    name_changes: Vec<NameChange>,
    random: u64,
    /// Counts restarts: a handle from before one is dead.
    boot: u64,
    has_power: bool,
    is_locked: bool,
    change_count: u64,
    faults: BTreeMap<u64, Fault>,
    fired_count: u64,
    creations_to_refuse: u64,
    /// How many changes were asked for after the first that failed with [`Fault::Io`].
    writes_after_failure: u64,
    has_failed: bool,
    /// What is told to whoever asks for the room there is; an error where nothing was set.
    free_space: Option<FreeSpace>,
}

#[derive(Default)]
struct FileState {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors that differ from what is durable.
    dirty: BTreeSet<usize>,
}

enum NameChange {
    Add(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl FaultyDisk {
    /// An empty disk, whose accidents depend on the seed.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Twin { random: seed, has_power: true, ..Twin::default() })))
    }

    /// How many changes (writes, syncs, and what happens to names) were asked for.
    pub fn change_count(&self) -> u64 {
        self.lock().change_count
    }

    /// How many writes and syncs were asked for after the first I/O error.
    pub fn writes_after_failure(&self) -> u64 {
        self.lock().writes_after_failure
    }

    /// Has the change fail that comes after `later` more of them.
    pub fn inject(&self, later: u64, fault: Fault) {
        let mut twin = self.lock();
        let at = twin.change_count + later + 1;
        twin.faults.insert(at, fault);
    }

    /// Has the next `count` creations fail for want of space.
    pub fn refuse_creations(&self, count: u64) {
        self.lock().creations_to_refuse = count;
    }

    /// Sets what is told to whoever asks for the room there is; with `None` asking fails.
    pub fn set_free_space(&self, free_space: Option<FreeSpace>) {
        self.lock().free_space = free_space;
    }

    /// How many faults have happened.
    pub fn fired_count(&self) -> u64 {
        self.lock().fired_count
    }

    /// Whether the power is on.
    pub fn has_power(&self) -> bool {
        self.lock().has_power
    }

    /// Calls off the faults that have not happened yet.
    pub fn clear_faults(&self) {
        self.lock().faults.clear();
    }

    /// Switches the power off and on: of what was not synced, any part is lost. Handles from before are dead.
    pub fn restart(&self) {
        let mut twin = self.lock();
        twin.lose_what_is_not_durable();
        twin.boot += 1;
        twin.has_power = true;
        twin.is_locked = false;
        twin.has_failed = false;
        twin.faults.clear();
    }

    /// The files' names, sorted.
    pub fn names(&self) -> Vec<PathBuf> {
        self.lock().names.keys().cloned().collect()
    }

    /// What a file holds.
    pub fn contents(&self, path: &Path) -> Vec<u8> {
        let twin = self.lock();
        twin.files[twin.names[path]].bytes.clone()
    }

    /// Replaces what a file holds, durably, behind everybody's back.
    pub fn overwrite(&self, path: &Path, bytes: Vec<u8>) {
        let mut twin = self.lock();
        let id = twin.names[path];
        twin.files[id] = FileState { durable: bytes.clone(), bytes, dirty: BTreeSet::new() };
    }

    /// An independent disk that holds what this one does, all of it durable.
    pub fn duplicate(&self) -> Self {
        let twin = self.lock();
        let files = twin.files.iter().map(|file| FileState {
            bytes: file.bytes.clone(),
            durable: file.bytes.clone(),
            dirty: BTreeSet::new(),
        });
        Self(Arc::new(Mutex::new(Twin {
            files: files.collect(),
            names: twin.names.clone(),
            durable_names: twin.names.clone(),
            random: twin.random,
            has_power: true,
            ..Twin::default()
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Twin> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Twin {
    fn next_random(&mut self) -> u64 {
        // splitmix64
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn powered(&self) -> io::Result<()> {
        if self.has_power { Ok(()) } else { Err(io::Error::other("no power")) }
    }

    /// Counts a change and tells what goes wrong with it.
    fn begin_change(&mut self) -> io::Result<Option<Fault>> {
        self.powered()?;
        self.change_count += 1;
        let fault = self.faults.remove(&self.change_count);
        self.fired_count += u64::from(fault.is_some());
        if fault == Some(Fault::PowerLoss) {
            self.has_power = false;
        }
        Ok(fault)
    }

    /// A change that happens whole or not at all; a power loss decides which.
    fn change_names(&mut self) -> io::Result<()> {
        match self.begin_change()? {
            None => Ok(()),
            Some(fault) => Err(error_of(fault)),
        }
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn lose_what_is_not_durable(&mut self) {
        let kept = self.next_random() as usize % (self.name_changes.len() + 1);
        for change in std::mem::take(&mut self.name_changes).into_iter().take(kept) {
            apply(&mut self.durable_names, change);
        }
        self.names = self.durable_names.clone();
        for id in 0..self.files.len() {
            let dirty = std::mem::take(&mut self.files[id].dirty);
            for sector in dirty {
                if self.next_random().is_multiple_of(2) {
                    self.files[id].keep(sector);
                }
            }
            let file = &mut self.files[id];
            file.bytes = file.durable.clone();
        }
    }
}

impl FileState {
    fn keep(&mut self, sector: usize) {
        let range = sector * SECTOR_BYTES..((sector + 1) * SECTOR_BYTES).min(self.bytes.len());
        self.durable[range.clone()].copy_from_slice(&self.bytes[range]);
    }

    fn write(&mut self, bytes: &[u8], offset: usize) {
        assert!(offset + bytes.len() <= self.bytes.len(), "segments never grow");
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.dirty.extend(offset / SECTOR_BYTES..(offset + bytes.len()).div_ceil(SECTOR_BYTES));
    }

    fn sync(&mut self) {
        for sector in std::mem::take(&mut self.dirty) {
            self.keep(sector);
        }
    }
}

fn apply(names: &mut BTreeMap<PathBuf, usize>, change: NameChange) {
    match change {
        NameChange::Add(path, id) => {
            names.insert(path, id);
        }
        NameChange::Rename(from, to) => {
            let id = names.remove(&from).expect("it was found before the change");
            names.insert(to, id);
        }
        NameChange::Remove(path) => {
            names.remove(&path).expect("it was found before the change");
        }
    }
}

fn error_of(fault: Fault) -> io::Error {
    match fault {
        Fault::Io => io::Error::from_raw_os_error(5),
        Fault::NoSpace => io::Error::from(io::ErrorKind::StorageFull),
        Fault::PowerLoss => io::Error::other("the power went"),
    }
}

impl Disk for FaultyDisk {
    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        self.lock().powered()
    }

    fn lock_dir(&self, _dir: &Path) -> io::Result<Option<DirLock>> {
        let mut twin = self.lock();
        twin.powered()?;
        if std::mem::replace(&mut twin.is_locked, true) {
            return Ok(None);
        }
        Ok(Some(DirLock::new(HeldLock { disk: self.clone(), boot: twin.boot })))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let twin = self.lock();
        twin.powered()?;
        let inside = twin.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn create(&self, path: &Path, bytes: u64) -> io::Result<()> {
        let mut twin = self.lock();
        twin.change_names()?;
        if let Some(left) = twin.creations_to_refuse.checked_sub(1) {
            twin.creations_to_refuse = left;
            return Err(error_of(Fault::NoSpace));
        }
        if twin.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let zeros = vec![0; usize::try_from(bytes).expect("files fit in memory")];
        twin.files.push(FileState { durable: zeros.clone(), bytes: zeros, dirty: BTreeSet::new() });
        let id = twin.files.len() - 1;
        twin.names.insert(path.to_owned(), id);
        twin.name_changes.push(NameChange::Add(path.to_owned(), id));
        Ok(())
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let twin = self.lock();
        twin.powered()?;
        let (id, boot) = (twin.find(path)?, twin.boot);
        let durable = access == Access::Write { direct: true };
        Ok(Arc::new(FaultyFile {
            disk: self.clone(),
            id,
            boot,
            is_writable: access != Access::Read,
            durable,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut twin = self.lock();
        twin.change_names()?;
        twin.find(from)?;
        let change = || NameChange::Rename(from.to_owned(), to.to_owned());
        apply(&mut twin.names, change());
        twin.name_changes.push(change());
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut twin = self.lock();
        twin.change_names()?;
        twin.find(path)?;
        apply(&mut twin.names, NameChange::Remove(path.to_owned()));
        twin.name_changes.push(NameChange::Remove(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        let mut twin = self.lock();
        twin.change_names()?;
        for change in std::mem::take(&mut twin.name_changes) {
            apply(&mut twin.durable_names, change);
        }
        Ok(())
    }

    fn free_space(&self, _dir: &Path) -> io::Result<FreeSpace> {
        let twin = self.lock();
        twin.powered()?;
        twin.free_space.ok_or_else(|| error_of(Fault::Io))
    }
}

struct HeldLock {
    disk: FaultyDisk,
    boot: u64,
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        let mut twin = self.disk.lock();
        if twin.boot == self.boot {
            twin.is_locked = false;
        }
    }
}

struct FaultyFile {
    disk: FaultyDisk,
    id: usize,
    boot: u64,
    is_writable: bool,
    durable: bool,
}

impl FaultyFile {
    fn lock(&self) -> io::Result<MutexGuard<'_, Twin>> {
        let twin = self.disk.lock();
        twin.powered()?;
        if twin.boot == self.boot { Ok(twin) } else { Err(io::Error::other("opened before the restart")) }
    }

    fn begin_change<'a>(&'a self) -> io::Result<(MutexGuard<'a, Twin>, Option<Fault>)> {
        let mut twin = self.lock()?;
        assert!(self.is_writable, "the file was opened to be read");
        if twin.has_failed {
            twin.writes_after_failure += 1;
        }
        let fault = twin.begin_change()?;
        twin.has_failed |= fault == Some(Fault::Io);
        Ok((twin, fault))
    }
}

impl DiskFile for FaultyFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.lock()?.files[self.id].bytes.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let twin = self.lock()?;
        let start = usize::try_from(offset).expect("files fit in memory");
        let found = twin.files[self.id].bytes.get(start..start + buffer.len());
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let is_aligned = |number: usize| number.is_multiple_of(WRITE_ALIGNMENT_BYTES);
        let offset = usize::try_from(offset).expect("files fit in memory");
        assert!(is_aligned(offset) && is_aligned(bytes.len()) && is_aligned(bytes.as_ptr().addr()));
        let (mut twin, fault) = self.begin_change()?;
        let written = match fault {
            None | Some(Fault::PowerLoss) => bytes.len(),
            Some(Fault::Io) => bytes.len() / 2,
            Some(Fault::NoSpace) => 0,
        };
        let file = &mut twin.files[self.id];
        file.write(&bytes[..written], offset);
        match fault {
            Some(fault) => Err(error_of(fault)),
            None => {
                if self.durable {
                    file.sync();
                }
                Ok(())
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        let (mut twin, fault) = self.begin_change()?;
        match fault {
            None => twin.files[self.id].sync(),
            Some(Fault::Io) => {
                // As Linux does it: pages that could not be written are clean afterwards, and the next sync succeeds.
                for sector in std::mem::take(&mut twin.files[self.id].dirty) {
                    if twin.next_random().is_multiple_of(2) {
                        twin.files[self.id].keep(sector);
                    }
                }
            }
            Some(Fault::NoSpace | Fault::PowerLoss) => {}
        }
        fault.map_or(Ok(()), |fault| Err(error_of(fault)))
    }

    fn writes_are_durable(&self) -> bool {
        self.durable
    }
}
