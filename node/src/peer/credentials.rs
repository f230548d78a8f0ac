//! Who calls whom: every call between nodes says which cluster it belongs to and which node it is meant for.
//!
//! Addresses get reused and moved. Entries from another cluster's leader, or an answer counted for the wrong node,
//! would cost confirmed messages.

use skein_proto::ids::NodeId;
use tokio::sync::watch;
use tonic::{Request, Status, metadata::MetadataValue, service::Interceptor};

use super::Identity;
use crate::planted::{Bug, is_planted};

const CLUSTER: &str = "skein-cluster-id";
const TARGET: &str = "skein-target-node-id";
const SOURCE: &str = "skein-source-node-id";

/// Marks the refusal of a node that was removed from the cluster.
const REMOVED: &str = "skein-node-removed";

/// Marks calls to one node, once this node belongs to a cluster.
#[derive(Clone)]
pub struct Outgoing {
    /// Who this node is.
    pub(super) identity: watch::Receiver<Identity>,
    /// Whom it calls.
    pub(super) target: NodeId,
}

/// Refuses calls that are marked for another cluster or node.
#[derive(Clone)]
pub struct Incoming {
    /// Who this node is.
    pub identity: watch::Receiver<Identity>,
}

impl Interceptor for Outgoing {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let cluster_id = self.identity.borrow().cluster_id.clone();
        if let Some(cluster_id) = cluster_id {
            let value = MetadataValue::try_from(cluster_id)
                .map_err(|_| Status::internal("this node's cluster id is not plain text"))?;
            request.metadata_mut().insert(CLUSTER, value);
        }
        request.metadata_mut().insert(TARGET, self.target.get().into());
        let source = self.identity.borrow().node;
        request.metadata_mut().insert(SOURCE, source.get().into());
        Ok(request)
    }
}

impl Interceptor for Incoming {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let identity = self.identity.borrow();
        let text = |key| request.metadata().get(key).and_then(|value| value.to_str().ok());
        if let (Some(ours), Some(theirs)) = (identity.cluster_id.as_deref(), text(CLUSTER))
            && ours != theirs
        {
            return Err(Status::permission_denied(format!(
                "node {} belongs to cluster {ours}, and the call to {theirs}; check cluster.members of both",
                identity.node
            )));
        }
        if let Some(target) = text(TARGET)
            && target != identity.node.to_string()
        {
            return Err(Status::permission_denied(format!(
                "the call is meant for node {target}, and node {} is at this address; check cluster.members",
                identity.node
            )));
        }
        if let Some(source) = source(&request)
            && identity.has_removed(source)
            && !is_planted(Bug::RemovedNodeHeard)
        {
            return Err(removed(source));
        }
        drop(identity);
        Ok(request)
    }
}

/// Which node calls.
pub(super) fn source<T>(request: &Request<T>) -> Option<NodeId> {
    request.metadata().get(SOURCE)?.to_str().ok()?.parse().ok().map(NodeId::new)
}

/// Whether a peer refuses a call because this node was removed from the cluster.
#[must_use]
pub fn says_removed(refused: &Status) -> bool {
    refused.metadata().contains_key(REMOVED)
}

fn removed(node: NodeId) -> Status {
    let mut status = Status::permission_denied(format!("node {node} was removed from the cluster"));
    status.metadata_mut().insert(REMOVED, MetadataValue::from_static("1"));
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::{Members, service::Roster};

    fn identity(node: u64, cluster_id: Option<&str>) -> watch::Receiver<Identity> {
        let identity = Identity {
            node: NodeId::new(node),
            cluster_id: cluster_id.map(str::to_owned),
            formed: cluster_id.is_some(),
            shard_count: 1,
            members: Members::new(),
            roster: None,
        };
        watch::Sender::new(identity).subscribe()
    }

    /// Whether node 2 of cluster `theirs` takes a call that a node of cluster `ours` means for node `target`.
    fn is_taken(ours: Option<&str>, target: u64, theirs: Option<&str>) -> bool {
        let mut outgoing = Outgoing { identity: identity(1, ours), target: NodeId::new(target) };
        let mut incoming = Incoming { identity: identity(2, theirs) };
        incoming.call(outgoing.call(Request::new(())).unwrap()).is_ok()
    }

    #[test]
    fn only_calls_for_this_node_of_this_cluster_are_taken() {
        assert!(is_taken(Some("flock"), 2, Some("flock")));
        assert!(!is_taken(Some("flock"), 2, Some("gaggle")));
        assert!(!is_taken(Some("flock"), 3, Some("flock")));
        // While a cluster is formed, Hello must get through.
        assert!(is_taken(None, 2, Some("flock")));
        assert!(is_taken(Some("flock"), 2, None));
    }

    #[test]
    fn who_was_removed_is_told_so_and_who_is_not_known_yet_is_not() {
        let flock = identity(2, Some("flock"));
        let mut known = flock.borrow().clone();
        known.roster = Some(Roster { nodes: [2, 3].map(NodeId::new).into(), next: NodeId::new(4) });
        let mut incoming = Incoming { identity: watch::Sender::new(known).subscribe() };
        let mut call = |from: u64| {
            let mut outgoing = Outgoing { identity: identity(from, Some("flock")), target: NodeId::new(2) };
            incoming.call(outgoing.call(Request::new(())).unwrap())
        };
        assert!(says_removed(&call(1).unwrap_err()));
        assert!(call(3).is_ok());
        assert!(call(4).is_ok(), "it may have joined a moment ago");
    }
}
