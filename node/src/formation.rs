//! Forms a cluster once: the listed nodes agree on a cluster id before any of them takes part in an election.
//!
//! The node with the lowest id founds. Each step is durable before the next one begins:
//!
//! 1. The founder asks every node who it is. One that already belongs to a cluster means that the founder's own
//!    directory was lost, and it refuses to go on.
//! 2. The founder writes a new cluster id into its directory.
//! 3. Every other node with a fresh directory asks the founder, and writes that id into its own.
//! 4. When all have it, the founder writes that the cluster is formed; the others hear so and write it too.
//!
//! Only then are shards initialised, each by one node. A node with a fresh directory that finds its cluster formed
//! refuses to start: it has lost its log, and an empty one would let a majority forget what it confirmed.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::FutureExt as _;
use skein_proto::{
    ids::NodeId,
    peer::{HelloRequest, HelloResponse},
};
use tokio::sync::watch;

use crate::{
    config::Config,
    datadir::{DataDir, DataDirError, Owner},
    peer::{Connections, Identity, says_removed},
    planted::{Bug, is_planted},
    random::random_name,
};

/// The pause before asking a node again that did not answer, or has not joined yet.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// How often to tell whom we are waiting for.
const REMIND_EVERY: u32 = 100;

/// Why a cluster could not be formed.
#[derive(Debug, thiserror::Error)]
pub enum FormationError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// This node's directory is empty, but the others know it.
    #[error(
        "this node's data_dir is empty, but its cluster {cluster_id} is formed and node {node} is one \
        of its members: \
         its log is lost, and starting it empty could lose what the cluster has confirmed. Restore the directory; or \
         let this node take the lost one's place under a new id: run `skein cluster replace {node}`, and start it with \
         --join-token and the token which that prints"
    )]
    LostDirectory {
        /// The cluster.
        cluster_id: String,
        /// This node.
        node: NodeId,
    },
    /// A node of another cluster answers at a member's address.
    #[error(
        "node {peer} belongs to cluster {theirs}, and this node to {ours}; check cluster.members and \
        data_dir of both"
    )]
    OtherCluster {
        /// The other node.
        peer: NodeId,
        /// Its cluster.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// Another node answers at a member's address.
    #[error(
        "node {answered} answers at {address}, where cluster.members lists node {listed}; correct the list"
    )]
    OtherNode {
        /// Who was expected.
        listed: NodeId,
        /// Who answered.
        answered: u64,
        /// Where.
        address: String,
    },
    /// The cluster has no node of this id any more.
    #[error(
        "this node's data_dir is empty, and node {node} was removed from the cluster, as node {by} says; to let this \
         machine join again, run `skein cluster add`, and start with --join-token and the token which that prints"
    )]
    Removed {
        /// This node.
        node: NodeId,
        /// Who says so.
        by: NodeId,
    },
    /// The nodes are configured differently.
    #[error(
        "node {peer} is configured with other nodes in cluster.members, or other cluster.shards, than this node; \
        make them alike on all nodes"
    )]
    OtherConfiguration {
        /// The other node.
        peer: NodeId,
    },
}

/// Joins this node's cluster, forming it with the others the first time. `node` is this node, and `owner` what its data
/// directory says of it.
///
/// # Errors
/// See [`FormationError`].
pub async fn join(
    config: &Config,
    node: NodeId,
    mut owner: Option<Owner>,
    dir: &DataDir,
    connections: &Arc<Connections>,
    identity: &watch::Sender<Identity>,
) -> Result<Owner, FormationError> {
    let joiner = Joiner { config, node, dir, connections, identity };
    if let Some(owner) = &owner {
        joiner.announce(owner);
        if owner.formed {
            return Ok(owner.clone());
        }
    }
    let founder = *config.members.keys().next().expect("a checked configuration lists at least this node");
    let mut owner = match owner.take() {
        Some(owner) => owner,
        None if founder == node => joiner.found().await?,
        None => joiner.adopt(founder).await?,
    };
    if founder == node {
        joiner.wait_for_all(&owner).await?;
    } else {
        joiner.wait_formed(founder, &owner).await?;
    }
    owner.formed = true;
    dir.claim(&owner)?;
    joiner.announce(&owner);
    tracing::info!(cluster_id = owner.cluster_id, "the cluster is formed");
    Ok(owner)
}

struct Joiner<'a> {
    config: &'a Config,
    node: NodeId,
    dir: &'a DataDir,
    connections: &'a Arc<Connections>,
    identity: &'a watch::Sender<Identity>,
}

