//! Lets a node with an empty data directory join a cluster that others have formed, with the token that it was invited
//! with. The cluster gives it an id that no node had before, and brings it up to date.
//!
//! The directory has a name before the cluster is asked. Who did not hear the answer asks again under the same name,
//! and gets the same one; a directory that was lost cannot come back under its node's id.

use std::time::Duration;

use skein_proto::{
    ids::NodeId,
    node::{JoinNodeRequest, JoinNodeResponse, cluster_client::ClusterClient},
};
use tonic::{Code, transport::Endpoint};

use crate::{
    config::Config,
    datadir::{DataDir, DataDirError, Owner},
};

/// A node that does not answer within this is passed over.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(5);

/// The pause before all are asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// How often to tell that nobody lets this node in yet.
const REMIND_EVERY: u32 = 20;

/// Why a node cannot join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Nobody has invited it.
    #[error(
        "this node belongs to no cluster: run `skein cluster add` where the cluster is, and start this node with \
         --join-token, or SKEIN_JOIN_TOKEN in its environment, and the token which that prints"
    )]
    NotInvited,
    /// The cluster does not want it.
    #[error("the cluster refuses this node: {0}")]
    Refused(String),
}

/// Whose this directory is: what it says itself, or what the cluster says that the node joins with `token`. Nothing for
/// a node that is yet to form its cluster.
///
/// # Errors
/// See [`JoinError`].
pub async fn join(config: &Config, token: Option<&str>, dir: &DataDir) -> Result<Option<Owner>, JoinError> {
    if let Some(owner) = dir.owner(config.node, config.shard_count)? {
        return Ok(Some(owner));
    }
    let Some(token) = token else {
        return if config.node.is_some() { Ok(None) } else { Err(JoinError::NotInvited) };
    };
    let request = JoinNodeRequest {
        join_token: token.to_owned(),
        directory: dir.name()?,
        grpc_address: config.advertised.grpc.clone(),
        http_address: config.advertised.http.clone(),
        client_address: config.advertised.clients.clone(),
    };
    let JoinNodeResponse { node_id, cluster_id, shard_count } = ask_all(config, &request).await?;
    tracing::info!(node = node_id, cluster_id, "joined the cluster");
    let owner = Owner::joined(NodeId::new(node_id), config.node, cluster_id, shard_count);
    dir.claim(&owner)?;
    Ok(Some(owner))
}

/// Asks one member after the other until one lets this node in, or refuses it for good.
async fn ask_all(config: &Config, request: &JoinNodeRequest) -> Result<JoinNodeResponse, JoinError> {
    let others: Vec<_> = config
        .members
        .values()
        .map(|member| member.grpc.as_str())
        .filter(|address| *address != config.advertised.grpc)
        .collect();
    for round in 0_u32.. {
        let mut last = "cluster.members lists no other node".to_owned();
        for address in &others {
            match ask(address, request.clone()).await {
                Ok(response) => return Ok(response),
                Err(status) if is_final(status.code()) => {
                    return Err(JoinError::Refused(status.message().to_owned()));
                }
                Err(status) => last = format!("{address}: {}", status.message()),
            }
        }
        if round % REMIND_EVERY == 0 {
            tracing::info!(reason = last, "nobody lets this node in yet; asking again");
        }
        tokio::time::sleep(ASK_AGAIN_AFTER).await;
    }
    unreachable!("members are asked until one answers")
}

async fn ask(address: &str, request: JoinNodeRequest) -> Result<JoinNodeResponse, tonic::Status> {
    let unavailable = |error: tonic::transport::Error| tonic::Status::unavailable(error.to_string());
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(unavailable)?;
    let endpoint = endpoint.connect_timeout(ANSWER_WAIT_MAX).timeout(ANSWER_WAIT_MAX);
    let channel = endpoint.connect().await.map_err(unavailable)?;
    Ok(ClusterClient::new(channel).join_node(request).await?.into_inner())
}

/// Whether asking again would bring the same answer.
const fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::Unimplemented
    )
}
