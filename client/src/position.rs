//! Places in a queue.

use std::time::SystemTime;

use skein_proto::{
    broker::{self, position},
    ids::Offset,
};

use crate::wire_time::unix_ms;

/// A place in a queue, to read on from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Position {
    /// The oldest message that is kept.
    #[default]
    First,
    /// The next message that is published.
    Next,
    /// This message, or where it is gone, the first one after it that is kept.
    Offset(Offset),
    /// The first message that was published at this time or later, by the clock of the node that led then.
    Time(SystemTime),
}

impl Position {
    pub(crate) fn into_wire(self) -> broker::Position {
        let position = match self {
            Self::First => position::Position::Start(broker::GroupStart::First.into()),
            Self::Next => position::Position::Start(broker::GroupStart::Next.into()),
            Self::Offset(offset) => position::Position::Offset(offset.get()),
            Self::Time(time) => position::Position::TimeMs(unix_ms(time)),
        };
        broker::Position { position: Some(position) }
    }
}
