//! File systems of a node's own, so that they can be filled, or lose what is not on disk, without harm to the machine.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

/// Enough for a file system that is only made to see whether one can be.
const TRIAL_BYTES: u64 = 16 << 20;

/// Where a node's data lies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DiskKind {
    /// On the disk of the temporary directory, like everything else.
    #[default]
    Shared,
    /// In memory, and so small that it can be filled.
    Tmpfs {
        /// All the room there is.
        bytes: u64,
    },
    /// ext4 in a file. It can be shut down while the machine goes on.
    Ext4 {
        /// All the room there is. The file takes no more than what was written.
        bytes: u64,
    },
}

impl DiskKind {
    /// Why a machine, or whoever runs the tests, cannot have such file systems. `None` when it can.
    #[must_use]
    pub fn unavailable(self) -> Option<String> {
        let trial = match self {
            Self::Shared => return None,
            Self::Tmpfs { .. } => Self::Tmpfs { bytes: TRIAL_BYTES },
            Self::Ext4 { .. } => Self::Ext4 { bytes: TRIAL_BYTES },
        };
        let mounted = tempfile::tempdir()
            .context("cannot make a directory")
            .and_then(|dir| Ok((trial.mount(&dir.path().join("data"))?, dir)));
        mounted.err().map(|error| format!("{error:#}"))
    }

    /// Makes the directory `at`, on a file system of this kind. `None` when it is one like any other.
    ///
    /// # Errors
    /// When it cannot be mounted: for want of a program, of a kernel that can, or of the right to.
    pub fn mount(self, at: &Path) -> Result<Option<Mount>> {
        let (image, options) = match self {
            Self::Shared => return Ok(None),
            Self::Tmpfs { bytes } => (None, format!("size={bytes}")),
            Self::Ext4 { bytes } => (Some(image(at, bytes)?), "loop".to_owned()),
        };
        fs::create_dir(at).with_context(|| format!("cannot make {}", at.display()))?;
        // Dropped when mounting fails, which then has nothing to undo.
        let mut mount = Mount { at: at.to_owned(), image, options, is_mounted: false };
        mount.mount()?;
        Ok(Some(mount))
    }
}

/// A new ext4 file system in a file beside the directory.
fn image(at: &Path, bytes: u64) -> Result<PathBuf> {
    let image = at.with_extension("ext4");
    File::create(&image).and_then(|file| file.set_len(bytes)).context("cannot make an image")?;
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
    Ok(image)
}

/// A mounted file system. Dropping it unmounts it, whatever happened; processes that use it must have ended.
#[derive(Debug)]
pub struct Mount {
    at: PathBuf,
    image: Option<PathBuf>,
    options: String,
    is_mounted: bool,
}

impl Mount {
    /// Unmounts the file system and mounts it again, as a machine does that starts again.
    ///
    /// # Errors
    /// When somebody uses it, when it cannot be mounted any more, and when it is in memory, where nothing would be
    /// left of it.
    pub fn remount(&mut self) -> Result<()> {
        ensure!(self.image.is_some(), "{} is in memory and would be gone", self.at.display());
        self.unmount()?;
        self.mount()
    }

    /// Unmounts it and leaves what is on it for someone to look at: the image, or a copy in place of the directory.
    pub(crate) fn keep(mut self) -> Result<()> {
        if self.image.is_some() {
            return self.unmount();
        }
        let copy = self.at.with_extension("copy");
        run(Command::new("cp").args(["-a", "--sparse=always"]).arg(&self.at).arg(&copy))?;
        self.unmount()?;
        fs::remove_dir(&self.at).context("cannot remove what was mounted on")?;
        fs::rename(&copy, &self.at).context("cannot put the copy in its place")
    }

    fn mount(&mut self) -> Result<()> {
        let (kind, source) = match &self.image {
            Some(image) => ("ext4", image.as_path()),
            None => ("tmpfs", Path::new("skein-cluster-tests")),
        };
        run(Command::new("mount").args(["-t", kind, "-o", &self.options]).arg(source).arg(&self.at))?;
        self.is_mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        run(Command::new("umount").arg(&self.at))?;
        self.is_mounted = false;
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.is_mounted && self.unmount().is_err() {
            // It goes as soon as nobody uses it. Nobody is left to hear of a failure.
            let _ = run(Command::new("umount").arg("--lazy").arg(&self.at));
        }
    }
}

/// Runs a program to its end. What it complains about is part of the error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {program}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    let complaint = complaint.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    ensure!(output.status.success(), "{program} failed ({}): {complaint}", output.status);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_says_why() {
        let error = run(Command::new("sh").args(["-c", "echo no room >&2; exit 3"])).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("no room") && error.contains('3'), "{error}");
        assert!(run(&mut Command::new("skein-no-such-program")).is_err());
    }

    #[test]
    fn mounts_are_gone_when_dropped_and_what_is_kept_stays() {
        let kind = DiskKind::Tmpfs { bytes: TRIAL_BYTES };
        if kind.unavailable().is_some() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("data");
        let mount = kind.mount(&at).unwrap().unwrap();
        fs::write(at.join("lost"), "lost").unwrap();
        drop(mount);
        assert_eq!(fs::read_dir(&at).unwrap().count(), 0);
        fs::remove_dir(&at).unwrap();

        let mount = kind.mount(&at).unwrap().unwrap();
        fs::write(at.join("kept"), "kept").unwrap();
        mount.keep().unwrap();
        assert_eq!(fs::read_to_string(at.join("kept")).unwrap(), "kept");
    }
}
