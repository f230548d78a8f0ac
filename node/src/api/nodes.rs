//! Nodes that come, go, and shall lead nothing. What is decided here the controller carries out, shard by shard.

use std::time::Duration;

use skein_proto::{
    ids::NodeId,
    limits::{CLUSTER_NODES_MAX, NODE_TEXT_BYTES_MAX},
    node::{
        AddNodeRequest, AddNodeResponse, DrainNodeRequest, DrainNodeResponse, JoinNodeRequest,
        JoinNodeResponse, Reason, RemoveNodeRequest, RemoveNodeResponse,
    },
};
use tokio::net::TcpStream;
use tonic::{Code, Status};

use super::{Api, status};
use crate::{
    broker::{CatalogCommand, CatalogOutcome, NodeAddresses, NodeCommand, NodeOutcome},
    peer::is_host_and_port,
    random::random_name,
};

/// A node that joins takes connections at once: it asks from there.
const REACHED_WITHIN: Duration = Duration::from_secs(2);

impl Api {
    /// Invites a node. This node leads the catalog, as for the ones below.
    pub(super) async fn add_node(&self, request: AddNodeRequest) -> Result<AddNodeResponse, Status> {
        let replaces = (request.replaces_node_id != 0).then(|| NodeId::new(request.replaces_node_id));
        let token = random_name();
        let command = NodeCommand::Invite { token: token.clone(), replaces };
        match self.change_nodes(command).await? {
            NodeOutcome::Invited(node) => Ok(AddNodeResponse { node_id: node.get(), join_token: token }),
            outcome => Err(refused(outcome, request.replaces_node_id)),
        }
    }

    /// Lets an invited node in.
    pub(super) async fn join_node(&self, request: JoinNodeRequest) -> Result<JoinNodeResponse, Status> {
        let JoinNodeRequest { join_token: token, directory, grpc_address, http_address, client_address } =
            request;
        for address in [&grpc_address, &http_address, &client_address] {
            if !is_address(address) {
                let message = format!("{address:?} is not where a node can be reached; say host:port");
                return Err(status::invalid_setting(message));
            }
        }
        if directory.is_empty() || directory.len() > NODE_TEXT_BYTES_MAX {
            let message = format!("the directory's name must have 1 to {NODE_TEXT_BYTES_MAX} bytes");
            return Err(status::invalid_setting(message));
        }
        let reached = tokio::time::timeout(REACHED_WITHIN, TcpStream::connect(&grpc_address)).await;
        if !reached.is_ok_and(|reached| reached.is_ok()) {
            return Err(not_reached(self.node, &grpc_address));
        }
        let addresses = NodeAddresses { grpc: grpc_address, http: http_address, clients: client_address };
        match self.change_nodes(NodeCommand::Join { token, directory, addresses }).await? {
            NodeOutcome::Joined(node) => Ok(JoinNodeResponse {
                node_id: node.get(),
                cluster_id: self.cluster_id.clone(),
                shard_count: self.shard_count,
            }),
            outcome => Err(refused(outcome, 0)),
        }
    }

    /// Takes back an invitation, or lets a node leave.
    pub(super) async fn remove_node(&self, request: RemoveNodeRequest) -> Result<RemoveNodeResponse, Status> {
        let node = NodeId::new(request.node_id);
        match self.change_nodes(NodeCommand::Remove { node }).await? {
            NodeOutcome::Changed | NodeOutcome::Unchanged => Ok(RemoveNodeResponse {}),
            outcome => Err(refused(outcome, request.node_id)),
        }
    }

    /// Says whether a node shall lead shards.
    pub(super) async fn drain_node(&self, request: DrainNodeRequest) -> Result<DrainNodeResponse, Status> {
        let command = NodeCommand::Drain { node: NodeId::new(request.node_id), is_drained: request.drained };
        match self.change_nodes(command).await? {
            NodeOutcome::Changed | NodeOutcome::Unchanged => Ok(DrainNodeResponse {}),
            outcome => Err(refused(outcome, request.node_id)),
        }
    }

    async fn change_nodes(&self, command: NodeCommand) -> Result<NodeOutcome, Status> {
        match self.propose_to_catalog(&CatalogCommand::Node(command)).await? {
            CatalogOutcome::Node(outcome) => Ok(outcome),
            outcome => unreachable!("a change of nodes came out as {outcome:?}"),
        }
    }
}

/// It may be that a name is not known everywhere yet, so it can be tried again.
fn not_reached(node: NodeId, address: &str) -> Status {
    let message = format!(
        "node {node} cannot connect to {address:?}, where this node says that it is reached; correct [advertise] if \
         that is wrong"
    );
    status::status(Code::Unavailable, Reason::Busy, message)
}

fn is_address(text: &str) -> bool {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    text.len() <= NODE_TEXT_BYTES_MAX && is_plain && is_host_and_port(text)
}

fn refused(outcome: NodeOutcome, node_id: u64) -> Status {
    let (code, reason, message) = match outcome {
        NodeOutcome::NotFound => (
            Code::NotFound,
            Reason::NodeNotFound,
            format!("the cluster has no node {node_id}; skein cluster status lists those that it has"),
        ),
        NodeOutcome::NotFounded => (
            Code::Unavailable,
            Reason::Busy,
            "the cluster was formed a moment ago and does not know its own nodes yet; try again".to_owned(),
        ),
        NodeOutcome::BeingReplaced { by, has_joined } => {
            let advice = match has_joined {
                true => format!("if that one is lost too, replace it (skein cluster replace {by})"),
                false => format!(
                    "start that one, or take its invitation back (skein cluster remove {by}) and replace node \
                     {node_id} again"
                ),
            };
            let message = format!("node {by} takes the place of node {node_id} already; {advice}");
            (Code::FailedPrecondition, Reason::NodeConflict, message)
        }
        NodeOutcome::TooMany => (
            Code::ResourceExhausted,
            Reason::TooMany,
            format!(
                "the cluster has {CLUSTER_NODES_MAX} nodes, as many as it may: every write waits for a majority; \
                 replace one, or remove one first"
            ),
        ),
        NodeOutcome::LastNode => (
            Code::FailedPrecondition,
            Reason::NodeConflict,
            format!("node {node_id} is the only one; replace it (skein cluster replace {node_id}), or add others"),
        ),
        NodeOutcome::TokenUnknown => (
            Code::PermissionDenied,
            Reason::TokenInvalid,
            "nobody was invited with this token, or the invitation was taken back; get one with skein cluster add"
                .to_owned(),
        ),
        NodeOutcome::TokenUsed { by } => (
            Code::PermissionDenied,
            Reason::TokenInvalid,
            format!(
                "node {by} has joined with this token from another data directory; if that one is lost, let a new \
                 node take its place (skein cluster replace {by})"
            ),
        ),
        NodeOutcome::AddressTaken { by } => (
            Code::AlreadyExists,
            Reason::NodeConflict,
            format!(
                "node {by} is reached at this address; give each its own, or let this node take that one's place \
                 (skein cluster replace {by})"
            ),
        ),
        NodeOutcome::Changed
        | NodeOutcome::Unchanged
        | NodeOutcome::Invited(_)
        | NodeOutcome::Joined(_) => {
            unreachable!("{outcome:?} is no refusal")
        }
    };
    status::status(code, reason, message)
}
