//! The machine that a node runs on, as a test wants it to be: a clock that is set, a disk that takes its time. Nodes
//! are as they always are; what they ask the operating system is answered by `machine.c`, which is preloaded into them.

use std::{
    env,
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

const SOURCE: &str = include_str!("machine.c");

/// Names the file to the node.
const VARIABLE: &str = "SKEIN_TEST_MACHINE";

/// How far ahead the clock is, then how long the disk takes.
const FILE_BYTES: usize = 16;
const CLOCK_AT: u64 = 0;
const DISK_AT: u64 = 8;

/// A node's machine.
#[derive(Debug)]
pub struct Machine {
    library: &'static Path,
    path: PathBuf,
    file: File,
}

impl Machine {
    /// One as it is, which can be changed; what is said to it is kept in a file in `dir`.
    ///
    /// # Errors
    /// When there is no C compiler, or the file cannot be written.
    pub fn new(dir: &Path) -> Result<Self> {
        let path = dir.join("machine");
        fs::write(&path, [0; FILE_BYTES]).context("cannot write a machine's file")?;
        let file = OpenOptions::new().write(true).open(&path).context("cannot open a machine's file")?;
        Ok(Self { library: library()?, path, file })
    }

    /// Lets a program run on it.
    pub fn run(&self, command: &mut Command) {
        command.env("LD_PRELOAD", self.library).env(VARIABLE, &self.path);
    }

    /// Sets the clock, so many milliseconds ahead of what time it is; behind when less than 0.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_clock(&self, ahead_ms: i64) -> Result<()> {
        self.write(ahead_ms, CLOCK_AT)
    }

    /// Lets every write and every sync take so much longer.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn slow_disk_down(&self, by: Duration) -> Result<()> {
        self.write(i64::try_from(by.as_micros())?, DISK_AT)
    }

    fn write(&self, number: i64, at: u64) -> Result<()> {
        self.file.write_all_at(&number.to_ne_bytes(), at).context("cannot write a machine's file")
    }
}

/// What is preloaded, compiled once and kept beside this program.
fn library() -> Result<&'static Path> {
    static LIBRARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match LIBRARY.get_or_init(|| compile().map_err(|error| format!("{error:#}"))) {
        Ok(path) => Ok(path),
        Err(error) => bail!("{error}"),
    }
}

fn compile() -> Result<PathBuf> {
    let program = env::current_exe().context("where is this program?")?;
    let dir = program.parent().context("a program lies in a directory")?;
    let library = dir.join(format!("machine-{:08x}.so", crc32c::crc32c(SOURCE.as_bytes())));
    if library.exists() {
        return Ok(library);
    }
    // Others may be compiling it as well: it is there, or not, and never half of it.
    let work = tempfile::tempdir_in(dir).context("cannot make a directory")?;
    let (source, compiled) = (work.path().join("machine.c"), work.path().join("machine.so"));
    fs::write(&source, SOURCE).context("cannot write what is to be compiled")?;
    let output = Command::new("cc")
        .args(["-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o"])
        .args([&compiled, &source])
        .arg("-ldl")
        .output()
        .context("cannot run cc, the C compiler")?;
    ensure!(output.status.success(), "cc refuses:\n{}", String::from_utf8_lossy(&output.stderr));
    fs::rename(&compiled, &library).context("cannot keep what was compiled")?;
    Ok(library)
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    /// What time it is on a machine, in seconds.
    fn time_on(machine: &Machine) -> f64 {
        let mut command = Command::new("date");
        machine.run(command.arg("+%s.%N"));
        String::from_utf8(command.output().unwrap().stdout).unwrap().trim().parse().unwrap()
    }

    #[test]
    fn a_clock_is_set_and_set_right_again() {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine::new(dir.path()).unwrap();
        for ahead_ms in [0_i64, 3_600_500, -3_600_500, 999, -999, 0] {
            machine.set_clock(ahead_ms).unwrap();
            let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
            let off = time_on(&machine) - real - ahead_ms as f64 / 1_000.0;
            // How long it takes to ask.
            assert!((0.0..10.0).contains(&off), "{ahead_ms} ms ahead, and {off} s off");
        }
    }

    #[test]
    fn a_disk_takes_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine::new(dir.path()).unwrap();
        machine.slow_disk_down(Duration::from_millis(300)).unwrap();
        let begun = std::time::Instant::now();
        let mut command = Command::new("sync");
        machine.run(command.arg("--data").arg(&machine.path));
        assert!(command.status().unwrap().success());
        assert!(begun.elapsed() >= Duration::from_millis(300));
    }
}
