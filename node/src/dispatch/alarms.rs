//! When messages are to be looked at again.

use std::collections::BTreeSet;

use skein_proto::ids::Offset;

use super::GroupKey;
use crate::offsets::OffsetRange;

/// When some of a group's messages want to be looked at again.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    /// Those that can be delivered then.
    pub(super) delays: Vec<(u64, OffsetRange)>,
    /// Those that may wait no longer then.
    pub(super) expiries: Vec<(u64, OffsetRange)>,
}

/// The alarms of all groups, by time, group, first offset and count.
#[derive(Debug, Default)]
pub(super) struct AlarmClock {
    /// When delayed messages become deliverable. An entry whose messages are gone does nothing when its time comes.
    pub(super) delays: BTreeSet<(u64, GroupKey, Offset, u64)>,
    /// When messages are to be given up. An entry whose messages are gone, or may wait longer, does nothing.
    pub(super) expiries: BTreeSet<(u64, GroupKey, Offset, u64)>,
}

impl AlarmClock {
    pub(super) fn set(&mut self, key: GroupKey, alarms: Alarms) {
        let Alarms { delays, expiries } = alarms;
        let entry = |(at_ms, range): (u64, OffsetRange)| (at_ms, key, range.first, range.count);
        self.delays.extend(delays.into_iter().map(entry));
        self.expiries.extend(expiries.into_iter().map(entry));
    }
}
