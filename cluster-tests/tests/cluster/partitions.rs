//! Nodes that do not hear each other under load, in every combination; the histories are judged.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use skein_client::{Message, NodeId, Position, QueueSettings, Reason, ShardId};
use skein_cluster_tests::{
    cluster::{Cluster, Setup},
    faults::links::{
        CUT_OFF, CUT_PAIR, HEARS_NOBODY, NOT_HEARD, SLOW, cut_off, cut_pair, heal, let_hear_nobody,
        let_nobody_hear, slow_down,
    },
    scenario::{self, Scenario},
    wait,
    workload::Plan,
};
use skein_proto::{
    REASON_TRAILER,
    broker::{
        CreateGroupRequest, CreateQueueRequest, GetGroupRequest, GetQueueRequest, Node,
        queues_client::QueuesClient,
    },
};
use tokio::time;

/// A whole test: starting, faults, draining, asking every replica.
const LIMIT: Duration = Duration::from_secs(150);

/// Publishing goes on within this after a fault that a majority survived: elections by timers, and clients that notice
/// that their leader is none any more.
const RESUME_LIMIT: Duration = Duration::from_secs(25);

/// Enough that a fault meets publishes, deliveries and acks under way.
const WARM_UP_CONFIRMS: usize = 300;

/// So many of each publisher show that none is stuck.
const EACH_CONFIRMS: usize = 50;

/// Longer than any timer of raft and of connections: whoever would be deposed by then, is.
const LONG: Duration = Duration::from_secs(6);

/// What comes to or from a node takes so long that each answer comes later than a heartbeat waits for it.
const LATE: Duration = Duration::from_millis(150);

/// A client gives a node so long to answer.
const ANSWER_LIMIT: Duration = Duration::from_millis(3_300);

/// What a node logs each time that it begins to lead a shard.
const LEADS: &str = "server: serving as leader";

/// Longer than a cluster is quiet before leaders are spread.
const SPREAD: Duration = Duration::from_secs(20);

/// The queue whose leader is meant.
const QUEUE: &str = "orders";

/// A node hears all others again within this.
const BACK_LIMIT: Duration = Duration::from_secs(20);

fn linked() -> Setup {
    Setup { links: true, ..Setup::default() }
}

/// Runs a test on nodes whose ways can be cut, under load, which has begun when the test does.
async fn run(name: &str, fault: &'static str, test: impl AsyncFnOnce(&mut Scenario) -> Result<()>) {
    scenario::run_with(&linked(), name, LIMIT, async |scenario| {
        scenario.require(fault);
        // One queue: what is confirmed goes through the leader that is meant.
        let plan = Plan { queues: vec![QUEUE.to_owned()], ..Plan::default() };
        let work = scenario.start(&plan).await?;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
        test(scenario).await?;
        heal(&scenario.cluster, &scenario.recorder)?;
        wait_whole(&scenario.cluster).await?;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
        scenario.finish(work).await
    })
    .await;
}

/// Waits until every node hears every other one, and knows a leader of each shard.
async fn wait_whole(cluster: &Cluster) -> Result<()> {
    wait::until("all to hear each other", BACK_LIMIT, async || {
        for node_id in cluster.running() {
            let topology = cluster.topology(node_id).await?;
            ensure!(topology.nodes.iter().all(|node| node.reachable), "node {node_id} lacks some");
            ensure!(
                topology.shards.iter().all(|shard| shard.leader_node_id != 0),
                "node {node_id} knows no leader"
            );
        }
        Ok(())
    })
    .await
}

/// The shards that a node does not lead, each with its term, as the node sees them that leads them.
async fn terms_led_by_others(cluster: &Cluster, node_id: u64) -> Result<BTreeMap<u32, u64>> {
    let mut terms = BTreeMap::new();
    for other in cluster.running().into_iter().filter(|other| *other != node_id) {
        let topology = cluster.topology(other).await?;
        let led = topology.shards.iter().filter(|shard| shard.leader_node_id == other);
        terms.extend(led.map(|shard| (shard.shard_id, shard.term)));
    }
    Ok(terms)
}

