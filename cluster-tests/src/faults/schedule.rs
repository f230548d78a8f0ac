//! Which node dies when: drawn from a seed, so that it can be drawn again.

use std::env;

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

/// How often tests kill a node at drawn points of something that takes a while, unless the environment says otherwise.
/// Few, because every merge waits for them. For a search, give more:
/// `SKEIN_KILL_POINTS=100 cargo test -p skein-cluster-tests --test cluster die`.
const KILL_POINTS: u32 = 3;

/// Raises [`KILL_POINTS`].
const KILL_POINTS_VARIABLE: &str = "SKEIN_KILL_POINTS";

/// Whom a step kills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The leader of the queue under test.
    Leader,
    /// One of the others.
    Follower,
}

/// One kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// After so many more confirmed messages. Progress, not time: a fault must meet a cluster that works.
    pub after_confirms: usize,
    /// Who dies.
    pub victim: Victim,
    /// The node comes back after so many more confirmed messages.
    pub down_for_confirms: usize,
}

/// So many steps from a seed. Leaders die three times as often as followers; some kills come right after the last
/// one has healed, some after a calm.
#[must_use]
pub fn steps(seed: u64, count: usize) -> Vec<Step> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut step = || Step {
        after_confirms: if random.random_range(0..3) == 0 { 1 } else { random.random_range(100..800) },
        victim: if random.random_range(0..4) == 0 { Victim::Follower } else { Victim::Leader },
        down_for_confirms: random.random_range(1..400),
    };
    let mut steps: Vec<_> = (0..count).map(|_| step()).collect();
    // Whatever the seed: the fault that the schedule is named after happens.
    if let Some(first) = steps.first_mut() {
        first.victim = Victim::Leader;
    }
    steps
}

/// How often to kill at drawn points: [`KILL_POINTS`] times, or as the environment says.
#[must_use]
pub fn kill_points() -> u32 {
    env::var(KILL_POINTS_VARIABLE).ok().and_then(|count| count.parse().ok()).unwrap_or(KILL_POINTS)
}

/// So many numbers from 0 to 1, from a seed: how far something has come when it is disturbed.
#[must_use]
pub fn points(seed: u64, count: u32) -> Vec<f64> {
    let mut random = SmallRng::seed_from_u64(seed);
    (0..count).map(|_| random.random()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_steps_again() {
        assert_eq!(steps(7, 20), steps(7, 20));
        assert_ne!(steps(7, 20), steps(8, 20));
        assert!((0..100).all(|seed| steps(seed, 1)[0].victim == Victim::Leader));
    }
}
