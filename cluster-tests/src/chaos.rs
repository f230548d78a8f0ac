//! Faults of every kind, drawn from a seed, one after the other and now and then two at once, under load; a quarter of
//! the time is calm. Or each alone, in turn, to see what it does to publishers. What clients saw is judged, and how
//! long they waited is measured.

mod fault;
mod keyed;
mod load;
mod probe;
mod report;

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use rand::{
    RngExt as _, SeedableRng as _,
    rngs::SmallRng,
    seq::{IndexedRandom as _, SliceRandom as _},
};
use skein_client::NodeId;
use tokio::time;

pub use self::{
    fault::Fault,
    report::{Event, Report},
};
use self::{keyed::Keyed, load::Load, probe::Probe};
use crate::{
    cluster::{Cluster, NO_PAGE_MEMORY, Setup},
    faults::{kill, links, machine},
    recorder::Recorder,
    rules::Rule,
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

/// How long a fault lasts that is to show what it does: longer than anybody waits before another leader is elected.
const ALONE_MS: std::ops::Range<u64> = 2_000..3_000;

/// How long nothing happens before it.
const CALM: Duration = Duration::from_secs(1);

/// Waits are counted from a fault's beginning to this long after it was healed: leaders move then as well.
const AFTERMATH: Duration = Duration::from_secs(3);

/// How long a publish may take before its outcome counts as unknown: longer than any outage.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a node runs before it dies again, in a storm: as drawn, so that it is met at any point of its start.
const STORM_MS: std::ops::Range<u64> = 0..1_000;

/// How far ahead a clock is set. A message that comes back meanwhile may wait for as long.
const CLOCK_AHEAD_MS: std::ops::Range<i64> = -20_000..20_000;

/// Queues whose leaders are meant.
const QUEUES: [&str; 2] = ["orders", "invoices"];

/// In which order faults happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As they are drawn, now and then two at once, with calm between.
    Drawn,
    /// One after the other, each alone, each after a while of calm that is measured as well.
    InTurn,
}

/// What is to happen to a cluster.
#[derive(Debug, Clone)]
pub struct Course {
    /// Draws faults and messages.
    pub seed: u64,
    /// For how long faults happen.
    pub length: Duration,
    /// How many happen at most.
    pub rounds_max: usize,
    /// Which.
    pub faults: Vec<Fault>,
    /// In which order.
    pub order: Order,
    /// Messages of 1 KiB a second that are published and consumed on top of those that are judged.
    pub load_per_s: u64,
}

/// Lets faults happen under load, and judges. The report tells what happened, also when it failed.
///
/// # Errors
/// With what was seen to be wrong, or why the run could not show that all is well.
pub async fn run(course: &Course) -> Result<Report, (Report, String)> {
    // What stands between nodes, and below them, takes time of its own.
    let links = course.faults.iter().any(|fault| fault.needs_links());
    let machines = course.faults.iter().any(|fault| fault.needs_machines());
    // Every other run keeps nothing in memory that it could read again.
    let settings = if course.seed % 2 == 1 { NO_PAGE_MEMORY } else { "" }.to_owned();
    let setup = Setup { links, machines, settings, ..Setup::default() };
    let limit = course.length + OVERHEAD;
    let mut report = Report::default();
    let ended = scenario::attempt(&setup, "chaos", course.seed, limit, async |scenario| {
        let client = scenario.client().await?;
        let plan = Plan { queues: QUEUES.map(str::to_owned).into(), ..Plan::default() };
        let mut work = scenario.start(&plan).await?;
        if course.order == Order::Drawn {
            for (seed, rule) in (course.seed.wrapping_add(1)..).zip(Rule::ALL) {
                work.0.add(&rule.plan(), seed).await?;
            }
        }
        let mut probes = Vec::new();
        for queue in QUEUES {
            probes.push(Probe::start(&client, &scenario.recorder, queue).await?);
        }
        let load = Load::start(&client, course.load_per_s).await?;
        let keyed = Keyed::start(client).await?;
        let mut chaos = Chaos::new(&setup, keyed);
        let unleashed = chaos.unleash(scenario, course, &mut report.events).await;
        report.take_waits(&probes.iter().map(Probe::confirmed).collect::<Vec<_>>());
        drop(probes);
        let mut is_judged = false;
        let finished = async {
            unleashed?;
            load.stop().await?;
            // What was published is judged when all of it was to be delivered, also where another check failed.
            let keyed = chaos.keyed.finish().await.context("the queue with partitions");
            is_judged = true;
            scenario.finish(work).await?;
            keyed
        };
        let finished = finished.await;
        report.take_counts(&scenario.recorder, is_judged);
        finished
    })
    .await;
    match ended {
        Ok(()) => Ok(report),
        Err(why) => Err((report, why)),
    }
}

