//! The programs of `examples/python/` do what they say against a cluster; a worker also when its node dies.

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{self, Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use skein_client::{Client, Message};
use skein_cluster_tests::{cluster::Cluster, scenario};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time,
};

/// The oldest Python that the pinned packages take.
const PYTHON_MIN: (u32, u32) = (3, 10);

/// Making an environment takes some seconds, and what is installed has some ten megabytes.
const INSTALL_LIMIT: Duration = Duration::from_secs(180);

/// One example from its start to its end, also when a node dies meanwhile.
const EXAMPLE_LIMIT: Duration = Duration::from_secs(60);

/// Nobody listens there.
const DEAD_ADDRESS: &str = "127.0.0.1:1";

/// What the worker has to do when a node dies, and how much of it is done by then.
const ORDERS: usize = 120;
const ORDERS_BEFORE_DEATH: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_examples_do_what_they_say() {
    let python = match Python::prepare().await {
        Ok(Ok(python)) => python,
        Ok(Err(why)) => {
            scenario::skip("the_python_examples_do_what_they_say", &why);
            return;
        }
        Err(error) => panic!("{error:#}"),
    };
    let mut cluster = Cluster::start(3).await.unwrap();
    if let Err(error) = run_all(&python, &mut cluster).await {
        panic!("{error:#}\n\n{}", cluster.log_tails());
    }
}

async fn run_all(python: &Python, cluster: &mut Cluster) -> Result<()> {
    let client = Client::connect(cluster.addresses()).await?;
    publisher_stores_each_order_once(python, cluster, &client).await?;
    worker_does_all_there_is(python, cluster, &client).await?;
    worker_fails_when_too_little_comes(python, cluster).await?;
    groups_get_what_they_want(python, cluster).await?;
    questions_are_answered(python, cluster).await?;
    worker_outlives_its_node(python, cluster).await
}

async fn publisher_stores_each_order_once(python: &Python, cluster: &Cluster, client: &Client) -> Result<()> {
    let mut servers = vec![DEAD_ADDRESS.to_owned()];
    servers.extend(cluster.addresses());
    let printed = python.example(&servers, &["publisher.py", "--count", "50"]).await?.succeeded()?;
    printed.has(&format!("[{DEAD_ADDRESS}: "))?;
    printed.has("batch 5 again: known already, at offsets 40 to 49")?;
    let queue = client.get_queue("workshop").await?;
    ensure!(queue.message_count == 50, "50 orders were published, {} are stored", queue.message_count);
    Ok(())
}

async fn worker_does_all_there_is(python: &Python, cluster: &Cluster, client: &Client) -> Result<()> {
    let impossible = Message::new("a picture").header("task", "frame");
    client.send("workshop", vec![impossible]).await?;
    let printed = python.example(&cluster.addresses(), &["worker.py"]).await?.succeeded()?;
    printed.has("50 orders done")?;
    printed.has("a picture: nobody here can frame; rejected")?;
    printed.has("order 7: the label printer jams")?;
    printed.has("order 25 is engraved")?;
    let group = client.get_group("workshop", "workers").await?;
    ensure!(group.unacked_count == 0, "{} orders are not acked", group.unacked_count);
    ensure!(group.dropped_count == 1, "one order is given up, not {}", group.dropped_count);
    Ok(())
}

async fn worker_fails_when_too_little_comes(python: &Python, cluster: &Cluster) -> Result<()> {
    let arguments = ["worker.py", "--count", "1", "--idle-seconds", "0.1"];
    let printed = python.example(&cluster.addresses(), &arguments).await?;
    ensure!(printed.status.code() == Some(1), "the worker was content with nothing: {printed}");
    printed.has("only 0 of 1 orders came")?;
    let printed = python.example(&cluster.addresses(), &["worker.py", "--queue", "none"]).await?;
    ensure!(printed.status.code() == Some(1), "the worker was content without a queue: {printed}");
    printed.has("QUEUE_NOT_FOUND")
}

async fn groups_get_what_they_want(python: &Python, cluster: &Cluster) -> Result<()> {
    let printed = python.example(&cluster.addresses(), &["fan_out.py"]).await?.succeeded()?;
    let rows = printed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let rows: BTreeSet<_> =
        rows.filter(|row| row.first().is_some_and(|key| key.contains("orders."))).collect();
    ensure!(rows.len() == 9, "nine messages were published: {printed}");
    for row in rows {
        let wanted = if row[0].ends_with(".created") { "x" } else { "-" };
        ensure!(row[1..] == ["x", "x", wanted], "audit and mail want every message, billing not: {row:?}");
    }
    Ok(())
}

