//! Refuses publishes that would fill disks to the brim. Nothing else is refused: acks, purges and deletions make room.

use skein_proto::ids::NodeId;
use tonic::Status;

use super::{Api, status};
use crate::{free_space::DiskState, peer::Sightings, raft::Group};

/// There is too little room to store another publish.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoRoom {
    /// On the leader itself.
    #[error(
        "the disk of node {node}, which leads the queue's shard, is nearly full: {} bytes are free, and publishing \
         resumes at {}; consume, purge or delete what is kept, or make room on the disk, and publish again",
        disk.free_bytes, disk.resume_bytes()
    )]
    Here { node: NodeId, disk: DiskState },
    /// On too many of the others.
    #[error(
        "the disks of {} are nearly full, and too few other nodes of the queue's shard are left; consume, purge or \
         delete what is kept, or make room on those disks, and publish again",
        names(low)
    )]
    OnTooMany { low: Vec<NodeId> },
}

fn names(nodes: &[NodeId]) -> String {
    let names: Vec<_> = nodes.iter().map(|node| format!("node {node}")).collect();
    names.join(" and ")
}

impl Api {
    /// Makes sure that a publish to a shard that this node leads finds room.
    pub(super) fn ensure_room(&self, group: &Group) -> Result<(), Status> {
        let disk = *self.disk.borrow();
        check(self.node, disk, &self.sightings.borrow(), || group.voters())
            .map_err(|error| status::from_no_room(&error))
    }

    /// Whether a node's disk is nearly full, as far as this node knows.
    pub(super) fn is_low_on_disk(&self, node: NodeId) -> bool {
        if node == self.node {
            self.disk.borrow().is_low
        } else {
            self.sightings.borrow().low_on_disk.contains(&node)
        }
    }
}

/// A follower cannot refuse what its leader sends, and one with a full disk stops for good. So the leader keeps to what
/// a majority has room for; a node that does not answer is not counted on while others are low.
fn check(
    node: NodeId,
    disk: DiskState,
    sightings: &Sightings,
    voters: impl FnOnce() -> Vec<NodeId>,
) -> Result<(), NoRoom> {
    if disk.is_low {
        return Err(NoRoom::Here { node, disk });
    }
    if sightings.low_on_disk.is_empty() {
        return Ok(());
    }
    let voters = voters();
    let low: Vec<_> = voters.iter().filter(|voter| sightings.low_on_disk.contains(voter)).copied().collect();
    let has_room = |voter: &&NodeId| sightings.reachable.contains(voter) && !low.contains(voter);
    let is_majority = voters.iter().filter(has_room).count() > voters.len() / 2;
    if low.is_empty() || is_majority { Ok(()) } else { Err(NoRoom::OnTooMany { low }) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What node 1 of three says when these nodes are low, and these answer.
    fn refused(low: &[u64], reachable: &[u64]) -> Option<String> {
        let nodes = |ids: &[u64]| ids.iter().copied().map(NodeId::new).collect::<BTreeSet<_>>();
        let disk = DiskState { free_bytes: 700, mark_bytes: 800, is_low: low.contains(&1) };
        let others: Vec<_> = low.iter().copied().filter(|id| *id != 1).collect();
        let sightings =
            Sightings { reachable: nodes(reachable), low_on_disk: nodes(&others), ..Sightings::default() };
        let voters = || (1..=3).map(NodeId::new).collect();
        check(NodeId::new(1), disk, &sightings, voters).err().map(|error| error.to_string())
    }

    #[test]
    fn publishes_are_taken_where_a_majority_has_room() {
        assert_eq!(refused(&[], &[1, 2, 3]), None);
        assert_eq!(refused(&[3], &[1, 2, 3]), None);
        assert_eq!(refused(&[], &[1]), None, "raft says what a leader that is alone may do");
    }

    #[test]
    fn a_leader_that_is_low_refuses() {
        let sentence = refused(&[1], &[1, 2, 3]).unwrap();
        assert!(
            sentence.contains("node 1, which leads") && sentence.contains("resumes at 900"),
            "{sentence}"
        );
    }

    #[test]
    fn a_leader_refuses_what_too_few_replicas_have_room_for() {
        let sentence = refused(&[2, 3], &[1, 2, 3]).unwrap();
        assert!(sentence.starts_with("the disks of node 2 and node 3 are"), "{sentence}");
        assert!(refused(&[3], &[1, 3]).is_some(), "node 2 is down, and node 3 would be filled up");
    }
}
