//! Bugs that are put in on purpose, one at a time, to see whether the tests would notice them. An ordinary build has
//! none: there [`is_planted`] is a constant, and what stands behind it is left out. Which test catches which is in
//! `docs/testing.md`.

/// A bug that can be planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "planted-bugs", derive(clap::ValueEnum))]
pub enum Bug {
    /// What is written is taken to be on disk, and lies in the page cache.
    NeverSynced,
    /// A vote is given and not written down.
    VoteForgotten,
    /// A leader counts its followers as having an entry as soon as it is about to send it.
    FollowersNotWaitedFor,
    /// A leader goes on as one although nobody answers it.
    CutOffLeaderStays,
    /// A log ends at the first damage, whatever comes after it.
    DamageEndsLog,
    /// Rewriting a segment leaves some of what is needed behind.
    RewriteLoses,
    /// A checkpoint lacks a record.
    CheckpointLacks,
    /// A snapshot comes with only some of the messages.
    SnapshotLacks,
    /// Nodes go on talking to one that was removed.
    RemovedNodeHeard,
    /// A founder with an empty directory founds another cluster.
    EmptyDirectoryTaken,
    /// A batch that is sent again is stored again.
    SequenceIgnored,
    /// An ack is answered before it is replicated.
    AckAnsweredEarly,
    /// Leases end long before they should.
    LeaseCutShort,
    /// A message is delivered at the offset after its own.
    NeighbourDelivered,
    /// A message whose time is over is delivered all the same.
    ExpiredDelivered,
    /// Scheduled messages do not wait.
    DeliveredEarly,
    /// A dead letter is published a second time, as if by somebody else.
    DeadLetterDoubled,
    /// A message with a key does not hold up those after it.
    KeyNotHeld,
    /// The ids of messages are not remembered.
    IdForgotten,
    /// Every message is as urgent as any other.
    PriorityIgnored,
    /// A group that is moved stays where it was.
    SeekIgnored,
    /// All consumers are active where one should be.
    AllActive,
    /// A group gets what it does not want.
    FilterIgnored,
    /// A full queue takes more.
    LimitIgnored,
    /// A partition takes what was spread over fewer.
    OldPartitionTakes,
    /// A new partition delivers before older ones are done with what they had of its keys.
    NewPartitionHurries,
    /// A new partition does not have the groups of the older ones.
    NewPartitionForgets,
    /// A node goes by what it has heard of older partitions, and does not ask their leaders.
    OlderNotAsked,
}

/// Whether a bug is planted in this process.
#[cfg(not(feature = "planted-bugs"))]
#[must_use]
pub const fn is_planted(_: Bug) -> bool {
    false
}

#[cfg(feature = "planted-bugs")]
pub use self::planting::is_planted;

#[cfg(feature = "planted-bugs")]
mod planting {
    use std::{env, sync::LazyLock};

    use clap::ValueEnum as _;

    use super::Bug;

    /// The bug to plant, by its name with hyphens; none if it is not set.
    const VARIABLE: &str = "SKEIN_PLANTED_BUG";

    static PLANTED: LazyLock<Option<Bug>> = LazyLock::new(|| {
        let name = env::var(VARIABLE).ok().filter(|name| !name.is_empty())?;
        let bug =
            Bug::from_str(&name, false).unwrap_or_else(|_| panic!("{VARIABLE}: there is no bug {name:?}"));
        tracing::error!(bug = name, "a bug is planted in this process");
        Some(bug)
    });

    /// Whether a bug is planted in this process.
    #[must_use]
    pub fn is_planted(bug: Bug) -> bool {
        *PLANTED == Some(bug)
    }
}
