//! One test against one cluster: bounded in time, judged at the end, and repeatable from what it prints.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Write as _},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use skein_client::Client;
use tokio::time;

use crate::{
    checks::judge,
    cluster::{Cluster, Setup},
    history::Outcome,
    observer::Observer,
    recorder::Recorder,
    replicas, wait,
    workload::{Plan, Workload},
};

/// Draws everything that is random in a test.
const SEED_VARIABLE: &str = "SKEIN_SEED";

/// Runs one test again.
const REPEAT_COMMAND: &str = "cargo test -p skein-cluster-tests --test cluster";

/// Publishers end within this once the cluster is whole: all that is in flight is confirmed or refused.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Groups have acked everything within this once publishing has ended. Leases of a dead stream may have to run out.
const DRAIN_LIMIT: Duration = Duration::from_secs(45);

/// A cluster under test and what is known about it.
#[derive(Debug)]
pub struct Scenario {
    /// All nodes, ready.
    pub cluster: Cluster,
    /// What has happened so far.
    pub recorder: Recorder,
    /// Drawn at random, or given to repeat a run.
    pub seed: u64,
    /// A node whose replica is in doubt. At the end it is made to lead, and to show every queue that was kept.
    pub suspect: Option<u64>,
}

/// Runs a test against a cluster of three within `limit`, which does not count the wait for its turn.
///
/// # Panics
/// When the test fails or takes too long: with its reason, the ends of the nodes' logs, and how to repeat it.
pub async fn run(name: &str, limit: Duration, test: impl AsyncFnOnce(&mut Scenario) -> Result<()>) {
    run_with(&Setup::default(), name, limit, test).await;
}

/// Runs a test against a cluster of this kind, and otherwise like [`run`]. On a machine that cannot have such disks it
/// is skipped.
///
/// # Panics
/// Like [`run`].
pub async fn run_with(
    setup: &Setup,
    name: &str,
    limit: Duration,
    test: impl AsyncFnOnce(&mut Scenario) -> Result<()>,
) {
    if let Some(why) = setup.unavailable() {
        skip(name, &why);
        return;
    }
    let seed = seed();
    if let Err(why) = attempt(setup, name, seed, limit, test).await {
        panic!("{why}\nto repeat it: {SEED_VARIABLE}={seed} {REPEAT_COMMAND} {name}");
    }
}

/// What draws everything that is random in a test: drawn at random itself, unless the environment says otherwise.
#[must_use]
pub fn seed() -> u64 {
    env::var(SEED_VARIABLE).ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random)
}

/// Runs a test against a cluster of this kind.
///
/// # Errors
/// With what went wrong, what happened to the cluster, the ends of the nodes' logs, and where everything is kept.
pub async fn attempt(
    setup: &Setup,
    name: &str,
    seed: u64,
    limit: Duration,
    test: impl AsyncFnOnce(&mut Scenario) -> Result<()>,
) -> Result<(), String> {
    let cluster = Cluster::start_with(setup).await;
    let cluster = cluster.map_err(|error| format!("{name}: the cluster did not start: {error:#}"))?;
    let mut scenario = Scenario { cluster, recorder: Recorder::start(), seed, suspect: None };
    let ended = match time::timeout(limit, test(&mut scenario)).await {
        Ok(ended) => ended,
        Err(_) => Err(anyhow::anyhow!("it took longer than {limit:?}")),
    };
    if let Err(error) = ended {
        let logs = scenario.cluster.log_tails();
        let (disturbances, transcript) = scenario.recorder.with(|history| {
            let disturbances = history.disturbances.iter().map(|disturbance| format!("{disturbance}\n"));
            (disturbances.collect::<String>(), history.transcript())
        });
        let dir = scenario.cluster.keep();
        // For whoever looks into it; the failure must be told in any case.
        let _ = fs::write(dir.join("history.txt"), transcript);
        return Err(format!(
            "{name} failed: {error:#}\n\nwhat happened to the cluster:\n{disturbances}\n{logs}\
             everything is in {}",
            dir.display()
        ));
    }
    Ok(())
}

/// Says that a test was not run, and why. Past the capture of output, which hides what a test prints that passes.
pub fn skip(name: &str, why: &str) {
    // Without a place to say it, there is nobody to hear it.
    let _ = writeln!(io::stderr(), "{name} is skipped: {why}");
}

impl Scenario {
    /// A client that knows all nodes.
    ///
    /// # Errors
    /// When no node answers.
    pub async fn client(&self) -> Result<Client> {
        Ok(Client::connect(self.cluster.addresses()).await?)
    }

