//! Bugs that are put in on purpose, one at a time, to see whether the tests would notice them. An ordinary build has
//! none: there [`is_planted`] is a constant, and what stands behind it is left out. Which test catches which is in
//! `docs/testing.md`.

/// A bug that can be planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// A message is given up when its time is over, and delivered all the same.
    ExpiredDelivered,
    /// Scheduled messages do not wait.
    DeliveredEarly,
    /// A dead letter is published by somebody else at every attempt.
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
}

/// Whether a bug is planted in this process.
#[cfg(not(feature = "planted-bugs"))]
#[must_use]
pub const fn is_planted(_: Bug) -> bool {
    false
}

#[cfg(feature = "planted-bugs")]
pub use self::planting::{BUGS, is_planted};

#[cfg(feature = "planted-bugs")]
mod planting {
    use std::{env, sync::LazyLock};

    use super::Bug;

    /// The bug to plant, by its name; none if it is not set.
    const VARIABLE: &str = "SKEIN_PLANTED_BUG";

    /// All of them by name.
    pub const BUGS: [(&str, Bug); 24] = [
        ("never-synced", Bug::NeverSynced),
        ("vote-forgotten", Bug::VoteForgotten),
        ("followers-not-waited-for", Bug::FollowersNotWaitedFor),
        ("cut-off-leader-stays", Bug::CutOffLeaderStays),
        ("damage-ends-log", Bug::DamageEndsLog),
        ("rewrite-loses", Bug::RewriteLoses),
        ("checkpoint-lacks", Bug::CheckpointLacks),
        ("snapshot-lacks", Bug::SnapshotLacks),
        ("removed-node-heard", Bug::RemovedNodeHeard),
        ("empty-directory-taken", Bug::EmptyDirectoryTaken),
        ("sequence-ignored", Bug::SequenceIgnored),
        ("ack-answered-early", Bug::AckAnsweredEarly),
        ("lease-cut-short", Bug::LeaseCutShort),
        ("neighbour-delivered", Bug::NeighbourDelivered),
        ("expired-delivered", Bug::ExpiredDelivered),
        ("delivered-early", Bug::DeliveredEarly),
        ("dead-letter-doubled", Bug::DeadLetterDoubled),
        ("key-not-held", Bug::KeyNotHeld),
        ("id-forgotten", Bug::IdForgotten),
        ("priority-ignored", Bug::PriorityIgnored),
        ("seek-ignored", Bug::SeekIgnored),
        ("all-active", Bug::AllActive),
        ("filter-ignored", Bug::FilterIgnored),
        ("limit-ignored", Bug::LimitIgnored),
    ];

    static PLANTED: LazyLock<Option<Bug>> = LazyLock::new(|| {
        let name = env::var(VARIABLE).ok().filter(|name| !name.is_empty())?;
        let found = BUGS.iter().find(|(known, _)| *known == name);
        let (_, bug) = found.unwrap_or_else(|| panic!("{VARIABLE} is {name:?}, and there is no such bug"));
        tracing::error!(bug = name, "a bug is planted in this process");
        Some(*bug)
    });

    /// Whether a bug is planted in this process.
    #[must_use]
    pub fn is_planted(bug: Bug) -> bool {
        *PLANTED == Some(bug)
    }
}
