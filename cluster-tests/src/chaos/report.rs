//! What a run did, and how long its publishers waited for confirms.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::Fault;
use crate::{
    checks::{Verdict, judge},
    history::{Moment, Outcome},
    recorder::Recorder,
};

/// Waits are counted from a fault's beginning to this long after it was healed: leaders move then as well.
const AFTERMATH: Duration = Duration::from_secs(3);

/// One fault, and the one that happened with it, from before it was injected until the cluster was whole again.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// What happened.
    pub fault: Fault,
    /// What happened as well.
    pub second: Option<Fault>,
    /// When it began.
    pub begun: Moment,
    /// When all was well again.
    pub ended: Moment,
}

/// What runs did, added up.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// What happened.
    pub events: Vec<Event>,
    /// Messages handed to producers.
    pub published: usize,
    /// Those that were confirmed.
    pub confirmed: usize,
    /// Those of which nobody knows.
    pub unknown: usize,
    /// Promises that were broken.
    pub violations: usize,
    /// The longest wait of any publisher between two confirms during each fault that happened alone.
    pub waits: BTreeMap<Fault, Vec<Duration>>,
}

impl Report {
    /// Adds what was recorded.
    pub(super) fn take(&mut self, recorder: &Recorder) {
        recorder.with(|history| {
            self.published += history.publishes.len();
            self.confirmed += history.confirmed_count();
            let unknown = history.publishes.iter().filter(|call| matches!(call.outcome, Outcome::Unknown(_)));
            self.unknown += unknown.count();
            if let Verdict::Violated(violations) = judge(history) {
                self.violations += violations.len();
            }
            let mut confirms: BTreeMap<(&str, u64), Vec<Moment>> = BTreeMap::new();
            for call in history.publishes.iter().filter(|call| matches!(call.outcome, Outcome::Ok(_))) {
                let publisher = (call.identity.queue.as_str(), call.identity.producer);
                confirms.entry(publisher).or_default().extend(call.returned);
            }
            confirms.values_mut().for_each(|moments| moments.sort_unstable());
            let next_begun = self.events.iter().skip(1).map(|next| next.begun).chain([Moment::MAX]);
            let alone = self.events.iter().zip(next_begun).filter(|(event, _)| event.second.is_none());
            for (event, next_begun) in alone {
                // What happens in the next one is not the doing of this one.
                let until = next_begun.min(event.ended + AFTERMATH);
                let waits = confirms.values().map(|moments| longest_wait(moments, event.begun, until));
                self.waits.entry(event.fault).or_default().push(waits.max().unwrap_or_default());
            }
        });
    }

    /// Adds another run.
    pub fn add(&mut self, other: Self) {
        self.events.extend(other.events);
        self.published += other.published;
        self.confirmed += other.confirmed;
        self.unknown += other.unknown;
        self.violations += other.violations;
        for (fault, waits) in other.waits {
            self.waits.entry(fault).or_default().extend(waits);
        }
    }
}

/// The longest time without a confirm among these moments, which rise, while a fault had its effects.
fn longest_wait(confirms: &[Moment], from: Moment, to: Moment) -> Duration {
    let first = confirms.partition_point(|moment| *moment < from).saturating_sub(1);
    let meant = confirms[first..].iter().take_while(|moment| **moment <= to);
    let meant: Vec<_> = meant.collect();
    meant.windows(2).map(|pair| *pair[1] - *pair[0]).max().unwrap_or_default()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<18} {:>6} {:>10} {:>10} {:>10}",
            "fault", "times", "median ms", "p99 ms", "longest ms"
        )?;
        for (fault, waits) in &self.waits {
            let mut waits = waits.clone();
            waits.sort_unstable();
            let at = |percent: usize| {
                let place = (waits.len() * percent).div_ceil(100).clamp(1, waits.len()) - 1;
                waits[place].as_millis()
            };
            writeln!(
                f,
                "{:<18} {:>6} {:>10} {:>10} {:>10}",
                fault.name(),
                waits.len(),
                at(50),
                at(99),
                at(100)
            )?;
        }
        let together = self.events.iter().filter(|event| event.second.is_some()).count();
        writeln!(f, "and {together} times two of them together")?;
        write!(
            f,
            "{} published, {} confirmed, {} of unknown outcome; {} promises broken",
            self.published, self.confirmed, self.unknown, self.violations
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_those_that_touch_the_fault() {
        let ms = Duration::from_millis;
        let confirms: Vec<_> = [0, 500, 510, 520, 900, 910, 10_000, 12_000].map(ms).into();
        assert_eq!(longest_wait(&confirms, ms(515), ms(3_905)), ms(380));
        // The wait that had begun before counts, and one that ends later does not.
        assert_eq!(longest_wait(&confirms, ms(100), ms(3_905)), ms(500));
        assert_eq!(longest_wait(&confirms, ms(515), ms(899)), ms(10));
        assert_eq!(longest_wait(&[], ms(515), ms(905)), Duration::ZERO);
    }
}
