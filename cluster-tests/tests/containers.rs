//! The containers of `deploy/` under load: one is killed and comes back with another address, one stands still, one is
//! cut off, one is asked to leave, one is lost with its volume and replaced; and everything that was confirmed is
//! consumed.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use skein_client::{Client, NodeId};
use skein_cluster_tests::{
    checks::judge,
    containers::{self, Containers, Programs},
    history::History,
    observer::Observer,
    recorder::Recorder,
    scenario, wait,
    workload::{Plan, Workload},
};
use tokio::time;

/// All of it: building the image, starting, five faults, draining.
const LIMIT: Duration = Duration::from_secs(150);

/// A leader exists within this, as long as a majority is there.
const LEADER_LIMIT: Duration = Duration::from_secs(15);

/// Publishing has resumed within this after a fault. Clients notice a silent connection after 10 s.
const RESUME_LIMIT: Duration = Duration::from_secs(25);

/// A new node has all replicas within this.
const SETTLE_LIMIT: Duration = Duration::from_secs(40);

/// What was published is confirmed, and then acked, within this.
const DRAIN_LIMIT: Duration = Duration::from_secs(40);

/// Enough that faults meet publishes, deliveries and acks under way.
const WARM_UP_CONFIRMS: usize = 200;

/// The queue whose leader is meant.
const QUEUE: &str = "orders";

/// A cluster in containers, and what is known about it.
struct Trial {
    containers: Containers,
    client: Client,
    recorder: Recorder,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_containers_confirm_survives_their_faults() {
    if let Some(why) = containers::unavailable().await {
        scenario::skip("what_containers_confirm_survives_their_faults", &why);
        return;
    }
    let programs = Programs::build().unwrap_or_else(|error| panic!("{error:#}"));
    let recorder = Recorder::start();
    // What was started is removed when this is dropped, also when the time is up.
    let ended = match time::timeout(LIMIT, run(&programs, &recorder)).await {
        Ok(ended) => ended,
        Err(_) => Err(anyhow!("it took longer than {LIMIT:?}")),
    };
    if let Err(error) = ended {
        let disturbances = recorder.with(|history| {
            history.disturbances.iter().map(|disturbance| format!("{disturbance}\n")).collect::<String>()
        });
        panic!("{error:#}\n\nwhat happened to the cluster:\n{disturbances}");
    }
}

async fn run(programs: &Programs, recorder: &Recorder) -> Result<()> {
    let containers = Containers::up(programs).await?;
    let client = Client::connect(containers.addresses()).await?;
    let mut trial = Trial { containers, client, recorder: recorder.clone() };
    match trial.run().await {
        Ok(()) => Ok(()),
        Err(error) => Err(error.context(trial.containers.logs().await)),
    }
}

impl Trial {
    async fn run(&mut self) -> Result<()> {
        let (client, recorder) = (self.client.clone(), self.recorder.clone());
        let observer = Observer::start(self.containers.channels()?, &recorder);
        let plan = Plan { keeps: false, ..Plan::default() };
        let mut workload = Workload::start(client, &recorder, &plan, rand::random()).await?;
        self.wait_confirmed(LEADER_LIMIT).await?;

        self.kill_the_leader().await.context("killing the leader")?;
        self.pause_the_leader().await.context("stopping the leader for a while")?;
        self.cut_off_the_leader().await.context("cutting off the leader")?;
        self.stop_the_leader().await.context("asking the leader to leave")?;

        self.replace_a_node().await.context("replacing a node")?;

        for node_id in self.containers.node_ids() {
            self.containers.wait_healthy(node_id).await?;
        }
        workload.stop_publishing(DRAIN_LIMIT).await.context("ending publishers")?;
        workload.drain(DRAIN_LIMIT).await?;
        workload.stop_consuming(DRAIN_LIMIT).await.context("ending consumers")?;
        drop(observer);
        let verdict = recorder.with(|history| judge(history));
        if verdict.is_pass() { Ok(()) } else { bail!("{verdict}") }
    }