/// Waits until a node says of itself that it does not lead the queue's shard.
async fn wait_given_up(cluster: &Cluster, node_id: u64) -> Result<()> {
    wait::until(&format!("node {node_id} to give {QUEUE} up"), RESUME_LIMIT, async || {
        let leader = cluster.leader_of(QUEUE).await?;
        ensure!(leader != node_id, "it is still the newest leader");
        let topology = cluster.topology(node_id).await?;
        let led = topology.shards.iter().filter(|shard| shard.leader_node_id == node_id).count();
        ensure!(led == 0, "it says that it leads {led} shards");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_gives_up_and_is_followed() {
    run("a_leader_that_is_cut_off_gives_up_and_is_followed", CUT_OFF, async |scenario| {
        let leader = scenario.cluster.leader_of(QUEUE).await?;
        cut_off(&scenario.cluster, &scenario.recorder, leader)?;
        wait_given_up(&scenario.cluster, leader).await?;
        scenario.wait_each_confirmed(EACH_CONFIRMS, RESUME_LIMIT).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_nobody_hears_gives_up_and_is_followed() {
    run("a_leader_that_nobody_hears_gives_up_and_is_followed", NOT_HEARD, async |scenario| {
        let leader = scenario.cluster.leader_of(QUEUE).await?;
        let_nobody_hear(&scenario.cluster, &scenario.recorder, leader)?;
        wait_given_up(&scenario.cluster, leader).await?;
        scenario.wait_each_confirmed(EACH_CONFIRMS, RESUME_LIMIT).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_hears_nobody_gives_up_and_is_followed() {
    run("a_leader_that_hears_nobody_gives_up_and_is_followed", HEARS_NOBODY, async |scenario| {
        let leader = scenario.cluster.leader_of(QUEUE).await?;
        let_hear_nobody(&scenario.cluster, &scenario.recorder, leader)?;
        wait_given_up(&scenario.cluster, leader).await?;
        scenario.wait_each_confirmed(EACH_CONFIRMS, RESUME_LIMIT).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_was_cut_off_deposes_nobody_when_it_is_back() {
    run("a_follower_that_was_cut_off_deposes_nobody_when_it_is_back", CUT_OFF, async |scenario| {
        let leader = scenario.cluster.leader_of(QUEUE).await?;
        let follower = scenario.cluster.running().into_iter().find(|node_id| *node_id != leader);
        let follower = follower.unwrap_or_default();
        let before = terms_led_by_others(&scenario.cluster, follower).await?;
        cut_off(&scenario.cluster, &scenario.recorder, follower)?;
        time::sleep(LONG).await;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
        heal(&scenario.cluster, &scenario.recorder)?;
        wait_whole(&scenario.cluster).await?;
        let after = terms_led_by_others(&scenario.cluster, follower).await?;
        let deposed: Vec<_> = before.iter().filter(|(shard, term)| after.get(shard) != Some(term)).collect();
        ensure!(deposed.is_empty(), "the shards {deposed:?} have another leader or term: {after:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_hear_only_a_third_do_not_depose_each_other_for_ever() {
    run("two_that_hear_only_a_third_do_not_depose_each_other_for_ever", CUT_PAIR, async |scenario| {
        let leader = scenario.cluster.leader_of(QUEUE).await?;
        let follower = scenario.cluster.running().into_iter().find(|node_id| *node_id != leader);
        let term = async |cluster: &Cluster| {
            let leader = cluster.leader_of(QUEUE).await?;
            let shards = cluster.topology(leader).await?.shards;
            let led = shards.iter().filter(|shard| shard.leader_node_id == leader);
            anyhow::Ok(led.map(|shard| shard.term).max().unwrap_or_default())
        };
        cut_pair(&scenario.cluster, &scenario.recorder, leader, follower.unwrap_or_default())?;
        // Somebody may be elected once whom both hear. Then there has to be peace.
        time::sleep(LONG).await;
        let settled = term(&scenario.cluster).await?;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
        time::sleep(LONG).await;
        let later = term(&scenario.cluster).await?;
        ensure!(later <= settled + 1, "terms went from {settled} to {later}");
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_replaced_while_another_one_is_cut_off_and_comes_back() {
    run("a_node_is_replaced_while_another_one_is_cut_off_and_comes_back", CUT_OFF, async |scenario| {
        let leader = scenario.cluster.leader_of(QUEUE).await?;
        let [other, goes] =
            [1, 2, 3].into_iter().filter(|node_id| *node_id != leader).collect::<Vec<_>>()[..]
        else {
            bail!("node {leader} is not one of three");
        };
        let invitation = scenario.cluster.invite(Some(goes)).await?;
        scenario.cluster.join(&invitation, "")?;
        wait::until("the new node to get a replica", BACK_LIMIT, async || {
            let shards = scenario.cluster.topology(leader).await?.shards;
            let comes = |ids: &[u64]| ids.contains(&invitation.node_id);
            let has_one =
                shards.iter().any(|shard| comes(&shard.replica_node_ids) || comes(&shard.learner_node_ids));
            ensure!(has_one, "no shard has given it one");
            Ok(())
        })
        .await?;
        // Of the three that count, two are left, one of which is to go.
        cut_off(&scenario.cluster, &scenario.recorder, other)?;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
        heal(&scenario.cluster, &scenario.recorder)?;
        scenario.cluster.wait_removed(goes, RESUME_LIMIT).await?;
        scenario.cluster.wait_settled(RESUME_LIMIT).await?;
        scenario.suspect = Some(invitation.node_id);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_follower_holds_nobody_up() {
    run("a_slow_follower_holds_nobody_up", SLOW, async |scenario| {
        let leader = scenario.cluster.leader_of(QUEUE).await?;
        let follower = scenario.cluster.running().into_iter().find(|node_id| *node_id != leader);
        let follower = follower.unwrap_or_default();
        let before = terms_led_by_others(&scenario.cluster, follower).await?;
        slow_down(&scenario.cluster, &scenario.recorder, follower, Duration::from_millis(150))?;
        time::sleep(LONG).await;
        scenario.wait_confirmed(WARM_UP_CONFIRMS, RESUME_LIMIT).await?;
        let after = terms_led_by_others(&scenario.cluster, follower).await?;
        ensure!(
            before.iter().all(|(shard, term)| after.get(shard) == Some(term)),
            "{before:?} became {after:?}"
        );
        Ok(())
    })
    .await;
}

/// Waits until a node does not hear another one any more.
async fn wait_missed(cluster: &Cluster, missed: u64, by: u64) -> Result<()> {
    wait::until(&format!("node {by} to miss node {missed}"), BACK_LIMIT, async || {
        let nodes = cluster.topology(by).await?.nodes;
        let is_missed = |node: &Node| node.node_id == missed && !node.reachable;
        ensure!(nodes.iter().any(is_missed), "it hears it yet");
        Ok(())
    })
    .await
}

/// Where nobody publishes, nothing but heartbeats says that a leader is one.
#[tokio::test]
async fn a_leader_that_is_answered_too_late_gives_way_and_gets_nothing_to_lead() {
    let name = "a_leader_that_is_answered_too_late_gives_way_and_gets_nothing_to_lead";
    scenario::run_with(&linked(), name, LIMIT, async |scenario| {
        scenario.require(SLOW);
        let client = scenario.client().await?;
        client.create_queue(QUEUE, QueueSettings::default()).await?;
        let leader = scenario.cluster.leader_of(QUEUE).await?;
        slow_down(&scenario.cluster, &scenario.recorder, leader, LATE)?;
        wait::until("others to lead all", RESUME_LIMIT, async || {
            let topology = scenario.cluster.topology(leader % 3 + 1).await?;
            let led: Vec<_> = topology.shards.iter().map(|shard| shard.leader_node_id).collect();
            ensure!(led.iter().all(|node| ![0, leader].contains(node)), "{led:?}");
            Ok(())
        })
        .await?;
        client.send(QUEUE, vec![Message::new("somebody serves")]).await?;
        let times_led = || Ok::<_, anyhow::Error>(scenario.cluster.log_text(leader)?.matches(LEADS).count());
        let before = times_led()?;
        ensure!(before > 0, "it never led");
        // Leaders are spread when a cluster has been quiet for a while: not over a node that cannot lead.
        time::sleep(SPREAD).await;
        ensure!(times_led()? == before, "it was given something to lead");
        let refused = client.transfer_leader(ShardId::new(0), NodeId::new(leader)).await;
        ensure!(refused.is_err(), "it leads");
        Ok(())
    })
    .await;
}

/// The catalog's leader and that of its shard do not hear each other, and a third one hears both, who depose nobody.
#[tokio::test]
async fn a_queue_whose_shard_does_not_hear_of_it_is_there_once_it_does() {
    let name = "a_queue_whose_shard_does_not_hear_of_it_is_there_once_it_does";
    scenario::run_with(&linked(), name, LIMIT, async |scenario| {
        scenario.require(CUT_PAIR);
        let client = scenario.client().await?;
        let shards = client.topology_of_leaders().await?.shards.into_iter().map(|shard| shard.id);
        for shard in shards {
            let leader = if shard == ShardId::CATALOG { 1 } else { 2 };
            client.transfer_leader(shard, NodeId::new(leader)).await?;
        }
        cut_pair(&scenario.cluster, &scenario.recorder, 1, 2)?;
        wait_missed(&scenario.cluster, 1, 2).await?;
        let refused = async |node_id| {
            let mut node = QueuesClient::new(scenario.cluster.channel(node_id)?);
            let created =
                node.create_queue(CreateQueueRequest { name: QUEUE.to_owned(), ..Default::default() });
            let answer = time::timeout(ANSWER_LIMIT, created).await;
            let refused = answer.with_context(|| format!("node {node_id} does not answer"))?.err();
            refused.with_context(|| format!("node {node_id} says that it is there"))
        };
        let (created, not_heard) = tokio::join!(refused(1), refused(2));
        let (created, not_heard) = (created?, not_heard?);
        ensure!(created.message().contains("one that is cut off from the catalog's"), "{created}");
        ensure!(not_heard.message().contains("node 2 does not hear it"), "{not_heard}");
        heal(&scenario.cluster, &scenario.recorder)?;
        client.create_queue(QUEUE, QueueSettings::default()).await?;
        client.send(QUEUE, vec![Message::new("it is there")]).await?;
        Ok(())
    })
    .await;
}

/// Nobody is told that nothing was done, where the first of two partitions has done it.
#[tokio::test]
async fn what_only_some_partitions_could_do_has_an_unknown_outcome() {
    let name = "what_only_some_partitions_could_do_has_an_unknown_outcome";
    scenario::run_with(&linked(), name, LIMIT, async |scenario| {
        scenario.require(CUT_PAIR);
        let client = scenario.client().await?;
        client.create_queue(QUEUE, QueueSettings { partitions: Some(2), ..Default::default() }).await?;
        for (partition, leader) in [("orders/0", 1), ("orders/1", 2)] {
            scenario.cluster.make_leader(partition, leader).await?;
        }
        cut_pair(&scenario.cluster, &scenario.recorder, 1, 2)?;
        wait_missed(&scenario.cluster, 2, 1).await?;
        let mut node = QueuesClient::new(scenario.cluster.channel(1)?);
        let mail =
            || CreateGroupRequest { queue: QUEUE.to_owned(), group: "mail".to_owned(), ..Default::default() };
        let refused = node.create_group(mail()).await.err().context("it is in both")?;
        let reason = refused.metadata().get(REASON_TRAILER).context("no reason is given")?;
        ensure!(reason == Reason::OutcomeUnknown.as_str_name(), "{refused}");
        ensure!(refused.message().contains("orders/1"), "{refused}");
        let only_read = node.get_group(GetGroupRequest { queue: QUEUE.to_owned(), group: "mail".to_owned() });
        let reason =
            only_read.await.err().and_then(|refused| refused.metadata().get(REASON_TRAILER).cloned());
        ensure!(reason.is_some_and(|reason| reason == Reason::NoLeader.as_str_name()), "nothing was changed");
        heal(&scenario.cluster, &scenario.recorder)?;
        ensure!(client.create_group(QUEUE, "mail", Position::First).await?, "one of them had it not");
        client.get_group(QUEUE, "mail").await?;
        Ok(())
    })
    .await;
}

/// Whoever publishes or consumes ends when a queue does not exist, and asks another node when this one cannot know.
#[tokio::test]
async fn a_node_that_is_cut_off_does_not_say_that_a_queue_does_not_exist() {
    let name = "a_node_that_is_cut_off_does_not_say_that_a_queue_does_not_exist";
    scenario::run_with(&linked(), name, LIMIT, async |scenario| {
        scenario.require(CUT_OFF);
        let client = scenario.client().await?;
        client.transfer_leader(ShardId::CATALOG, NodeId::new(1)).await?;
        let mut node = QueuesClient::new(scenario.cluster.channel(3)?);
        let mut reason_of = async |name: &str| {
            let answer = node.get_queue(GetQueueRequest { name: name.to_owned() }).await;
            let refused = answer.err().with_context(|| format!("{name} is there"))?;
            let reason = refused.metadata().get(REASON_TRAILER).context("no reason is given")?;
            Ok::<_, anyhow::Error>(reason.to_str()?.to_owned())
        };
        ensure!(reason_of("unknown").await? == Reason::QueueNotFound.as_str_name(), "all hear each other");
        cut_off(&scenario.cluster, &scenario.recorder, 3)?;
        client.create_queue(QUEUE, QueueSettings::default()).await?;
        let reason = reason_of(QUEUE).await?;
        ensure!(reason == Reason::NoLeader.as_str_name(), "{reason}");
        heal(&scenario.cluster, &scenario.recorder)?;
        wait_whole(&scenario.cluster).await?;
        let reason = reason_of("unknown").await?;
        ensure!(reason == Reason::QueueNotFound.as_str_name(), "it hears all again: {reason}");
        Ok(())
    })
    .await;
}
