//! Disks that fill up: publishes are refused in time, everything else goes on, and room that is made is used. Where
//! somebody else takes the room, a node stops rather than lose anything.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use skein_cluster_tests::{
    cluster::{Cluster, Setup},
    faults::disk::{self, FILL_DISK},
    mount::DiskKind,
    scenario::{self, Scenario},
    wait,
    workload::Plan,
};
use skein_proto::{
    REASON_TRAILER,
    broker::{PublishOpen, PublishRequest, Reason, broker_client::BrokerClient, publish_request},
};

/// A whole test: starting, filling, draining, asking every replica.
const LIMIT: Duration = Duration::from_secs(400);

/// The disk is full within this.
const FILL_LIMIT: Duration = Duration::from_secs(90);

/// Groups have acked what was published within this.
const ACK_LIMIT: Duration = Duration::from_secs(60);

/// Publishing has resumed within this after room was made: the log's space is looked after every 30 s, and what raft
/// lets go in one round goes in the next.
const RESUME_LIMIT: Duration = Duration::from_secs(120);

/// A node whose disk is full has noticed within this.
const NOTICE_LIMIT: Duration = Duration::from_secs(60);

/// Enough that faults meet publishes, deliveries and acks under way.
const WARM_UP_CONFIRMS: usize = 300;

/// Publishing does not resume by itself for so long while nothing makes room.
const SILENCE: Duration = Duration::from_secs(3);

/// Twelve segments: the four that the mark leaves free, and eight to fill.
const DISK_BYTES: u64 = 192 << 20;
const SEGMENT_BYTES: u64 = 16 << 20;

/// The queue whose leader is meant.
const QUEUE: &str = "orders";

fn setup(disk_low_bytes: u64) -> Setup {
    let settings =
        format!("[log]\nsegment_bytes = {SEGMENT_BYTES}\n\n[limits]\ndisk_low_bytes = {disk_low_bytes}\n");
    Setup { settings, disk: DiskKind::Tmpfs { bytes: DISK_BYTES }, ..Setup::default() }
}

/// Large messages, acked by two groups as they come and by a third one much later. Publishers have patience.
fn plan() -> Plan {
    Plan {
        late_groups: vec!["late".to_owned()],
        keeps: false,
        large_percent: 100,
        delivery_timeout: LIMIT,
        ..Plan::default()
    }
}

/// Asks a queue's leader to take publishes, without one. Gives the reason when it refuses.
async fn refusal(cluster: &Cluster, queue: &str) -> Result<Option<String>> {
    let leader = cluster.leader_of(queue).await?;
    let open = PublishOpen { queue: queue.to_owned(), ..PublishOpen::default() };
    let request = PublishRequest { request: Some(publish_request::Request::Open(open)) };
    let requests = tokio_stream::once(request);
    let mut client = BrokerClient::new(cluster.channel(leader)?);
    let answer = match client.publish(requests).await {
        Ok(answers) => answers.into_inner().message().await,
        Err(status) => Err(status),
    };
    let Err(status) = answer else { return Ok(None) };
    let reason = status.metadata().get(REASON_TRAILER).and_then(|reason| reason.to_str().ok());
    Ok(Some(reason.with_context(|| format!("no reason is given: {status}"))?.to_owned()))
}

