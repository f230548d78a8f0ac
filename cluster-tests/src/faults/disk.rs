//! Disks that somebody else fills.

use std::{
    fs::{self, File},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use rustix::{
    fs::{FallocateFlags, fallocate},
    io::Errno,
};

use crate::{cluster::Cluster, recorder::Recorder};

/// A disk was filled to the brim.
pub const FILL_DISK: &str = "fill a disk";

/// Taken at a time; less than this is left free.
const STEP_BYTES: u64 = 64 << 10;

/// What fills a node's disk.
#[derive(Debug)]
#[must_use = "the disk is full until room is made"]
pub struct Filler {
    node_id: u64,
    file: PathBuf,
}

/// Takes all that is free on a node's disk.
///
/// # Errors
/// When that fails for another reason than that nothing is left.
pub fn fill(cluster: &Cluster, recorder: &Recorder, node_id: u64) -> Result<Filler> {
    recorder.disturbed(format!("the disk of node {node_id} is being filled"));
    let path = cluster.data_dir(node_id)?.join("filler");
    let file = File::create(&path).context("cannot make a file to fill a disk with")?;
    let mut end = 0;
    loop {
        match fallocate(&file, FallocateFlags::empty(), end, STEP_BYTES) {
            Ok(()) => end += STEP_BYTES,
            Err(Errno::NOSPC) => break,
            Err(error) => return Err(error).context("cannot fill a disk"),
        }
    }
    recorder.disturbed(format!("the disk of node {node_id} is full: {end} bytes were taken"));
    recorder.fault_done(FILL_DISK);
    Ok(Filler { node_id, file: path })
}

impl Filler {
    /// Gives back what was taken.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn make_room(self, recorder: &Recorder) -> Result<()> {
        fs::remove_file(&self.file).context("cannot make room")?;
        recorder.disturbed(format!("the disk of node {} has room again", self.node_id));
        Ok(())
    }
}
