//! Small text files, such as a configuration: read whole, replaced whole.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use super::Disk;

/// Reads a text file.
///
/// # Errors
/// Whatever the file system reports, and text that is not UTF-8.
#[allow(clippy::disallowed_methods, reason = "this module is where files are touched")]
pub fn read_text(path: &Path) -> io::Result<String> {
    fs::read_to_string(path)
}

/// Puts a file in place of what had its name, durably: after a loss of power there is the old text or the new one.
///
/// # Errors
/// Whatever the file system reports. Nobody knows then which of the two is on disk.
#[allow(clippy::disallowed_methods, reason = "this module is where files are touched")]
pub fn replace_text(disk: &dyn Disk, dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let new = dir.join(format!("{name}.new"));
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    disk.rename(&new, &dir.join(name))?;
    disk.sync_dir(dir)
}
