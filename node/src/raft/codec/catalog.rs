//! The catalog's commands, as entries carry them.

use skein_proto::{
    ids::QueueId,
    storage::{self as wire, command::Command as WireCommand},
};

use super::{
    DecodeError, nodes,
    settings::{settings_from_wire, settings_to_wire},
};
use crate::broker::CatalogCommand;

pub(super) fn command_to_wire(command: &CatalogCommand) -> WireCommand {
    match command {
        CatalogCommand::CreateQueue { name, settings, shard_count, colocated_with } => {
            WireCommand::CatalogCreateQueue(wire::CatalogCreateQueue {
                name: name.clone(),
                settings: Some(settings_to_wire(settings)),
                shard_count: *shard_count,
                colocated_with: colocated_with.clone().unwrap_or_default(),
            })
        }
        CatalogCommand::UpdateQueue { name, expected, settings, shard_count } => {
            WireCommand::CatalogUpdateQueue(wire::CatalogUpdateQueue {
                name: name.clone(),
                expected: Some(settings_to_wire(expected)),
                settings: Some(settings_to_wire(settings)),
                shard_count: *shard_count,
            })
        }
        CatalogCommand::DeleteQueue { name, queue } => {
            let queue_id = queue.map_or(0, QueueId::get);
            WireCommand::CatalogDeleteQueue(wire::CatalogDeleteQueue { name: name.clone(), queue_id })
        }
        CatalogCommand::CreateTopic { name, alternate } => {
            let alternate_queue = alternate.clone().unwrap_or_default();
            WireCommand::CatalogCreateTopic(wire::CatalogCreateTopic { name: name.clone(), alternate_queue })
        }
        CatalogCommand::UpdateTopic { name, alternate } => {
            let alternate_queue = alternate.clone().unwrap_or_default();
            WireCommand::CatalogUpdateTopic(wire::CatalogUpdateTopic { name: name.clone(), alternate_queue })
        }
        CatalogCommand::DeleteTopic { name } => {
            WireCommand::CatalogDeleteTopic(wire::CatalogDeleteTopic { name: name.clone() })
        }
        CatalogCommand::Bind { topic, queue, filter } => {
            WireCommand::CatalogBind(bind_to_wire(topic, queue, filter))
        }
        CatalogCommand::Unbind { topic, queue, filter } => {
            WireCommand::CatalogUnbind(bind_to_wire(topic, queue, filter))
        }
        CatalogCommand::Node(command) => nodes::command_to_wire(command),
    }
}

/// Nothing for a command of a shard with messages.
pub(super) fn command_from_wire(command: &WireCommand) -> Result<Option<CatalogCommand>, DecodeError> {
    let alternate = |name: &str| (!name.is_empty()).then(|| name.to_owned());
    Ok(Some(match command {
        WireCommand::CatalogCreateQueue(command) => CatalogCommand::CreateQueue {
            name: command.name.clone(),
            settings: settings_from_wire(command.settings.clone())?,
            shard_count: command.shard_count,
            colocated_with: Some(command.colocated_with.clone()).filter(|other| !other.is_empty()),
        },
        WireCommand::CatalogUpdateQueue(command) => CatalogCommand::UpdateQueue {
            name: command.name.clone(),
            expected: settings_from_wire(command.expected.clone())?,
            settings: settings_from_wire(command.settings.clone())?,
            shard_count: command.shard_count,
        },
        WireCommand::CatalogDeleteQueue(command) => CatalogCommand::DeleteQueue {
            name: command.name.clone(),
            queue: (command.queue_id != 0).then(|| QueueId::new(command.queue_id)),
        },
        WireCommand::CatalogCreateTopic(command) => CatalogCommand::CreateTopic {
            name: command.name.clone(),
            alternate: alternate(&command.alternate_queue),
        },
        WireCommand::CatalogUpdateTopic(command) => CatalogCommand::UpdateTopic {
            name: command.name.clone(),
            alternate: alternate(&command.alternate_queue),
        },
        WireCommand::CatalogDeleteTopic(command) => {
            CatalogCommand::DeleteTopic { name: command.name.clone() }
        }
        WireCommand::CatalogBind(command) => CatalogCommand::Bind {
            topic: command.topic.clone(),
            queue: command.queue.clone(),
            filter: command.filter.to_vec(),
        },
        WireCommand::CatalogUnbind(command) => CatalogCommand::Unbind {
            topic: command.topic.clone(),
            queue: command.queue.clone(),
            filter: command.filter.to_vec(),
        },
        command => return Ok(nodes::command_from_wire(command)?.map(CatalogCommand::Node)),
    }))
}

fn bind_to_wire(topic: &str, queue: &str, filter: &[u8]) -> wire::CatalogBind {
    wire::CatalogBind { topic: topic.to_owned(), queue: queue.to_owned(), filter: filter.to_vec().into() }
}
