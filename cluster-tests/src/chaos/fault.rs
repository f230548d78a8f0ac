//! What may happen to a cluster.

use std::{fmt, str::FromStr};

/// Something that happens to a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The leader of a queue dies.
    KillLeader,
    /// Another node dies.
    KillFollower,
    /// More nodes die than the cluster can do without.
    KillMajority,
    /// All die.
    KillAll,
    /// A node dies again and again as soon as it is back.
    RestartStorm,
    /// The leader of a queue stands still.
    PauseLeader,
    /// Another node does.
    PauseFollower,
    /// The leader of a queue is cut off from all others.
    CutOffLeader,
    /// Another node is.
    CutOffFollower,
    /// Nobody hears a node.
    NotHeard,
    /// A node hears nobody.
    HearsNobody,
    /// Two nodes do not hear each other, and a third one hears both.
    CutPair,
    /// What goes to and from a node takes long.
    Slow,
    /// A clock is set, forward or back.
    SetClock,
    /// What a node writes takes long.
    SlowDisk,
    /// A node is asked to leave, and comes back.
    Leave,
    /// All are, one after the other.
    RollingRestart,
    /// The leader of a queue hands over.
    Transfer,
    /// A node is to lead nothing for a while.
    Drain,
    /// A node dies for good, and another one takes its place.
    Replace,
    /// A queue gets more partitions.
    Grow,
}

impl Fault {
    /// Every one.
    pub const ALL: [Self; 21] = [
        Self::KillLeader,
        Self::KillFollower,
        Self::KillMajority,
        Self::KillAll,
        Self::RestartStorm,
        Self::PauseLeader,
        Self::PauseFollower,
        Self::CutOffLeader,
        Self::CutOffFollower,
        Self::NotHeard,
        Self::HearsNobody,
        Self::CutPair,
        Self::Slow,
        Self::SetClock,
        Self::SlowDisk,
        Self::Leave,
        Self::RollingRestart,
        Self::Transfer,
        Self::Drain,
        Self::Replace,
        Self::Grow,
    ];

    /// Those that say how long publishers wait when a node leaves, dies or is not heard.
    pub const MEASURED: [Self; 8] = [
        Self::KillLeader,
        Self::PauseLeader,
        Self::CutOffLeader,
        Self::Transfer,
        Self::Leave,
        Self::KillFollower,
        Self::PauseFollower,
        Self::CutOffFollower,
    ];

    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::KillLeader => "kill-leader",
            Self::KillFollower => "kill-follower",
            Self::KillMajority => "kill-majority",
            Self::KillAll => "kill-all",
            Self::RestartStorm => "restart-storm",
            Self::PauseLeader => "pause-leader",
            Self::PauseFollower => "pause-follower",
            Self::CutOffLeader => "cut-off-leader",
            Self::CutOffFollower => "cut-off-follower",
            Self::NotHeard => "not-heard",
            Self::HearsNobody => "hears-nobody",
            Self::CutPair => "cut-pair",
            Self::Slow => "slow",
            Self::SetClock => "set-clock",
            Self::SlowDisk => "slow-disk",
            Self::Leave => "leave",
            Self::RollingRestart => "rolling-restart",
            Self::Transfer => "transfer",
            Self::Drain => "drain",
            Self::Replace => "replace",
            Self::Grow => "grow",
        }
    }

    /// Whether it happens to the ways between nodes.
    pub(super) const fn needs_links(self) -> bool {
        matches!(
            self,
            Self::CutOffLeader
                | Self::CutOffFollower
                | Self::NotHeard
                | Self::HearsNobody
                | Self::CutPair
                | Self::Slow
        )
    }

    /// Whether it happens to a node's machine.
    pub(super) const fn needs_machines(self) -> bool {
        matches!(self, Self::SetClock | Self::SlowDisk)
    }

    /// Whether a majority carries on meanwhile, as long as nothing else happens.
    pub(super) const fn leaves_majority(self) -> bool {
        !matches!(self, Self::KillMajority | Self::KillAll)
    }

    /// Whether it goes well with another one that takes at most a node: neither ends by itself within the call.
    pub(super) const fn may_overlap(self) -> bool {
        matches!(
            self,
            Self::KillLeader
                | Self::KillFollower
                | Self::PauseLeader
                | Self::PauseFollower
                | Self::CutOffLeader
                | Self::CutOffFollower
                | Self::NotHeard
                | Self::HearsNobody
                | Self::CutPair
                | Self::Slow
                | Self::SetClock
                | Self::SlowDisk
                | Self::Grow
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        let fault = Self::ALL.into_iter().find(|fault| fault.name() == name);
        fault.ok_or_else(|| format!("there is no fault {name:?}; there are {}", names()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_fault_is_known_by_its_name() {
        for fault in Fault::ALL {
            assert_eq!(fault.name().parse(), Ok(fault));
        }
        assert!("thunder".parse::<Fault>().unwrap_err().contains("kill-leader, kill-follower"));
        assert_eq!(Fault::ALL.iter().collect::<BTreeSet<_>>().len(), Fault::ALL.len());
    }
}
