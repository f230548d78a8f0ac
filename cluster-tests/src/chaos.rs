//! Faults of every kind, drawn from a seed, one after the other and now and then two at once, under load; a quarter of
//! the time is calm. What clients saw is judged, and how long they waited is measured.

mod fault;
mod keyed;
mod report;

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng, seq::IndexedRandom as _};
use skein_client::NodeId;
use tokio::time;

use self::keyed::Keyed;
pub use self::{
    fault::Fault,
    report::{Event, Report},
};
use crate::{
    cluster::Setup,
    faults::{kill, links, machine},
    recorder::Recorder,
    scenario::{self, Scenario},
    wait,
    workload::Plan,
};

/// Starting, draining and asking every replica take no longer, on top of the time of the faults.
const OVERHEAD: Duration = Duration::from_secs(240);

/// Publishing goes on within this after a fault that a majority survived.
const RESUME_LIMIT: Duration = Duration::from_secs(30);

/// A node that takes another one's place has all replicas within this.
const REPLACE_LIMIT: Duration = Duration::from_secs(60);

/// All hear each other again, and lead, within this after a fault.
const WHOLE_LIMIT: Duration = Duration::from_secs(30);

/// Enough that a fault meets publishes, deliveries and acks under way.
const WARM_UP_CONFIRMS: usize = 200;

/// So many confirms show that a majority carries on.
const CARRIES_ON_CONFIRMS: usize = 50;

/// How long a fault lasts.
const FAULT_MS: std::ops::Range<u64> = 200..5_000;

/// How long nothing happens, in one round of four.
const CALM_MS: std::ops::Range<u64> = 2_000..8_000;

/// How far ahead a clock is set. A message that comes back meanwhile may wait for as long.
const CLOCK_AHEAD_MS: std::ops::Range<i64> = -20_000..20_000;

/// Queues whose leaders are meant.
const QUEUES: [&str; 2] = ["orders", "invoices"];

/// Runs faults under load for so long, and judges. The report tells what happened, also when it failed.
///
/// # Errors
/// With what was seen to be wrong, or why the run could not show that all is well.
pub async fn run(seed: u64, length: Duration, faults: &[Fault]) -> Result<Report, (Report, String)> {
    let setup = Setup { links: true, machines: true, ..Setup::default() };
    let limit = length + OVERHEAD;
    let mut report = Report::default();
    let ended = scenario::attempt(&setup, "chaos", seed, limit, async |scenario| {
        let done = unleash(scenario, length, faults, &mut report.events).await;
        report.take(&scenario.recorder);
        done
    })
    .await;
    match ended {
        Ok(()) => Ok(report),
        Err(why) => Err((report, why)),
    }
}

async fn unleash(
    scenario: &mut Scenario,
    length: Duration,
    faults: &[Fault],
    events: &mut Vec<Event>,
) -> Result<()> {
    let work = scenario.start(&Plan { queues: QUEUES.map(str::to_owned).into(), ..Plan::default() }).await?;
    let keyed = Keyed::start(scenario.client().await?).await?;
    let mut random = SmallRng::seed_from_u64(scenario.seed);
    let until = time::Instant::now() + length;
    let mut chaos = Chaos {
        faults: faults.to_vec(),
        keyed,
        paused: BTreeSet::new(),
        drained: None,
        replaced: BTreeSet::new(),
    };
    let mut is_first = true;
    while is_first || time::Instant::now() < until {
        is_first = false;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await.context("before a fault")?;
        if random.random_range(0..4) == 0 {
            time::sleep(Duration::from_millis(random.random_range(CALM_MS))).await;
        }
        let Some(&fault) = chaos.faults.choose(&mut random) else { break };
        let begun = scenario.recorder.now();
        chaos.inject(scenario, fault, &mut random).await.with_context(|| format!("{fault}"))?;
        let second = chaos.second(fault, &mut random);
        if let Some(second) = second {
            chaos
                .inject(scenario, second, &mut random)
                .await
                .with_context(|| format!("{fault} and {second}"))?;
        } else if fault.leaves_majority() {
            scenario
                .wait_confirmed(CARRIES_ON_CONFIRMS, RESUME_LIMIT)
                .await
                .with_context(|| format!("nothing goes on during {fault}"))?;
        }
        time::sleep(Duration::from_millis(random.random_range(FAULT_MS))).await;
        chaos.heal(scenario).await.with_context(|| format!("healing after {fault}"))?;
        events.push(Event { fault, second, begun, ended: scenario.recorder.now() });
    }
    chaos.keyed.finish().await.context("the queue with partitions")?;
    scenario.finish(work).await
}