async fn questions_are_answered(python: &Python, cluster: &Cluster) -> Result<()> {
    let printed = python.example(&cluster.addresses(), &["request_reply.py"]).await?.succeeded()?;
    let mut answers = 0;
    for line in printed.lines() {
        if let [left, "times", right, "is", product] = line.split_whitespace().collect::<Vec<_>>()[..] {
            ensure!(left.parse::<u32>()? * right.parse::<u32>()? == product.parse()?, "{line}");
            answers += 1;
        }
    }
    ensure!(answers == 5, "five questions were asked: {printed}");
    Ok(())
}

async fn worker_outlives_its_node(python: &Python, cluster: &mut Cluster) -> Result<()> {
    let orders = ORDERS.to_string();
    let publish = ["publisher.py", "--queue", "rush", "--count", &orders];
    python.example(&cluster.addresses(), &publish).await?.succeeded()?;

    // The worker is connected to the node that leads the queue, which knows what the worker holds.
    let leader = cluster.leader_of("rush").await?;
    let mut servers = cluster.addresses();
    servers.rotate_left(usize::try_from(leader)? - 1);
    let work = ["worker.py", "--queue", "rush", "--count", &orders, "--idle-seconds", "15"];
    let mut worker = python.start(&servers, &work)?;
    let printed = time::timeout(EXAMPLE_LIMIT, async {
        worker.read_until(|line| orders_done(line) >= Some(ORDERS_BEFORE_DEATH)).await?;
        cluster.kill(leader)?;
        worker.end().await
    });
    let printed =
        printed.await.with_context(|| format!("worker.py does not end within {EXAMPLE_LIMIT:?}"))?;
    let printed = printed?.succeeded()?;
    printed.has(&format!("[{}: ", servers[0]))?;
    let done = printed.lines().filter_map(orders_done).next_back();
    ensure!(done == Some(ORDERS), "not all orders were done: {printed}");
    Ok(())
}

/// How many orders the worker says are done.
fn orders_done(line: &str) -> Option<usize> {
    line.strip_suffix(" orders done")?.parse().ok()
}

/// An environment with what the examples need.
struct Python {
    program: PathBuf,
    /// What is generated from the schema. Not beside the examples: the work tree stays as it is.
    stubs: PathBuf,
}

impl Python {
    /// Makes the environment, or takes the one of an earlier run with the same requirements; generates the stubs. The
    /// inner error says what this machine lacks.
    async fn prepare() -> Result<Result<Self, String>> {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-examples");
        let venv = dir.join("venv");
        let python = Self { program: venv.join("bin/python"), stubs: dir.join("stubs") };
        if !python.is_installed(&venv).await
            && let Err(why) = python.install(&venv).await?
        {
            return Ok(Err(why));
        }
        if python.stubs.exists() {
            fs::remove_dir_all(&python.stubs).context("cannot delete the old stubs")?;
        }
        let mut generate = Command::new(&python.program);
        generate.arg("generate.py").arg("--out").arg(&python.stubs).current_dir(examples());
        finish(&mut generate, EXAMPLE_LIMIT).await?.succeeded()?;
        Ok(Ok(python))
    }

    async fn is_installed(&self, venv: &Path) -> bool {
        let installed = fs::read_to_string(installed_file(venv)).ok();
        // The Python that it was made with may be gone.
        let mut import = Command::new(&self.program);
        import.args(["-c", "import grpc, grpc_tools.protoc"]);
        installed.is_some()
            && installed == fs::read_to_string(examples().join("requirements.txt")).ok()
            && finish(&mut import, EXAMPLE_LIMIT).await.is_ok_and(|printed| printed.status.success())
    }

