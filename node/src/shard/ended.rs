//! Deliveries that have ended, on their way to be replicated.

use skein_proto::ids::{GroupId, QueueId};

use crate::{
    broker::{Command, Return},
    dispatch::GroupKey,
    offsets::OffsetRange,
};

/// Ranges of one kind in one command. An entry stays well below what a peer takes in one message.
const COMMAND_RANGES_MAX: usize = 4_096;

/// How some messages of one group's deliveries ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) acks: Vec<OffsetRange>,
    pub(super) returns: Vec<Return>,
    /// Nobody took them in time.
    pub(super) expired: Vec<OffsetRange>,
}

impl Ended {
    pub(super) fn is_empty(&self) -> bool {
        self.acks.is_empty() && self.returns.is_empty() && self.expired.is_empty()
    }

    /// As many commands as it takes to keep each of them small, and at least one.
    pub(super) fn into_commands(mut self, key: GroupKey, seek_count: u32) -> Vec<Command> {
        let GroupKey { queue, group } = key;
        let mut commands = Vec::new();
        while commands.is_empty() || !self.is_empty() {
            commands.push(self.take_command(queue, group, seek_count));
        }
        commands
    }

    fn take_command(&mut self, queue: QueueId, group: GroupId, seek_count: u32) -> Command {
        let acks = take_some(&mut self.acks);
        let returns = take_some(&mut self.returns);
        let expired = take_some(&mut self.expired);
        Command::Settle { queue, group, acks, returns, expired, seek_count }
    }
}

/// Takes the first ones.
fn take_some<T>(ranges: &mut Vec<T>) -> Vec<T> {
    let rest = ranges.split_off(ranges.len().min(COMMAND_RANGES_MAX));
    std::mem::replace(ranges, rest)
}

#[cfg(test)]
mod tests {
    use skein_proto::ids::Offset;

    use super::*;

    #[test]
    fn many_ranges_are_cut_into_commands_in_order() {
        let range = |n: usize| OffsetRange::new(Offset::new(2 * n as u64), 1);
        let key = GroupKey { queue: QueueId::new(1), group: GroupId::new(2) };
        let acks: Vec<_> = (0..2 * COMMAND_RANGES_MAX).map(range).collect();
        let expired = vec![range(100_000)];
        let commands = Ended { acks: acks.clone(), expired: expired.clone(), ..Ended::default() };
        let mut taken = Ended::default();
        let commands = commands.into_commands(key, 7);
        assert_eq!(commands.len(), 2);
        for command in commands {
            let Command::Settle { acks, expired, seek_count: 7, .. } = command else { panic!("{command:?}") };
            assert!(acks.len() <= COMMAND_RANGES_MAX);
            taken.acks.extend(acks);
            taken.expired.extend(expired);
        }
        assert_eq!(taken, Ended { acks, expired, ..Ended::default() });
        assert_eq!(Ended::default().into_commands(key, 0).len(), 1);
    }
}