/// What happens in one round.
struct Round {
    calm: Duration,
    fault: Fault,
    second: Option<Fault>,
    lasts: Duration,
}

impl Course {
    fn round(&self, number: usize, random: &mut SmallRng) -> Option<Round> {
        let mut draw = |range| Duration::from_millis(random.random_range(range));
        match self.order {
            Order::InTurn => {
                let fault = *self.faults.get(number % self.faults.len().max(1))?;
                Some(Round { calm: CALM, fault, second: None, lasts: draw(ALONE_MS) })
            }
            Order::Drawn => {
                let calm = draw(CALM_MS);
                let lasts = draw(FAULT_MS);
                let calm = if random.random_range(0..4) == 0 { calm } else { Duration::ZERO };
                let fault = *self.faults.choose(random)?;
                let others: Vec<_> =
                    self.faults.iter().copied().filter(|fault| fault.may_overlap()).collect();
                let is_time = fault.may_overlap() && random.random_range(0..5) == 0;
                let second = is_time.then(|| others.choose(random).copied()).flatten();
                Some(Round { calm, fault, second, lasts })
            }
        }
    }
}

/// What is going on.
struct Chaos {
    /// Whether the cluster has links, and machines.
    links: bool,
    machines: bool,
    keyed: Keyed,
    paused: BTreeSet<u64>,
    drained: Option<u64>,
    /// Nodes that took another one's place: what is said to them does not pass through links.
    replaced: BTreeSet<u64>,
}

/// Whom a fault may hit.
struct Targets {
    /// The queue whose leader is meant, by its place.
    queue: usize,
    leader: u64,
    follower: u64,
    any: u64,
    /// The leader, or one whose links can be cut where those of the leader cannot.
    linked: u64,
    /// The same of the followers.
    linked_follower: u64,
}

impl Chaos {
    fn new(setup: &Setup, keyed: Keyed) -> Self {
        let Setup { links, machines, .. } = *setup;
        Self { links, machines, keyed, paused: BTreeSet::new(), drained: None, replaced: BTreeSet::new() }
    }

    /// Lets what is to happen happen.
    async fn unleash(
        &mut self,
        scenario: &mut Scenario,
        course: &Course,
        events: &mut Vec<Event>,
    ) -> Result<()> {
        let mut random = SmallRng::seed_from_u64(course.seed);
        let until = time::Instant::now() + course.length;
        for number in 0..course.rounds_max {
            if number > 0 && time::Instant::now() >= until {
                break;
            }
            let Some(round) = course.round(number, &mut random) else { break };
            scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await.context("before a fault")?;
            let begun = scenario.recorder.now();
            time::sleep(round.calm).await;
            if course.order == Order::InTurn {
                let ended = scenario.recorder.now();
                events.push(Event { fault: None, second: None, queue: None, begun, ended });
            }
            let begun = scenario.recorder.now();
            let queue = Some(self.let_happen(scenario, &round, &mut random).await?);
            let ended = scenario.recorder.now();
            events.push(Event { fault: Some(round.fault), second: round.second, queue, begun, ended });
            if course.order == Order::InTurn {
                time::sleep(AFTERMATH).await;
            }
        }
        Ok(())
    }

