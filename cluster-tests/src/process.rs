//! One node process: started, ended in every way there is, and never left behind.

use std::{
    env,
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::{machine::Machine, network::Host, wait};

/// Names a node binary to test instead of the one that belongs to this build.
const BINARY_VARIABLE: &str = "SKEIN_NODE_BIN";

/// How much a node logs unless `RUST_LOG` says otherwise.
const DEFAULT_LOG_FILTER: &str = "info";

/// The end of a log that is worth printing.
const LOG_TAIL_LINES: usize = 60;

/// The unit of processes' times, on every Linux.
const CLOCK_TICK: Duration = Duration::from_millis(10);

/// What a node finds around itself.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// A host of its own.
    pub host: Option<&'a Host>,
    /// A machine that can be changed.
    pub machine: Option<&'a Machine>,
    /// Variables of its environment.
    pub variables: &'a [(&'static str, &'static str)],
}

/// A running process. Dropping it kills it and waits for its end.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Runs a node with this configuration, and with a token if it is to join a cluster. What it logs is appended to a
    /// file.
    ///
    /// # Errors
    /// When there is no node binary, or it cannot be started.
    pub fn start_node(
        config: &Path,
        log: &Path,
        around: Surroundings<'_>,
        token: Option<&str>,
    ) -> Result<Self> {
        let Surroundings { host, machine, variables } = around;
        let binary = node_binary()?;
        let mut command = host.map_or_else(|| Command::new(binary), |host| host.command(binary));
        command.arg("run").arg("--config").arg(config);
        if let Some(token) = token {
            command.arg("--join-token").arg(token);
        }
        if let Some(machine) = machine {
            machine.run(&mut command);
        }
        if env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", DEFAULT_LOG_FILTER);
        }
        command.envs(variables.iter().copied());
        Self::start(command, log)
    }

    /// Runs a program. What it says is appended to a file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command, log: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(log).context("cannot open the log")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("cannot share the log")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self { child })
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How long processors have worked for it.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat =
            fs::read_to_string(format!("/proc/{}/stat", self.id())).context("cannot read a node's times")?;
        // As proc_pid_stat(5) has it: eleven fields come between the name and both times.
        let (_, behind_name) =
            stat.rsplit_once(')').context("a node's times look different than expected")?;
        let ticks: Vec<u32> =
            behind_name.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
        Ok(CLOCK_TICK * ticks.iter().sum())
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("cannot ask for the end of a process")
    }

    /// Ends it at once, as `kill -9` does, and waits until it is gone.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().context("cannot kill a node")?;
        self.child.wait().context("cannot wait for a killed node")?;
        Ok(())
    }

    /// Asks it to drain and leave (SIGTERM), and waits for its end.
    ///
    /// # Errors
    /// When it is still there after `limit`; it is killed then.
    pub async fn terminate(mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        wait::until("a node that was asked to leave", limit, async || match self.ended()? {
            Some(status) => Ok(status),
            None => bail!("it is still there"),
        })
        .await
    }

    /// Stops it without ending it (SIGSTOP), until [`Process::resume`].
    ///
    /// # Errors
    /// When it has ended.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on after [`Process::pause`].
    ///
    /// # Errors
    /// When it has ended.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("not a process id")?;
        kill_process(id, signal).with_context(|| format!("cannot send {signal:?}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nobody is left to hear of a failure; one that ended already is no failure.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of a log.
#[must_use]
pub fn log_tail(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

/// The node program of this build, brought up to date once.
///
/// # Errors
/// When it does not build.
pub fn node_binary() -> Result<&'static Path> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let find = || match env::var_os(BINARY_VARIABLE) {
        Some(path) => Ok(path.into()),
        None => build("skein-node", Kind::Program, "skein-node"),
    };
    match BINARY.get_or_init(|| find().map_err(|error| format!("{error:#}"))) {
        Ok(path) => Ok(path),
        Err(error) => bail!("no node program to test: {error}; or name one in {BINARY_VARIABLE}"),
    }
}

/// The command line of this build.
///
/// # Errors
/// When it does not build.
pub fn command_line_binary() -> Result<PathBuf> {
    build("skein-client", Kind::Program, "skein").context("no command line to test")
}

/// An example of the client library of this build.
///
/// # Errors
/// When it does not build.
pub fn example_binary(name: &str) -> Result<PathBuf> {
    build("skein-client", Kind::Example, name).with_context(|| format!("no example {name} to test"))
}

/// What a package can have to be run.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Program,
    Example,
}

fn build(package: &str, kind: Kind, name: &str) -> Result<PathBuf> {
    let (option, folder) = match kind {
        Kind::Program => ("--bin", ""),
        Kind::Example => ("--example", "examples"),
    };
    let program = env::current_exe().context("where is this program?")?;
    // target/<profile>/<program>, or target/<profile>/deps/<test>
    let dir = program.parent().context("a program lies in a directory")?;
    let profile = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
    // Cargo builds no binary of another package for a test; and one from yesterday must not be tested.
    if let Some(cargo) = env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--package", package, option, name]);
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        if profile.ends_with("release") {
            build.arg("--release");
        }
        let output = build.output().context("cannot run cargo")?;
        ensure!(output.status.success(), "it does not build:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    let binary = profile.join(folder).join(name);
    ensure!(binary.is_file(), "cargo build {option} {name} first ({} is not there)", binary.display());
    Ok(binary)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn sleeper(log: &Path, script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::start(command, log).unwrap()
    }

    fn is_alive(id: u32) -> bool {
        rustix::process::test_kill_process(Pid::from_raw(i32::try_from(id).unwrap()).unwrap()).is_ok()
    }

    #[test]
    fn is_gone_when_dropped_even_while_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let process = sleeper(&dir.path().join("log"), "exec sleep 600");
        process.pause().unwrap();
        let id = process.id();
        assert!(is_alive(id));
        drop(process);
        assert!(!is_alive(id));
    }

    #[tokio::test]
    async fn tells_how_it_left_and_keeps_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let script = "trap 'echo leaving; exit 7' TERM; echo ready; while :; do sleep 0.01; done";
        let process = sleeper(&log, script);
        let ready = wait::until("the script", LIMIT, async || {
            ensure!(log_tail(&log).contains("ready"));
            Ok(())
        });
        ready.await.unwrap();
        assert_eq!(process.terminate(LIMIT).await.unwrap().code(), Some(7));
        assert_eq!(log_tail(&log), "ready\nleaving");
    }

    #[tokio::test]
    async fn one_that_does_not_leave_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let process = sleeper(&log, "trap '' TERM; echo ready; while :; do sleep 0.01; done");
        let ready = wait::until("the script", LIMIT, async || {
            ensure!(log_tail(&log).contains("ready"));
            Ok(())
        });
        ready.await.unwrap();
        let id = process.id();
        assert!(process.terminate(Duration::from_millis(100)).await.is_err());
        assert!(!is_alive(id));
    }
}