    async fn kill_the_leader(&self) -> Result<()> {
        let leader = self.leader().await?;
        let address = self.containers.address(leader).await?;
        self.disturb(leader, "is killed", self.containers.kill(leader)).await?;
        self.wait_confirmed(RESUME_LIMIT).await?;
        let start = self.containers.start_elsewhere(leader, &address);
        self.disturb(leader, "comes back with another address", start).await?;
        // It is ready only when it has heard from the leaders, which have to find it under its name.
        self.containers.wait_ready().await
    }

    async fn pause_the_leader(&self) -> Result<()> {
        let leader = self.leader().await?;
        self.disturb(leader, "stands still", self.containers.pause(leader)).await?;
        self.wait_confirmed(RESUME_LIMIT).await?;
        self.disturb(leader, "goes on", self.containers.unpause(leader)).await?;
        self.containers.wait_ready().await
    }

    async fn cut_off_the_leader(&self) -> Result<()> {
        let leader = self.leader().await?;
        self.disturb(leader, "is cut off", self.containers.disconnect(leader)).await?;
        self.wait_confirmed(RESUME_LIMIT).await?;
        self.disturb(leader, "is back", self.containers.reconnect(leader)).await?;
        self.containers.wait_ready().await
    }

    async fn stop_the_leader(&self) -> Result<()> {
        let leader = self.leader().await?;
        self.disturb(leader, "is asked to leave", self.containers.stop(leader)).await?;
        self.wait_confirmed(RESUME_LIMIT).await?;
        self.disturb(leader, "comes back", self.containers.start(leader)).await?;
        self.containers.wait_ready().await
    }

    async fn replace_a_node(&mut self) -> Result<()> {
        let lost = 3;
        self.disturb(lost, "is lost with its volume", self.containers.destroy(lost)).await?;
        let invitation = self.client.add_node(Some(NodeId::new(lost))).await?;
        self.containers.start_anew(lost, &invitation.join_token).await?;
        wait::until("the new node has all replicas", SETTLE_LIMIT, async || {
            let topology = self.client.topology().await?;
            ensure!(topology.is_settled() && topology.node(invitation.node).is_some(), "{topology:?}");
            Ok(())
        })
        .await?;
        self.wait_confirmed(RESUME_LIMIT).await?;
        self.containers.wait_ready().await
    }

    /// Does something to a node. Recorded before and after: what follows may show before it has come to its end.
    async fn disturb(&self, node_id: u64, what: &str, fault: impl Future<Output = Result<()>>) -> Result<()> {
        self.recorder.disturbed(format!("node {node_id} {what}"));
        let done = fault.await;
        self.recorder.disturbed(format!("node {node_id} {what}: done"));
        done
    }

    async fn leader(&self) -> Result<u64> {
        wait::until(&format!("a leader of {QUEUE}"), LEADER_LIMIT, async || {
            let queue = self.client.get_queue(QUEUE).await?;
            Ok(queue.leader.context("nobody leads its shard")?.get())
        })
        .await
    }

    /// Waits until so many more messages are confirmed in the queue that its leader is at work again.
    async fn wait_confirmed(&self, limit: Duration) -> Result<()> {
        let confirmed = || self.recorder.with(|history| confirmed_in(QUEUE, history));
        let wanted = confirmed() + WARM_UP_CONFIRMS;
        wait::until(&format!("{WARM_UP_CONFIRMS} more messages confirmed"), limit, async || {
            let missing = wanted.saturating_sub(confirmed());
            ensure!(missing == 0, "{missing} are missing");
            Ok(())
        })
        .await
    }
}

fn confirmed_in(queue: &str, history: &History) -> usize {
    let publishes = history.publishes.iter().filter(|publish| publish.identity.queue == queue);
    publishes.filter(|publish| publish.outcome.is_ok()).count()
}
