//! Nodes that come, go, and shall lead nothing; each waited for with what is being done about it.

use std::time::{Duration, Instant};

use anyhow::bail;
use indicatif::ProgressBar;
use serde_json::json;
use skein_client::{Client, Node, NodeId, NodeStanding, ShardId, Topology};

use super::Patience;
use crate::output::{self, Output};

/// How often what is waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

pub(super) async fn invite(client: &Client, replaces: Option<NodeId>, output: &Output) -> anyhow::Result<()> {
    let invitation = client.add_node(replaces).await?;
    let (node, token) = (invitation.node, &invitation.join_token);
    let is_up = match replaces {
        Some(replaced) => is_up(&client.topology_of_leaders().await?, replaced),
        None => false,
    };
    let value = json!({
        "node_id": node.get(),
        "join_token": token,
        "replaces_node_id": replaces.map(NodeId::get),
        "replaced_is_up": is_up,
    });
    output.result(&value, || {
        let purpose = replaces.map(|replaced| format!(", to take the place of node {replaced}"));
        let old = replaces.filter(|_| is_up).map(|replaced| {
            format!("\nnode {replaced} is up: it serves until node {node} has its replicas, and is removed then")
        });
        format!(
            "node {node} may join{}; start it with an empty data_dir:\n  skein-node run --config FILE --join-token \
             {token}\nand see it come: skein cluster wait{}",
            purpose.unwrap_or_default(),
            old.unwrap_or_default()
        )
    })?;
    Ok(())
}

fn is_up(topology: &Topology, node: NodeId) -> bool {
    topology.node(node).is_some_and(|node| node.reachable)
}

pub(super) async fn remove(
    client: &Client,
    node: NodeId,
    patience: Patience,
    output: &Output,
) -> anyhow::Result<()> {
    client.remove_node(node).await?;
    let what = format!("node {node} leaves");
    wait(client, &what, patience, |topology| {
        let has = |nodes: &[NodeId]| nodes.contains(&node);
        let left =
            topology.shards.iter().filter(|shard| has(&shard.replicas) || has(&shard.learners)).count();
        (left, topology.node(node).is_none())
    })
    .await?;
    output.result(&json!({ "node_id": node.get(), "removed": true }), || format!("node {node} is gone"))?;
    Ok(())
}

pub(super) async fn drain(
    client: &Client,
    node: NodeId,
    undo: bool,
    patience: Patience,
    output: &Output,
) -> anyhow::Result<()> {
    client.drain_node(node, !undo).await?;
    if !undo {
        let topology = client.topology_of_leaders().await?;
        if may_lead(&topology).all(|other| other == node) && !leads(&topology, node).is_empty() {
            bail!(
                "node {node} is drained, but leads on: there is no other node that may lead; bring one up, or \
                 let one lead again (skein cluster drain NODE --undo)"
            );
        }
        wait(client, &format!("node {node} hands over"), patience, |topology| {
            let leads = leads(topology, node).len();
            (leads, leads == 0)
        })
        .await?;
    }
    output.result(&json!({ "node_id": node.get(), "drained": !undo }), || match undo {
        true => format!(
            "node {node} may lead again; leaders come back once the cluster has been quiet for a while"
        ),
        false => format!("node {node} leads no shards, until skein cluster drain {node} --undo"),
    })?;
    Ok(())
}

pub(super) async fn wait_settled(client: &Client, patience: Patience, output: &Output) -> anyhow::Result<()> {
    let topology = wait(client, "replicas are brought to where they belong", patience, |topology| {
        let members: Vec<_> = members(topology).collect();
        let unsettled = topology.shards.iter().filter(|shard| shard.replicas != members);
        (unsettled.count(), topology.is_settled())
    })
    .await?;
    let members: Vec<_> = members(&topology).map(NodeId::get).collect();
    output.result(&json!({ "settled": true, "node_ids": members }), || {
        let members: Vec<_> = members.iter().map(u64::to_string).collect();
        format!("every shard has a replica on each of the nodes {}", members.join(", "))
    })?;
    Ok(())
}