    /// Starts a workload, and a watch over who leads. It runs on until [`Scenario::finish`].
    ///
    /// # Errors
    /// When the cluster refuses.
    pub async fn start(&self, plan: &Plan) -> Result<(Workload, Observer)> {
        let channels = self.cluster.node_ids().into_iter().map(|node_id| self.cluster.channel(node_id));
        let observer = Observer::start(channels.collect::<Result<_>>()?, &self.recorder);
        let workload = Workload::start(self.client().await?, &self.recorder, plan, self.seed).await?;
        Ok((workload, observer))
    }

    /// Promises a fault: a run in which it does not happen is no pass.
    pub fn require(&self, fault: &'static str) {
        self.recorder.with(|history| history.faults_required.insert(fault));
    }

    /// How many messages were confirmed so far.
    #[must_use]
    pub fn confirmed(&self) -> usize {
        self.recorder.with(|history| history.confirmed_count())
    }

    /// Waits until so many more messages are confirmed.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub async fn wait_confirmed(&self, more: usize, limit: Duration) -> Result<()> {
        let wanted = self.confirmed() + more;
        wait::until(&format!("{more} more messages confirmed"), limit, async || {
            let missing = wanted.saturating_sub(self.confirmed());
            ensure!(missing == 0, "{missing} are missing");
            Ok(())
        })
        .await
    }

    /// Waits until so many more messages of every publisher are confirmed: none of them is stuck.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub async fn wait_each_confirmed(&self, more: usize, limit: Duration) -> Result<()> {
        let before = self.confirmed_by_publisher();
        wait::until(&format!("{more} more messages confirmed of each publisher"), limit, async || {
            let now = self.confirmed_by_publisher();
            for (publisher, count) in &before {
                let added = now.get(publisher).map_or(0, |now| now - count);
                ensure!(added >= more, "publisher {publisher:?} has {added}");
            }
            Ok(())
        })
        .await
    }

    /// By queue and publisher.
    fn confirmed_by_publisher(&self) -> BTreeMap<(String, u64), usize> {
        self.recorder.with(|history| {
            let mut confirmed = BTreeMap::new();
            for publish in history.publishes.iter().filter(|publish| publish.outcome.is_ok()) {
                let publisher = (publish.identity.queue.clone(), publish.identity.producer);
                *confirmed.entry(publisher).or_default() += 1;
            }
            confirmed
        })
    }

    /// Waits until so many messages are confirmed in these queues together.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub async fn wait_confirmed_in(&self, queues: &[String], wanted: usize, limit: Duration) -> Result<()> {
        wait::until(&format!("{wanted} messages confirmed in {queues:?}"), limit, async || {
            let confirmed = self.recorder.with(|history| {
                let publishes = history.publishes.iter().filter(|publish| publish.outcome.is_ok());
                publishes.filter(|publish| queues.contains(&publish.identity.queue)).count()
            });
            ensure!(confirmed >= wanted, "only {confirmed}");
            Ok(())
        })
        .await
    }

    /// Publishes that were invoked and have no outcome yet.
    #[must_use]
    pub fn publishes_open(&self) -> usize {
        self.recorder
            .with(|history| history.publishes.iter().filter(|publish| publish.returned.is_none()).count())
    }

    /// Heals the cluster, ends the workload, asks every replica, and judges.
    ///
    /// # Errors
    /// When the run is anything but a pass.
    pub async fn finish(&mut self, (mut workload, observer): (Workload, Observer)) -> Result<()> {
        self.cluster.heal().await.context("healing")?;
        workload.stop_publishing(STOP_LIMIT).await.context("ending publishers")?;
        if let Err(error) = workload.drain(DRAIN_LIMIT).await {
            self.recorder.unfinished(format!("{error:#}"));
        }
        workload.stop_consuming(STOP_LIMIT).await.context("ending consumers")?;
        replicas::compare(&mut self.cluster, &self.recorder, self.suspect)
            .await
            .context("comparing replicas")?;
        drop(observer);
        self.judge()
    }

    /// Judges what was recorded.
    ///
    /// # Errors
    /// When the run is anything but a pass.
    pub fn judge(&self) -> Result<()> {
        let verdict = self.recorder.with(|history| judge(history));
        if verdict.is_pass() { Ok(()) } else { bail!("{verdict}") }
    }

    /// Confirms that returned after this moment.
    #[must_use]
    pub fn confirmed_since(&self, moment: Duration) -> usize {
        self.recorder.with(|history| {
            let confirmed =
                history.publishes.iter().filter(|publish| matches!(publish.outcome, Outcome::Ok(_)));
            confirmed.filter(|publish| publish.returned.is_some_and(|returned| returned > moment)).count()
        })
    }
}