    /// Gives the queue whose leader was meant, by its place.
    async fn let_happen(
        &mut self,
        scenario: &mut Scenario,
        round: &Round,
        random: &mut SmallRng,
    ) -> Result<usize> {
        let Round { fault, second, lasts, .. } = *round;
        let queue = self.inject(scenario, fault, random).await.with_context(|| format!("{fault}"))?;
        if let Some(second) = second {
            let both = || format!("{fault} and {second}");
            match self.inject(scenario, second, random).await {
                // Where the catalog's leader and another one do not hear each other, the queue grows once they do.
                Err(error) if second == Fault::Grow && error.is::<skein_client::Error>() => {}
                injected => drop(injected.with_context(both)?),
            }
        } else if fault.leaves_majority() {
            let carries_on = scenario.wait_confirmed(CARRIES_ON_CONFIRMS, RESUME_LIMIT).await;
            carries_on.with_context(|| format!("nothing goes on during {fault}"))?;
        }
        time::sleep(lasts).await;
        self.heal(scenario).await.with_context(|| format!("healing after {fault}"))?;
        Ok(queue)
    }

    /// Gives the queue whose leader is meant, by its place.
    async fn inject(
        &mut self,
        scenario: &mut Scenario,
        fault: Fault,
        random: &mut SmallRng,
    ) -> Result<usize> {
        let recorder = scenario.recorder.clone();
        let targets = self.targets(scenario, random).await?;
        let Targets { queue, leader, follower, any, linked, linked_follower } = targets;
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
            Fault::RestartStorm => restart_storm(cluster, &recorder, any, random).await?,
            Fault::PauseLeader => self.pause(scenario, &recorder, leader)?,
            Fault::PauseFollower => self.pause(scenario, &recorder, follower)?,
            Fault::CutOffLeader => links::cut_off(cluster, &recorder, linked)?,
            Fault::CutOffFollower => links::cut_off(cluster, &recorder, linked_follower)?,
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
                cluster.make_leader(QUEUES[queue], follower).await?;
            }
            Fault::Drain => {
                recorder.disturbed(format!("node {leader} is drained"));
                scenario.client().await?.drain_node(NodeId::new(leader), true).await?;
                self.drained = Some(leader);
            }
            Fault::Replace => self.replace(scenario, &recorder, any).await?,
            Fault::Grow => {
                let more = random.random_range(1..4);
                recorder.disturbed("a queue gets more partitions");
                self.keyed.grow(more).await?;
            }
        }
        Ok(queue)
    }

    /// Draws whom a fault is to hit. With two faults at once there may be no leader, and then somebody takes its place.
    async fn targets(&self, scenario: &Scenario, random: &mut SmallRng) -> Result<Targets> {
        let queue = random.random_range(0..QUEUES.len());
        let leader = scenario.cluster.leader_of(QUEUES[queue]).await;
        let running = scenario.cluster.running();
        let leader = leader.unwrap_or(running[0]);
        let mut others: Vec<_> = running.iter().copied().filter(|node_id| *node_id != leader).collect();
        others.shuffle(random);
        let follower = others.first().copied().unwrap_or(leader);
        let any = *running.choose(random).context("no node is running")?;
        let first_linked = |nodes: &[u64]| nodes.iter().copied().find(|node| !self.replaced.contains(node));
        let linked_follower = first_linked(&others);
        let linked = first_linked(&[leader]).or(linked_follower).unwrap_or(leader);
        let linked_follower = linked_follower.unwrap_or(linked);
        Ok(Targets { queue, leader, follower, any, linked, linked_follower })
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
        if self.links {
            links::heal(&scenario.cluster, &recorder)?;
        }
        if self.machines {
            machine::heal(&scenario.cluster, &recorder)?;
        }
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
        .await?;
        // Where that was not possible before.
        self.keyed.grow(0).await.context("the queue with partitions does not grow")
    }
}

async fn restart_storm(
    cluster: &mut Cluster,
    recorder: &Recorder,
    node_id: u64,
    random: &mut SmallRng,
) -> Result<()> {
    for _ in 0..random.random_range(3..8) {
        kill::kill(cluster, recorder, node_id)?;
        cluster.restart(node_id)?;
        time::sleep(Duration::from_millis(random.random_range(STORM_MS))).await;
    }
    Ok(())
}