pub(super) async fn rolling_check(
    client: &Client,
    wait: Option<Duration>,
    output: &Output,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + wait.unwrap_or_default();
    loop {
        let Some(why) = client.topology_of_leaders().await?.why_all_are_needed() else { break };
        if Instant::now() >= deadline {
            bail!("no node may be taken down now: {why}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    output.result(&json!({ "may_go": true }), || "any one node may be taken down now".to_owned())?;
    Ok(())
}

pub(super) async fn rebalance(client: &Client, output: &Output) -> anyhow::Result<()> {
    let mut moved = 0;
    let mut topology = client.topology_of_leaders().await?;
    // Each move makes the difference smaller; there are no more of them than shards.
    for _ in 0..topology.shards.len() {
        let Some((shard, to)) = next_move(&topology) else { break };
        client.transfer_leader(shard, to).await?;
        moved += 1;
        // Not everybody has heard of it yet.
        topology
            .shards
            .iter_mut()
            .filter(|moved| moved.id == shard)
            .for_each(|moved| moved.leader = Some(to));
    }
    output.result(&json!({ "moved_count": moved }), || match moved {
        0 => "leaders are spread evenly already".to_owned(),
        moved => format!("{moved} shards have another leader; they are spread evenly now"),
    })?;
    Ok(())
}

/// A shard of the node that leads most, and a node that leads at least two fewer and could lead it.
fn next_move(topology: &Topology) -> Option<(ShardId, NodeId)> {
    let mut by_count: Vec<_> = may_lead(topology).map(|node| (leads(topology, node).len(), node)).collect();
    by_count.sort_unstable();
    let (most, from) = *by_count.last()?;
    let led = leads(topology, from);
    let fewer = by_count.iter().filter(|(count, _)| most >= count + 2);
    fewer.into_iter().find_map(|(_, to)| {
        let has_replica =
            |shard: &&ShardId| topology.shard(**shard).is_some_and(|shard| shard.replicas.contains(to));
        led.iter().find(has_replica).map(|shard| (*shard, *to))
    })
}

/// The nodes that leaders may be given to now.
fn may_lead(topology: &Topology) -> impl Iterator<Item = NodeId> {
    let may_lead = |node: &&Node| node.reachable && !node.drained && node.standing == NodeStanding::Member;
    topology.nodes.iter().filter(may_lead).map(|node| node.id)
}

fn leads(topology: &Topology, node: NodeId) -> Vec<ShardId> {
    topology.shards.iter().filter(|shard| shard.leader == Some(node)).map(|shard| shard.id).collect()
}

fn members(topology: &Topology) -> impl Iterator<Item = NodeId> {
    let members = topology.nodes.iter().filter(|node| node.standing == NodeStanding::Member);
    members.map(|node| node.id)
}

/// Waits until `look` says that all is done, which also counts the shards that are left to do.
async fn wait(
    client: &Client,
    what: &str,
    patience: Patience,
    look: impl Fn(&Topology) -> (usize, bool),
) -> anyhow::Result<Topology> {
    let deadline = Instant::now() + patience.timeout;
    let progress = output::shards_bar();
    loop {
        let topology = client.topology_of_leaders().await?;
        let (left, is_done) = look(&topology);
        show(&progress, &topology, left);
        if is_done {
            progress.finish_and_clear();
            return Ok(topology);
        }
        if Instant::now() >= deadline {
            progress.finish_and_clear();
            let why = activity(&topology).unwrap_or_else(|| "skein cluster status tells more".to_owned());
            let still = match left {
                0 => "it is not over".to_owned(),
                left => format!("{left} of {} shards are left", topology.shards.len()),
            };
            bail!(
                "{what}, and after {} {still}; it goes on by itself ({why})",
                output::span(patience.timeout)
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn show(progress: &ProgressBar, topology: &Topology, left: usize) {
    progress.set_length(topology.shards.len() as u64);
    progress.set_position((topology.shards.len() - left) as u64);
    progress.set_message(activity(topology).unwrap_or_default());
}

/// What is being done about the first shard that something is done about, or who else is waited for.
fn activity(topology: &Topology) -> Option<String> {
    if let Some(busy) = topology.shards.iter().find(|shard| !shard.activity.is_empty()) {
        return Some(format!("shard {}: {}", busy.id, busy.activity));
    }
    let invited = topology.nodes.iter().find(|node| node.standing == NodeStanding::Invited)?;
    Some(format!("node {} was invited and has not come yet", invited.id))
}
