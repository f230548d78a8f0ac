//! The cluster's nodes, which entries change and records keep.

use skein_proto::{
    ids::NodeId,
    storage::{self as wire, command::Command as WireCommand},
};

use super::DecodeError;
use crate::broker::{ClusterNode, NodeAddresses, NodeCommand, Standing};

pub(super) fn command_to_wire(command: &NodeCommand) -> WireCommand {
    match command {
        NodeCommand::Found { nodes } => {
            let founding = |(id, addresses): &(NodeId, NodeAddresses)| wire::FoundingNode {
                node_id: id.get(),
                addresses: Some(addresses_to_wire(addresses)),
            };
            let nodes = nodes.iter().map(founding).collect();
            WireCommand::CatalogFoundNodes(wire::CatalogFoundNodes { nodes })
        }
        NodeCommand::Invite { token, replaces } => {
            let replaces_node_id = replaces.map_or(0, NodeId::get);
            WireCommand::CatalogInviteNode(wire::CatalogInviteNode { token: token.clone(), replaces_node_id })
        }
        NodeCommand::Join { token, directory, addresses } => {
            WireCommand::CatalogJoinNode(wire::CatalogJoinNode {
                token: token.clone(),
                directory: directory.clone(),
                addresses: Some(addresses_to_wire(addresses)),
            })
        }
        NodeCommand::Remove { node } => {
            WireCommand::CatalogRemoveNode(wire::CatalogRemoveNode { node_id: node.get() })
        }
        NodeCommand::Forget { node } => {
            WireCommand::CatalogForgetNode(wire::CatalogForgetNode { node_id: node.get() })
        }
        NodeCommand::Drain { node, is_drained } => WireCommand::CatalogDrainNode(wire::CatalogDrainNode {
            node_id: node.get(),
            drained: *is_drained,
        }),
    }
}

/// Nothing for any other command.
pub(super) fn command_from_wire(command: &WireCommand) -> Result<Option<NodeCommand>, DecodeError> {
    Ok(Some(match command {
        WireCommand::CatalogFoundNodes(command) => {
            let founding = |node: &wire::FoundingNode| {
                Ok((NodeId::new(node.node_id), addresses_from_wire(node.addresses.clone())?))
            };
            let nodes = command.nodes.iter().map(founding).collect::<Result<_, DecodeError>>()?;
            NodeCommand::Found { nodes }
        }
        WireCommand::CatalogInviteNode(command) => NodeCommand::Invite {
            token: command.token.clone(),
            replaces: optional_node(command.replaces_node_id),
        },
        WireCommand::CatalogJoinNode(command) => NodeCommand::Join {
            token: command.token.clone(),
            directory: command.directory.clone(),
            addresses: addresses_from_wire(command.addresses.clone())?,
        },
        WireCommand::CatalogRemoveNode(command) => NodeCommand::Remove { node: NodeId::new(command.node_id) },
        WireCommand::CatalogForgetNode(command) => NodeCommand::Forget { node: NodeId::new(command.node_id) },
        WireCommand::CatalogDrainNode(command) => {
            NodeCommand::Drain { node: NodeId::new(command.node_id), is_drained: command.drained }
        }
        _ => return Ok(None),
    }))
}

pub(super) fn record_to_wire(node: &ClusterNode) -> wire::CatalogNodeRecord {
    let standing = match node.standing {
        Standing::Invited => wire::NodeStanding::Invited,
        Standing::Member => wire::NodeStanding::Member,
        Standing::Leaving => wire::NodeStanding::Leaving,
    };
    wire::CatalogNodeRecord {
        standing: standing.into(),
        addresses: Some(addresses_to_wire(&node.addresses)),
        token: node.token.clone(),
        directory: node.directory.clone(),
        replaces_node_id: node.replaces.map_or(0, NodeId::get),
        drained: node.is_drained,
    }
}

pub(super) fn record_from_wire(record: wire::CatalogNodeRecord) -> Result<ClusterNode, DecodeError> {
    let standing = match record.standing() {
        wire::NodeStanding::Invited => Standing::Invited,
        wire::NodeStanding::Member => Standing::Member,
        wire::NodeStanding::Leaving => Standing::Leaving,
        wire::NodeStanding::Unspecified => {
            return Err(DecodeError::Unknown { field: "standing", value: record.standing.into() });
        }
    };
    Ok(ClusterNode {
        standing,
        addresses: addresses_from_wire(record.addresses)?,
        token: record.token,
        directory: record.directory,
        replaces: optional_node(record.replaces_node_id),
        is_drained: record.drained,
    })
}

fn addresses_to_wire(addresses: &NodeAddresses) -> wire::NodeAddresses {
    let NodeAddresses { grpc, http, clients } = addresses.clone();
    wire::NodeAddresses { grpc, http, clients }
}

fn addresses_from_wire(addresses: Option<wire::NodeAddresses>) -> Result<NodeAddresses, DecodeError> {
    let wire::NodeAddresses { grpc, http, clients } = addresses.ok_or(DecodeError::Missing("addresses"))?;
    Ok(NodeAddresses { grpc, http, clients })
}

fn optional_node(node_id: u64) -> Option<NodeId> {
    (node_id != 0).then(|| NodeId::new(node_id))
}