impl Joiner<'_> {
    async fn found(&self) -> Result<Owner, FormationError> {
        self.ask_all(async |peer| match self.ask(peer, |_| true).await?.cluster_id {
            none if none.is_empty() || is_planted(Bug::EmptyDirectoryTaken) => Ok(()),
            cluster_id => Err(FormationError::LostDirectory { cluster_id, node: self.node }),
        })
        .await?;
        let cluster_id = random_name();
        self.join_as(cluster_id)
    }

    async fn adopt(&self, founder: NodeId) -> Result<Owner, FormationError> {
        // All are asked: the founder may be gone, or another node may be where it was, when the cluster is formed.
        let tells = |peer| {
            move |hello: &HelloResponse| hello.formed || peer == founder && !hello.cluster_id.is_empty()
        };
        let others = self.config.members.keys().filter(|node| **node != self.node);
        let asked = others.map(|peer| self.ask(*peer, tells(*peer)).boxed());
        let (hello, _, _) = futures::future::select_all(asked).await;
        let HelloResponse { cluster_id, formed, .. } = hello?;
        if formed {
            return Err(FormationError::LostDirectory { cluster_id, node: self.node });
        }
        self.join_as(cluster_id)
    }

    fn join_as(&self, cluster_id: String) -> Result<Owner, FormationError> {
        let owner = Owner::new(self.node, cluster_id, self.config.shard_count);
        self.dir.claim(&owner)?;
        self.announce(&owner);
        Ok(owner)
    }

    async fn wait_for_all(&self, owner: &Owner) -> Result<(), FormationError> {
        self.ask_all(async |peer| {
            let hello = self.ask(peer, |hello| !hello.cluster_id.is_empty()).await?;
            self.check_cluster(peer, &hello, owner)
        })
        .await
    }

    async fn wait_formed(&self, founder: NodeId, owner: &Owner) -> Result<(), FormationError> {
        let hello = self.ask(founder, |hello| hello.formed).await?;
        self.check_cluster(founder, &hello, owner)
    }

    fn check_cluster(
        &self,
        peer: NodeId,
        hello: &HelloResponse,
        owner: &Owner,
    ) -> Result<(), FormationError> {
        if hello.cluster_id == owner.cluster_id {
            return Ok(());
        }
        let (theirs, ours) = (hello.cluster_id.clone(), owner.cluster_id.clone());
        Err(FormationError::OtherCluster { peer, theirs, ours })
    }

    fn announce(&self, owner: &Owner) {
        self.identity.send_modify(|identity| {
            identity.cluster_id = Some(owner.cluster_id.clone());
            identity.formed = owner.formed;
        });
    }

    /// Asks every other node at the same time; the first that contradicts ends it.
    async fn ask_all(
        &self,
        ask: impl AsyncFn(NodeId) -> Result<(), FormationError>,
    ) -> Result<(), FormationError> {
        let others = self.config.members.keys().filter(|node| **node != self.node);
        futures::future::try_join_all(others.map(|node| ask(*node))).await.map(drop)
    }

    /// Asks a node until its answer is what is waited for.
    async fn ask(
        &self,
        node: NodeId,
        enough: impl Fn(&HelloResponse) -> bool,
    ) -> Result<HelloResponse, FormationError> {
        let address = &self.config.members[&node].grpc;
        for attempt in 0_u32.. {
            let reason = match self.hello(node).await? {
                Ok(hello) if hello.node_id != node.get() => {
                    let address = address.clone();
                    return Err(FormationError::OtherNode { listed: node, answered: hello.node_id, address });
                }
                Ok(hello) => {
                    self.check_configuration(node, &hello)?;
                    if enough(&hello) {
                        return Ok(hello);
                    }
                    "it has not come as far".to_owned()
                }
                Err(reason) => reason,
            };
            if attempt % REMIND_EVERY == REMIND_EVERY - 1 {
                tracing::info!(%node, address, reason, "waiting for a node, to form the cluster with it");
            }
            tokio::time::sleep(ASK_AGAIN_AFTER).await;
        }
        unreachable!("a node is asked until it answers")
    }

    /// One question. No answer, or a refusal, whose reason is told, is waited out: the node may be starting. But not
    /// when it says that this node was removed.
    async fn hello(&self, node: NodeId) -> Result<Result<HelloResponse, String>, FormationError> {
        let request = HelloRequest { node_id: self.node.get(), ..HelloRequest::default() };
        let Some(mut peer) = self.connections.peer(node) else {
            return Ok(Err("it is not listed".to_owned()));
        };
        match peer.hello(request).await {
            Ok(answer) => Ok(Ok(answer.into_inner())),
            Err(refused) if says_removed(&refused) => {
                Err(FormationError::Removed { node: self.node, by: node })
            }
            Err(refused) => Ok(Err(refused.message().to_owned())),
        }
    }

    fn check_configuration(&self, peer: NodeId, hello: &HelloResponse) -> Result<(), FormationError> {
        // Not their addresses: nodes may reach each other by different ones.
        let theirs: BTreeSet<_> = hello.members.iter().map(|member| NodeId::new(member.node_id)).collect();
        let ours: BTreeSet<_> = self.config.members.keys().copied().collect();
        if theirs == ours && hello.shard_count == self.config.shard_count {
            Ok(())
        } else {
            Err(FormationError::OtherConfiguration { peer })
        }
    }
}