    async fn install(&self, venv: &Path) -> Result<Result<(), String>> {
        let (major, minor) = PYTHON_MIN;
        let check = format!(
            "import ensurepip, venv, sys\n\
             if sys.version_info < {PYTHON_MIN:?}: sys.exit('Python is older than {major}.{minor}')"
        );
        match finish(Command::new("python3").args(["-c", &check]), EXAMPLE_LIMIT).await {
            Err(error) => return Ok(Err(format!("{error:#}"))),
            Ok(printed) if !printed.status.success() => {
                return Ok(Err(format!("python3 cannot make an environment: {}", printed.last_line())));
            }
            Ok(_) => {}
        }
        let mut make = Command::new("python3");
        make.args(["-m", "venv", "--clear"]).arg(venv);
        finish(&mut make, INSTALL_LIMIT).await?.succeeded()?;
        let mut install = Command::new(&self.program);
        install.args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]);
        install.args(["--only-binary", ":all:", "--retries", "2", "--timeout", "20"]);
        install.args(["--requirement", "requirements.txt"]).current_dir(examples());
        let printed = match finish(&mut install, INSTALL_LIMIT).await {
            Ok(printed) => printed,
            Err(error) => return Ok(Err(format!("{error:#}"))),
        };
        if !printed.status.success() {
            ensure!(!printed.index_has_other_versions(), "requirements.txt is wrong: {printed}");
            return Ok(Err(format!("pip cannot install the packages: {}", printed.last_line())));
        }
        fs::copy(examples().join("requirements.txt"), installed_file(venv))
            .context("cannot note what is installed")?;
        Ok(Ok(()))
    }

    /// Runs an example to its end.
    async fn example(&self, servers: &[String], arguments: &[&str]) -> Result<Printed> {
        let ended = time::timeout(EXAMPLE_LIMIT, self.start(servers, arguments)?.end()).await;
        ended.with_context(|| format!("{} does not end within {EXAMPLE_LIMIT:?}", arguments[0]))?
    }

    /// Starts an example.
    fn start(&self, servers: &[String], arguments: &[&str]) -> Result<Example> {
        let mut command = Command::new(&self.program);
        command.args(arguments).current_dir(examples());
        command.env("SKEIN_SERVERS", servers.join(",")).env("PYTHONPATH", &self.stubs);
        Example::start(&mut command)
    }
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/python")
}

/// The requirements that an environment was made for, written when it was complete.
fn installed_file(venv: &Path) -> PathBuf {
    venv.join("installed.txt")
}

async fn finish(command: &mut Command, limit: Duration) -> Result<Printed> {
    let example = Example::start(command)?;
    let ended = time::timeout(limit, example.end()).await;
    ended.with_context(|| format!("{} does not end within {limit:?}", program(command)))?
}

fn program(command: &Command) -> path::Display<'_> {
    Path::new(command.as_std().get_program()).display()
}

/// A Python program that runs. Dropping it kills it.
struct Example {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    stdout: String,
}

impl Example {
    fn start(command: &mut Command) -> Result<Self> {
        command.env("PYTHONUNBUFFERED", "1").env("PYTHONDONTWRITEBYTECODE", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", program(command)))?;
        let stdout = child.stdout.take().context("its output is piped")?;
        Ok(Self { child, lines: BufReader::new(stdout).lines(), stdout: String::new() })
    }

    /// Waits for a line.
    async fn read_until(&mut self, wanted: impl Fn(&str) -> bool) -> Result<()> {
        while let Some(line) = self.lines.next_line().await? {
            self.stdout += &line;
            self.stdout.push('\n');
            if wanted(&line) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Waits for its end.
    async fn end(mut self) -> Result<Printed> {
        let mut pipe = self.child.stderr.take().context("its errors are piped")?;
        let mut stderr = String::new();
        let (read, read_errors) = tokio::join!(self.read_until(|_| false), pipe.read_to_string(&mut stderr));
        read?;
        read_errors?;
        Ok(Printed { status: self.child.wait().await?, stdout: self.stdout, stderr })
    }
}

/// A Python program that has ended.
struct Printed {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

impl fmt::Display for Printed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, after it printed\n{}{}", self.status, self.stdout, self.stderr)
    }
}

impl Printed {
    fn succeeded(self) -> Result<Self> {
        ensure!(self.status.success(), "{self}");
        Ok(self)
    }

    fn has(&self, text: &str) -> Result<()> {
        let is_there = self.stdout.contains(text) || self.stderr.contains(text);
        ensure!(is_there, "it did not print {text:?}: {self}");
        Ok(())
    }

    fn lines(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.stdout.lines()
    }

    fn last_line(&self) -> &str {
        self.stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it does not say why")
    }

    /// Whether pip found the packages, but not as they are wanted. Without a network it finds none.
    fn index_has_other_versions(&self) -> bool {
        let listed = self.stderr.split("(from versions: ").skip(1);
        listed.into_iter().any(|versions| !versions.starts_with("none"))
            || self.stderr.contains("conflicting dependencies")
    }
}