/// What is going on.
struct Chaos {
    faults: Vec<Fault>,
    keyed: Keyed,
    paused: BTreeSet<u64>,
    drained: Option<u64>,
    /// Nodes that took another one's place: what is said to them does not pass through links.
    replaced: BTreeSet<u64>,
}

/// Whom a fault may hit.
struct Targets {
    leader: u64,
    follower: u64,
    any: u64,
    /// One whose links can be cut.
    linked: u64,
}

impl Chaos {
    /// Another fault at the same time, in one round of five.
    fn second(&self, first: Fault, random: &mut SmallRng) -> Option<Fault> {
        let others: Vec<_> = self.faults.iter().copied().filter(|fault| fault.may_overlap()).collect();
        let is_time = first.may_overlap() && random.random_range(0..5) == 0;
        is_time.then(|| others.choose(random).copied()).flatten()
    }

    async fn inject(&mut self, scenario: &mut Scenario, fault: Fault, random: &mut SmallRng) -> Result<()> {
        let recorder = scenario.recorder.clone();
        let Targets { leader, follower, any, linked } = self.targets(scenario, random).await?;
        let running = scenario.cluster.running();
        let cluster = &mut scenario.cluster;
        match fault {
            Fault::KillLeader => kill::kill(cluster, &recorder, leader)?,
            Fault::KillFollower => kill::kill(cluster, &recorder, follower)?,
            Fault::KillMajority => [leader, follower]
                .into_iter()
                .filter(|node_id| running.contains(node_id))
                .collect::<BTreeSet<_>>()
                .into_iter()
                .try_for_each(|node_id| kill::kill(cluster, &recorder, node_id))?,
            Fault::KillAll => kill::kill_all(cluster, &recorder)?,
            Fault::RestartStorm => {
                for _ in 0..random.random_range(3..8) {
                    kill::kill(cluster, &recorder, any)?;
                    cluster.restart(any)?;
                    time::sleep(Duration::from_millis(random.random_range(0..1_000))).await;
                }
            }
            Fault::PauseLeader => self.pause(scenario, &recorder, leader)?,
            Fault::PauseFollower => self.pause(scenario, &recorder, follower)?,
            Fault::CutOffLeader if !self.replaced.contains(&leader) => {
                links::cut_off(cluster, &recorder, leader)?;
            }
            Fault::CutOffLeader | Fault::CutOffFollower => links::cut_off(cluster, &recorder, linked)?,
            Fault::NotHeard => links::let_nobody_hear(cluster, &recorder, linked)?,
            Fault::HearsNobody => links::let_hear_nobody(cluster, &recorder, linked)?,
            Fault::CutPair => links::cut_pair(cluster, &recorder, leader, follower)?,
            Fault::Slow => {
                let delay = Duration::from_millis(random.random_range(5..200));
                links::slow_down(cluster, &recorder, linked, delay)?;
            }
            Fault::SetClock => {
                let ahead_ms = random.random_range(CLOCK_AHEAD_MS);
                machine::set_clock(cluster, &recorder, any, ahead_ms)?;
            }
            Fault::SlowDisk => {
                let by = Duration::from_millis(random.random_range(1..50));
                machine::slow_disk_down(cluster, &recorder, any, by)?;
            }
            Fault::Leave => {
                recorder.disturbed(format!("node {any} is asked to leave"));
                let status = cluster.terminate(any).await?;
                ensure!(status.success(), "node {any} left with {status}");
            }
            Fault::RollingRestart => kill::rolling_restart(cluster, &recorder).await?,
            Fault::Transfer => {
                recorder.disturbed(format!("node {leader} hands over"));
                cluster.make_leader(QUEUES[0], follower).await?;
            }
            Fault::Drain => {
                recorder.disturbed(format!("node {leader} is drained"));
                scenario.client().await?.drain_node(NodeId::new(leader), true).await?;
                self.drained = Some(leader);
            }
            Fault::Replace => self.replace(scenario, &recorder, any).await?,
            Fault::Grow => {
                let more = random.random_range(1..4);
                let partitions =
                    time::timeout(RESUME_LIMIT, self.keyed.grow(more)).await.context("no answer")??;
                recorder.disturbed(format!("a queue has {partitions} partitions"));
            }
        }
        Ok(())
    }

