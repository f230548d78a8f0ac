//! Nodes that join a running cluster, take the place of dead ones, leave it, and lead nothing while they are drained.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use skein_client::NodeId;
use skein_cluster_tests::{
    cluster::{Cluster, Setup},
    faults::kill::{kill, kill_leader},
    scenario, wait,
    workload::Plan,
};
use skein_proto::broker::{
    AddNodeRequest, DrainNodeRequest, RemoveNodeRequest, cluster_client::ClusterClient,
};
use tonic::Code;

/// A whole test: starting, load, joining and leaving, draining, asking every replica.
const LIMIT: Duration = Duration::from_secs(240);

/// A node has come, or gone, within this, under load.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// A node that was refused, or removed, has ended within this.
const END_LIMIT: Duration = Duration::from_secs(20);

/// So many confirms show that the cluster carries on.
const CARRIES_ON: usize = 300;
const CARRY_ON_LIMIT: Duration = Duration::from_secs(30);

/// Leaders are spread again within this: the cluster must have been quiet for 15 s before.
const BALANCE_LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_data_is_replaced_and_the_others_can_then_fail() {
    let name = "a_node_that_lost_its_data_is_replaced_and_the_others_can_then_fail";
    scenario::run(name, LIMIT, async |scenario| {
        let mut load = scenario.start(&Plan::default()).await?;
        scenario.wait_confirmed(CARRIES_ON, CARRY_ON_LIMIT).await?;
        kill(&mut scenario.cluster, &scenario.recorder, 3)?;
        fs::remove_dir_all(scenario.cluster.data_dir(3)?)?;
        scenario.cluster.restart(3)?;
        let ended = scenario.cluster.wait_ended(3, END_LIMIT).await?;
        let log = scenario.cluster.log_text(3)?;
        ensure!(!ended.success() && log.contains("skein cluster replace 3"), "{log}");

        let invitation = scenario.cluster.invite(Some(3)).await?;
        ensure!(invitation.node_id == 4, "it gets the id {}", invitation.node_id);
        scenario.cluster.join_where_was(3, &invitation)?;
        load.1.add(scenario.cluster.channel(4)?);
        scenario.cluster.wait_settled(SETTLE_LIMIT).await?;

        // The new one counts: with it, the cluster does without either of the others.
        for node_id in [1, 2] {
            kill(&mut scenario.cluster, &scenario.recorder, node_id)?;
            scenario.wait_confirmed(CARRIES_ON, CARRY_ON_LIMIT).await?;
            scenario.cluster.heal().await?;
        }
        scenario.suspect = Some(4);
        scenario.finish(load).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_grows_from_one_to_five_and_shrinks_to_three_under_load() {
    let name = "a_cluster_grows_from_one_to_five_and_shrinks_to_three_under_load";
    let setup = Setup { node_count: 1, ..Setup::default() };
    scenario::run_with(&setup, name, LIMIT, async |scenario| {
        let mut load = scenario.start(&Plan::default()).await?;
        for invited in [[2, 3], [4, 5]] {
            for node_id in invited {
                let invitation = scenario.cluster.invite(None).await?;
                ensure!(invitation.node_id == node_id, "it gets the id {}", invitation.node_id);
                scenario.cluster.join(&invitation, "")?;
                load.1.add(scenario.cluster.channel(node_id)?);
            }
            scenario.cluster.wait_settled(SETTLE_LIMIT).await?;
            scenario.wait_confirmed(CARRIES_ON, CARRY_ON_LIMIT).await?;
        }
        // The first one, which has led everything, and the newest.
        for node_id in [1, 5] {
            scenario.cluster.remove(node_id).await?;
            scenario.cluster.wait_removed(node_id, SETTLE_LIMIT).await?;
            scenario.cluster.wait_settled(SETTLE_LIMIT).await?;
            scenario.wait_confirmed(CARRIES_ON, CARRY_ON_LIMIT).await?;
        }
        kill_leader(&mut scenario.cluster, &scenario.recorder, "orders").await?;
        scenario.wait_confirmed(CARRIES_ON, CARRY_ON_LIMIT).await?;
        scenario.finish(load).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_die_while_another_one_joins() {
    scenario::run("nodes_die_while_another_one_joins", LIMIT, async |scenario| {
        let mut load = scenario.start(&Plan::default()).await?;
        scenario.wait_confirmed(CARRIES_ON, CARRY_ON_LIMIT).await?;
        let invitation = scenario.cluster.invite(Some(2)).await?;
        scenario.cluster.join(&invitation, "")?;
        let joining = invitation.node_id;
        load.1.add(scenario.cluster.channel(joining)?);
        // The new one twice, in the middle of its way in; it is the same one when it comes back.
        for _ in 0..2 {
            wait::until("the new node", END_LIMIT, async || {
                let topology = scenario.cluster.topology(1).await?;
                let has_begun = topology.shards.iter().any(|shard| shard.learner_node_ids.contains(&joining));
                let counts = topology.shards.iter().any(|shard| shard.replica_node_ids.contains(&joining));
                ensure!(has_begun || counts, "it has no replica yet");
                Ok(())
            })
            .await?;
            kill(&mut scenario.cluster, &scenario.recorder, joining)?;
            scenario.cluster.start_with_token(joining, &invitation.token)?;
        }
        // The leaders of shards that are in the middle of it; the one that is replaced may be among them.
        for _ in 0..3 {
            let killed = kill_leader(&mut scenario.cluster, &scenario.recorder, "orders").await?;
            scenario.wait_confirmed(CARRIES_ON, CARRY_ON_LIMIT).await?;
            scenario.cluster.restart(killed)?;
        }
        scenario.cluster.wait_removed(2, SETTLE_LIMIT).await?;
        scenario.cluster.wait_settled(SETTLE_LIMIT).await?;
        scenario.finish(load).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_leads_nothing_and_leaders_spread_again_by_themselves() {
    let name = "a_drained_node_leads_nothing_and_leaders_spread_again_by_themselves";
    scenario::run(name, LIMIT, async |scenario| {
        let load = scenario.start(&Plan::default()).await?;
        let drain = async |cluster: &Cluster, drained| {
            let request = DrainNodeRequest { node_id: 2, drained };
            ClusterClient::new(cluster.channel(1)?).drain_node(request).await.map_err(anyhow::Error::from)
        };
        drain(&scenario.cluster, true).await?;
        wait_led(&scenario.cluster, |leads| leads[1] == 0 && leads[0] + leads[2] == 9, END_LIMIT).await?;
        // Nor does it when another one dies, for longer than an election takes.
        kill(&mut scenario.cluster, &scenario.recorder, 1)?;
        wait_led(&scenario.cluster, |leads| leads[1] == 0 && leads[2] == 9, END_LIMIT).await?;
        scenario.cluster.heal().await?;
        drain(&scenario.cluster, false).await?;
        wait_led(&scenario.cluster, |leads| leads == [3, 3, 3], BALANCE_LIMIT).await?;
        scenario.finish(load).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_joins_or_leaves_who_should_not() {
    let name = "nobody_joins_or_leaves_who_should_not";
    let setup = Setup { shards: 2, ..Setup::default() };
    scenario::run_with(&setup, name, LIMIT, async |scenario| {
        let mut cluster = ClusterClient::new(scenario.cluster.channel(1)?);
        let refused = cluster.remove_node(RemoveNodeRequest { node_id: 9 }).await.unwrap_err();
        ensure!(refused.code() == Code::NotFound && refused.message().contains("no node 9"));
        let refused = cluster.add_node(AddNodeRequest { replaces_node_id: 9 }).await.unwrap_err();
        ensure!(refused.code() == Code::NotFound && refused.message().contains("no node 9"));

        let invitation = scenario.cluster.invite(None).await?;
        let mut guess = invitation.clone();
        guess.token = "guess".into();
        scenario.cluster.join(&guess, "")?;
        let node_id = guess.node_id;
        refused_to_start(&mut scenario.cluster, node_id, "nobody was invited with this token").await?;
        scenario.cluster.restart(node_id)?;
        refused_to_start(&mut scenario.cluster, node_id, "belongs to no cluster").await?;
        scenario.cluster.start_with_token(node_id, &invitation.token)?;
        scenario.cluster.wait_settled(SETTLE_LIMIT).await?;

        // Whose directory is lost does not come back as the same node, though it has the token.
        scenario.cluster.kill(node_id)?;
        fs::remove_dir_all(scenario.cluster.data_dir(node_id)?)?;
        scenario.cluster.start_with_token(node_id, &invitation.token)?;
        refused_to_start(&mut scenario.cluster, node_id, "has joined with this token from another").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_removed_while_it_was_away_stays_out() {
    let name = "a_node_that_was_removed_while_it_was_away_stays_out";
    let setup = Setup { shards: 2, ..Setup::default() };
    scenario::run_with(&setup, name, LIMIT, async |scenario| {
        let invitation = scenario.cluster.invite(None).await?;
        scenario.cluster.join(&invitation, "")?;
        scenario.cluster.wait_settled(SETTLE_LIMIT).await?;
        let node_id = invitation.node_id;
        scenario.cluster.kill(node_id)?;
        scenario.client().await?.remove_node(NodeId::new(node_id)).await?;
        scenario.cluster.wait_settled(SETTLE_LIMIT).await?;

        // It is told by the others, and knows from then on.
        for why in ["was removed from the cluster", "was removed from its cluster and cannot come back"] {
            scenario.cluster.restart(node_id)?;
            refused_to_start(&mut scenario.cluster, node_id, why).await?;
        }
        Ok(())
    })
    .await;
}

async fn refused_to_start(cluster: &mut Cluster, node_id: u64, why: &str) -> Result<()> {
    let ended = cluster.wait_ended(node_id, END_LIMIT).await?;
    let log = cluster.log_text(node_id)?;
    ensure!(!ended.success() && log.contains(why), "it ended with {ended}: {log}");
    Ok(())
}

/// Waits until nodes 1 to 3 lead as many shards as they should.
async fn wait_led(cluster: &Cluster, is_so: impl Fn([usize; 3]) -> bool, limit: Duration) -> Result<()> {
    wait::until("the leaders", limit, async || {
        let topology = cluster.topology(*cluster.running().last().unwrap_or(&1)).await?;
        let count = |node| topology.shards.iter().filter(|shard| shard.leader_node_id == node).count();
        let leads = [1, 2, 3].map(count);
        ensure!(is_so(leads), "they lead {leads:?}");
        Ok(())
    })
    .await
}
