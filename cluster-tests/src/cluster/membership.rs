//! Nodes that come to a running cluster, take each other's places, and leave it.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use skein_proto::{
    REASON_TRAILER,
    broker::{AddNodeRequest, NodeStanding, RemoveNodeRequest, Topology, cluster_client::ClusterClient},
};
use tonic::Status;

use super::{Cluster, DATA_DIR, Node, addresses::free_addresses, channel, data_dir};
use crate::wait;

/// An invitation is given within this: the catalog may have to find a leader first.
const INVITE_LIMIT: Duration = Duration::from_secs(15);

/// What a node joins with.
#[derive(Debug, Clone)]
pub struct Invitation {
    /// The id that it will have.
    pub node_id: u64,
    /// Its token.
    pub token: String,
}

impl Cluster {
    /// Invites a node, to take the place of another one if one is named.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub async fn invite(&self, replaces: Option<u64>) -> Result<Invitation> {
        let request = AddNodeRequest { replaces_node_id: replaces.unwrap_or_default() };
        let answer = wait::until("an invitation", INVITE_LIMIT, async || {
            let any = *self.running().first().context("no node is running")?;
            match ClusterClient::new(self.channel(any)?).add_node(request).await {
                Ok(answer) => Ok(Ok(answer.into_inner())),
                Err(refused) if is_not_done(&refused) => Err(refused.into()),
                // It may have been given, and its token lost: nobody can join with it.
                Err(refused) if replaces.is_some() => {
                    self.take_back(request.replaces_node_id).await?;
                    Err(refused.into())
                }
                Err(refused) => Ok(Err(refused)),
            }
        })
        .await??;
        Ok(Invitation { node_id: answer.node_id, token: answer.join_token })
    }

    /// Takes back what invitation there is to take a node's place.
    async fn take_back(&self, replaced: u64) -> Result<()> {
        for topology in self.topologies().await {
            let invited = topology
                .nodes
                .iter()
                .find(|node| node.standing() == NodeStanding::Invited && node.replaces_node_id == replaced);
            if let Some(invited) = invited {
                return self.remove(invited.node_id).await;
            }
        }
        Ok(())
    }

    /// Starts a node that was invited, where no node was before. It asks the nodes that there are now.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn join(&mut self, invitation: &Invitation, settings: &str) -> Result<()> {
        let Invitation { node_id, token } = invitation;
        let addresses = free_addresses(2)?;
        let (grpc, http) = (addresses[0], addresses[1]);
        let node_dir = self.dir.path().join(format!("node-{node_id}"));
        fs::create_dir(&node_dir).context("cannot make a node's directory")?;
        let (config, log) = (node_dir.join("node.toml"), node_dir.join("log"));
        let members = self.members(*node_id);
        let data_dir = node_dir.join(DATA_DIR);
        let text = format!(
            "data_dir = {data_dir:?}\n\n[listen]\ngrpc = \"{grpc}\"\nhttp = \"{http}\"\n\n\
             [advertise]\ngrpc = \"{grpc}\"\nhttp = \"{http}\"\n\n[cluster]\nmembers = [\n{members}]\n\n{settings}"
        );
        fs::write(&config, text).context("cannot configure")?;
        let channel = channel(&grpc.to_string())?;
        let node = Node {
            grpc,
            http,
            config,
            log,
            log_start: 0,
            channel,
            process: None,
            host: None,
            machine: None,
            variables: Vec::new(),
            mount: None,
        };
        self.nodes.insert(*node_id, node);
        self.start_with_token(*node_id, token)
    }

    /// Starts an invited node with the configuration of one that is not running, and without its data.
    ///
    /// # Errors
    /// When that one runs, or the new one cannot be started.
    pub fn join_where_was(&mut self, gone: u64, invitation: &Invitation) -> Result<()> {
        let node = self.forget(gone)?;
        fs::remove_dir_all(data_dir(&node.config)).context("cannot delete a node's data")?;
        self.nodes.insert(invitation.node_id, node);
        self.start_with_token(invitation.node_id, &invitation.token)
    }

    /// Starts a node that is not running, with a token.
    ///
    /// # Errors
    /// When it cannot be started, or runs.
    pub fn start_with_token(&mut self, node_id: u64, token: &str) -> Result<()> {
        let node = self.nodes.get_mut(&node_id).context("no such node")?;
        node.start(Some(token)).with_context(|| format!("node {node_id}"))
    }

    /// Lets a node leave. Its process ends by itself later.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub async fn remove(&self, node_id: u64) -> Result<()> {
        let asked = self.running().into_iter().find(|running| *running != node_id);
        let channel = self.channel(asked.context("no other node is running")?)?;
        ClusterClient::new(channel).remove_node(RemoveNodeRequest { node_id }).await?;
        Ok(())
    }

    /// Waits until a node that was removed has ended, and takes its data away with it: the cluster goes on without it.
    ///
    /// # Errors
    /// When it runs on for as long as `limit`, or ends as if all were well.
    pub async fn wait_removed(&mut self, node_id: u64, limit: Duration) -> Result<()> {
        let status = self.wait_ended(node_id, limit).await?;
        let log = self.log_text(node_id)?;
        ensure!(
            !status.success() && log.contains("was removed from the cluster"),
            "it ended with {status}: {log}"
        );
        // It does not come back, either.
        self.restart(node_id)?;
        let status = self.wait_ended(node_id, limit).await?;
        let log = self.log_text(node_id)?;
        ensure!(!status.success() && log.contains("cannot come back"), "it came back with {status}: {log}");
        self.forget(node_id).map(drop)
    }

    /// Waits until every node that is running says that each shard has a replica on each of them and nowhere else.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub async fn wait_settled(&self, limit: Duration) -> Result<()> {
        let members = self.running();
        wait::until(&format!("replicas on the nodes {members:?}"), limit, async || {
            for node_id in &members {
                is_settled(&self.topology(*node_id).await?, &members)?;
            }
            Ok(())
        })
        .await
    }

    /// Forgets a node that is not running.
    fn forget(&mut self, node_id: u64) -> Result<Node> {
        ensure!(self.node(node_id)?.process.is_none(), "node {node_id} is running");
        self.nodes.remove(&node_id).context("no such node")
    }
}

/// A call that certainly did nothing, and may do something a moment later.
fn is_not_done(refused: &Status) -> bool {
    let reason = refused.metadata().get(REASON_TRAILER).and_then(|reason| reason.to_str().ok());
    reason.is_some_and(|reason| ["BUSY", "NO_LEADER", "NOT_LEADER"].contains(&reason))
}

fn is_settled(topology: &Topology, members: &[u64]) -> Result<()> {
    let node_ids: Vec<_> = topology.nodes.iter().map(|node| node.node_id).collect();
    ensure!(node_ids == members, "node {} knows the nodes {node_ids:?}", topology.answering_node_id);
    if let Some(node) = topology.nodes.iter().find(|node| node.standing() != NodeStanding::Member) {
        bail!("node {} is {}", node.node_id, node.standing().as_str_name());
    }
    for shard in &topology.shards {
        let (voters, learners) = (&shard.replica_node_ids, &shard.learner_node_ids);
        ensure!(
            shard.leader_node_id != 0 && learners.is_empty() && voters == members,
            "shard {}: leader {}, replicas {voters:?}, learners {learners:?}; {}",
            shard.shard_id,
            shard.leader_node_id,
            shard.activity
        );
    }
    Ok(())
}