    /// Draws whom a fault is to hit. With two faults at once there may be no leader, and then somebody takes its place.
    async fn targets(&self, scenario: &Scenario, random: &mut SmallRng) -> Result<Targets> {
        let leader = scenario.cluster.leader_of(QUEUES[random.random_range(0..QUEUES.len())]).await;
        let running = scenario.cluster.running();
        let leader = leader.unwrap_or(running[0]);
        let others: Vec<_> = running.iter().copied().filter(|node_id| *node_id != leader).collect();
        let follower = others.choose(random).copied().unwrap_or(leader);
        let any = *running.choose(random).context("no node is running")?;
        let linked = *[leader, follower, any].iter().find(|node| !self.replaced.contains(node)).unwrap_or(&1);
        Ok(Targets { leader, follower, any, linked })
    }

    fn pause(&mut self, scenario: &Scenario, recorder: &Recorder, node_id: u64) -> Result<()> {
        kill::pause(&scenario.cluster, recorder, node_id)?;
        self.paused.insert(node_id);
        Ok(())
    }

    async fn replace(&mut self, scenario: &mut Scenario, recorder: &Recorder, node_id: u64) -> Result<()> {
        kill::kill(&mut scenario.cluster, recorder, node_id)?;
        let invitation = scenario.cluster.invite(Some(node_id)).await?;
        scenario.cluster.join_where_was(node_id, &invitation)?;
        self.replaced.insert(invitation.node_id);
        scenario.cluster.wait_settled(REPLACE_LIMIT).await?;
        recorder.disturbed(format!("node {} has taken the place of node {node_id}", invitation.node_id));
        Ok(())
    }

    /// Ends all faults, and waits until the cluster is whole.
    async fn heal(&mut self, scenario: &mut Scenario) -> Result<()> {
        let recorder = scenario.recorder.clone();
        for node_id in std::mem::take(&mut self.paused) {
            // It may have been killed while it stood still.
            if scenario.cluster.running().contains(&node_id) {
                kill::resume(&scenario.cluster, &recorder, node_id)?;
            }
        }
        links::heal(&scenario.cluster, &recorder)?;
        machine::heal(&scenario.cluster, &recorder)?;
        scenario.cluster.heal().await?;
        if let Some(node_id) = self.drained.take() {
            scenario.client().await?.drain_node(NodeId::new(node_id), false).await?;
        }
        wait::until("the cluster to be whole", WHOLE_LIMIT, async || {
            for topology in scenario.cluster.topologies().await {
                let asked = topology.answering_node_id;
                ensure!(topology.nodes.iter().all(|node| node.reachable), "node {asked} lacks some");
                ensure!(
                    topology.shards.iter().all(|shard| shard.leader_node_id != 0),
                    "node {asked} lacks a leader"
                );
            }
            Ok(())
        })
        .await
    }
}