/// Waits until publishes to a queue are refused for want of room.
async fn wait_refused(scenario: &Scenario, queue: &str, limit: Duration) -> Result<()> {
    wait::until(&format!("publishes to {queue} to be refused"), limit, async || {
        let reason = refusal(&scenario.cluster, queue).await?;
        ensure!(reason.as_deref() == Some(Reason::DiskFull.as_str_name()), "{reason:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn full_disks_refuse_publishes_until_there_is_room() {
    let name = "full_disks_refuse_publishes_until_there_is_room";
    // The mark that suits the disk: four segments.
    scenario::run_with(&setup(0), name, LIMIT, async |scenario| {
        let mut work = scenario.start(&plan()).await?;
        for queue in &plan().queues {
            wait_refused(scenario, queue, FILL_LIMIT).await?;
        }

        // What was under way may still be confirmed; consuming and acking go on until there is nothing left.
        work.0.drain(ACK_LIMIT).await?;
        let since = scenario.recorder.now();
        wait::until("publishers to try in vain", ACK_LIMIT, async || {
            let silent = scenario.recorder.now().saturating_sub(since);
            ensure!(silent >= SILENCE, "only for {silent:?}");
            ensure!(scenario.publishes_open() > 0, "nobody tries");
            Ok(())
        })
        .await?;
        let confirmed = scenario.confirmed_since(since);
        ensure!(confirmed == 0, "{confirmed} messages were confirmed on full disks");
        ensure!(scenario.cluster.running().len() == 3, "a node has ended");

        work.0.start_late_groups().await?;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
        // What publishers have waiting may fill the disks once more.
        work.0.stop_publishing(RESUME_LIMIT).await?;
        scenario.finish(work).await
    })
    .await;
}

/// Somebody else takes all the room on one node's disk.
async fn somebody_fills_the_disk(name: &str, of_leader: bool) {
    // The lowest mark that is allowed: it is passed long before the disk is full, but acks and other nodes' publishes
    // go on.
    scenario::run_with(&setup(SEGMENT_BYTES), name, LIMIT, async |scenario| {
        scenario.require(FILL_DISK);
        let plan = Plan { queues: vec![QUEUE.to_owned()], producers: 4, ..plan() };
        let mut work = scenario.start(&plan).await?;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, FILL_LIMIT).await?;
        let leader = scenario.cluster.leader_of(QUEUE).await?;
        let is_victim = |node_id: &u64| (*node_id == leader) == of_leader;
        let Some(victim) = scenario.cluster.running().into_iter().find(is_victim) else {
            bail!("there is no other node than {leader}");
        };
        let filler = disk::fill(&scenario.cluster, &scenario.recorder, victim)?;
        wait_noticed(scenario, victim).await?;
        filler.make_room(&scenario.recorder)?;
        work.0.start_late_groups().await?;
        scenario.cluster.heal().await?;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
        work.0.stop_publishing(RESUME_LIMIT).await?;
        scenario.finish(work).await
    })
    .await;
}

/// A leader refuses publishes, and may go on so. Whoever is sent more than fits ends, and says what could not be
/// written.
async fn wait_noticed(scenario: &mut Scenario, victim: u64) -> Result<()> {
    let dir = scenario.cluster.data_dir(victim)?;
    let limit = Duration::from_millis(1);
    let cluster = &mut scenario.cluster;
    let ended = wait::until(&format!("node {victim} to notice"), NOTICE_LIMIT, async || {
        if let Ok(status) = cluster.wait_ended(victim, limit).await {
            return Ok(Some(status));
        }
        let leads = cluster.leader_of(QUEUE).await? == victim;
        let is_low = cluster.metric(victim, "skein_disk_low").await? == 1;
        let reason = refusal(cluster, QUEUE).await?;
        let refuses = leads && reason.as_deref() == Some(Reason::DiskFull.as_str_name());
        ensure!(refuses, "it runs, leads: {leads}, low: {is_low}, refuses: {reason:?}");
        Ok(None)
    })
    .await?;
    let Some(status) = ended else { return Ok(()) };
    ensure!(status.code().is_some_and(|code| code != 0), "node {victim} ended with {status}");
    let said = scenario.cluster.log_text(victim)?;
    let names_file =
        said.lines().any(|line| line.contains("ERROR") && line.contains(&*dir.to_string_lossy()));
    ensure!(names_file, "node {victim} does not say what could not be written");
    scenario.recorder.disturbed(format!("node {victim} has ended: {status}"));
    Ok(())
}

#[tokio::test]
async fn a_follower_whose_disk_somebody_fills_loses_nothing() {
    somebody_fills_the_disk("a_follower_whose_disk_somebody_fills_loses_nothing", false).await;
}

#[tokio::test]
async fn a_leader_whose_disk_somebody_fills_loses_nothing() {
    somebody_fills_the_disk("a_leader_whose_disk_somebody_fills_loses_nothing", true).await;
}
