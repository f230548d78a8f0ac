//! CPU, memory and disk writes of the broker processes, read from `/proc`.

use std::{fs, io, time::Duration};

use anyhow::Context;

/// What the kernel counts CPU time in, for user space: 10 ms on every Linux.
const CLOCK_TICK: Duration = Duration::from_millis(10);

/// The processes that are watched.
#[derive(Debug)]
pub(super) struct Processes {
    pids: Vec<u32>,
    rss_bytes_max: u64,
}

/// The processes at one moment, together. What has died since counts with what it had used when last seen alive:
/// nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sample {
    cpu: Duration,
    rss_bytes: u64,
    written_bytes: u64,
}

/// What the processes used between two moments.
#[derive(Debug)]
pub(super) struct Usage {
    pub(super) cpu: Duration,
    /// The most that was seen, all processes together.
    pub(super) rss_bytes_max: u64,
    pub(super) written_bytes: u64,
}

impl Processes {
    pub(super) fn new(pids: &[u32]) -> anyhow::Result<Self> {
        for pid in pids {
            Sample::read(*pid).with_context(|| format!("process {pid} cannot be watched"))?;
        }
        Ok(Self { pids: pids.to_vec(), rss_bytes_max: 0 })
    }

    /// Looks at the processes. Those that are gone are passed over.
    pub(super) fn sample(&mut self) -> anyhow::Result<Sample> {
        let mut sum = Sample::default();
        for pid in &self.pids {
            let sample = match Sample::read(*pid) {
                Ok(sample) => sample,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error.context(format!("cannot read /proc/{pid}"))),
            };
            sum.cpu += sample.cpu;
            sum.rss_bytes += sample.rss_bytes;
            sum.written_bytes += sample.written_bytes;
        }
        self.rss_bytes_max = self.rss_bytes_max.max(sum.rss_bytes);
        Ok(sum)
    }

    pub(super) fn usage(&self, before: &Sample, after: &Sample) -> Usage {
        Usage {
            cpu: after.cpu.saturating_sub(before.cpu),
            rss_bytes_max: self.rss_bytes_max,
            written_bytes: after.written_bytes.saturating_sub(before.written_bytes),
        }
    }
}

impl Sample {
    fn read(pid: u32) -> anyhow::Result<Self> {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
        let ticks = cpu_ticks(&read("stat")?).context("stat looks different than expected")?;
        let rss_kib = field(&read("status")?, "VmRSS:").context("status has no VmRSS")?;
        let written_bytes = field(&read("io")?, "write_bytes:").context("io has no write_bytes")?;
        Ok(Self { cpu: CLOCK_TICK * ticks, rss_bytes: rss_kib << 10, written_bytes })
    }
}

/// utime and stime: fields 14 and 15. The name in field 2 may contain anything, so counting starts behind it.
fn cpu_ticks(stat: &str) -> Option<u32> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    Some(ticks()? + ticks()?)
}

fn field(file: &str, name: &str) -> Option<u64> {
    let line = file.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn is_gone(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    kind == Some(io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 500 0 0 0 70 30 0 0 20 0 8 0 100 1000 200";
        assert_eq!(cpu_ticks(stat), Some(100));
    }

    #[test]
    fn fields_are_found_by_name() {
        let io = "rchar: 1\nwrite_bytes: 4096\ncancelled_write_bytes: 7\n";
        assert_eq!(field(io, "write_bytes:"), Some(4_096));
        assert_eq!(field(io, "read_bytes:"), None);
    }

    #[test]
    fn this_process_uses_memory_and_a_dead_one_nothing() {
        let mut processes = Processes::new(&[std::process::id()]).unwrap();
        assert!(processes.sample().unwrap().rss_bytes > 0);
        let mut gone = Processes { pids: vec![u32::MAX], rss_bytes_max: 0 };
        assert_eq!(gone.sample().unwrap(), Sample::default());
        let refused = Processes::new(&[u32::MAX]).unwrap_err();
        assert!(format!("{refused:#}").starts_with("process 4294967295 cannot be watched: "), "{refused:#}");
    }
}
